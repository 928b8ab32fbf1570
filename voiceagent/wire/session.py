"""The session object: what a client may set, how an update merges, and how it is echoed.

Source: protocols 1.2. Only the fields present in an update change. Objects under `audio.input` and `audio.output` merge key by
key; `turn_detection`, `transcription`, `noise_reduction`, `format`, `tools` and `tool_choice` are replaced whole. What the
runtime has no use for (tools of other kinds than functions, tracing, a stored prompt, a voice's name) is kept and echoed, so that clients which compare find
what they sent; what would be untrue if echoed is not: `speed` stays 1.0 and `model` stays the one of the URL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, cast

from voiceagent.budget_terms import WhenLate
from voiceagent.errors import ConfigError, ProtocolError
from voiceagent.repair import REPAIR_MODES, RepairMode
from voiceagent.session import BARGE_IN_MODES, BargeInMode, SessionSettings, TurnDetection
from voiceagent.silences import MAX_CHARS, SilenceSettings
from voiceagent.tools import ToolChoice, ToolSpec
from voiceagent.wire.fields import Fields, Json, clean_json

FormatName: TypeAlias = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
Eagerness: TypeAlias = Literal["low", "medium", "high", "auto"]

FORMATS: tuple[FormatName, ...] = ("audio/pcm", "audio/pcmu", "audio/pcma")
PCM_RATE_HZ = 24_000
DEFAULT_VOICE = "default"
MAX_MS = 600_000
MAX_TOOLS = 128
MAX_PROMPTS = 16
MAX_NAME_CHARS = 64

_SILENCE_SCALE: Mapping[str, float] = {"low": 2.0, "medium": 1.0, "auto": 1.0, "high": 0.7}
"""`semantic_vad` gives no silence: the agent's own hangover, scaled by how eager the client wants it to be. It holds where nobody can judge
the words."""
_COST_SCALE: Mapping[str, float] = {"low": 3.0, "medium": 1.0, "auto": 1.0, "high": 0.3}
"""Where somebody can: what a cut-off is worth, scaled likewise."""

_ECHOED_KEYS = ("tracing", "prompt", "include", "reasoning")
"""Newer keys, echoed only to a client that sent them: the oldest plain session is what every validator accepts."""


@dataclass(frozen=True, slots=True)
class WireSession:
    """A client's session. `settings` is the part that the conversation obeys; the rest is the client's and is echoed."""

    settings: SessionSettings
    eagerness: Eagerness | None = None
    """Set when the client asked for `semantic_vad`."""
    input_format: FormatName = "audio/pcm"
    output_format: FormatName = "audio/pcm"
    noise_reduction: Json | None = None
    transcription: Json | None = None
    voice: str | Json = DEFAULT_VOICE
    tools: tuple[Mapping[str, object], ...] = ()
    tool_choice: str | Json = "auto"
    parallel_tool_calls: bool = True
    truncation: str | Json = "auto"
    echoed: Mapping[str, object] = field(default_factory=dict)
    extensions: bool = False
    """Whether the client wants this project's own events (partials, plans, steps, timelines)."""


def open_session(defaults: SessionSettings, *, transcriber: str, extensions: bool) -> WireSession:
    """The session before the client has said anything. `transcriber` is the recogniser's name."""
    transcription: Json | None = {"model": transcriber} if defaults.transcribe else None
    defaults = replace(defaults, can_be_held=extensions)
    return WireSession(settings=defaults, transcription=transcription, extensions=extensions)


def update_session(session: WireSession, update: Fields, defaults: SessionSettings) -> WireSession:
    """The session after `update` (the `session` object of a `session.update`).

    Raises:
        ProtocolError: If anything in it is unacceptable; `session` is what it was.
    """
    if update.required_string("type") != "realtime":
        raise update.invalid("type", "realtime (transcription and translation sessions are not offered)")
    settings = session.settings
    if update.has("instructions"):
        settings = replace(settings, instructions=update.text("instructions") or "")
    if (modality := read_modality(update)) is not None:
        settings = replace(settings, modality=modality)
    if update.has("max_output_tokens"):
        settings = replace(settings, max_output_tokens=read_max_output_tokens(update))
    session = replace(session, settings=settings)
    if (audio := update.child("audio")) is not None:
        session = _update_input(session, audio.child("input"), defaults)
        session = _update_output(session, audio.child("output"))
    session = _update_tools(session, update)
    return _update_extensions(session, update.child("voiceagent"), defaults)


def session_json(session: WireSession, *, session_id: str, model: str, expires_at: int) -> Json:
    """The full effective session as `session.created` and `session.updated` carry it."""
    settings = session.settings
    answer: Json = {
        "type": "realtime",
        "object": "realtime.session",
        "id": session_id,
        "expires_at": expires_at,
        "model": model,
        "instructions": settings.instructions,
        "output_modalities": [settings.modality],
        "audio": {
            "input": {
                "format": format_json(session.input_format),
                "noise_reduction": session.noise_reduction,
                "transcription": session.transcription,
                "turn_detection": _turn_detection_json(settings.turn_detection, session.eagerness),
            },
            "output": {"format": format_json(session.output_format), "voice": session.voice, "speed": 1.0},
        },
        "tools": list(session.tools),
        "tool_choice": session.tool_choice,
        "parallel_tool_calls": session.parallel_tool_calls,
        "max_output_tokens": max_output_tokens_json(settings.max_output_tokens),
        "truncation": session.truncation,
        "tracing": None,
        "prompt": None,
        "include": None,
        **session.echoed,
    }
    if session.extensions:
        answer["voiceagent"] = {
            "events": True,
            "target_ms": round(settings.target_s * 1000, 3),
            "when_late": settings.when_late.value,
            **_hearing_json(settings.turn_detection),
            "silence": _silence_json(settings.silence),
            "repair": settings.repair.mode,
            "speculate": settings.speculate,
        }
    return answer


def read_when_late(extension: Fields) -> WhenLate | None:
    value = extension.choice("when_late", tuple(WhenLate))
    return None if value is None else WhenLate(value)


def format_json(name: FormatName) -> Json:
    return {"type": name, "rate": PCM_RATE_HZ} if name == "audio/pcm" else {"type": name}


def max_output_tokens_json(limit: int | None) -> int | str:
    return "inf" if limit is None else limit


def read_modality(fields: Fields) -> Literal["audio", "text"] | None:
    """`output_modalities`; both at once is read as audio, which always comes with its text."""
    modalities = fields.strings("output_modalities")
    if modalities is None:
        return None
    if not modalities or not set(modalities) <= {"audio", "text"}:
        raise fields.invalid("output_modalities", '["audio"] or ["text"]')
    return "audio" if "audio" in modalities else "text"


def read_max_output_tokens(fields: Fields) -> int | None:
    if fields.data.get("max_output_tokens") == "inf":
        return None
    return fields.integer("max_output_tokens", 1, 4096)


def read_format(parent: Fields) -> FormatName | None:
    """The `format` object of an audio direction."""
    chosen = parent.child("format")
    if chosen is None:
        return None
    chosen.required_string("type")
    name = cast(FormatName, chosen.choice("type", FORMATS))
    if name == "audio/pcm" and chosen.data.get("rate", PCM_RATE_HZ) not in (None, PCM_RATE_HZ):
        raise chosen.invalid("rate", f"{PCM_RATE_HZ}, the only rate of audio/pcm")
    return name


def read_voice(parent: Fields) -> str | Json | None:
    """A voice's name, or an object with its id. There is one voice per server; the name is the client's own label."""
    if isinstance(parent.data.get("voice"), dict):
        custom = parent.required_child("voice")
        return {"id": custom.required_string("id")}
    return parent.string("voice")


def _update_input(session: WireSession, update: Fields | None, defaults: SessionSettings) -> WireSession:
    if update is None:
        return session
    if (name := read_format(update)) is not None:
        session = replace(session, input_format=name)
    if update.has("noise_reduction"):
        chosen = update.child("noise_reduction")
        if chosen is not None:
            chosen.choice("type", ("near_field", "far_field"))
        session = replace(session, noise_reduction=None if chosen is None else dict(chosen.data))
    if update.has("transcription"):
        session = _update_transcription(session, update.child("transcription"))
    if update.has("turn_detection"):
        detection, eagerness = _read_turn_detection(update.child("turn_detection"), _detection_base(session, defaults))
        settings = replace(session.settings, turn_detection=detection)
        session = replace(session, settings=settings, eagerness=eagerness)
    return session


def _detection_base(session: WireSession, defaults: SessionSettings) -> TurnDetection:
    """The agent's own turn detection, but for what the client has set beside it."""
    base, now = defaults.turn_detection or TurnDetection(), session.settings.turn_detection
    if now is None:
        return base
    return replace(
        base,
        barge_in=now.barge_in,
        backchannels=now.backchannels,
        fragments=now.fragments,
        stopping_words=now.stopping_words,
        hums=now.hums,
        mutes=now.mutes,
        echo_gate=now.echo_gate,
        weighs_sound=now.weighs_sound,
    )


def _update_transcription(session: WireSession, chosen: Fields | None) -> WireSession:
    if chosen is not None:
        for key in ("model", "language", "prompt", "delay"):
            chosen.string(key)
    settings = replace(session.settings, transcribe=chosen is not None)
    return replace(session, settings=settings, transcription=None if chosen is None else dict(chosen.data))


def _update_output(session: WireSession, update: Fields | None) -> WireSession:
    if update is None:
        return session
    if (name := read_format(update)) is not None:
        session = replace(session, output_format=name)
    if (voice := read_voice(update)) is not None:
        session = replace(session, voice=voice)
    update.number("speed", 0.25, 1.5)
    return session


def read_tools(parent: Fields) -> tuple[ToolSpec, ...] | None:
    """The functions among `tools`, or None when the key is absent or null. Other kinds of tools are not the runtime's."""
    found = parent.children("tools")
    if found is None:
        return None
    if len(found) > MAX_TOOLS:
        raise parent.invalid("tools", f"at most {MAX_TOOLS} tools")
    specs: dict[str, ToolSpec] = {}
    for tool in found:
        if tool.required_string("type") != "function":
            continue
        name = tool.required_string("name")
        if not 0 < len(name) <= MAX_NAME_CHARS or name in specs:
            raise tool.invalid("name", f"1 to {MAX_NAME_CHARS} characters, and a name of its own")
        parameters = tool.child("parameters")
        schema = {"type": "object", "properties": {}} if parameters is None else clean_json(parameters.data)
        specs[name] = ToolSpec(name, tool.string("description") or "", cast(Json, schema))
    return tuple(specs.values())


def read_tool_choice(parent: Fields) -> ToolChoice | None:
    """`tool_choice`, or None when the key is absent or null. A choice among tools that are not the runtime's is `auto`."""
    if parent.data.get("tool_choice") is None:
        return None
    value = _read_choice(parent, "tool_choice", ("none", "auto", "required"))
    if isinstance(value, str):
        return ToolChoice(cast(Literal["none", "auto", "required"], value))
    chosen = parent.required_child("tool_choice")
    if chosen.required_string("type") != "function":
        return ToolChoice()
    return ToolChoice("required", chosen.required_string("name"))


def _update_tools(session: WireSession, update: Fields) -> WireSession:
    if update.has("tools"):
        specs, shown = read_tools(update) or (), update.children("tools") or ()
        settings = replace(session.settings, tools=specs)
        session = replace(session, settings=settings, tools=tuple(tool.data for tool in shown))
    if (choice := read_tool_choice(update)) is not None:
        shown_choice = _read_choice(update, "tool_choice", ("none", "auto", "required"))
        settings = replace(session.settings, tool_choice=choice)
        session = replace(session, settings=settings, tool_choice=shown_choice)
    if (parallel := update.boolean("parallel_tool_calls")) is not None:
        session = replace(session, parallel_tool_calls=parallel)
    if update.data.get("truncation") is not None:
        session = replace(session, truncation=_read_choice(update, "truncation", ("auto", "disabled")))
    sent = {key: update.data[key] for key in _ECHOED_KEYS if key in update.data}
    return replace(session, echoed={**session.echoed, **sent}) if sent else session


def _read_choice(fields: Fields, key: str, names: tuple[str, ...]) -> str | Json:
    """One of `names`, or an object (a forced function, a retention ratio)."""
    value = fields.data[key]
    if isinstance(value, dict):
        fields.required_child(key).required_string("type")
        return value
    return cast(str, fields.choice(key, names))


EXTENSION_KEYS = (
    "events",
    "target_ms",
    "when_late",
    "barge_in",
    "backchannels",
    "fragments",
    "stopping_words",
    "hums",
    "mutes",
    "echo_gate",
    "sound",
    "silence",
    "repair",
    "speculate",
)
"""Of a session's `voiceagent`, all of which may be changed."""


def _update_extensions(session: WireSession, update: Fields | None, defaults: SessionSettings) -> WireSession:
    if update is None:
        return session
    update.only(EXTENSION_KEYS)
    if (target_ms := update.number("target_ms", 50, 30_000)) is not None:
        session = replace(session, settings=replace(session.settings, target_s=target_ms / 1000))
    if (when_late := read_when_late(update)) is not None:
        session = replace(session, settings=replace(session.settings, when_late=when_late))
    session = replace(session, settings=_read_hearing(session.settings, update))
    if update.has("silence"):
        silence = _read_silence(update, session.settings.silence)
        session = replace(session, settings=replace(session.settings, silence=silence))
    if (mode := cast(RepairMode | None, update.choice("repair", REPAIR_MODES))) is not None:
        if mode != "off" and defaults.repair.mode == "off":
            raise update.invalid("repair", "off, since this server looks for no misheard words (`asr.repair`)")
        session = replace(
            session, settings=replace(session.settings, repair=replace(session.settings.repair, mode=mode))
        )
    if (speculate := update.boolean("speculate")) is not None:
        if speculate and not defaults.speculate:
            raise update.invalid("speculate", "false, since this server drafts nothing early (`budget.speculate`)")
        session = replace(session, settings=replace(session.settings, speculate=speculate))
    if (wanted := update.boolean("events")) is not None:
        session = replace(session, settings=replace(session.settings, can_be_held=wanted), extensions=wanted)
    return session


def _read_hearing(settings: SessionSettings, update: Fields) -> SessionSettings:
    """How voice over the agent's stops it, and whether its sound tells that a turn is over. Without turn detection neither is so, and the keys are only checked."""
    mode = cast(BargeInMode | None, update.choice("barge_in", BARGE_IN_MODES))
    echo_gate, hums, mutes = update.boolean("echo_gate"), update.boolean("hums"), update.boolean("mutes")
    sound = update.boolean("sound")
    detection = settings.turn_detection or TurnDetection()
    detection = replace(
        detection,
        barge_in=mode or detection.barge_in,
        echo_gate=detection.echo_gate if echo_gate is None else echo_gate,
        hums=detection.hums if hums is None else hums,
        mutes=detection.mutes if mutes is None else mutes,
        weighs_sound=detection.weighs_sound if sound is None else sound,
    )
    if (backchannels := update.strings("backchannels")) is not None:
        try:
            detection = replace(detection, backchannels=tuple(backchannels))
        except ConfigError as error:
            raise update.invalid("backchannels", error.expected) from error
    if (fragments := update.strings("fragments")) is not None:
        try:
            detection = replace(detection, fragments=tuple(fragments))
        except ConfigError as error:
            raise update.invalid("fragments", error.expected) from error
    if (stopping_words := update.strings("stopping_words")) is not None:
        try:
            detection = replace(detection, stopping_words=tuple(stopping_words))
        except ConfigError as error:
            raise update.invalid("stopping_words", error.expected) from error
    return settings if settings.turn_detection is None else replace(settings, turn_detection=detection)


def _hearing_json(detection: TurnDetection | None) -> Json:
    if detection is None:
        return {}
    return {
        "barge_in": detection.barge_in,
        "backchannels": list(detection.backchannels),
        "fragments": list(detection.fragments),
        "stopping_words": list(detection.stopping_words),
        "hums": detection.hums,
        "mutes": detection.mutes,
        "echo_gate": detection.echo_gate,
        "sound": detection.weighs_sound,
    }


def _read_silence(extension: Fields, current: SilenceSettings) -> SilenceSettings:
    """What is said into silences; null says nothing, and what is left out stays as it is."""
    chosen = extension.child("silence")
    if chosen is None:
        return replace(current, prompt_after_s=None)
    chosen.only(("prompt_after_ms", "prompts", "goodbye"))
    if chosen.has("prompt_after_ms"):
        after_ms = chosen.number("prompt_after_ms", 1000, MAX_MS)
        current = replace(current, prompt_after_s=None if after_ms is None else after_ms / 1000)
    if (prompts := chosen.strings("prompts")) is not None:
        if len(prompts) > MAX_PROMPTS or not all(text.strip() and len(text) <= MAX_CHARS for text in prompts):
            raise chosen.invalid("prompts", f"at most {MAX_PROMPTS} texts of 1 to {MAX_CHARS} characters")
        current = replace(current, prompts=tuple(prompts))
    goodbye = chosen.string("goodbye")
    if goodbye is not None and len(goodbye) > MAX_CHARS:
        raise chosen.invalid("goodbye", f"a text of at most {MAX_CHARS} characters")
    return current if goodbye is None else replace(current, goodbye=goodbye)


def _silence_json(silence: SilenceSettings) -> Json | None:
    if silence.prompt_after_s is None:
        return None
    after_ms = round(silence.prompt_after_s * 1000, 3)
    return {"prompt_after_ms": after_ms, "prompts": list(silence.prompts), "goodbye": silence.goodbye}


def _read_turn_detection(chosen: Fields | None, base: TurnDetection) -> tuple[TurnDetection | None, Eagerness | None]:
    """The detection a client asked for, from scratch: what it leaves out is the agent's own, not the previous value."""
    if chosen is None:
        return None, None
    chosen.required_string("type")
    kind = chosen.choice("type", ("server_vad", "semantic_vad"))
    create = chosen.boolean("create_response")
    interrupt = chosen.boolean("interrupt_response")
    base = replace(
        base,
        create_response=True if create is None else create,
        interrupt_response=True if interrupt is None else interrupt,
    )
    if kind == "semantic_vad":
        eagerness = cast(Eagerness, chosen.choice("eagerness", tuple(_SILENCE_SCALE)) or "auto")
        detection = replace(
            base,
            weighs_words=True,
            silence_s=min(max(base.silence_s * _SILENCE_SCALE[eagerness], 0.05), 10.0),
            cut_off_cost_s=min(max(base.cut_off_cost_s * _COST_SCALE[eagerness], 0.01), 1000.0),
        )
        return detection, eagerness
    threshold = chosen.number("threshold", 0.0, 1.0)
    prefix_ms = chosen.number("prefix_padding_ms", 0, MAX_MS)
    silence_ms = chosen.number("silence_duration_ms", 0, MAX_MS)
    # It wants the model to speak into a silence; our prompts are asked for as `voiceagent.silence`. The number is checked, the answer says null.
    chosen.number("idle_timeout_ms", 0, MAX_MS)
    try:
        detection = replace(
            base,
            weighs_words=False,
            # The protocol allows 0 and 1, which as probabilities would mean always and never.
            threshold=base.threshold if threshold is None else min(max(threshold, 0.01), 0.99),
            prefix_padding_s=base.prefix_padding_s if prefix_ms is None else prefix_ms / 1000,
            silence_s=base.silence_s if silence_ms is None else silence_ms / 1000,
        )
    except ConfigError as error:
        key = error.key.rpartition(".")[2]
        param = chosen.param(_WIRE_NAMES.get(key, key))
        message = f"Invalid value for '{param}': expected {error.expected}."
        raise ProtocolError("invalid_value", message, param=param) from error
    return detection, None


_WIRE_NAMES = {
    "silence_s": "silence_duration_ms",
    "prefix_padding_s": "prefix_padding_ms",
}


def _turn_detection_json(detection: TurnDetection | None, eagerness: Eagerness | None) -> Json | None:
    if detection is None:
        return None
    flags: Json = {
        "create_response": detection.create_response,
        "interrupt_response": detection.interrupt_response,
    }
    if eagerness is not None or detection.weighs_words:
        return {"type": "semantic_vad", "eagerness": eagerness or "auto", **flags}
    return {
        "type": "server_vad",
        "threshold": detection.threshold,
        "prefix_padding_ms": round(detection.prefix_padding_s * 1000),
        "silence_duration_ms": round(detection.silence_s * 1000),
        "idle_timeout_ms": None,
        **flags,
    }

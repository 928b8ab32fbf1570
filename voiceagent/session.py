"""Settings of one conversation, as its agent sets them and its client may change them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from voiceagent.barge_in import BACKCHANNELS, FRAGMENTS, STOPPING_WORDS, BargeInSettings
from voiceagent.budget_terms import WhenLate
from voiceagent.endpoint import EndpointSettings
from voiceagent.errors import ConfigError
from voiceagent.events import Modality
from voiceagent.repair import RepairSettings
from voiceagent.silences import SilenceSettings
from voiceagent.tools import AUTO, ToolChoice, ToolSpec

_ENDPOINT = EndpointSettings()
_BARGE_IN = BargeInSettings()

BargeInMode: TypeAlias = Literal["two_stage", "immediate"]
BARGE_IN_MODES: tuple[BargeInMode, ...] = ("two_stage", "immediate")
MAX_BACKCHANNELS = 200


@dataclass(frozen=True, slots=True)
class TurnDetection:
    """When a caller's turn begins and ends.

    `threshold` is the speech probability that opens a turn (Silero's own default is 0.5). `silence_s` is the hangover: silence
    that ends the turn. OpenAI's default is 0.5 s; ours is 0.35 s, which cut off 1 of 131 orders, commands and telephone clips, and
    answers 0.15 s earlier.

    With `weighs_words` the words decide how long the silence must be, between `min_silence_s` and `max_silence_s`, and `silence_s` is what
    holds where nobody can say whether they are complete. `voiceagent.endpoint` says what the other numbers mean. With `weighs_sound` how the voice sounded
    before the pause counts beside them (`voiceagent.endpoint_sound`).

    Voice over the agent's stops it where `interrupt_response` says so: in two stages, so that `backchannels` and what lasts less than `backchannel_s`
    without words do not, or immediately. `voiceagent.barge_in` says how. With `mutes` what lasts longer mutes an agent that can be held, and stops it once its words are known. With `hums` what sounds like one counts as one. With `echo_gate` the agent's own voice that comes back from a loudspeaker is no
    speech (`voiceagent.echo`).
    """

    threshold: float = 0.5
    prefix_padding_s: float = 0.3
    silence_s: float = 0.35
    create_response: bool = True
    interrupt_response: bool = True
    weighs_words: bool = False
    weighs_sound: bool = True
    cut_off_cost_s: float = _ENDPOINT.cut_off_cost_s
    min_silence_s: float = _ENDPOINT.min_silence_s
    max_silence_s: float = _ENDPOINT.max_silence_s
    dictation_silence_s: float = _ENDPOINT.dictation_silence_s
    barge_in: BargeInMode = "two_stage"
    backchannels: tuple[str, ...] = BACKCHANNELS
    fragments: tuple[str, ...] = FRAGMENTS
    stopping_words: tuple[str, ...] = STOPPING_WORDS
    hums: bool = True
    mutes: bool = True
    backchannel_s: float = _BARGE_IN.backchannel_s
    echo_gate: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0:
            raise ConfigError(
                "turn_detection.threshold", self.threshold, "a probability between 0 and 1, both excluded"
            )
        for name in ("silence_s", "min_silence_s", "max_silence_s", "dictation_silence_s"):
            value = getattr(self, name)
            if not 0.05 <= value <= 10.0:
                raise ConfigError(f"turn_detection.{name}", value, "0.05 to 10 seconds")
        if not 0.01 <= self.cut_off_cost_s <= 1000.0:
            raise ConfigError("turn_detection.cut_off_cost_s", self.cut_off_cost_s, "0.01 to 1000 seconds")
        if self.min_silence_s > self.max_silence_s:
            expected = f"at most max_silence_s = {self.max_silence_s}"
            raise ConfigError("turn_detection.min_silence_s", self.min_silence_s, expected)
        if not 0.0 <= self.prefix_padding_s <= 2.0:
            raise ConfigError("turn_detection.prefix_padding_s", self.prefix_padding_s, "0 to 2 seconds")
        if self.barge_in not in BARGE_IN_MODES:
            raise ConfigError("turn_detection.barge_in", self.barge_in, "'two_stage' or 'immediate'")
        if not 0.1 <= self.backchannel_s <= 2.0:
            raise ConfigError("turn_detection.backchannel_s", self.backchannel_s, "0.1 to 2 seconds")
        for name in ("backchannels", "fragments", "stopping_words"):
            texts = getattr(self, name)
            if len(texts) > MAX_BACKCHANNELS or not all(any(map(str.isalpha, each)) for each in texts):
                expected = f"at most {MAX_BACKCHANNELS} texts, each with a letter in it"
                raise ConfigError(f"turn_detection.{name}", list(texts), expected)

    @property
    def interrupts_in_stages(self) -> bool:
        """Voice over the agent's first ducks it, and is judged before it stops it."""
        return self.interrupt_response and self.barge_in == "two_stage"

    @property
    def longest_backchannel_s(self) -> float:
        """Voice over the agent's that lasts longer was said to it, whatever its words are so far."""
        return max(self.backchannel_s, _BARGE_IN.drawn_s)

    def barge_in_settings(self) -> BargeInSettings:
        """The same, as voice over the agent's is judged by it."""
        return BargeInSettings(
            threshold=self.threshold,
            backchannel_s=self.backchannel_s,
            backchannels=self.backchannels,
            fragments=self.fragments,
            stopping_words=self.stopping_words,
            hum=_BARGE_IN.hum if self.hums else 1.0,
        )

    def endpoint(self) -> EndpointSettings:
        """The same, as the end of a turn is decided by it."""
        return EndpointSettings(
            silence_s=self.silence_s,
            cut_off_cost_s=self.cut_off_cost_s,
            min_silence_s=self.min_silence_s,
            max_silence_s=self.max_silence_s,
            dictation_silence_s=self.dictation_silence_s,
        )


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Everything about a conversation that may differ between callers.

    `turn_detection` of None means the client commits turns itself (push to talk). `target_s` is the voice-to-voice latency that
    the budget controller aims at, and `when_late` what it does when the steps that are wanted do not fit; `acknowledgements` are the
    texts that it may then say first.
    """

    instructions: str = ""
    modality: Modality = "audio"
    turn_detection: TurnDetection | None = field(default_factory=TurnDetection)
    target_s: float = 0.5
    when_late: WhenLate = WhenLate.FEWER_STEPS
    acknowledgements: tuple[str, ...] = ("Sure.", "One moment.", "Let me see, one moment please.")
    max_output_tokens: int | None = None
    temperature: float = 0.0
    transcribe: bool = True
    """Whether the client wants transcription events; recognition happens either way."""
    tools: tuple[ToolSpec, ...] = ()
    """The client's own: it runs them and answers with their output."""
    tool_choice: ToolChoice = AUTO
    silence: SilenceSettings = field(default_factory=SilenceSettings)
    """What is said when nobody says anything; nothing in text, and where the client ends the turns."""
    repair: RepairSettings = field(default_factory=RepairSettings)
    """What becomes of words that were probably misheard."""
    speculate: bool = True
    """Whether replies are drafted while the caller may go on."""
    can_be_held: bool = False
    """Whoever plays the agent's voice obeys `PlaybackMuted`: plays nothing for a while, and goes on where it was. Others hear of the decision alone."""

    def __post_init__(self) -> None:
        if not 0.05 <= self.target_s <= 30.0:
            raise ConfigError("target_s", self.target_s, "0.05 to 30 seconds")
        if not 0.0 <= self.temperature <= 2.0:
            raise ConfigError("temperature", self.temperature, "0 to 2")
        if self.max_output_tokens is not None and not 1 <= self.max_output_tokens <= 4096:
            raise ConfigError("max_output_tokens", self.max_output_tokens, "1 to 4096, or none")

    def for_client(self) -> SessionSettings:
        """What a client that is no telephone begins with."""
        return replace(self, silence=self.silence.for_client())


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """What one `response.create` overrides, for that response only. None means the session's own."""

    instructions: str | None = None
    modality: Modality | None = None
    max_output_tokens: int | None = None
    metadata: Mapping[str, str] | None = None
    target_s: float | None = None
    when_late: WhenLate | None = None
    in_conversation: bool = True
    """False for an out-of-band response: its reply does not enter the history."""
    turns: tuple[tuple[Literal["system", "user", "agent"], str], ...] | None = None
    """Replaces the history for this response when given."""
    tools: tuple[ToolSpec, ...] | None = None
    """The client's own for this response."""
    tool_choice: ToolChoice | None = None

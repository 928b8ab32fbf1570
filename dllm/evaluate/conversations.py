"""Conversations with fixed callers (`callers.toml`), every word of the model's as it came."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dllm.calls import Tool, failure_note, read_call, result_note, with_tools
from dllm.drafts import DraftSpec, Finished, Plan
from dllm.engine import Engine
from dllm.errors import CallError, ConfigError, DllmError
from dllm.habits import family_options
from dllm.loader import Checkpoint
from dllm.rounds import run_out
from dllm.spoken import spoken_form

CALLERS = Path(__file__).with_name("callers.toml")
MOST_CALLS = 3
"""Tool calls before one answer: a model that calls for ever is stopped."""


@dataclass(frozen=True, slots=True)
class Said:
    """What happens before an answer."""

    caller: str = ""
    note: str = ""
    pins: tuple[str, ...] = ()
    """Must be said in the answer."""


@dataclass(frozen=True, slots=True)
class Caller:
    """One conversation's fixed side."""

    title: str
    system: str
    turns: tuple[Said, ...]
    tools: tuple[Tool, ...] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    """By tool: a text or an object; an object of `failed` alone is a failure."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a conversation as it is printed."""

    who: str
    """caller, note, agent or call."""
    text: str
    pins: tuple[str, ...] = ()
    steps: tuple[int, int] | None = None
    """Of the agent's: in its first clause and in the rest."""
    is_cut: bool = False
    """The canvas was full before the reply ended."""


def read_callers(path: Path = CALLERS) -> list[Caller]:
    """
    Raises:
        ConfigError: If the file is not as `callers.toml` says.
    """
    try:
        body = tomllib.loads(path.read_text("utf-8"))
        return [_caller(entry) for entry in body["conversation"]]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ConfigError("callers", str(path), f"conversations with title, system and turns ({error!r})") from error


def _caller(entry: Mapping[str, Any]) -> Caller:
    known = {"title", "system", "turns", "tools", "results"}
    if unknown := set(entry) - known:
        raise ConfigError("conversation", sorted(unknown)[0], f"one of {', '.join(sorted(known))}")
    turns = tuple(Said(**{**turn, "pins": tuple(turn.get("pins", ()))}) for turn in entry["turns"])
    tools = tuple(Tool.from_json(tool) for tool in entry.get("tools", ()))
    return Caller(entry["title"], entry["system"], turns, tools, entry.get("results", {}))


def hold(caller: Caller, checkpoint: Checkpoint, plan: Plan, width: int) -> list[Line]:
    """Let the model answer a caller, greedily, as a call would be held.

    Raises:
        ConfigError: If the checkpoint is not of the built-in family.
        DllmError: If the engine refuses a prompt.
    """
    codec = checkpoint.dialogue_codec
    engine = Engine(checkpoint.model, codec.token_table, max_batch=1)
    system = with_tools(caller.system, caller.tools)
    tokens = list(codec.encode_turn("system", system)) if system else []
    lines: list[Line] = []
    for said in caller.turns:
        # A note of the runtime about what was before comes first, one about what the caller said after it.
        turns = [("caller", said.caller), ("note", said.note)]
        if re.match(r"(interrupted after|silence): ", said.note):
            turns.reverse()
        for who, text in turns:
            if text and who == "caller":
                tokens += codec.encode_turn("user", spoken_form(text))
                lines.append(Line("caller", spoken_form(text)))
            elif text:
                tokens += codec.encode_turn("note", text)
                lines.append(Line("note", text))
        for _ in range(MOST_CALLS + 1):
            draft = _write(engine, (*tokens, codec.special.agent), said.pins, checkpoint, plan, width)
            tokens += [codec.special.agent, *draft.tokens, codec.special.end]
            text = codec.decode(draft.tokens).strip()
            steps = (draft.steps_first, draft.steps_rest)
            is_cut = draft.reason == "canvas_full"
            if draft.tokens[:1] != (codec.special.call,):
                lines.append(Line("agent", text, said.pins, steps, is_cut))
                break
            note = _answer(text, caller)
            tokens += codec.encode_turn("note", note)
            lines += [Line("call", text, (), steps, is_cut), Line("note", note)]
    return lines


def _write(
    engine: Engine, prompt: Sequence[int], pins: Sequence[str], checkpoint: Checkpoint, plan: Plan, width: int
) -> Finished:
    codec = checkpoint.dialogue_codec
    options = family_options(checkpoint.defaults, checkpoint.spec)
    spans = tuple(codec.encode_pin(pin) for pin in pins)
    # As at run time: a call holds no pins.
    spec = DraftSpec(tuple(prompt), "page", width, plan, spans, options, unpinned=codec.special.call)
    engine.submit(spec)
    [finished] = [event for event in run_out(engine) if isinstance(event, Finished)]
    return finished


def _answer(text: str, caller: Caller) -> str:
    """The note that follows a call."""
    try:
        call = read_call(text)
    except CallError as error:
        return failure_note(text.split(";")[0].strip() or "tool", error.told)
    if call.name not in {tool.name for tool in caller.tools}:
        return failure_note(call.name, "there is no such tool")
    result = caller.results.get(call.name, "done")
    if isinstance(result, Mapping) and set(result) == {"failed"}:
        return failure_note(call.name, str(result["failed"]))
    return result_note(call.name, result)


# --- the page ---------------------------------------------------------------------------------------------------------


def write_page(
    held: Sequence[tuple[Caller, Sequence[Line] | DllmError]], about: Mapping[str, str], plan: Plan, width: int
) -> str:
    """The page as Markdown.

    Args:
        about: `model` and `sha256`.
    """
    lines = [
        f"# Conversations with {about['model']}",
        "",
        f"Written by `dllm eval conversations` with weights {about['sha256'][:12]}: greedy, canvas {width}, {plan.steps_first} + {plan.steps_rest} steps, "
        f"threshold {plan.threshold:g}. Nothing was chosen or changed: these are all conversations of `dllm/evaluate/callers.toml`, good and bad. "
        "Callers' words are as a recogniser writes them. *Notes* are what a menu, a tool or the runtime tells the model; `calls` are its own. "
        "**Bold** pieces of a reply were pinned: the model chose their place. Brackets give the denoising steps of the first clause and of the "
        "rest.",
        "",
    ]
    for caller, conversation in held:
        lines += [f"## {caller.title}", ""]
        if caller.system:
            lines += [f"> {_escaped(with_tools(caller.system, caller.tools))}", ""]
        if isinstance(conversation, DllmError):
            lines += [f"Not held: {conversation}", ""]
            continue
        for line in conversation:
            lines.append(f"- {_shown(line)}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _shown(line: Line) -> str:
    text = _escaped(line.text)
    steps = "" if line.steps is None else f" [{line.steps[0]}+{line.steps[1]}]"
    cut = " (cut: the canvas was full)" if line.is_cut else ""
    match line.who:
        case "caller":
            return f"caller: {text}"
        case "note":
            return f"*{text}*"
        case "call":
            return f"calls `{line.text}`{steps}{cut}"
        case _:
            for pin in sorted(line.pins, key=len, reverse=True):
                text = text.replace(_escaped(pin), f"**{_escaped(pin)}**", 1)
            return f"agent: {text or '(nothing)'}{steps}{cut}"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_<>\[\]])", r"\\\1", text)

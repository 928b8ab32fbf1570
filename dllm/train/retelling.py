"""Dialogues told anew: agents' turns in the words that the model itself finds likeliest, where they say the same.

One canvas decides several words at once, which only goes well where they leave little choice. Data leave much: "anything else" may be asked
in twenty ways, and half of one and half of another is none. A teacher that writes greedily from left to right always says a thing in
the same way, so what it retells is easier to write in parallel: sequence-level distillation (Kim and Rush, arXiv:1606.07947), which made
non-autoregressive translation work (Gu et al., arXiv:1711.02281). Here the teacher is the causal mode of the same weights.

A small teacher errs, so a turn is exchanged only where it can be checked: the same call, the same facts, no figure from nowhere, every
pin word for word, nothing said twice. The turns before are those of the data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dllm.draft import Draft
from dllm.drafts import DraftSpec, Finished, Plan
from dllm.engine import Engine
from dllm.errors import ConfigError
from dllm.evaluate.metrics import facts_in, invented_figures, repeats
from dllm.loader import Checkpoint
from dllm.options import DecodeOptions
from dllm.rounds import run_out
from dllm.spoken import spoken_form
from dllm.text import DialogueCodec
from dllm.train.corpus import encode_prompt
from dllm.train.data import Turn, dialogue_of
from dllm.train.files import read_objects

BATCH = 16
"""Replies that are written together."""
MOST_PROMPT_TOKENS = 512
_CACHE_BYTES = 64 * 2**20


@dataclass(slots=True)
class Tally:
    """What became of a source's agent turns."""

    dialogues: int = 0
    turns: int = 0
    retold: int = 0
    same: int = 0
    """The model's words were the data's."""


def retell(checkpoint: Checkpoint, path: Path, tally: Tally) -> Iterator[dict[str, Any]]:
    """The dialogues of a file one after the other, as objects to be written as lines.

    Raises:
        ConfigError: If the model has no causal mode or no tokens for roles.
        DataError: With file and line, where a line is no dialogue.
    """
    codec = checkpoint.codec
    if not checkpoint.spec.causal_verify or not isinstance(codec, DialogueCodec):
        raise ConfigError("model", checkpoint.spec.family, "the built-in family: the teacher is its causal mode")
    width = checkpoint.spec.max_canvas
    plan, options = Plan(width, width, by_clause=False), DecodeOptions(mode="causal")
    for number, body in read_objects(path):
        turns = _as_heard(dialogue_of(path, number, body).turns)
        # Tools make a system turn where the line has none, so places are counted among agents' turns.
        places = [at for at, turn in enumerate(turns) if turn.role == "agent"]
        prompts = {at: encode_prompt(codec, turns[:at]) for at in places}
        prompts = {at: prompt for at, prompt in prompts.items() if len(prompt) <= MOST_PROMPT_TOKENS}
        engine = Engine(checkpoint.model, codec.token_table, max_batch=BATCH, cache_bytes=_CACHE_BYTES)
        drafts = {
            engine.submit(DraftSpec(tuple(prompt), "retold", width, plan, (), options)): at
            for at, prompt in prompts.items()
        }
        written = _written(engine, drafts)
        told = [turn for turn in body["turns"] if turn["role"] == "agent"]
        tally.dialogues += 1
        for at, turn in zip(places, told, strict=True):
            tally.turns += 1
            reply = written.get(at)
            if reply is None or reply[:1] == (codec.special.call,):
                continue  # a call that is right is the data's already
            text = codec.decode(reply).strip()
            if says_the_same(text, turns, at):
                tally.retold += 1
                tally.same += text == turn["text"]
                turn["text"] = text
        yield body


def says_the_same(text: str, turns: Sequence[Turn], at: int) -> bool:
    """Whether a reply may stand for the agent's turn `at`: in all that can be checked it says the same."""
    turn = turns[at]
    if turn.is_call or not text or repeats(text) or any(pin not in text for pin in turn.pins):
        return False
    known = " ".join(one.text for one in turns[:at] if one.role in ("system", "note"))
    heard = " ".join(one.text for one in turns[:at] if one.role == "user")
    facts = {fact.text.lower() for fact in facts_in(turn.text, known, turn.pins)}
    return facts == {fact.text.lower() for fact in facts_in(text, known, turn.pins)} and not invented_figures(
        text, known, heard, turn.text
    )


def _as_heard(turns: Sequence[Turn]) -> list[Turn]:
    """Callers' words as a recogniser writes them."""
    return [replace(turn, text=spoken_form(turn.text) or turn.text) if turn.role == "user" else turn for turn in turns]


def _written(engine: Engine, places: dict[Draft, int]) -> dict[int, tuple[int, ...]]:
    """Replies that the model ended itself, by their place."""
    ended = (event for event in run_out(engine) if isinstance(event, Finished) and event.reason == "end_of_turn")
    return {places[event.draft]: event.tokens for event in ended}


def write_lines(path: Path, bodies: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for body in bodies:
            file.write(json.dumps(body, ensure_ascii=False) + "\n")

"""A dialogue being written: its turns so far, and the format of the file."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from dllm.spoken import spoken_form
from dllm.text import clean
from voice_pipelines.rehearsal.words import sentence

MOST_WORDS = 35
"""No agent's turn is longer: it is spoken."""

Described = Mapping[str, Any]
"""One tool, described as OpenAI's API does."""


class Script:
    """Turns of one dialogue. Arguments of a call must be words that were said."""

    def __init__(self, domain: str, prompt: str, rng: random.Random, tools: Sequence[Described] = ()) -> None:
        self.domain, self.rng, self.tools = domain, rng, tools
        self.turns: list[dict[str, Any]] = [{"role": "system", "text": prompt}]
        self.last_reply = ""
        self._said = " "

    def hear(self, text: str, *, as_spoken: bool = False) -> None:
        """Add a caller's turn; `as_spoken`, as a recogniser writes it."""
        text = spoken_form(text) if as_spoken else clean(text)
        assert text, "a caller's turn needs a word"
        self.turns.append({"role": "user", "text": text})
        self._said += spoken_form(text) + " "

    def note(self, text: str) -> None:
        """Add a tool's result or a remark of the runtime."""
        self.turns.append({"role": "note", "text": clean(text)})

    def say(self, text: str, pins: Sequence[str] = ()) -> None:
        """Add an agent's turn; `pins` are the pieces that a note said must be told."""
        text = sentence(clean(text))
        assert text and len(text.split()) <= MOST_WORDS, f"too long to say: {text!r}"
        turn: dict[str, Any] = {"role": "agent", "text": text}
        # A piece that got a capital at the start of a sentence is no longer the note's: it is learnt without a pin.
        if kept := [pin for pin in pins if f" {pin}" in f" {text}"]:
            turn["pins"] = kept
        self.turns.append(turn)
        self.last_reply = text
        self._said += spoken_form(text) + " "

    def keep(self, heard: str) -> None:
        """Shorten the agent's last turn to what was heard of it."""
        turn = self.turns[-1]
        assert turn["role"] == "agent" and turn["text"].startswith(heard), f"nobody heard {heard!r}"
        turn["text"] = self.last_reply = heard
        if kept := [pin for pin in turn.pop("pins", ()) if f" {pin}" in f" {heard}"]:
            turn["pins"] = kept

    def call(self, name: str, arguments: Mapping[str, str]) -> None:
        """Add a call of a tool. Each argument is a run of words that somebody said."""
        for value in arguments.values():
            assert f" {value} " in self._said and ";" not in value, f"nobody said {value!r}"
        self.turns.append({"role": "agent", "call": {"name": name, "arguments": dict(arguments)}})

    def written(self, identity: str) -> dict[str, Any]:
        """The dialogue as one line of a file."""
        tools = {"tools": [dict(tool) for tool in self.tools]} if self.tools else {}
        return {"id": identity, "domain": self.domain, **tools, "turns": self.turns}

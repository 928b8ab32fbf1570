"""Where a reply begins to spell a call without the token that begins one: from there on nothing is for the caller's ears. Pure.

A small model now and then writes `Certainly._hours; day: friday`, or repeats what it was told of a tool.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dllm.calls import Tool

_MARKS = ("<call>", "</call>", "<tool_call>", "</tool_call>")
_NEVER = "(?!)"
_END = r"(?![^\W_])"
"""No letter or figure follows."""
_LAST_WORD = re.compile(r"\[?(?<!\w)(\w*)$")


class BareCalls:
    """Finds what only calls of these tools hold: their marks, a name with underscores or its end, `; key:`, a name behind a bracket.

    Whatever is held back or cut begins no earlier than what was let out of a shorter text: speech only grows.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._names = [tool.name for tool in tools]
        self._keys = sorted({key for tool in tools for key in tool.properties})
        self._tails = {
            name[at:] for name in self._names for at, letter in enumerate(name) if letter == "_" and name[at + 1 :]
        }
        names, scored = _one_of(self._names), _one_of([name for name in self._names if "_" in name])
        signs = (
            _one_of(_MARKS),
            rf"\[{names}{_END}",
            rf"(?<!\w){scored}{_END}",
            rf"{_one_of(self._tails)}{_END}",
            rf"(?:(?<!\w){names})?;\s*{_one_of(self._keys)}\s*:",
        )
        self._sign = re.compile("|".join(signs))
        self._parted = re.compile(rf"(?:(?<!\w){names})?;\s*([^\s;:]*)\s*$")

    def find(self, text: str) -> int | None:
        """Where it begins, or None."""
        found = self._sign.search(text) if self._names else None
        return None if found is None else found.start()

    def settled(self, text: str) -> int:
        """How much of a text that goes on can be let out: its end may be the beginning of a sign. Never less for a longer text."""
        if not self._names:
            return len(text)
        begun = self.find(text)
        # A sign at the very end may be the middle of a longer one.
        held = [len(text) if begun is None else begun]
        if (parted := self._parted.search(text)) and any(key.startswith(parted[1]) for key in self._keys):
            held.append(parted.start())
        word = _LAST_WORD.search(text)
        assert word is not None, "it may be empty"
        if word[0] and any(name.startswith(word[1]) for name in self._names):
            held.append(word.start())
        for at in range(word.start(1), len(text)):
            if text[at] == "_" and any(tail.startswith(text[at:]) for tail in self._tails):
                held.append(at)
        held += (len(text) - size for mark in _MARKS for size in range(1, len(mark)) if text.endswith(mark[:size]))
        return min(held)

    def name_of(self, written: str) -> str:
        """The tool that was meant, `tool` where nothing tells."""
        bare = written.lstrip("[")
        at = re.match(r"\w*", bare)
        word = at[0] if at is not None else ""
        return next((name for name in self._names if word and name.endswith(word)), "tool")


def _one_of(words: Sequence[str] | set[str]) -> str:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return f"(?:{'|'.join(map(re.escape, longest_first))})" if words else _NEVER

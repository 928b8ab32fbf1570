"""Tool calls in a reply's text: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Qwen's and Nous's templates teach them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: str
    """JSON of an object."""


Piece: TypeAlias = str | ToolCall


class Reader(Protocol):
    """Separates calls from text that arrives in pieces."""

    def again(self, text: str) -> list[Piece]:
        """All pieces of a whole text, read from its beginning; this reader is not changed."""
        ...

    def feed(self, text: str) -> list[Piece]: ...

    def flush(self) -> list[Piece]:
        """The rest, at the end of the text."""
        ...


class ToolReader:
    """Separates calls from text that arrives in pieces.

    White space before and behind calls is dropped. What looks like a call and is none (no JSON, an unknown tool, no end) stays text.

    Args:
        names: Tools that may be called.
        most: Calls after which everything is text.
    """

    def __init__(self, names: Sequence[str], *, most: int = 128) -> None:
        self._names, self._most = frozenset(names), most
        self._held = ""
        self._calls = 0
        self._is_behind_call = False
        """Nothing was said since the last call."""

    def again(self, text: str) -> list[Piece]:
        """All pieces of a whole text, read from its beginning; this reader is not changed."""
        fresh = ToolReader(tuple(self._names), most=self._most)
        return fresh.feed(text) + fresh.flush()

    def feed(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while self._calls < self._most:
            start = self._held.find(OPEN)
            if start < 0:
                break
            end = self._held.find(CLOSE, start)
            if end < 0:
                self._say(pieces, self._held[:start].rstrip())
                self._held = self._held[len(self._held[:start].rstrip()) :]
                return pieces
            end += len(CLOSE)
            call = self._read(self._held[start:end])
            if call is None:
                self._say(pieces, self._held[:end])
            else:
                self._say(pieces, self._held[:start].rstrip())
                pieces.append(call)
                self._calls += 1
                self._is_behind_call = True
            self._held = self._held[end:]
        keep = self._kept()
        self._say(pieces, self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return pieces

    def flush(self) -> list[Piece]:
        """The rest, at the end of the text."""
        pieces: list[Piece] = []
        self._say(pieces, self._held if not self._calls else self._held.rstrip())
        self._held = ""
        return pieces

    def _say(self, pieces: list[Piece], text: str) -> None:
        if self._is_behind_call:
            text = text.lstrip()
        if text:
            self._is_behind_call = False
            pieces.append(text)

    def _kept(self) -> int:
        """Length of the end that may still become a call, white space before it included."""
        if self._calls >= self._most:
            return len(self._held) - len(self._held.rstrip())
        begun = next((size for size in range(len(OPEN) - 1, 0, -1) if self._held.endswith(OPEN[:size])), 0)
        text = self._held[: len(self._held) - begun]
        return begun + len(text) - len(text.rstrip())

    def _read(self, block: str) -> ToolCall | None:
        try:
            body = json.loads(block[len(OPEN) : -len(CLOSE)])
        except (ValueError, RecursionError):
            return None
        if not isinstance(body, dict) or body.get("name") not in self._names:
            return None
        arguments = body.get("arguments", {})
        if not isinstance(arguments, dict):
            return None
        return ToolCall(body["name"], json.dumps(arguments, ensure_ascii=False))

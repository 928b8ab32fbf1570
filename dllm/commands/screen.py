"""A canvas as one line of text per step, with colours where there is a terminal."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from dllm.drafts import Cell, CellState, Event, Prefilled, Stepped

if TYPE_CHECKING:
    from dllm.codec import Codec

DIM, BOLD, CYAN, GREEN, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[36m", "\x1b[32m", "\x1b[0m"
_MASKED = "_"
_END = "|"


class CanvasScreen:
    """Prints every step. Without colours, positions that are not decided are `_`; with them, guesses are dim and pins cyan."""

    def __init__(self, codec: Codec, stream: TextIO, *, colours: bool) -> None:
        self._codec, self._stream, self._colours = codec, stream, colours

    def __call__(self, event: Event, deltas: object = ()) -> None:
        match event:
            case Prefilled():
                line = f"prefill {event.new_tokens} tokens, {event.seconds * 1e3:.1f} ms"
                print(line + (f" ({event.cached_tokens} cached)" if event.cached_tokens else ""), file=self._stream)
            case Stepped():
                cells = self.line(event.canvas)
                print(f"{event.step:3d} {event.phase:5s} {event.seconds * 1e3:5.1f} ms |{cells}|", file=self._stream)
            case _:
                return
        self._stream.flush()

    def line(self, cells: Sequence[Cell]) -> str:
        reader = CellReader(self._codec)
        return "".join(self._cell(cell, reader.read(cell)) for cell in cells)

    def _cell(self, cell: Cell, text: str) -> str:
        if cell.state is CellState.MASKED:
            return _MASKED
        if self._codec.token_table.ends_reply(cell.token):
            text = _END
        match cell.state:
            case CellState.PROVISIONAL:
                return f"{DIM}{text}{PLAIN}" if self._colours else _MASKED
            case CellState.PINNED:
                return f"{CYAN}{text}{PLAIN}" if self._colours else text
            case _:
                return text


class CellReader:
    """What the positions of a canvas hold, read left to right, on one line and without what a terminal would obey.

    A character of several tokens appears with the last of them; bytes that never become one are left out, as in the finished text.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._utf8 = codecs.getincrementaldecoder("utf-8")("ignore")

    def read(self, cell: Cell) -> str:
        """The next position's text; empty for masks."""
        if cell.state is CellState.MASKED:
            self._utf8.reset()
            return ""
        return printable(self._utf8.decode(self._codec.token_bytes(cell.token)))


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else "↵" if char == "\n" else " " for char in text)


def safe(text: str) -> str:
    """Text for a terminal: line breaks and tabs stay, other control characters go."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")

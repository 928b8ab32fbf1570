"""A canvas as one line of text per step, with colours where there is a terminal."""

from __future__ import annotations

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
        return "".join(self._cell(cell) for cell in cells)

    def _cell(self, cell: Cell) -> str:
        text = cell_text(cell, self._codec)
        match cell.state:
            case CellState.MASKED:
                return _MASKED
            case CellState.PROVISIONAL:
                return f"{DIM}{text}{PLAIN}" if self._colours else _MASKED
            case CellState.COMMITTED:
                return text
            case CellState.PINNED:
                return f"{CYAN}{text}{PLAIN}" if self._colours else text


def cell_text(cell: Cell, codec: Codec) -> str:
    """What a position holds, on one line and without control characters, which a terminal would obey."""
    if codec.token_table.ends_reply(cell.token):
        return _END
    return printable(codec.token_bytes(cell.token).decode("utf-8", "replace"))


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else "↵" if char == "\n" else " " for char in text)


def safe(text: str) -> str:
    """Text for a terminal: line breaks and tabs stay, other control characters go."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")

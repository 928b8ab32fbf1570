"""A diffusion language model at work: the reply appears all over the place at once, and words settle where the model is sure.

    python examples/diffusion_effect.py
    python examples/diffusion_effect.py --slow --prompt "a large mocha please" --note 'order: large mocha; total: $5.00' --pin "large mocha" --pin '$5.00'
    python examples/diffusion_effect.py --model JetLM/SDAR-1.7B-Chat --width 64 --prompt "Why is the sky blue?"

Grey dots are masks, dim words are guesses that may still change, green ones were decided by this step, white ones before it, cyan ones
were pinned by the caller. On a terminal one frame is drawn over the other; elsewhere each step is a paragraph of its own, without
colours, masks as `·` and guesses in (parentheses).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TextIO

from dllm.cli import ENVIRONMENT
from dllm.codec import Codec
from dllm.commands import decoding, model
from dllm.commands.screen import CellReader, printable
from dllm.drafts import Cell, CellState, DraftSpec, Failed, Finished, Stepped
from dllm.errors import DllmError
from dllm.loader import Checkpoint
from webserving.command import ended

WIDEST = 80
MARGIN = 2
SLOW_S = 0.35
_HOME, _CLEAR_BELOW, _HIDE, _SHOW = "\x1b[{}A\r", "\x1b[J", "\x1b[?25l", "\x1b[?25h"


class Look(Enum):
    """How a position is drawn."""

    MASK = "\x1b[38;5;240m"
    GUESS = "\x1b[2m"
    NEW = "\x1b[1;32m"
    OLD = "\x1b[0m"
    PIN = "\x1b[1;36m"


_PLAIN = "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of characters that look alike."""

    text: str
    look: Look


def pieces(cells: Sequence[Cell], before: Sequence[Cell], codec: Codec) -> list[Piece]:
    """A canvas as text up to its first decided end-of-turn; `before` is the canvas one step earlier."""
    found: list[Piece] = []
    reader = CellReader(codec)
    for at, cell in enumerate(cells):
        if codec.token_table.ends_reply(cell.token) and cell.state is not CellState.MASKED:
            if cell.state is not CellState.PROVISIONAL:
                break
            found.append(Piece(" ", Look.MASK))
            continue
        was_decided = at < len(before) and _is_decided(before[at]) and before[at].token == cell.token
        text = reader.read(cell)
        match cell.state:
            case CellState.MASKED:
                found.append(Piece(" ·", Look.MASK))
            case CellState.PROVISIONAL:
                found.append(Piece(text, Look.GUESS))
            case CellState.PINNED:
                found.append(Piece(text, Look.PIN))
            case CellState.COMMITTED:
                found.append(Piece(text, Look.OLD if was_decided else Look.NEW))
    return found


def _is_decided(cell: Cell) -> bool:
    return cell.state in (CellState.COMMITTED, CellState.PINNED)


def wrap(found: Sequence[Piece], columns: int) -> list[list[Piece]]:
    """Lines of at most so many characters, broken at spaces where there are any."""
    characters = [(char, piece.look) for piece in found for char in piece.text]
    lines: list[list[tuple[str, Look]]] = []
    while characters:
        while characters and characters[0][0] == " ":
            del characters[0]
        cut = len(characters)
        if cut > columns:
            spaces = [at for at in range(1, columns + 1) if characters[at][0] == " "]
            cut = spaces[-1] if spaces else columns
        if cut:
            lines.append(characters[:cut])
        del characters[:cut]
    return [_joined(line) for line in lines]


def _joined(line: Sequence[tuple[str, Look]]) -> list[Piece]:
    found: list[Piece] = []
    for char, look in line:
        if found and found[-1].look is look:
            found[-1] = replace(found[-1], text=found[-1].text + char)
        else:
            found.append(Piece(char, look))
    return found


def coloured(line: Sequence[Piece]) -> str:
    return "".join(f"{piece.look.value}{piece.text}{_PLAIN}" for piece in line)


def plain(line: Sequence[Piece]) -> str:
    return "".join(_bracketed(piece.text) if piece.look is Look.GUESS else piece.text for piece in line).rstrip()


def _bracketed(text: str) -> str:
    bare = text.strip(" ")
    at = text.index(bare)
    return f"{text[:at]}({bare}){text[at + len(bare) :]}" if bare else text


def bar(share: float, columns: int) -> str:
    done = round(share * columns)
    return "━" * done + "─" * (columns - done)


class Stage:
    """Where frames are drawn."""

    def __init__(self, stream: TextIO, codec: Codec, columns: int, *, is_terminal: bool) -> None:
        self._stream, self._codec, self._columns, self._is_terminal = stream, codec, columns, is_terminal
        self._before: tuple[Cell, ...] = ()
        self._drawn = 0

    def open(self, prompt: str) -> None:
        if self._is_terminal:
            self._stream.write(_HIDE)
        for line in wrap([Piece(printable(f"you: {prompt}"), Look.OLD)], self._columns):
            self._stream.write(" " * MARGIN + plain(line) + "\n")
        self._stream.write("\n")

    def frame(self, event: Stepped) -> None:
        lines = wrap(pieces(event.canvas, self._before, self._codec), self._columns)
        decided = sum(_is_decided(cell) for cell in event.canvas) / max(1, len(event.canvas))
        self._before = event.canvas
        status = f"step {event.step:3d}   {event.committed:+d} tokens   {event.seconds * 1e3:.0f} ms"
        if self._is_terminal:
            rows = [coloured(line) for line in lines]
            width = max(10, self._columns - len(status) - 3)
            self._draw([*rows, "", f"\x1b[2m{bar(decided, width)}{_PLAIN}   {status}"])
        else:
            self._stream.write(" " * MARGIN + status + "\n")
            self._stream.writelines(" " * MARGIN + plain(line) + "\n" for line in lines)
            self._stream.write("\n")
        self._stream.flush()

    def close(self, ending: str) -> None:
        if self._is_terminal:
            self._stream.write(_SHOW)
        self._stream.write(f"\n{' ' * MARGIN}{ending}\n" if ending else "\n")
        self._stream.flush()

    def _draw(self, rows: Sequence[str]) -> None:
        if self._drawn:
            self._stream.write(_HOME.format(self._drawn))
        self._stream.write(_CLEAR_BELOW)
        self._stream.writelines(" " * MARGIN + row + "\n" for row in rows)
        self._drawn = len(rows)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model.add_model_arguments(parser)
    parser.add_argument("--prompt", default="hi what do you have without milk", help="what the user says")
    parser.add_argument("--system", default="You answer the phone of a small cafe.", help="system turn")
    parser.add_argument(
        "--note", default="", help="what a function found out, shown to the model after the user's turn"
    )
    parser.add_argument("--pin", action="append", default=[], help="text that must be said; may be repeated")
    parser.add_argument("--width", type=int, help="canvas positions")
    parser.add_argument("--steps", type=int, help="denoising steps; default: one for two positions")
    parser.add_argument("--threshold", type=float, help="confidence that decides a token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slow", action="store_true", help=f"wait {SLOW_S} s after each step, to see it")
    parser.set_defaults(raw=False, turn=[], steps_first=None, steps_rest=None)
    for name, variable in ENVIRONMENT.items():
        if os.environ.get(variable):
            parser.set_defaults(**{name: os.environ[variable]})
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    return ended("diffusion_effect", lambda: _run(parse(argv)))


def _run(args: argparse.Namespace) -> int:
    try:
        checkpoint = model.load(args)
        prompt = decoding.prompt_tokens(args, args.prompt, checkpoint)
        width = decoding.width_of(args, checkpoint.spec, len(prompt))
        pins = tuple(checkpoint.codec.encode_pin(text) for text in args.pin)
        plan = decoding.plan(args, checkpoint, width)
        spec = DraftSpec(prompt, "effect", width, plan, pins, decoding.options(args, checkpoint))
        perform(checkpoint, spec, args.prompt, sys.stdout, pause_s=SLOW_S if args.slow else 0.0)
    except DllmError as error:
        print(f"diffusion_effect: {error}", file=sys.stderr)
        return 2
    return 0


def perform(checkpoint: Checkpoint, spec: DraftSpec, prompt: str, stream: TextIO, *, pause_s: float = 0.0) -> str:
    """Write one reply and show every step of it; the reply's text."""
    is_terminal = stream.isatty()
    columns = min(shutil.get_terminal_size((WIDEST, 24)).columns if is_terminal else WIDEST, WIDEST) - 2 * MARGIN
    stage = Stage(stream, checkpoint.codec, columns, is_terminal=is_terminal)
    engine = model.engine(checkpoint)
    engine.submit(spec)
    stage.open(prompt)
    text = ending = ""
    try:
        while engine.drafts:
            for event in engine.run_round():
                match event:
                    case Failed():
                        raise event.error
                    case Stepped():
                        stage.frame(event)
                        time.sleep(pause_s)
                    case Finished():
                        text = checkpoint.codec.decode(event.tokens).strip()
                        usage = event.usage
                        ending = (
                            f"{usage.visible_tokens} tokens in {usage.forwards_denoise} steps: "
                            f"{usage.tokens_per_forward:.1f} tokens a forward, {usage.seconds_denoise * 1e3:.0f} ms"
                        )
                    case _:
                        pass
    finally:
        stage.close(ending)
    return text


if __name__ == "__main__":
    raise SystemExit(main())

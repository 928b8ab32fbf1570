"""`dllm infill`: text for holes between given texts."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllm.commands import decoding, model
from dllm.commands.generate import add_output_arguments, text_of, watch_of
from dllm.commands.screen import BOLD, PLAIN, safe
from dllm.commands.writing import reply_of, write
from dllm.drafts import DraftSpec
from dllm.errors import ConfigError

if TYPE_CHECKING:
    from dllm.codec import Codec
    from dllm.loader import Checkpoint

DEFAULT_HOLE = 16


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "infill",
        help="fill holes in a text",
        epilog="A hole is filled with exactly as many tokens as it has. Models that see all of their canvas write what fits both sides; "
        "block-causal ones see nothing behind the block that they write.",
    )
    parser.add_argument("text", nargs="?", help="text with holes: [...], or [...12] for twelve tokens; - reads it")
    parser.add_argument("--prefix", help="instead: the text before the hole …")
    parser.add_argument("--suffix", help="… and the text behind it")
    parser.add_argument("--hole", type=int, default=DEFAULT_HOLE, help=f"tokens of a hole, default {DEFAULT_HOLE}")
    parser.add_argument("--user", help="the text is the reply to this, not plain text")
    parser.add_argument("--system", default="", help="with --user: system turn")
    model.add_model_arguments(parser)
    decoding.add_decode_arguments(parser, with_width=False)
    add_output_arguments(parser)
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class Layout:
    """A canvas with holes."""

    width: int
    given: tuple[tuple[int, int], ...]
    holes: tuple[range, ...]
    length: int
    """Positions of the text; ends stand behind it."""


def run(args: argparse.Namespace) -> int:
    text = _text(args)
    if args.hole < 1:
        raise ConfigError("--hole", args.hole, "at least 1")
    pieces, sizes = split(text, args.hole)
    checkpoint = model.load(args)
    codec, spec = checkpoint.codec, checkpoint.spec
    # Tokens bring the space before them along, so one before a hole is the hole's.
    parts = [piece.removesuffix(" ") for piece in pieces[:-1]] + pieces[-1:]
    if args.user is None:
        if args.system:
            raise ConfigError("--system", args.system, "none without --user: plain text has no turns")
        prompt, parts = decoding.plain_tokens(parts[0], checkpoint), ["", *parts[1:]]
    else:
        prompt = _chat(args, checkpoint)
    tokens = [_encode(codec, part, leads=at == 0 and spec.dialogue is not None) for at, part in enumerate(parts)]
    layout = lay_out(tokens, sizes, spec.canvas_multiple, spec.special.end)
    draft = DraftSpec(
        prompt,
        "infill",
        layout.width,
        decoding.plan(args, checkpoint, layout.width),
        options=decoding.options(args, checkpoint, min_tokens=layout.length),
        given=layout.given,
    )
    reply = reply_of(checkpoint, layout.width)
    written = write(model.engine(checkpoint), draft, reply, watch_of(args, checkpoint))
    filled = [codec.decode(written.tokens[hole.start : hole.stop]) for hole in layout.holes]
    if args.json:
        body = dataclasses.replace(written, text=join(pieces, filled)).body()
        print(json.dumps(body | {"holes": filled}))
    else:
        print(join(pieces, filled, colours=sys.stdout.isatty()))
    return 0


def _text(args: argparse.Namespace) -> str:
    if args.text is None and args.prefix is None and args.suffix is None:
        raise ConfigError("text", None, "a text with [...] in it, or --prefix and --suffix")
    if args.text is not None and (args.prefix is not None or args.suffix is not None):
        raise ConfigError("--prefix", args.prefix or args.suffix, "none beside a text with holes")
    if args.text is None:
        for name in ("prefix", "suffix"):
            if decoding.HOLE.search(getattr(args, name) or ""):
                raise ConfigError(f"--{name}", getattr(args, name), "text without [...]: the hole is between the two")
        return f"{args.prefix or ''}[...]{args.suffix or ''}"
    return text_of(args.text)


def split(text: str, usual: int) -> tuple[list[str], list[int]]:
    """Texts around holes, one more than holes, and the holes' tokens.

    Raises:
        ConfigError: If there is no hole, or one of no tokens.
    """
    parts = decoding.HOLE.split(text)
    pieces, sizes = parts[::2], [int(size) if size else usual for size in parts[1::2]]
    if not sizes:
        raise ConfigError("text", text, "a hole: [...], or [...12] for twelve tokens")
    if 0 in sizes:
        raise ConfigError("text", text, "holes of at least one token")
    return pieces, sizes


def join(pieces: Sequence[str], filled: Sequence[str], *, colours: bool = False) -> str:
    """The given texts as they were given, and between them what was written."""
    parts: list[str] = []
    for piece, hole in zip(pieces, [*filled, ""], strict=True):
        came = hole.removeprefix(" ") if piece.endswith(" ") or not (piece or parts) else hole
        parts += [safe(piece), f"{BOLD}{safe(came)}{PLAIN}"] if colours else [piece, came]
    return "".join(parts)


def lay_out(pieces: Sequence[Sequence[int]], sizes: Sequence[int], multiple: int, end: int) -> Layout:
    """Where everything stands; ends fill the canvas up, at least one."""
    given: list[tuple[int, int]] = []
    holes = []
    at = 0
    for index, piece in enumerate(pieces):
        given += [(at + place, token) for place, token in enumerate(piece)]
        at += len(piece)
        if index < len(sizes):
            holes.append(range(at, at + sizes[index]))
            at += sizes[index]
    width = -(-(at + 1) // multiple) * multiple
    given += [(place, end) for place in range(at, width)]
    return Layout(width, tuple(given), tuple(holes), at)


def _chat(args: argparse.Namespace, checkpoint: Checkpoint) -> tuple[int, ...]:
    from dllm.codec import Message

    opening = [Message("system", args.system)] if args.system else []
    return decoding.chat_tokens([*opening, Message("user", args.user)], checkpoint)


def _encode(codec: Codec, piece: str, *, leads: bool) -> tuple[int, ...]:
    """A reply of the built-in model begins with a space."""
    return tuple(codec.encode(" " + piece if leads and piece else piece))

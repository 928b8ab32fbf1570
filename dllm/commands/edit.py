"""`dllm edit`: keep of a text what fits a changed prompt, and write the rest anew."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from typing import TYPE_CHECKING

from dllm.commands import decoding, model
from dllm.commands.generate import add_output_arguments, show_written, text_of, watch_of
from dllm.commands.screen import DIM, GREEN, PLAIN, safe
from dllm.commands.writing import reply_of, write
from dllm.drafts import DraftSpec
from dllm.errors import ConfigError
from dllm.habits import widest_canvas

if TYPE_CHECKING:
    from dllm.loader import Checkpoint

ROOM = 8
"""Positions behind the old text, for one that becomes longer."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "edit",
        help="change a text in place",
        epilog="Every token of the old text is rated under the new prompt, given the others; those below --keep-above are masked and "
        "denoised anew. Two forwards rate, however long the text is.",
    )
    parser.add_argument("text", help="the old text; - reads it from standard input")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--instruction", help="what is to change; text and instruction become the user's turn")
    what.add_argument("--user", help="what the text is now the reply to")
    parser.add_argument("--keep-above", type=float, help="probability below which a token is written anew")
    parser.add_argument("--diff", action="store_true", help="show what went and what came")
    model.add_model_arguments(parser)
    parser.add_argument("--system", default="", help="system turn")
    decoding.add_decode_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run, turn=[], note="", raw=False)


def run(args: argparse.Namespace) -> int:
    old = text_of(args.text)
    if not old.strip():
        raise ConfigError("text", old, "some text to change")
    checkpoint = model.load(args)
    asked = args.user if args.user is not None else f"{args.instruction}\n\n{old}"
    prompt = decoding.prompt_tokens(args, asked, checkpoint)
    keep = reply_tokens(old, checkpoint)
    width = _width(args, checkpoint, len(prompt), len(keep))
    spec = DraftSpec(
        prompt,
        "edit",
        width,
        decoding.plan(args, checkpoint, width),
        options=decoding.options(args, checkpoint),
        keep=keep,
    )
    written = write(model.engine(checkpoint), spec, reply_of(checkpoint, width), watch_of(args, checkpoint))
    if args.json:
        print(json.dumps(written.body() | {"kept": round(kept_share(keep[:-1], written.tokens), 4)}))
    elif args.diff:
        print(difference(old, written.text, colours=sys.stdout.isatty()))
    else:
        show_written(args, written)
    return 0


def reply_tokens(text: str, checkpoint: Checkpoint) -> tuple[int, ...]:
    """A text as a reply, its end-of-turn included."""
    codec, special = checkpoint.codec, checkpoint.spec.special
    tokens = codec.encode_pin(text) if checkpoint.spec.dialogue is not None else tuple(codec.encode(text))
    return (*tokens, special.end)


def _width(args: argparse.Namespace, checkpoint: Checkpoint, prompt: int, kept: int) -> int:
    if args.width is not None:
        width: int = args.width
    else:
        multiple = checkpoint.spec.canvas_multiple
        width = min(-(-(kept + ROOM) // multiple) * multiple, widest_canvas(checkpoint.spec, prompt))
    if width < kept:
        raise ConfigError("text", kept, f"at most the {width} tokens of the canvas, an end-of-turn included")
    return width


def kept_share(old: tuple[int, ...], new: tuple[int, ...]) -> float:
    """Share of the old tokens that stand where they stood."""
    return sum(a == b for a, b in zip(old, new, strict=False)) / max(1, len(old))


def difference(old: str, new: str, *, colours: bool) -> str:
    """Both texts in one, word by word: what went in [- -], what came in {+ +}."""
    before, after = old.split(), new.split()
    parts = []
    for kind, a, b, c, d in difflib.SequenceMatcher(a=before, b=after, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(" ".join(before[a:b]))
            continue
        gone, came = " ".join(before[a:b]), " ".join(after[c:d])
        if gone:
            parts.append(f"{DIM}[-{safe(gone)}-]{PLAIN}" if colours else f"[-{gone}-]")
        if came:
            parts.append(f"{GREEN}{{+{safe(came)}+}}{PLAIN}" if colours else f"{{+{came}+}}")
    return " ".join(parts)

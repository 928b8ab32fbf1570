"""`dllm generate`: one reply."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from dllm.commands import decoding, model
from dllm.commands.screen import CanvasScreen, safe
from dllm.commands.writing import Written, reply_of, write
from dllm.drafts import DraftSpec
from dllm.errors import ConfigError

if TYPE_CHECKING:
    from dllm.loader import Checkpoint


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("generate", help="write one reply, and on a terminal show its canvas step by step")
    parser.add_argument("text", help="what the user said last; - reads it from standard input")
    model.add_model_arguments(parser)
    decoding.add_prompt_arguments(parser)
    decoding.add_decode_arguments(parser)
    decoding.add_constraint_arguments(parser)
    add_output_arguments(parser)
    parser.set_defaults(run=run)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--show", action="store_true", help="show the steps even where there is no terminal")
    output.add_argument("--quiet", action="store_true", help="print the text only")
    output.add_argument("--json", action="store_true", help="print text, reason, usage and time as JSON")


def run(args: argparse.Namespace) -> int:
    for text in args.must:
        if not text.strip():
            raise ConfigError("--must", text, "some text")
    checkpoint = model.load(args)
    codec = checkpoint.codec
    constraint = decoding.constraint(args, codec, leading_space=checkpoint.spec.dialogue is not None)
    prompt = decoding.prompt_tokens(args, text_of(args.text), checkpoint)
    width = decoding.width_of(args, checkpoint.spec, len(prompt))
    spec = DraftSpec(
        prompt,
        "generate",
        width,
        decoding.plan(args, checkpoint, width),
        tuple(codec.encode_pin(text) for text in args.must),
        decoding.options(args, checkpoint),
        constraint=constraint,
    )
    written = write(model.engine(checkpoint), spec, reply_of(checkpoint, width, args.stop), watch_of(args, checkpoint))
    show_written(args, written)
    return 0


def text_of(text: str) -> str:
    """The argument, or for `-` all of standard input.

    Raises:
        ConfigError: If that is not UTF-8, or closed.
    """
    if text != "-":
        return text
    if sys.stdin is None:
        raise ConfigError("standard input", "-", "one that is not closed")
    try:
        return decoding.utf8(sys.stdin.read().rstrip("\n"), "standard input")
    except UnicodeDecodeError as error:
        raise ConfigError("standard input", str(error), "UTF-8 text") from error


def watch_of(args: argparse.Namespace, checkpoint: Checkpoint) -> CanvasScreen | None:
    """Shows steps on a terminal, or where asked to."""
    is_terminal = sys.stdout.isatty()
    if args.json or args.quiet or not (args.show or is_terminal):
        return None
    return CanvasScreen(checkpoint.codec, sys.stdout, colours=is_terminal)


def show_written(args: argparse.Namespace, written: Written) -> None:
    if args.json:
        print(json.dumps(written.body()))
        return
    print(safe(written.text) if sys.stdout.isatty() else written.text)

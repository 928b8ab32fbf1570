"""`dllm transcript`: is this turn complete, and which of its words are doubtful?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from dllm.commands import decoding, model
from dllm.commands.generate import text_of
from dllm.errors import ConfigError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "transcript",
        help="is a caller's turn complete, and which of its words are doubtful",
        epilog="Both are read off the built-in model's canvas. Words as a recogniser writes them: lower case, no punctuation.",
    )
    parser.add_argument("text", help="what was heard so far; - reads it from standard input")
    parser.add_argument("--doubt", type=float, default=0.1, help="words less probable than this are marked")
    parser.add_argument("--json", action="store_true")
    model.add_model_arguments(parser)
    decoding.add_prompt_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dllm.text import DialogueCodec
    from dllm.transcript import heard_words, turn_ends

    checkpoint = model.load(args)
    if not isinstance(checkpoint.codec, DialogueCodec):
        raise ConfigError(
            "model", checkpoint.spec.family, "the built-in family, which is trained for questions about turns"
        )
    if args.raw:
        raise ConfigError("--raw", True, "turns, of which the last is asked about")
    codec, text = checkpoint.codec, text_of(args.text)
    words = codec.encode_text(text)
    if not words:
        raise ConfigError("text", text, "some words")
    turns = decoding.prompt_tokens(args, text, checkpoint)
    # The prompt of a reply ends with the words, <end> and the agent's role token.
    before = turns[: len(turns) - len(words) - 2]
    (ends,) = turn_ends(checkpoint.model, [[*before, *words]])
    heard = heard_words(checkpoint.model, codec, before, text)
    if args.json:
        print(json.dumps({"turn_end": ends, "words": [asdict(word) for word in heard]}))
        return 0
    print(f"complete: {ends:.3f}")
    for word in heard:
        doubtful = f"   doubtful, perhaps {word.instead!r}" if word.probability < args.doubt else ""
        print(f"{word.probability:8.4f}  {word.text}{doubtful}")
    return 0

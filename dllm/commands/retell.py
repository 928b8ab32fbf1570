"""`dllm retell`: dialogues in the model's own words, for a model that is to write many words at once."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from dllm.commands.model import device, source
from dllm.errors import ConfigError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("retell", help="write dialogues anew in a model's own likeliest words, to learn from")
    parser.add_argument("--model", help="checkpoint folder of the built-in family; default: the built-in model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, required=True, help="folder of dialogues")
    parser.add_argument("--out", type=Path, required=True, help="folder to write NAME.train.jsonl to")
    parser.add_argument("--source", action="append", default=[], metavar="NAME=COUNT", help="how many of which; repeat")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dllm import loader
    from dllm.train.data import find_sources
    from dllm.train.retelling import Tally, retell, write_lines

    found = find_sources([args.data], "train")
    wanted = dict(_wanted(text) for text in args.source) or dict.fromkeys(found)
    for name in wanted:
        if name not in found:
            raise ConfigError("--source", name, f"one of {', '.join(found)}")
    if args.out.resolve() == args.data.resolve():
        raise ConfigError("--out", str(args.out), "another folder than --data")
    checkpoint = loader.load(source(args.model), device(args.device))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, count in wanted.items():
        tally = Tally()
        path = args.out / f"{name}.train.jsonl"
        write_lines(path, islice(retell(checkpoint, found[name], tally), count))
        print(
            f"{path}: {tally.dialogues} dialogues, {tally.retold} of {tally.turns} replies retold, {tally.same} of them as they were",
            flush=True,
        )
    return 0


def _wanted(text: str) -> tuple[str, int]:
    name, equals, count = text.partition("=")
    if not equals or not count.isdigit() or int(count) < 1:
        raise ConfigError("--source", text, "NAME=COUNT, the count a positive number")
    return name, int(count)

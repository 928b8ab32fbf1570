"""`dllm eval`: held-back likelihood, and quality by number of steps."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from dllm.commands.train import BUILTIN_CONFIG


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("eval", help="held-back likelihood; with `steps`, quality by number of steps")
    parser.add_argument("what", nargs="?", choices=("likelihood", "steps"), default="likelihood")
    parser.add_argument("--model", type=Path, help="checkpoint folder; default: the built-in model")
    parser.add_argument(
        "--data", type=Path, action="append", required=True, help="folder of dialogues; may be repeated"
    )
    parser.add_argument("--config", type=Path, help="TOML of the mixture; default: the built-in model's")
    parser.add_argument("--split", choices=("train", "dev"), default="dev")
    parser.add_argument("--rows", type=int, default=50, help="dialogue windows per source (steps: prompts in all)")
    parser.add_argument("--draws", type=int, default=4, help="mask patterns per answer")
    parser.add_argument("--out", type=Path, help="steps: file to write; default: quality_curve.json beside the weights")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dllm import loader
    from dllm.evaluate.likelihood import held_back_likelihood
    from dllm.evaluate.steps import curve_path, measure, prompts_from_rows
    from dllm.models.transformer import Transformer
    from dllm.train.config import TrainConfig
    from dllm.train.data import Mixture

    checkpoint = loader.load(args.model)
    config = replace(TrainConfig.load(args.config or BUILTIN_CONFIG), renamed_share=0.0)
    model = checkpoint.model
    assert isinstance(model, Transformer)
    mixture = Mixture(args.data, checkpoint.dialogue_codec, config, args.split)
    if args.what == "steps":
        rows = [mixture.row(number) for number in range(args.rows)]
        report = measure(model, checkpoint.codec.token_table, prompts_from_rows(rows))
        path = args.out or curve_path(checkpoint.path)
        path.write_text(json.dumps(report.to_json(), indent=1) + "\n", "utf-8")
        print(f"{'width':>6} " + " ".join(f"{count:>6}" for count in report.steps) + "   (quality by steps per phase)")
        for width, row in zip(report.widths, report.quality, strict=True):
            print(f"{width:6d} " + " ".join(f"{value:6.3f}" for value in row))
        print(f"wrote {path}")
        return 0
    print(f"{'source':24s} {'diffusion':>10} {'causal':>8} {'answers':>8} {'tokens':>8}   (nats per token)")
    for name in mixture.sources:
        rows = mixture.rows_of(name, args.rows)
        result = held_back_likelihood(model, rows, config, args.draws)
        print(f"{name:24s} {result.diffusion:10.3f} {result.causal:8.3f} {result.answers:8d} {result.tokens:8d}")
    return 0

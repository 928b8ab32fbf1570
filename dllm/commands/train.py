"""`dllm train`: a model from folders of dialogues."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from dataclasses import asdict
from pathlib import Path

from dllm.errors import ConfigError

BUILTIN_CONFIG = Path(__file__).parents[1] / "configs" / "builtin.toml"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("train", help="train a model on folders of dialogues")
    parser.add_argument(
        "--data", type=Path, action="append", required=True, help="folder of dialogues; may be repeated"
    )
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--config", type=Path, help="TOML; default: the built-in model's")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--minutes", type=float, help="budget in minutes of work instead of tokens")
    parser.add_argument("--tokens", type=int, help="budget in positions; default: the configuration's")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json to use instead of training one")
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dllm.text import DialogueCodec
    from dllm.train.config import TrainConfig
    from dllm.train.data import Mixture
    from dllm.train.trainer import Budget, StepReport, Trainer, make_codec

    if not args.resume and (args.out / "state.pt").exists():
        raise ConfigError("--out", str(args.out), "a folder without a run, or --resume to continue the one in it")
    config = TrainConfig.load(args.config or BUILTIN_CONFIG)
    tokenizer = args.out / "tokenizer.json" if args.resume else args.tokenizer
    codec = DialogueCodec.load(tokenizer) if tokenizer else make_codec(args.data, config)
    budget = Budget(args.tokens or config.tokens, args.minutes * 60 if args.minutes else None)
    trainer = Trainer(args.out, Mixture(args.data, codec, config), codec, config, budget)
    if args.resume:
        trainer.restore()
    args.out.mkdir(parents=True, exist_ok=True)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    layers = "layers compiled" if trainer.is_compiled else "layers not compiled"
    print(f"{parameters / 1e6:.2f} M parameters, {layers}, sources: {', '.join(trainer.mixture.sources)}", flush=True)
    with (args.out / "log.jsonl").open("a", encoding="utf-8") as log:

        def on_step(report: StepReport) -> None:
            log.write(json.dumps(asdict(report)) + "\n")
            if report.step % 10 == 0 or report.step == 1:
                log.flush()
                print(
                    f"step {report.step} tokens {report.tokens} diffusion {report.diffusion:.3f} causal {report.causal:.3f} "
                    f"gradient {report.gradient_norm:.2f} rate {report.learning_rate:.3f} {report.seconds:.0f} s "
                    f"({report.tokens / report.seconds:.0f} positions/s)",
                    flush=True,
                )

        stop = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
        try:
            trainer.run(
                on_step, lambda: print(f"saved {args.out}", flush=True), args.checkpoint_minutes * 60, stop.is_set
            )
        finally:
            signal.signal(signal.SIGTERM, before)
    return 0

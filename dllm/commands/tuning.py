"""What `dllm distill`, `prefer` and `reinforce` have in common: arguments, and a run that stops when it is told to."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm.errors import ConfigError

if TYPE_CHECKING:
    from dllm.train.tuning import Budget, TuneConfig, Tuner


def add_tuning_arguments(parser: argparse.ArgumentParser, *, rate: float) -> None:
    """Arguments of every such command.

    Args:
        rate: Default peak learning rate.
    """
    parser.add_argument("--out", type=Path, required=True, help="run folder; the checkpoint is its folder `export`")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--minutes", type=float, help="budget in minutes of work, all sittings together")
    parser.add_argument("--steps", type=int, help="budget in optimiser steps; with it a resumed run is the same run")
    parser.add_argument("--rate", type=float, default=rate, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0)


def budget(args: argparse.Namespace) -> Budget:
    from dllm.train.tuning import Budget

    if (args.minutes is None) == (args.steps is None):
        raise ConfigError("--minutes, --steps", (args.minutes, args.steps), "one of them")
    return Budget(steps=args.steps or 0, seconds=60.0 * (args.minutes or 0.0))


def tune_config(args: argparse.Namespace, **changes: Any) -> TuneConfig:
    from dllm.train.tuning import TuneConfig

    return TuneConfig(seed=args.seed, learning_rate=args.rate, **changes)


def check_folder(args: argparse.Namespace) -> None:
    """
    Raises:
        ConfigError: If a fresh run would overwrite another.
    """
    if not args.resume and (args.out / "state.pt").exists():
        raise ConfigError("--out", str(args.out), "a folder without a run, or --resume to continue the one in it")


@contextmanager
def until_told_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM came; inside the block it only sets a flag."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def run_tuner(
    tuner: Tuner, take_step: Callable[[], dict[str, Any]], args: argparse.Namespace, should_stop: Callable[[], bool]
) -> None:
    """Run to the end of the budget, a line every ten steps."""

    def on_step(line: dict[str, Any]) -> None:
        if line["step"] % 10 == 0 or line["step"] == 1:
            values = (
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in line.items()
            )
            print("  ".join(values), flush=True)

    tuner.run(take_step, on_step, args.checkpoint_minutes * 60, should_stop)
    print(f"step {tuner.step}, {tuner.seconds:.0f} s of work; wrote {args.out / 'export'}", flush=True)

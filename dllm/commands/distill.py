"""`dllm distill`: a checkpoint that writes as it did, in fewer steps."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dllm.commands.model import device, source
from dllm.commands.train import recipe
from dllm.commands.tuning import (
    add_tuning_arguments,
    budget,
    check_folder,
    run_tuner,
    tune_config,
    until_told_to_stop,
)
from dllm.errors import CheckpointError

if TYPE_CHECKING:
    from dllm.loader import Checkpoint
    from dllm.train.config import TrainConfig
    from dllm.train.trajectories import Library, Prompts
    from dllm.train.tuning import Budget


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("distill", help="teach a model to write in fewer steps, on its own replies")
    parser.add_argument("--model", help="checkpoint folder, or ORG/NAME on the hub; default: the built-in model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--data", type=Path, action="append", required=True, help="folder of dialogues; may be repeated"
    )
    add_tuning_arguments(parser, rate=3e-4)
    parser.add_argument("--method", choices=("certainty", "consistency"), default="certainty")
    parser.add_argument("--prompts", type=int, default=2400, help="how many are answered slowly (default: %(default)s)")
    parser.add_argument(
        "--write-share", type=float, default=0.4, help="share of --minutes after which no more replies are written"
    )
    parser.add_argument("--batch", type=int, default=32, help="replies written together")
    parser.add_argument("--config", type=Path, help="TOML of the mixture; default: the built-in model's")
    parser.add_argument("--rows", type=int, default=4, help="ordinary training rows per step; 0 for none")
    parser.add_argument("--compile", action="store_true", help="compile the layers (needs a C++ compiler)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dllm import loader
    from dllm.train.data import Mixture
    from dllm.train.distill import DistillConfig, Distiller
    from dllm.train.tasks import DialogueTask
    from dllm.train.trajectories import Library, prompts_for
    from dllm.train.tuning import Tuner

    check_folder(args)
    limit = budget(args)
    library = Library(args.out / "trajectories.jsonl")
    if args.resume and not library.asked:
        raise CheckpointError(f"{args.out}: nothing to resume")
    checkpoint = loader.load(source(args.model), device(args.device))
    config = mixture_config(args)
    mixture = None
    if checkpoint.spec.dialogue is not None:
        mixture = Mixture(args.data, checkpoint.dialogue_codec, config)
    prompts = prompts_for(args.data, checkpoint.codec, checkpoint.spec, config, mixture)
    with until_told_to_stop() as should_stop:
        _fill(library, checkpoint, prompts, args, limit, should_stop)
        if should_stop():
            return 0
        tuner = Tuner(args.out, checkpoint, tune_config(args, compiled=args.compile), limit)
        tuner.seconds = library.seconds
        ordinary = None
        if mixture is not None and args.rows:
            rows = replace(config, rows_per_step=args.rows, rows_per_forward=math.gcd(args.rows, 4))
            ordinary = DialogueTask(mixture, checkpoint.spec, rows)
        begun = limit.progress(0, library.seconds)
        distiller = Distiller(tuner, library.kept, ordinary, DistillConfig(method=args.method), begun)
        if (args.out / "state.pt").exists():
            tuner.restore()
        run_tuner(tuner, distiller.take_step, args, should_stop)
    return 0


def mixture_config(args: argparse.Namespace) -> TrainConfig:
    """The mixture that the arguments name."""
    return replace(recipe(args.config, args.data), seed=args.seed)


def _fill(
    library: Library,
    checkpoint: Checkpoint,
    prompts: Prompts,
    args: argparse.Namespace,
    limit: Budget,
    should_stop: Callable[[], bool],
) -> None:
    """Write replies until there are enough, or their share of the time is used."""
    from dllm.habits import family_options

    options = replace(family_options(checkpoint.defaults, checkpoint.spec), temperature=0.0)
    most_seconds = args.write_share * limit.seconds if limit.seconds else float("inf")
    while library.asked < args.prompts and library.seconds < most_seconds and not should_stop():
        library.grow(checkpoint.model, checkpoint.codec.token_table, prompts, options, args.batch)
        print(f"{len(library.kept)} replies kept of {library.asked}, {library.seconds:.0f} s", flush=True)

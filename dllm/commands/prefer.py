"""`dllm prefer`: a checkpoint learns which of two replies is the better one."""

from __future__ import annotations

import argparse
from pathlib import Path

from dllm.commands.model import device, source
from dllm.commands.tuning import add_tuning_arguments, budget, check_folder, run_tuner, tune_config, until_told_to_stop


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("prefer", help="learn which of two replies is better (DPO on likelihood bounds)")
    parser.add_argument("--model", help="checkpoint folder, or ORG/NAME on the hub; default: the built-in model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with turns, chosen and rejected")
    add_tuning_arguments(parser, rate=1e-4)
    parser.add_argument("--beta", type=float, default=0.1, help="strength of the tie to the reference")
    parser.add_argument("--draws", type=int, default=8, help="masks per reply (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs per step (default: %(default)s)")
    parser.add_argument("--chosen-weight", type=float, default=0.0, help="weight of the chosen replies' own loss")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dllm import loader
    from dllm.train.preference import PreferenceConfig, PreferenceTuner, read_pairs
    from dllm.train.tuning import Tuner

    check_folder(args)
    limit = budget(args)
    config = PreferenceConfig(args.beta, args.draws, args.pairs, min(args.pairs, 2), args.chosen_weight)
    checkpoint = loader.load(source(args.model), device(args.device))
    pairs = read_pairs(args.data, checkpoint.codec, checkpoint.spec)
    tuner = Tuner(args.out, checkpoint, tune_config(args), limit)
    preference = PreferenceTuner(tuner, pairs, config)
    if args.resume:
        tuner.restore()
    with until_told_to_stop() as should_stop:
        run_tuner(tuner, preference.take_step, args, should_stop)
    return 0

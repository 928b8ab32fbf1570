"""`dllm reinforce`: a checkpoint learns what a function rewards."""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dllm.commands.decoding import BUILTIN_WIDTH, WIDTH
from dllm.commands.model import device, source
from dllm.commands.tuning import add_tuning_arguments, budget, check_folder, run_tuner, tune_config, until_told_to_stop
from dllm.errors import ConfigError, RewardError

if TYPE_CHECKING:
    from dllm.loader import Checkpoint
    from dllm.train.reinforce import Measured, Reward, Writing

CHECKED = "reward.json"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("reinforce", help="learn what a Python function rewards")
    parser.add_argument("--model", help="checkpoint folder, or ORG/NAME on the hub; default: the built-in model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--data", type=Path, action="append", required=True, help="folder of dialogues; may be repeated"
    )
    parser.add_argument(
        "--reward", required=True, metavar="NAME", help="module:function or file.py:function of (turns, reply)"
    )
    add_tuning_arguments(parser, rate=1e-4)
    parser.add_argument("--prompts", type=int, default=8, help="per step (default: %(default)s)")
    parser.add_argument("--replies", type=int, default=8, help="per prompt (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=4, help="masks per reply (default: %(default)s)")
    parser.add_argument("--tie", type=float, default=0.02, help="what a nat of divergence from the reference costs")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the replies (default: %(default)s)")
    parser.add_argument("--steps-per-token", type=float, default=0.5, help="denoising steps (default: %(default)s)")
    parser.add_argument(
        "--width", type=int, help=f"canvas positions; default {WIDTH}, the built-in model's {BUILTIN_WIDTH}"
    )
    parser.add_argument("--batch", type=int, default=32, help="replies written together")
    parser.add_argument("--check", type=int, default=64, help="held-back prompts answered before and after; 0 for none")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dllm import loader
    from dllm.train.reinforce import Questions, ReinforceConfig, Reinforcer, Writing, find_reward
    from dllm.train.tuning import Tuner

    check_folder(args)
    limit = budget(args)
    if args.check < 0:
        raise ConfigError("--check", args.check, "at least 0")
    reward = find_reward(args.reward)
    writing = Writing(args.temperature, args.steps_per_token, args.batch)
    config = ReinforceConfig(args.prompts, args.replies, args.draws, args.tie, writing=writing)
    checkpoint = loader.load(source(args.model), device(args.device))
    if args.width is None:
        args.width = BUILTIN_WIDTH if checkpoint.spec.dialogue is not None else WIDTH
    questions = Questions(args.data, checkpoint.codec, checkpoint.spec, args.width)
    tuner = Tuner(args.out, checkpoint, tune_config(args), limit)
    reinforcer = Reinforcer(tuner, questions, reward, config)
    if args.resume:
        tuner.restore()
    else:
        _report(args, "before", _check(args, checkpoint, reward, writing))
    with until_told_to_stop() as should_stop:
        try:
            run_tuner(tuner, reinforcer.take_step, args, should_stop)
        except RewardError:
            # Whoever mends the function goes on with --resume.
            tuner.save()
            raise
    if tuner.progress < 1.0:
        return 0  # told to stop: the run is not over
    exported = loader.load(args.out / "export", device(args.device))
    _report(args, "after", _check(args, exported, reward, writing))
    return 0


def _check(args: argparse.Namespace, checkpoint: Checkpoint, reward: Reward, writing: Writing) -> Measured | None:
    """Rewards of held-back prompts, the same ones at every call; None where none are wanted or held back."""
    from dllm.train.reinforce import Questions, measure

    folders = [folder for folder in args.data if any(folder.glob("*.dev.jsonl*"))]
    if not args.check or not folders:
        return None
    questions = Questions(folders, checkpoint.codec, checkpoint.spec, args.width, "dev")
    rng = random.Random(args.seed)
    return measure(checkpoint, [questions.draw(rng) for _ in range(args.check)], reward, writing)


def _report(args: argparse.Namespace, when: str, measured: Measured | None) -> None:
    if measured is None:
        return
    path = args.out / CHECKED
    known = json.loads(path.read_text("utf-8")) if path.is_file() and when != "before" else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known | {when: asdict(measured)}, indent=1) + "\n", encoding="utf-8")
    print(f"reward {when}, of {measured.prompts} held-back prompts: {measured}", flush=True)

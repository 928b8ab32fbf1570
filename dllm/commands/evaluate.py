"""`dllm eval`: held-back likelihood, quality by steps, a model card of everything, and conversations with fixed callers."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm.commands.train import BUILTIN_CONFIG
from dllm.errors import ConfigError, DllmError

if TYPE_CHECKING:
    from dllm.evaluate.conversations import Caller, Line
    from dllm.evaluate.measurements import Study
    from dllm.evaluate.prompts import Prompt
    from dllm.evaluate.record import Record
    from dllm.loader import Checkpoint
    from dllm.train.config import TrainConfig
    from dllm.train.data import Mixture

WHAT = ("likelihood", "steps", "card", "conversations")
CARD, PAGE = Path("docs/model-card.md"), Path("docs/conversations.md")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "eval",
        help="held-back likelihood; `steps`: quality by number of steps; `card`: everything, as a model card; `conversations`: with fixed "
        "callers",
    )
    parser.add_argument("what", nargs="?", choices=WHAT, default="likelihood")
    parser.add_argument("--model", type=Path, help="checkpoint folder; default: the built-in model")
    parser.add_argument("--data", type=Path, action="append", help="folder of dialogues; may be repeated")
    parser.add_argument(
        "--config", type=Path, help="TOML of the mixture; default: the run's, else the built-in model's"
    )
    parser.add_argument("--split", choices=("train", "dev"), default="dev")
    parser.add_argument("--rows", type=int, default=50, help="dialogues per source (steps: prompts in all)")
    parser.add_argument("--draws", type=int, default=4, help="mask patterns per answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help=f"file to write; default: {CARD}, {PAGE}, steps: beside the weights")
    card = parser.add_argument_group("card")
    card.add_argument("--baseline", type=Path, help="autoregressive checkpoint of equal size, data and steps")
    card.add_argument("--undistilled", type=Path, help="the checkpoint that this one was distilled from")
    card.add_argument(
        "--judge", type=Path, help="checkpoint whose causal mode judges replies; default: the model's own"
    )
    card.add_argument("--run", type=Path, dest="run_folder", help="training run, for its record and curves")
    card.add_argument("--budget", type=float, metavar="MINUTES", help="time for all measurements; default: no limit")
    card.add_argument(
        "--prompts", type=int, default=64, help="most prompts of a section; cheap ones take four times as many"
    )
    card.add_argument("--width", type=int, default=40, help="canvas positions")
    card.add_argument("--curve", type=Path, help="where the quality curve goes; default: beside the weights")
    card.add_argument("--images", type=Path, help="folder of the plots; default: img beside the card")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.what == "conversations":
        return converse(args)
    if not args.data:
        raise ConfigError("--data", None, "a folder of dialogues")
    actions = {"likelihood": likelihood, "steps": steps, "card": card}
    return actions[args.what](args)


# --- likelihood and steps ---------------------------------------------------------------------------------------------


def likelihood(args: argparse.Namespace) -> int:
    from dllm import loader
    from dllm.evaluate.likelihood import held_back_likelihood

    checkpoint = loader.load(args.model)
    _, prompts = mixture_of(args, checkpoint, args.rows)
    print(f"{'source':24s} {'diffusion':>10} {'causal':>8} {'answers':>8} {'tokens':>8}   (nats per token)")
    for name, some in prompts.items():
        found = [held_back_likelihood(checkpoint.model, prompt, args.draws, args.seed) for prompt in some]
        tokens = sum(one.tokens for one in found)

        def mean(values: list[float | None], tokens: int = tokens) -> str:
            known = [value for value in values if value is not None]
            return f"{sum(known) / tokens:.3f}" if tokens and len(known) == len(values) else "-"

        diffusion, causal = mean([one.diffusion for one in found]), mean([one.causal for one in found])
        print(f"{name:24s} {diffusion:>10} {causal:>8} {len(found):8d} {tokens:8d}")
    return 0


def steps(args: argparse.Namespace) -> int:
    from dllm import loader
    from dllm.evaluate.prompts import choose
    from dllm.evaluate.replies import Judge
    from dllm.evaluate.steps import curve_path, measure
    from dllm.evaluate.writing import Writer

    checkpoint = loader.load(args.model)
    mixture, prompts = mixture_of(args, checkpoint, args.rows)
    weights = {name: source.weight for name, source in mixture.sources.items()}
    chosen = choose(prompts, weights, lambda prompt: True, args.rows, args.seed)
    writer = Writer(checkpoint.model, checkpoint.codec.token_table)
    report = measure(writer, checkpoint.dialogue_codec, Judge(checkpoint.model), chosen)
    path = args.out or curve_path(checkpoint.path)
    path.write_text(json.dumps(report.curve(), indent=1) + "\n", "utf-8")
    print(f"{'width':>6} " + " ".join(f"{count:>6}" for count in report.steps) + "   (quality by steps per phase)")
    for width, row in zip(report.widths, report.quality, strict=True):
        print(f"{width:6d} " + " ".join(f"{value:6.3f}" for value in row))
    print(f"wrote {path}")
    return 0


def mixture_of(
    args: argparse.Namespace, checkpoint: Checkpoint, dialogues: int
) -> tuple[Mixture, dict[str, list[Prompt]]]:
    """The held-back dialogues and their prompts, in the proportions of the configuration."""
    from dllm.evaluate.prompts import held_back, prompts_of
    from dllm.train.data import Mixture

    mixture = Mixture(args.data, checkpoint.dialogue_codec, held_back(config_of(args)), args.split)
    return mixture, prompts_of(mixture, checkpoint.dialogue_codec, dialogues)


def config_of(args: argparse.Namespace) -> TrainConfig:
    from dllm.evaluate.about import training_config
    from dllm.train.config import TrainConfig

    if args.config is not None:
        return TrainConfig.load(args.config)
    return training_config(args.run_folder) or TrainConfig.load(BUILTIN_CONFIG)


# --- card -------------------------------------------------------------------------------------------------------------


def card(args: argparse.Namespace) -> int:
    from dllm import loader
    from dllm.evaluate.card import write_card
    from dllm.evaluate.measurements import SECTIONS, possible
    from dllm.evaluate.plots import draw
    from dllm.evaluate.record import Record
    from dllm.evaluate.steps import curve_path

    if args.prompts < 1:
        raise ConfigError("--prompts", args.prompts, "at least 1")
    if args.run_folder is not None and not args.run_folder.is_dir():
        # Its mixture is what is measured: without it another one would be, and nobody would see.
        raise ConfigError("--run", str(args.run_folder), "the folder of a training run")
    checkpoint = loader.load(args.model)
    study = study_of(args, checkpoint)
    out: Path = args.out or CARD
    images: Path = args.images or out.parent / "img"
    record = Record(out.with_suffix(".json"))
    left_out = {section.name: reason for section in SECTIONS if (reason := possible(study, section))}
    measure_sections(args, study, record, left_out)
    record.put("about", about_card(args, study, out, left_out))
    record.keep_only({"about", *(section.name for section in SECTIONS if section.name not in left_out)})
    data = record.data
    drawn = draw(data, images)
    out.write_text(write_card(data, os.path.relpath(images, out.parent)), "utf-8")
    if "widths" in data:
        curve = {name: value for name, value in data["widths"].items() if name != "measures"}
        path: Path = args.curve or curve_path(checkpoint.path)
        path.write_text(json.dumps(curve, indent=1) + "\n", "utf-8")
        drawn.append(path)
    print("wrote " + ", ".join(str(path) for path in (out, out.with_suffix(".json"), *drawn)))
    return 0


def study_of(args: argparse.Namespace, checkpoint: Checkpoint) -> Study:
    """What is measured, and the checkpoints it is compared with.

    Raises:
        ConfigError: If one of those has another tokenizer: its tokens would be other words.
    """
    from dllm import loader
    from dllm.evaluate.about import tokenizer_hash
    from dllm.evaluate.measurements import Study
    from dllm.evaluate.replies import Judge

    others: dict[str, Checkpoint | None] = {}
    for name in ("baseline", "undistilled", "judge"):
        path: Path | None = getattr(args, name)
        others[name] = None if path is None else loader.load(path)
        if path is not None and tokenizer_hash(path) != tokenizer_hash(checkpoint.path):
            raise ConfigError(f"--{name}", str(path), f"a checkpoint with the tokenizer of {checkpoint.path}")
    mixture, prompts = mixture_of(args, checkpoint, 8 * args.prompts)
    weights = {name: source.weight for name, source in mixture.sources.items()}
    return Study(
        checkpoint,
        prompts,
        weights,
        mixture.dialogues,
        Judge((others["judge"] or checkpoint).model),
        args.prompts,
        args.width,
        args.seed,
        others["baseline"],
        others["undistilled"],
    )


def measure_sections(args: argparse.Namespace, study: Study, record: Record, left_out: Mapping[str, str]) -> None:
    """Measure what the record does not hold yet, each section within its share of the time."""
    from dllm.evaluate.about import about_machine, data_hash, weights_hash
    from dllm.evaluate.measurements import SECTIONS
    from dllm.evaluate.replies import Limit

    others = {name: getattr(args, name) for name in ("baseline", "undistilled", "judge")}
    hashes: dict[str, Any] = {name: None if path is None else weights_hash(path) for name, path in others.items()}
    hashes["machine"] = {name: value for name, value in about_machine().items() if name != "commit"}
    depends = {
        "model": weights_hash(study.checkpoint.path),
        "data": data_hash(args.data, list(study.weights), args.split),
        "weights": dict(study.weights),
        "judge": hashes["judge"],
        **{name: getattr(args, name) for name in ("prompts", "width", "seed")},
    }
    for section in SECTIONS:
        if section.name in left_out:
            continue
        limit = Limit(None if args.budget is None else 60 * args.budget * section.share)
        began = time.perf_counter()
        of_section = depends | {name: hashes[name] for name in section.uses}
        is_new = record.section(section.name, of_section, partial(section.measure, study, limit))
        done = f"measured in {time.perf_counter() - began:.0f} s" if is_new else "kept"
        print(f"{section.name:12s} {done}", file=sys.stderr, flush=True)


def about_card(args: argparse.Namespace, study: Study, out: Path, left_out: Mapping[str, str]) -> dict[str, Any]:
    from dllm.evaluate import about

    data = about.about_data(args.data, study.weights, args.split)
    for name, prompts in study.prompts.items():
        data[name]["too_long"] = [sum(not prompt.fits(args.width) for prompt in prompts), len(prompts)]
    return {
        "name": "The built-in model" if about.is_builtin(study.checkpoint) else study.checkpoint.path.name,
        "width": args.width,
        "command": command_line(args),
        "record": out.with_suffix(".json").name,
        "machine": about.about_machine(),
        "model": about.about_model(study.checkpoint),
        "baseline": None if study.baseline is None else about.about_model(study.baseline),
        "judge": "its own causal mode" if args.judge is None else f"the causal mode of {args.judge.name}",
        "data": data,
        "training": about.about_training(args.run_folder),
        "left_out": dict(left_out),
    }


def command_line(args: argparse.Namespace) -> str:
    """The command as somebody else would give it: folders by their last names."""
    words = ["dllm", "eval", args.what]
    for path in args.data:
        words += ["--data", path.name]
    for name in ("model", "baseline", "undistilled", "judge", "config"):
        if getattr(args, name) is not None:
            words += [f"--{name}", getattr(args, name).name]
    if args.run_folder is not None:
        words += ["--run", args.run_folder.name]
    if args.split != "dev":
        words += ["--split", args.split]
    for name in ("budget", "prompts", "width", "seed"):
        if getattr(args, name) is not None:
            words += [f"--{name}", f"{getattr(args, name):g}"]
    return shlex.join(words)


# --- conversations ----------------------------------------------------------------------------------------------------


def converse(args: argparse.Namespace) -> int:
    from dllm import loader
    from dllm.evaluate.about import is_builtin, weights_hash
    from dllm.evaluate.conversations import hold, read_callers, write_page
    from dllm.evaluate.measurements import DEFAULT_PLAN

    checkpoint = loader.load(args.model)
    plan = replace(DEFAULT_PLAN, threshold=checkpoint.defaults.threshold)
    held: list[tuple[Caller, list[Line] | DllmError]] = []
    for caller in read_callers():
        try:
            held.append((caller, hold(caller, checkpoint, plan, args.width)))
        except DllmError as error:
            held.append((caller, error))
    about = {
        "model": "the built-in model" if is_builtin(checkpoint) else checkpoint.path.name,
        "sha256": weights_hash(checkpoint.path),
    }
    out: Path = args.out or PAGE
    out.write_text(write_page(held, about, plan, args.width), "utf-8")
    print(f"wrote {out}")
    return 0

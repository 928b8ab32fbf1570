"""`dllm train`: a model from folders of dialogues or text. Started by torchrun, one model on several devices."""

from __future__ import annotations

import argparse
import json
import signal
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from dllm.train.config import TrainConfig
    from dllm.train.distributed import Place
    from dllm.train.trainer import StepReport, Trainer

BUILTIN_CONFIG = Path(__file__).parents[1] / "configs" / "builtin.toml"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("train", help="train a model on folders of dialogues or text")
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of data; may be repeated")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument(
        "--config", type=Path, help="TOML; default: the run's own where it is resumed, else the built-in model's"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--minutes", type=float, help="budget in minutes of work, all sittings together, instead of tokens"
    )
    parser.add_argument("--tokens", type=int, help="budget in positions; default: the configuration's")
    parser.add_argument("--leg-minutes", type=float, help="end this sitting after so long, whatever the budget")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json to use instead of training one")
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the configuration, TABLE.KEY for one of its tables; may be repeated",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dllm.commands import model
    from dllm.train import distributed, lora
    from dllm.train.start import begin, make_task
    from dllm.train.trainer import Budget, Trainer

    check_budget(args)
    model.check_folder("--out", args.out)
    if not args.resume and (args.out / "state.pt").exists():
        raise ConfigError("--out", str(args.out), "a folder without a run, or --resume to continue the one in it")
    config = read_config(args)
    model.device(args.device)
    budget = Budget(args.tokens or config.tokens, args.minutes * 60 if args.minutes else None)
    with distributed.join(args.device, config.tensor_parallel) as place:
        start = begin(config, args.data, tokenizer=args.tokenizer, resumed=args.out if args.resume else None)
        task = make_task(start, args.data, config)
        trainer = Trainer(args.out, start, task, config, budget, place)
        if args.resume:
            trainer.restore()
        with stop_signal(args.leg_minutes, trainer) as should_stop:
            if place.is_first:
                lead(args, config, trainer, place, should_stop)
            else:
                trainer.run(checkpoint_every_s=args.checkpoint_minutes * 60, should_stop=should_stop)
        if place.is_first and trainer.adapters is not None:
            print(f"adapters alone: {args.out / 'adapter' / lora.WEIGHTS_FILE}")
    return 0


def check_budget(args: argparse.Namespace) -> None:
    """
    Raises:
        ConfigError: If a run would end before its first step, or never.
    """
    if args.tokens is not None and args.tokens < 1:
        raise ConfigError("--tokens", args.tokens, "at least 1")
    for name in ("minutes", "leg_minutes", "checkpoint_minutes"):
        minutes = getattr(args, name)
        if minutes is not None and not 0 < minutes < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')}", minutes, "minutes above 0")


def read_config(args: argparse.Namespace) -> TrainConfig:
    """
    Raises:
        ConfigError: If a key is unknown or a value makes no sense.
        CheckpointError: If there is nothing to resume, or its configuration cannot be read.
    """
    from dllm.train.config import TrainConfig

    if args.config is not None or not args.resume:
        config = recipe(args.config, args.data)
    else:
        path = args.out / "config.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: nothing to resume")
        try:
            body = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: the run's configuration cannot be read: {error}") from error
        config = TrainConfig.from_json(body)
    changes: dict[str, Any] = {}
    for text in args.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError("--set", text, "KEY=VALUE")
        try:
            change = tomllib.loads(f"{key} = {value}")
        except tomllib.TOMLDecodeError:
            change = _string(key, value.strip())
        changes = merged(changes, change)
    return TrainConfig.from_json(merged(config.to_json(), changes))


def recipe(path: Path | None, folders: Sequence[Path]) -> TrainConfig:
    """The configuration in `path`, or the built-in one, which does not know every folder: where it knows no source, all count alike.

    Raises:
        ConfigError: If a key is unknown or a value makes no sense.
    """
    from dllm.train.config import TrainConfig

    config = TrainConfig.load(path or BUILTIN_CONFIG)
    there = {found.name.split(".train.")[0] for folder in folders for found in folder.glob("*.train.*")}
    return config if path is not None or config.sources.keys() & there else replace(config, sources={})


def _string(key: str, value: str) -> dict[str, Any]:
    """A string that came without its quotes."""
    try:
        return tomllib.loads(f"{key} = {json.dumps(value)}")
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("--set", key, f"a key of TOML ({error})") from error


def merged(body: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Tables key by key, anything else as changed."""
    found = dict(body)
    for key, value in changes.items():
        old = found.get(key)
        found[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found


@contextmanager
def stop_signal(leg_minutes: float | None, trainer: Trainer) -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come, or the sitting has worked as long as it may."""
    stop = threading.Event()
    ends_at = trainer.seconds + leg_minutes * 60 if leg_minutes else float("inf")
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield lambda: stop.is_set() or trainer.seconds >= ends_at
    finally:
        signal.signal(signal.SIGTERM, before)


def lead(
    args: argparse.Namespace, config: TrainConfig, trainer: Trainer, place: Place, should_stop: Callable[[], bool]
) -> None:
    """The first process: train, and write down what happens."""
    import torch

    from dllm.train import logs, samples, throughput
    from dllm.train.accounting import Ledger

    shapes = trainer.shapes
    cost = throughput.cost_of(trainer.spec, shapes, trainer.parameters.keys())
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    positions = config.rows_per_forward * (config.row_tokens if config.objective != "dialogue" else 400)
    rate = throughput.matrix_rate(trainer.spec, positions, place.device, dtype)
    processes = place.data_ranks * place.tensor_ranks
    prompts = samples.held_back(args.data, trainer.codec, trainer.spec, config)
    board = logs.open_board(args.out / logs.BOARD)
    learned = sum(shapes[name].numel() for name in trainer.parameters)
    print(
        f"{sum(shape.numel() for shape in shapes.values()) / 1e6:.2f} M parameters, {learned / 1e6:.2f} M learn; layers "
        f"{'compiled' if trainer.is_compiled else 'not compiled'}; sources: {', '.join(trainer.task.files)}; {processes} x "
        f"{place.device.type}, {rate / 1e12:.3f} TFLOP/s in {config.dtype} matrices"
    )
    print(f"log: {args.out / logs.LOG}; record: {args.out / logs.RECORD}; curves: {args.out / logs.CURVES}")
    print(
        f"TensorBoard: tensorboard --logdir {args.out / logs.BOARD}"
        if board is not None
        else "TensorBoard: not installed (pip install 'voiceagent[train]'), so no events are written"
    )
    print(
        f"samples: {args.out / logs.SAMPLES}"
        if prompts
        else "samples: none, as there are no dev files with prompts (or samples = 0)",
        flush=True,
    )
    log = logs.RunLog(args.out, board)
    before = trainer.seconds
    earlier = logs.read_record(args.out).get("legs", []) if args.resume else []
    record = logs.RunRecord(
        config, trainer.task.files, place.device, processes, rate, logs.Leg(logs.now(), trainer.step + 1), earlier
    )

    def on_step(report: StepReport) -> None:
        total = Ledger(report.sources).total
        work = cost.of(total.tokens, total.learned, throughput.mean_row(report.shapes))
        share = work / max(report.step_s, 1e-9) / (rate * processes)
        log.step(logs.as_line(report, round(share, 5)))
        if report.step % 10 == 0 or report.step == 1:
            log.flush()
            details = " ".join(f"{name} {value:.3f}" for name, value in report.parts.items())
            print(
                f"step {report.step} tokens {report.tokens} loss {report.loss:.3f} {details} gradient {report.gradient_norm:.2f} "
                f"rate {report.learning_rate:.3f} {report.seconds:.0f} s ({total.tokens / report.step_s:.0f} positions/s, "
                f"{share:.1%} of the matrix rate)",
                flush=True,
            )

    def on_checkpoint() -> None:
        log.flush()
        if prompts:
            log.samples(samples.write_replies(args.out / "export", prompts, trainer.step, place.device))
        record.leg.ended, record.leg.last_step = logs.now(), trainer.step
        record.leg.seconds = round(trainer.seconds - before, 1)
        record.write(args.out, trainer.ledger, trainer.tokens, trainer.progress)
        logs.plot(logs.read_log(args.out / logs.LOG), args.out / logs.CURVES)
        print(f"saved {args.out} at step {trainer.step}, {trainer.progress:.0%} of the budget", flush=True)

    try:
        trainer.run(on_step, on_checkpoint, args.checkpoint_minutes * 60, should_stop)
    finally:
        log.close()

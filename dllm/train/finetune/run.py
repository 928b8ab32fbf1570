"""Fine-tuning from beginning to end: read, measure, learn until nothing becomes better, write, measure again, report."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from dllm import loader
from dllm.errors import ConfigError, DataError
from dllm.evaluate.bootstrap import Estimate, estimate
from dllm.models.family import Network
from dllm.models.registry import family_named
from dllm.train.config import SourceConfig, TrainConfig
from dllm.train.corpus import find_files, read_items
from dllm.train.data import Dialogue, source_weights
from dllm.train.distributed import Place
from dllm.train.files import record
from dllm.train.finetune.dialogues import Line, Survey, hold_back, longest, read_file, survey, write_file
from dllm.train.finetune.measure import HeldBack, check_model, held_back, loss_of, measure, nats_of
from dllm.train.finetune.patience import Watch
from dllm.train.finetune.plan import SOURCE, FinetuneOptions, budget, run_config, steps_between, window
from dllm.train.finetune.report import Report
from dllm.train.start import Start, begin, make_task
from dllm.train.trainer import Trainer

CONFIG = Path(loader.__file__).parent / "configs" / "builtin.toml"
KEPT_DIALOGUES = 10
"""Held-back dialogues of each rehearsed source that forgetting is measured on."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is certain before anything is written."""

    start: Start
    config: TrainConfig
    learned: Survey
    held: Survey
    held_back: HeldBack
    kept: HeldBack | None
    files: tuple[Path, ...]


def finetune(
    options: FinetuneOptions,
    say: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Teach a checkpoint the dialogues and write it to `options.out` with report.md and report.json.

    Args:
        say: Told in a line what goes on.
        should_stop: Ends the learning; the best step so far is written.

    Raises:
        ConfigError: If an argument makes no sense, or the family cannot be measured.
        DataError: If a data file is bad, with its line, or too little of it can be used. Nothing has been written then.
        CheckpointError: If the checkpoint cannot be loaded.
        TrainingDivergedError: If the loss is no number any more; nothing has been written then either.
    """
    began = time.monotonic()
    ready = prepare(options)
    learned, held = ready.learned, ready.held_back
    say(
        f"{len(learned.kept)} dialogues to learn from, {len(ready.held.kept)} held back with {len(held.prompts)} replies"
    )
    for one in (*learned.left_out, *ready.held.left_out):
        say(f"left out: line {one.line} ({one.id}): {one.reason}")
    defaults = family_named(ready.start.spec.family).defaults
    with tempfile.TemporaryDirectory() as folder:
        write_file(Path(folder) / f"{SOURCE}.train.jsonl", learned.kept)
        folders = [Path(folder), *([options.keep] if options.keep else [])]
        task = make_task(ready.start, folders, ready.config)
    limit = budget(options, learned.pass_tokens, options.keep is not None)
    trainer = Trainer(options.out, ready.start, task, ready.config, limit, Place(torch.device(options.device)))
    network = cast(Network, trainer.network)
    before = measure(network, trainer.codec, defaults, held, options.seed)
    kept_before = _nats(network, ready.kept, options.seed)
    watch, curve, stopped = learn(trainer, held, learned, options, say, should_stop)
    trainer.export(options.out)
    parameters = sum(parameter.numel() for parameter in trainer.parameters.values())

    written = loader.load(options.out, options.device, torch.float32)
    after = measure(written.model, written.codec, defaults, held, options.seed)
    report = Report(
        model=_name(options),
        family=trainer.spec.family,
        data={"files": [asdict(record(path)) for path in ready.files]},
        config=ready.config.to_json(),
        learned=learned,
        held=ready.held,
        held_back=held,
        before=before,
        after=after,
        kept_before=kept_before,
        kept_after=_nats(written.model, ready.kept, options.seed),
        curve=tuple(curve),
        best_step=watch.best_step,
        steps=trainer.step,
        stopped=stopped,
        positions=trainer.tokens,
        seconds_learning=trainer.seconds,
        seconds=time.monotonic() - began,
        parameters=parameters,
        device=options.device,
    )
    (options.out / "report.md").write_text(report.to_markdown(), "utf-8")
    (options.out / "report.json").write_text(json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    return report


def prepare(options: FinetuneOptions) -> Prepared:
    """Read and check everything.

    Raises:
        ConfigError, DataError, CheckpointError: See `finetune`.
    """
    if (options.out / "config.json").exists():
        raise ConfigError("--out", str(options.out), "a folder without a checkpoint")
    lines = read_file(options.data)
    dev = read_file(options.dev) if options.dev else None
    kept_sources = _kept_sources(options.keep)
    init = str(loader.BUILTIN if options.model is None else options.model)
    first = replace(TrainConfig(), init=init, lora_rank=options.lora_rank, compiled=False)
    if options.device != "cpu":
        first = replace(first, dtype="bfloat16")
    start = begin(first, [])
    check_model(start.spec)
    tokens = window(*longest([*lines, *(dev or [])], start.codec), start.spec)
    config = run_config(options, start.spec, init, tokens, kept_sources)
    usable = survey(lines, start.codec, start.spec, config)
    if not usable.kept:
        raise DataError(
            options.data, usable.left_out[0].line, f"nothing can be learned from: {usable.left_out[0].reason}"
        )
    to_learn: Sequence[Line] = usable.kept
    to_hold = dev
    if to_hold is None:
        to_learn, to_hold = hold_back(usable.kept, options.hold_back, options.data)
    learned = replace(survey(to_learn, start.codec, start.spec, config), left_out=usable.left_out)
    held = survey(to_hold, start.codec, start.spec, config)
    prompts = held_back(held.kept, start.codec, start.spec, options.shown)
    if not prompts.prompts:
        where, which = (options.dev, held.left_out) if options.dev else (options.data, usable.left_out)
        reason = which[0].reason if which else "no agent's turn fits a canvas"
        raise DataError(where, None, f"no reply to hold back: {reason}")
    files = [options.data, *([options.dev] if options.dev else [])]
    return Prepared(start, config, learned, held, prompts, _kept(options.keep, start), tuple(files))


def learn(
    trainer: Trainer,
    held: HeldBack,
    learned: Survey,
    options: FinetuneOptions,
    say: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> tuple[Watch, list[tuple[int, float]], str]:
    """Train with an eye on the held-back loss. Afterwards the trainer's averaged weights are those of the best step.

    Returns:
        The best step, every measurement, and why it ended.
    """
    every = steps_between(trainer.config, learned)
    best = {name: weight.detach().cpu().clone() for name, weight in trainer.ema.weights.items()}
    with averaged(trainer) as network:
        loss = loss_of(network, held.prompts)
    watch, curve, stopped = Watch(loss), [(0, loss)], "budget"
    say(f"step 0: held-back {loss:.4f} nats per token")
    try:
        while trainer.progress < 1.0:
            if should_stop():
                stopped = "told"
                break
            trainer.train_step()
            if trainer.step % every and trainer.progress < 1.0:
                continue
            with averaged(trainer) as network:
                loss = loss_of(network, held.prompts)
            watch = watch.after(trainer.step, loss)
            curve.append((trainer.step, loss))
            say(f"step {trainer.step}: held-back {loss:.4f} nats per token" + (", the best" if watch.is_best else ""))
            if watch.is_best:
                best = {name: weight.detach().cpu().clone() for name, weight in trainer.ema.weights.items()}
            if watch.is_over(options.patience):
                stopped = "patience"
                break
    finally:
        trainer.close()
    for name, weight in best.items():
        trainer.ema.weights[name].copy_(weight)
    return watch, curve, stopped


@contextmanager
def averaged(trainer: Trainer) -> Iterator[Network]:
    """The trainer's network with its averaged weights, which are what is exported, for as long as the block lasts."""
    own = {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}
    _fill(trainer, trainer.ema.weights)
    try:
        yield cast(Network, trainer.network)
    finally:
        _fill(trainer, own)


@torch.no_grad()
def _fill(trainer: Trainer, weights: dict[str, Tensor]) -> None:
    for name, parameter in trainer.parameters.items():
        parameter.copy_(weights[name])


def _kept_sources(keep: Path | None) -> dict[str, SourceConfig]:
    """Rehearsed sources, each with the treatment that the built-in model's configuration gives a source of its name."""
    if keep is None:
        return {}
    names = list(find_files([keep], "train"))
    if SOURCE in names:
        raise ConfigError("--keep", str(keep), f"sources that are not named {SOURCE!r}")
    known = TrainConfig.load(CONFIG).sources
    weights = source_weights([keep], names, TrainConfig())
    return {name: replace(known.get(name, weight), weight=weight.weight) for name, weight in weights.items()}


def _kept(keep: Path | None, start: Start) -> HeldBack | None:
    """Held-back replies of the rehearsed sources, where the folder has some."""
    if keep is None or not any(keep.glob("*.dev.*")):
        return None
    lines: list[Line] = []
    for path in find_files([keep], "dev").values():
        dialogues = (item for item in read_items(path) if isinstance(item, Dialogue))
        lines += [Line(0, {}, dialogue) for dialogue in itertools.islice(dialogues, KEPT_DIALOGUES)]
    found = held_back(lines, start.codec, start.spec, 0)
    return found if found.prompts else None


def _nats(network: Network, held: HeldBack | None, seed: int) -> Estimate | None:
    if held is None:
        return None
    return estimate(nats_of(network, held.prompts), [prompt.group for prompt in held.prompts], seed=seed)


def _name(options: FinetuneOptions) -> str:
    return "the built-in model" if options.model is None else str(options.model)

"""The loop that distillation, preferences and rewards share: optimiser steps over a checkpoint's weights, resumable bit for bit on CPU.

A run folder holds `state.pt` (weights, optimiser, average, counters), `log.jsonl` with a line per step, and `export/`, a checkpoint of the
averaged weights. Randomness comes from (seed, step), so the state needs no generator.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dllm import loader
from dllm.errors import CheckpointError, ConfigError, TrainingDivergedError
from dllm.loader import Checkpoint
from dllm.models.family import Network
from dllm.train import optim
from dllm.train.canvases import check_spec
from dllm.train.config import TrainConfig

FORMAT = 1


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """How weights move. The defaults suit a model of a few million parameters; those of billions want a rate of 1e-6 to 1e-5."""

    seed: int = 1
    learning_rate: float = 3e-4
    """Peak, of AdamW."""
    warmup_steps: int = 10
    decay_share: float = 0.5
    """Share of the budget, at its end, over which the rate falls to `final_lr_fraction` of the peak."""
    final_lr_fraction: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    ema_decay: float = 0.97
    """Of the average that is exported; runs are short."""
    compiled: bool = False
    """Compile the layers where there is a C++ compiler; results differ in the last bits."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ConfigError("learning_rate", self.learning_rate, "above 0")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError("ema_decay", self.ema_decay, "in [0, 1)")

    def optimiser(self) -> TrainConfig:
        """The same for `dllm.train.optim`."""
        return TrainConfig(
            optimiser="adamw",
            adamw_lr=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
            decay_share=self.decay_share,
            final_lr_fraction=self.final_lr_fraction,
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """When a run ends: after so many steps, or after so long at work, all sittings together."""

    steps: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.seconds > 0):
            raise ConfigError("budget", (self.steps, self.seconds), "a number of steps or of seconds, one of them")

    def progress(self, steps: int, seconds: float) -> float:
        """Share of the budget used, in [0, 1]."""
        return min(1.0, steps / self.steps if self.steps else seconds / self.seconds)


@dataclass(frozen=True, slots=True)
class StepReport:
    step: int
    loss: float
    gradient_norm: float
    rate: float
    """Share of the peak learning rate."""
    seconds: float
    """Work so far, all sittings."""


class Tuner:
    """A checkpoint's weights in motion.

    Raises:
        ConfigError: If the family fills no masked canvases.
    """

    def __init__(self, out: Path, checkpoint: Checkpoint, config: TuneConfig, budget: Budget) -> None:
        check_spec(checkpoint.spec)
        self.out, self.checkpoint, self.config, self.budget = out, checkpoint, config, budget
        self.network: Network = checkpoint.model
        module = cast(nn.Module, checkpoint.model)
        module.requires_grad_(True)
        self.device = next(module.parameters()).device
        if config.compiled and any(shutil.which(name) for name in ("c++", "g++", "clang++")):
            for layer in cast(nn.ModuleList, module.layers):
                layer.compile(dynamic=True)
        self._parameters = dict(module.named_parameters())
        self._optimisers = optim.build(self._parameters, config.optimiser())
        self.ema = optim.Ema(self._parameters, config.ema_decay)
        self.step, self.seconds = 0, 0.0

    @property
    def progress(self) -> float:
        return self.budget.progress(self.step, self.seconds)

    def generator(self) -> torch.Generator:
        """The randomness of the step to come."""
        return torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)

    def update(self, parts: Iterable[Callable[[], Tensor]]) -> StepReport:
        """One optimiser step. Each part is one forward; their scalars are the step's loss in sum, and each is gone before the next.

        Raises:
            TrainingDivergedError: If the gradient is not a number; the weights stay as they were.
        """
        total = 0.0
        for part in parts:
            loss = part()
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), self.config.clip))
        if not math.isfinite(norm):
            raise TrainingDivergedError(self.step, total, norm)
        factor = optim.learning_rate_factor(self.step, self.progress, self.config.optimiser())
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.ema.update(self._parameters)
        self.step += 1
        return StepReport(self.step, total, norm, factor, self.seconds)

    def run(
        self,
        take_step: Callable[[], dict[str, Any]],
        on_step: Callable[[dict[str, Any]], None] = lambda _: None,
        checkpoint_every_s: float = 300.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take steps until the budget is used or somebody says stop, saving on the way and at the end.

        Args:
            take_step: Calls `update` once and gives the step's line for the log.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        saved = time.monotonic()
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            while self.progress < 1.0 and not should_stop():
                with self.working():
                    line = take_step()
                log.write(json.dumps(line) + "\n")
                on_step(line)
                if time.monotonic() - saved >= checkpoint_every_s:
                    log.flush()
                    self.save()
                    saved = time.monotonic()
        self.save()

    def working(self) -> _Stopwatch:
        """Counts the time inside a `with` block as work."""
        return _Stopwatch(self)

    def save(self) -> None:
        """Write the state, then the export. A crash in between leaves the older state or a whole new one."""
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "format": FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "model": {name: parameter.detach() for name, parameter in self._parameters.items()},
            "ema": self.ema.weights,
            "ema_updates": self.ema.updates,
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
        }
        torch.save(state, self.out / "state.pt.part")
        (self.out / "state.pt.part").replace(self.out / "state.pt")
        buffers = dict(cast(nn.Module, self.network).named_buffers())
        loader.save(self.out / "export", self.checkpoint.spec, {**buffers, **self.ema.weights}, self.checkpoint.codec)

    def restore(self) -> None:
        """Go on from the run folder.

        Raises:
            CheckpointError: If there is no state, or it is of another model.
        """
        path = self.out / "state.pt"
        if not path.is_file():
            raise CheckpointError(f"{path}: nothing to resume")
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=self.device)
        if state.get("format") != FORMAT:
            raise CheckpointError(f"{path}: state format {state.get('format')!r}, expected {FORMAT}")
        shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        if {name: weight.shape for name, weight in state["model"].items()} != shapes:
            raise CheckpointError(f"{path}: the weights are not those of {self.checkpoint.path}")
        with torch.no_grad():
            for name, weight in state["model"].items():
                self._parameters[name].copy_(weight)
        for optimiser, saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.ema.weights, self.ema.updates = state["ema"], state["ema_updates"]
        self.step, self.seconds = state["step"], state["seconds"]


class _Stopwatch:
    def __init__(self, tuner: Tuner) -> None:
        self._tuner, self._began = tuner, 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._tuner.seconds += time.monotonic() - self._began

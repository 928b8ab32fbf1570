"""The training loop: resumable, and the same on every run with a token budget.

A run folder holds `config.json`, `tokenizer.json`, `state.pt` (weights, optimisers, average, counters) and `export/`, a checkpoint made
from the averaged weights. Randomness comes from (seed, step), so the state needs no generator.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dllm import loader
from dllm.errors import ConfigError, TrainingDivergedError
from dllm.models.family import Network
from dllm.models.registry import family_named
from dllm.train import lora, optim
from dllm.train.accounting import Counts, Ledger
from dllm.train.checkpoints import FORMAT, Keeper, check_shapes, read_state, write_state
from dllm.train.config import TrainConfig
from dllm.train.distributed import Division, Place, gradient_norm, share_rows
from dllm.train.feed import Feed
from dllm.train.start import Start
from dllm.train.tasks import Part, Task

EXPORT = "export"
ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class Budget:
    """When a run ends: after this many positions, or after this long at work (all its sittings together)."""

    tokens: int
    seconds: float | None = None

    def progress(self, tokens: int, seconds: float) -> float:
        """Share of the budget used, in [0, 1]."""
        used = tokens / self.tokens if self.seconds is None else seconds / self.seconds
        return min(1.0, used)


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step, of all processes together."""

    step: int
    tokens: int
    """Positions so far, padding left out."""
    loss: float
    """Per what the objective counts: nats per token as a rule."""
    parts: Mapping[str, float]
    """What the loss consists of, or is beside, per the same count."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    """Share of the peak rates."""
    seconds: float
    """Work so far, all sittings."""
    step_s: float = 0.0
    sources: Mapping[str, Counts] = field(default_factory=dict)
    """Positions of this step."""
    shapes: tuple[tuple[int, int], ...] = ()
    """Rows and positions of this process's forwards."""


class LossOf(nn.Module):
    """A network and the loss on it as one module, whose forward needs every weight: FSDP gathers them around it."""

    def __init__(self, network: nn.Module, task: Task, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self.task, self.device = task, device

    def forward(self, part: Part) -> tuple[Tensor, float, dict[str, float]]:
        terms = self.task.loss(cast(Network, self.network), part, self.device)
        return terms.loss, terms.count, terms.parts


class Trainer:
    """One run, from a fresh start or a saved state.

    Args:
        start: Its network is moved to the place's device, divided and changed in place.

    Raises:
        ConfigError: If the rows do not divide by the processes, or adapters find no matrix.
    """

    def __init__(
        self,
        out: Path,
        start: Start,
        task: Task,
        config: TrainConfig,
        budget: Budget,
        place: Place | None = None,
    ) -> None:
        self.out, self.task, self.config, self.budget = out, task, config, budget
        self.place = place or Place()
        self.spec, self.codec, network = start.spec, start.codec, start.network
        forwards = config.rows_per_step // config.rows_per_forward
        if forwards % self.place.data_ranks:
            wanted = f"{self.place.data_ranks} processes to divide the {forwards} forwards of a step"
            raise ConfigError("rows_per_step", config.rows_per_step, wanted)
        family = family_named(self.spec.family)
        self.adapters: lora.Adapters | None = None
        if config.lora_rank:
            self.adapters = lora.adapt(network, family.tensors(self.spec), config)
        self.division: Division | None = None
        if self.place.tensor_ranks > 1:
            if self.adapters is not None:
                raise ConfigError("tensor_parallel", self.place.tensor_ranks, "1 beside lora_rank")
            self.division = Division(network, family, self.spec, self.place)
            network = self.division.network.train().requires_grad_(True)
        self.network = network.to(self.place.device)
        self.is_compiled = config.compiled and has_compiler()
        if self.is_compiled:
            for layer in cast(nn.ModuleList, self.network.layers):
                layer.compile(dynamic=True)
        self._root = LossOf(self.network, task, self.place.device)
        share_rows(self._root, self.network, self.place)
        self.parameters = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self.optimisers = optim.build(self.parameters, config, self.division)
        self.ema = optim.Ema(self.parameters, config.ema_decay)
        self._keeper = Keeper(self.parameters, self.division)
        self._feed = Feed(task, self.place.data_rank, self.place.data_ranks, config.data_workers)
        self.step, self.seconds = 0, 0.0
        self.ledger = Ledger()
        self._earlier_tokens = 0
        """Of a state in format 1, which did not count by source."""

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of all parameters of the whole model."""
        own = {name: p.shape for name, p in self.network.named_parameters()}
        return own if self.division is None else self.division.shapes

    @property
    def tokens(self) -> int:
        """Positions so far, padding left out."""
        return self._earlier_tokens + self.ledger.total.tokens

    @property
    def progress(self) -> float:
        return self.budget.progress(self.tokens, self.seconds)

    def train_step(self) -> StepReport:
        """One optimiser step over `rows_per_step` rows.

        Raises:
            TrainingDivergedError: If the loss or the gradient is not a number; nothing was changed.
        """
        began = time.monotonic()
        parts = self._feed.parts(self.step)
        loss, count, details = self._backward(parts)
        sources = Ledger()
        for each in self.place.gather([dict(part.counts) for part in parts]):
            for counts in each:
                sources.add(counts)
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        # FSDP takes the mean over the processes; sums over all rows are what the count divides.
        for gradient in gradients.values():
            gradient.mul_(self.place.data_ranks / count)
        norm = self._clip(gradients)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDivergedError(self.step + 1, loss / count, norm)
        factor = optim.learning_rate_factor(self.step, self.progress, self.config)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.ema.update(self.parameters)
        self.step += 1
        self.ledger.add(sources.sources)
        step_s = self.place.agree(time.monotonic() - began)
        self.seconds += step_s
        return StepReport(
            self.step,
            self.tokens,
            loss / count,
            {name: value / count for name, value in details.items()},
            norm,
            factor,
            self.seconds,
            step_s,
            sources.sources,
            tuple(part.shape for part in parts),
        )

    def _backward(self, parts: list[Part]) -> tuple[float, float, dict[str, float]]:
        """Add up the gradients of this process's parts; loss, count and details are those of all processes."""
        loss = torch.zeros((), device=self.place.device)
        count = 0.0
        details: dict[str, float] = {}
        for part in parts:
            with self._autocast():
                part_loss, part_count, part_details = self._root(part)
            part_loss.backward()
            loss += part_loss.detach()
            count += part_count
            for name, value in part_details.items():
                details[name] = details.get(name, 0.0) + value
        total = {"": 0.0}
        for each in self.place.gather((float(loss), count, details)):
            for name, value in ({"loss": each[0], "": each[1]} | {f"part {k}": v for k, v in each[2].items()}).items():
                total[name] = total.get(name, 0.0) + value
        found = {name.removeprefix("part "): value for name, value in total.items() if name.startswith("part ")}
        return total["loss"], max(total[""], 1e-9), found

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.place.device.type, torch.bfloat16)

    def _clip(self, gradients: Mapping[str, Tensor]) -> float:
        """Shorten the gradient to `clip`; its norm before."""
        if self.place.mesh is None:
            return float(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip))
        divided: frozenset[str] = frozenset()
        if self.division is not None:
            self.division.sum_partial(gradients)
            divided = self.division.divided
        norm = gradient_norm(gradients, self.place, divided)
        scale = min(1.0, self.config.clip / (norm + 1e-6))
        for gradient in gradients.values():
            gradient.mul_(scale)
        return norm

    def run(
        self,
        on_step: Callable[[StepReport], None] = lambda _: None,
        on_checkpoint: Callable[[], None] = lambda: None,
        checkpoint_every_s: float = 300.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train until the budget is used or the run is told to stop, saving on the way and at the end.

        `on_step` and `on_checkpoint` are called on the first process only.
        """
        saved = time.monotonic()
        try:
            while self.progress < 1.0 and not self.place.agree(should_stop()):
                report = self.train_step()
                if self.place.is_first:
                    on_step(report)
                if self.place.agree(time.monotonic() - saved >= checkpoint_every_s):
                    self._save_and_tell(on_checkpoint)
                    saved = time.monotonic()
            self._save_and_tell(on_checkpoint)
        finally:
            self._feed.close()

    def _save_and_tell(self, on_checkpoint: Callable[[], None]) -> None:
        self.save()
        if self.place.is_first:
            on_checkpoint()

    def save(self) -> None:
        """Write the state and the export. A crash in between leaves the older state. All processes must ask."""
        state = {
            "format": FORMAT,
            "step": self.step,
            "tokens": self.tokens,
            "earlier_tokens": self._earlier_tokens,
            "sources": self.ledger.to_json(),
            "seconds": self.seconds,
            "model": self._keeper.whole(self.parameters),
            "ema": self._keeper.whole(self.ema.weights),
            "ema_updates": self.ema.updates,
            "optimisers": [self._keeper.optimiser_state(optimiser) for optimiser in self.optimisers],
        }
        if self.place.is_first:
            self.out.mkdir(parents=True, exist_ok=True)
            write_state(self.out, state)
            (self.out / "config.json").write_text(json.dumps(self.config.to_json(), indent=2) + "\n", "utf-8")
            self.codec.save(self.out)
        self.export(self.out / EXPORT)

    def restore(self) -> None:
        """Continue from the run folder.

        Raises:
            CheckpointError: If there is no state or it is of another shape.
        """
        state = read_state(self.out)
        shapes = self.shapes
        check_shapes(self.out, state["model"], {name: shapes[name] for name in self.parameters})
        with torch.no_grad():
            for name, values in self._keeper.own(state["model"]).items():
                self.parameters[name].copy_(values)
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            self._keeper.load_optimiser(optimiser, saved)
        self.ema.weights, self.ema.updates = self._keeper.own(state["ema"]), state["ema_updates"]
        self.step, self.seconds = state["step"], state["seconds"]
        self.ledger = Ledger.from_json(state.get("sources", {}))
        self._earlier_tokens = state.get("earlier_tokens", state["tokens"] if state["format"] == 1 else 0)

    def export(self, path: Path) -> None:
        """Write the averaged weights as a checkpoint folder, adapters merged; adapters alone go beside it. All processes must ask."""
        averaged = self._keeper.whole(self.ema.weights)
        # Frozen weights may be divided as well.
        kept = {**dict(self.network.named_buffers()), **dict(self.network.named_parameters())}
        frozen = {name: _whole_on_cpu(tensor) for name, tensor in kept.items() if name not in averaged}
        if not self.place.is_first:
            return
        weights = frozen | averaged
        if self.adapters is not None:
            self.adapters.save(self.out / ADAPTER, averaged, self.config.init)
            weights = self.adapters.merged(weights)
        loader.save(path, self.spec, weights, self.codec)

    def close(self) -> None:
        self._feed.close()


def _whole_on_cpu(tensor: Tensor) -> Tensor:
    from dllm.train.distributed import whole

    return whole(tensor.detach()).cpu()


def has_compiler() -> bool:
    """Whether torch.compile has the C++ compiler it needs for CPU code."""
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))

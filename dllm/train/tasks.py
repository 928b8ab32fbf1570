"""What a run trains on and what it loses there: the built-in family's dialogue rows, or packed rows and any objective.

A step consists of parts, one forward each. The loss of a step is the sum over its parts divided by the sum of their counts, so that it
does not depend on how the step is cut into parts, nor on how many processes share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from dllm.models.family import Network
from dllm.spec import ModelSpec
from dllm.train import objective as dialogue
from dllm.train.accounting import Counts
from dllm.train.config import TrainConfig
from dllm.train.corpus import Corpus
from dllm.train.data import Mixture, Row
from dllm.train.objectives.base import Objective, Packed, Terms
from dllm.train.packing import PackedRow, collate, generator_of, pack

T = TypeVar("T")


class Part(Protocol):
    """The rows of one forward."""

    @property
    def counts(self) -> Mapping[str, Counts]:
        """By source."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and positions of the tensors."""
        ...


class Task(Protocol):
    """Makes the parts of any step, on the CPU, and computes their losses. Can be sent to another process."""

    @property
    def files(self) -> Mapping[str, Path]:
        """Data files by source."""
        ...

    def parts(self, step: int, rank: int = 0, ranks: int = 1) -> list[Part]:
        """What process `rank` of `ranks` does in a step; the same at every call."""
        ...

    def loss(self, network: Network, part: Part, device: torch.device) -> Terms: ...


def on_device(batch: T, device: torch.device) -> T:
    """A dataclass of tensors with the tensors on the device; from pinned memory without waiting."""
    if device.type == "cpu":
        return batch
    moved = {}
    for entry in fields(batch):  # type: ignore[arg-type]
        value = getattr(batch, entry.name)
        if isinstance(value, Tensor):
            moved[entry.name] = (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
    return replace(batch, **moved)  # type: ignore[type-var]


# --- the built-in family's rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DialoguePart:
    batch: dialogue.Batch
    counts: Mapping[str, Counts]
    causal_scale: float
    """Answers of the step for each of its next-token targets."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.batch.ids.shape[0], self.batch.ids.shape[1]


class DialogueTask:
    """Canvases beside clean text (`dllm.train.objective`). Every process lays out the whole step: times are spread over all of its answers."""

    def __init__(self, mixture: Mixture, spec: ModelSpec, config: TrainConfig) -> None:
        self.mixture, self.spec, self.config = mixture, spec, config

    @property
    def files(self) -> Mapping[str, Path]:
        return self.mixture.files

    def parts(self, step: int, rank: int = 0, ranks: int = 1) -> list[Part]:
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        first = step * config.rows_per_step
        rows = sorted((self.mixture.row(first + index) for index in range(config.rows_per_step)), key=_row_length)
        times = dialogue.antithetic_times(sum(len(row.answers) for row in rows), generator)
        batches = []
        for start in range(0, len(rows), config.rows_per_forward):
            some = rows[start : start + config.rows_per_forward]
            count = sum(len(row.answers) for row in some)
            batches.append((some, dialogue.collate(some, times[:count], self.spec, config, generator)))
            times = times[count:]
        answers = sum(batch.answers for _, batch in batches)
        causal = max(1, sum(len(batch.causal_at) for _, batch in batches))
        own = batches[rank::ranks]
        return [DialoguePart(batch, _dialogue_counts(some, batch), answers / causal) for some, batch in own]

    def loss(self, network: Network, part: Part, device: torch.device) -> Terms:
        assert isinstance(part, DialoguePart)
        losses = dialogue.losses(network, on_device(part.batch, device))
        causal = losses.causal * part.causal_scale
        loss = losses.diffusion + self.config.causal_weight * causal
        parts = {"diffusion": float(losses.diffusion.detach()), "causal": float(causal.detach())}
        return Terms(loss, losses.answers, parts)


def _row_length(row: Row) -> int:
    return len(row.clean) + sum(len(answer.tokens) for answer in row.answers)


def _dialogue_counts(rows: Sequence[Row], batch: dialogue.Batch) -> dict[str, Counts]:
    length = batch.ids.shape[1]
    clean, noisy = (batch.group == 0).sum(1).tolist(), (batch.group > 0).sum(1).tolist()
    targets = torch.cat((batch.canvas_at, batch.causal_at)) // length
    learned = torch.bincount(targets, minlength=len(rows)).tolist()
    counts: dict[str, Counts] = {}
    for at, row in enumerate(rows):
        own = Counts(clean[at], noisy[at], length - clean[at] - noisy[at], learned[at])
        counts[row.source] = counts.get(row.source, Counts()) + own
    return counts


# --- packed rows ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PackedPart:
    packed: Packed
    counts: Mapping[str, Counts]
    seed: int
    """Of the objective's draws."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.ids.shape[0], self.packed.ids.shape[1]


class PackedTask:
    """Documents packed into rows, and an objective. Each part has a generator of its own, so every process makes only its own parts."""

    def __init__(self, corpus: Corpus, objective: Objective, config: TrainConfig) -> None:
        self.corpus, self.objective, self.config = corpus, objective, config

    @property
    def files(self) -> Mapping[str, Path]:
        return self.corpus.files

    def parts(self, step: int, rank: int = 0, ranks: int = 1) -> list[Part]:
        config = self.config
        made: list[Part] = []
        for number in range(rank, config.rows_per_step // config.rows_per_forward, ranks):
            rng = generator_of(config.seed, step, number)
            rows = pack(partial(self.corpus.draw, rng), config.rows_per_forward, config.row_tokens)
            special = self.corpus.spec.special
            packed = collate(rows, config.row_tokens, special.end if special.pad is None else special.pad)
            counts = _packed_counts(rows, packed, config.objective == "causal")
            made.append(PackedPart(packed, counts, rng.getrandbits(62)))
        return made

    def loss(self, network: Network, part: Part, device: torch.device) -> Terms:
        assert isinstance(part, PackedPart)
        return self.objective(network, on_device(part.packed, device), torch.Generator().manual_seed(part.seed))


def _packed_counts(rows: Sequence[PackedRow], packed: Packed, is_causal: bool) -> dict[str, Counts]:
    counts: dict[str, Counts] = {}
    for row in rows:
        for document in row.documents:
            learned, size = sum(document.learned), len(document.ids)
            noisy = 0 if is_causal else learned
            own = Counts(size - noisy, noisy, 0, learned)
            counts[document.source] = counts.get(document.source, Counts()) + own
    padding = packed.ids.numel() - sum(row.tokens for row in rows)
    counts[""] = counts.get("", Counts()) + Counts(padding=padding)
    return counts


def build_objective(name: str, spec: ModelSpec, options: Mapping[str, Any]) -> Objective:
    """The objective of a run, its options from the configuration's table.

    Raises:
        ConfigError: If an option is unknown, or the model cannot be trained so.
    """
    from dllm.train.objectives import OBJECTIVES

    return OBJECTIVES[name](spec, options)

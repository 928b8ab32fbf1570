"""What an objective takes and gives.

Dimensions: B rows, T positions of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dllm.models.family import Network


@dataclass(frozen=True, slots=True)
class Packed:
    """Clean sequences, several in a row: tokens of one document see no other document."""

    ids: Tensor
    """[B, T] int64."""
    document: Tensor
    """[B, T] int64: number of the document within its row, -1 for padding. A document's positions are contiguous."""
    positions: Tensor
    """[B, T] int64, from 0 in each document."""
    learned: Tensor
    """[B, T] bool: tokens that are corrupted and counted. The others, a prompt say, are only read."""

    def same_document(self) -> Tensor:
        """[B, T, T] bool: whether query and key belong together. Padding sees itself, so that no row of a mask is empty."""
        return self.document.unsqueeze(2) == self.document.unsqueeze(1)


@dataclass(frozen=True, slots=True)
class Terms:
    """A loss as a sum, so that the parts of an optimiser step can be added and divided once."""

    loss: Tensor
    """Scalar float32, differentiable: nats, summed."""
    count: float
    """What the sum is divided by, tokens as a rule."""
    parts: dict[str, float] = field(default_factory=dict)
    """Further sums for the log, over the same count."""


class Objective(Protocol):
    """Corrupts a batch and says what the network loses on it. All randomness comes from `generator` (on the CPU)."""

    def __call__(self, network: Network, batch: Packed, generator: torch.Generator) -> Terms: ...

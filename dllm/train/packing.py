"""Documents to rows of one length. A step's rows depend on (seed, step) alone, so that nothing but a counter need be kept.

Dimensions: B rows, T positions of a row.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.train.corpus import Document
from dllm.train.objectives.base import Packed


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Documents side by side; the rest of the row is padding."""

    documents: tuple[Document, ...]

    @property
    def tokens(self) -> int:
        return sum(len(document.ids) for document in self.documents)


def generator_of(seed: int, step: int, part: int = 0) -> random.Random:
    """A generator that depends on nothing else."""
    digest = hashlib.sha256(f"{seed}:{step}:{part}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "little"))


def pack(draw: Callable[[], Document], rows: int, length: int, misses: int = 3) -> list[PackedRow]:
    """First fit: each document goes into the first row with room for it.

    Documents that fit nowhere are dropped, which favours short ones a little; the `misses`-th closes the rows. A row may stay empty
    only if no document fits a row.
    """
    filled: list[list[Document]] = [[] for _ in range(rows)]
    room = [length] * rows
    while misses:
        document = draw()
        place = next((at for at, left in enumerate(room) if left >= len(document.ids)), None)
        if place is None:
            misses -= 1
            continue
        filled[place].append(document)
        room[place] -= len(document.ids)
    return [PackedRow(tuple(documents)) for documents in filled]


def collate(rows: Sequence[PackedRow], length: int, pad: int) -> Packed:
    """Rows as tensors, cut to the longest of them in multiples of 8."""
    longest = max((row.tokens for row in rows), default=0)
    length = min(length, max(8, -(-longest // 8) * 8))

    def column(value: Callable[[int, int, Document], Sequence[int]], fill: int) -> Tensor:
        laid = []
        for row in rows:
            flat = [
                entry for at, document in enumerate(row.documents) for entry in value(at, len(document.ids), document)
            ]
            laid.append(flat + [fill] * (length - len(flat)))
        return torch.tensor(laid)

    return Packed(
        ids=column(lambda at, size, document: document.ids, pad),
        document=column(lambda at, size, document: [at] * size, -1),
        positions=column(lambda at, size, document: range(size), 0),
        learned=column(lambda at, size, document: document.learned, 0).bool(),
    )

"""Who sees whom, as one number per query: every kind of attention here looks at a beginning of the keys.

Positions are absolute, counted from 0 with the prompt included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import torch
from torch import Tensor

from dllm.spec import MaskKind, ModelSpec


def visible_counts(
    kind: MaskKind, block: int, start: int, length: int, *, total: int, live: int | None = None
) -> list[int]:
    """How many keys, from the first on, each of the queries at `start` to `start + length - 1` sees.

    Args:
        block: Positions of a block; its grid starts at 0. Only `block_causal` looks at it.
        total: Keys there are; nobody sees more.
        live: First position of the canvas that is being denoised, None when all is finished text. Only `causal_prefix_bidir_block` and
            `encoder_decoder` look at it: the canvas sees everything, finished text is causal.

    Raises:
        ValueError: If the queries reach beyond the keys: each must at least see itself.
    """
    if start < 0 or length < 0 or start + length > total:
        raise ValueError(f"queries {start} to {start + length - 1} need keys of their own, there are {total}")
    queries = range(start, start + length)
    match kind:
        case "full":
            return [total] * length
        case "causal":
            return [query + 1 for query in queries]
        case "block_causal":
            return [min((query // block + 1) * block, total) for query in queries]
        case "causal_prefix_bidir_block" | "encoder_decoder":
            return [query + 1 if live is None or query < live else total for query in queries]
        case _:
            assert_never(kind)


def visible(spec: ModelSpec, start: int, length: int, *, total: int, live: int | None = None) -> list[int]:
    """`visible_counts` of a checkpoint's own mask."""
    return visible_counts(spec.mask_kind, spec.block, start, length, total=total, live=live)


def prefix_mask(counts: Sequence[int], total: int, device: torch.device | str = "cpu") -> Tensor:
    """The mask that a network takes, [1, 1, T, total] bool; [1, 1, 1, total] when all queries see the same."""
    rows = torch.tensor(list(counts), device=device)
    if counts and min(counts) == max(counts):
        rows = rows[:1]
    return (torch.arange(total, device=device) < rows.unsqueeze(1)).view(1, 1, -1, total)

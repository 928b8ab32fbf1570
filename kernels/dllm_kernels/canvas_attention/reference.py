"""The answer, in plain PyTorch and at least float32. B drafts, T tokens, S slots, H query heads, G key/value heads, D head size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dllm_kernels.canvas_attention import Cache, Canvas


def canvas_attention(
    q: Tensor, cache: Cache, visible: Tensor, canvas: Canvas | None, scale: float, longest: int
) -> Tensor:
    rows, heads, length, size = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    new = (None, None) if canvas is None else (canvas.keys, canvas.values)
    keys = _slots(cache.keys, cache.key_scale, cache.table, longest, new[0], canvas, wide)
    values = _slots(cache.values, cache.value_scale, cache.table, longest, new[1], canvas, wide)
    groups = keys.shape[1]
    grouped = q.to(wide).reshape(rows, groups, heads // groups * length, size)
    scores = grouped @ keys.transpose(2, 3) * scale
    seen = torch.arange(longest, device=q.device) < visible.unsqueeze(2)
    seen = seen.repeat(1, heads // groups, 1).unsqueeze(1)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    # A query that sees nothing has no softmax; what nobody sees may be NaN.
    weights = weights.masked_fill(~seen, 0.0)
    return (weights @ values).to(q.dtype).view(rows, heads, length, size)


def _slots(
    stored: Tensor,
    scale: Tensor | None,
    table: Tensor | None,
    longest: int,
    new: Tensor | None,
    canvas: Canvas | None,
    dtype: torch.dtype,
) -> Tensor:
    """[B, G, longest, D]: pages put together, and the canvas behind its prefix."""
    if scale is None:
        found = _found(stored, table, longest).to(dtype)
    else:
        # Eight-bit floats are gathered as the bytes they are.
        found = _found(stored.view(torch.uint8), table, longest).view(stored.dtype).to(dtype)
        found = found * _found(scale.expand(stored.shape[:3]).unsqueeze(3), table, longest).to(dtype)
    if new is None or canvas is None:
        return found.nan_to_num(0.0)
    inside = torch.arange(longest, device=stored.device) - canvas.prefix.unsqueeze(1)
    place = inside.clamp(0, new.shape[2] - 1).long()[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
    mine = new.gather(2, place).to(dtype)
    return torch.where((inside >= 0)[:, None, :, None], mine, found).nan_to_num(0.0)


def _found(stored: Tensor, table: Tensor | None, longest: int) -> Tensor:
    """[B, G, longest, D] of the cache alone; behind its end the last slot."""
    if table is not None:
        rows, count = table.shape
        _, groups, page, size = stored.shape
        pages = stored[table.clamp(0, len(stored) - 1).flatten()].view(rows, count, groups, page, size)
        stored = pages.transpose(1, 2).reshape(rows, groups, count * page, size)
    at = torch.arange(longest, device=stored.device)
    return stored[:, :, at.clamp_max(max(stored.shape[2] - 1, 0))]

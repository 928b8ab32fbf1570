"""Attention of the few queries of a canvas over a long cache and the canvas itself.

Dimensions: B drafts, T canvas tokens, S slots, P pages, M pages of a draft, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels.checks import check_floating, check_tensor
from dllm_kernels.choose import choose


class Cache(NamedTuple):
    """Stored keys and values; numbers of a head contiguous, other strides free and the same in both.

    Without a table a draft's slots are a row of [B, G, S, D]. With one they are in pages, [P, G, page size, D]: slot s of draft b is slot
    s % page size of page `table[b, s // page size]`.
    """

    keys: Tensor
    values: Tensor
    table: Tensor | None = None
    """[B, M], int32, contiguous. Entries behind what is visible may be anything."""

    @property
    def slots(self) -> int:
        """Slots a draft may have."""
        return self.keys.shape[2] * (1 if self.table is None else self.table.shape[1])


class Canvas(NamedTuple):
    """New keys and values that stand in no cache yet: those of slots [prefix, prefix + T) of each draft."""

    keys: Tensor
    """[B, G, T, D], contiguous."""
    values: Tensor
    prefix: Tensor
    """[B], int32: slots that are read from the cache."""


def canvas_attention(
    q: Tensor,
    cache: Cache,
    visible: Tensor,
    canvas: Canvas | None = None,
    *,
    scale: float | None = None,
    longest: int | None = None,
) -> Tensor:
    """Softmax attention in which each query sees a beginning of its draft's slots.

    That one number per query says full, causal and block-causal attention, a canvas behind text, and lengths that differ.

    Args:
        q: [B, H, T, D], contiguous, float32, bfloat16 or float16; H is a multiple of G.
        visible: [B, T], int32: how many slots, from the first, each query sees. A query that sees none gives zeros.
        scale: Of the scores; None is 1 / sqrt(D).
        longest: No query sees more; None is all the slots there are. The closer, the better the work is divided.

    Returns:
        [B, H, T, D], contiguous, in the dtype of q.

    Raises:
        ValueError: If a shape, dtype or device is not as above.

    Source: online softmax with a split over keys, as in FlashAttention (arXiv:2205.14135) and Flash-Decoding.
    """
    _check(q, cache, visible, canvas)
    size = q.shape[3]
    most = cache.slots + (0 if canvas is None else q.shape[2])
    out: Tensor = choose("canvas_attention", q, cache.keys).canvas_attention(
        q,
        cache,
        visible,
        canvas,
        size**-0.5 if scale is None else scale,
        most if longest is None else min(longest, most),
    )
    return out


def _check(q: Tensor, cache: Cache, visible: Tensor, canvas: Canvas | None) -> None:
    check_floating("q", q)
    if q.dim() != 4 or q.numel() == 0 or not q.is_contiguous():
        raise ValueError(f"q: expected contiguous [B, H, T, D], none of them 0, got {list(q.shape)}")
    rows, heads, length, size = q.shape
    keys, values, table = cache
    if keys.dim() != 4 or keys.shape[3] != size or heads % max(keys.shape[1], 1) or keys.shape[1] == 0:
        raise ValueError(f"keys: expected [B or P, G, S, {size}] with G a divisor of {heads}, got {list(keys.shape)}")
    if table is None and len(keys) != rows:
        raise ValueError(f"keys: expected {rows} rows, one for each draft where there is no table, got {len(keys)}")
    for name, tensor in (("keys", keys), ("values", values)):
        if tensor.dtype != q.dtype or tensor.device != q.device or tensor.stride(3) != 1:
            raise ValueError(
                f"{name}: expected {q.dtype} on {q.device}, heads contiguous, got {tensor.dtype} on {tensor.device}"
            )
    strides = zip(keys.shape, keys.stride(), values.stride(), strict=True)
    if values.shape != keys.shape or any(one != other for count, one, other in strides if count > 1):
        raise ValueError("values: expected the shape and strides of keys")
    if table is not None:
        check_tensor("table", table, (rows, table.shape[-1]), torch.int32, q.device)
    check_tensor("visible", visible, (rows, length), torch.int32, q.device)
    if canvas is not None:
        shape = (rows, keys.shape[1], length, size)
        check_tensor("canvas keys", canvas.keys, shape, q.dtype, q.device)
        check_tensor("canvas values", canvas.values, shape, q.dtype, q.device)
        check_tensor("prefix", canvas.prefix, (rows,), torch.int32, q.device)

"""Attention of the few queries of a canvas over a long cache and the canvas itself.

Dimensions: B drafts, T canvas tokens, S slots, P pages, M pages of a draft, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels.checks import check_floating, check_tensor
from dllm_kernels.choose import choose
from dllm_kernels.quantise_rows import quantise_rows


class Cache(NamedTuple):
    """Stored keys and values; numbers of a head contiguous, other strides free and the same in both.

    Without a table a draft's slots are a row of [B, G, S, D]. With one they are in pages, [P, G, page size, D]: slot s of draft b is slot
    s % page size of page `table[b, s // page size]`.
    """

    keys: Tensor
    values: Tensor
    table: Tensor | None = None
    """[B, M], int32, contiguous. Entries behind what is visible may be anything."""
    key_scale: Tensor | None = None
    """[B or P, G, S or 1], float32, contiguous, of keys in float8_e4m3fn: what a slot's numbers are multiplied by, or all of a row's or page's."""
    value_scale: Tensor | None = None

    @property
    def slots(self) -> int:
        """Slots a draft may have."""
        return self.keys.shape[2] * (1 if self.table is None else self.table.shape[1])


def cache_in_eight_bits(keys: Tensor, values: Tensor, table: Tensor | None = None, *, by_slot: bool = True) -> Cache:
    """Store keys and values [B or P, G, S, D] in e4m3, with a scale for each head of a slot, or of a whole row or page.

    Half the bytes of 16 bits; scales add 4 in D by slot. Only slots can be written one after another: a page's scale must reach to its largest.

    Errors: a stored number x at most |x| / 16, or scale / 1024 where that is more, its scale being the largest magnitude over 448. With
    d the most by which a query's scores move for it, and m the mean distance of the values from the output, by the softmax's weights, the
    output moves by at most the largest error of a value plus (exp(2 d) - 1) m.
    """
    parts = [quantise_rows(part if by_slot else part.flatten(2), torch.float8_e4m3fn) for part in (keys, values)]
    stored = [part.values.view(keys.shape) for part in parts]
    scales = [part.scale.squeeze(-1) if by_slot else part.scale for part in parts]
    return Cache(stored[0], stored[1], table, scales[0], scales[1])


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
        cache: Of the dtype of q; or float8_e4m3fn with scales, which become numbers of the dtype of q as they are read.
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
    keys, values, table, key_scale, value_scale = cache
    if (key_scale is None) != (value_scale is None):
        raise ValueError("value_scale: expected scales for keys and values or for neither")
    stored_as = q.dtype if key_scale is None else torch.float8_e4m3fn
    if keys.dim() != 4 or keys.shape[3] != size or heads % max(keys.shape[1], 1) or keys.shape[1] == 0:
        raise ValueError(f"keys: expected [B or P, G, S, {size}] with G a divisor of {heads}, got {list(keys.shape)}")
    if table is None and len(keys) != rows:
        raise ValueError(f"keys: expected {rows} rows, one for each draft where there is no table, got {len(keys)}")
    for name, tensor in (("keys", keys), ("values", values)):
        if tensor.dtype != stored_as or tensor.device != q.device or tensor.stride(3) != 1:
            raise ValueError(
                f"{name}: expected {stored_as} on {q.device}, heads contiguous, got {tensor.dtype} on {tensor.device}"
            )
    strides = zip(keys.shape, keys.stride(), values.stride(), strict=True)
    if values.shape != keys.shape or any(one != other for count, one, other in strides if count > 1):
        raise ValueError("values: expected the shape and strides of keys")
    for name, scale in (("key_scale", key_scale), ("value_scale", value_scale)):
        if scale is not None and key_scale is not None:
            slots = keys.shape[2] if key_scale.dim() == 3 and key_scale.shape[2] == keys.shape[2] else 1
            check_tensor(name, scale, (*keys.shape[:2], slots), torch.float32, q.device)
    if table is not None:
        check_tensor("table", table, (rows, table.shape[-1]), torch.int32, q.device)
    check_tensor("visible", visible, (rows, length), torch.int32, q.device)
    if canvas is not None:
        shape = (rows, keys.shape[1], length, size)
        check_tensor("canvas keys", canvas.keys, shape, q.dtype, q.device)
        check_tensor("canvas values", canvas.values, shape, q.dtype, q.device)
        check_tensor("prefix", canvas.prefix, (rows,), torch.int32, q.device)

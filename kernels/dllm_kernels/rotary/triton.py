"""The fast way: one launch, each head read once. B rows, T tokens, S slots, H query heads, G key/value heads, D head size, R rotated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels.rotary import Target

if TYPE_CHECKING:
    from dllm_kernels.rotary import HeadNorms

BLOCK_HEADS = 8
"""Heads a program handles: with one each, launch and addresses would cost more than the 256 bytes of a head."""


@triton.jit(do_not_specialize=["first", "T"])
def _rotate_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    q_weight_ptr,
    k_weight_ptr,
    q_scale_ptr,
    q_ptr,
    keys_ptr,
    values_ptr,
    key_scale_ptr,
    value_scale_ptr,
    columns_ptr,
    first,
    eps,
    T,
    cos_row,  # elements from one row's cosines to the next; 0 where rows share them
    scale_row,
    store_row,
    store_head,
    store_slot,
    store_scale_row,
    store_scale_head,
    store_scale_slot,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_COLUMNS: tl.constexpr,
    IN_EIGHT_BITS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # 64-bit addresses: a workspace of 64 rows of 32,768 slots passes 2^31 elements.
    token = tl.program_id(0).to(tl.int64)
    row = token // T
    at = token % T
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    dim = tl.arange(0, BLOCK_D)
    is_query = head < H
    is_turned_head = head < H + G
    in_heads = head < H + 2 * G
    inside = in_heads[:, None] & (dim < D)[None, :]

    source = qkv_ptr + token * (H + 2 * G) * D + head[:, None] * D
    # The other of a pair: d + R / 2 for the first half of the rotated dimensions, d - R / 2 for the second.
    other = tl.where(dim < R // 2, dim + R // 2, dim - R // 2)
    other = tl.where(dim < R, other, dim)
    # [BLOCK_HEADS, BLOCK_D] each; the second comes from the cache.
    x = tl.load(source + dim[None, :], mask=inside, other=0.0)
    swapped = tl.load(source + other[None, :], mask=inside, other=0.0)
    value = x

    if HAS_NORMS:
        wide = x.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / D + eps)[:, None]
        use_q = (is_query & in_heads)[:, None] & (dim < D)[None, :]
        use_k = (is_turned_head & (head >= H))[:, None] & (dim < D)[None, :]
        # [BLOCK_HEADS, BLOCK_D] each
        weight = tl.load(q_weight_ptr + dim[None, :], mask=use_q, other=0.0).to(tl.float32)
        weight += tl.load(k_weight_ptr + dim[None, :], mask=use_k, other=0.0).to(tl.float32)
        weight_swapped = tl.load(q_weight_ptr + other[None, :], mask=use_q, other=0.0).to(tl.float32)
        weight_swapped += tl.load(k_weight_ptr + other[None, :], mask=use_k, other=0.0).to(tl.float32)
        # Rounded after the division and after the weight, as the norm of its own is.
        x = ((wide * scale).to(value.dtype).to(tl.float32) * weight).to(value.dtype)
        swapped = ((swapped.to(tl.float32) * scale).to(value.dtype).to(tl.float32) * weight_swapped).to(value.dtype)

    in_turn = dim < R
    place = row * cos_row + at * R + dim
    # [BLOCK_D]
    cos = tl.load(cos_ptr + place, mask=in_turn, other=1.0)
    # [BLOCK_D]
    sin = tl.load(sin_ptr + place, mask=in_turn, other=0.0)
    turned = (x.to(tl.float32) * cos[None, :] + swapped.to(tl.float32) * sin[None, :]).to(value.dtype)

    query = turned
    if HAS_SCALE:
        factor = tl.load(q_scale_ptr + row * scale_row + at).to(value.dtype).to(tl.float32)
        query = (turned.to(tl.float32) * factor).to(value.dtype)
    q_place = q_ptr + ((row * H + head[:, None]) * T + at) * D + dim[None, :]
    tl.store(q_place, query, mask=is_query[:, None] & inside)

    if HAS_COLUMNS:
        slot = tl.load(columns_ptr + token)
    else:
        slot = first + at
    key_head = (head - H)[:, None].to(tl.int64)
    value_head = (head - H - G)[:, None].to(tl.int64)
    start = row * store_row + slot * store_slot
    is_key = (is_turned_head & (head >= H))[:, None]
    is_value = (in_heads & (head >= H + G))[:, None]
    if IN_EIGHT_BITS:
        # As quantise_rows does it, for each head of this token: a program's heads are queries, keys or values, which only their place tells.
        wide = tl.where(is_key, turned, value).to(tl.float32)
        size = tl.max(tl.where(inside, tl.abs(wide), 0.0), axis=1)
        scale = tl.maximum(tl.math.div_rn(size, tl.full((BLOCK_HEADS,), 448.0, tl.float32)), 1.1754943508222875e-38)
        scaled = tl.math.div_rn(wide, tl.zeros((BLOCK_HEADS, BLOCK_D), tl.float32) + scale[:, None])
        scaled = tl.minimum(tl.maximum(scaled, -448.0), 448.0)
        turned = scaled.to(keys_ptr.dtype.element_ty)
        value = turned
        scale_start = row * store_scale_row + slot * store_scale_slot
        key_scale_head, value_scale_head = head - H, head - H - G
        tl.store(
            key_scale_ptr + scale_start + key_scale_head.to(tl.int64) * store_scale_head,
            scale,
            mask=is_turned_head & (head >= H),
        )
        tl.store(
            value_scale_ptr + scale_start + value_scale_head.to(tl.int64) * store_scale_head,
            scale,
            mask=in_heads & (head >= H + G),
        )
    tl.store(keys_ptr + start + key_head * store_head + dim[None, :], turned, mask=is_key & inside)
    tl.store(values_ptr + start + value_head * store_head + dim[None, :], value, mask=is_value & inside)


def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    signed_sin: Tensor,
    heads: tuple[int, int],
    norms: HeadNorms | None,
    q_scale: Tensor | None,
    target: Target | None,
) -> tuple[Tensor, Tensor, Tensor]:
    queries, groups = heads
    rows, length, _, size = qkv.shape
    q = torch.empty(rows, queries, length, size, dtype=qkv.dtype, device=qkv.device)
    if target is None:
        keys = torch.empty(rows, groups, length, size, dtype=qkv.dtype, device=qkv.device)
        target = Target(keys, torch.empty_like(keys))
    keys, values, first, columns, key_scale, value_scale = target
    if rows * length:
        _rotate_kernel[(rows * length, triton.cdiv(queries + 2 * groups, BLOCK_HEADS))](
            qkv,
            cos,
            signed_sin,
            None if norms is None else norms.q_weight,
            None if norms is None else norms.k_weight,
            q_scale,
            q,
            keys,
            values,
            key_scale,
            value_scale,
            columns,
            first,
            0.0 if norms is None else norms.eps,
            length,
            0 if len(cos) == 1 else cos.stride(0),
            0 if q_scale is None or len(q_scale) == 1 else q_scale.stride(0),
            keys.stride(0),
            keys.stride(1),
            keys.stride(2),
            *((0, 0, 0) if key_scale is None else key_scale.stride()),
            H=queries,
            G=groups,
            D=size,
            R=cos.shape[-1],
            HAS_NORMS=norms is not None,
            HAS_SCALE=q_scale is not None,
            HAS_COLUMNS=columns is not None,
            IN_EIGHT_BITS=key_scale is not None,
            BLOCK_HEADS=BLOCK_HEADS,
            BLOCK_D=triton.next_power_of_2(size),
            num_warps=4,
        )
    return q, keys, values

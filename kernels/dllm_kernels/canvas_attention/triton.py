"""The fast way: programs share out the keys, and a second launch merges their parts. Queries that share a key/value head are one tile.

B drafts, T canvas tokens, S slots, M pages of a draft, H query heads, G key/value heads, D head size, X parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import tuning
from dllm_kernels.choose import processors

if TYPE_CHECKING:
    from dllm_kernels.canvas_attention import Cache, Canvas

MAX_BLOCK_M = 64
BLOCK_N = 64
LEAST_SLOTS = 128
"""Slots a part should at least have: below it, merging costs more than what is shared out."""


class Tiles(NamedTuple):
    """How queries and keys are cut up."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def reasoned(queries: int, size: int, q_bytes: int) -> Tiles:
    """queries: Those that share a key/value head; size: of a head."""
    block_d = max(triton.next_power_of_2(size), 16)
    is_wide = block_d > 128 or q_bytes == 4
    # What fits into an H200's shared memory: 64 queries of 256 float32 want 256 KB.
    most = 16 if block_d > 256 else MAX_BLOCK_M // 2 if block_d > 128 and q_bytes == 4 else MAX_BLOCK_M
    return Tiles(
        min(max(triton.next_power_of_2(queries), 16), most),
        BLOCK_N // 2 if is_wide else BLOCK_N,
        8 if block_d > 128 else 4,
        2 if is_wide else 3,
    )


def shape_of(dtype: torch.dtype, queries: int, size: int) -> str:
    """The tuning bucket."""
    return tuning.bucket(dtype, queries=min(max(triton.next_power_of_2(queries), 16), 512), head=size)


@triton.jit
def _rows_of(
    stored_ptr,
    scale_ptr,
    canvas_ptr,
    slot,
    page,
    from_cache,
    from_canvas,
    in_head,
    dim,
    canvas_row,
    page_stride,
    slot_stride,
    head_start,
    scale_start,
    scale_slot_stride,
    prefix,
    dtype: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    IS_PAGED: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_CANVAS: tl.constexpr,
):
    """Keys or values of a tile of slots, [BLOCK_N, BLOCK_D] in the dtype of the queries; zeros where nobody sees."""
    inside = slot % PAGE if IS_PAGED else slot
    start = page * page_stride + head_start + inside.to(tl.int64) * slot_stride
    found = tl.load(stored_ptr + start[:, None] + dim[None, :], mask=from_cache[:, None] & in_head[None, :], other=0.0)
    if HAS_SCALE:
        # [BLOCK_N]
        scale = tl.load(scale_ptr + scale_start + inside * scale_slot_stride, mask=from_cache, other=0.0)
        found = (found.to(tl.float32) * scale[:, None]).to(dtype)
    if HAS_CANVAS:
        place = canvas_row + (slot - prefix).to(tl.int64) * D
        new = tl.load(
            canvas_ptr + place[:, None] + dim[None, :], mask=from_canvas[:, None] & in_head[None, :], other=0.0
        )
        found = tl.where(from_canvas[:, None], new, found)
    return found


@triton.jit(do_not_specialize=["T", "M", "total_queries"])
def _attention_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    key_scale_ptr,
    value_scale_ptr,
    table_ptr,
    canvas_keys_ptr,
    canvas_values_ptr,
    prefix_ptr,
    visible_ptr,
    out_ptr,  # [B, H, T, D], or where there are parts [X, B, H, T, D] float32
    log_sum_ptr,  # [X, B, H, T] float32, to the base of 2
    scale,  # times log2(e)
    T,
    M,
    page_stride,
    head_stride,
    slot_stride,
    scale_head_stride,
    scale_slot_stride,
    total_queries,  # B * H * T
    G: tl.constexpr,
    SHARED: tl.constexpr,  # query heads of a key/value head
    D: tl.constexpr,
    PAGE: tl.constexpr,
    IS_PAGED: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_CANVAS: tl.constexpr,
    HAS_PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = (tl.program_id(0) // G).to(tl.int64)
    group = tl.program_id(0) % G
    part, parts = tl.program_id(2), tl.num_programs(2)
    query = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_queries = query < SHARED * T
    dim = tl.arange(0, BLOCK_D)
    in_head = dim < D
    infinity = float("inf")

    # Heads of a group are neighbours in q, so its queries are one run of rows.
    first = (row * G + group) * SHARED * T
    query_place = (first + query) * D
    # [BLOCK_M, BLOCK_D]
    q = tl.load(q_ptr + query_place[:, None] + dim[None, :], mask=in_queries[:, None] & in_head[None, :], other=0.0)
    # [BLOCK_M]
    visible = tl.load(visible_ptr + row * T + query % T, mask=in_queries, other=0)
    reach = tl.max(visible, axis=0)
    prefix = reach
    if HAS_CANVAS:
        prefix = tl.load(prefix_ptr + row)
    head_start = group.to(tl.int64) * head_stride
    canvas_row = (row * G + group) * T * D

    top = tl.full((BLOCK_M,), -infinity, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    tiles = tl.cdiv(reach, BLOCK_N)
    for tile in range(tiles * part // parts, tiles * (part + 1) // parts):
        slot = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        from_cache = slot < tl.minimum(reach, prefix)
        from_canvas = (slot >= prefix) & (slot < tl.minimum(reach, prefix + T))
        if IS_PAGED:
            page = tl.load(table_ptr + row * M + slot // PAGE, mask=from_cache, other=0).to(tl.int64)
        else:
            page = row + (slot * 0).to(tl.int64)
        scale_start = (page * G + group) * scale_head_stride
        k = _rows_of(
            keys_ptr, key_scale_ptr, canvas_keys_ptr, slot, page, from_cache, from_canvas, in_head, dim, canvas_row,
            page_stride, slot_stride, head_start, scale_start, scale_slot_stride, prefix, q.dtype, D, PAGE, IS_PAGED,
            HAS_SCALE, HAS_CANVAS,
        )  # fmt: skip
        # Float32 goes through the tensor cores in three passes, which keep its digits: without them the tiles spill by the kilobyte.
        scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
        scores = tl.where(slot[None, :] < visible[:, None], scores, -infinity)
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        # A query that has seen nothing yet has no maximum to subtract.
        base = tl.where(new_top == -infinity, 0.0, new_top)
        weights = tl.exp2(scores - base[:, None])
        grown = tl.exp2(top - base)
        total = total * grown + tl.sum(weights, axis=1)
        v = _rows_of(
            values_ptr, value_scale_ptr, canvas_values_ptr, slot, page, from_cache, from_canvas, in_head, dim, canvas_row,
            page_stride, slot_stride, head_start, scale_start, scale_slot_stride, prefix, q.dtype, D, PAGE, IS_PAGED,
            HAS_SCALE, HAS_CANVAS,
        )  # fmt: skip
        mixed = tl.dot(weights.to(v.dtype), v, mixed * grown[:, None], input_precision="tf32x3")
        top = new_top

    is_empty = total == 0.0
    out = mixed / tl.where(is_empty, 1.0, total)[:, None]
    inside = in_queries[:, None] & in_head[None, :]
    if HAS_PARTS:
        part_start = part.to(tl.int64) * total_queries
        log_sum = tl.where(is_empty, -infinity, top + tl.log2(tl.where(is_empty, 1.0, total)))
        tl.store(log_sum_ptr + part_start + first + query, log_sum, mask=in_queries)
        tl.store(out_ptr + part_start * D + query_place[:, None] + dim[None, :], out, mask=inside)
    else:
        tl.store(out_ptr + query_place[:, None] + dim[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["total_queries", "X"])
def _merge_parts_kernel(
    parts_ptr, log_sum_ptr, out_ptr, total_queries, X, D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_D: tl.constexpr
):
    query = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, BLOCK_X)
    in_parts = part < X
    dim = tl.arange(0, BLOCK_D)
    in_head = dim < D
    infinity = float("inf")
    start = part.to(tl.int64) * total_queries + query
    # [BLOCK_X]
    log_sum = tl.load(log_sum_ptr + start, mask=in_parts, other=-infinity)
    top = tl.max(log_sum, axis=0)
    weight = tl.exp2(log_sum - tl.where(top == -infinity, 0.0, top))
    total = tl.sum(weight, axis=0)
    # [BLOCK_X, BLOCK_D]
    out = tl.load(parts_ptr + start[:, None] * D + dim[None, :], mask=in_parts[:, None] & in_head[None, :], other=0.0)
    merged = tl.sum(out * weight[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + query * D + dim, merged.to(out_ptr.dtype.element_ty), mask=in_head)


def canvas_attention(
    q: Tensor, cache: Cache, visible: Tensor, canvas: Canvas | None, scale: float, longest: int
) -> Tensor:
    rows, heads, length, size = q.shape
    groups, page = cache.keys.shape[1], cache.keys.shape[2]
    shared = heads // groups
    block_d = max(triton.next_power_of_2(size), 16)
    tiles = tuning.tiles(
        "canvas_attention",
        q.device,
        shape_of(cache.keys.dtype, shared * length, size),
        reasoned(shared * length, size, q.element_size()),
    )
    query_tiles = triton.cdiv(shared * length, tiles.block_m)
    busy = rows * groups * query_tiles
    parts = max(1, min(2 * processors(q.device) // busy, longest // LEAST_SLOTS))
    scale_slots = None if cache.key_scale is None else cache.key_scale.shape[2]
    out = torch.empty_like(q)
    divided, log_sum = None, None
    if parts > 1:
        divided = torch.empty(parts, *q.shape, dtype=torch.float32, device=q.device)
        log_sum = torch.empty(parts, rows, heads, length, dtype=torch.float32, device=q.device)
    _attention_kernel[(rows * groups, query_tiles, parts)](
        q,
        cache.keys,
        cache.values,
        cache.key_scale,
        cache.value_scale,
        cache.table,
        None if canvas is None else canvas.keys,
        None if canvas is None else canvas.values,
        None if canvas is None else canvas.prefix,
        visible,
        out if divided is None else divided,
        log_sum,
        scale * 1.4426950408889634,
        length,
        0 if cache.table is None else cache.table.shape[1],
        cache.keys.stride(0),
        cache.keys.stride(1),
        cache.keys.stride(2),
        0 if scale_slots is None else scale_slots,
        0 if scale_slots == 1 else 1,
        rows * heads * length,
        G=groups,
        SHARED=shared,
        D=size,
        PAGE=page if cache.table is not None else 1,
        IS_PAGED=cache.table is not None,
        HAS_SCALE=scale_slots is not None,
        HAS_CANVAS=canvas is not None,
        HAS_PARTS=divided is not None,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_D=block_d,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    if divided is not None:
        _merge_parts_kernel[(rows * heads * length,)](
            divided,
            log_sum,
            out,
            rows * heads * length,
            parts,
            D=size,
            BLOCK_X=triton.next_power_of_2(parts),
            BLOCK_D=block_d,
            num_warps=2,
        )
    return out

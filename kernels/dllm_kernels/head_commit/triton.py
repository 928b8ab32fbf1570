"""The fast way: each program holds the rows and walks through a part of the vocabulary; a second launch merges the parts.

What is written between the two are nine numbers per row and part. N rows, V vocabulary, E hidden size, S parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import tuning
from dllm_kernels.choose import processors
from dllm_kernels.commit_from_logits.contract import CommitStats, Given
from dllm_kernels.commit_from_logits.triton import allowed_logit, gumbel_of, merge, store_part

if TYPE_CHECKING:
    from dllm_kernels.head_commit import Held

BLOCK_V = 128
SAMPLING_BLOCK_V = 64
"""Noise takes registers: at 128 they spill, as the assembler tells."""
BLOCK_E = 64
MAX_BLOCK_N = 64
_BYTE = torch.uint8


class Tiles(NamedTuple):
    """How the vocabulary and the inputs are cut up."""

    block_v: int
    block_e: int
    num_warps: int
    num_stages: int


def reasoned(rows: int, hidden_bytes: int, is_sampling: bool) -> Tiles:
    return Tiles(
        SAMPLING_BLOCK_V if is_sampling else BLOCK_V,
        BLOCK_E if hidden_bytes == 2 else BLOCK_E // 2,
        8 if is_sampling or rows > MAX_BLOCK_N // 2 else 4,
        4,
    )


def shape_of(dtype: torch.dtype, rows: int, vocabulary: int, inputs: int, is_sampling: bool) -> str:
    """The tuning bucket."""
    few = min(max(triton.next_power_of_2(rows), 16), MAX_BLOCK_N)
    return tuning.bucket(dtype, rows=few, vocabulary=vocabulary, inputs=inputs, sampling=int(is_sampling))


@triton.jit(do_not_specialize=["seed", "N"])
def _head_kernel(
    hidden_ptr,
    weight_ptr,
    scale_ptr,
    forbidden_ptr,
    held_ptr,
    held_rows_ptr,
    given_ptr,
    seed_ptr,
    seed,
    temperature,
    numbers_ptr,  # [7, S, N] float32: best, second, total, weighted, picked score, picked logit, given logit
    indices_ptr,  # [2, S, N] int32: best, picked
    N,
    V,
    E,
    HAS_SCALE: tl.constexpr,
    HAS_FORBIDDEN: tl.constexpr,
    HAS_HELD: tl.constexpr,
    HAS_GIVEN: tl.constexpr,
    HAS_ROW_SEEDS: tl.constexpr,
    IS_SAMPLING: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    part, parts = tl.program_id(0), tl.num_programs(0)
    row = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = row < N
    row_start = row.to(tl.int64) * E
    tiles = tl.cdiv(V, BLOCK_V)
    infinity = float("inf")

    best = tl.full((BLOCK_N,), -infinity, tl.float32)
    second = best
    total = tl.zeros((BLOCK_N,), tl.float32)
    weighted = total
    picked_score = best
    picked_logit = best
    best_index = tl.full((BLOCK_N,), -1, tl.int32)
    if HAS_HELD:
        # [BLOCK_N]
        holds = tl.load(held_rows_ptr + row, mask=in_rows, other=0) != 0
    picked_index = best_index
    given_logit = best
    if HAS_GIVEN:
        # [BLOCK_N]
        given = tl.load(given_ptr + row, mask=in_rows, other=-1)

    # A run of neighbouring tiles: the lower part has the lower indices, which is how ties are broken.
    for tile in range(tiles * part // parts, tiles * (part + 1) // parts):
        column = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        in_vocabulary = column < V
        # 64-bit addresses: a head of 262,144 tokens by 8,192 has 2^31 weights.
        column_start = column.to(tl.int64) * E
        # The vocabulary is the product's rows: Hopper's unit takes 64 of them at least, and of columns as few as there are.
        z = tl.zeros((BLOCK_V, BLOCK_N), tl.float32)
        for start in range(0, E, BLOCK_E):
            inner = start + tl.arange(0, BLOCK_E)
            in_row = inner < E
            # [BLOCK_N, BLOCK_E]
            x = tl.load(
                hidden_ptr + row_start[:, None] + inner[None, :], mask=in_rows[:, None] & in_row[None, :], other=0.0
            )
            # [BLOCK_V, BLOCK_E]
            w = tl.load(
                weight_ptr + column_start[:, None] + inner[None, :],
                mask=in_vocabulary[:, None] & in_row[None, :],
                other=0,
            )
            z = tl.dot(w.to(x.dtype), tl.trans(x), z, input_precision="ieee")
        z = tl.trans(z)
        if HAS_SCALE:
            # [BLOCK_V]
            z = z * tl.load(scale_ptr + column, mask=in_vocabulary, other=0.0)[None, :]
        allowed = in_vocabulary
        if HAS_FORBIDDEN:
            # [BLOCK_V]
            allowed = allowed & (tl.load(forbidden_ptr + column, mask=in_vocabulary, other=1) == 0)
        if HAS_HELD:
            # [BLOCK_V]
            is_held = tl.load(held_ptr + column, mask=in_vocabulary, other=0) != 0
            z = tl.where(is_held[None, :] & holds[:, None], -infinity, z)
        z = allowed_logit(z, allowed[None, :])
        if HAS_GIVEN:
            given_logit = tl.maximum(
                given_logit, tl.max(tl.where(column[None, :] == given[:, None], z, -infinity), axis=1)
            )

        # As in commit_from_logits, a vector of rows at a time.
        tile_best = tl.max(z, axis=1)
        tile_index = tl.min(tl.where(z == tile_best[:, None], column[None, :], 0x7FFFFFFF), axis=1)
        tile_second = tl.max(tl.where(column[None, :] == tile_index[:, None], -infinity, z), axis=1)
        is_better = tile_best > best
        second = tl.maximum(tl.minimum(best, tile_best), tl.maximum(second, tile_second))
        best_index = tl.where(is_better, tile_index, best_index)
        new_best = tl.maximum(best, tile_best)
        top = tl.where(new_best == -infinity, 0.0, new_best)
        shift = tl.maximum(best - top, -1e4)
        exponent = tl.maximum(z - top[:, None], -1e4)
        weight = tl.exp(exponent)
        grown = tl.exp(shift)
        weighted = (weighted + total * shift) * grown + tl.sum(weight * exponent, axis=1)
        total = total * grown + tl.sum(weight, axis=1)
        best = new_best

        if IS_SAMPLING:
            group = tile * (BLOCK_V // 4) + tl.arange(0, BLOCK_V // 4)
            counter = tl.zeros((BLOCK_N, BLOCK_V // 4), tl.int32) + group[None, :]
            if HAS_ROW_SEEDS:
                key = tl.load(seed_ptr + row, mask=in_rows, other=0)[:, None] + tl.zeros_like(counter).to(tl.int64)
                w0, w1, w2, w3 = tl.philox(key, counter, counter * 0, counter * 0, counter * 0)
            else:
                w0, w1, w2, w3 = tl.philox(seed, counter, counter * 0 + row[:, None], counter * 0, counter * 0)
            word = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(BLOCK_N, BLOCK_V)
            score = tl.math.div_rn(z, tl.full((BLOCK_N, BLOCK_V), 0.0, tl.float32) + temperature)
            score = tl.minimum(tl.maximum(score, -3.4028234663852886e38), 3.4028234663852886e38)
            score = tl.where(z == -infinity, -infinity, score) + gumbel_of(word)
            tile_score = tl.max(score, axis=1)
            tile_picked = tl.min(tl.where(score == tile_score[:, None], column[None, :], 0x7FFFFFFF), axis=1)
            tile_logit = tl.max(tl.where(column[None, :] == tile_picked[:, None], z, -infinity), axis=1)
            is_better = tile_score > picked_score
            picked_score = tl.maximum(picked_score, tile_score)
            picked_index = tl.where(is_better, tile_picked, picked_index)
            picked_logit = tl.where(is_better, tile_logit, picked_logit)

    store_part(
        part * N + row,
        parts * N,
        in_rows,
        best,
        second,
        total,
        weighted,
        best_index,
        picked_score,
        picked_logit,
        picked_index,
        given_logit,
        numbers_ptr,
        indices_ptr,
        IS_SAMPLING,
        HAS_GIVEN,
    )


def head_commit(
    hidden: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    temperature: float,
    seed: int | Tensor,
    forbidden: Tensor | None,
    held: Held | None,
    given: Given | None,
    out: CommitStats,
) -> None:
    rows, size = hidden.shape
    vocabulary = weight.shape[0]
    block_n = min(max(triton.next_power_of_2(rows), 16), MAX_BLOCK_N)
    row_tiles = triton.cdiv(rows, block_n)
    # Two programs to a processor, so that one computes while the other waits for weights.
    is_sampling = temperature != 0.0
    shape = shape_of(weight.dtype, rows, vocabulary, size, is_sampling)
    tiles = tuning.tiles("head_commit", hidden.device, shape, reasoned(rows, hidden.element_size(), is_sampling))
    parts = max(1, min(triton.cdiv(vocabulary, tiles.block_v), 2 * processors(hidden.device) // row_tiles))
    numbers = torch.empty(7, parts, rows, dtype=torch.float32, device=hidden.device)
    indices = torch.empty(2, parts, rows, dtype=torch.int32, device=hidden.device)
    has_row_seeds = isinstance(seed, Tensor)
    _head_kernel[(parts, row_tiles)](
        hidden,
        weight,
        scale,
        None if forbidden is None else forbidden.view(dtype=_BYTE),
        None if held is None else held.tokens.view(dtype=_BYTE),
        None if held is None else held.rows.view(dtype=_BYTE),
        None if given is None else given.token,
        seed if has_row_seeds else None,
        0 if has_row_seeds else seed,
        float(temperature),
        numbers,
        indices,
        rows,
        vocabulary,
        size,
        HAS_SCALE=scale is not None,
        HAS_FORBIDDEN=forbidden is not None,
        HAS_HELD=held is not None,
        HAS_GIVEN=given is not None,
        HAS_ROW_SEEDS=has_row_seeds,
        IS_SAMPLING=is_sampling,
        BLOCK_N=block_n,
        BLOCK_V=tiles.block_v,
        BLOCK_E=tiles.block_e,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    merge(numbers, indices, out, given, is_sampling)

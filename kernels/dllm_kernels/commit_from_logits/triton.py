"""The fast way: one pass over the vocabulary, by one program per row, or several where rows are few. N rows, V vocabulary, S parts.

Max, second max, sum and entropy are carried from tile to tile as an online softmax in float32 (arXiv:1805.02867); the best noisy
score is carried beside them. Nothing of size V is written: parts of a row leave nine numbers each, which a second launch merges.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels.choose import processors
from dllm_kernels.commit_from_logits.contract import CommitStats, Given

MAX_BLOCK_V = 4096
SAMPLING_BLOCK_V = 2048
"""Noise takes registers: with 4,096, one program fills a processor."""
PROGRAMS = 4
"""To a processor: 32 warps, each with its next numbers on the way. 64 rows alone would leave half of an H200 idle."""
_BYTE = torch.uint8


@triton.jit
def gumbel_of(word):
    """Noise of the uniform that each 32-bit word names; see `philox.gumbel_noise`."""
    is_low = word < 0x80000000
    distance = (tl.where(is_low, word, 0xFFFFFFFF - word).to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2^-32
    uniform = tl.where(is_low, 1.0 - distance, distance)
    log_uniform = tl.log(uniform)
    is_one = uniform == 1.0
    kahan = tl.where(is_one, -distance, log_uniform * (-distance / tl.where(is_one, 1.0, uniform - 1.0)))
    return -tl.log(-tl.where(is_low, kahan, log_uniform))


@triton.jit
def _gumbel(seed, row, group, BLOCK_V: tl.constexpr):
    """Noise of columns 4 * group … 4 * group + 3, in order. [BLOCK_V / 4] -> [BLOCK_V]."""
    zero = group * 0
    w0, w1, w2, w3 = tl.philox(seed, group, zero + row, zero, zero)
    # [BLOCK_V / 4, 2, 2]: w0, w1, w2, w3
    return gumbel_of(tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(BLOCK_V))


@triton.jit
def allowed_logit(z, is_allowed):
    """What a logit counts as: NaN and forbidden ones as -inf, +inf as the largest number."""
    return tl.minimum(tl.where(is_allowed & (z == z), z, -float("inf")), 3.4028234663852886e38)


@triton.jit
def finish(
    row,
    best,
    second,
    total,
    weighted,
    picked_index,
    picked_logit,
    given_logit,
    token_ptr,
    probability_ptr,
    margin_ptr,
    entropy_ptr,
    log_probability_ptr,
    HAS_GIVEN: tl.constexpr,
):
    """Store a row's statistics, once all of it has been seen. Single numbers."""
    is_empty = best == -float("inf")
    top = tl.where(is_empty, 0.0, best)
    total = tl.where(is_empty, 1.0, total)
    # exp(second - top) <= 1, and near a tie their difference is exact; expm1's extra digits matter below 1e-7 only.
    gap = second - top
    small = gap * (1.0 + gap * (0.5 + gap * 0.16666667))
    minus_expm1 = -tl.where(gap > -0.01, small, tl.exp(tl.maximum(gap, -1e4)) - 1.0)
    entropy = tl.maximum(tl.log(total) - weighted / total, 0.0)
    probability = tl.exp(tl.maximum(picked_logit - top, -1e4)) / total

    tl.store(token_ptr + row, tl.where(is_empty, -1, picked_index).to(tl.int64))
    tl.store(probability_ptr + row, tl.where(is_empty, 0.0, probability))
    tl.store(margin_ptr + row, tl.where(is_empty, 0.0, minus_expm1 / total))
    tl.store(entropy_ptr + row, tl.where(is_empty, 0.0, entropy))
    if HAS_GIVEN:
        tl.store(log_probability_ptr + row, given_logit - top - tl.log(total))


@triton.jit
def store_part(
    place,
    step,
    mask,
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
    IS_SAMPLING: tl.constexpr,
    HAS_GIVEN: tl.constexpr,
):
    """Leave what one part of a row found for `merge`. Single numbers or a vector of rows."""
    tl.store(numbers_ptr + place, best, mask=mask)
    tl.store(numbers_ptr + step + place, second, mask=mask)
    tl.store(numbers_ptr + 2 * step + place, total, mask=mask)
    tl.store(numbers_ptr + 3 * step + place, weighted, mask=mask)
    tl.store(indices_ptr + place, best_index, mask=mask)
    if IS_SAMPLING:
        tl.store(numbers_ptr + 4 * step + place, picked_score, mask=mask)
        tl.store(numbers_ptr + 5 * step + place, picked_logit, mask=mask)
        tl.store(indices_ptr + step + place, picked_index, mask=mask)
    if HAS_GIVEN:
        tl.store(numbers_ptr + 6 * step + place, given_logit, mask=mask)


@triton.jit(do_not_specialize=["N", "S"])
def _merge_kernel(
    numbers_ptr,
    indices_ptr,
    token_ptr,
    probability_ptr,
    margin_ptr,
    entropy_ptr,
    log_probability_ptr,
    N,
    S,
    IS_SAMPLING: tl.constexpr,
    HAS_GIVEN: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    row = tl.program_id(0)
    part = tl.arange(0, BLOCK_S)
    in_parts = part < S
    place = part * N + row
    step = S * N
    infinity = float("inf")
    # [BLOCK_S] each
    bests = tl.load(numbers_ptr + place, mask=in_parts, other=-infinity)
    seconds = tl.load(numbers_ptr + step + place, mask=in_parts, other=-infinity)
    totals = tl.load(numbers_ptr + 2 * step + place, mask=in_parts, other=0.0)
    weighteds = tl.load(numbers_ptr + 3 * step + place, mask=in_parts, other=0.0)
    best_indices = tl.load(indices_ptr + place, mask=in_parts, other=-1)

    best = tl.max(bests, axis=0)
    winner = tl.min(tl.where((bests == best) & in_parts, part, BLOCK_S), axis=0)
    best_index = tl.max(tl.where(part == winner, best_indices, -1), axis=0)
    second = tl.max(tl.where(part == winner, seconds, bests), axis=0)
    top = tl.where(best == -infinity, 0.0, best)
    shift = tl.maximum(bests - top, -1e4)
    grown = tl.exp(shift)
    total = tl.sum(totals * grown, axis=0)
    weighted = tl.sum((weighteds + totals * shift) * grown, axis=0)
    picked_index = best_index
    picked_logit = best
    if IS_SAMPLING:
        # [BLOCK_S] each
        scores = tl.load(numbers_ptr + 4 * step + place, mask=in_parts, other=-infinity)
        logits = tl.load(numbers_ptr + 5 * step + place, mask=in_parts, other=-infinity)
        indices = tl.load(indices_ptr + step + place, mask=in_parts, other=-1)
        picked = tl.min(tl.where((scores == tl.max(scores, axis=0)) & in_parts, part, BLOCK_S), axis=0)
        picked_index = tl.max(tl.where(part == picked, indices, -1), axis=0)
        picked_logit = tl.max(tl.where(part == picked, logits, -infinity), axis=0)
    given_logit = best
    if HAS_GIVEN:
        # [BLOCK_S]; all parts but one have -inf.
        given_logit = tl.max(tl.load(numbers_ptr + 6 * step + place, mask=in_parts, other=-infinity), axis=0)
    finish(
        row.to(tl.int64),
        best,
        second,
        total,
        weighted,
        picked_index,
        picked_logit,
        given_logit,
        token_ptr,
        probability_ptr,
        margin_ptr,
        entropy_ptr,
        log_probability_ptr,
        HAS_GIVEN,
    )


def merge(numbers: Tensor, indices: Tensor, out: CommitStats, given: Given | None, is_sampling: bool) -> None:
    """Write the statistics of rows whose parts are in `numbers` [7, S, N] and `indices` [2, S, N]; lower parts hold lower tokens."""
    _, parts, rows = numbers.shape
    _merge_kernel[(rows,)](
        numbers,
        indices,
        *out,
        None if given is None else given.log_probability,
        rows,
        parts,
        IS_SAMPLING=is_sampling,
        HAS_GIVEN=given is not None,
        BLOCK_S=triton.next_power_of_2(parts),
        num_warps=1 if parts <= 32 else 4,
    )


@triton.jit
def _commit_kernel(
    logits_ptr,
    row_stride,
    column_stride,
    forbidden_ptr,
    given_ptr,
    seed_ptr,
    seed,
    temperature,
    token_ptr,
    probability_ptr,
    margin_ptr,
    entropy_ptr,
    log_probability_ptr,
    numbers_ptr,  # [7, S, N] float32: best, second, total, weighted, picked score, picked logit, given logit
    indices_ptr,  # [2, S, N] int32: best, picked
    V,
    HAS_PARTS: tl.constexpr,
    HAS_FORBIDDEN: tl.constexpr,
    HAS_GIVEN: tl.constexpr,
    HAS_ROW_SEEDS: tl.constexpr,
    IS_SAMPLING: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    # 64-bit addresses: 20,000 rows of a 126,464-token vocabulary already pass 2^31 elements.
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    if HAS_ROW_SEEDS:
        key = tl.load(seed_ptr + row)
        noise_row = tl.program_id(0) * 0
    else:
        key = seed
        noise_row = tl.program_id(0)

    infinity = float("inf")
    best = -infinity
    second = -infinity
    best_index = -1
    total = 0.0  # sum of exp(z - best)
    weighted = 0.0  # sum of exp(z - best) * (z - best)
    picked_score = -infinity
    picked_index = -1
    picked_logit = -infinity

    # A run of neighbouring tiles: the lower part has the lower indices, which is how ties are broken.
    part, parts = tl.program_id(1), tl.num_programs(1)
    tiles = tl.cdiv(V, BLOCK_V)
    for tile in range(tiles * part // parts, tiles * (part + 1) // parts):
        start = tile * BLOCK_V
        column = start + tl.arange(0, BLOCK_V)
        in_row = column < V
        # [BLOCK_V]
        z = tl.load(row_ptr + column.to(tl.int64) * column_stride, mask=in_row, other=-infinity).to(tl.float32)
        is_allowed = in_row
        if HAS_FORBIDDEN:
            # [BLOCK_V]
            is_allowed = tl.load(forbidden_ptr + column, mask=in_row, other=1) == 0
        z = allowed_logit(z, is_allowed)

        tile_best = tl.max(z, axis=0)
        tile_index = tl.min(tl.where(z == tile_best, column, 0x7FFFFFFF), axis=0)
        tile_second = tl.max(tl.where(column == tile_index, -infinity, z), axis=0)

        # Strictly better only: on a tie the earlier tile keeps the lower index.
        is_better = tile_best > best
        second = tl.maximum(tl.minimum(best, tile_best), tl.maximum(second, tile_second))
        best_index = tl.where(is_better, tile_index, best_index)
        new_best = tl.maximum(best, tile_best)
        # A row of nothing but -inf so far has no maximum to subtract. -1e4 stands for -inf: exp gives 0, and 0 * -1e4 is 0.
        top = tl.where(new_best == -infinity, 0.0, new_best)
        shift = tl.maximum(best - top, -1e4)
        exponent = tl.maximum(z - top, -1e4)
        weight = tl.exp(exponent)
        scale = tl.exp(shift)
        weighted = (weighted + total * shift) * scale + tl.sum(weight * exponent, axis=0)
        total = total * scale + tl.sum(weight, axis=0)
        best = new_best

        if IS_SAMPLING:
            group = start // 4 + tl.arange(0, BLOCK_V // 4)
            # Rounded division, and a sum that no multiply can fuse with: the reference's very bits.
            score = tl.math.div_rn(z, tl.full((BLOCK_V,), 0.0, tl.float32) + temperature)
            # A finite logit over a small temperature may overflow; it must not fall among the forbidden.
            score = tl.minimum(tl.maximum(score, -3.4028234663852886e38), 3.4028234663852886e38)
            score = tl.where(z == -infinity, -infinity, score) + _gumbel(key, noise_row, group, BLOCK_V)
            tile_score = tl.max(score, axis=0)
            tile_picked = tl.min(tl.where(score == tile_score, column, 0x7FFFFFFF), axis=0)
            tile_logit = tl.max(tl.where(column == tile_picked, z, -infinity), axis=0)
            is_better = tile_score > picked_score
            picked_score = tl.maximum(picked_score, tile_score)
            picked_index = tl.where(is_better, tile_picked, picked_index)
            picked_logit = tl.where(is_better, tile_logit, picked_logit)

    given_logit = best
    if HAS_GIVEN:
        given = tl.load(given_ptr + row)
        begin, end = tiles * part // parts * BLOCK_V, tl.minimum(tiles * (part + 1) // parts * BLOCK_V, V)
        is_here = (given >= begin) & (given < end)
        given_logit = tl.load(row_ptr + given * column_stride, mask=is_here, other=-infinity).to(tl.float32)
        if HAS_FORBIDDEN:
            is_here = is_here & (tl.load(forbidden_ptr + given, mask=is_here, other=1) == 0)
        given_logit = allowed_logit(given_logit, is_here)

    if HAS_PARTS:
        rows = tl.num_programs(0)
        store_part(
            part * rows + tl.program_id(0),
            parts * rows,
            None,
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
    else:
        if not IS_SAMPLING:
            picked_index = best_index
            picked_logit = best
        finish(
            row,
            best,
            second,
            total,
            weighted,
            picked_index,
            picked_logit,
            given_logit,
            token_ptr,
            probability_ptr,
            margin_ptr,
            entropy_ptr,
            log_probability_ptr,
            HAS_GIVEN,
        )


def commit_from_logits(
    logits: Tensor,
    temperature: float,
    seed: int | Tensor,
    forbidden: Tensor | None,
    given: Given | None,
    out: CommitStats,
) -> None:
    """Write the statistics of `logits` [N, V] to `out`; see the package for the contract."""
    rows, vocabulary = logits.shape
    is_sampling = temperature != 0.0
    block_v = max(min(triton.next_power_of_2(vocabulary), SAMPLING_BLOCK_V if is_sampling else MAX_BLOCK_V), 4)
    has_row_seeds = isinstance(seed, Tensor)
    parts = max(1, min(PROGRAMS * processors(logits.device) // rows, triton.cdiv(vocabulary, block_v)))
    numbers, indices = None, None
    if parts > 1:
        numbers = torch.empty(7, parts, rows, dtype=torch.float32, device=logits.device)
        indices = torch.empty(2, parts, rows, dtype=torch.int32, device=logits.device)
    _commit_kernel[(rows, parts)](
        logits,
        logits.stride(0),
        logits.stride(1),
        None if forbidden is None else forbidden.view(dtype=_BYTE),
        None if given is None else given.token,
        seed if has_row_seeds else None,
        0 if has_row_seeds else seed,
        float(temperature),
        *out,
        None if given is None else given.log_probability,
        numbers,
        indices,
        vocabulary,
        HAS_PARTS=parts > 1,
        HAS_FORBIDDEN=forbidden is not None,
        HAS_GIVEN=given is not None,
        HAS_ROW_SEEDS=has_row_seeds,
        IS_SAMPLING=is_sampling,
        BLOCK_V=block_v,
        num_warps=8 if block_v >= 2048 else 4,
    )
    if numbers is not None and indices is not None:
        merge(numbers, indices, out, given, is_sampling)

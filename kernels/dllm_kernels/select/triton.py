"""The fast way: one program per draft, which sorts its positions once and sums along that order. B drafts, W canvas positions."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels.select import reference

if TYPE_CHECKING:
    from dllm_kernels.select import CanvasColumns, RuleColumns, ScoreColumns

_THRESHOLD = tl.constexpr(0)
_FACTOR = tl.constexpr(2)
_PROFILE = tl.constexpr(3)
_ENTROPY = tl.constexpr(4)
_MARGIN = tl.constexpr(5)
_LEFT = tl.constexpr(6)
_RANDOM = tl.constexpr(7)
_STABILITY = tl.constexpr(8)
_PLACES = tl.constexpr(1 << 20)
"""Low bits of a sorting key, which hold the position."""
_CLOSED = tl.constexpr(-(1 << 33))
"""Below every float32's bits and every 32-bit word."""


WIDEST = 512
"""A row is sorted in one thread block, and the compiler's time for that grows faster than the row: seconds at 512, a minute at 4,096."""


@triton.jit
def _confidence(rule, probability, margin, entropy, at):
    """What the rule sorts by, largest first; `random` apart."""
    confidence = tl.where(rule == _MARGIN, margin, probability)
    confidence = tl.where(rule == _ENTROPY, -entropy, confidence)
    return tl.where(rule == _LEFT, -at.to(tl.float32), confidence)


@triton.jit(do_not_specialize=["W"])
def _select_kernel(
    token_ptr,
    probability_ptr,
    margin_ptr,
    entropy_ptr,
    open_ptr,
    urgent_ptr,
    stable_ptr,
    doubtful_ptr,
    rule_ptr,
    threshold_ptr,
    factor_ptr,
    bound_ptr,
    seed_ptr,
    floor_ptr,
    chosen_ptr,
    forced_ptr,
    tokens_ptr,
    is_masked_ptr,
    confidence_ptr,
    steps_ptr,
    committed_ptr,
    forced_count_ptr,
    W,
    HAS_STABLE: tl.constexpr,
    HAS_DOUBTFUL: tl.constexpr,
    HAS_RANDOM: tl.constexpr,
    HAS_LEADING: tl.constexpr,
    HAS_FLOOR: tl.constexpr,
    HAS_CANVAS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first = row * W
    rule = tl.load(rule_ptr + row)
    at = tl.arange(0, BLOCK_W)
    inside = at < W

    # The order. [BLOCK_W] each; what is closed may hold anything, NaN too.
    token = tl.load(token_ptr + first + at, mask=inside, other=-1)
    is_open = (tl.load(open_ptr + first + at, mask=inside, other=0) != 0) & (token >= 0)
    probability = tl.load(probability_ptr + first + at, mask=inside, other=0.0)
    margin = tl.load(margin_ptr + first + at, mask=inside, other=0.0)
    entropy = tl.load(entropy_ptr + first + at, mask=inside, other=0.0)
    confidence = _confidence(rule, probability, margin, entropy, at)
    # Bits of floats sort as integers once those of negative ones are turned round; 0 and -0 are equal.
    bits = tl.where(confidence == 0.0, 0.0, confidence).to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    low = BLOCK_W - 1 - at
    if HAS_RANDOM:
        zero = at * 0
        word, _, _, _ = tl.philox(tl.load(seed_ptr + row), at, zero, zero, zero + 0x6F726465)
        is_random = rule == _RANDOM
        key = tl.where(is_random, word.to(tl.uint32, bitcast=True).to(tl.int64), key)
        # Equal words: the reference ranks the right one higher.
        low = tl.where(is_random, at, low)
    key = tl.where(is_open, key, _CLOSED)
    ordered = tl.sort(key * _PLACES + low, descending=True)
    place = (ordered & (_PLACES - 1)).to(tl.int32)
    if HAS_RANDOM:
        place = tl.where(is_random, place, BLOCK_W - 1 - place)
    else:
        place = BLOCK_W - 1 - place

    # The same along the order, from the cache: [BLOCK_W] each.
    inside = place < W
    here = first + place
    token = tl.load(token_ptr + here, mask=inside, other=-1)
    is_open = (tl.load(open_ptr + here, mask=inside, other=0) != 0) & (token >= 0)
    urgent = (tl.load(urgent_ptr + here, mask=inside, other=0) != 0) & is_open
    probability = tl.load(probability_ptr + here, mask=inside, other=0.0)
    margin = tl.load(margin_ptr + here, mask=inside, other=0.0)
    entropy = tl.load(entropy_ptr + here, mask=inside, other=0.0)
    confidence = _confidence(rule, probability, margin, entropy, place)

    by_threshold = (rule == _THRESHOLD) | (rule == _MARGIN) | (rule == _STABILITY)
    wanted = by_threshold & (confidence > tl.load(threshold_ptr + row))
    if HAS_STABLE:
        stable = tl.load(stable_ptr + here, mask=inside, other=0) != 0
        wanted = wanted & (stable | (rule != _STABILITY))
    if HAS_LEADING:
        limit = tl.load(factor_ptr + row)
        one = tl.full((), 1 << 36, tl.int64)
        doubt = tl.where(is_open, one - (tl.where(is_open, probability, 0.0) * 68719476736.0).to(tl.int64), 0)
        leads = (rule == _FACTOR) & ((at + 2).to(tl.int64) * doubt < limit)
        leads = leads | ((rule == _PROFILE) & (tl.cumsum(doubt, axis=0) + doubt < limit))
        # Rounded up: only a zero is a zero.
        nats = tl.minimum(tl.maximum(tl.where(is_open, entropy, 0.0), 0.0), 64.0)
        nats = tl.ceil(nats * 68719476736.0).to(tl.int64)
        leads = leads | ((rule == _ENTROPY) & (tl.cumsum(nats, axis=0) - nats <= tl.load(bound_ptr + row)))
        wanted = wanted | leads
    wanted = wanted & is_open
    if HAS_DOUBTFUL:
        wanted = wanted & (tl.load(doubtful_ptr + here, mask=inside, other=0) == 0)

    count = tl.sum(urgent.to(tl.int64), axis=0)
    if HAS_CANVAS:
        steps = tl.load(steps_ptr + row)
    if HAS_FLOOR:
        floor = tl.load(floor_ptr + row)
    else:
        least = tl.maximum(steps, 1)
        floor = (count + least - 1) // least
    missing = tl.minimum(count, tl.maximum(floor, 1)) - tl.sum((urgent & wanted).to(tl.int64), axis=0)
    waiting = urgent & (wanted == 0)
    forced = waiting & (tl.cumsum(waiting.to(tl.int64), axis=0) <= missing)
    chosen = wanted | forced
    tl.store(chosen_ptr + here, chosen.to(tl.int8), mask=inside)
    tl.store(forced_ptr + here, forced.to(tl.int8), mask=inside)
    if HAS_CANVAS:
        tl.store(tokens_ptr + here, token, mask=inside & chosen)
        tl.store(is_masked_ptr + here, (at * 0).to(tl.int8), mask=inside & chosen)
        tl.store(confidence_ptr + here, probability, mask=inside & chosen)
        tl.store(steps_ptr + row, tl.maximum(steps - 1, 0))
        tl.store(committed_ptr + row, tl.load(committed_ptr + row) + tl.sum(chosen.to(tl.int64), axis=0))
        tl.store(forced_count_ptr + row, tl.load(forced_count_ptr + row) + tl.sum(forced.to(tl.int64), axis=0))


def select(
    scores: ScoreColumns,
    open: Tensor,
    urgent: Tensor,
    rules: RuleColumns,
    floor: Tensor | None,
    occurring: Set[str],
    stable: Tensor | None,
    doubtful: Tensor | None,
    canvas: CanvasColumns | None,
) -> tuple[Tensor, Tensor]:
    from dllm_kernels.select import LEADING

    rows, width = open.shape
    if width > WIDEST:
        return reference.select(scores, open, urgent, rules, floor, occurring, stable, doubtful, canvas)
    chosen = torch.empty(rows, width, dtype=torch.bool, device=open.device)
    forced = torch.empty_like(chosen)
    block = triton.next_power_of_2(width)
    written: tuple[Tensor | None, ...] = (None,) * 6
    if canvas is not None:
        written = (canvas.tokens, _bytes(canvas.is_masked), *canvas[2:])
    if rows:
        _select_kernel[(rows,)](
            *(column.contiguous() for column in scores),
            _bytes(open),
            _bytes(urgent),
            _bytes(stable),
            _bytes(doubtful),
            *rules,
            floor,
            _bytes(chosen),
            _bytes(forced),
            *written,
            width,
            HAS_STABLE=stable is not None,
            HAS_DOUBTFUL=doubtful is not None,
            HAS_RANDOM="random" in occurring,
            HAS_LEADING=bool(occurring & LEADING),
            HAS_FLOOR=floor is not None,
            HAS_CANVAS=canvas is not None,
            BLOCK_W=block,
            num_warps=min(max(block // 128, 1), 8),
        )
    return chosen, forced


def _bytes(flags: Tensor | None) -> Tensor | None:
    return None if flags is None else flags.contiguous().view(torch.int8)

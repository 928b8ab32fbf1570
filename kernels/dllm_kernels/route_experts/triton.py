"""The fast way: one launch, one program per token, which looks through the tokens of its block where experts are capped.

In PyTorch it is ten launches and more. N tokens, K chosen experts, X experts, G groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from dllm_kernels.route_experts import Rules

BLOCK_N = 8
"""Tokens of a block looked at together: with 256 experts, 2,048 numbers in registers."""


@triton.jit
def _scores(logits, in_experts, IS_SOFTMAX: tl.constexpr):
    """Scores along the last axis of [..., BLOCK_X]; what is outside has 0."""
    if IS_SOFTMAX:
        axis: tl.constexpr = len(logits.shape) - 1
        logits = tl.where(in_experts, logits, -float("inf"))
        weight = tl.exp(logits - tl.max(logits, axis=axis, keep_dims=True))
        return weight / tl.sum(weight, axis=axis, keep_dims=True)
    # The exponential of a negative number only: no overflow.
    small = tl.exp(-tl.abs(logits))
    return tl.where(in_experts, tl.where(logits >= 0.0, 1.0, small) / (1.0 + small), 0.0)


@triton.jit
def _preference(scores, bias, HAS_BIAS: tl.constexpr):
    """What is compared; a NaN is preferred to nothing."""
    preference = scores
    if HAS_BIAS:
        preference = scores + bias
    return tl.where(preference == preference, preference, -float("inf"))


@triton.jit
def _best(values, is_candidate, place):
    """Index of the highest candidate, ties to the left; there must be one."""
    candidates = tl.where(is_candidate, values, -float("inf"))
    is_highest = is_candidate & (candidates == tl.max(candidates, axis=0))
    return tl.min(tl.where(is_highest, place, 0x7FFFFFFF), axis=0)


@triton.jit(do_not_specialize=["N"])
def _route_kernel(
    logits_ptr,
    bias_ptr,
    blocks_ptr,
    experts_ptr,
    weights_ptr,
    scale,
    N,
    X: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_KEPT: tl.constexpr,
    PER_BLOCK: tl.constexpr,  # 0 where experts are not capped
    IS_SOFTMAX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORMALISES: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK_X)
    in_experts = expert < X
    infinity = float("inf")
    # [BLOCK_X]
    logits = tl.load(logits_ptr + row * X + expert, mask=in_experts, other=0.0)
    bias = logits
    if HAS_BIAS:
        # [BLOCK_X]
        bias = tl.load(bias_ptr + expert, mask=in_experts, other=0.0)
    scores = _scores(logits, in_experts, IS_SOFTMAX)
    preference = _preference(scores, bias, HAS_BIAS)
    is_candidate = in_experts

    if PER_BLOCK > 0:
        block = tl.load(blocks_ptr + row)
        strength = preference
        for start in range(0, N, BLOCK_N):
            other = start + tl.arange(0, BLOCK_N)
            # [BLOCK_N]
            in_block = (other < N) & (tl.load(blocks_ptr + other, mask=other < N, other=0) == block)
            if tl.max(in_block.to(tl.int32), axis=0) > 0:
                inside = in_block[:, None] & in_experts[None, :]
                # [BLOCK_N, BLOCK_X]
                found = tl.load(logits_ptr + other.to(tl.int64)[:, None] * X + expert[None, :], mask=inside, other=0.0)
                theirs = _preference(_scores(found, in_experts[None, :], IS_SOFTMAX), bias[None, :], HAS_BIAS)
                strength = tl.maximum(strength, tl.max(tl.where(inside, theirs, -infinity), axis=0))
        is_left = in_experts
        for _ in range(PER_BLOCK):
            is_left = is_left & (expert != _best(strength, is_left, expert))
        is_candidate = in_experts & ~is_left
    elif GROUPS > 1:
        width: tl.constexpr = X // GROUPS
        group = tl.arange(0, BLOCK_G)
        strength = tl.full((BLOCK_G,), -infinity, tl.float32)
        for index in range(GROUPS):
            in_group = in_experts & (expert // width == index)
            first = _best(preference, in_group, expert)
            value = tl.max(tl.where(expert == first, preference, -infinity), axis=0)
            if width > 1:
                value += tl.max(tl.where(in_group & (expert != first), preference, -infinity), axis=0)
            strength = tl.where(group == index, value, strength)
        is_left = group < GROUPS
        is_candidate = expert < 0
        for _ in range(GROUPS_KEPT):
            kept = _best(strength, is_left, group)
            is_left = is_left & (group != kept)
            is_candidate = is_candidate | (in_experts & (expert // width == kept))

    place = tl.arange(0, BLOCK_K)
    chosen = tl.zeros((BLOCK_K,), tl.int32)
    weights = tl.zeros((BLOCK_K,), tl.float32)
    total = 0.0
    for index in range(K):
        best = _best(preference, is_candidate, expert)
        is_candidate = is_candidate & (expert != best)
        weight = tl.sum(tl.where(expert == best, scores, 0.0), axis=0)
        total += weight
        chosen = tl.where(place == index, best, chosen)
        weights = tl.where(place == index, weight, weights)
    if NORMALISES:
        weights = weights / (total + 1e-20)
    tl.store(experts_ptr + row * K + place, chosen.to(tl.int64), mask=place < K)
    tl.store(weights_ptr + row * K + place, weights * scale, mask=place < K)


def route_experts(logits: Tensor, rules: Rules, bias: Tensor | None, blocks: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, count = logits.shape
    experts = torch.empty(rows, rules.chosen, dtype=torch.int64, device=logits.device)
    weights = torch.empty(rows, rules.chosen, dtype=torch.float32, device=logits.device)
    if rows:
        _route_kernel[(rows,)](
            logits,
            bias,
            blocks,
            experts,
            weights,
            float(rules.scale),
            rows,
            X=count,
            K=rules.chosen,
            GROUPS=rules.groups,
            GROUPS_KEPT=rules.groups_kept,
            PER_BLOCK=0 if blocks is None else rules.per_block,
            IS_SOFTMAX=rules.scoring == "softmax",
            HAS_BIAS=bias is not None,
            NORMALISES=rules.normalise,
            BLOCK_X=triton.next_power_of_2(count),
            BLOCK_G=triton.next_power_of_2(rules.groups),
            BLOCK_K=triton.next_power_of_2(rules.chosen),
            BLOCK_N=BLOCK_N,
            num_warps=1 if blocks is None else 4,
        )
    return experts, weights

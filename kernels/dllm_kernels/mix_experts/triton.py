"""The fast way: four launches, whatever is chosen. Tokens are sorted by expert, each touched expert's weights are read once, products
are left per choice, and a token's are added in the order of its choice, so that every run gives the same bits.

N tokens, K chosen experts, A = N * K choices, X experts, E hidden size, F expert size; a product of L inputs has R
results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import tuning
from dllm_kernels.route_experts import Choice
from dllm_kernels.skinny_linear.triton import add_four_bits, precision_with
from dllm_kernels.swiglu.triton import activate

if TYPE_CHECKING:
    from dllm_kernels.mix_experts import ExpertWeights

BLOCK_E = 1024


class Tiles(NamedTuple):
    """Sizes of the two products."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def reasoned(choices: int, experts: int, x_bytes: int, has_scale: bool) -> Tiles:
    """Twice the rows that an expert gets of tokens that spread evenly: most experts are done in one turn. 64 outputs: Hopper's unit takes as
    many of the product's rows at least. Weights that are turned to floats on their way take registers: with 128 inputs they spill."""
    block_m = min(max(triton.next_power_of_2(2 * choices // experts), 16), 64)
    return Tiles(block_m, 64, 32 if x_bytes == 4 else 64 if has_scale else 128, 4, 3)


def shape_of(dtype: torch.dtype, choices: int, experts: int, hidden: int, size: int) -> str:
    """The tuning bucket; of the weights' dtype."""
    few = min(max(triton.next_power_of_2(choices), 16), 4096)
    return tuning.bucket(dtype, choices=few, experts=experts, hidden=hidden, size=size)


@triton.jit(do_not_specialize=["A"])
def _sort_kernel(experts_ptr, order_ptr, starts_ptr, A, BLOCK_A: tl.constexpr):
    """Program e finds where expert e begins among the sorted choices, and lists its choices there, in order."""
    expert = tl.program_id(0)
    begin = 0
    for start in range(0, A, BLOCK_A):
        choice = start + tl.arange(0, BLOCK_A)
        # [BLOCK_A]
        chosen = tl.load(experts_ptr + choice, mask=choice < A, other=0x7FFFFFFF)
        begin += tl.sum((chosen < expert).to(tl.int32), axis=0)
    tl.store(starts_ptr + expert, begin)
    for start in range(0, A, BLOCK_A):
        choice = start + tl.arange(0, BLOCK_A)
        # [BLOCK_A]
        chosen = tl.load(experts_ptr + choice, mask=choice < A, other=0x7FFFFFFF)
        is_mine = chosen == expert
        rank = tl.cumsum(is_mine.to(tl.int32), axis=0)
        tl.store(order_ptr + begin + rank - 1, choice, mask=is_mine)
        begin += tl.sum(is_mine.to(tl.int32), axis=0)
    # The last one's end; every other's is the next one's beginning.
    tl.store(starts_ptr + expert + 1, begin, mask=expert == tl.num_programs(0) - 1)


@triton.jit
def _product_kernel(
    x_ptr,  # [N, L], or one row per sorted choice [A, L]
    order_ptr,
    starts_ptr,
    weight_ptr,  # [X, R, L]; with a gate [X, 2 * R, L]
    scale_ptr,  # as the weights, without L
    out_ptr,  # with a gate [A, R], by sorted choice; without one [A, R] float32, by choice
    R,
    L,
    K: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_SILU: tl.constexpr,
    PRECISION: tl.constexpr,  # of float32 products
    GROUP: tl.constexpr,  # inputs of a group of weights in four bits, else 0
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    expert = tl.program_id(1)
    begin, end = tl.load(starts_ptr + expert), tl.load(starts_ptr + expert + 1)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_outputs = column < R
    # 64-bit addresses: 256 experts of 4,096 by 2,048 have 2^31 weights.
    first_row = expert.to(tl.int64) * (2 * R if IS_GATED else R)
    weight_start = (first_row + column)[:, None] * L
    # An expert that nobody chose has no turns, and its weights are not read. One chosen by many has several; the weights are then in the cache.
    for first in range(begin, end, BLOCK_M):
        place = first + tl.arange(0, BLOCK_M)
        in_rows = place < end
        # [BLOCK_M]
        choice = tl.load(order_ptr + place, mask=in_rows, other=0)
        x_start = (choice // K if IS_GATED else place).to(tl.int64)[:, None] * L
        # Outputs are the product's rows, as in skinny_linear: tokens are few.
        product = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        if GROUP > 0:
            HALF: tl.constexpr = GROUP // 2
            groups = tl.cdiv(L, GROUP)
            for group in range(groups):
                low, high = group * GROUP + tl.arange(0, HALF), group * GROUP + HALF + tl.arange(0, HALF)
                # [BLOCK_M, HALF] each
                x_low = tl.load(x_ptr + x_start + low[None, :], mask=in_rows[:, None] & (low < L)[None, :], other=0.0)
                x_high = tl.load(
                    x_ptr + x_start + high[None, :], mask=in_rows[:, None] & (high < L)[None, :], other=0.0
                )
                start = (first_row + column) * groups
                product = add_four_bits(
                    product, weight_ptr, start[:, None] * HALF, scale_ptr, start, group, in_outputs, x_low, x_high, HALF
                )  # fmt: skip
                if IS_GATED:
                    start += R * groups
                    up = add_four_bits(
                        up, weight_ptr, start[:, None] * HALF, scale_ptr, start, group, in_outputs, x_low, x_high, HALF
                    )  # fmt: skip
        else:
            for start in range(0, L, BLOCK_K):
                inner = start + tl.arange(0, BLOCK_K)
                in_inputs = inner < L
                # [BLOCK_M, BLOCK_K]
                x = tl.load(x_ptr + x_start + inner[None, :], mask=in_rows[:, None] & in_inputs[None, :], other=0.0)
                inside_weight = in_outputs[:, None] & in_inputs[None, :]
                # [BLOCK_N, BLOCK_K]
                w = tl.load(weight_ptr + weight_start + inner[None, :], mask=inside_weight, other=0.0)
                product = tl.dot(w.to(x.dtype), tl.trans(x), product, input_precision=PRECISION)
                if IS_GATED:
                    # [BLOCK_N, BLOCK_K]
                    w = tl.load(weight_ptr + weight_start + (R * L + inner)[None, :], mask=inside_weight, other=0.0)
                    up = tl.dot(w.to(x.dtype), tl.trans(x), up, input_precision=PRECISION)
        product = tl.trans(product)
        up = tl.trans(up)
        if HAS_SCALE:
            product = product * tl.load(scale_ptr + first_row + column, mask=in_outputs, other=0.0)[None, :]
            if IS_GATED:
                up = up * tl.load(scale_ptr + first_row + R + column, mask=in_outputs, other=0.0)[None, :]
        if IS_GATED:
            product = activate(product, IS_SILU) * up
        out_row = place if IS_GATED else choice
        tl.store(
            out_ptr + out_row.to(tl.int64)[:, None] * R + column[None, :],
            product.to(out_ptr.dtype.element_ty),
            mask=in_rows[:, None] & in_outputs[None, :],
        )


@triton.jit
def _combine_kernel(products_ptr, weights_ptr, out_ptr, E, K: tl.constexpr, BLOCK_E: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    in_row = column < E
    total = tl.zeros((BLOCK_E,), tl.float32)
    for index in range(K):
        weight = tl.load(weights_ptr + row * K + index).to(tl.float32)
        # [BLOCK_E]
        total += weight * tl.load(products_ptr + (row * K + index) * E + column, mask=in_row, other=0.0)
    tl.store(out_ptr + row * E + column, total.to(out_ptr.dtype.element_ty), mask=in_row)


def mix_experts(x: Tensor, choice: Choice, weights: ExpertWeights, activation: str, group: int) -> Tensor:
    rows, hidden = x.shape
    experts, size = len(weights.gate_up), weights.gate_up.shape[1] // 2
    per_token = choice.experts.shape[1]
    choices = rows * per_token
    out = torch.empty_like(x)
    if not rows:
        return out
    order = torch.empty(choices, dtype=torch.int32, device=x.device)
    starts = torch.empty(experts + 1, dtype=torch.int32, device=x.device)
    _sort_kernel[(experts,)](
        choice.experts, order, starts, choices, BLOCK_A=min(max(triton.next_power_of_2(choices), 16), 1024), num_warps=4
    )
    has_scale = weights.gate_up_scale is not None
    shape = shape_of(weights.gate_up.dtype, choices, experts, hidden, size)
    tiles = tuning.tiles("mix_experts", x.device, shape, reasoned(choices, experts, x.element_size(), has_scale))
    inner = torch.empty(choices, size, dtype=x.dtype, device=x.device)
    products = torch.empty(choices, hidden, dtype=torch.float32, device=x.device)
    options = {
        "PRECISION": precision_with(weights.gate_up),
        # Of weights in four bits the scales go into the product.
        "HAS_SCALE": has_scale and not group,
        "GROUP": group,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": tiles.block_k,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }
    _product_kernel[(triton.cdiv(size, tiles.block_n), experts)](
        x, order, starts, weights.gate_up, weights.gate_up_scale, inner, size, hidden,
        K=per_token, IS_GATED=True, IS_SILU=activation == "silu", **options,
    )  # fmt: skip
    _product_kernel[(triton.cdiv(hidden, tiles.block_n), experts)](
        inner, order, starts, weights.down, weights.down_scale, products, hidden, size,
        K=per_token, IS_GATED=False, IS_SILU=False, **options,
    )  # fmt: skip
    block_e = min(triton.next_power_of_2(hidden), BLOCK_E)
    _combine_kernel[(rows, triton.cdiv(hidden, block_e))](
        products, choice.weights, out, hidden, K=per_token, BLOCK_E=block_e, num_warps=4
    )
    return out

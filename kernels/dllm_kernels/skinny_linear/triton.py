"""The fast way: every weight is read once, by programs that hold all rows; inputs are divided too where outputs are few.

M rows, N outputs, K inputs, R results, X parts of the inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import tuning
from dllm_kernels.choose import processors
from dllm_kernels.swiglu.triton import activate

IMPRECISE = 64
"""Hopper's units add products of e4m3 in 14 bits: after so many the sum goes on in float32 (arXiv:2412.19437, section 3.3.2, has 128)."""


class Plan(NamedTuple):
    """How a product is cut up."""

    block_m: int
    block_n: int
    block_k: int
    parts: int
    num_warps: int
    num_stages: int


def plan_of(rows: int, results: int, inputs: int, x_bytes: int, count: int) -> Plan:
    """Reasoned, not tuned: no GPU has measured it. Enough programs to keep `count` processors reading, all rows in one where they fit."""
    block_m = min(max(triton.next_power_of_2(rows), 16), 128)
    block_n = 64
    block_k = 64 if x_bytes == 4 or block_m > 64 else 128
    programs = triton.cdiv(rows, block_m) * triton.cdiv(results, block_n)
    # A part should walk through a few tiles, or filling its pipeline is most of its time.
    parts = max(1, min(2 * count // programs, inputs // (4 * block_k), 16))
    return Plan(block_m, block_n, block_k, parts, 8 if block_m == 128 else 4, 3 if x_bytes == 4 else 4)


def shape_of(dtype: torch.dtype, rows: int, outputs: int, inputs: int, is_gated: bool) -> str:
    """The tuning bucket; of the weights' dtype."""
    few = min(max(triton.next_power_of_2(rows), 16), 256)
    return tuning.bucket(dtype, rows=few, outputs=outputs, inputs=inputs, gated=int(is_gated))


def precision_with(weight: Tensor) -> str:
    """How float32 rows are multiplied. By eight bits, which TF32 holds, in three passes over the tensor cores, which keep the rows' digits:
    one by one such tiles spill by the kilobyte."""
    return "tf32x3" if weight.element_size() == 1 else "ieee"


@triton.jit
def _epilogue(
    product, up, row, column, inside, scale_ptr, x_scale_ptr, bias_ptr, residual_ptr, M, R,
    HAS_SCALE: tl.constexpr, HAS_X_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, IS_GATED: tl.constexpr, IS_SILU: tl.constexpr,
):  # fmt: skip
    """What follows a product [BLOCK_M, BLOCK_N], in float32; `up` is the second half of a gated one."""
    in_outputs = column < R
    if HAS_X_SCALE:
        x_scale = tl.load(x_scale_ptr + row, mask=row < M, other=0.0)[:, None]
        product = product * x_scale
        if IS_GATED:
            up = up * x_scale
    if HAS_SCALE:
        product = product * tl.load(scale_ptr + column, mask=in_outputs, other=0.0)[None, :]
    if HAS_BIAS:
        product = product + tl.load(bias_ptr + column, mask=in_outputs, other=0.0).to(tl.float32)[None, :]
    if IS_GATED:
        if HAS_SCALE:
            up = up * tl.load(scale_ptr + R + column, mask=in_outputs, other=0.0)[None, :]
        if HAS_BIAS:
            up = up + tl.load(bias_ptr + R + column, mask=in_outputs, other=0.0).to(tl.float32)[None, :]
        product = activate(product, IS_SILU) * up
    if HAS_RESIDUAL:
        place = row.to(tl.int64)[:, None] * R + column[None, :]
        product = product + tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    return product


@triton.jit
def add_four_bits(
    product, weight_ptr, weight_start, scale_ptr, scale_start, group, in_outputs, x_low, x_high, HALF: tl.constexpr
):
    """Add the products of one group of inputs to [BLOCK_N, BLOCK_M]. The scale, which the whole group shares, multiplies them at the end."""
    byte = group * HALF + tl.arange(0, HALF)
    # [BLOCK_N, HALF]
    packed = tl.load(
        weight_ptr + weight_start + byte[None, :], mask=in_outputs[:, None], other=0, eviction_policy="evict_first"
    )
    low = ((packed & 15).to(tl.int8) - 8).to(x_low.dtype)
    high = ((packed >> 4).to(tl.int8) - 8).to(x_low.dtype)
    both = tl.dot(low, tl.trans(x_low), input_precision="tf32x3")
    both = tl.dot(high, tl.trans(x_high), both, input_precision="tf32x3")
    # [BLOCK_N]
    scale = tl.load(scale_ptr + scale_start + group, mask=in_outputs, other=0.0).to(tl.float32)
    return product + both * scale[:, None]


@triton.jit(do_not_specialize=["M"])
def _linear_kernel(
    x_ptr,
    weight_ptr,
    scale_ptr,
    x_scale_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,  # [M, R], or where there are parts [X, M, N] float32
    M,
    R,
    K,
    HAS_SCALE: tl.constexpr,
    HAS_X_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_SILU: tl.constexpr,
    HAS_PARTS: tl.constexpr,
    IMPRECISE: tl.constexpr,  # inputs whose products of e4m3 are added in fewer bits
    PRECISION: tl.constexpr,  # of float32 products
    GROUP: tl.constexpr,  # inputs of a group of weights in four bits, which is a tile; else 0
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Neighbouring programs have the same weights and other rows: the second finds them in the cache.
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    part, parts = tl.program_id(2), tl.num_programs(2)
    in_rows = row < M
    in_outputs = column < R
    # 64-bit addresses: 262,144 outputs of 8,192 inputs pass 2^31.
    x_start = row.to(tl.int64)[:, None] * K
    # Outputs are the product's rows: Hopper's unit takes 64 of them at least, and of columns as few as there are.
    product = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    tiles = tl.cdiv(K, GROUP if GROUP > 0 else BLOCK_K)
    first, last = tiles * part // parts, tiles * (part + 1) // parts
    if GROUP > 0:
        HALF: tl.constexpr = GROUP // 2
        scale_start, up_scale_start = column.to(tl.int64) * tiles, (column.to(tl.int64) + R) * tiles
        for group in range(first, last):
            low, high = group * GROUP + tl.arange(0, HALF), group * GROUP + HALF + tl.arange(0, HALF)
            # [BLOCK_M, HALF] each
            x_low = tl.load(x_ptr + x_start + low[None, :], mask=in_rows[:, None] & (low < K)[None, :], other=0.0)
            x_high = tl.load(x_ptr + x_start + high[None, :], mask=in_rows[:, None] & (high < K)[None, :], other=0.0)
            product = add_four_bits(
                product, weight_ptr, scale_start[:, None] * HALF, scale_ptr, scale_start, group, in_outputs, x_low, x_high, HALF
            )  # fmt: skip
            if IS_GATED:
                up = add_four_bits(
                    up, weight_ptr, up_scale_start[:, None] * HALF, scale_ptr, up_scale_start, group, in_outputs, x_low, x_high, HALF
                )  # fmt: skip
    else:
        weight_start = column.to(tl.int64)[:, None] * K
        up_start = (column.to(tl.int64) + R)[:, None] * K
        for tile in range(first, last):
            inner = tile * BLOCK_K + tl.arange(0, BLOCK_K)
            in_inputs = inner < K
            # [BLOCK_M, BLOCK_K]
            x = tl.load(x_ptr + x_start + inner[None, :], mask=in_rows[:, None] & in_inputs[None, :], other=0.0)
            # [BLOCK_N, BLOCK_K], read once and by nobody else: it need not stay in the cache.
            inside_weight = in_outputs[:, None] & in_inputs[None, :]
            w = tl.load(
                weight_ptr + weight_start + inner[None, :], mask=inside_weight, other=0.0, eviction_policy="evict_first"
            )
            product = tl.dot(
                w.to(x.dtype), tl.trans(x), product, input_precision=PRECISION, max_num_imprecise_acc=IMPRECISE
            )
            if IS_GATED:
                # [BLOCK_N, BLOCK_K]
                w = tl.load(
                    weight_ptr + up_start + inner[None, :], mask=inside_weight, other=0.0, eviction_policy="evict_first"
                )
                up = tl.dot(w.to(x.dtype), tl.trans(x), up, input_precision=PRECISION, max_num_imprecise_acc=IMPRECISE)

    product = tl.trans(product)
    up = tl.trans(up)
    inside = in_rows[:, None] & in_outputs[None, :]
    if HAS_PARTS:
        width = 2 * R if IS_GATED else R
        place = (part.to(tl.int64) * M + row.to(tl.int64))[:, None] * width + column[None, :]
        tl.store(out_ptr + place, product, mask=inside)
        if IS_GATED:
            tl.store(out_ptr + place + R, up, mask=inside)
    else:
        result = _epilogue(
            product, up, row, column, inside, scale_ptr, x_scale_ptr, bias_ptr, residual_ptr, M, R,
            HAS_SCALE, HAS_X_SCALE, HAS_BIAS, HAS_RESIDUAL, IS_GATED, IS_SILU,
        )  # fmt: skip
        place = row.to(tl.int64)[:, None] * R + column[None, :]
        tl.store(out_ptr + place, result.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M", "X"])
def _finish_kernel(
    parts_ptr,
    scale_ptr,
    x_scale_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    M,
    R,
    X,
    HAS_SCALE: tl.constexpr,
    HAS_X_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_SILU: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0) + tl.arange(0, 1)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (row < M)[:, None] & (column < R)[None, :]
    width = 2 * R if IS_GATED else R
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    product = tl.zeros((1, BLOCK_N), tl.float32)
    up = tl.zeros((1, BLOCK_N), tl.float32)
    # In order: the same sum on every run.
    for part in range(X):
        start = parts_ptr + tl.cast(part, tl.int64) * M * width
        # [1, BLOCK_N]
        product += tl.load(start + place, mask=inside, other=0.0)
        if IS_GATED:
            # [1, BLOCK_N]
            up += tl.load(start + place + R, mask=inside, other=0.0)
    result = _epilogue(
        product, up, row, column, inside, scale_ptr, x_scale_ptr, bias_ptr, residual_ptr, M, R,
        HAS_SCALE, HAS_X_SCALE, HAS_BIAS, HAS_RESIDUAL, IS_GATED, IS_SILU,
    )  # fmt: skip
    place = row.to(tl.int64)[:, None] * R + column[None, :]
    tl.store(out_ptr + place, result.to(out_ptr.dtype.element_ty), mask=inside)


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    x_scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gate: str | None,
    dtype: torch.dtype,
    group: int,
) -> Tensor:
    rows, inputs = x.shape
    outputs = weight.shape[0]
    results = outputs if gate is None else outputs // 2
    out = torch.empty(rows, results, dtype=dtype, device=x.device)
    if not rows:
        return out
    reasoned = plan_of(rows, results, inputs, x.element_size(), processors(x.device))
    shape = shape_of(weight.dtype, rows, outputs, inputs, gate is not None)
    plan = tuning.tiles("skinny_linear", x.device, shape, reasoned)
    target = out
    if plan.parts > 1:
        target = torch.empty(plan.parts, rows, outputs, dtype=torch.float32, device=x.device)
    flags = {
        # Of weights in four bits the scales go into the product.
        "HAS_SCALE": scale is not None and not group,
        "HAS_X_SCALE": x_scale is not None,
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "IS_GATED": gate is not None,
        "IS_SILU": gate == "silu",
    }
    grid = (triton.cdiv(rows, plan.block_m), triton.cdiv(results, plan.block_n), plan.parts)
    _linear_kernel[grid](
        x,
        weight,
        scale,
        x_scale,
        bias,
        residual,
        target,
        rows,
        results,
        inputs,
        **flags,
        HAS_PARTS=plan.parts > 1,
        IMPRECISE=IMPRECISE if x_scale is not None else None,
        PRECISION=precision_with(weight),
        GROUP=group,
        BLOCK_M=plan.block_m,
        BLOCK_N=plan.block_n,
        BLOCK_K=plan.block_k,
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )
    if plan.parts > 1:
        block_n = min(triton.next_power_of_2(results), 512)
        _finish_kernel[(rows, triton.cdiv(results, block_n))](
            target,
            scale,
            x_scale,
            bias,
            residual,
            out,
            rows,
            results,
            plan.parts,
            **flags,
            BLOCK_N=block_n,
            num_warps=4,
        )
    return out

"""The fast way: one program per row, the row in registers. E hidden size."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm_kernel(
    x_ptr,
    delta_ptr,
    weight_ptr,
    total_ptr,
    out_ptr,
    eps,
    E,
    HAS_DELTA: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    # 64-bit addresses: a prefill of 2^19 tokens of 4,096 passes 2^31 elements.
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_E)
    in_row = column < E
    # [BLOCK_E]
    x = tl.load(x_ptr + row * E + column, mask=in_row, other=0.0)
    if HAS_DELTA:
        # [BLOCK_E]
        delta = tl.load(delta_ptr + row * E + column, mask=in_row, other=0.0)
        # Rounded as the stream is stored: the norm sees what the next layer will add to.
        x = (x.to(tl.float32) + delta.to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row * E + column, x, mask=in_row)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / E + eps)
    # [BLOCK_E]
    weight = tl.load(weight_ptr + column, mask=in_row, other=0.0).to(tl.float32)
    normed = (wide * scale).to(x.dtype).to(tl.float32)
    tl.store(out_ptr + row * E + column, (normed * weight).to(out_ptr.dtype.element_ty), mask=in_row)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _launch(x.contiguous(), None, weight, eps)[1]


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _launch(x.contiguous(), delta.contiguous(), weight, eps)


def _launch(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    size = x.shape[-1]
    rows = x.numel() // size
    dtype = x.dtype if delta is None else torch.promote_types(x.dtype, delta.dtype)
    total = x if delta is None else torch.empty(x.shape, dtype=dtype, device=x.device)
    out = torch.empty(x.shape, dtype=torch.promote_types(dtype, weight.dtype), device=x.device)
    block = triton.next_power_of_2(size)
    if rows:
        _rms_norm_kernel[(rows,)](
            x,
            delta,
            weight,
            total,
            out,
            eps,
            size,
            HAS_DELTA=delta is not None,
            BLOCK_E=block,
            # 16 numbers a thread and row: a canvas has few rows, so each must be spread wide.
            num_warps=min(max(block // 512, 1), 16),
        )
    return total, out

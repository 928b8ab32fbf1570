"""The fast way: one program per row, the row in registers. K numbers of a row.

In PyTorch it is seven launches, before each of a step's products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _quantise_kernel(x_ptr, values_ptr, scale_ptr, K, IS_INTEGER: tl.constexpr, BLOCK_K: tl.constexpr):
    # 64-bit addresses: a prefill of 2^18 tokens of 12,288 passes 2^31 elements.
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_K)
    in_row = column < K
    largest: tl.constexpr = 127.0 if IS_INTEGER else 448.0
    # [BLOCK_K]
    x = tl.load(x_ptr + row * K + column, mask=in_row, other=0.0).to(tl.float32)
    # Rounded divisions: the reference's very bits.
    scale = tl.math.div_rn(tl.max(tl.abs(x), axis=0), tl.full((), largest, tl.float32))
    scale = tl.maximum(scale, 1.1754943508222875e-38)
    scaled = tl.math.div_rn(x, tl.full((BLOCK_K,), 0.0, tl.float32) + scale)
    scaled = tl.minimum(tl.maximum(scaled, -largest), largest)
    if IS_INTEGER:
        # Adding and taking away 1.5 * 2^23 leaves a float32 of that size rounded to whole, ties to even.
        scaled = (scaled + 12582912.0) - 12582912.0
    tl.store(values_ptr + row * K + column, scaled.to(values_ptr.dtype.element_ty), mask=in_row)
    tl.store(scale_ptr + row, scale)


def quantise_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    size = x.shape[-1]
    rows = x.numel() // size
    values = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(size)
    if rows:
        _quantise_kernel[(rows,)](
            x,
            values,
            scale,
            size,
            IS_INTEGER=dtype == torch.int8,
            BLOCK_K=block,
            num_warps=min(max(block // 512, 1), 16),
        )
    return values, scale

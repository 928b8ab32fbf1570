"""The fast way: one pass, nothing between gate and product in memory. F inner size."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_F = 1024


@triton.jit
def activate(gate, IS_SILU: tl.constexpr):
    """Activation of float32 numbers."""
    if IS_SILU:
        # exp(-gate) overflows to infinity below -88, and the quotient is then the right zero.
        return gate / (1.0 + tl.exp(-gate))
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)  # sqrt(2 / pi)
    # tanh(inner) = 1 - 2 / (1 + exp(2 * inner)): no overflow turns into NaN.
    return 0.5 * gate * (2.0 - 2.0 / (1.0 + tl.exp(2.0 * inner)))


@triton.jit
def _swiglu_kernel(gate_up_ptr, out_ptr, F, IS_SILU: tl.constexpr, BLOCK_F: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_row = column < F
    # [BLOCK_F]
    gate = tl.load(gate_up_ptr + row * 2 * F + column, mask=in_row, other=0.0)
    # [BLOCK_F]
    up = tl.load(gate_up_ptr + row * 2 * F + F + column, mask=in_row, other=0.0)
    active = activate(gate.to(tl.float32), IS_SILU).to(gate.dtype).to(tl.float32)
    tl.store(out_ptr + row * F + column, (active * up.to(tl.float32)).to(gate.dtype), mask=in_row)


def swiglu(gate_up: Tensor, activation: str) -> Tensor:
    gate_up = gate_up.contiguous()
    size = gate_up.shape[-1] // 2
    rows = gate_up.numel() // (2 * size)
    out = torch.empty(*gate_up.shape[:-1], size, dtype=gate_up.dtype, device=gate_up.device)
    block = min(triton.next_power_of_2(size), BLOCK_F)
    if rows:
        _swiglu_kernel[(rows, triton.cdiv(size, block))](
            gate_up, out, size, IS_SILU=activation == "silu", BLOCK_F=block, num_warps=4
        )
    return out

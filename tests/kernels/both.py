"""Running one op on either implementation: through its front door, on the device that suits it, into memory full of NaN."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dllm_kernels
from dllm_kernels.choose import Kind
from tests.kernels.interpreter import mend

mend()

# Triton exists for Linux only.
KINDS: list[Kind] = ["reference", "triton"] if sys.platform == "linux" else ["reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Both round at the same places, so half-precision results differ by one unit in the last place at most, where a float32 that
# differs in its last bits falls on the other side. Float32 sums of a few thousand terms in another order: 16 units of 2^-24.
RTOL = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
ATOL = {torch.float32: 2e-6, torch.bfloat16: 2**-14, torch.float16: 2**-14}


def on(kind: Kind, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call an op with tensors of the CPU and get tensors of the CPU back, whichever device did the work.

    Memory that the op allocates is full of NaN first (largest integers): what it forgets to write shows.
    """
    device = device_of(kind)
    mode_before = torch.get_deterministic_debug_mode()
    dllm_kernels.use(kind)
    # PyTorch fills uninitialised memory with NaN in this mode.
    torch.set_deterministic_debug_mode("warn")
    try:
        moved = {name: to(value, device) for name, value in options.items()}
        return to(call(*(to(argument, device) for argument in arguments), **moved), "cpu")
    finally:
        dllm_kernels.use("auto")
        torch.set_deterministic_debug_mode(mode_before)


def device_of(kind: Kind) -> str:
    """Where an implementation runs: Triton on a GPU where there is one, else in its interpreter."""
    return "cuda" if kind == "triton" and torch.cuda.is_available() else "cpu"


def to(value: Any, device: str) -> Any:
    """Tensors in tuples and named tuples too."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        parts = [to(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def assert_close(got: Any, expected: Any) -> None:
    """Within the tolerances of `expected`'s dtype; integers and booleans exactly."""
    if isinstance(expected, tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_close(one, other)
        return
    assert got.dtype == expected.dtype
    rtol, atol = RTOL.get(expected.dtype, 0.0), ATOL.get(expected.dtype, 0.0)
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


def randn(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Normal numbers, the same for the same shape."""
    generator = torch.Generator().manual_seed(sum(size * 31**place for place, size in enumerate(shape)))
    return (torch.randn(shape, generator=generator) * scale).to(dtype)

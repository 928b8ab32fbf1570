"""Rows of numbers in eight bits, a scale for each.

Dimensions: N rows, K numbers of a row.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels.checks import check_floating
from dllm_kernels.choose import choose

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""int8 leaves out -128, so that both signs reach equally far."""


class Rows(NamedTuple):
    """Rows of numbers in eight bits: `values * scale`."""

    values: Tensor
    """[..., K], int8 or float8_e4m3fn."""
    scale: Tensor
    """[..., 1], float32."""


def quantise_rows(x: Tensor, dtype: torch.dtype) -> Rows:
    """Scale every row so that its largest magnitude is the type's largest, then round to the nearest, ties to even.

    A row's result depends on that row alone. Errors: at most scale / 2 for int8; for e4m3 at most a 16th of the number, or scale / 1024
    where that is more (its smallest numbers are 1 / 512 apart).

    Args:
        x: [..., K], floating point; taken as float32.
        dtype: int8 or float8_e4m3fn.

    What a row with an infinity or a NaN becomes is not said.

    Raises:
        ValueError: If K is 0 or the dtype another.
    """
    check_floating("x", x)
    if x.dim() < 1 or x.shape[-1] == 0:
        raise ValueError(f"x: expected [..., K] with K above 0, got {list(x.shape)}")
    if dtype not in LARGEST:
        raise ValueError(f"dtype: expected int8 or float8_e4m3fn, got {dtype}")
    return Rows(*choose("quantise_rows", x).quantise_rows(x, dtype))


def restore_rows(rows: Rows, dtype: torch.dtype) -> Tensor:
    """The numbers that the rows stand for, [..., K] in `dtype`; multiplied in float32 and rounded once."""
    if rows.values.dtype == torch.float8_e4m3fn and rows.values.device.type == "cpu":
        # PyTorch converts e4m3 one by one there: 207 µs for 43,520 numbers on one core, these 256 looked up 56.
        found = (
            _numbers_of_e4m3().index_select(0, rows.values.view(torch.uint8).flatten().int()).view(rows.values.shape)
        )
    else:
        found = rows.values.float()
    return (found * rows.scale).to(dtype)


@functools.cache
def _numbers_of_e4m3() -> Tensor:
    return torch.arange(256, dtype=torch.uint8, device="cpu").view(torch.float8_e4m3fn).float()

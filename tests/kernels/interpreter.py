"""Triton's interpreter, where it does otherwise than a GPU.

It cuts float32 off on the way to bfloat16, and rounds ties away on the way to e4m3, where a GPU rounds to the nearest, ties to even; it takes integers for the bits of bfloat16 when it
converts them, and multiplies bfloat16 matrices by their bits; and a comparison of single numbers becomes a float when it is spread over a tile. So in 3.6 and in 3.7.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch


def mend() -> None:
    """Make conversions and products of the interpreter, where it is on, those of a GPU. Twice is the same as once."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    own = getattr(interpreter, "_own_convert_float", interpreter._convert_float)
    interpreter._own_convert_float = own

    def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            return narrow(data)
        if (source, target) == (tl.float32, tl.float8e4nv):
            exact = torch.from_numpy(np.array(data, dtype=np.float32))
            return exact.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        if (source, target) == (tl.bfloat16, tl.float32):
            return widen(data).view(np.uint32)
        return own(data, source, target, rounding)

    def dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        left, right = (values_of(one.data, one.dtype.scalar) for one in (a, b))
        # Half-precision products are exact in float32, and added there.
        total = np.matmul(left.astype(d.data.dtype), right.astype(d.data.dtype)) + d.data
        return TensorHandle(total, d.dtype.scalar)

    def splat(self: Any, shape: Any, arg: Any) -> Any:
        shape = getattr(shape, "shape", shape)
        return TensorHandle(np.full(shape, arg.data.ravel()[0], dtype=arg.data.dtype), arg.dtype.scalar)

    cast = InterpreterBuilder.cast_impl

    def from_integer(self: Any, source: Any, kind: Any) -> Any:
        if kind.scalar == tl.bfloat16:
            return TensorHandle(narrow(source.data.astype(np.float32)), kind.scalar)
        return cast(self, source, kind)

    InterpreterBuilder.create_si_to_fp = from_integer
    interpreter._convert_float = convert
    InterpreterBuilder.create_splat = splat
    InterpreterBuilder.create_dot = dot


def values_of(data: Any, kind: Any) -> Any:
    """Numbers of an operand of a product, of which the interpreter keeps small floats as bit patterns."""
    import triton.language as tl

    if kind == tl.bfloat16:
        return widen(data)
    if kind == tl.float8e4nv:
        return torch.from_numpy(np.array(data)).view(torch.float8_e4m3fn).float().numpy()
    return data


def narrow(data: Any) -> Any:
    """float32 to the bit patterns of bfloat16, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(data, dtype=np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)


def widen(data: Any) -> Any:
    """Bit patterns of bfloat16 to float32."""
    return (np.ascontiguousarray(data).astype(np.uint32) << 16).view(np.float32)

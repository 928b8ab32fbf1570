"""Products of few rows with large weights, and what follows them in the same launch.

Dimensions: M rows (16 to 256 is what it is made for), N outputs, K inputs.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from dllm_kernels.checks import check_tensor
from dllm_kernels.choose import KERNEL_DTYPES, choose
from dllm_kernels.four_bits import check_packed

Gate: TypeAlias = Literal["silu", "gelu_tanh"]


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    *,
    scale: Tensor | None = None,
    x_scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gate: Gate | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`x @ weight.T`, and then a bias, a gate and a residual, in float32 and rounded once at the end.

    Args:
        x: [M, K], contiguous, float32, bfloat16 or float16; or float8_e4m3fn with a scale, as `quantise_rows` gives them.
        weight: [N, K], contiguous; the dtype of x, or with a scale int8 or float8_e4m3fn (where x is that, too), or uint8, four bits packed
            by `quantise_groups`.
        scale: [N], float32: a row's weights are `weight * scale`. Of four bits [N, C], bfloat16: each group's.
        x_scale: [M, 1], float32: a row of x is `x * x_scale`.
        bias: [N], the dtype of the result; added to the product.
        residual: [M, O], contiguous, the dtype of the result; added at the end.
        gate: The first half of the outputs, activated, times the second half (SwiGLU, GeGLU): O is N / 2. O is N without one.
        dtype: Of the result: the dtype of x, or bfloat16 by default where that is float8_e4m3fn.

    Returns:
        [M, O]. Products of e4m3 by e4m3 are added in fewer bits than float32 inside a GPU's units, 64 inputs at a time.

    Raises:
        ValueError: If a shape, dtype or device is not as above.

    Source: gates, arXiv:2002.05202; the split over inputs is that of Stream-K's fixed ancestor, split-K.
    """
    known = KERNEL_DTYPES if x_scale is None else (torch.float8_e4m3fn,)
    if x.dim() != 2 or x.shape[1] == 0 or x.dtype not in known or not x.is_contiguous():
        wanted = "float32, bfloat16 or float16" if x_scale is None else "float8_e4m3fn where there is a scale"
        raise ValueError(f"x: expected contiguous [M, K] {wanted}, got {list(x.shape)} {x.dtype}")
    result_dtype = dtype or (x.dtype if x_scale is None else torch.bfloat16)
    if result_dtype != x.dtype and (x_scale is None or result_dtype not in KERNEL_DTYPES):
        raise ValueError(f"dtype: expected {x.dtype if x_scale is None else 'a float of 16 or 32 bits'}, got {dtype}")
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ValueError(f"weight: expected [N, {x.shape[1]}] with N above 0, got {list(weight.shape)}")
    outputs = weight.shape[0]
    if x_scale is not None:
        check_tensor("x_scale", x_scale, (len(x), 1), torch.float32, x.device)
    group = _check_weight(x, weight, scale)
    if bias is not None:
        check_tensor("bias", bias, (outputs,), result_dtype, x.device)
    if gate is not None and (gate not in get_args(Gate) or outputs % 2):
        raise ValueError(f"gate: expected one of {', '.join(get_args(Gate))} and an even N, got {gate} and {outputs}")
    if residual is not None:
        width = outputs if gate is None else outputs // 2
        check_tensor("residual", residual, (len(x), width), result_dtype, x.device)
    out: Tensor = choose("skinny_linear", x, weight, bias, residual).skinny_linear(
        x, weight, scale, x_scale, bias, residual, gate, result_dtype, group
    )
    return out


def _check_weight(x: Tensor, weight: Tensor, scale: Tensor | None) -> int:
    """The size of a group of weights in four bits, else 0."""
    shape = (len(weight), x.shape[1])
    if weight.dtype == torch.uint8 and x.dtype in KERNEL_DTYPES:
        group = check_packed("weight", weight, scale, shape)
        if weight.device != x.device or scale is None or scale.device != x.device:
            raise ValueError(f"weight: expected it and its scale on {x.device}, got {weight.device}")
        return group
    eight = (torch.float8_e4m3fn,) if x.dtype == torch.float8_e4m3fn else (torch.int8, torch.float8_e4m3fn)
    stored_as = weight.dtype if scale is not None and weight.dtype in eight else x.dtype if scale is None else eight[0]
    check_tensor("weight", weight, shape, stored_as, x.device)
    if scale is not None:
        check_tensor("scale", scale, (len(weight),), torch.float32, x.device)
    elif x.dtype not in KERNEL_DTYPES:
        raise ValueError("scale: expected one for weights of float8_e4m3fn, got None")
    return 0

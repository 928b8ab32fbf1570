"""Products of few rows with large weights, and what follows them in the same launch.

Dimensions: M rows (16 to 256 is what it is made for), N outputs, K inputs.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from dllm_kernels.checks import check_tensor
from dllm_kernels.choose import KERNEL_DTYPES, choose

Gate: TypeAlias = Literal["silu", "gelu_tanh"]


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gate: Gate | None = None,
) -> Tensor:
    """`x @ weight.T`, and then a bias, a gate and a residual, in float32 and rounded once at the end.

    Args:
        x: [M, K], contiguous, float32, bfloat16 or float16.
        weight: [N, K], contiguous; the dtype of x, or int8 with a scale.
        scale: [N], float32: a row's weights are `weight * scale`.
        bias: [N], the dtype of x; added to the product.
        residual: [M, O], contiguous, the dtype of x; added at the end.
        gate: The first half of the outputs, activated, times the second half (SwiGLU, GeGLU): O is N / 2. O is N without one.

    Returns:
        [M, O], in the dtype of x.

    Raises:
        ValueError: If a shape, dtype or device is not as above.

    Source: gates, arXiv:2002.05202; the split over inputs is that of Stream-K's fixed ancestor, split-K.
    """
    if x.dim() != 2 or x.shape[1] == 0 or x.dtype not in KERNEL_DTYPES or not x.is_contiguous():
        raise ValueError(f"x: expected contiguous [M, K] float32, bfloat16 or float16, got {list(x.shape)} {x.dtype}")
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ValueError(f"weight: expected [N, {x.shape[1]}] with N above 0, got {list(weight.shape)}")
    outputs = weight.shape[0]
    check_tensor("weight", weight, (outputs, x.shape[1]), x.dtype if scale is None else torch.int8, x.device)
    if scale is not None:
        check_tensor("scale", scale, (outputs,), torch.float32, x.device)
    if bias is not None:
        check_tensor("bias", bias, (outputs,), x.dtype, x.device)
    if gate is not None and (gate not in get_args(Gate) or outputs % 2):
        raise ValueError(f"gate: expected one of {', '.join(get_args(Gate))} and an even N, got {gate} and {outputs}")
    if residual is not None:
        width = outputs if gate is None else outputs // 2
        check_tensor("residual", residual, (len(x), width), x.dtype, x.device)
    out: Tensor = choose("skinny_linear", x, weight, bias, residual).skinny_linear(
        x, weight, scale, bias, residual, gate
    )
    return out

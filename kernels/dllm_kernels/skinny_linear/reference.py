"""The answer, in plain PyTorch and float32. M rows, N outputs, K inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.four_bits import unpack_groups
from dllm_kernels.swiglu.reference import swiglu


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
    if group and scale is not None:
        out = F.linear(x.float(), unpack_groups(weight, scale, x.shape[1]))
    else:
        out = F.linear(x.float(), weight.float())
        if scale is not None:
            out = out * scale
    if x_scale is not None:
        out = out * x_scale
    if bias is not None:
        out = out + bias.float()
    if gate is not None:
        out = swiglu(out, gate)
    if residual is not None:
        out = out + residual.float()
    return out.to(dtype)

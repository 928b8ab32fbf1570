"""RMSNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dllm_kernels import add_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last dimension, then scale; see `dllm_kernels.rms_norm`."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def after(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """The stream `x` [..., E] with what the last layer added to it, and that normalised."""
        return (x, self(x)) if delta is None else add_rms_norm(x, delta, self.weight, self.eps)

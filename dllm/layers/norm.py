"""RMSNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last dimension, then scale.

    In half precision the division is done in float32 and rounded before the weight multiplies, as all families here were trained
    (LLaDA, Qwen, Ministral). Root mean square normalisation: arXiv:1910.07467.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.float16, torch.bfloat16):
            return F.rms_norm(x.float(), (x.shape[-1],), None, self.eps).to(x.dtype) * self.weight
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)

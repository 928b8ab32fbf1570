"""The answer, in plain PyTorch. K numbers of a row."""

from __future__ import annotations

import torch
from torch import Tensor


def quantise_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    from dllm_kernels.quantise_rows import LARGEST

    wide = x.float()
    largest = LARGEST[dtype]
    scale = wide.abs().amax(-1, keepdim=True) / largest
    # A row of zeros stays one; below this scale the division would overflow.
    scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
    # Dividing may end an ulp above the largest number.
    scaled = (wide / scale).clamp(-largest, largest)
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scale

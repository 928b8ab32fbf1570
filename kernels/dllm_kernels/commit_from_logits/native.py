"""The fast way on a CPU (`native/commit.c`): two passes over each row, where PyTorch makes fifteen. N rows, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels import native
from dllm_kernels.commit_from_logits import reference
from dllm_kernels.commit_from_logits.contract import CommitStats, Given


def commit_from_logits(
    logits: Tensor,
    temperature: float,
    seed: int | Tensor,
    forbidden: Tensor | None,
    given: Given | None,
    out: CommitStats,
) -> None:
    """Write the statistics of `logits` [N, V] to `out`. Draws, forbidden and given tokens and half precision are the reference's."""
    library = native.library()
    is_plain = temperature == 0.0 and forbidden is None and given is None
    is_float = logits.dtype == torch.float32 and logits.stride(1) == 1
    if library is None or not is_plain or not is_float or not all(part.is_contiguous() for part in out):
        reference.commit_from_logits(logits, temperature, seed, forbidden, given, out)
        return
    library.commit_rows(*native.arguments(logits, *logits.shape, logits.stride(0), *out))

"""The answer, in plain PyTorch: all logits in float32, then the commit. N rows, V vocabulary, E hidden size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.commit_from_logits import reference
from dllm_kernels.commit_from_logits.contract import CommitStats, Given

if TYPE_CHECKING:
    from dllm_kernels.head_commit import Held

PIECE = 2**25
"""Weights turned to float32 at once: 128 MB, not a copy of the whole head."""


def head_commit(
    hidden: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    temperature: float,
    seed: int | Tensor,
    forbidden: Tensor | None,
    held: Held | None,
    given: Given | None,
    out: CommitStats,
) -> None:
    step = max(1, PIECE // weight.shape[1])
    wide = hidden.float()
    logits = torch.cat(
        [F.linear(wide, weight[first : first + step].float()) for first in range(0, len(weight), step)], dim=1
    )
    if scale is not None:
        logits *= scale
    if held is not None:
        logits.masked_fill_(held.rows.unsqueeze(1) & held.tokens, -torch.inf)
    reference.commit_from_logits(logits, temperature, seed, forbidden, given, out)

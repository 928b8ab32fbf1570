"""The fast way on a CPU (`native/canvas.c`), for the one rule that most drafts follow. B drafts, W canvas positions."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dllm_kernels import native
from dllm_kernels.select import reference

if TYPE_CHECKING:
    from dllm_kernels.select import CanvasColumns, RuleColumns, ScoreColumns


def select(
    scores: ScoreColumns,
    open: Tensor,
    urgent: Tensor,
    rules: RuleColumns,
    floor: Tensor | None,
    occurring: Set[str],
    stable: Tensor | None,
    doubtful: Tensor | None,
    canvas: CanvasColumns | None,
) -> tuple[Tensor, Tensor]:
    """By the threshold rule and a floor alone, nothing written; all else is the reference's."""
    library = native.library()
    if library is None or occurring != {"threshold"} or floor is None or canvas is not None:
        return reference.select(scores, open, urgent, rules, floor, occurring, stable, doubtful, canvas)
    given = (scores.token, scores.probability, open, urgent, doubtful, rules.threshold, floor)
    read = [None if tensor is None else tensor.contiguous() for tensor in given]
    chosen, forced = torch.empty(open.shape, dtype=torch.bool), torch.empty(open.shape, dtype=torch.bool)
    library.select_by_threshold(*native.arguments(*open.shape, *read, chosen, forced))
    return chosen, forced

"""The fast way on a CPU (`native/canvas.c`), where PyTorch makes some forty small calls. B drafts, W canvas positions, n rows of logits, V vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dllm_kernels import native
from dllm_kernels.stutters import reference

if TYPE_CHECKING:
    from dllm_kernels.stutters import Classes


def ban(
    logits: Tensor, canvas: Tensor, cell: Tensor, tokens: Tensor, decided: Tensor, strict: Tensor, classes: Classes
) -> None:
    library = native.library()
    if library is None or not logits.is_contiguous():
        reference.ban(logits, canvas, cell, tokens, decided, strict, classes)
        return
    read = _contiguous(canvas, cell, tokens, decided, strict, *classes)
    library.ban_stutters(
        *native.arguments(logits, *logits.shape, *read[:2], tokens.shape[1], *read[2:], len(classes.ends))
    )


def joint(tokens: Tensor, decided: Tensor, chosen: Tensor, strict: Tensor, classes: Classes) -> Tensor:
    library = native.library()
    if library is None:
        return reference.joint(tokens, decided, chosen, strict, classes)
    waits = torch.empty(tokens.shape, dtype=torch.bool)
    read = _contiguous(tokens, decided, chosen, strict, *classes[:2])
    library.joint_stutters(*native.arguments(*tokens.shape, *read, waits))
    return waits


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]

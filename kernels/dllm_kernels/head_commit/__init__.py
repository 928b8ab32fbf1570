"""The output head and the commit in one: what a step needs of every row, without its logits ever standing in memory.

Dimensions: N rows (live positions), V vocabulary, E hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels.checks import check_tensor
from dllm_kernels.choose import choose
from dllm_kernels.commit_from_logits.contract import LOGIT_DTYPES, CommitStats, Given, check_commit, empty_stats


class Held(NamedTuple):
    """Tokens that some of the rows may not take: the end of a reply, where the reply must go on."""

    tokens: Tensor
    """[V], bool."""
    rows: Tensor
    """[N], bool: which rows."""


def head_commit(
    hidden: Tensor,
    weight: Tensor,
    *,
    scale: Tensor | None = None,
    temperature: float = 0.0,
    seed: int | Tensor = 0,
    forbidden: Tensor | None = None,
    held: Held | None = None,
    given: Given | None = None,
    out: CommitStats | None = None,
) -> CommitStats:
    """`commit_from_logits(hidden @ weight.T)` for canvases small enough that reading the head is all the work.

    Logits are float32 throughout: they are not rounded to half precision as a product that is stored would be, so a near tie may fall
    otherwise than behind `commit_from_logits` of rounded logits. Noise is the same for the same seed.

    Args:
        hidden: [N, E], contiguous, float32, bfloat16 or float16.
        weight: [V, E], contiguous; the dtype of `hidden`, or int8 with a scale.
        scale: [V], float32: a row's weights are `weight * scale`.
        held: Tokens that are forbidden to some rows only.
        temperature, seed, forbidden, given, out: As in `commit_from_logits`.

    Returns:
        As `commit_from_logits`.

    Raises:
        ValueError: If a shape, dtype, device, temperature or seed is not as above.

    Source: online softmax over tiles, arXiv:1805.02867.
    """
    if hidden.dim() != 2 or hidden.shape[1] == 0 or hidden.dtype not in LOGIT_DTYPES or not hidden.is_contiguous():
        raise ValueError(
            f"hidden: expected contiguous [N, E] float32, bfloat16 or float16, got {list(hidden.shape)} {hidden.dtype}"
        )
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ValueError(f"weight: expected [V, E] with V above 0, got {list(weight.shape)}")
    stored_as = hidden.dtype if scale is None else torch.int8
    check_tensor("weight", weight, (weight.shape[0], hidden.shape[1]), stored_as, hidden.device)
    if scale is not None:
        check_tensor("scale", scale, weight.shape[:1], torch.float32, hidden.device)
    rows = len(hidden)
    check_commit((rows, weight.shape[0]), hidden.device, temperature, seed, forbidden, given, out)
    if held is not None:
        check_tensor("held tokens", held.tokens, (weight.shape[0],), torch.bool, hidden.device)
        check_tensor("held rows", held.rows, (rows,), torch.bool, hidden.device)
    stats = empty_stats(hidden) if out is None else out
    if rows:
        choose("head_commit", hidden, weight, scale).head_commit(
            hidden, weight, scale, temperature, seed, forbidden, held, given, stats
        )
    return stats

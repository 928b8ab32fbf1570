"""Which positions a step commits, and writing them: for a whole batch of canvases at once, on the device.

Dimensions: B drafts, W canvas positions.
"""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels.checks import check_tensor
from dllm_kernels.choose import choose

RULES = ("threshold", "count", "factor", "profile", "entropy", "margin", "left", "random", "stability")
"""What `RuleColumns.rule` indexes. `count`, `left` and `random` want nothing by themselves: the floor alone chooses."""
LEADING = frozenset({"factor", "profile", "entropy"})
"""Rules that take a leading run of their order."""
ONE = 2**36
"""1 in fixed point: a float32 probability above 2^-12 keeps all its digits, and 2^17 positions of 64 nats fit 63 bits."""
MOST_NATS = 64.0
ORDER_STREAM = 0x6F726465
"""Last counter word of the noise behind `random`, so that no sampling noise repeats it."""


class ScoreColumns(NamedTuple):
    """What the model says of each position, [B, W]. Read at open positions only."""

    token: Tensor
    """int64; -1 closes its position."""
    probability: Tensor
    """float32, as the next two."""
    margin: Tensor
    entropy: Tensor


class RuleColumns(NamedTuple):
    """Each row's rule and its parameters, [B]."""

    rule: Tensor
    """int64: index into `RULES`."""
    threshold: Tensor
    """float32."""
    factor: Tensor
    """int64, in units of 1 / `ONE`."""
    entropy_bound: Tensor
    """int64, in the same units."""
    seed: Tensor
    """int64, in [0, 2^63)."""


class CanvasColumns(NamedTuple):
    """What a step changes, in place. Contiguous."""

    tokens: Tensor
    """[B, W] int64."""
    is_masked: Tensor
    """[B, W] bool."""
    confidence: Tensor
    """[B, W] float32."""
    steps_left: Tensor
    """[B] int64: less one, not below 0."""
    committed: Tensor
    """[B] int64: plus the positions chosen."""
    forced: Tensor
    """[B] int64: plus those that only the floor asked for."""


def select(
    scores: ScoreColumns,
    open: Tensor,
    urgent: Tensor,
    rules: RuleColumns,
    floor: Tensor | None = None,
    *,
    occurring: Set[str],
    stable: Tensor | None = None,
    doubtful: Tensor | None = None,
    canvas: CanvasColumns | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose positions: what each row's rule wants of its open positions, and at least its floor of the urgent ones.

    The floor is filled in the rule's own order of confidence: by probability, for `margin` by margin, for `entropy` by ascending
    entropy, for `left` by position, for `random` by noise named by the row's seed and the position. Ties go left. Sums are exact, in
    fixed point, so the choice is the same on every device. Nothing is read back to the host.

    Args:
        open: [B, W] bool, positions that may be committed.
        urgent: [B, W] bool, those of them that the floor counts.
        floor: [B] int64. At least so many urgent positions are chosen, or all there are; at least one while there is one. None is the
            deadline's: urgent positions over the canvas's steps left, rounded up.
        occurring: Names of the rules that occur, so that only what is asked for is computed.
        stable: [B, W] bool, for `stability` only: where the distribution stayed put.
        doubtful: [B, W] bool, what no rule may want yet. The floor may choose it all the same.
        canvas: Where to write: tokens and their probabilities at the positions chosen, which are then no longer masked.

    Returns:
        The positions chosen, and those of them that only the floor asked for, [B, W] bool each.

    Raises:
        ValueError: If a shape, dtype or device is not as above, a rule that occurs lacks what it needs, or there is neither floor nor
            canvas.

    Source: the rules are those of Fast-dLLM (arXiv:2505.22618), LLaDA (arXiv:2502.09992), the EB-sampler (arXiv:2505.24857), Dream
    (arXiv:2508.15487), KLASS (arXiv:2511.05664) and arXiv:2606.02955.
    """
    _check(scores, open, urgent, rules, floor, occurring, stable, doubtful, canvas)
    chosen: tuple[Tensor, Tensor] = choose("select", scores.probability).select(
        scores, open, urgent, rules, floor, occurring, stable, doubtful, canvas
    )
    return chosen


def _check(
    scores: ScoreColumns,
    open: Tensor,
    urgent: Tensor,
    rules: RuleColumns,
    floor: Tensor | None,
    occurring: Set[str],
    stable: Tensor | None,
    doubtful: Tensor | None,
    canvas: CanvasColumns | None,
) -> None:
    device = open.device
    if open.dim() != 2 or open.shape[1] == 0:
        raise ValueError(f"open: expected [B, W] with W above 0, got {list(open.shape)}")
    drafts = open.shape[0]
    if not occurring <= set(RULES):
        raise ValueError(f"occurring: expected names of {', '.join(RULES)}, got {', '.join(sorted(occurring))}")
    if "stability" in occurring and stable is None:
        raise ValueError("stable: expected a tensor where the stability rule occurs, got None")
    if floor is None and canvas is None:
        raise ValueError("floor: expected a tensor where there is no canvas with steps left, got None")
    columns = [(name, tensor, torch.float32) for name, tensor in zip(scores._fields[1:], scores[1:], strict=True)]
    columns.append(("token", scores.token, torch.int64))
    for name, flags in (("open", open), ("urgent", urgent), ("stable", stable), ("doubtful", doubtful)):
        if flags is not None:
            columns.append((name, flags, torch.bool))
    for name, tensor, dtype in columns:
        if tensor.shape != open.shape or tensor.dtype != dtype or tensor.device != device:
            got = f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"
            raise ValueError(f"{name}: expected {list(open.shape)} {dtype} on {device}, got {got}")
    for name, tensor in zip(rules._fields, rules, strict=True):
        check_tensor(name, tensor, (drafts,), torch.float32 if name == "threshold" else torch.int64, device)
    if floor is not None:
        check_tensor("floor", floor, (drafts,), torch.int64, device)
    if canvas is not None:
        kinds = (torch.int64, torch.bool, torch.float32, torch.int64, torch.int64, torch.int64)
        for name, tensor, kind in zip(canvas._fields, canvas, kinds, strict=True):
            check_tensor(name, tensor, open.shape if tensor.dim() == 2 else (drafts,), kind, device)

"""The answer, in plain PyTorch: compare, sort, sum, scatter. B drafts, W canvas positions."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dllm_kernels.philox import philox_4x32

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
    rows = _Rows(rules, occurring)
    open = open & (scores.token >= 0)
    urgent = urgent & open
    confidence = _confidence(scores, rows)
    order = torch.where(open, confidence, -torch.inf).argsort(dim=1, descending=True, stable=True)
    wanted = torch.zeros_like(open)
    by_threshold = rows.follow("threshold", "margin", "stability")
    if by_threshold is not None:
        wanted |= by_threshold & (confidence > rules.threshold.unsqueeze(1))
    needs_stable = rows.follow("stability")
    if needs_stable is not None and stable is not None:
        wanted &= stable | ~needs_stable
    if rows.follow("factor", "profile", "entropy") is not None:
        wanted = wanted.logical_or_(torch.zeros_like(open).scatter_(1, order, _leading(scores, open, order, rows)))
    wanted &= open
    if doubtful is not None:
        wanted &= ~doubtful

    count = urgent.sum(dim=1)
    if floor is None:
        assert canvas is not None
        steps = canvas.steps_left.clamp_min(1)
        floor = (count + steps - 1).div(steps, rounding_mode="floor")
    missing = torch.minimum(count, floor.clamp_min(1)) - (urgent & wanted).sum(dim=1)
    waiting = (urgent & ~wanted).gather(1, order)
    taken = waiting & (waiting.cumsum(dim=1) <= missing.unsqueeze(1))
    forced = torch.zeros_like(open).scatter_(1, order, taken)
    chosen = wanted | forced
    if canvas is not None:
        canvas.tokens.copy_(torch.where(chosen, scores.token, canvas.tokens))
        canvas.confidence.copy_(torch.where(chosen, scores.probability, canvas.confidence))
        canvas.is_masked.logical_and_(~chosen)
        canvas.steps_left.sub_(1).clamp_min_(0)
        canvas.committed.add_(chosen.sum(dim=1))
        canvas.forced.add_(forced.sum(dim=1))
    return chosen, forced


class _Rows:
    """Which rows follow which rule."""

    def __init__(self, rules: RuleColumns, occurring: Set[str]) -> None:
        from dllm_kernels.select import RULES

        self.rules, self._occurring, self._names = rules, occurring, RULES

    def follow(self, *names: str) -> Tensor | None:
        """Rows that follow one of these rules, [B, 1] bool; None when none does."""
        found = [self.rules.rule == self._names.index(name) for name in names if name in self._occurring]
        return torch.stack(found).any(dim=0).unsqueeze(1) if found else None


def _confidence(scores: ScoreColumns, rows: _Rows) -> Tensor:
    """[B, W] float32: the order in which each row's rule would commit, largest first."""
    from dllm_kernels.select import ORDER_STREAM

    confidence = scores.probability
    if (follow := rows.follow("margin")) is not None:
        confidence = torch.where(follow, scores.margin, confidence)
    if (follow := rows.follow("entropy")) is not None:
        confidence = torch.where(follow, -scores.entropy, confidence)
    places = torch.arange(confidence.shape[1], device=confidence.device)
    if (follow := rows.follow("left")) is not None:
        confidence = torch.where(follow, -places.float(), confidence)
    if (follow := rows.follow("random")) is not None:
        zero = torch.zeros_like(places)
        key = rows.rules.seed.unsqueeze(1)
        words = philox_4x32((places, zero, zero, zero + ORDER_STREAM), (key & 0xFFFFFFFF, key >> 32))[0]
        # Ranks, since float32 cannot tell 2^32 words apart.
        ranks = words.argsort(dim=1, stable=True).argsort(dim=1)
        confidence = torch.where(follow, ranks.float(), confidence)
    return confidence


def _leading(scores: ScoreColumns, open: Tensor, order: Tensor, rows: _Rows) -> Tensor:
    """[B, W] bool, in descending order of confidence: the leading run that `factor`, `profile` and `entropy` want."""
    from dllm_kernels.select import MOST_NATS, ONE

    is_open = open.gather(1, order)
    wanted = torch.zeros_like(open)
    factor, profile = rows.follow("factor"), rows.follow("profile")
    if factor is not None or profile is not None:
        certainty = scores.probability.gather(1, order).mul(ONE).to(torch.int64)
        doubt = torch.where(is_open, ONE - certainty, 0)
        limit = rows.rules.factor.unsqueeze(1)
        if factor is not None:
            count = torch.arange(1, open.shape[1] + 1, device=open.device)
            wanted |= factor & ((count + 1) * doubt < limit)
        if profile is not None:
            wanted |= profile & (doubt.cumsum(dim=1) + doubt < limit)
    if (follow := rows.follow("entropy")) is not None:
        # Rounded up: only a zero is a zero.
        entropy = scores.entropy.gather(1, order).clamp(0.0, MOST_NATS).mul(ONE).ceil().to(torch.int64)
        entropy = torch.where(is_open, entropy, 0)
        wanted |= follow & (entropy.cumsum(dim=1) - entropy <= rows.rules.entropy_bound.unsqueeze(1))
    return wanted & is_open

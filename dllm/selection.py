"""Which positions a step commits: every rule of `DecodeOptions`, over a batch of canvases on one device.

Compare, sort, sum, scatter: no value ever goes to the host. The sums behind `factor`, `profile` and `entropy` are exact, in fixed
point: they are the same in whatever order a device adds, and so is the choice.

Dimensions: B drafts, W canvas positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from dllm.options import DecodeOptions, Rule
from dllm.staging import staged
from dllm_kernels.philox import philox_4x32

_RULES: tuple[Rule, ...] = get_args(Rule)
_ONE = 2**36
"""1 in fixed point: a float32 probability above 2^-12 keeps all its digits, and 2^17 positions of 64 nats fit 63 bits."""
_LARGEST = 2**62
_MOST_NATS = 64.0
_ORDER_STREAM = 0x6F726465
"""Last counter word of the noise behind `random`, so that no sampling noise repeats it."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model says of each position, [B, W] on one device. Read at open positions only: elsewhere it may be anything.

    A token of -1, where no token is allowed, closes its position. `probability` is the token's own, `margin` that of the best less
    that of the second, `entropy` is in nats, over the whole distribution; all three are float32.
    """

    token: Tensor
    """int64."""
    probability: Tensor
    margin: Tensor
    entropy: Tensor


@dataclass(frozen=True, slots=True)
class RuleTable:
    """Each row's rule and its parameters, [B]. Built once for as long as the company of a batch stays."""

    occurring: frozenset[Rule]
    """On the host, so that only what is asked for is computed."""
    rule: Tensor
    """int64: index into the rules."""
    threshold: Tensor
    """float32."""
    factor: Tensor
    """int64, fixed point, rounded up: a sum below it is below `DecodeOptions.factor`."""
    entropy_bound: Tensor
    """int64, fixed point, rounded down."""
    seed: Tensor
    """int64."""

    @classmethod
    def of(
        cls, options: Sequence[DecodeOptions], thresholds: Sequence[float], device: torch.device | str = "cpu"
    ) -> RuleTable:
        """options, thresholds: One of each per row; the thresholds are those of the drafts' plans, rounded to float32."""
        assert len(options) == len(thresholds)

        def whole(values: Sequence[int]) -> Tensor:
            return staged(values, device, torch.int64)

        return cls(
            occurring=frozenset(row.rule for row in options),
            rule=whole([_RULES.index(row.rule) for row in options]),
            threshold=staged(thresholds, device, torch.float32),
            factor=whole([_fixed(row.factor, math.ceil) for row in options]),
            entropy_bound=whole([_fixed(row.entropy_bound, math.floor) for row in options]),
            seed=whole([row.seed for row in options]),
        )

    def follow(self, *rules: Rule) -> Tensor | None:
        """Which rows follow one of these rules, [B, 1] bool; None when none does."""
        found = [self.rule == _RULES.index(rule) for rule in rules if rule in self.occurring]
        return torch.stack(found).any(dim=0).unsqueeze(1) if found else None


@dataclass(frozen=True, slots=True)
class Selection:
    """Positions to commit, [B, W] bool. `forced` are those of `chosen` that only the floor asked for."""

    chosen: Tensor
    forced: Tensor


def select(
    scores: Scores,
    open: Tensor,
    urgent: Tensor,
    floor: Tensor,
    rules: RuleTable,
    stable: Tensor | None = None,
    doubtful: Tensor | None = None,
) -> Selection:
    """Choose positions: what each row's rule wants of its open positions, and at least its floor of the urgent ones.

    The floor is filled in the rule's own order of confidence: by probability, for `margin` by margin, for `entropy` by ascending
    entropy, for `left` by position, for `random` by noise named by the row's seed and the position (one order for the whole draft).
    Ties go left. `count`, `left` and `random` want nothing by themselves, so all they choose is forced.

    Args:
        open: [B, W] bool, positions that may be committed.
        urgent: [B, W] bool, those of them that the floor counts (the first clause, or the rest of the reply).
        floor: [B] int64. At least so many urgent positions are chosen, or all there are; at least one while there is one.
        stable: [B, W] bool, for `stability` only: where the distribution stayed put.
        doubtful: [B, W] bool, what no rule may want yet. The floor may choose it all the same.

    Returns:
        Nothing in a row without open positions; in one whose open positions are all not urgent, what its rule wants.

    Source: the rules are defined at `dllm.options.Rule`. `profile` chooses a superset of `factor` at the same value.
    """
    open = open & (scores.token >= 0)
    urgent = urgent & open
    confidence = _confidence(scores, rules)
    order = torch.where(open, confidence, -torch.inf).argsort(dim=1, descending=True, stable=True)
    wanted = torch.zeros_like(open)
    by_threshold = rules.follow("threshold", "margin", "stability")
    if by_threshold is not None:
        wanted |= by_threshold & (confidence > rules.threshold.unsqueeze(1))
    needs_stable = rules.follow("stability")
    if needs_stable is not None:
        assert stable is not None, "the stability rule needs to know what is stable"
        wanted &= stable | ~needs_stable
    if rules.occurring & {"factor", "profile", "entropy"}:
        wanted = wanted.logical_or_(torch.zeros_like(open).scatter_(1, order, _leading(scores, open, order, rules)))
    wanted &= open
    if doubtful is not None:
        wanted &= ~doubtful

    due = torch.minimum(urgent.sum(dim=1), floor.clamp_min(1))
    missing = due - (urgent & wanted).sum(dim=1)
    waiting = (urgent & ~wanted).gather(1, order)
    taken = waiting & (waiting.cumsum(dim=1) <= missing.unsqueeze(1))
    forced = torch.zeros_like(open).scatter_(1, order, taken)
    return Selection(wanted | forced, forced)


def _confidence(scores: Scores, rules: RuleTable) -> Tensor:
    """[B, W] float32: the order in which each row's rule would commit, largest first."""
    confidence = scores.probability
    if (rows := rules.follow("margin")) is not None:
        confidence = torch.where(rows, scores.margin, confidence)
    if (rows := rules.follow("entropy")) is not None:
        confidence = torch.where(rows, -scores.entropy, confidence)
    places = torch.arange(confidence.shape[1], device=confidence.device)
    if (rows := rules.follow("left")) is not None:
        confidence = torch.where(rows, -places.float(), confidence)
    if (rows := rules.follow("random")) is not None:
        zero = torch.zeros_like(places)
        key = rules.seed.unsqueeze(1)
        words = philox_4x32((places, zero, zero, zero + _ORDER_STREAM), (key & 0xFFFFFFFF, key >> 32))[0]
        # Ranks, since float32 cannot tell 2^32 words apart.
        ranks = words.argsort(dim=1, stable=True).argsort(dim=1)
        confidence = torch.where(rows, ranks.float(), confidence)
    return confidence


def _leading(scores: Scores, open: Tensor, order: Tensor, rules: RuleTable) -> Tensor:
    """[B, W] bool, in descending order of confidence: the leading run that `factor`, `profile` and `entropy` want."""
    is_open = open.gather(1, order)
    wanted = torch.zeros_like(open)
    factor, profile = rules.follow("factor"), rules.follow("profile")
    if factor is not None or profile is not None:
        certainty = scores.probability.gather(1, order).mul(_ONE).to(torch.int64)
        doubt = torch.where(is_open, _ONE - certainty, 0)
        limit = rules.factor.unsqueeze(1)
        if factor is not None:
            count = torch.arange(1, open.shape[1] + 1, device=open.device)
            wanted |= factor & ((count + 1) * doubt < limit)
        if profile is not None:
            wanted |= profile & (doubt.cumsum(dim=1) + doubt < limit)
    if (rows := rules.follow("entropy")) is not None:
        # Rounded up: only a zero is a zero.
        entropy = scores.entropy.gather(1, order).clamp(0.0, _MOST_NATS).mul(_ONE).ceil().to(torch.int64)
        entropy = torch.where(is_open, entropy, 0)
        wanted |= rows & (entropy.cumsum(dim=1) - entropy <= rules.entropy_bound.unsqueeze(1))
    return wanted & is_open


def _fixed(value: float, rounded: Callable[[float], int]) -> int:
    return _LARGEST if value >= _LARGEST / _ONE else rounded(value * _ONE)

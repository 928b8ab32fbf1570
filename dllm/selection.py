"""Which positions a step commits: every rule of `DecodeOptions`, over a batch of canvases on one device.

The rules' options become columns here; `dllm_kernels.select` chooses, and no value ever goes to the host.

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
from dllm_kernels import select as kernel

_RULES: tuple[Rule, ...] = get_args(Rule)
assert _RULES == kernel.RULES
_LARGEST = 2**62


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
    chosen, forced = kernel.select(
        kernel.ScoreColumns(scores.token, scores.probability, scores.margin, scores.entropy),
        open,
        urgent,
        kernel.RuleColumns(rules.rule, rules.threshold, rules.factor, rules.entropy_bound, rules.seed),
        floor,
        occurring=rules.occurring,
        stable=stable,
        doubtful=doubtful,
    )
    return Selection(chosen, forced)


def _fixed(value: float, rounded: Callable[[float], int]) -> int:
    return _LARGEST if value >= _LARGEST / kernel.ONE else rounded(value * kernel.ONE)

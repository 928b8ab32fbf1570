"""Several probabilities of one thing as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

CERTAIN = 1e-4
"""Probabilities are kept so far from 0 and 1: one judge that is quite sure must not silence the others."""


def together(probabilities: Sequence[float]) -> float:
    """The mean of their log-odds, as a probability; at least one is given."""
    return 1 / (1 + math.exp(-sum(map(_log_odds, probabilities)) / len(probabilities)))


def beside(probability: float, sound: float | None) -> float:
    """What the words make probable with how they sounded: the sum of the log-odds, since neither knows of the other. The words' alone where nobody listened."""
    if sound is None:
        return probability
    return 1 / (1 + math.exp(-_log_odds(probability) - _log_odds(sound)))


def tempered(probability: float, weight: float) -> float:
    """With its log-odds times `weight`, from 0 (a half, whatever was said) to 1 (as it was said)."""
    return 1 / (1 + math.exp(-weight * _log_odds(probability)))


def _log_odds(probability: float) -> float:
    p = min(max(probability, CERTAIN), 1 - CERTAIN)
    return math.log(p / (1 - p))

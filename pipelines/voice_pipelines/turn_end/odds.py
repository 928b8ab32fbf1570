"""Several probabilities of one thing as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CERTAIN = 1e-4
"""Probabilities are kept so far from 0 and 1: one judge that is quite sure must not silence the others."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Probability that a turn is over by the sound of the voice alone, to be weighed beside its words."""

    beside_sense: float
    beside_strange: float | None = None
    """Where the words were probably misheard; None where the sound tells nothing there."""


def together(probabilities: Sequence[float]) -> float:
    """The mean of their log-odds, as a probability; at least one is given."""
    return 1 / (1 + math.exp(-sum(map(log_odds, probabilities)) / len(probabilities)))


def beside(probability: float, sound: float | None) -> float:
    """What the words make probable with how they sounded: the sum of the log-odds, since neither knows of the other. The words' alone where nobody listened."""
    if sound is None:
        return probability
    return 1 / (1 + math.exp(-log_odds(probability) - log_odds(sound)))


def tempered(probability: float, weight: float) -> float:
    """With its log-odds times `weight`, from 0 (a half, whatever was said) to 1 (as it was said)."""
    return 1 / (1 + math.exp(-weight * log_odds(probability)))


def log_odds(probability: float) -> float:
    """Of a probability, kept `CERTAIN` from certainty."""
    p = min(max(probability, CERTAIN), 1 - CERTAIN)
    return math.log(p / (1 - p))

"""How sure PocketSphinx is of what it heard: the probability that its words are right, from how likely they were before anybody spoke. Pure.

The first pass has no posterior, and what the sound alone says of its words hardly tells right from wrong. What the language model says does, where it knows what callers of the agent
say: words that were heard for others are strung together from short ones that seldom follow each other, so they cost much for the time they take. How much per second of their sound is the one
number here; set on recordings of one half of the speakers by `benchmarks/confidence.py` and held against the other half (docs/asr.md). Everyday language alone tells nothing of the kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_FRAME_S = 0.01


@dataclass(frozen=True, slots=True)
class Spoken:
    """A word of the best path."""

    frames: int
    """Of 10 ms."""
    nats: float
    """Its log-probability behind the words before it, by the language model alone."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Logistic regression on one number."""

    half_at: float
    """Nats per second of sound at which words are as often right as wrong."""
    slope: float
    """Of the log-odds, per nat and second."""


SHIPPED = Calibration(half_at=-13.0, slope=0.743)
"""Set on orders, commands and read sentences, with the vocabulary of a café."""


def nats_per_second(words: Sequence[Spoken]) -> float | None:
    """How likely the words were, for the time they take: silence before, between and behind them counts for nothing. None without words."""
    frames = sum(word.frames for word in words)
    return sum(word.nats for word in words) / (frames * _FRAME_S) if frames else None


def confidence(words: Sequence[Spoken], calibration: Calibration = SHIPPED) -> float | None:
    """Probability in [0, 1] that the words are right, two in three of them at least; None without words. Of fewer than four words it tells next to nothing."""
    rate = nats_per_second(words)
    if rate is None:
        return None
    return 0.5 + 0.5 * math.tanh(calibration.slope * (rate - calibration.half_at) / 2)

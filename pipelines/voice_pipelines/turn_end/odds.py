"""Several probabilities of one thing as one, and what words that may have been misheard say of their end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CERTAIN = 1e-4
"""Probabilities are kept so far from 0 and 1: one judge that is quite sure must not silence the others."""

NO_IDEA = 0.5
"""Misheard words are at most so complete; where they read as unfinished, they may well be."""
STRANGE_WEIGHT = 0.5
"""Of the log-odds of misheard words. "Half and our" for "half an hour" is 7 % complete to both models, and was answered after 2 s, as long as any turn may be waited for; so it is after
1.5. With no weight left dialogues lose 3 points of what words gain: what is strange to the built-in model need not be misheard (docs/endpointing.md)."""


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


def weighed(probability: float, heard: Heard | None, *, is_misheard: bool) -> float:
    """What words say of their end with how they sounded.

    Misheard ones say half as much, and that they are complete not at all; beside them the built-in judge of sound tells too little to decide: it is no better than a
    coin there at which pauses are a speaker's own (docs/endpointing.md).

    Args:
        probability: By the words.
        heard: By the sound of the voice alone; None where nobody listened.
        is_misheard: Whether they are probably not what was said.
    """
    if is_misheard:
        strange = min(tempered(probability, STRANGE_WEIGHT), NO_IDEA)
        return beside(strange, None if heard is None else heard.beside_strange)
    return beside(probability, None if heard is None else heard.beside_sense)


def log_odds(probability: float) -> float:
    """Of a probability, kept `CERTAIN` from certainty."""
    p = min(max(probability, CERTAIN), 1 - CERTAIN)
    return math.log(p / (1 - p))

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

PHRASES_END = 0.8
"""Share of an agent's phrases that end behind the same words from which that tells. Below, it tells which words are expected rather than what a caller means: a café's phrases go on with something
or other behind nearly all that its callers end with, and counted in full, its orders were answered after 0.37 s instead of 0.24."""
MOST_BY_PHRASES = 0.95
"""The most that phrases make of an end: nobody lists all that callers say."""


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


def known(probability: float, ends: float | None) -> float:
    """What the words make probable with where the agent's own phrases end: the sum of the log-odds.

    Phrases that all go on tell too little to count: a tenth fewer pauses of five made agents ended a turn, but a café's callers only waited longer.

    Args:
        ends: Share of the phrases with the same last words that end behind them; None where there are none.
    """
    return probability if ends is None or ends < PHRASES_END else beside(probability, min(ends, MOST_BY_PHRASES))


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

"""How different words sound, by their phones. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_VOWELS = frozenset("AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split())
_KIN = 0.6
"""What it costs to take one vowel for another, or one consonant; another sound altogether, one too many and one too few cost 1. Recognisers
confuse within the two classes (Miller and Nicely, An Analysis of Perceptual Confusions Among Some English Consonants, 1955); the number
is a guess that was not tuned."""


def distance(one: Sequence[str], other: Sequence[str]) -> float:
    """Share of the longer's phones that differ, in [0, 1]: the cheapest edits by the length; 0 for two that are empty."""
    longest = max(len(one), len(other))
    if not longest:
        return 0.0
    row = [float(at) for at in range(len(other) + 1)]
    for at, phone in enumerate(one, start=1):
        following = [float(at)]
        for to, another in enumerate(other, start=1):
            following.append(min(row[to - 1] + _exchange(phone, another), row[to] + 1.0, following[to - 1] + 1.0))
        row = following
    return row[-1] / longest


def _exchange(one: str, other: str) -> float:
    if one == other:
        return 0.0
    return _KIN if (one in _VOWELS) == (other in _VOWELS) else 1.0

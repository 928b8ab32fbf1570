"""What each caller of a load test does, turn after turn: decided from a seed, before anybody calls. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Manners:
    """How callers behave.

    Raises:
        ValueError: If a share is not in [0, 1], or a range is not two growing times.
    """

    cuts_in: float = 0.2
    """Share of answers that the caller speaks over."""
    falls_silent: float = 0.1
    """Share of turns before which the caller says nothing for a long while."""
    pause_s: tuple[float, float] = (0.4, 1.6)
    """Between the end of an answer and the caller's next words."""
    silence_s: tuple[float, float] = (3.0, 6.0)
    """The same, where the caller falls silent."""
    cut_in_s: tuple[float, float] = (0.5, 1.2)
    """From the answer's first sound to the words over it."""
    spread_s: float = 6.0
    """Callers begin within so many seconds of each other, about the length of a turn: spread like calls that know nothing of each other."""

    def __post_init__(self) -> None:
        for name in ("cuts_in", "falls_silent"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a share from 0 to 1")
        for name in ("pause_s", "silence_s", "cut_in_s"):
            low, high = getattr(self, name)
            if not 0.0 <= low <= high:
                raise ValueError(f"{name} = {(low, high)}: expected two times, the longer one last")


@dataclass(frozen=True, slots=True)
class PlannedTurn:
    """One turn: the caller is silent for `pause_s`, says recording `speech`, and hears the answer, or `cut_in_s` of it."""

    speech: int
    pause_s: float
    cut_in_s: float | None
    """None lets the agent finish; otherwise the next turn's words begin so long after the answer does, without a pause of their own."""


def begins_at_s(caller: int, callers: int, seed: int, manners: Manners) -> float:
    """When a caller's line opens, in seconds from the start of the round; one moment of `spread_s` is as likely as another."""
    return 0.0 if callers == 1 else random.Random(f"{seed} {caller} begins").uniform(0.0, manners.spread_s)


def turns_of(caller: int, speeches: int, seed: int, manners: Manners) -> Iterator[PlannedTurn]:
    """The turns of one caller without end: the same for the same seed, whatever the others do.

    Raises:
        ValueError: If there is nothing to say.
    """
    if speeches < 1:
        raise ValueError("no recording to say: expected at least one")
    rng = random.Random(f"{seed} {caller}")
    while True:
        order = rng.sample(range(speeches), speeches)
        for speech in order:
            is_long = rng.random() < manners.falls_silent
            pause_s = rng.uniform(*(manners.silence_s if is_long else manners.pause_s))
            cut_in_s = rng.uniform(*manners.cut_in_s)
            yield PlannedTurn(speech, pause_s, cut_in_s if rng.random() < manners.cuts_in else None)

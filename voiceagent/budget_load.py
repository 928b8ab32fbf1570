"""How full the engine is, and whether another caller can be served on time. Pure; every time is passed in."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

REMEMBERED = 20
"""Plans that are looked at: with eight callers the last twenty seconds or so: a server fills quickly."""
FORGET_S = 30.0
"""A plan older than this says nothing about now: without it a server that emptied would refuse for ever."""
FEWEST = 8
"""Plans before anybody is refused."""
REFUSE_SHARE = 0.15
"""Share of crowded plans from which a caller more makes everyone late."""
ADMIT_SHARE = 0.05
"""Share at which callers are let in again: below the other, or the door would flap."""


MEMORY_S = 5.0
"""Over which the engine's load is averaged: some turns of a few callers, and short beside a minute of many."""
LOAD_LOW = 0.5
"""Load up to which everybody gets all the steps that help."""
LOAD_HIGH = 0.85
"""Load from which nobody gets more than the floor: above it the wait for one's turn grows faster than any plan can shrink."""


@dataclass(slots=True)
class EngineLoad:
    """The share of time that the engine has worked, newest first."""

    _worked_s: float = 0.0
    _at: float = -math.inf

    def worked(self, now: float, seconds: float) -> None:
        """The engine has worked for so long until `now`. What a forward did for several drafts is told by each as its part."""
        self._worked_s = self._decayed(now) + seconds
        self._at = max(now, self._at)

    def share(self, now: float) -> float:
        """The share of the last seconds, in [0, 1]. What was before the first work counts as idle."""
        return min(self._decayed(now) / MEMORY_S, 1.0)

    def room(self, now: float) -> float:
        """What is left of the steps above the floor: 1 up to `LOAD_LOW`, 0 from `LOAD_HIGH`."""
        return min(max((LOAD_HIGH - self.share(now)) / (LOAD_HIGH - LOAD_LOW), 0.0), 1.0)

    def _decayed(self, now: float) -> float:
        return self._worked_s * math.exp(-max(now - self._at, 0.0) / MEMORY_S) if self._worked_s else 0.0


@dataclass(slots=True)
class Admission:
    """Refuses new callers while the floor cannot be granted to those who are there (design, section 5, rule 4)."""

    _plans: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _is_refusing: bool = False

    def count(self, now: float, *, is_crowded: bool) -> None:
        """A turn was planned. `is_crowded`: even the floor does not fit, and alone it would have."""
        self._plans.append((now, is_crowded))

    def refusal(self, now: float) -> str | None:
        """Why nobody more can be served on time, or None."""
        recent = [is_crowded for at, is_crowded in self._plans if now - at <= FORGET_S]
        crowded = sum(recent)
        if self._is_refusing:
            self._is_refusing = bool(recent) and crowded > ADMIT_SHARE * len(recent)
        else:
            self._is_refusing = len(recent) >= FEWEST and crowded >= REFUSE_SHARE * len(recent)
        if not self._is_refusing:
            return None
        return (
            f"the engine is full: in {crowded} of the last {len(recent)} turns not even the fewest steps fitted "
            "beside the other callers'; try again later"
        )

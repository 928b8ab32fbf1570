"""What engine, recogniser and processors have room for: steps of those who are there, and one caller more. Pure; every time is passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from voiceagent.budget_load import Admission, EngineLoad
from voiceagent.costs import CostModel, Stage
from voiceagent.foresight import Foresight

OVERDUE_S = 1.0
"""Words that are not known so long after their end are overdue, whatever the recogniser."""
OVERDUE = 3.0
"""The same, in what it takes one caller alone at p95: a slow recogniser may be slow."""
OVERDUE_CALLERS = 2
"""Callers who wait so long at the same time: one may have met a recogniser that hangs."""
STANDS_S = 0.25
"""Between the look that finds words overdue and another that finds them so still: after the event loop was held, words that are known long since
have not been taken from the recogniser yet."""
HOLD_S = 0.1
"""The event loop was held when it ran something so late; less is the usual coming and going."""
HOLDS = 64
"""Of them that are remembered."""
READY_AGAIN = 0.9
"""Fullness with one caller more up to which a server that was full is ready again: below the other, or a load balancer would come and go with
every reading."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a caller is turned away: in one word, for those who count, and in a sentence."""

    code: str
    reason: str


@dataclass(slots=True)
class Room:
    """Of one machine."""

    costs: CostModel
    foresight: Foresight = field(default_factory=Foresight)
    """Of the processors, which the recogniser and the voice need as well."""
    load: EngineLoad = field(default_factory=EngineLoad)
    """What callers wait for; early drafts take what is left of the engine."""
    admission: Admission = field(default_factory=Admission)
    refuses: bool = True
    """Whether callers are turned away at all; where they are not, everybody is late together."""
    awaited: dict[Hashable, float] = field(default_factory=dict)
    """Utterances that are being recognised and have ended, and when."""
    _holds: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=HOLDS))
    """From when to when nothing ran."""
    _overdue_at: float | None = None
    """Since when words have been found overdue."""
    _is_full: bool = False
    """Those who send callers here have been told that the processors are full."""

    def refusal(self, now: float) -> Refusal | None:
        """Why nobody more can be served on time, or None.

        The processors would be full, as can be foreseen; where that was wrong, callers wait for a recogniser that others keep busy, or the engine
        is full.
        """
        return self._refusal(now, 1.0)

    def unready(self, now: float) -> Refusal | None:
        """The same for those who ask again and again and send callers here or elsewhere: once the processors were full there has to be some
        room to spare."""
        refusal = self._refusal(now, READY_AGAIN if self._is_full else 1.0)
        self._is_full = refusal is not None and refusal.code == "processors_full"
        return refusal

    def lagged(self, now: float, lag_s: float) -> None:
        """The event loop has run something so late."""
        if lag_s >= HOLD_S:
            self._holds.append((now - lag_s, now))

    def held_s(self, since: float, until: float) -> float:
        """How long the event loop was held between two moments: nobody's words or audio could be taken meanwhile, whoever kept it."""
        return sum(max(min(end, until) - max(start, since), 0.0) for start, end in self._holds)

    def look(self, now: float) -> int:
        """Callers whose words are overdue, and were at an earlier look. To be called every second or so."""
        limit_s = self._patience_s()
        overdue = sum(now - ended > limit_s for ended in self.awaited.values())
        if overdue < OVERDUE_CALLERS:
            self._overdue_at = None
            return 0
        if self._overdue_at is None:
            self._overdue_at = now
        return overdue if now - self._overdue_at >= STANDS_S else 0

    def _refusal(self, now: float, most: float) -> Refusal | None:
        if not self.refuses:
            return None
        if (reason := self.foresight.refusal(most)) is not None:
            return Refusal("processors_full", reason)
        if overdue := self.look(now):
            return Refusal(
                "recogniser_full",
                f"the recogniser is full: {overdue} callers have waited for more than {self._patience_s():.1f} s until their words are "
                "known; try again later",
            )
        reason = self.admission.refusal(now)
        return None if reason is None else Refusal("engine_full", reason)

    def _patience_s(self) -> float:
        return max(OVERDUE_S, OVERDUE * self.costs.predict(Stage.ASR).p95)

    def for_steps(self, now: float) -> float:
        """What engine and processors leave of the steps above the floor, in [0, 1]."""
        return min(self.load.room(now), self.foresight.room())

    def busy(self, now: float) -> str:
        """What leaves less than all of that, as part of a sentence; empty where nothing does."""
        engine, processors = self.load.room(now), self.foresight.room()
        if min(engine, processors) >= 1.0:
            return ""
        if engine <= processors:
            return f", with the engine {self.load.share(now):.0%} busy"
        return f", with the processors {self.foresight.fullness(self.foresight.callers):.0%} full"

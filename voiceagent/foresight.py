"""Whether the processors hold one caller more, foreseen from what those who are there need. Pure; every reading is passed in.

Lateness tells that a machine is full when it is too late: whoever was let in before it showed stays. So each caller's need is learned
while there is room. A caller is busy for some seconds and idle for some more, each at their own times, so that what `n` of them need at their
busiest is the mean of their sum and some of its deviations: the rule of equivalent capacity (Guérin, Ahmadi and Naghshineh 1991,
"Equivalent capacity and its application to bandwidth allocation in high-speed networks", IEEE JSAC 9(7), the Gaussian case).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

PERIOD_S = 1.0
"""Between two readings: what is above the mean for so long makes an answer late."""
LONGEST_S = 2.0
"""The same, beyond which something held the event loop: what it did is not what callers need, and nobody knows how many there were."""
MEMORY_S = 30.0
"""Over which callers' needs are averaged: some turns of each."""
OTHERS_MEMORY_S = 10.0
"""The same of what other programs take: it comes and goes, and nobody has to wait until it is forgotten."""
CEILING = 0.8
"""Share of what others leave of the processors that callers may need at their busiest: processors that are all busy make everybody wait."""
DEVIATIONS = 2.0
"""What is called their busiest: one second in forty is busier."""
LEAST_FREE = 0.5
"""Share of the cores that is there for callers whatever others take: processors are shared, and a few callers are not to be turned away because
somebody compiles. Less for a server that gives way to others."""
SETTLED = 5
"""Readings after which a caller has spoken. Until then each counts for the part of them that it was there, since a caller who has not spoken needs
little; and while more than half have not, nothing is learned, or they would teach that callers need nothing."""
KNOWN_CALLER_S = 10.0
"""Seconds of callers from which their need is known where there is no guess."""
GUESSED_CALLER_S = 60.0
"""Seconds of callers that a guess weighs. It fades like what was seen: a machine that is three times slower is not held against it for long."""
ROOMY = 0.6
"""Fullness up to which everybody gets all the steps that help; from 1 on, where nobody more is let in, the floor."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one caller needs: mean and variance of the cores that are busy for them in one second."""

    mean: float
    variance: float

    def of(self, callers: int) -> float:
        """Cores that so many keep busy at their busiest."""
        return callers * self.mean + DEVIATIONS * math.sqrt(callers * self.variance)

    def __add__(self, other: Need) -> Need:
        """What the same caller needs for both, each in its own moments."""
        return Need(self.mean + other.mean, self.variance + other.variance)


REPLY_ON_PROCESSORS = Need(mean=0.04, variance=0.007)
"""Guess of what all but the recogniser takes, before anybody has called: drafts, sound and the rest. Recognisers guess their own part.

With PocketSphinx's it is what was measured on a quiet AMD EPYC, 0.075 of a core, for callers who speak a third of the time; the variance of both is
twice what recorded orders give (0.005 with a made-up pace of talk), since those who come in the same moment speak in the same."""


@dataclass(slots=True)
class Foresight:
    """One machine's processors. Without `cores` nobody is refused and nothing is known.

    Args:
        cores: Processors that may be used, in cores.
        guess: What a caller needs before anybody has called; None refuses nobody until that is known.
        quota: Cores that this process and its mates (whoever is under the same quota) may keep busy, on however many processors.
        least_free: Share that is there for callers whatever others take.
    """

    cores: float | None = None
    guess: Need | None = None
    quota: float = math.inf
    least_free: float = LEAST_FREE
    callers: int = 0
    """Conversations now, kept up to date by them."""
    others: float = 0.0
    """Cores that other programs keep busy, of late."""
    mates: float = 0.0
    """Those of them under the same quota."""
    _at: float | None = None
    _others_s: float = 0.0
    _mates_s: float = 0.0
    _held_s: float = 0.0
    _worked_s: float = 0.0
    _lately: deque[int] = field(default_factory=lambda: deque([0], maxlen=SETTLED + 1))
    """Callers at the last readings."""
    _caller_s: float = 0.0
    _cpu_s: float = 0.0
    _squares: float = 0.0
    _guess_kept: float = 1.0
    """What is left of the guess's weight."""

    def read(
        self, now: float, worked_s: float, others_s: float = 0.0, *, mates_s: float = 0.0, held_s: float = 0.0
    ) -> None:
        """Take a reading, `PERIOD_S` or so after the one before. Only what has been added since then counts.

        Nothing is learned of seconds without callers, of a gap between readings, and while most callers have just come.

        Args:
            worked_s: Processor seconds that callers have needed until now, in all. What fewer steps would have saved is no need and not in it.
            others_s: Those that other programs have taken of the same processors.
            mates_s: Those that others under the same quota have taken.
            held_s: Seconds in periods in which the quota was used up. How much more was needed in them nobody knows; they count twice.
        """
        before, since = self._worked_s, self._at
        taken_s, shared_s, stood_s = others_s - self._others_s, mates_s - self._mates_s, held_s - self._held_s
        self._lately.append(self.callers)
        callers = sum(self._lately) / len(self._lately)
        self._at, self._worked_s, self._others_s, self._mates_s, self._held_s = now, worked_s, others_s, mates_s, held_s
        if since is None or not since < now <= since + LONGEST_S:
            return
        period_s, busy_s = now - since, max(worked_s - before, 0.0)
        fades = math.exp(-period_s / OTHERS_MEMORY_S)
        self.others = self._most(self.others * fades + taken_s / period_s * (1.0 - fades))
        self.mates = self._most(self.mates * fades + shared_s / period_s * (1.0 - fades))
        if min(self._lately) == 0 or 2 * min(self._lately) < self.callers:
            return
        busy_s *= 1.0 + min(max(stood_s / period_s, 0.0), 1.0)
        kept = math.exp(-period_s / MEMORY_S)
        # By what was seen alone: a guess that is far off would look like callers who vary much.
        expected_s = self._cpu_s / self._caller_s * callers * period_s if self._caller_s else busy_s
        self._guess_kept *= kept
        self._caller_s = self._caller_s * kept + callers * period_s
        self._cpu_s = self._cpu_s * kept + busy_s
        self._squares = self._squares * kept + (busy_s - expected_s) ** 2

    def _most(self, others: float) -> float:
        """No more than there is: what was counted on other processors before the set of them changed is nothing that anybody took."""
        return others if self.cores is None else min(max(others, -self.cores), self.cores)

    @property
    def need(self) -> Need | None:
        """One caller's, or None where nobody can say."""
        guess, weight = self.guess, GUESSED_CALLER_S * self._guess_kept
        if guess is None:
            if self._caller_s < KNOWN_CALLER_S:
                return None
            guess, weight = Need(0.0, 0.0), 0.0
        seen = self._caller_s + weight
        return Need(
            (self._cpu_s + guess.mean * weight) / seen,
            (self._squares + guess.variance * weight) / seen,
        )

    @property
    def free(self) -> float:
        """Cores that other programs leave, within the quota; infinite where nobody knows of any."""
        if self.cores is None:
            return math.inf
        return min(self._left(self.cores, self.others), self._left(self.quota, self.mates))

    def _left(self, cores: float, others: float) -> float:
        return min(max(cores - others, self.least_free * cores), cores)

    def fullness(self, callers: int) -> float:
        """What so many callers need at their busiest, as a share of what they may; 0 where nobody can say."""
        need = self.need
        return 0.0 if need is None or callers <= 0 else need.of(callers) / (CEILING * self.free)

    def room(self) -> float:
        """What is left of the steps above the floor: 1 up to `ROOMY`, 0 where nobody more is let in."""
        return min(max((1.0 - self.fullness(self.callers)) / (1.0 - ROOMY), 0.0), 1.0)

    def refusal(self, most: float = 1.0) -> str | None:
        """Why there is no room for one caller more, with whom the fullness would be above `most`, or None. A first caller is always let in."""
        if self.callers == 0 or self.fullness(self.callers + 1) <= most:
            return None
        need = self.need
        assert need is not None
        return (
            f"the processors are full: {self.callers + 1} callers would at times need {need.of(self.callers + 1):.2f} cores "
            f"and may take {most * CEILING * self.free:.2f} of {self.free:.2f} free; try again later"
        )

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
LONGEST_S = 5.0
"""The same, beyond which nobody knows how many callers there were."""
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
somebody compiles."""
SETTLED = 5
"""Readings after which a caller has spoken. While more than half have not, they would teach that callers need nothing."""
KNOWN_CALLER_S = 10.0
"""Seconds of callers from which their need is known."""
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


SPEECH_ON_PROCESSORS = Need(mean=0.06, variance=0.012)
"""Guess where PocketSphinx hears, before anybody has called: a tenth of a core while somebody speaks and what a reply takes, of a quiet
AMD EPYC. It weighs `KNOWN_CALLER_S` seconds of callers."""


@dataclass(slots=True)
class Foresight:
    """One machine's processors. Without `cores` nobody is refused and nothing is known.

    Args:
        cores: Processors that may be used, in cores.
        guess: What a caller needs before anybody has called; None refuses nobody until that is known.
    """

    cores: float | None = None
    guess: Need | None = None
    callers: int = 0
    """Conversations now, kept up to date by them."""
    others: float = 0.0
    """Cores that other programs keep busy, of late."""
    _at: float | None = None
    _others_s: float = 0.0
    _worked_s: float = 0.0
    _lately: deque[int] = field(default_factory=lambda: deque([0], maxlen=SETTLED + 1))
    """Callers at the last readings."""
    _caller_s: float = 0.0
    _cpu_s: float = 0.0
    _squares: float = 0.0

    def read(self, now: float, worked_s: float, others_s: float = 0.0) -> None:
        """Take a reading, `PERIOD_S` or so after the one before: processor seconds that callers have needed until now, in all, and those
        that other programs have taken of the same processors.

        What fewer steps would have saved is no need and not in it. Nothing is learned of seconds without callers, of a gap between readings, and
        of callers who have just come and not spoken yet.
        """
        before, since = self._worked_s, self._at
        self._lately.append(self.callers)
        callers = min(self._lately)
        taken_s = others_s - self._others_s
        self._at, self._worked_s, self._others_s = now, worked_s, others_s
        if since is None or not since < now <= since + LONGEST_S:
            return
        period_s, busy_s = now - since, max(worked_s - before, 0.0)
        fades = math.exp(-period_s / OTHERS_MEMORY_S)
        self.others = self.others * fades + taken_s / period_s * (1.0 - fades)
        if callers == 0 or 2 * callers < self.callers:
            return
        kept = math.exp(-period_s / MEMORY_S)
        need = self.need
        expected_s = busy_s if need is None else need.mean * callers * period_s
        self._caller_s = self._caller_s * kept + callers * period_s
        self._cpu_s = self._cpu_s * kept + busy_s
        self._squares = self._squares * kept + (busy_s - expected_s) ** 2

    @property
    def need(self) -> Need | None:
        """One caller's, or None where nobody can say."""
        guess, weight = self.guess, KNOWN_CALLER_S
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
        """Cores that other programs leave; infinite where nobody knows of any."""
        return (
            math.inf if self.cores is None else min(max(self.cores - self.others, LEAST_FREE * self.cores), self.cores)
        )

    def fullness(self, callers: int) -> float:
        """What so many callers need at their busiest, as a share of what they may; 0 where nobody can say."""
        need = self.need
        return 0.0 if need is None or callers <= 0 else need.of(callers) / (CEILING * self.free)

    def room(self) -> float:
        """What is left of the steps above the floor: 1 up to `ROOMY`, 0 where nobody more is let in."""
        return min(max((1.0 - self.fullness(self.callers)) / (1.0 - ROOMY), 0.0), 1.0)

    def refusal(self) -> str | None:
        """Why there is no room for one caller more, or None. A first caller is always let in."""
        if self.callers == 0 or self.fullness(self.callers + 1) <= 1.0:
            return None
        need = self.need
        assert need is not None
        return (
            f"the processors are full: {self.callers + 1} callers would need {need.of(self.callers + 1):.1f} cores at their busiest, "
            f"{self.free:.1f} are free; try again later"
        )

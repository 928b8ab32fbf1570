"""A machine of a few processors with callers on it, replayed in ticks: what admission is tried on.

Callers speak, wait for an answer, listen, and speak again. Speech costs processor time while it comes, in recognisers that each serve one caller
at a time, whoever has finished first; an answer costs the engine some more. Processors are shared evenly by whoever has work. Times are made
up, near those of the built-in models on two cores of an AMD EPYC, and drawn from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

TICK_S = 0.01
MEAN_S, PAUSE_S = 1.2, 0.2
"""The first audio of an utterance waits for so long until any of it is decoded, or until a pause."""
ENDPOINT_S = 0.28
VOICE_S = 0.06
"""To the first audio of a clause."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Processor seconds: of a second of speech, of a reply up to its first clause, of what follows, and of a second of a call beside that."""

    speech: float = 0.115
    reply: float = 0.06
    rest: float = 0.06
    call: float = 0.012


@dataclass(slots=True)
class Caller:
    rng: random.Random
    recogniser: int
    costs: Costs
    begins_at: float
    speaks_s: float = 0.0
    cost: float = 0.0
    fed_s: float = 0.0
    heard_s: float = 0.0
    """Processor seconds that its utterance has had."""
    reply_s: float = 0.0
    """Those that its reply still needs up to the first clause."""
    rest_s: float = 0.0
    answers_at: float | None = None
    latencies: list[tuple[float, float]] = field(default_factory=list)

    def speak(self, at: float) -> None:
        self.begins_at = at
        self.speaks_s = self.rng.uniform(0.6, 5.5)
        self.cost = self.costs.speech * self.rng.lognormvariate(0.0, 0.2)
        self.fed_s = self.heard_s = 0.0
        self.reply_s = self.costs.reply * self.rng.lognormvariate(0.0, 0.2)
        self.answers_at = None

    @property
    def end(self) -> float:
        return self.begins_at + self.speaks_s

    def has_ended(self, now: float) -> bool:
        return now >= self.end + ENDPOINT_S

    def waiting_s(self, now: float) -> float:
        """Processor seconds that its audio so far waits for."""
        if now < self.begins_at + MEAN_S and now < self.end + PAUSE_S:
            return 0.0
        return self.cost * min(now - self.begins_at, self.speaks_s + ENDPOINT_S) - self.heard_s


class Crowd:
    """Callers that arrive over time at a door that `admits` them or not; `read` is told every second of all processor time so far."""

    def __init__(
        self,
        cores: int,
        *,
        admits: Callable[[int], bool],
        read: Callable[[float, float, int], None],
        costs: Costs | None = None,
        seed: int = 1,
    ) -> None:
        self._cores, self._admits, self._read = cores, admits, read
        self._costs = costs or Costs()
        self._rng = random.Random(seed)
        self.callers: list[Caller] = []
        self.refused = 0
        self.worked_s = 0.0

    def run(self, arrivals: list[float], until: float) -> None:
        waiting, ticks = sorted(arrivals), 0
        while (now := ticks * TICK_S) < until:
            while waiting and waiting[0] <= now:
                self._arrive(waiting.pop(0))
            if ticks % 100 == 0:
                self._read(now, self.worked_s, len(self.callers))
            self._tick(now)
            ticks += 1

    def on_time(self, target_s: float, since: float) -> float:
        """Share of answers to what was said from `since` on."""
        latencies = [latency for caller in self.callers for at, latency in caller.latencies if at >= since]
        return sum(latency <= target_s for latency in latencies) / len(latencies)

    def _arrive(self, at: float) -> None:
        if not self._admits(len(self.callers)):
            self.refused += 1
            return
        taken = [caller.recogniser for caller in self.callers]
        recogniser = min(range(self._cores), key=taken.count)
        caller = Caller(random.Random(self._rng.random()), recogniser, self._costs, at)
        caller.speak(at + 0.5)
        self.callers.append(caller)

    def _tick(self, now: float) -> None:
        for caller in self.callers:
            if caller.answers_at is not None and now >= caller.answers_at:
                caller.latencies.append((caller.end, caller.answers_at - caller.end))
                caller.rest_s += self._costs.rest
                caller.speak(now + caller.rng.uniform(2.0, 5.0) + caller.rng.uniform(0.4, 1.6))
        queues = [self._of_recogniser(number, now) for number in range(self._cores)]
        engine = [one for one in self.callers if one.answers_at is None and self._is_known(one, now)]
        rest = [one for one in self.callers if one.rest_s > 0.0]
        calls_s = self._costs.call * len(self.callers) * TICK_S
        busy = sum(bool(queue) for queue in queues) + bool(engine or rest)
        # Each of them is one thread: it has one processor at most, and its part where there are too few.
        share_s = min((self._cores * TICK_S - calls_s) / max(busy, 1), TICK_S)
        self.worked_s += calls_s
        for queue in queues:
            left = share_s
            for caller in queue:
                took = min(caller.waiting_s(now), left)
                caller.heard_s += took
                left -= took
                self.worked_s += took
        left = share_s
        for caller in sorted(engine, key=lambda one: one.end):
            took = min(caller.reply_s, left)
            caller.reply_s -= took
            left -= took
            self.worked_s += took
            if caller.reply_s <= 1e-9:
                caller.answers_at = now + TICK_S + VOICE_S
        for caller in rest:
            took = min(caller.rest_s, left)
            caller.rest_s -= took
            left -= took
            self.worked_s += took

    def _of_recogniser(self, number: int, now: float) -> list[Caller]:
        """Its callers with work: who has finished first, then those who pause, then those who speak."""
        mine = [one for one in self.callers if one.recogniser == number and one.waiting_s(now) > 1e-9]
        return sorted(mine, key=lambda one: (not one.has_ended(now), now < one.end, one.begins_at))

    def _is_known(self, caller: Caller, now: float) -> bool:
        return caller.has_ended(now) and caller.waiting_s(now) <= 1e-9

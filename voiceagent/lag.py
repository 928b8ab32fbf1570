"""How late the event loop runs what is due, and whether it has room for one more: every caller waits for whoever holds it.

A task that sleeps for a fixed period sees, each time it wakes, how long other callbacks kept it waiting. Source: the event loop monitor
of Node.js and of every asyncio service that has one.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable

from voiceagent.clock import Clock

PERIOD_S = 0.1
"""Between two looks: ten a second cost nothing and meet every hold of 100 ms, a tenth of those of 10 ms."""


async def watch_lag(clock: Clock, tell: Callable[[float], None], period_s: float = PERIOD_S) -> None:
    """Tell how many seconds late each wake-up was, until cancelled. What was missed during a long hold is not made up for."""
    while True:
        due = clock.now() + period_s
        await clock.sleep_until(due)
        tell(max(clock.now() - due, 0.0))


WATCHED = 50
"""Looks that decide whether there is room, five seconds of them: a hold passes, a loop with too much to do stays late."""
FULL_S = 0.1
"""Median lag from which one more caller makes everybody late: an answer crosses the loop a dozen times."""
CALM_S = 0.02
"""Median lag below which callers are let in again: far below the other, or the door would flap."""
COMPANY = 8
"""Callers from which on the loop's lag is their doing. With fewer it is the machine that is slow, and turning callers away helps nobody."""


class LoopLoad:
    """Refuses new callers while the event loop is behind with those who are there. Pure."""

    def __init__(self) -> None:
        self._lags: deque[float] = deque(maxlen=WATCHED)
        self._is_refusing = False

    def observe(self, lag_s: float) -> None:
        """The newest look at the loop, `PERIOD_S` after the one before."""
        self._lags.append(lag_s)

    def refusal(self, callers: int) -> str | None:
        """Why nobody more can be served beside these `callers`, or None."""
        if callers < COMPANY or len(self._lags) < WATCHED:
            self._is_refusing = False
            return None
        lag_s = statistics.median(self._lags)
        self._is_refusing = lag_s > (CALM_S if self._is_refusing else FULL_S)
        if not self._is_refusing:
            return None
        return f"The server is full: its event loop is {lag_s * 1000:.0f} ms behind with {callers} callers; try again later."

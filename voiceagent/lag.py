"""How late the event loop runs what is due: every caller waits for whoever holds it.

A task that sleeps for a fixed period sees, each time it wakes, how long other callbacks kept it waiting. Source: the event loop monitor
of Node.js and of every asyncio service that has one.
"""

from __future__ import annotations

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

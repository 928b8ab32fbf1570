"""Time as an argument: one clock for the running server, one that only tests move.

Every deadline in the runtime is an absolute reading of one `Clock`, in seconds from an arbitrary origin.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """What the runtime may know about time."""

    def now(self) -> float:
        """Seconds since an arbitrary, fixed origin; never goes back."""
        ...

    async def sleep_until(self, deadline: float) -> None:
        """Return at the first chance at or after `deadline`; at once when it has passed."""
        ...


class MonotonicClock:
    """The machine's monotonic clock.

    `time.monotonic` rather than the event loop's clock: worker threads stamp their results with the same origin, and
    uvloop rounds its own clock to milliseconds.
    """

    def now(self) -> float:
        return time.monotonic()

    async def sleep_until(self, deadline: float) -> None:
        delay = deadline - time.monotonic()
        await asyncio.sleep(max(delay, 0.0))


class ManualClock:
    """A clock that stands still until a test advances it."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    async def sleep_until(self, deadline: float) -> None:
        if deadline <= self._now:
            await asyncio.sleep(0)
            return
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (deadline, next(self._order), wake))
        await wake

    def next_deadline(self) -> float | None:
        """The earliest deadline anyone sleeps for, or None when nobody does."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    async def advance(self, duration_s: float) -> None:
        """Move time on, waking sleepers one by one in the order of their deadlines.

        Raises:
            ValueError: If `duration_s` is negative.
        """
        if duration_s < 0:
            raise ValueError(f"a clock cannot go back, got duration_s={duration_s}")
        target = self._now + duration_s
        await self.settle()
        while (deadline := self.next_deadline()) is not None and deadline <= target:
            self._now = deadline
            _, _, wake = heapq.heappop(self._sleepers)
            wake.set_result(None)
            await self.settle()
        self._now = target
        await self.settle()

    async def hold(self, duration_s: float) -> None:
        """Move time on while nothing can run, as when something holds the event loop: whoever was due meanwhile wakes at its end."""
        self._now += duration_s
        while (deadline := self.next_deadline()) is not None and deadline <= self._now:
            _, _, wake = heapq.heappop(self._sleepers)
            wake.set_result(None)
            await self.settle()

    @staticmethod
    async def settle(rounds: int = 64) -> None:
        """Let every task that can run do so.

        A task may need several passes of the loop (a queue hop, a future, a callback); 64 is far more than any chain in
        the runtime, and one pass costs microseconds.
        """
        for _ in range(rounds):
            await asyncio.sleep(0)

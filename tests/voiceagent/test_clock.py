from __future__ import annotations

import asyncio

import pytest

from voiceagent.clock import ManualClock, MonotonicClock


def test_sleepers_wake_in_the_order_of_their_deadlines_at_their_own_time() -> None:
    async def scenario() -> list[tuple[str, float]]:
        clock, woken = ManualClock(), []

        async def sleeper(name: str, deadline: float) -> None:
            await clock.sleep_until(deadline)
            woken.append((name, clock.now()))

        tasks = [asyncio.create_task(sleeper(name, at)) for name, at in (("late", 3.0), ("early", 1.0), ("mid", 2.0))]
        await clock.advance(2.5)
        assert [name for name, _ in woken] == ["early", "mid"]
        await clock.advance(1.0)
        await asyncio.gather(*tasks)
        return woken

    assert asyncio.run(scenario()) == [("early", 1.0), ("mid", 2.0), ("late", 3.0)]


def test_a_sleeper_that_sleeps_again_within_the_same_advance_is_woken_again() -> None:
    async def scenario() -> float:
        clock = ManualClock()

        async def ticker() -> None:
            for tick in range(1, 6):
                await clock.sleep_until(float(tick))

        task = asyncio.create_task(ticker())
        await clock.advance(5.0)
        assert task.done()
        return clock.now()

    assert asyncio.run(scenario()) == 5.0


def test_a_cancelled_sleeper_is_forgotten() -> None:
    async def scenario() -> float | None:
        clock = ManualClock()
        task = asyncio.create_task(clock.sleep_until(1.0))
        await clock.settle()
        task.cancel()
        await clock.settle()
        return clock.next_deadline()

    assert asyncio.run(scenario()) is None


def test_who_was_due_while_everything_was_held_wakes_at_its_end() -> None:
    async def scenario() -> list[float]:
        clock, woke = ManualClock(), list[float]()

        async def sleep(deadline: float) -> None:
            await clock.sleep_until(deadline)
            woke.append(clock.now())

        async with asyncio.TaskGroup() as sleepers:
            for deadline in (2.0, 1.0, 5.0):
                sleepers.create_task(sleep(deadline))
            await clock.settle()
            await clock.hold(3.0)
            await clock.advance(10.0)
        return woke

    assert asyncio.run(scenario()) == [3.0, 3.0, 5.0]


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="go back"):
        asyncio.run(ManualClock().advance(-1.0))


def test_the_real_clock_returns_at_once_for_a_deadline_that_is_over() -> None:
    clock = MonotonicClock()
    asyncio.run(clock.sleep_until(clock.now() - 10.0))
    assert clock.now() <= clock.now()

"""The event loop's lag, on a clock that the test moves, and the promise that no callback of ours holds the loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.conftest import run_async
from tests.voiceagent.house import House, pump, refusal, serve, speak, text_item
from tests.voiceagent.realtime import StandinRuntime, connect
from tests.voiceagent.standins import ScriptedDrafter, ToneSynthesizer, silence, tone
from tests.voiceagent.telephony.phone import phone
from voiceagent.backends import Samples
from voiceagent.lag import COMPANY, WATCHED, LoopLoad, watch_lag
from voiceagent.server import create_app
from voiceagent.server_settings import ServerSettings


class HeldClock:
    """A clock that wakes its sleeper so many seconds late, one after the other, as when something holds the loop; then never."""

    def __init__(self, *held_s: float) -> None:
        self._now = 50.0
        self._held_s = list(held_s)
        self.is_over = asyncio.Event()

    def now(self) -> float:
        return self._now

    async def sleep_until(self, deadline: float) -> None:
        if not self._held_s:
            self.is_over.set()
            await asyncio.Future()
        self._now = deadline + self._held_s.pop(0)


async def watch(clock: HeldClock, work: Coroutine[Any, Any, None]) -> None:
    watching = asyncio.create_task(work)
    await clock.is_over.wait()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def lags(*held_s: float) -> list[float]:
    async def main() -> list[float]:
        clock, told = HeldClock(*held_s), list[float]()
        await watch(clock, watch_lag(clock, told.append))
        return told

    return run_async(main())


def test_a_loop_that_nobody_holds_has_no_lag() -> None:
    assert lags(0.0, 0.0, 0.0) == [0.0, 0.0, 0.0]


def test_lag_is_how_late_the_wake_up_was_and_the_next_is_counted_from_there() -> None:
    assert lags(0.0, 0.3, 0.0) == pytest.approx([0.0, 0.3, 0.0])


def test_the_servers_meter_is_fed_while_it_watches() -> None:
    async def main() -> None:
        clock = HeldClock(0.04)
        app = create_app(StandinRuntime(clock, ScriptedDrafter(clock)), ServerSettings(), clock=clock)
        await watch(clock, app.state.realtime.watch_loop())
        lag = app.state.realtime.telemetry.lag
        assert (lag.count(), lag.sum()) == (1, pytest.approx(0.04))

    run_async(main())


# --- room for one more ------------------------------------------------------------------------------------------------


def loaded(*lags_s: float) -> LoopLoad:
    load = LoopLoad()
    for lag_s in lags_s:
        load.observe(lag_s)
    return load


def test_a_loop_that_stays_behind_with_its_callers_takes_no_more() -> None:
    reason = loaded(*[0.15] * WATCHED).refusal(callers=20)
    assert reason is not None and "150 ms behind with 20 callers" in reason


def test_one_hold_and_a_slow_machine_turn_nobody_away() -> None:
    assert loaded(*[0.001] * WATCHED, 5.0, 3.0).refusal(callers=20) is None
    assert loaded(*[0.15] * WATCHED).refusal(callers=COMPANY - 1) is None
    assert loaded(*[0.15] * (WATCHED - 1)).refusal(callers=20) is None, "too little has been seen"


def test_the_door_opens_again_once_the_loop_is_calm() -> None:
    load = loaded(*[0.15] * WATCHED)
    assert load.refusal(20) is not None
    for _ in range(WATCHED):
        load.observe(0.05)
    assert load.refusal(20) is not None, "this would not have closed it, and does not open it"
    for _ in range(WATCHED):
        load.observe(0.01)
    assert load.refusal(20) is None
    for _ in range(WATCHED):
        load.observe(0.05)
    assert load.refusal(20) is None


def test_a_full_loop_refuses_clients_with_the_reason() -> None:
    async def scenario(house: House) -> None:
        realtime = house.app.state.realtime
        for _ in range(WATCHED):
            realtime._loop_load.observe(0.2)
        async with contextlib.AsyncExitStack() as callers:
            for _ in range(COMPANY):
                await callers.enter_async_context(connect(house.app))
            refused = await refusal(house)
            assert refused.status == 503 and "200 ms behind" in refused.body["error"]["message"]

    serve(scenario)


# --- nobody holds the loop --------------------------------------------------------------------------------------------

LIMIT_S = 0.02
"""One audio message of a phone: whoever holds the loop longer makes another caller's audio late."""


@contextmanager
def callbacks_timed() -> Iterator[dict[str, float]]:
    """The longest processor time of each callback that the loop runs, by the callback's name.

    Processor time of this thread and not time on the clock: another process that takes the core in the middle of a callback makes that
    callback last, but it is not the callback that held the loop. Nor is the garbage collector, which looks through all that the test
    process has ever imported whenever it is due; it is off meanwhile. Works with asyncio's own loop, whose handles are Python.
    """
    longest: dict[str, float] = {}
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        callback = handle._callback  # type: ignore[attr-defined]
        owner = getattr(callback, "__self__", None)
        coroutine = owner.get_coro() if isinstance(owner, asyncio.Task) else callback
        name = getattr(coroutine, "__qualname__", repr(coroutine))
        began = time.thread_time()
        try:
            run(handle)
        finally:
            longest[name] = max(longest.get(name, 0.0), time.thread_time() - began)

    was_enabled = gc.isenabled()
    gc.disable()
    asyncio.Handle._run = timed  # type: ignore[method-assign]
    try:
        yield longest
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]
        if was_enabled:
            gc.enable()


async def converse(house: House) -> None:
    """Everything a server does: a spoken turn, speech over the answer, a typed turn, what operators read, and a phone call with keys."""
    async with connect(house.app, "model=local&extensions=1") as client, phone(house.app, house.clock) as caller:
        await caller.dial()
        await speak(house, client)
        await pump(house, client.until("response.output_audio.delta"))
        await speak(house, client, tone(0.4))
        await speak(house, client, silence(0.6))
        await pump(house, client.until("response.done"))
        await client.send("conversation.item.create", item=text_item("a mocha"))
        await caller.talk(np.concatenate([tone(0.6), silence(0.6)]))
        await caller.say({"event": "dtmf", "streamSid": "MZ1", "dtmf": {"digit": "#"}})
        await caller.wait(0.2)
        assert "voiceagent_turns_total" in house.app.state.realtime.telemetry.exposition()


LONG = "One two three four five six seven. " * 10


def test_no_callback_holds_the_loop_during_a_conversation() -> None:
    serve(converse, written=(LONG,))  # What is imported, and tables that are made once, are not what callers wait for.
    with callbacks_timed() as longest:
        serve(converse, written=(LONG,))
    assert any("Line._read" in name for name in longest), "the server's own tasks were timed"
    over = {name: f"{1000 * held:.1f} ms" for name, held in longest.items() if held > LIMIT_S}
    # The test itself is a task of that loop: it makes the recordings that the caller speaks.
    assert not {name for name in over if "run_async" not in name}, over


def test_a_callback_that_holds_the_loop_is_found() -> None:
    class Slow(ToneSynthesizer):
        async def speak(self, clause: str) -> AsyncGenerator[Samples, None]:
            end = time.thread_time() + 1.5 * LIMIT_S
            while time.thread_time() < end:
                pass
            async for samples in super().speak(clause):
                yield samples

    async def scenario(house: House) -> None:
        house.runtime.tts = Slow()
        async with connect(house.app) as client:
            await client.send("response.create")
            await pump(house, client.until("response.done"))

    with callbacks_timed() as longest:
        serve(scenario)
    held: dict[str, Any] = {name: seconds for name, seconds in longest.items() if seconds > LIMIT_S}
    assert any("Reply._voice" in name for name in held), held

"""The thread that owns the engine: order, cancellation, deadlines, failures and closing."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from dllm.drafts import Committed, DraftSpec, Event, Finished, Plan, Prefilled, Stepped
from dllm.engine import Engine
from dllm.errors import ConfigError, DraftExpiredError, EngineClosedError, EngineFailedError
from dllm.runner import EngineRunner
from tests.conftest import run_async
from tests.dllm import tiny
from tests.dllm.standin import StandInEngine


def spec(tokens: int = 9, width: int = 16, conversation: str = "c") -> DraftSpec:
    return DraftSpec(tuple(range(100, 100 + tokens)), conversation, width)


def write_nine(_: DraftSpec) -> Sequence[int]:
    return range(20, 29)


async def collect(runner: EngineRunner[Any], ask: DraftSpec | None = None) -> list[Event]:
    return [event async for event in runner.submit(ask or spec())]


def test_events_arrive_in_order_and_end_with_the_finished_reply() -> None:
    async def main() -> list[Event]:
        async with EngineRunner(StandInEngine(write_nine)) as runner:
            return await collect(runner)

    events = run_async(main())
    kinds = [type(event) for event in events]
    assert kinds == [Prefilled, *[Stepped, Committed] * 3, Finished]
    said = [token for event in events if isinstance(event, Committed) for token in event.tokens]
    assert said == list(range(20, 29))


def test_many_drafts_share_the_thread_and_each_hears_its_own_events() -> None:
    async def main() -> list[list[Event]]:
        async with EngineRunner(StandInEngine(lambda ask: range(20, 20 + len(ask.prompt)))) as runner:
            return await asyncio.gather(*(collect(runner, spec(tokens)) for tokens in (3, 5, 9, 14)))

    for tokens, events in zip((3, 5, 9, 14), run_async(main()), strict=True):
        last = events[-1]
        assert isinstance(last, Finished) and last.tokens == tuple(range(20, 20 + tokens))


def test_who_watches_hears_of_every_round_before_the_drafts_own_listeners() -> None:
    async def main() -> None:
        told: list[Event] = []
        async with EngineRunner(StandInEngine(write_nine)) as runner:
            runner.watch(told.extend)
            async for event in runner.submit(spec()):
                assert event in told
        assert isinstance(told[-1], Finished)

    run_async(main())


def test_a_spec_may_be_made_on_the_engines_thread() -> None:
    made_on: list[str] = []

    def make() -> DraftSpec:
        made_on.append(threading.current_thread().name)
        return spec()

    async def main() -> int:
        async with EngineRunner(StandInEngine(write_nine)) as runner:
            return len([event async for event in runner.submit(make)])

    assert run_async(main()) == 8
    assert made_on == ["diffusion-engine"]


def test_closing_a_stream_cancels_its_draft_before_the_next_forward() -> None:
    gate = threading.Semaphore(0)
    engine = StandInEngine(write_nine, piece=1, gate=gate)

    async def main() -> None:
        async with EngineRunner(engine) as runner:
            stream = runner.submit(spec())
            gate.release()
            assert isinstance(await anext(stream), Prefilled)
            # At most the second round has begun, and it cannot end before there are more permits.
            await stream.aclose()
            gate.release(9)
            await runner.call(lambda engine: None)
            assert [event async for event in stream] == []

    run_async(main())
    assert len(engine.cancelled) == 1
    assert engine.rounds <= 2


def test_a_cancelled_task_cancels_the_draft_it_waits_for() -> None:
    gate = threading.Semaphore(0)
    engine = StandInEngine(write_nine, gate=gate)

    async def main() -> None:
        async with EngineRunner(engine) as runner:
            waiting = asyncio.ensure_future(collect(runner))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            gate.release()
            await runner.call(lambda engine: None)
            assert not engine.drafts

    run_async(main())
    assert engine.rounds <= 1


def test_a_draft_that_is_cancelled_before_the_engine_saw_it_is_never_submitted() -> None:
    is_open = threading.Event()
    engine = StandInEngine(write_nine)

    async def main() -> None:
        async with EngineRunner(engine) as runner:
            blocking = asyncio.ensure_future(runner.call(lambda engine: is_open.wait()))
            await asyncio.sleep(0)
            runner.submit(spec()).cancel()
            is_open.set()
            await blocking
            await runner.call(lambda engine: None)

    run_async(main())
    assert engine.specs == []


def test_an_expired_draft_is_cancelled_and_says_how_late_it_was() -> None:
    now = [0.0]
    engine = StandInEngine(write_nine)

    def pass_time() -> None:
        now[0] += 1.0

    engine.before_round = pass_time

    async def main() -> list[Event]:
        seen: list[Event] = []
        async with EngineRunner(engine, clock=lambda: now[0]) as runner:
            with pytest.raises(DraftExpiredError, match="0.500 s after"):
                async for event in runner.submit(spec(), expires=1.5):
                    seen.append(event)
        return seen

    assert len([event for event in run_async(main()) if isinstance(event, Stepped)]) == 2
    assert len(engine.cancelled) == 1


def test_what_the_engine_refuses_is_raised_where_the_first_event_would_be() -> None:
    def refuse(_: DraftSpec) -> Sequence[int]:
        raise ConfigError("width", 3, "a multiple of 8")

    async def main() -> None:
        async with EngineRunner(StandInEngine(refuse)) as runner:
            stream = runner.submit(spec())
            with pytest.raises(ConfigError, match="width = 3"):
                await anext(stream)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    run_async(main())


def test_a_failed_draft_raises_its_own_error_and_leaves_the_others_alone() -> None:
    class Picky(StandInEngine):
        def run_round(self) -> list[Event]:
            bad = [draft for draft in self.open_drafts if draft.spec.conversation == "bad"]
            return [self.fail(draft, ValueError("bad draft")) for draft in bad] + super().run_round()

    async def main() -> list[object]:
        async with EngineRunner(Picky(write_nine)) as runner:
            results = await asyncio.gather(
                collect(runner, spec(conversation="good")),
                collect(runner, spec(conversation="bad")),
                return_exceptions=True,
            )
            return list(results)

    good, bad = run_async(main())
    assert isinstance(good, list) and isinstance(good[-1], Finished)
    assert isinstance(bad, ValueError) and str(bad) == "bad draft"


def test_a_bug_reaches_every_waiting_draft_and_the_next_one_is_served(caplog: pytest.LogCaptureFixture) -> None:
    engine = StandInEngine(write_nine)
    rounds: list[int] = []

    def break_once() -> None:
        rounds.append(1)
        if len(rounds) == 1:
            raise RuntimeError("a bug")

    engine.before_round = break_once

    async def main() -> list[object]:
        async with EngineRunner(engine) as runner:
            results: list[object] = []
            broken = [runner.submit(spec()), runner.submit(spec())]
            for stream in broken:
                try:
                    results.append([event async for event in stream])
                except EngineFailedError as error:
                    results.append(error)
            results.append(await collect(runner))
            return results

    with caplog.at_level(logging.CRITICAL):
        first, _, last = run_async(main())
    assert isinstance(first, EngineFailedError) and str(first) == "the engine failed: RuntimeError: a bug"
    assert isinstance(last, list) and isinstance(last[-1], Finished)


def test_an_engine_that_cannot_drop_its_drafts_is_not_run_again(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(StandInEngine):
        def run_round(self) -> list[Event]:
            raise RuntimeError("a bug")

        def cancel(self, draft: object) -> None:
            raise RuntimeError("another")

    async def main() -> None:
        async with EngineRunner(Stuck(write_nine)) as runner:
            with pytest.raises(EngineFailedError, match="RuntimeError: a bug"):
                await collect(runner)
            await asyncio.to_thread(runner._thread.join)
            with pytest.raises(EngineFailedError, match="RuntimeError: a bug"):
                runner.submit(spec())
            assert isinstance(runner.failure, EngineFailedError)

    with caplog.at_level(logging.CRITICAL):
        run_async(main())


def test_closing_fails_what_is_pending_and_what_comes_later() -> None:
    gate = threading.Semaphore(0)

    async def main() -> None:
        runner = EngineRunner(StandInEngine(write_nine, gate=gate))
        running = runner.submit(spec())
        gate.release()
        assert isinstance(await anext(running), Prefilled)
        queued = runner.submit(spec())
        asked = asyncio.ensure_future(runner.call(lambda engine: None))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(runner.aclose())
        await asyncio.sleep(0)
        gate.release()
        await closing
        for stream in (running, queued):
            with pytest.raises(EngineClosedError, match="the engine is closed"):
                [event async for event in stream]
        with pytest.raises(EngineClosedError):
            await asked
        with pytest.raises(EngineClosedError):
            runner.submit(spec())
        runner.forget("c")
        runner.warm("c", [1])
        await runner.aclose()

    run_async(main())


def test_a_new_plan_reaches_the_engine_before_the_next_forward() -> None:
    gate = threading.Semaphore(0)
    engine = StandInEngine(write_nine, gate=gate)

    async def main() -> None:
        async with EngineRunner(engine) as runner:
            async with runner.submit(spec()) as stream:
                gate.release()
                await anext(stream)
                stream.replan(Plan(steps_first=2))
                gate.release(5)
                assert [event async for event in stream]
                stream.replan(Plan(steps_first=3))
            await runner.call(lambda engine: None)

    run_async(main())
    assert engine.plans == [Plan(steps_first=2)]


def test_warming_waits_until_nobody_waits_for_a_step() -> None:
    gate = threading.Semaphore(0)
    engine = StandInEngine(write_nine, gate=gate)
    warmed_while: list[int] = []

    def tokens() -> list[int]:
        warmed_while.append(len(engine.drafts))
        return [7, 8]

    async def main() -> None:
        async with EngineRunner(engine) as runner:
            stream = runner.submit(spec())
            gate.release()
            await anext(stream)
            runner.warm("c", [1])
            runner.warm("c", tokens)
            runner.warm("d", [2])
            runner.forget("d")
            gate.release(5)
            assert [event async for event in stream]
            while not engine.warmed:
                await runner.call(lambda engine: None)

    run_async(main())
    assert engine.warmed == [("c", (7, 8))]
    assert warmed_while == [0]
    assert engine.forgotten == ["d"]


def test_a_slow_reader_loses_old_snapshots_and_nothing_else() -> None:
    done = threading.Event()

    async def main() -> list[Event]:
        async with EngineRunner(StandInEngine(lambda _: range(20, 40), piece=1)) as runner:
            stream = runner.submit(spec(width=32), backlog=4)
            while runner.active or not await runner.call(lambda engine: engine.specs):
                await runner.call(lambda engine: None)
            done.set()
            return [event async for event in stream]

    events = run_async(main())
    steps = [event.step for event in events if isinstance(event, Stepped)]
    assert steps == [17, 18, 19, 20]
    assert [token for event in events if isinstance(event, Committed) for token in event.tokens] == list(range(20, 40))
    assert isinstance(events[0], Prefilled) and isinstance(events[-1], Finished)


def test_a_slow_reader_learns_when_an_event_came() -> None:
    async def main() -> list[tuple[type[Event], float]]:
        engine = StandInEngine(write_nine)
        async with EngineRunner(engine, clock=lambda: float(engine.rounds)) as runner:
            stream = runner.submit(spec())
            while runner.active or not engine.rounds:
                await runner.call(lambda _: None)
            return [(type(event), stream.came) async for event in stream]

    written = [(kind, came) for came in (1.0, 2.0, 3.0) for kind in (Stepped, Committed)]
    assert run_async(main()) == [(Prefilled, 1.0), *written, (Finished, 3.0)]


def test_a_listener_that_fails_loses_its_draft_only(caplog: pytest.LogCaptureFixture) -> None:
    engine = StandInEngine(write_nine)
    failures: list[Exception] = []

    def refuse(event: Event) -> None:
        raise RuntimeError("the listener is broken")

    async def main() -> list[Event]:
        async with EngineRunner(engine) as runner:
            runner.start(spec(), refuse, failures.append)
            return await collect(runner)

    with caplog.at_level(logging.CRITICAL):
        events = run_async(main())
    assert isinstance(events[-1], Finished)
    assert len(engine.cancelled) == 1 and failures == []


def test_a_command_that_fails_tells_its_caller() -> None:
    async def main() -> None:
        async with EngineRunner(StandInEngine(write_nine)) as runner:
            with pytest.raises(ZeroDivisionError):
                await runner.call(lambda engine: 1 // 0)
            assert await runner.call(lambda engine: engine.piece) == 3

    run_async(main())


def test_the_real_engine_writes_the_same_alone_and_on_the_thread() -> None:
    prompt = tuple(tiny.codec().encode_prompt([("user", "i would like a small tea")]))
    ask = DraftSpec(prompt, "c", 16, Plan(4, 4))
    alone = Engine(tiny.model(), tiny.codec().token_table)
    alone.submit(ask)
    expected = None
    while alone.drafts:
        for event in alone.run_round():
            expected = event.tokens if isinstance(event, Finished) else expected

    async def main() -> list[Event]:
        async with EngineRunner(Engine(tiny.model(), tiny.codec().token_table)) as runner:
            events, _ = await asyncio.gather(*(asyncio.ensure_future(collect_real(runner, ask)) for _ in range(2)))
            return events

    async def collect_real(runner: EngineRunner[Engine], ask: DraftSpec) -> list[Event]:
        return [event async for event in runner.submit(ask)]

    last = run_async(main())[-1]
    assert isinstance(last, Finished) and last.tokens == expected

"""Grammars of requests are compiled apart from everything else, and only as long as somebody waits for them."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from signal import SIGKILL
from typing import Any

import pytest

from dllm import patterns
from dllm.patterns import Trial
from dllm.server.grammars import Grammars, Order
from dllm.server.problems import ApiError
from dllm.server.requests import Grammar
from dllm.server.workbench import Workbench
from tests.dllm import tiny
from tests.dllm.server.serving import ROOMY, served

ENDLESS = "(a|b)*a(a|b){40}"


@pytest.fixture(autouse=True)
def nothing_is_remembered() -> Iterator[None]:
    patterns._can_be_compiled.cache_clear()
    yield
    patterns._can_be_compiled.cache_clear()


class Held(Grammars):
    """Compiles once it is let go."""

    def __init__(self) -> None:
        super().__init__(tiny.codec())
        self.compiled: list[str] = []
        self.began, self.go = threading.Event(), threading.Event()

    def compile(self, order: Order, trial: Trial | None = None) -> Any:
        self.began.set()
        assert self.go.wait(60)
        self.compiled.append(order.key)
        return super().compile(order, trial)


async def passes(times: int = 3) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await main()

    asyncio.run(bounded())


def test_a_reply_without_a_grammar_waits_for_none_that_is_being_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(expression: str) -> bool:
        began.set()
        assert go.wait(60)
        return False

    monkeypatch.setattr("dllm.automata.is_too_large", slow)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        async with served("Hello.", spec=ROOMY) as server:
            grammars = [asyncio.create_task(server.chat(dllm={"regex": "a" * n})) for n in (1, 2, 3)]
            try:
                assert await loop.run_in_executor(ThreadPoolExecutor(1), began.wait, 60)
                assert (await server.chat()).status_code == 200
                assert not any(task.done() for task in grammars)
            finally:
                go.set()
            await asyncio.gather(*grammars)

    run(main)


def test_more_grammars_than_may_wait_are_refused_with_429_and_those_that_are_kept_never() -> None:
    grammars = Held()
    bench = Workbench(grammars, most=2)

    async def main() -> None:
        grammars.go.set()
        known = await bench.compile(Grammar(regex="known"))
        grammars.go.clear()
        tasks = [asyncio.create_task(bench.compile(Grammar(regex=regex))) for regex in "abc"]
        await passes()
        try:
            with pytest.raises(ApiError) as caught:
                await bench.compile(Grammar(regex="d"))
            assert (caught.value.status, caught.value.headers) == (429, {"retry-after": "1"})
            assert await bench.compile(Grammar(regex="known")) is known
        finally:
            grammars.go.set()
        assert all(await asyncio.gather(*tasks))
        assert await bench.compile(Grammar(regex="d")) is not None

    run(main)


def test_many_who_want_the_same_grammar_share_one_place_and_one_compilation() -> None:
    grammars = Held()
    bench = Workbench(grammars, most=0)

    async def main() -> None:
        tasks = [asyncio.create_task(bench.compile(Grammar(regex="a"))) for _ in range(5)]
        await passes()
        tasks[0].cancel()
        await passes()
        grammars.go.set()
        found = await asyncio.gather(*tasks[1:])
        assert len(set(map(id, found))) == 1 and len(grammars.compiled) == 1

    run(main)


def test_a_grammar_for_which_nobody_waits_any_more_is_never_begun() -> None:
    grammars = Held()
    bench = Workbench(grammars, most=1)

    async def main() -> None:
        first, second = (asyncio.create_task(bench.compile(Grammar(regex=regex))) for regex in "ab")
        await passes()
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        third = asyncio.create_task(bench.compile(Grammar(regex="c")))
        await passes()
        grammars.go.set()
        await asyncio.gather(first, third)
        assert len(grammars.compiled) == 2

    run(main)


def test_a_cancelled_request_ends_the_process_that_tries_its_expression_and_the_next_one_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that goes, and a server that is told to stop, which cancels its requests and then waits for its threads."""
    monkeypatch.setattr(patterns, "PROCESSOR_S", 60)
    bench = Workbench(Grammars(tiny.codec()))
    processes: list[subprocess.Popen[bytes]] = []
    is_begun = threading.Event()
    start = subprocess.Popen

    def watched(*args: Any, **how: Any) -> subprocess.Popen[bytes]:
        processes.append(start(*args, **how))
        is_begun.set()
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", watched)

    async def main() -> None:
        task = asyncio.create_task(bench.compile(Grammar(regex=ENDLESS)))
        await asyncio.to_thread(is_begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await bench.compile(Grammar(regex="yes|no")) is not None
        first, *others = [process.returncode for process in processes]
        assert first == -SIGKILL and others and not any(others)

    run(main)


def test_a_closed_bench_ends_the_trial_at_once_takes_nothing_new_and_still_gives_what_it_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patterns, "PROCESSOR_S", 60)
    outcomes: list[str] = []
    bench = Workbench(Grammars(tiny.codec()), tell=outcomes.append)
    is_begun = threading.Event()
    start = subprocess.Popen

    def watched(*args: Any, **how: Any) -> subprocess.Popen[bytes]:
        process = start(*args, **how)
        is_begun.set()
        return process

    async def main() -> None:
        known = await bench.compile(Grammar(regex="yes|no"))
        monkeypatch.setattr(subprocess, "Popen", watched)
        waiting = [asyncio.create_task(bench.compile(Grammar(regex=regex))) for regex in (ENDLESS, ENDLESS, "b+")]
        await asyncio.to_thread(is_begun.wait, 60)
        bench.close()
        for task in waiting:
            with pytest.raises(ApiError, match="shutting down") as caught:
                await task
            assert caught.value.status == 503
        assert await bench.compile(Grammar(regex="yes|no")) is known
        with pytest.raises(ApiError, match="shutting down"):
            await bench.compile(Grammar(regex="c"))
        assert outcomes == ["compiled", "ended", "ended", "kept"] and bench.works == 0

    run(main)

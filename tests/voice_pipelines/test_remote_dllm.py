"""Our own `dllm serve` as the remote language model, in both dialects, over a real connection."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.conftest import run_async
from tests.dllm.server.serving import Live, live
from voice_pipelines.adapters.remote import RemoteDrafter
from voice_pipelines.adapters.remote_wire import RemoteEndpoint
from voiceagent.backends import (
    DraftEvent,
    DraftFailed,
    DraftFinished,
    DraftPrefilled,
    DraftRequest,
    DraftStepped,
    PromptTurn,
    StepPlan,
    TokenState,
)
from voiceagent.clock import MonotonicClock

REPLY = "A large mocha with almond milk, that's $5.10. Anything else?"
TURNS = (
    PromptTurn("system", "Be brief."),
    PromptTurn("user", "a large mocha"),
    PromptTurn("note", "order: large mocha; total: $5.10"),
)
OPENAI: dict[str, Any] = {}
INCEPTION: dict[str, Any] = {"dialect": "inception", "diffusing": True}


def request() -> DraftRequest:
    plan = StepPlan(64, 4, 8, 0.9, first_deadline=MonotonicClock().now() + 0.2)
    return DraftRequest("conv_7", TURNS, plan, ("large mocha", "$5.10"))


def asking(
    server: Live, dialect: dict[str, Any], ask: Callable[[RemoteDrafter], Coroutine[Any, Any, None]], model: str = ""
) -> None:
    async def main() -> None:
        endpoint = RemoteEndpoint(f"{server.url}/v1", model, **dialect)
        drafter = await asyncio.to_thread(RemoteDrafter.connect, endpoint)
        try:
            await ask(drafter)
        finally:
            await drafter.aclose()

    run_async(main())


async def written(drafter: RemoteDrafter) -> list[DraftEvent]:
    events: asyncio.Queue[DraftEvent] = asyncio.Queue()
    drafter.start(request(), events.put_nowait)
    found = []
    while not found or not isinstance(found[-1], DraftFinished | DraftFailed):
        found.append(await events.get())
    return found


@pytest.mark.parametrize("dialect", [OPENAI, INCEPTION], ids=["openai", "inception"])
def test_a_reply_of_dllm_is_written_in_either_dialect(dialect: dict[str, Any]) -> None:
    events: list[DraftEvent] = []

    async def ask(drafter: RemoteDrafter) -> None:
        assert drafter.endpoint.model == "dllm"
        events.extend(await written(drafter))
        assert drafter.counts.repaired == 0

    with live(REPLY) as server:
        asking(server, dialect, ask)
        spec = server.engine.specs[0]
    assert isinstance(events[0], DraftPrefilled) and isinstance(events[-1], DraftFinished)
    assert events[-1].text == REPLY
    steps = [event for event in events if isinstance(event, DraftStepped)]
    texts = [step.committed_text for step in steps]
    assert texts[-1] == REPLY and all(b.startswith(a) for a, b in itertools.pairwise(texts))
    assert "conv_7" in str(spec.conversation), "the prefix cache is kept by conversation"
    if dialect:
        assert any(cell.state is TokenState.PROVISIONAL for step in steps for cell in step.canvas)
        assert not any(texts[:-2]), "nothing is committed before it is final"
    else:
        assert {"A large mocha with almond milk,", "A large mocha with almond milk, that's $5.10."} <= set(texts)


@pytest.mark.parametrize("dialect", [OPENAI, INCEPTION], ids=["openai", "inception"])
def test_a_cancel_reaches_the_engine_of_dllm(dialect: dict[str, Any]) -> None:
    gate = threading.Semaphore(2)

    async def ask(drafter: RemoteDrafter) -> None:
        stepped = asyncio.Event()
        events: list[DraftEvent] = []

        def take(event: DraftEvent) -> None:
            events.append(event)
            if isinstance(event, DraftStepped):
                stepped.set()

        draft = drafter.start(request(), take)
        await stepped.wait()
        before = len(events)
        draft.cancel()
        # The engine stands in a round; it is let go once the cancel waits for it.
        while not server.runner._commands:  # noqa: ASYNC110 -- the queue has no event to wait for
            await asyncio.sleep(0)
        gate.release()
        assert await asyncio.to_thread(server.engine.was_cancelled.wait, 20)
        assert len(events) == before

    with live(" ".join(["a large mocha."] * 20), gate=gate, piece=1) as server:
        try:
            asking(server, dialect, ask)
        finally:
            gate.release(10_000)
        assert len(server.engine.cancelled) == 1


def test_what_dllm_refuses_is_told() -> None:
    async def ask(drafter: RemoteDrafter) -> None:
        events = await written(drafter)
        assert isinstance(events[-1], DraftFailed) and len(events) == 1
        assert "answered 404 Not Found" in str(events[-1].error) and "model_not_found" in str(events[-1].error)

    with live(REPLY) as server:
        asking(server, OPENAI, ask, model="mercury-9")

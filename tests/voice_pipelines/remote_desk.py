"""A drafter before a scripted endpoint: what the tests of remote models share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.voice_pipelines.scripted_endpoint import Endpoint, Exchange, Script, endpoint, piece, sse
from voice_pipelines.adapters.remote import RemoteDraft, RemoteDrafter
from voice_pipelines.adapters.remote_wire import RemoteEndpoint
from voiceagent.backends import (
    BackendInfo,
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
from voiceagent.clock import ManualClock
from voiceagent.errors import BackendError

TURNS = (PromptTurn("system", "Be brief."), PromptTurn("user", "a large mocha please"))
PLAN = StepPlan(32, 4, 8, 0.9)


def asking(*must_say: str, plan: StepPlan = PLAN, turns: Sequence[PromptTurn] = TURNS) -> DraftRequest:
    return DraftRequest("call", tuple(turns), plan, must_say)


@dataclass
class Written:
    """A draft and the events that it has delivered."""

    draft: RemoteDraft
    events: list[DraftEvent]
    has_more: asyncio.Event

    async def until(self, *kinds: type[Any]) -> Any:
        """The first event of one of these kinds, waiting for it."""
        while True:
            found = next((event for event in self.events if isinstance(event, kinds)), None)
            if found is not None:
                return found
            self.has_more.clear()
            await self.has_more.wait()

    async def end(self) -> DraftFinished | DraftFailed:
        return await self.until(DraftFinished, DraftFailed)  # type: ignore[no-any-return]

    async def text(self) -> str:
        end = await self.end()
        assert isinstance(end, DraftFinished), end
        return end.text

    async def error(self) -> str:
        end = await self.end()
        assert isinstance(end, DraftFailed), end
        assert isinstance(end.error, BackendError) and end.error.part == "llm"
        return str(end.error)

    @property
    def steps(self) -> list[DraftStepped]:
        return [event for event in self.events if isinstance(event, DraftStepped)]


@dataclass
class Desk:
    """An endpoint and a drafter that asks it."""

    remote: Endpoint
    drafter: RemoteDrafter
    clock: ManualClock

    def write(self, request: DraftRequest | None = None) -> Written:
        events: list[DraftEvent] = []
        has_more = asyncio.Event()

        def take(event: DraftEvent) -> None:
            events.append(event)
            has_more.set()

        return Written(self.drafter.start(request or asking(), take), events, has_more)


@asynccontextmanager
async def desk(*scripts: Script, **options: Any) -> AsyncGenerator[Desk, None]:
    clock = ManualClock(100.0)
    async with endpoint(*scripts) as remote:
        where = RemoteEndpoint(remote.url, "m", **options)
        drafter = RemoteDrafter(where, BackendInfo("llm", "m", "test", is_remote=True), clock)
        try:
            yield Desk(remote, drafter, clock)
        finally:
            await drafter.aclose()


def check_stream(events: Sequence[DraftEvent]) -> None:
    """What every finished draft promises."""
    assert isinstance(events[0], DraftPrefilled) and isinstance(events[-1], DraftFinished)
    steps = [event for event in events if isinstance(event, DraftStepped)]
    assert len(events) == len(steps) + 2
    before = ""
    for step in steps:
        assert step.committed_text.startswith(before)
        rest = step.committed_text[len(before) :]
        assert not before or not rest or rest[0].isspace(), "a word that was committed went on"
        before = step.committed_text
        shown = "".join(cell.text for cell in step.canvas if cell.state is TokenState.COMMITTED)
        assert shown == step.committed_text
        assert len(step.canvas) >= PLAN.canvas_width
    assert events[-1].text == before
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    assert [step.phase for step in steps] == sorted(step.phase for step in steps), "first, then rest"


REPLY = sse(
    json.dumps({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
    piece("Très "),
    piece("bien — that's "),
    piece("$4.50, "),
    piece("ready in 10 minutes.\u2028 Any"),
    piece("thing else?"),
    piece(None, "stop"),
    json.dumps({"choices": [], "usage": {"prompt_tokens": 9}}),
    "[DONE]",
).replace(b"\n\ndata", b"\r\n\r\n: keep-alive\r\n\r\ndata", 3)


async def hang(exchange: Exchange) -> None:
    await exchange.gone.wait()


def refusing(status: str, body: bytes) -> Script:
    async def script(exchange: Exchange) -> None:
        exchange.refuse(status, body)

    return script


def sending(*events: str, kind: str = "text/event-stream") -> Script:
    async def script(exchange: Exchange) -> None:
        exchange.begin(kind=kind)
        exchange.send(*events)
        exchange.end()

    return script


def call_piece(arguments: str, *, name: str = "", index: int = 0, reason: str | None = None) -> str:
    chunk = json.loads(piece(None, reason))
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    chunk["choices"][0]["delta"] = {
        "tool_calls": [{"index": index, "id": "c1", "type": "function", "function": function}]
    }
    return json.dumps(chunk)


def calling(*events: str) -> Script:
    async def script(exchange: Exchange) -> None:
        exchange.begin()
        exchange.send(*events, piece(None, "tool_calls"), "[DONE]")
        exchange.end()

    return script

"""A remote language model: what is asked, what is spoken and when, and every way in which it can go wrong."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import run_async
from tests.voice_pipelines.scripted_endpoint import (
    Endpoint,
    Exchange,
    Script,
    endpoint,
    frame,
    piece,
    saying,
    sse,
)
from tests.voiceagent.standins import LevelDetector, ScriptedTranscriber, ToneSynthesizer, silence, tone
from voice_pipelines import settings
from voice_pipelines.adapters.remote import RemoteDraft, RemoteDrafter, ask_models, choose_name
from voice_pipelines.adapters.remote_text import ReplyEnd, ReplyText, says
from voice_pipelines.adapters.remote_wire import (
    EndpointError,
    RemoteEndpoint,
    chat_messages,
    read_event,
    request_body,
)
from voice_pipelines.choices import choose_llm
from voice_pipelines.doctor import run_doctor
from voice_pipelines.local import LocalRuntime, calibrate
from voice_pipelines.loopback import call
from voiceagent.agent import AgentProfile
from voiceagent.backends import (
    BackendInfo,
    Backends,
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
from voiceagent.budget import BudgetController
from voiceagent.clock import Clock, ManualClock
from voiceagent.config import Config
from voiceagent.conversation import Conversation
from voiceagent.costs import Stage
from voiceagent.errors import BackendError, ConfigError
from voiceagent.events import ConversationEvent, ResponsePlanned
from voiceagent.tools import ToolCall, ToolChoice, ToolSpec

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


# --- a reply ----------------------------------------------------------------------------------------------------------


def test_clauses_are_committed_when_they_are_whole_and_the_rest_is_provisional() -> None:
    async def main() -> list[DraftEvent]:
        async with desk(saying("Sure", "! A large mo", "cha.", " Anything", " else?")) as here:
            written = here.write()
            await written.end()
            check_stream(written.events)
            return written.events

    events = run_async(main())
    steps = [event for event in events if isinstance(event, DraftStepped)]
    assert [(step.phase, step.committed_text) for step in steps] == [
        ("first", ""),
        ("first", "Sure!"),
        ("rest", "Sure!"),
        ("rest", "Sure! A large mocha."),
        ("rest", "Sure! A large mocha."),
        ("rest", "Sure! A large mocha. Anything else?"),
    ]
    states = [cell.state.value for cell in steps[3].canvas[:6]]
    assert states == ["committed"] * 4 + ["provisional", "masked"]
    assert isinstance(events[-1], DraftFinished)
    assert (events[-1].steps_first, events[-1].steps_rest) == (2, 4)


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


def test_the_events_are_the_same_however_the_stream_is_cut() -> None:
    def cut(seed: int) -> Script:
        async def script(exchange: Exchange) -> None:
            chance = random.Random(seed)
            size = 1 if seed == 0 else chance.choice((2, 7, 60, 10_000))
            exchange.begin()
            place = 0
            while place < len(REPLY):
                end = place + (1 if seed == 0 else chance.randint(1, size))
                exchange.write(REPLY[place:end])
                place = end
                await asyncio.sleep(0)
            exchange.end()

        return script

    async def main() -> None:
        async with desk(*map(cut, range(40))) as here:
            seen = set()
            for _ in range(40):
                written = here.write()
                await written.end()
                check_stream(written.events)
                seen.add(repr(written.events))
            assert len(seen) == 1
            assert (await written.text()).startswith("Très bien — that's $4.50, ready in 10 minutes.")

    run_async(main())


def test_canvases_are_shown_and_committed_only_when_they_are_final() -> None:
    async def main() -> list[DraftStepped]:
        async def script(exchange: Exchange) -> None:
            exchange.begin()
            exchange.send(
                frame("@@ large @@ coming. ?? el", 0.2),
                frame("A large mocha coming up. An elk?", 0.7),
                frame("A large mocha, coming right up. Anything ", 1.0),
                frame("A large mocha, coming right up. Anything zzz", 0.4),
                frame("A large mocha, coming right up. Anything else?", 1.0),
                piece(None, "stop"),
                "[DONE]",
            )
            exchange.end()

        async with desk(script, dialect="inception", diffusing=True) as here:
            written = here.write()
            assert await written.text() == "A large mocha, coming right up. Anything else?"
            check_stream(written.events)
            assert here.remote.exchanges[0].body["diffusing"] is True
            return written.steps

    steps = run_async(main())
    assert [step.committed_text for step in steps[:4]] == ["", "", *["A large mocha, coming right up."] * 2]
    assert steps[0].canvas[0].text == "@@" and steps[0].canvas[0].state is TokenState.PROVISIONAL
    assert steps[0].canvas[0].confidence == 0.2
    assert steps[3].canvas[-1].state is TokenState.MASKED and steps[3].canvas[7].text == " zzz"


def test_a_canvas_that_changes_final_text_is_an_error() -> None:
    async def main() -> str:
        async def script(exchange: Exchange) -> None:
            exchange.begin()
            exchange.send(frame("That's four dollars. Bye.", 1.0), frame("That's five dollars. Bye.", 1.0))

        async with desk(script, dialect="inception", diffusing=True) as here:
            return await here.write().error()

    assert "changed text that it had called final" in run_async(main())


def test_an_endpoint_that_ignores_diffusing_is_read_as_pieces() -> None:
    async def main() -> str:
        async with desk(saying("Hello", " there."), dialect="inception", diffusing=True) as here:
            return await here.write().text()

    assert run_async(main()) == "Hello there."


def test_thoughts_are_not_spoken() -> None:
    async def main() -> tuple[str, list[DraftStepped]]:
        thinking = ("<th", "ink>The caller wants", " coffee.</think>", "\n\nOne", " coffee.")
        async with desk(saying(*thinking)) as here:
            written = here.write()
            return await written.text(), written.steps

    text, steps = run_async(main())
    assert text == "One coffee."
    assert not any("caller" in cell.text or "<" in cell.text for step in steps for cell in step.canvas)


def test_a_reply_that_reached_the_limit_ends_with_a_whole_sentence() -> None:
    async def main() -> list[str]:
        scripts = (
            saying("It is open. You will find it on the", reason="length"),
            saying("You will find it on", reason="length"),
            saying("It is open. Until six.", reason="length"),
        )
        async with desk(*scripts) as here:
            return [await here.write().text() for _ in scripts]

    assert run_async(main()) == ["It is open.", "You will find it on", "It is open. Until six."]


# --- what must be said ------------------------------------------------------------------------------------------------


def test_what_must_be_said_is_asked_for_and_added_where_it_is_missing() -> None:
    async def main() -> tuple[list[str], int, Any]:
        scripts = (saying("A Large mocha, that's $5.50."), saying("Coming", " right up"), saying("That's $5.500."))
        async with desk(*scripts) as here:
            texts = []
            for _ in scripts:
                written = here.write(asking("large mocha", "$5.50"))
                texts.append(await written.text())
                check_stream(written.events)
            return texts, here.drafter.counts.repaired, here.remote.exchanges[0].body["messages"][-1]

    texts, repaired, demand = run_async(main())
    assert texts == [
        "A Large mocha, that's $5.50.",
        "Coming right up Large mocha, $5.50.",
        "That's $5.500. Large mocha, $5.50.",
    ]
    assert repaired == 2
    assert demand == {
        "role": "system",
        "content": 'Your next reply must contain, word for word: "large mocha", "$5.50".',
    }


def test_what_must_be_said_is_looked_for_as_whole_words() -> None:
    assert says("It's  Large\nMocha time", "large mocha") and says("$5.50!", "$5.50")
    assert not says("$15.50", "5.50") or not says("x5.50", "5.50")
    assert not says("$5.505", "$5.50") and not says("larger mocha", "large") and not says("", "x")


# --- the request ------------------------------------------------------------------------------------------------------


def test_turns_become_chat_messages() -> None:
    turns = (
        *TURNS,
        PromptTurn("note", "order: large mocha"),
        PromptTurn("agent", "Sure."),
        PromptTurn("user", "and?"),
        PromptTurn("note", "total: $5"),
    )
    messages = chat_messages(turns, ("$5", "$5"))
    assert [message["role"] for message in messages] == ["system", "user", "system", "assistant", "user", "system"]
    assert messages[-1]["content"] == 'total: $5\nYour next reply must contain, word for word: "$5".'
    assert chat_messages(()) == []


def test_the_plan_becomes_the_parameters_of_the_dialect() -> None:
    openai = RemoteEndpoint("http://h/v1", "m", max_tokens=300)
    body = request_body(openai, asking(plan=replace(PLAN, canvas_width=24)), 0.0)
    assert (body["max_completion_tokens"], body["temperature"], body["stream"], body["model"]) == (24, 0.0, True, "m")
    assert not {"realtime", "diffusing", "reasoning_effort"} & set(body)
    assert request_body(openai, asking(plan=replace(PLAN, canvas_width=128)), 0.0)["max_completion_tokens"] == 300
    reasoning = request_body(replace(openai, reasoning_effort="low"), asking(), 0.0)
    assert reasoning["reasoning_effort"] == "low" and "temperature" not in reasoning

    inception = replace(openai, dialect="inception")
    for room_s, effort in ((0.3, "instant"), (-1.0, "instant"), (1.5, "low"), (4.0, "medium"), (30.0, "high")):
        body = request_body(inception, asking(plan=replace(PLAN, first_deadline=50.0 + room_s)), 50.0)
        assert (body["reasoning_effort"], body["realtime"]) == (effort, True)
    body = request_body(inception, replace(asking(), temperature=1.5), 0.0)
    assert (body["realtime"], body["temperature"]) == (False, 1.0) and "reasoning_effort" not in body
    assert "temperature" not in request_body(inception, asking(), 0.0), "0 would be reset with a warning"


def test_a_short_limit_is_the_only_canvas_there_is() -> None:
    assert RemoteEndpoint("http://h", max_tokens=9).canvas_widths == (9,)
    assert RemoteEndpoint("http://h", max_tokens=64).canvas_widths == (16, 24, 32, 40, 64)


# --- connections ------------------------------------------------------------------------------------------------------


def test_one_kept_connection_serves_warming_and_the_replies_that_follow() -> None:
    async def main() -> None:
        async with desk(saying("Hello there."), api_key="sk-1") as here:
            here.drafter.warm("call", TURNS)
            here.drafter.warm("other", TURNS)
            assert here.drafter._warming is not None
            await here.drafter._warming
            here.drafter.warm("call", TURNS)
            assert len(here.remote.listings) == 1, "what is warm needs no warming"
            for _ in range(3):
                written = here.write()
                await written.text()
                await written.draft.task
            transports = {id(exchange.transport) for exchange in (*here.remote.listings, *here.remote.exchanges)}
            assert len(transports) == 1
            assert {exchange.headers["authorization"] for exchange in here.remote.exchanges} == {"Bearer sk-1"}
            assert {exchange.headers["x-conversation"] for exchange in here.remote.exchanges} == {"call"}

    run_async(main())


def test_warming_an_endpoint_that_is_not_there_disturbs_nobody() -> None:
    async def main() -> None:
        drafter = RemoteDrafter(RemoteEndpoint("http://127.0.0.1:9/v1", "m"), BackendInfo("llm", "m", "test"))
        drafter.warm("call", TURNS)
        assert drafter._warming is not None
        await drafter._warming
        await drafter.aclose()

    run_async(main())


def test_a_kept_connection_that_the_endpoint_has_closed_is_replaced() -> None:
    async def main() -> None:
        async def leave(exchange: Exchange) -> None:
            exchange.transport.close()

        async with desk(saying("One."), leave, saying("Two."), leave) as here:
            first = here.write()
            assert await first.text() == "One."
            await first.draft.task
            assert await here.write().text() == "Two."
            assert "broke off the connection" in await here.write().error(), "once, not for ever"
            assert len(here.remote.exchanges) == 5

    run_async(main())


# --- cancelling -------------------------------------------------------------------------------------------------------


async def hang(exchange: Exchange) -> None:
    await exchange.gone.wait()


async def hang_after_a_sentence(exchange: Exchange) -> None:
    exchange.begin()
    exchange.send(piece("Sure thing. I will"))
    await exchange.gone.wait()


@pytest.mark.parametrize("script", [hang, hang_after_a_sentence])
def test_a_cancel_closes_the_request_at_once_and_nothing_follows(script: Script) -> None:
    async def main() -> None:
        asked = asyncio.Event()

        async def noticed(exchange: Exchange) -> None:
            asked.set()
            await script(exchange)

        async with desk(noticed, saying("Still here.")) as here:
            written = here.write()
            if script is hang:
                await asked.wait()
            else:
                await written.until(DraftStepped)
            before = list(written.events)
            written.draft.cancel()
            written.draft.cancel()
            await here.remote.exchanges[0].gone.wait()
            await asyncio.gather(written.draft.task, return_exceptions=True)
            assert written.events == before
            assert await here.write().text() == "Still here."
            assert here.drafter.counts.cancelled == 1
            written.draft.replan(PLAN)

    run_async(main())


def test_a_cancel_before_the_request_left_and_one_after_the_end_do_nothing() -> None:
    async def main() -> None:
        async with desk(saying("Hello.")) as here:
            early = here.write()
            early.draft.cancel()
            written = here.write()
            await written.end()
            written.draft.cancel()
            await written.draft.task
            assert early.events == [] and len(here.remote.exchanges) == 1
            assert here.drafter.counts.cancelled == 1
            await asyncio.sleep(0)  # what a task leaves behind is cleared one turn of the loop later
            assert not here.drafter._drafts

    run_async(main())


def test_closing_fails_what_is_being_written_and_what_is_asked_later() -> None:
    async def main() -> None:
        async with desk(hang_after_a_sentence) as here:
            written = here.write()
            await written.until(DraftStepped)
            await here.drafter.aclose()
            await here.remote.exchanges[0].gone.wait()
            assert "the drafter is closed" in await written.error()
            assert "the drafter is closed" in await here.write().error()
            here.drafter.warm("call", TURNS)
            assert here.drafter._warming is None

    run_async(main())


def test_a_stream_that_stays_open_after_the_end_holds_nobody_up() -> None:
    async def main() -> None:
        async def script(exchange: Exchange) -> None:
            exchange.begin()
            exchange.send(piece("Hello.", "stop"), piece(" More?"))
            await exchange.gone.wait()

        async with desk(script) as here:
            written = here.write()
            assert await written.text() == "Hello."
            written.draft.cancel()
            await here.drafter.aclose()
            await here.remote.exchanges[0].gone.wait()
            assert isinstance(written.events[-1], DraftFinished)

    run_async(main())


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_a_first_clause_that_comes_late_is_waited_for_and_counted() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            await go.wait()
            await saying("Sure thing. Bye.")(exchange)

        async with desk(script) as here:
            written = here.write(asking(plan=replace(PLAN, first_deadline=100.5)))
            await here.clock.advance(3.0)
            assert written.events == []
            go.set()
            assert await written.text() == "Sure thing. Bye."
            assert here.drafter.counts.late == 1
            assert await here.write(asking(plan=replace(PLAN, first_deadline=200.0))).text()
            assert here.drafter.counts.late == 1

    run_async(main())


def test_when_the_caller_waits_the_reply_ends_with_its_last_whole_sentence() -> None:
    async def main() -> None:
        async with desk(hang_after_a_sentence, pause_s=0.5) as here:
            written = here.write(asking("$5"))
            await written.until(DraftStepped)
            written.draft.replan(replace(PLAN, rest_deadline=101.0))
            await here.clock.advance(1.4)
            assert not any(isinstance(event, DraftFinished) for event in written.events)
            await here.clock.advance(0.2)
            assert await written.text() == "Sure thing. $5."
            assert written.steps[-1].compute_s == 0.0, "the time waited in vain is no step's"
            await here.remote.exchanges[0].gone.wait()
            check_stream(written.events)
            assert (here.drafter.counts.cut, here.drafter.counts.repaired) == (1, 1)

    run_async(main())


def test_at_the_deadline_a_sentence_that_is_being_spoken_is_waited_for() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            exchange.begin()
            exchange.send(piece("One large mocha, with oat milk and"))
            await go.wait()
            exchange.send(piece(" sugar. It"))
            await exchange.gone.wait()

        async with desk(script, pause_s=0.0) as here:
            written = here.write()
            first = await written.until(DraftStepped)
            assert first.committed_text == "One large mocha,"
            written.draft.replan(replace(PLAN, rest_deadline=101.0))
            await here.clock.advance(5.0)
            assert not any(isinstance(event, DraftFinished) for event in written.events)
            go.set()
            assert await written.text() == "One large mocha, with oat milk and sugar."
            await here.remote.exchanges[0].gone.wait()

    run_async(main())


def test_a_deadline_that_moves_on_cuts_nothing() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            exchange.begin()
            exchange.send(piece("Sure thing. "))
            await go.wait()
            exchange.send(piece("Bye now.", "stop"))

        async with desk(script, pause_s=0.0) as here:
            written = here.write()
            await written.until(DraftStepped)
            for step in range(1, 6):
                written.draft.replan(replace(PLAN, rest_deadline=100.0 + step))
                await here.clock.advance(0.9)
            go.set()
            assert await written.text() == "Sure thing. Bye now."
            assert here.drafter.counts.cut == 0

    run_async(main())


@pytest.mark.parametrize(("script", "missing"), [(hang, "an answer"), (hang_after_a_sentence, "the next piece")])
def test_an_endpoint_that_says_nothing_more_times_out(script: Script, missing: str) -> None:
    async def main() -> str:
        async with desk(script, timeout_s=2.0) as here:
            written = here.write()
            if script is not hang:
                await written.until(DraftStepped)
            await here.clock.advance(2.1)
            error = await written.error()
            await asyncio.gather(written.draft.task, return_exceptions=True)
            if here.remote.exchanges:  # a clock moved by hand may be faster than the connection
                await here.remote.exchanges[0].gone.wait()
            return error

    error = run_async(main())
    assert f"timed out: no sign of {missing}" in error and "in 2 s" in error


# --- failures ---------------------------------------------------------------------------------------------------------


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


async def break_off(exchange: Exchange) -> None:
    exchange.begin()
    exchange.send(piece("Sure thing. I"))
    exchange.transport.close()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            refusing("401 Unauthorized", b'{"error": {"message": "Bad key sk-secret", "code": "invalid_api_key"}}'),
            "answered 401 Unauthorized: Bad key (hidden) (invalid_api_key)",
        ),
        (refusing("404 Not Found", b'{"detail": "Not Found"}'), "answered 404 Not Found: Not Found"),
        (refusing("429 Too Many Requests", b""), "answered 429 Too Many Requests"),
        (refusing("500 Oops", b'{"error": "boom"}'), "answered 500 Oops: boom"),
        (refusing("502 Bad Gateway", b"<html>\n down " + b"x" * 999), "answered 502 Bad Gateway: <html> down xxx"),
        (refusing("400 Bad Request", b"[" * 100_000), "answered 400 Bad Request: [[["),
        (refusing("302 Found", b""), "answered 302 Found"),
        (sending(piece("Sure. "), '{"error": {"message": "full", "type": "server_error"}}'), "full (server_error)"),
        (sending(piece("Sure."), "{not json"), "sent an event that is not JSON: '{not json'"),
        (sending("[1]"), "sent an event that is not an object"),
        (sending('{"choices": [{"delta": {"content": 5}}]}'), "not a chat completion chunk"),
        (sending('{"choices": "none"}'), "not a chat completion chunk"),
        (sending(piece("Sure. I will")), "closed the stream before the end of the reply"),
        (sending(), "closed the stream before the end of the reply"),
        (sending(piece(None, "length")), "answered without any text (finish_reason 'length')"),
        (sending("[DONE]"), "answered without any text (finish_reason 'done')"),
        (sending(kind="application/json"), "sent what is no event stream"),
        (break_off, "broke off the connection"),
    ],
)
def test_a_failure_names_what_the_endpoint_said_and_touches_nobody_else(script: Script, expected: str) -> None:
    async def main() -> str:
        others_turn = asyncio.Event()

        async def other(exchange: Exchange) -> None:
            exchange.begin()
            exchange.send(piece("I am"))
            await others_turn.wait()
            exchange.send(piece(" fine.", "stop"))
            exchange.end()

        async with desk(other, script, api_key="sk-secret") as here:
            neighbour = here.write()
            await neighbour.until(DraftStepped)
            written = here.write()
            error = await written.error()
            assert [type(event) for event in written.events].count(DraftFailed) == 1
            assert isinstance(written.events[-1], DraftFailed)
            others_turn.set()
            assert await neighbour.text() == "I am fine."
            assert (here.drafter.counts.failed, here.drafter.counts.finished) == (1, 1)
            assert here.drafter.endpoint.host in error
            return error

    error = run_async(main())
    assert expected in error and "sk-secret" not in error and len(error) < 500


def test_an_endpoint_that_is_not_there_is_said_to_be_out_of_reach() -> None:
    async def main() -> str:
        async with endpoint(hang) as remote:
            url = remote.url
        drafter = RemoteDrafter(RemoteEndpoint(url, "m"), BackendInfo("llm", "m", "test"))
        error = await Desk(remote, drafter, ManualClock()).write().error()
        await drafter.aclose()
        return error

    assert "cannot be reached" in run_async(main())


_keys = ("choices", "delta", "content", "error", "finish_reason", "diffusion_meta", "diffusion_progress")
_leaves = st.none() | st.booleans() | st.text(max_size=5) | st.floats()
_values = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(_keys), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(max_size=60) | _values.map(json.dumps))
def test_reading_an_event_lets_out_its_own_error_only(data: str) -> None:
    try:
        read_event(data)
    except EndpointError:
        pass


@given(
    st.lists(st.sampled_from(["Sure", ". ", " a", "$4.", "50", ", ", "\n", "—", "? ", "Dr. ", " "]), max_size=30),
    st.sampled_from(ReplyEnd),
)
def test_committed_text_only_grows_and_begins_the_final_text(pieces: list[str], end: ReplyEnd) -> None:
    text, before = ReplyText(), ""
    for part in pieces:
        text.append(part)
        assert text.committed.startswith(before)
        before = text.committed
    final, added = text.finish(end, ("$9",))
    assert final.startswith(before) and final.endswith("$9.") and added == ("$9",)
    assert text.committed == final


# --- choosing, starting, checking -------------------------------------------------------------------------------------


def configure(*assignments: str) -> Config:
    return settings.load(assignments=assignments)


@pytest.mark.parametrize(
    ("assignments", "key"),
    [
        (["models.llm=remote"], "remote.url"),
        (["models.llm=ftp://host/v1"], "models.llm"),
        (["models.llm=https://me:pass@host/v1"], "models.llm"),
        (["models.llm=http://a/v1", "remote.url=http://b/v1"], "models.llm"),
        (["remote.url=host/v1"], "remote.url"),
        (["remote.url=https://host/v1?key=3"], "remote.url"),
        (["remote.url=http://host:port"], "remote.url"),
        (["remote.dialect=anthropic"], "remote.dialect"),
        (["remote.diffusing=true"], "remote.diffusing"),
        (["remote.api_key=a", "remote.api_key_env=B"], "remote.api_key_env"),
        (["remote.timeout_s=0"], "remote.timeout_s"),
        (["models.llm=http://a/v1", "remote.api_key_env=NOT_SET"], "remote.api_key_env"),
        (["models.llm=http://a/v1", "remote.api_key=pass with blanks"], "remote.api_key"),
    ],
)
def test_a_wrong_setting_of_the_remote_model_is_named(assignments: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.remote_endpoint(configure(*assignments), {"NOT_SET": " "})
    assert caught.value.key == key and "pass" not in str(caught.value)


def test_the_configuration_becomes_an_endpoint_that_hides_its_key() -> None:
    assert settings.remote_endpoint(configure(), {}) is None
    assert settings.remote_endpoint(configure("models.llm=some/folder"), {}) is None
    config = configure("models.llm=https://host/v1/", "remote.api_key_env=KEY", "remote.dialect=inception")
    found = settings.remote_endpoint(config, {"KEY": "sk-9\n"})
    assert found == RemoteEndpoint("https://host/v1", dialect="inception", api_key="sk-9")
    assert found.host == "host" and "sk-9" not in repr(found)
    named = settings.remote_endpoint(configure("models.llm=remote", "remote.url=http://[::1]:1/v1"), {})
    assert named is not None and named.host == "[::1]:1"


def test_the_start_asks_once_and_says_what_was_chosen() -> None:
    async def main() -> None:
        async with endpoint(hang, models=("tiny",)) as remote:
            load = choose_llm(configure(f"models.llm={remote.url}"))
            drafter = await asyncio.to_thread(load)
            assert isinstance(drafter, RemoteDrafter) and drafter.endpoint.model == "tiny"
            assert drafter.info.name == f"tiny at {drafter.endpoint.host} (OpenAI's dialect)"
            assert drafter.info.is_remote and "chosen in the configuration; it answered in" in drafter.info.reason
            await drafter.aclose()
            other = await asyncio.to_thread(choose_llm(configure(f"models.llm={remote.url}", "remote.model=big")))
            assert "does not name this one" in other.info.reason
            await other.aclose()
            assert len(remote.listings) == 2 and not remote.exchanges

    run_async(main())


def test_a_model_that_must_be_named_is_asked_for() -> None:
    async def main() -> None:
        async with endpoint(hang, models=("a", "b")) as remote:
            where = RemoteEndpoint(remote.url)
            with pytest.raises(ConfigError, match="expected one of a, b"):
                choose_name(where, await asyncio.to_thread(ask_models, where))
        async with endpoint(hang, models_status="404 Not Found") as remote:
            listing = await asyncio.to_thread(ask_models, RemoteEndpoint(remote.url))
            assert listing.names is None
            assert choose_name(RemoteEndpoint(remote.url, "a"), listing) == "a"
            with pytest.raises(ConfigError, match="the endpoint lists none"):
                choose_name(RemoteEndpoint(remote.url), listing)

    run_async(main())


def test_an_endpoint_that_refuses_or_is_not_there_fails_the_start() -> None:
    async def main() -> None:
        async with endpoint(hang, models_status="403 Forbidden") as remote:
            with pytest.raises(BackendError, match="answered 403 Forbidden"):
                await asyncio.to_thread(choose_llm(configure(f"models.llm={remote.url}")))
        with pytest.raises(BackendError, match="cannot be reached"):
            await asyncio.to_thread(choose_llm(configure(f"models.llm={remote.url}")))

    run_async(main())


def test_the_doctor_asks_the_endpoint_that_is_configured() -> None:
    async def main() -> list[str]:
        reports: list[str] = []
        async with endpoint(hang, models=("tiny",)) as remote:
            await asyncio.to_thread(run_doctor, configure(f"models.llm={remote.url}"), reports.append)
        await asyncio.to_thread(run_doctor, configure(f"models.llm={remote.url}"), reports.append)
        await asyncio.to_thread(run_doctor, configure("models.llm=remote"), reports.append)
        return reports

    well, away, unset = run_async(main())
    assert "ok    language model: remote: tiny at 127.0.0.1" in well
    assert "fail  language model: llm: 127.0.0.1" in away and "cannot be reached" in away and "[remote]" in away
    assert "fail  language model: remote.url = ''" in unset


# --- in a conversation ------------------------------------------------------------------------------------------------


def runtime_with(drafter: RemoteDrafter, clock: Clock) -> LocalRuntime:
    backends = Backends(LevelDetector(), ScriptedTranscriber("a large mocha"), drafter, ToneSynthesizer())
    return LocalRuntime(Config(), AgentProfile("test"), backends, BudgetController(), clock)


def test_calibration_asks_nothing_of_a_remote_model() -> None:
    async def main() -> None:
        async with desk(saying("Hello.")) as here:
            runtime = runtime_with(here.drafter, here.clock)
            await calibrate(runtime)
            assert here.remote.exchanges == [] and runtime.budget.costs.observations(Stage.TTS) == 6

    run_async(main())


def test_a_call_is_answered_by_the_remote_model() -> None:
    async def main() -> None:
        async def slowly(exchange: Exchange) -> None:
            exchange.begin()
            for text in ("Sure", " thing", ". One large", " mocha. Any", "thing else?"):
                await here.clock.sleep_until(here.clock.now() + 0.3)
                exchange.send(piece(text))
            exchange.send(piece(None, "stop"), "[DONE]")
            exchange.end()

        async with desk(slowly, timeout_s=600.0) as here:
            remote, drafter = here.remote, here.drafter
            runtime = runtime_with(drafter, here.clock)

            planned: list[ResponsePlanned] = []

            def open_conversation(emit: Callable[[ConversationEvent], None]) -> Conversation:
                def watch(event: ConversationEvent) -> None:
                    if isinstance(event, ResponsePlanned):
                        planned.append(event)
                    emit(event)

                return runtime.open_conversation(watch)

            audio = np.concatenate([silence(0.1), tone(0.3), silence(0.5)])
            calling = asyncio.create_task(call(open_conversation, audio, here.clock))
            while not calling.done():
                await here.clock.advance(0.02)
            result = await calling
            assert [finished.status for finished in result.finished] == ["completed"]
            assert result.timelines[-1]["reply"] == "Sure thing. One large mocha. Anything else?"
            assert remote.exchanges[0].body["messages"][-1] == {"role": "user", "content": "a large mocha"}
            assert drafter.counts == replace(drafter.counts, started=1, finished=1, failed=0, cancelled=0, cut=0)
            assert drafter.counts.late == 1
            assert runtime.budget.costs.observations(Stage.PREFILL) == 1
            assert not [plan for plan in planned if "was late" in plan.reason], "its steps are not ours to grant"

    run_async(main())


# --- tools ------------------------------------------------------------------------------------------------------------

BOOK = ToolSpec("book_table", "books a table", {"type": "object", "properties": {"people": {"type": "integer"}}})


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


def call_of(*events: str, must_say: tuple[str, ...] = ()) -> tuple[DraftFinished, dict[str, Any]]:
    async def main() -> tuple[DraftFinished, dict[str, Any]]:
        async with desk(calling(*events)) as here:
            request = replace(asking(*must_say), tools=(BOOK,), tool_choice=ToolChoice("required"))
            end = await here.write(request).end()
            assert isinstance(end, DraftFinished), end
            return end, here.remote.exchanges[0].body

    return run_async(main())


def test_a_call_that_comes_in_pieces_is_put_together_and_other_calls_are_left() -> None:
    end, body = call_of(
        call_piece("", name="book_table"),
        call_piece('{"peo'),
        call_piece("{}", name="other", index=1),
        call_piece('ple": 4}'),
        must_say=("$5",),
    )
    assert (end.text, end.call) == ("", ToolCall("book_table", {"people": 4}))
    assert body["tools"][0]["function"]["name"] == "book_table" and body["tool_choice"] == "required"


def test_words_before_a_call_are_the_text() -> None:
    end, _ = call_of(piece("Let me look. "), call_piece("{}", name="book_table"))
    assert (end.text, end.call) == ("Let me look.", ToolCall("book_table"))


@pytest.mark.parametrize("arguments", ["four", "[4]", '{"a": NaN}', '{"people": ', '{"a": 1e999}', '{"a": "\\ud800"}'])
def test_arguments_that_are_no_object_are_a_problem_of_the_call(arguments: str) -> None:
    end, _ = call_of(call_piece(arguments, name="book_table"))
    assert end.call is not None and end.call.name == "book_table" and end.call.problem


def test_a_piece_of_a_call_that_is_none_fails_the_draft() -> None:
    with pytest.raises(EndpointError):
        read_event(call_piece("x").replace('"x"', "5"))


def test_calls_and_results_are_told_in_the_apis_own_shape() -> None:
    turns = (
        PromptTurn("user", "a table"),
        PromptTurn("agent", "", ToolCall("book_table", {"people": 4}), "c1"),
        PromptTurn("note", "book_table: table 12", call_id="c1"),
    )
    _, call_message, answer = chat_messages(turns)
    assert call_message["role"] == "assistant" and call_message["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "book_table", "arguments": '{"people": 4}'}}
    ]
    assert answer == {"role": "tool", "tool_call_id": "c1", "content": "book_table: table 12"}
    assert "tools" not in request_body(RemoteEndpoint("http://h", "m"), asking(turns=turns), 0.0)

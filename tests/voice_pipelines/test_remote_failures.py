"""A remote language model that is cancelled, late, or wrong in every way there is."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import run_async
from tests.voice_pipelines.remote_desk import PLAN, TURNS, Desk, asking, check_stream, desk, hang, refusing, sending
from tests.voice_pipelines.scripted_endpoint import Exchange, Script, endpoint, piece, saying
from voice_pipelines.adapters.remote import RemoteDrafter
from voice_pipelines.adapters.remote_text import ReplyEnd, ReplyText
from voice_pipelines.adapters.remote_wire import EndpointError, RemoteEndpoint, read_event
from voiceagent.backends import BackendInfo, DraftFailed, DraftFinished, DraftStepped
from voiceagent.clock import ManualClock

# --- cancelling -------------------------------------------------------------------------------------------------------


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

"""A remote language model: what is asked, and what is spoken and when."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

from tests.conftest import run_async
from tests.voice_pipelines.remote_desk import PLAN, REPLY, TURNS, asking, check_stream, desk
from tests.voice_pipelines.scripted_endpoint import Exchange, Script, frame, piece, saying
from voice_pipelines.adapters.remote import RemoteDrafter
from voice_pipelines.adapters.remote_text import says
from voice_pipelines.adapters.remote_wire import RemoteEndpoint, chat_messages, request_body
from voiceagent.backends import BackendInfo, DraftEvent, DraftFinished, DraftStepped, PromptTurn, TokenState

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

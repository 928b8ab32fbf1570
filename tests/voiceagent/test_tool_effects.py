"""Tools that change something: what is run once, what goes on when the caller interrupts, and what ends with the call."""

from __future__ import annotations

import asyncio

from tests.voiceagent.tool_line import BOOK, DONE, LOOK, Desk, Line, one_turn, talk, tool
from voiceagent.events import Item, ResponseFinished, ResponseText
from voiceagent.tools import ServerTool, ToolCall, ToolSpec


def test_the_same_call_is_not_run_twice_for_one_turn_if_it_changes_something() -> None:
    desk = Desk()
    line = talk(one_turn, BOOK, BOOK, DONE, tools=(tool(desk),))
    assert len(desk.asked) == 1
    assert line.notes() == ["book_table: table 12"] * 2, "the model is told the same again"
    assert line.outcomes() == ["ok", "refused"]


def test_a_harmless_call_may_be_repeated_and_a_new_turn_may_repeat_any() -> None:
    async def scenario(line: Line) -> None:
        await one_turn(line)
        await one_turn(line)

    harmless, booking = Desk(), Desk()
    talk(one_turn, BOOK, BOOK, DONE, tools=(tool(harmless, side_effect=False),))
    talk(scenario, BOOK, DONE, BOOK, DONE, tools=(tool(booking),))
    assert len(harmless.asked) == len(booking.asked) == 2


def test_words_that_do_not_interrupt_a_reply_let_it_repeat_nothing() -> None:
    gate, booking = asyncio.Event(), Desk()
    waiting = Desk(gate=gate)

    async def scenario(line: Line) -> None:
        await line.say()
        await line.clock.advance(0.1)
        assert booking.asked and waiting.asked
        line.conversation.add_item(Item("typed", "user", "and a high chair"))
        gate.set()
        await line.clock.advance(20.0)

    spec = ServerTool(ToolSpec("opening_hours"), waiting.run, side_effect=False)
    line = talk(scenario, BOOK, LOOK, BOOK, DONE, tools=(tool(booking), spec))
    assert len(booking.asked) == 1
    assert line.outcomes() == ["ok", "ok", "refused"]


def test_a_booking_that_ended_after_its_reply_is_not_made_again_by_the_next() -> None:
    gate = asyncio.Event()
    desk = Desk("table 12", gate)

    async def scenario(line: Line) -> None:
        await line.say()
        await line.clock.advance(0.1)
        line.conversation.cancel_response()
        gate.set()
        await line.clock.settle()
        await line.say("is it booked?")
        await line.clock.advance(20.0)
        assert len(desk.asked) == 1
        await line.say("once more, for my brother")
        await line.clock.advance(20.0)

    line = talk(scenario, BOOK, BOOK, DONE, BOOK, DONE, tools=(tool(desk),))
    assert len(desk.asked) == 2
    assert line.outcomes() == ["running", "refused", "ok"]


def test_a_booking_of_a_reply_that_nobody_heard_is_not_made_again_by_the_next() -> None:
    desk = Desk()

    async def scenario(line: Line) -> None:
        await line.say()
        await line.clock.advance(0.02)
        assert len(line.llm.drafts) == 2 and not line.of(ResponseText)
        line.conversation.cancel_response()
        await line.say("a table for four please")
        await line.clock.advance(20.0)

    talk(scenario, BOOK, DONE, BOOK, DONE, tools=(tool(desk),))
    assert len(desk.asked) == 1


def test_a_booking_may_be_repeated_after_a_reply_that_was_heard_in_part() -> None:
    booking, waiting = Desk(), Desk(gate=asyncio.Event())

    async def scenario(line: Line) -> None:
        await line.say()
        await line.clock.advance(2.0)
        assert line.tts.spoken == ["Booked, one moment."]
        line.conversation.cancel_response()
        await line.say("the same for my brother")
        await line.clock.advance(20.0)

    look = ServerTool(
        ToolSpec("opening_hours"), waiting.run, side_effect=False, say_while_running=("Booked, one moment.",)
    )
    talk(scenario, BOOK, LOOK, BOOK, DONE, tools=(tool(booking), look))
    assert len(booking.asked) == 2


def test_a_whole_number_reaches_the_tool_as_one() -> None:
    desk = Desk()
    talk(one_turn, ToolCall("book_table", {"people": 4.0}), BOOK, DONE, tools=(tool(desk),))
    assert [type(arguments["people"]) for arguments in desk.asked] == [int], "and 4 is the same call"


def test_a_booking_goes_on_when_the_caller_interrupts_and_the_next_reply_knows_of_it() -> None:
    gate = asyncio.Event()
    desk = Desk({"table": 12, "must_say": "12"}, gate)

    async def scenario(line: Line) -> None:
        await line.say()
        await line.clock.advance(0.1)
        assert desk.asked
        await line.speak()
        assert line.of(ResponseFinished)[0].reason == "turn_detected"
        assert desk.cancelled == 0 and len(line.llm.drafts) == 1, "the next reply waits for what is under way"
        gate.set()
        await line.clock.advance(20.0)

    line = talk(scenario, BOOK, DONE, tools=(tool(desk, timeout_s=30.0),))
    assert len(desk.asked) == 1
    assert [(turn.role, turn.text) for turn in line.request().turns] == [
        ("system", "You take bookings."),
        ("user", "a table for four"),
        ("agent", ""),
        ("note", "book_table: table: 12"),
        ("user", "and a high chair"),
    ]
    assert line.request().must_say == ("12",)
    assert [event.status for event in line.of(ResponseFinished)] == ["cancelled", "completed"]


def test_a_booking_that_never_answers_holds_the_next_reply_for_its_time_only() -> None:
    desk = Desk(gate=asyncio.Event())

    async def scenario(line: Line) -> None:
        await line.say()
        await line.clock.advance(0.1)
        await line.speak()
        await line.clock.advance(20.0)

    line = talk(scenario, BOOK, "Sorry.", tools=(tool(desk, timeout_s=5.0),))
    assert line.notes() == ["book_table failed: no answer within 5 seconds"]


def test_a_harmless_tool_is_cancelled_when_the_caller_interrupts() -> None:
    desk = Desk(gate=asyncio.Event())

    async def scenario(line: Line) -> None:
        await line.say()
        await line.clock.advance(0.1)
        await line.speak()
        assert desk.cancelled == 1
        await line.clock.advance(20.0)

    line = talk(scenario, BOOK, DONE, tools=(tool(desk, side_effect=False, timeout_s=30.0),))
    assert line.notes() == ["book_table failed: the caller went on speaking"]
    assert [event.status for event in line.of(ResponseFinished)] == ["cancelled", "completed"]


def test_hanging_up_ends_a_running_tool() -> None:
    desk = Desk(gate=asyncio.Event())

    async def scenario(line: Line) -> None:
        await line.say()
        await line.clock.advance(0.1)

    talk(scenario, BOOK, DONE, tools=(tool(desk),))
    assert desk.cancelled == 1

"""Replies that call tools: whole conversations on the manual clock, with stand-in drafters and tools that the test holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.voiceagent.tool_line import BOOK, DONE, SPEC, Desk, Line, one_turn, talk, tool
from voiceagent.backends import PromptTurn
from voiceagent.errors import ProtocolError, ToolError
from voiceagent.events import CallItem, ItemAdded, ItemDone, OutputItem, ResponseCalled, ResponseFinished, TurnTraced
from voiceagent.session import ResponseOptions, SessionSettings
from voiceagent.tools import MAX_CALLS, ServerTool, ToolCall, ToolChoice, ToolSpec

# --- results ----------------------------------------------------------------------------------------------------------


def test_a_call_is_run_and_the_next_draft_knows_the_result() -> None:
    desk = Desk()
    line = talk(one_turn, BOOK, DONE, tools=(tool(desk),))
    assert desk.asked == [{"people": 4}]
    first, second = (draft.request for draft in line.llm.drafts)
    assert first.tools == second.tools == (SPEC,) and first.tool_choice == ToolChoice("auto")
    assert second.turns[:-2] == first.turns
    call, note = second.turns[-2:]
    assert (call.role, call.text, call.call) == ("agent", "", BOOK)
    assert note == PromptTurn("note", "book_table: table 12", call_id=call.call_id)
    finished = line.of(ResponseFinished)
    assert [event.status for event in finished] == ["completed"] and finished[0].item is not None
    assert finished[0].item.text == DONE
    assert line.tts.spoken == [DONE], "calls and notes are not speech"


def test_clients_see_the_call_and_its_output_as_items_before_the_reply() -> None:
    line = talk(one_turn, BOOK, DONE, tools=(tool(Desk({"table": 12})),))
    items = [event.item for event in line.of(ItemAdded)][1:]
    assert [type(item) for item in items] == [CallItem, OutputItem]
    assert isinstance(items[0], CallItem) and isinstance(items[1], OutputItem)
    assert items[0].call_id == items[1].call_id and json.loads(items[1].output) == {"table": 12}
    assert [event.item for event in line.of(ItemDone)][1:] == items
    assert not line.of(ResponseCalled), "the server ran it: the client must not"


def test_the_history_of_later_turns_holds_call_and_result_in_order() -> None:
    async def scenario(line: Line) -> None:
        await one_turn(line)
        await line.say("thanks")
        await line.clock.advance(20.0)

    line = talk(scenario, BOOK, DONE, "You are welcome.", tools=(tool(Desk()),))
    assert [(turn.role, turn.text) for turn in line.request().turns] == [
        ("system", "You take bookings."),
        ("user", "a table for four"),
        ("agent", ""),
        ("note", "book_table: table 12"),
        ("agent", DONE),
        ("user", "thanks"),
    ]
    assert line.llm.warmed, "and so does what is prefilled"


def test_an_object_is_told_as_pairs_and_what_must_be_said_is_pinned() -> None:
    answer = {"table": 12, "code": "K72", "must_say": ["K72", 12]}
    line = talk(one_turn, BOOK, DONE, tools=(tool(Desk(answer)),))
    assert line.notes() == ["book_table: table: 12; code: K72"]
    assert line.request().must_say == ("K72", "12")
    assert line.outputs()[0].output == '{"table": 12, "code": "K72"}'


def test_what_must_be_said_is_not_asked_for_again_once_it_was() -> None:
    async def scenario(line: Line) -> None:
        await one_turn(line)
        await line.say("thanks")
        await line.clock.advance(20.0)

    line = talk(scenario, BOOK, DONE, "Bye.", tools=(tool(Desk({"must_say": "K72"})),))
    assert [draft.request.must_say for draft in line.llm.drafts] == [(), ("K72",), ()]


def test_a_note_replaces_the_pairs() -> None:
    line = talk(one_turn, BOOK, DONE, tools=(tool(Desk({"table": 12, "note": "table twelve by the window"})),))
    assert line.notes() == ["book_table: table twelve by the window"]


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        (ToolError("no table is free on friday"), "book_table failed: no table is free on friday"),
        (ValueError("a figure of speech"), "book_table failed: a figure of speech"),
        (KeyError(), "book_table failed: KeyError"),
        (asyncio.CancelledError(), "book_table failed: it was cancelled"),
        ([1, 2], "book_table failed: it gave [1, 2], which is neither text nor an object"),
        (
            {"must_say": {"a": 1}},
            'book_table failed: its must_say is {"a": 1}, which is neither text nor a list of texts',
        ),
    ],
)
def test_a_tool_that_fails_is_a_note_and_the_conversation_goes_on(answer: object, note: str) -> None:
    line = talk(one_turn, BOOK, "Sorry, that did not work.", tools=(tool(Desk(answer)),))
    assert line.notes() == [note]
    assert "error" in json.loads(line.outputs()[0].output)
    assert [event.status for event in line.of(ResponseFinished)] == ["completed"]
    assert line.outcomes() == ["failed"]


def test_a_result_that_does_not_fit_its_schema_is_a_failure() -> None:
    schema = {"type": "object", "properties": {"table": {"type": "integer"}}, "required": ["table"]}
    line = talk(one_turn, BOOK, DONE, tools=(tool(Desk({"table": "twelve"}), result=schema),))
    assert line.notes() == [
        'book_table failed: its result is not what it should be: table should be a whole number, not "twelve"'
    ]


def test_a_tool_that_takes_too_long_is_cancelled_and_told_as_a_failure() -> None:
    desk = Desk(gate=asyncio.Event())
    line = talk(one_turn, BOOK, "Sorry.", tools=(tool(desk, timeout_s=2.0),))
    assert line.notes() == ["book_table failed: no answer within 2 seconds"]
    assert desk.cancelled == 1 and line.outcomes() == ["timed_out"]
    timeline: Any = line.of(TurnTraced)[0].timeline
    (record,) = timeline["tools"]
    assert record["end_ms"] - record["start_ms"] == pytest.approx(2000, abs=1)


def test_a_tool_that_ignores_its_cancellation_does_not_hold_the_conversation() -> None:
    freed = asyncio.Event()

    async def stubborn(arguments: Mapping[str, object]) -> object:
        while not freed.is_set():
            try:
                await freed.wait()
            except asyncio.CancelledError:
                continue
        raise RuntimeError("nobody listens any more")

    async def scenario(line: Line) -> None:
        await one_turn(line)
        assert [event.status for event in line.of(ResponseFinished)] == ["completed"]
        freed.set()

    line = talk(scenario, BOOK, "Sorry.", tools=(ServerTool(SPEC, stubborn, timeout_s=1.0),))
    assert line.notes() == ["book_table failed: no answer within 1 seconds"]


@pytest.mark.parametrize(
    ("call", "note"),
    [
        (ToolCall("book_table", {"people": "four"}), 'book_table failed: people should be a whole number, not "four"'),
        (ToolCall("book_table", {}), "book_table failed: people is missing"),
        (ToolCall("book_table", {"people": 4, "hat": "red"}), "book_table failed: hat is unknown"),
        (ToolCall("fly", {}), "fly failed: there is no such tool"),
        (ToolCall("book", {}, "book; ;", "expected `key: value`"), "book failed: expected `key: value`"),
        (ToolCall("", {}), "tool failed: there is no such tool"),
        (ToolCall("book a table\ud800", {}), "tool failed: there is no such tool"),
    ],
)
def test_a_call_that_cannot_be_carried_out_is_refused_with_its_reason(call: ToolCall, note: str) -> None:
    desk = Desk()
    line = talk(one_turn, call, "Sorry.", tools=(tool(desk),))
    assert desk.asked == [] and line.notes() == [note]
    assert line.outcomes() == ["refused"]
    assert line.of(ResponseFinished)[0].status == "completed"


def test_after_so_many_calls_the_agent_has_to_answer() -> None:
    desk = Desk()
    calls = [ToolCall("book_table", {"people": n}) for n in range(1, MAX_CALLS + 1)]
    line = talk(one_turn, *calls, DONE, tools=(tool(desk),))
    assert len(desk.asked) == MAX_CALLS
    assert [draft.request.tool_choice.mode for draft in line.llm.drafts] == ["auto"] * MAX_CALLS + ["none"]
    assert line.request().tools == (SPEC,), "the prompt keeps its beginning, and the cache with it"
    assert line.of(ResponseFinished)[0].status == "completed"


def test_a_drafter_that_calls_all_the_same_fails_its_response_and_nothing_else() -> None:
    async def scenario(line: Line) -> None:
        await one_turn(line)
        await one_turn(line)

    calls = [ToolCall("book_table", {"people": n}) for n in range(MAX_CALLS + 1)]
    line = talk(scenario, *calls, DONE, tools=(tool(Desk()),))
    assert [event.status for event in line.of(ResponseFinished)] == ["failed", "completed"]


# --- the client's tools -----------------------------------------------------------------------------------------------


CLIENT = SessionSettings(instructions="You take bookings.", tools=(SPEC,))


def test_a_call_of_the_clients_tool_ends_the_response_and_waits_for_its_output() -> None:
    async def scenario(line: Line) -> None:
        await one_turn(line)
        (called,) = line.of(ResponseCalled)
        assert called.item.call == BOOK and called.previous_item_id is not None
        assert [event.status for event in line.of(ResponseFinished)] == ["completed"]
        assert len(line.llm.drafts) == 1 and line.outcomes() == ["client"]
        line.conversation.add_item(OutputItem("o", called.item.call_id, '{"table": 12, "by_window": true}'))
        await line.clock.advance(5.0)
        assert len(line.llm.drafts) == 1, "the client says when"
        line.conversation.create_response()
        await line.clock.advance(20.0)

    line = talk(scenario, BOOK, DONE, settings=CLIENT)
    assert line.notes() == ["book_table: table: 12; by window: yes"]
    assert line.tts.spoken == [DONE]


def test_a_reply_while_the_client_works_says_that_there_is_no_result_yet() -> None:
    async def scenario(line: Line) -> None:
        await one_turn(line)
        await line.say("hello?")
        await line.clock.advance(20.0)

    line = talk(scenario, BOOK, "One moment.", settings=CLIENT)
    assert [(turn.role, turn.text) for turn in line.request().turns][-3:] == [
        ("agent", ""),
        ("note", "book_table: not finished yet"),
        ("user", "hello?"),
    ]


def test_outputs_without_a_waiting_call_and_second_ones_are_errors() -> None:
    async def scenario(line: Line) -> None:
        await one_turn(line)
        call_id = line.of(ResponseCalled)[0].item.call_id
        line.conversation.add_item(OutputItem("o", call_id, "done"))
        for item in (
            OutputItem("x", "call_unknown", "done"),
            OutputItem("y", call_id, "again"),
            CallItem("z", call_id, BOOK),
        ):
            with pytest.raises(ProtocolError) as caught:
                line.conversation.add_item(item)
            assert (caught.value.code, caught.value.param) == ("invalid_value", "item.call_id")
        with pytest.raises(ProtocolError, match="no message"):
            line.conversation.truncate_item("o", 1.0)

    talk(scenario, BOOK, settings=CLIENT)


def test_server_and_client_tools_go_together_but_not_under_one_name() -> None:
    async def scenario(line: Line) -> None:
        line.conversation.update(SessionSettings(tools=(ToolSpec("show_map"),)))
        with pytest.raises(ProtocolError) as caught:
            line.conversation.update(CLIENT)
        assert (caught.value.code, caught.value.param) == ("invalid_value", "session.tools")
        with pytest.raises(ProtocolError) as caught:
            line.conversation.create_response(ResponseOptions(tools=(SPEC,)))
        assert caught.value.param == "response.tools"
        await one_turn(line)

    line = talk(scenario, BOOK, ToolCall("show_map"), tools=(tool(Desk()),))
    assert [spec.name for spec in line.request().tools] == ["book_table", "show_map"]
    assert line.of(ResponseCalled)[0].item.call.name == "show_map"
    assert line.outcomes() == ["ok", "client"]


def test_the_choice_of_session_and_response_reaches_the_draft_and_is_free_after_a_call() -> None:
    other = ToolSpec("show_map")
    settings = SessionSettings(tools=(other,), tool_choice=ToolChoice("required", "book_table"))

    async def scenario(line: Line) -> None:
        await one_turn(line)
        line.conversation.create_response(ResponseOptions(tools=(), tool_choice=ToolChoice("none")))
        await line.clock.advance(20.0)

    line = talk(scenario, BOOK, DONE, DONE, tools=(tool(Desk()),), settings=settings)
    first, second, third = (draft.request for draft in line.llm.drafts)
    assert first.tools == (SPEC,) and first.tool_choice.mode == "required"
    assert second.tool_choice.mode == "auto", "or it would call for ever"
    assert third.tools == (SPEC,) and third.tool_choice.mode == "none"


def test_a_response_outside_the_conversation_is_not_offered_the_servers_tools() -> None:
    async def scenario(line: Line) -> None:
        options = ResponseOptions(in_conversation=False, turns=(("user", "classify"),), tools=(ToolSpec("tag"),))
        line.conversation.create_response(options)
        await line.clock.advance(20.0)

    line = talk(scenario, BOOK, ToolCall("tag"), tools=(tool(Desk()),))
    assert [spec.name for spec in line.request().tools] == ["tag"]
    assert line.notes() == ["book_table failed: there is no such tool"]
    assert line.of(ResponseCalled)[0].previous_item_id is None
    assert not line.of(ItemAdded), "nobody else sees what happens there"


# --- the timeline -----------------------------------------------------------------------------------------------------


def test_the_timeline_tells_each_call_and_blames_a_slow_tool() -> None:
    async def scenario(line: Line) -> None:
        await line.say()
        await line.clock.advance(3.0)
        gate.set()
        await line.clock.advance(20.0)

    gate = asyncio.Event()
    line = talk(scenario, BOOK, DONE, tools=(tool(Desk(gate=gate)),))
    timeline: Any = line.of(TurnTraced)[0].timeline
    (record,) = timeline["tools"]
    assert (record["name"], record["outcome"]) == ("book_table", "ok")
    assert record["end_ms"] == pytest.approx(3000, abs=1)
    stages = {stage["name"]: stage for stage in timeline["stages"]}
    assert list(stages) == ["call", "tools", "prefill", "denoise_first", "tts", "transport"]
    assert stages["call"]["took_ms"] == 10.0, "a step of the drafter"
    assert stages["tools"]["end_ms"] == record["end_ms"] <= stages["prefill"]["end_ms"]
    assert [step["draft"] for step in timeline["steps"]] == [0, 1, 1, 1, 1] and timeline["plan"]["draft"] == 1
    assert len(record["reasons"]) >= 1
    assert timeline["missed_deadline"]["stage"] == "tools"


def test_an_interrupted_call_is_in_the_timeline_as_running() -> None:
    async def scenario(line: Line) -> None:
        await line.say()
        await line.clock.advance(0.1)
        line.conversation.cancel_response()
        await line.clock.advance(20.0)

    line = talk(scenario, BOOK, tools=(tool(Desk(gate=asyncio.Event())),))
    assert line.outcomes() == ["running"]

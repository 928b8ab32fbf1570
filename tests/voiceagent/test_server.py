"""The door in process: real conversations over instant models, a client that talks ASGI, and a clock that only the test moves."""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import Any

import numpy as np
import pytest

from tests.voiceagent.house import REPLY, House, get, pump, refusal, serve, speak, text_item
from tests.voiceagent.realtime import check_events, connect
from tests.voiceagent.standins import silence, tone
from voiceagent.audio import PCM16_24K
from voiceagent.conversation import Conversation
from voiceagent.server_settings import ServerSettings
from voiceagent.tools import ToolCall

# --- talking ----------------------------------------------------------------------------------------------------------


def test_a_spoken_turn_goes_from_audio_in_to_audio_out() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            assert (await client.next())["type"] == "session.created"
            await speak(house, client)
            done = await pump(house, client.until("response.done"))
            assert done["response"]["status"] == "completed"
            assert done["response"]["output"][0]["content"] == [{"type": "output_audio", "transcript": REPLY}]
            check_events(client.events)
            names = client.names()
            wanted = [
                "input_audio_buffer.speech_started",
                "input_audio_buffer.speech_stopped",
                "input_audio_buffer.committed",
                "conversation.item.added",
                "conversation.item.input_audio_transcription.completed",
                "response.created",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_audio.delta",
                "response.output_audio.done",
                "response.output_item.done",
                "response.done",
            ]
            assert [names.index(name) for name in wanted] == sorted(names.index(name) for name in wanted)
            audio = b"".join(
                base64.b64decode(event["delta"])
                for event in client.events
                if event["type"] == "response.output_audio.delta"
            )
            assert PCM16_24K.duration_s(len(audio)) > 1.0
            assert float(np.abs(PCM16_24K.decode(audio)).max()) > 0.2
            assert not any(name.startswith("voiceagent.") for name in names)

    serve(scenario)


def test_a_typed_turn_is_answered_in_text_after_its_session_update() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            session = {"type": "realtime", "output_modalities": ["text"], "instructions": "Be brief."}
            await client.send("session.update", session=session)
            await client.send("conversation.item.create", item=text_item("a mocha"))
            await client.send("response.create", response={"metadata": {"client_event_id": "evt_c9"}})
            done = await pump(house, client.until("response.done"))
            names = client.names()
            assert names[:2] == ["session.created", "session.updated"]
            assert names.index("conversation.item.done") < names.index("response.created")
            assert done["response"]["metadata"] == {"client_event_id": "evt_c9"}
            assert done["response"]["output"][0]["content"] == [{"type": "output_text", "text": REPLY}]
            assert house.runtime.conversations[0].settings.instructions == "Be brief."
            check_events(client.events)

    serve(scenario)


def test_a_client_runs_its_own_tool_and_the_reply_knows_the_result() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            function = {"type": "function", "name": "book_table", "parameters": {"type": "object", "properties": {}}}
            session = {"type": "realtime", "output_modalities": ["text"], "tools": [function], "tool_choice": "auto"}
            await client.send("session.update", session=session)
            await client.send("conversation.item.create", item=text_item("a table please"))
            await client.send("response.create")
            done = await pump(house, client.until("response.done"))
            (call,) = done["response"]["output"]
            assert (call["type"], call["name"], call["status"]) == ("function_call", "book_table", "completed")
            await client.send(
                "conversation.item.create",
                item={"type": "function_call_output", "call_id": "call_unknown", "output": "x"},
            )
            refused = await client.until("error")
            assert refused["error"]["param"] == "item.call_id"
            await client.send(
                "conversation.item.create",
                item={"type": "function_call_output", "call_id": call["call_id"], "output": '{"table": 12}'},
            )
            await client.send("response.create")
            done = await pump(house, client.until("response.done"))
            assert done["response"]["output"][0]["content"] == [{"type": "output_text", "text": REPLY}]
            note = house.runtime.llm.drafts[-1].request.turns[-1]
            assert (note.role, note.text) == ("note", "book_table: table: 12")
            check_events(client.events)

    serve(scenario, written=(ToolCall("book_table"), REPLY))


def test_push_to_talk_commits_and_asks_for_the_reply_itself() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            detection = {"input": {"turn_detection": None}}
            await client.send("session.update", session={"type": "realtime", "audio": detection})
            await client.send("input_audio_buffer.commit", event_id="evt_early")
            error = await pump(house, client.until("error"))
            assert error["error"]["code"] == "input_audio_buffer_commit_empty"
            assert error["error"]["event_id"] == "evt_early"
            await speak(house, client, tone(0.5))
            await client.send("input_audio_buffer.commit")
            committed = await pump(house, client.until("input_audio_buffer.committed"))
            await pump(house, client.until("conversation.item.input_audio_transcription.completed"))
            await client.send("conversation.item.retrieve", item_id=committed["item_id"])
            retrieved = await pump(house, client.until("conversation.item.retrieved"))
            assert retrieved["item"]["content"] == [{"type": "input_audio", "transcript": "a mocha please"}]
            await client.send("response.create")
            await pump(house, client.until("response.done"))
            check_events(client.events)

    serve(scenario)


def test_exactly_100_ms_may_be_committed_whatever_the_resampler_holds_back() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            detection = {"input": {"turn_detection": None}}
            await client.send("session.update", session={"type": "realtime", "audio": detection})
            await client.send("input_audio_buffer.append", audio=base64.b64encode(bytes(4800)).decode())
            await client.send("input_audio_buffer.commit")
            await pump(house, client.until("input_audio_buffer.committed"))
            assert "error" not in client.names()

    serve(scenario)


def test_speech_over_a_reply_cancels_it() -> None:
    async def scenario(house: House) -> None:
        house.runtime.llm.step_s = 2.0
        async with connect(house.app) as client:
            await client.send("conversation.item.create", item=text_item("a mocha"))
            await client.send("response.create")
            await pump(house, client.until("response.output_audio.delta"))
            await speak(house, client, tone(0.6))
            done = await pump(house, client.until("response.done"))
            assert done["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
            assert done["response"]["output"][0]["status"] == "incomplete"
            check_events(client.events)

    serve(scenario, written=("one two three. " * 30,))


def test_a_client_cancels_and_a_second_cancellation_is_no_error() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            await client.send("response.cancel", event_id="evt_0")
            error = await pump(house, client.until("error"))
            assert error["error"]["code"] == "response_cancel_not_active"
            assert error["error"]["message"].startswith("Cancellation failed")
            await client.send("response.create")
            await pump(house, client.until("response.created"))
            await client.send("response.create", event_id="evt_1")
            error = await pump(house, client.until("error"))
            assert error["error"]["code"] == "conversation_already_has_active_response"
            await client.send("response.cancel")
            await client.send("response.cancel")
            done = await pump(house, client.until("response.done"))
            assert done["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
            await client.send("conversation.item.retrieve", item_id="nobody")
            error = await pump(house, client.until("error"))
            assert error["error"]["code"] == "item_retrieve_invalid_item_id", "the second cancellation was passed over"

    serve(scenario)


def test_a_reply_that_is_truncated_while_it_is_made_is_done_and_a_late_cancellation_of_it_is_no_error() -> None:
    async def scenario(house: House) -> None:
        house.runtime.llm.step_s = 0.3
        async with connect(house.app) as client:
            await client.send("response.create")
            delta = await pump(house, client.until("response.output_audio.delta"))
            await client.send("conversation.item.truncate", item_id=delta["item_id"], content_index=0, audio_end_ms=100)
            done = await pump(house, client.until("response.done"))
            assert done["response"]["id"] == delta["response_id"]
            assert done["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
            await client.send("response.cancel", response_id=delta["response_id"])
            await client.send("response.create")
            await pump(house, client.until("response.created"))
            kinds = client.names()
            assert "error" not in kinds
            order = (
                "conversation.item.truncated",
                "response.output_audio.done",
                "conversation.item.done",
                "response.output_item.done",
                "response.done",
            )
            assert [kind for kind in kinds if kind in order] == list(order)

    serve(scenario)


def test_items_are_created_retrieved_truncated_and_deleted() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            await client.send("conversation.item.create", item={**text_item("first"), "id": "one"})
            await client.send(
                "conversation.item.create", item={**text_item("zeroth"), "id": "nil"}, previous_item_id="root"
            )
            added = [await pump(house, client.until("conversation.item.added")) for _ in range(2)]
            assert [event["previous_item_id"] for event in added] == [None, None]
            await client.send("conversation.item.create", item={**text_item("again"), "id": "one"}, event_id="evt_2")
            error = await pump(house, client.until("error"))
            assert error["error"]["code"] == "item_create_duplicate_item_id" and error["error"]["event_id"] == "evt_2"
            await client.send("response.create")
            done = await pump(house, client.until("response.done"))
            item_id = done["response"]["output"][0]["id"]
            await client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=99_000)
            truncated = await pump(house, client.until("conversation.item.truncated"))
            assert truncated["item_id"] == item_id and isinstance(truncated["audio_end_ms"], int)
            await client.send("conversation.item.delete", item_id=item_id)
            await pump(house, client.until("conversation.item.deleted"))
            await client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=100)
            await pump(house, client.until("conversation.item.truncated"))
            await client.send("conversation.item.truncate", item_id="nobody", content_index=0, audio_end_ms=100)
            error = await pump(house, client.until("error"))
            assert error["error"]["code"] == "item_truncate_invalid_item_id"
            await client.send("response.create", response={"input": [{"type": "item_reference", "id": "one"}]})
            await pump(house, client.until("response.done"))
            assert any("first" in turn.text for turn in house.runtime.llm.drafts[-1].request.turns)

    serve(scenario)


def test_the_page_gets_the_greeting_and_the_extension_events() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app, "model=voiceagent&extensions=1") as client:
            created = await client.next()
            assert created["session"]["voiceagent"]["events"] is True
            await client.send("voiceagent.greet")
            done = await pump(house, client.until("response.done"))
            assert done["response"]["output"][0]["content"][0]["transcript"] == "Welcome."
            await client.send("voiceagent.playout", item_id=done["response"]["output"][0]["id"], played_ms=200)
            await client.send("voiceagent.playout", item_id="nobody", played_ms=200)
            await pump(house, client.until("voiceagent.turn.timeline"))
            await speak(house, client)
            await pump(house, client.until("voiceagent.turn.timeline"))
            wanted = {"voiceagent.transcript.partial", "voiceagent.response.plan", "voiceagent.response.step"}
            assert wanted <= set(client.names())
            assert "error" not in client.names()

    serve(scenario)


@pytest.mark.parametrize(("query", "comes_back"), [("model=local", False), ("model=local&extensions=1", True)])
def test_a_client_that_hears_our_events_is_muted_and_brought_back_where_another_is_stopped(
    query: str, comes_back: bool
) -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app, query) as client:
            await client.send("response.create")
            await pump(house, client.until("response.output_audio.delta"))
            await speak(house, client, silence(1.2))
            await speak(house, client, np.concatenate([tone(0.56), silence(0.7)]))
            last = "voiceagent.playback.restored" if comes_back else "input_audio_buffer.speech_started"
            await pump(house, client.until(last))
            gains = [each["gain_db"] for each in client.events if each["type"] == "voiceagent.playback.ducked"]
            assert gains == ([-26.0, -120.0] if comes_back else [])
            assert ("input_audio_buffer.speech_started" in client.names()) != comes_back
            check_events(client.events)

    serve(scenario, heard=("got", "got it"), written=("one two three. " * 20,))


# --- strange clients --------------------------------------------------------------------------------------------------


def test_wrong_messages_are_answered_and_the_conversation_goes_on() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            for text in (
                '{"type"',
                '{"type":"no.such.event","event_id":"evt_9"}',
                '{"type":"input_audio_buffer.append"}',
            ):
                await client.send_text(text)
            codes = [(await pump(house, client.until("error")))["error"]["code"] for _ in range(3)]
            assert codes == ["invalid_json", "invalid_value", "missing_required_parameter"]
            await client.send("response.create")
            await pump(house, client.until("response.done"))

    serve(scenario)


def test_a_client_that_only_sends_garbage_is_closed() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            for _ in range(2):
                await client.send_text("{")
            await client.send_text("{}")
            for _ in range(3):
                await client.send_text("{")
            closed = await pump(house, client.closed())
            assert (closed.code, client.names().count("error")) == (1007, 6), "the count starts anew after valid JSON"

    serve(scenario, settings=ServerSettings(max_malformed_messages=3))


def test_a_binary_message_is_refused_with_the_reason() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            await client.send_bytes(b"\0\0")
            closed = await pump(house, client.closed())
            assert closed.code == 1003 and "binary" in closed.reason
            assert client.names() == ["session.created", "error"]

    serve(scenario)


def test_minutes_of_silence_change_nothing() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            for _ in range(30):
                await house.clock.advance(60.0)
            await client.send("response.create")
            await pump(house, client.until("response.done"))

    serve(scenario)


def test_a_session_ends_with_its_error_when_its_time_is_over() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            created = await client.next()
            assert created["session"]["expires_at"] == 1_795_216_400 + 600
            await house.clock.advance(599.0)
            await client.send("input_audio_buffer.clear")
            await client.until("input_audio_buffer.cleared")
            await house.clock.advance(2.0)
            closed = await pump(house, client.closed())
            assert client.events[-1]["error"]["code"] == "session_expired"
            assert "10 minutes" in client.events[-1]["error"]["message"]
            assert (closed.code, closed.reason) == (1000, "session expired")

    serve(scenario, settings=ServerSettings(session_s=600.0))


def test_a_client_that_stops_reading_is_closed_when_its_buffer_is_full() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            await client.next()
            client.reads.clear()
            await client.send("response.create")
            for _ in range(100):
                await house.clock.advance(0.1)
                if client.close_now:
                    break
            assert client.close_now is not None and client.close_now[0] == 1008
            assert "65536 bytes" in client.close_now[1]
            assert house.clock.now() < 110.0, "before the time limit"

    serve(scenario, settings=ServerSettings(send_buffer_limit=65_536), written=("word " * 200 + ".",))


def test_a_client_that_stops_reading_is_closed_when_it_takes_too_long() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            await client.next()
            client.reads.clear()
            await client.send("input_audio_buffer.clear")
            await house.clock.advance(19.0)
            assert client.close_now is None
            await house.clock.advance(6.0)
            assert client.close_now == (1008, "the client has read nothing for 20 s")

    serve(scenario)


def test_a_large_append_is_taken_in_slices_and_others_are_served_in_between() -> None:
    sizes: list[int] = []

    class Watched:
        def __init__(self, conversation: Conversation) -> None:
            self._conversation = conversation

        def push_audio(self, samples: np.ndarray) -> None:
            sizes.append(samples.size)
            self._conversation.push_audio(samples)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._conversation, name)

    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            minute = base64.b64encode(bytes(60 * 48_000)).decode()
            await client.send("input_audio_buffer.append", audio=minute)
            await client.send("input_audio_buffer.clear")
            await pump(house, client.until("input_audio_buffer.cleared"))
            assert "error" not in client.names()

    serve(scenario, wrap=Watched)
    assert len(sizes) >= 30 and max(sizes) <= 2.1 * 16_000
    assert sum(sizes) == pytest.approx(60 * 16_000, abs=600)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_one_connections_failure_closes_only_it_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __init__(self, conversation: Conversation) -> None:
            self._conversation = conversation

        def clear_audio(self) -> None:
            raise RuntimeError("bug")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._conversation, name)

    async def scenario(house: House) -> None:
        async with connect(house.app) as healthy, connect(house.app) as broken:
            await broken.send("input_audio_buffer.clear")
            closed = await pump(house, broken.closed())
            assert (closed.code, closed.reason) == (1011, "internal error")
            await healthy.send("response.create")
            await pump(house, healthy.until("response.done"))

    with caplog.at_level(logging.ERROR):
        serve(scenario, wrap=Broken)
    assert [record.exc_info[1].args for record in caplog.records if record.exc_info and record.exc_info[1]] == [
        ("bug",)
    ]


def test_a_failing_model_fails_the_response_and_not_the_connection() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            await client.send("response.create")
            done = await pump(house, client.until("response.done"))
            assert done["response"]["status"] == "failed"
            assert done["response"]["status_details"]["error"]["message"]
            await client.send("response.create")
            done = await pump(house, client.until("response.done"))
            assert done["response"]["status"] == "completed"

    serve(scenario, written=(RuntimeError("out of memory"), REPLY))


@pytest.mark.parametrize("moment", ["session.created", "response.created", "response.output_audio.delta"])
def test_a_client_that_vanishes_leaves_nothing_running(moment: str) -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            if moment != "session.created":
                await client.send("response.create")
            await pump(house, client.until(moment))
        assert house.runtime.conversations[0].active_response_id is None
        assert house.runtime.llm.forgotten == [house.runtime.conversations[0].id]

    serve(scenario, written=("one two three. " * 30,))  # `serve` checks for tasks that are left


# --- ending -----------------------------------------------------------------------------------------------------------


def test_draining_lets_the_reply_finish_and_lets_nobody_in(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as talking, connect(house.app) as idle:
            await idle.next()
            await talking.send("response.create")
            await pump(house, talking.until("response.created"))
            drain = asyncio.create_task(house.app.state.realtime.drain())
            await house.settle()
            ready = await get(house, "/readyz")
            assert (ready.status_code, ready.json()["draining"]) == (503, True)
            assert (await get(house, "/healthz")).status_code == 200
            assert "shutting down" in (await refusal(house)).body["error"]["message"]
            assert (await pump(house, idle.closed())).code == 1001
            closed = await pump(house, talking.closed())
            assert closed.code == 1001
            done = next(event for event in talking.events if event["type"] == "response.done")
            assert done["response"]["status"] == "completed"
            await pump(house, drain)

    caplog.set_level(logging.INFO, "voiceagent.server")
    serve(scenario, settings=ServerSettings(drain_s=60.0))
    assert "said on 2 connections may finish, for at most 60 s" in caplog.text


def test_draining_is_bounded_and_what_is_cut_off_says_so() -> None:
    async def scenario(house: House) -> None:
        house.runtime.llm.step_s = 100.0
        async with connect(house.app) as client:
            await client.send("response.create")
            await pump(house, client.until("response.created"))
            drain = asyncio.create_task(house.app.state.realtime.drain())
            await house.settle()
            await client.send("response.create")
            error = await pump(house, client.until("error"))
            assert error["error"]["code"] == "server_shutting_down"
            closed = await pump(house, client.closed())
            assert closed.code == 1001
            done = next(event for event in client.events if event["type"] == "response.done")
            assert done["response"]["status"] == "cancelled"
            await pump(house, drain)
            assert house.clock.now() < 100.0 + 5.0 + 5.0

    serve(scenario, settings=ServerSettings(drain_s=5.0))


def test_draining_ends_although_a_client_does_not_read() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            await client.next()
            client.reads.clear()
            await client.send("input_audio_buffer.clear")
            await house.settle()
            await pump(house, house.app.state.realtime.drain())
            assert client.close_now == (1001, "the server is shutting down")

    serve(scenario, settings=ServerSettings(drain_s=1.0))

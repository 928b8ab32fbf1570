"""The codec towards the client: what conversation events become on the wire."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.voiceagent.realtime import MODELS, Event, check_event, check_events
from voiceagent.audio import PCM16_24K, PCMA_8K, PCMU_8K, AudioFormat
from voiceagent.backends import CanvasToken, StepPlan, TokenState
from voiceagent.barge_in import Dismissed
from voiceagent.errors import ProtocolError
from voiceagent.events import (
    AudioCleared,
    AudioCommitted,
    CallItem,
    ConversationEvent,
    Item,
    ItemAdded,
    ItemDeleted,
    ItemDone,
    ItemTruncated,
    OutputItem,
    PlaybackDucked,
    PlaybackMuted,
    PlaybackRestored,
    ResponseAudio,
    ResponseCalled,
    ResponseFinished,
    ResponseItemStarted,
    ResponsePlanned,
    ResponseStarted,
    ResponseStatus,
    ResponseStepped,
    ResponseText,
    SpeechStarted,
    SpeechStopped,
    TranscriptFailed,
    TranscriptFinal,
    TranscriptPartial,
    TurnTraced,
    Usage,
)
from voiceagent.session import ResponseOptions, SessionSettings
from voiceagent.tools import ToolCall
from voiceagent.wire import CreateResponse, RealtimeCodec, SessionUpdate

TRACE = [json.loads(line) for line in (Path(__file__).parent / "realtime_trace.jsonl").read_text().splitlines()]
"""Server events that the openai, agents-realtime and Pipecat parsers accept unchanged."""

TRACE_CALL = next(event for event in TRACE if event.get("item", {}).get("type") == "function_call")

USER = Item("item_u", "user", None, spoken=True)
AGENT = Item("item_a", "agent", "Sure.", spoken=True)
OPENED = Item("item_a", "agent", None, "in_progress", spoken=True)


def make_codec(*, extensions: bool = False, defaults: SessionSettings | None = None) -> RealtimeCodec:
    return RealtimeCodec(
        session_id="sess_1",
        conversation_id="conv_1",
        model="local",
        defaults=defaults or SessionSettings(),
        transcriber="scripted",
        expires_at=1_795_220_000,
        extensions=extensions,
    )


def send(codec: RealtimeCodec, *events: ConversationEvent, now: float = 0.0) -> list[Event]:
    sent: list[Any] = [message for event in events for message in codec.send(event, now)]
    check_events(sent)
    return sent


def audio(event: Event) -> bytes:
    return base64.b64decode(event["delta"], validate=True)


def finished(
    status: ResponseStatus = "completed", reason: str | None = None, item: Item | None = AGENT
) -> ResponseFinished:
    return ResponseFinished("resp_1", item, "item_u", "audio", status, reason, Usage(60, 40, 30))


REPLY: tuple[ConversationEvent, ...] = (
    ResponseStarted("resp_1", "item_a", "audio"),
    ResponseItemStarted("resp_1", OPENED, "item_u"),
    ResponseText("resp_1", "item_a", "Sure."),
    ResponseAudio("resp_1", "item_a", np.full(4800, 0.25, np.float32), 24_000),
)


def test_the_reference_trace_passes_the_checks_that_our_own_events_have_to_pass() -> None:
    check_events(TRACE)


def test_a_spoken_turn_has_the_order_and_the_fields_of_the_reference_trace() -> None:
    sent = send(
        make_codec(),
        SpeechStarted("item_u", 0.84),
        SpeechStopped("item_u", 2.31),
        AudioCommitted("item_u", None),
        ItemAdded(USER, None),
        ItemDone(USER, None),
        *REPLY,
        TranscriptFinal("item_u", "Can you help?", 1.47),
        finished(),
    )
    reference = TRACE[: next(i for i, event in enumerate(TRACE) if event["type"] == "response.done") + 1]
    sent = [event for event in sent if not event["type"].endswith("transcription.delta")]
    assert [event["type"] for event in sent] == [event["type"] for event in reference] + ["rate_limits.updated"]
    varying = {"event_id", "delta", "response"}
    for event, wanted in zip(sent, reference, strict=False):
        assert {k: v for k, v in event.items() if k not in varying} == {
            k: v for k, v in wanted.items() if k not in varying
        }
        assert set(wanted.get("response", {})) <= set(event.get("response", {}))


CALL = CallItem("item_f", "call_1", ToolCall("lookup_order", {"id": 42}))


@pytest.mark.parametrize("before", [(), REPLY[1:3]], ids=["call alone", "call behind words"])
def test_a_call_for_the_client_is_an_output_item_of_its_response(before: tuple[ConversationEvent, ...]) -> None:
    item = AGENT if before else None
    sent = send(make_codec(), REPLY[0], *before, ResponseCalled("resp_1", CALL, "item_u"), finished(item=item))
    names = [
        event["type"]
        for event in sent
        if event.get("item_id") != "item_a" and event.get("item", {}).get("id") != "item_a"
    ]
    assert names == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
        "rate_limits.updated",
    ]
    opened = next(
        event for event in sent if event["type"] == "response.output_item.added" and event["item"]["id"] == "item_f"
    )
    assert opened["item"]["status"] == "in_progress" and opened["item"]["arguments"] == ""
    assert opened["output_index"] == len(before) // 2
    whole = next(event for event in sent if event["type"] == "response.function_call_arguments.done")
    assert (whole["call_id"], whole["name"], json.loads(whole["arguments"])) == ("call_1", "lookup_order", {"id": 42})
    output = sent[-2]["response"]["output"]
    assert [entry["type"] for entry in output] == ["message"] * (len(before) // 2) + ["function_call"]
    wanted = {k: v for k, v in TRACE_CALL["item"].items() if k not in ("status", "arguments")}
    assert {k: v for k, v in output[-1].items() if k not in ("status", "arguments")} == wanted


def test_a_call_outside_the_conversation_is_no_item_of_it() -> None:
    codec = make_codec()
    codec.requested("resp_1", CreateResponse(options=ResponseOptions(in_conversation=False)))
    sent = send(codec, REPLY[0], ResponseCalled("resp_1", CALL, None), finished(item=None))
    assert not [event for event in sent if event["type"].startswith("conversation.")]
    assert sent[-2]["response"]["output"][0]["call_id"] == "call_1"


def test_what_the_server_ran_is_told_as_items_and_not_as_output_of_a_response() -> None:
    output = OutputItem("item_o", "call_1", '{"table": 12}', "book_table: table: 12", ("12",))
    sent = send(make_codec(), REPLY[0], ItemAdded(CALL, None), ItemDone(CALL, None), ItemAdded(output, "item_f"))
    assert [event["type"] for event in sent[1:]] == ["conversation.item.added", "conversation.item.done"] + [
        "conversation.item.added"
    ]
    assert sent[-1]["item"] == {
        "id": "item_o",
        "object": "realtime.item",
        "type": "function_call_output",
        "status": "completed",
        "call_id": "call_1",
        "output": '{"table": 12}',
    }


def test_session_created_carries_the_full_session() -> None:
    (created,) = make_codec().opened()
    check_event(created)
    session: Any = created["session"]
    assert created["type"] == "session.created"
    assert {"type", "id", "object", "model", "expires_at", "tools", "tool_choice", "max_output_tokens"} <= set(session)
    assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24000}
    assert session["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    assert set(session["audio"]["input"]["transcription"]) == {"model"}, "Pipecat refuses other keys"
    assert isinstance(session["audio"]["output"]["voice"], str), "Pipecat refuses an object"
    assert "voiceagent" not in session


def test_a_text_turn_uses_the_text_events() -> None:
    opened = Item("item_a", "agent", None, "in_progress")
    done = Item("item_a", "agent", "Hi there")
    sent = send(
        make_codec(),
        ResponseStarted("resp_1", "item_a", "text"),
        ResponseItemStarted("resp_1", opened, None),
        ResponseText("resp_1", "item_a", "Hi"),
        ResponseText("resp_1", "item_a", " there"),
        ResponseFinished("resp_1", done, None, "text", "completed", None, Usage()),
    )
    names = [event["type"] for event in sent]
    assert names.count("response.output_text.delta") == 2
    assert not any("audio" in name for name in names)
    by_name = {event["type"]: event for event in sent}
    assert by_name["response.output_text.done"]["text"] == "Hi there"
    assert by_name["response.content_part.done"]["part"] == {"type": "text", "text": "Hi there"}
    assert by_name["response.done"]["response"]["output"][0]["content"] == [{"type": "output_text", "text": "Hi there"}]
    assert by_name["response.done"]["response"]["output_modalities"] == ["text"]


def test_an_interrupted_response_is_closed_as_incomplete_before_it_is_done() -> None:
    heard = Item("item_a", "agent", "Su", "incomplete", spoken=True)
    sent = send(make_codec(), *REPLY, finished("cancelled", "turn_detected", heard))
    names = [event["type"] for event in sent]
    assert names[-4:] == ["conversation.item.done", "response.output_item.done", "response.done", "rate_limits.updated"]
    assert sent[-3]["item"]["status"] == "incomplete"
    response = sent[-2]["response"]
    assert response["status"] == "cancelled"
    assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert response["output"][0]["content"] == [{"type": "output_audio", "transcript": "Su"}]


@pytest.mark.parametrize(
    ("status", "reason", "details"),
    [
        ("cancelled", "client_cancelled", {"type": "cancelled", "reason": "client_cancelled"}),
        ("cancelled", "shutdown", {"type": "cancelled"}),
        ("incomplete", "max_output_tokens", {"type": "incomplete", "reason": "max_output_tokens"}),
        (
            "failed",
            "llm: out of memory",
            {
                "type": "failed",
                "error": {"type": "server_error", "code": "server_error", "message": "llm: out of memory"},
            },
        ),
    ],
)
def test_the_end_of_a_response_says_why(status: ResponseStatus, reason: str, details: Event) -> None:
    sent = send(make_codec(), ResponseStarted("resp_1", "item_a", "audio"), finished(status, reason, None))
    assert [event["type"] for event in sent] == ["response.created", "response.done", "rate_limits.updated"]
    assert sent[1]["response"]["status"] == status
    assert sent[1]["response"]["status_details"] == details
    assert sent[1]["response"]["output"] == []


def test_nothing_of_a_response_follows_its_end() -> None:
    codec = make_codec()
    send(codec, *REPLY, finished())
    assert send(codec, *REPLY[1:], finished()) == []


def test_an_item_announced_only_at_the_end_is_still_opened_first() -> None:
    sent = send(make_codec(), REPLY[0], finished())
    names = [event["type"] for event in sent]
    assert names.index("response.output_item.added") < names.index("response.content_part.added")
    assert names.index("response.content_part.added") < names.index("response.output_item.done")


def test_metadata_comes_back_in_created_and_done() -> None:
    metadata = {"client_event_id": "evt_c9"}
    sent = send(
        make_codec(),
        ResponseStarted("resp_1", "item_a", "audio", metadata),
        ResponseFinished("resp_1", None, None, "audio", "completed", None, Usage(), metadata),
    )
    assert [event["response"]["metadata"] for event in sent[:2]] == [metadata, metadata]
    assert sent[0]["response"]["usage"] is None
    assert sent[1]["response"]["usage"]["total_tokens"] == 0


# --- audio ------------------------------------------------------------------------------------------------------------


def spoken_bytes(codec: RealtimeCodec, samples: np.ndarray, cuts: list[int], rate_hz: int) -> list[bytes]:
    bounds = [0, *sorted(cut % (len(samples) + 1) for cut in cuts), len(samples)]
    pieces = [samples[a:b] for a, b in pairwise(bounds)]
    events = [ResponseAudio("resp_1", "item_a", piece, rate_hz) for piece in pieces]
    sent = send(codec, *REPLY[:2], *events, finished())
    return [audio(event) for event in sent if event["type"] == "response.output_audio.delta"]


@pytest.mark.parametrize(("name", "fmt"), [("audio/pcm", PCM16_24K), ("audio/pcmu", PCMU_8K), ("audio/pcma", PCMA_8K)])
@settings(max_examples=15)
@given(cuts=st.lists(st.integers(0, 20_000), max_size=6))
def test_audio_is_the_same_however_it_is_cut_and_comes_in_short_deltas(
    name: str, fmt: AudioFormat, cuts: list[int]
) -> None:
    samples = np.sin(np.arange(16_537) / 20).astype(np.float32) * 0.5
    streams = []
    for chosen in ([], cuts):
        codec = make_codec()
        update_format(codec, "output", name)
        deltas = spoken_bytes(codec, samples, chosen, 22_050)
        assert all(0 < fmt.duration_s(len(delta)) <= 0.2 for delta in deltas)
        assert all(len(delta) % fmt.bytes_per_sample == 0 for delta in deltas)
        streams.append(b"".join(deltas))
    assert streams[0] == streams[1]
    assert fmt.duration_s(len(streams[0])) == pytest.approx(16_537 / 22_050, abs=0.002)


def test_a_cancelled_response_does_not_send_the_audio_it_still_had() -> None:
    codec = make_codec()
    half = ResponseAudio("resp_1", "item_a", np.zeros(8000, np.float32), 16_000)
    sent = send(codec, *REPLY[:2], half, finished("cancelled", "turn_detected"))
    after = sent[[event["type"] for event in sent].index("response.output_audio.done") :]
    sizes = [len(audio(event)) for event in sent if event["type"] == "response.output_audio.delta"]
    assert PCM16_24K.duration_s(sum(sizes)) < 0.5, "what the resampler still held is not sent"
    assert not any(event["type"] == "response.output_audio.delta" for event in after)


def update_format(codec: RealtimeCodec, direction: str, name: str) -> None:
    update(codec, {"audio": {direction: {"format": {"type": name}}}})


def update(codec: RealtimeCodec, session: dict[str, Any]) -> None:
    command = codec.receive(json.dumps({"type": "session.update", "session": {"type": "realtime", **session}}))
    assert isinstance(command, SessionUpdate)
    codec.apply(command)


@pytest.mark.parametrize(("name", "fmt"), [("audio/pcm", PCM16_24K), ("audio/pcmu", PCMU_8K), ("audio/pcma", PCMA_8K)])
@settings(max_examples=15)
@given(cuts=st.lists(st.integers(0, 20_000), max_size=6))
def test_input_is_the_same_however_the_client_cuts_it_even_inside_a_sample(
    name: str, fmt: AudioFormat, cuts: list[int]
) -> None:
    data = fmt.encode(np.sin(np.arange(9_601) / 15).astype(np.float32) * 0.5)
    streams = []
    for chosen in ([], cuts):
        codec = make_codec()
        update_format(codec, "input", name)
        bounds = [0, *sorted(cut % (len(data) + 1) for cut in chosen), len(data)]
        parts = [codec.input_samples(data[a:b]) for a, b in pairwise(bounds)]
        streams.append(np.concatenate([*parts, codec.input_tail()]))
    assert np.array_equal(streams[0], streams[1])
    assert len(streams[0]) == pytest.approx(9_601 * 16_000 / fmt.rate_hz, abs=32)


def test_a_response_may_have_its_own_format_and_stay_out_of_the_conversation() -> None:
    codec = make_codec()
    body = {
        "conversation": "none",
        "max_output_tokens": 50,
        "audio": {"output": {"format": {"type": "audio/pcmu"}, "voice": "cedar"}},
    }
    request = codec.receive(json.dumps({"type": "response.create", "response": body}))
    assert isinstance(request, CreateResponse) and not request.options.in_conversation
    codec.requested("resp_1", request)
    sent = send(codec, *REPLY, finished())
    response = sent[0]["response"]
    assert response["conversation_id"] is None
    assert response["max_output_tokens"] == 50
    assert response["audio"]["output"] == {"format": {"type": "audio/pcmu"}, "voice": "cedar"}
    assert not any(event["type"].startswith("conversation.") for event in sent)
    audio_bytes = b"".join(audio(event) for event in sent if event["type"] == "response.output_audio.delta")
    assert PCMU_8K.duration_s(len(audio_bytes)) == pytest.approx(0.2, abs=0.001)


# --- transcription ----------------------------------------------------------------------------------------------------


def test_transcription_starts_after_the_commit_and_its_deltas_join_to_the_transcript() -> None:
    codec = make_codec()
    assert send(codec, TranscriptPartial("item_u", "a large", "latt")) == []
    sent = send(
        codec,
        AudioCommitted("item_u", None),
        TranscriptPartial("item_u", "a large", "latte"),
        TranscriptPartial("item_u", "a large", "latte please"),
        TranscriptFinal("item_u", "a large latte please", 1.5),
    )
    assert [event["type"].rpartition(".")[2] for event in sent] == ["committed", "delta", "delta", "completed"]
    assert "".join(event["delta"] for event in sent[1:3]) == sent[3]["transcript"] == "a large latte please"
    assert sent[3]["usage"] == {"type": "duration", "seconds": 1.5}


def test_a_final_transcript_that_differs_from_its_partials_is_sent_whole_once() -> None:
    sent = send(
        make_codec(),
        AudioCommitted("item_u", None),
        TranscriptPartial("item_u", "a lodge", ""),
        TranscriptFinal("item_u", "a large latte", 1.0),
    )
    assert [event["type"].rpartition(".")[2] for event in sent] == ["committed", "delta", "completed"]
    assert sent[-1]["transcript"] == "a large latte"


def test_an_empty_transcript_completes_without_a_delta_and_a_failed_one_says_so() -> None:
    sent = send(make_codec(), AudioCommitted("item_u", None), TranscriptFinal("item_u", "", 0.4))
    assert [event["type"].rpartition(".")[2] for event in sent] == ["committed", "completed"]
    sent = send(make_codec(), AudioCommitted("item_u", None), TranscriptFailed("item_u", "asr: died"))
    assert sent[1]["error"]["message"] == "asr: died"


def test_a_client_without_transcription_gets_none() -> None:
    codec = make_codec(defaults=SessionSettings(transcribe=False))
    sent = send(codec, AudioCommitted("item_u", None), TranscriptFinal("item_u", "hello", 0.4))
    assert [event["type"] for event in sent] == ["input_audio_buffer.committed"]
    (created,) = codec.opened()
    assert created["session"]["audio"]["input"]["transcription"] is None  # type: ignore[index]


# --- items and the rest -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "role", "part"),
    [
        (USER, "user", {"type": "input_audio", "transcript": None}),
        (Item("i", "user", "hi", spoken=True), "user", {"type": "input_audio", "transcript": "hi"}),
        (Item("i", "user", "hi"), "user", {"type": "input_text", "text": "hi"}),
        (Item("i", "system", "be brief"), "system", {"type": "input_text", "text": "be brief"}),
        (Item("i", "agent", "yes"), "assistant", {"type": "output_text", "text": "yes"}),
        (AGENT, "assistant", {"type": "output_audio", "transcript": "Sure."}),
        (Item("i", "agent", None, "incomplete", spoken=True), "assistant", {"type": "output_audio", "transcript": ""}),
    ],
)
def test_each_kind_of_item_has_its_shape(item: Item, role: str, part: Event) -> None:
    (added,) = send(make_codec(), ItemAdded(item, "item_0"))
    assert added["item"]["role"] == role
    assert added["item"]["content"] == [part]
    assert added["previous_item_id"] == "item_0"
    (retrieved,) = make_codec().retrieved(item)
    check_event(retrieved)


def test_buffer_and_item_events_carry_whole_milliseconds() -> None:
    sent = send(
        make_codec(),
        SpeechStarted("item_u", -0.02),
        SpeechStopped("item_u", 1.23456),
        AudioCleared(),
        ItemDeleted("item_u"),
        ItemTruncated("item_a", 0.32049, "Su"),
    )
    assert sent[0]["audio_start_ms"] == 0 and sent[1]["audio_end_ms"] == 1235
    assert sent[4]["audio_end_ms"] == 320 and sent[4]["content_index"] == 0


EXTENSIONS: tuple[ConversationEvent, ...] = (
    ResponsePlanned("resp_1", StepPlan(32, 4, 12, 0.9, 100.25, None), "turn"),
    ResponseStepped("resp_1", 1, "first", (CanvasToken("Sure", TokenState.COMMITTED, 0.97),), "Sure", 1, 0.0123, 2),
    TurnTraced("resp_1", {"turn": 1, "marks": []}),
    PlaybackDucked(1.2344),
    PlaybackMuted(1.2344),
    PlaybackRestored(Dismissed.BACKCHANNEL),
)


@pytest.mark.parametrize("doubt", [PlaybackDucked(1.0), PlaybackMuted(1.0)])
def test_a_client_that_wants_no_more_of_our_events_is_still_told_to_turn_up_what_it_turned_down(
    doubt: ConversationEvent,
) -> None:
    codec = make_codec(extensions=True)
    send(codec, doubt)
    update(codec, {"voiceagent": {"events": False}})
    restored = PlaybackRestored(Dismissed.GIVEN_UP)
    assert [event["type"] for event in send(codec, restored)] == ["voiceagent.playback.restored"]
    assert send(codec, doubt, restored) == [], "nothing is owed any more"
    update(codec, {"voiceagent": {"events": True}})
    send(codec, doubt, SpeechStarted("item_u", 1.0))
    update(codec, {"voiceagent": {"events": False}})
    assert send(codec, restored) == [], "it was stopped"


def test_extension_events_go_only_to_clients_that_ask() -> None:
    assert send(make_codec(), TranscriptPartial("item_u", "a", "b"), *EXTENSIONS) == []
    codec = make_codec(extensions=True)
    partial, plan, step, timeline, ducked, muted, restored = send(
        codec, TranscriptPartial("item_u", "a", "b"), *EXTENSIONS, now=100.0
    )
    assert (partial["stable"], partial["unstable"]) == ("a", "b")
    assert plan["plan"]["first_deadline_ms"] == 250.0 and plan["plan"]["rest_deadline_ms"] is None
    assert step["canvas"] == [{"text": "Sure", "state": "committed", "confidence": 0.97}]
    assert step["compute_ms"] == 12.3 and step["batch"] == 2
    assert (ducked["type"], ducked["audio_start_ms"], ducked["gain_db"]) == ("voiceagent.playback.ducked", 1234, -26.0)
    assert {**muted, "event_id": ""} == {**ducked, "event_id": "", "gain_db": -120.0}, "the same once more, and silence"
    assert (restored["type"], restored["reason"]) == ("voiceagent.playback.restored", "backchannel")
    assert timeline["timeline"] == {"turn": 1, "marks": []}
    (created,) = codec.opened()
    shown = created["session"]["voiceagent"]  # type: ignore[index]
    assert (shown["events"], shown["target_ms"], shown["when_late"]) == (True, 500, "fewer_steps")
    assert shown["barge_in"] == "two_stage" and "uh-huh" in shown["backchannels"]
    assert shown["silence"] is None


def test_errors_name_the_clients_event_and_a_failed_cancellation_begins_as_clients_expect() -> None:
    codec = make_codec()
    (sent,) = codec.refused(ProtocolError("response_cancel_not_active", "no active response"))
    check_event(sent)
    error: Any = sent["error"]
    assert error["message"].startswith("Cancellation failed")
    with pytest.raises(ProtocolError) as caught:
        codec.receive('{"type":"nonsense","event_id":"evt_7"}')
    (sent,) = codec.refused(caught.value)
    assert sent["error"]["event_id"] == "evt_7"  # type: ignore[index]


def test_a_cancellation_that_crosses_the_end_of_its_response_is_no_error() -> None:
    codec = make_codec()
    error = ProtocolError("response_cancel_not_active", "Cancellation failed: no active response found")
    cancel = codec.receive('{"type":"response.cancel"}')
    named = codec.receive('{"type":"response.cancel","response_id":"resp_1"}')
    assert codec.refused(error, cancel) and codec.refused(error, named), "nothing ever ran"
    send(codec, *REPLY, finished("cancelled", "turn_detected"))
    assert not codec.refused(error, cancel) and not codec.refused(error, named)
    send(codec, ResponseStarted("resp_2", "item_b", "audio"))
    send(codec, ResponseFinished("resp_2", None, None, "audio", "completed", None, Usage()))
    assert codec.refused(error, cancel) and not codec.refused(error, named)


def test_a_truncation_of_an_item_that_has_gone_is_answered_quietly_and_an_unknown_one_is_not() -> None:
    codec = make_codec()
    send(codec, *REPLY, finished())
    error = ProtocolError("item_truncate_invalid_item_id", "No item")
    late = codec.receive('{"type":"conversation.item.truncate","item_id":"item_a","content_index":0,"audio_end_ms":40}')
    (answer,) = codec.refused(error, late)
    check_event(answer)
    assert (answer["type"], answer["audio_end_ms"]) == ("conversation.item.truncated", 40)
    wrong = codec.receive(
        '{"type":"conversation.item.truncate","item_id":"item_9","content_index":0,"audio_end_ms":40}'
    )
    (answer,) = codec.refused(error, wrong)
    assert answer["type"] == "error"


def test_every_event_that_the_server_can_send_has_a_typed_model() -> None:
    codec = make_codec()
    sent = send(codec, AudioCommitted("item_u", None), *REPLY, TranscriptFinal("item_u", "x", 1.0), finished())
    assert {event["type"] for event in sent} <= set(MODELS)

"""The codec from the client: whatever arrives is answered."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.voiceagent.realtime import Event
from tests.voiceagent.test_wire import make_codec, send
from voiceagent.errors import ProtocolError
from voiceagent.events import CallItem, ItemAdded, ResponseCalled, ResponseStarted
from voiceagent.tools import ToolCall
from voiceagent.wire import AppendAudio, CreateItem, SessionUpdate

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


def nest(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)


JSON = st.recursive(LEAVES, nest, max_leaves=12)
KINDS = st.sampled_from(
    [
        "session.update",
        "input_audio_buffer.append",
        "input_audio_buffer.commit",
        "input_audio_buffer.clear",
        "conversation.item.create",
        "conversation.item.retrieve",
        "conversation.item.delete",
        "conversation.item.truncate",
        "response.create",
        "response.cancel",
        "voiceagent.playout",
        "voiceagent.greet",
    ]
)


FIELD_NAMES = st.sampled_from(
    [
        "session",
        "item",
        "item_id",
        "previous_item_id",
        "audio",
        "response",
        "response_id",
        "event_id",
        "content_index",
        "audio_end_ms",
        "played_ms",
        "type",
        "instructions",
        "output_modalities",
        "max_output_tokens",
        "input",
        "output",
        "format",
        "rate",
        "turn_detection",
        "transcription",
        "noise_reduction",
        "voice",
        "speed",
        "tools",
        "tool_choice",
        "truncation",
        "tracing",
        "metadata",
        "conversation",
        "id",
        "role",
        "content",
        "text",
        "transcript",
        "status",
        "voiceagent",
        "target_ms",
        "events",
        "threshold",
        "silence_duration_ms",
        "eagerness",
        "call_id",
        "name",
        "arguments",
        "output",
        "parameters",
        "description",
    ]
)


VALUES = st.sampled_from(
    [
        "realtime",
        "message",
        "user",
        "input_text",
        "server_vad",
        "semantic_vad",
        "audio/pcm",
        "item_reference",
        "function",
        "function_call",
        "function_call_output",
        '{"people": 4}',
        "required",
        "AAAA",
        24000,
        1,
    ]
)


def nest_shaped(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(FIELD_NAMES, inner, max_size=4) | st.lists(inner, max_size=2)


SHAPED = st.recursive(LEAVES | VALUES, nest_shaped, max_leaves=8)
ON_ANY_MACHINE = settings(suppress_health_check=[HealthCheck.too_slow])
"""Drawing nested JSON takes its time on a busy machine; that is no finding."""


def survive(text: str) -> None:
    """The codec answers anything with a command or a `ProtocolError`, and either can be answered in turn."""
    codec = make_codec()
    try:
        command = codec.receive(text)
    except ProtocolError as error:
        answers = codec.refused(error)
    else:
        answers = codec.refused(ProtocolError("invalid_value", "x"), command)
        if isinstance(command, SessionUpdate):
            answers = [*answers, *codec.apply(command)]
        if isinstance(command, AppendAudio):
            codec.input_samples(command.audio)
        if isinstance(command, CreateItem):
            answers = [*answers, *codec.send(ItemAdded(command.item, None), 0.0)]
    for answer in answers:
        json.dumps(answer, allow_nan=False).encode("ascii")


@given(st.text())
@example("\ud800")
def test_any_text_is_answered(text: str) -> None:
    survive(text)


@ON_ANY_MACHINE
@given(JSON)
def test_any_json_is_answered(value: object) -> None:
    survive(json.dumps(value))


@ON_ANY_MACHINE
@given(KINDS, st.dictionaries(FIELD_NAMES, SHAPED, max_size=5))
def test_any_fields_of_a_known_event_are_answered(kind: str, fields: Event) -> None:
    survive(json.dumps({**fields, "type": kind}))


@ON_ANY_MACHINE
@given(st.dictionaries(FIELD_NAMES, SHAPED, max_size=5))
def test_any_session_is_answered(session: Event) -> None:
    survive(json.dumps({"type": "session.update", "session": {**session, "type": "realtime"}}))


@ON_ANY_MACHINE
@given(st.sampled_from(["function_call", "function_call_output"]), st.dictionaries(FIELD_NAMES, SHAPED, max_size=5))
def test_any_call_or_output_of_a_client_is_answered(kind: str, item: Event) -> None:
    survive(json.dumps({"type": "conversation.item.create", "item": {**item, "type": kind}}))


@ON_ANY_MACHINE
@given(st.lists(SHAPED | st.dictionaries(FIELD_NAMES, SHAPED, max_size=4), max_size=3), SHAPED)
def test_any_tools_are_answered(tools: list[object], choice: object) -> None:
    session = {"type": "realtime", "tools": tools, "tool_choice": choice}
    survive(json.dumps({"type": "session.update", "session": session}))


@ON_ANY_MACHINE
@given(st.text(max_size=10), st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_any_call_of_a_model_becomes_events_that_clients_accept(name: str, arguments: Event) -> None:
    codec = make_codec()
    call = CallItem("item_f", "call_1", ToolCall(name, arguments))
    send(codec, ResponseStarted("resp_1", "item_a", "audio"), ResponseCalled("resp_1", call, None))

"""The codec from the client: what is said about wrong messages."""

from __future__ import annotations

import base64
import json

import pytest

from tests.voiceagent.realtime import Event, check_event
from tests.voiceagent.test_wire import make_codec
from tests.voiceagent.wiring import receive, refusal
from voiceagent.events import Item
from voiceagent.wire import CreateItem

MESSAGE = {"type": "message", "role": "user", "content": []}


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ({}, "missing_required_parameter", "type"),
        ({"type": None}, "missing_required_parameter", "type"),
        ({"type": 5}, "invalid_type", "type"),
        ({"type": "conversation.item.created"}, "invalid_value", "type"),
        ({"type": "output_audio_buffer.clear"}, "invalid_value", "type"),
        ({"type": "input_audio_buffer.append"}, "missing_required_parameter", "audio"),
        ({"type": "input_audio_buffer.append", "audio": 5}, "invalid_type", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "not base64!"}, "invalid_value", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "AAA"}, "invalid_value", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "é"}, "invalid_value", "audio"),
        ({"type": "session.update"}, "missing_required_parameter", "session"),
        ({"type": "session.update", "session": []}, "invalid_type", "session"),
        ({"type": "session.update", "session": {}}, "missing_required_parameter", "session.type"),
        ({"type": "session.update", "session": {"type": "transcription"}}, "invalid_value", "session.type"),
        ({"type": "conversation.item.create"}, "missing_required_parameter", "item"),
        ({"type": "conversation.item.create", "item": {**MESSAGE, "role": "robot"}}, "invalid_value", "item.role"),
        ({"type": "conversation.item.create", "item": {**MESSAGE, "id": "x" * 65}}, "invalid_value", "item.id"),
        ({"type": "conversation.item.create", "item": {**MESSAGE, "id": ""}}, "invalid_value", "item.id"),
        ({"type": "conversation.item.create", "item": {**MESSAGE, "content": "hi"}}, "invalid_type", "item.content"),
        (
            {"type": "conversation.item.create", "item": {**MESSAGE, "content": ["hi"]}},
            "invalid_type",
            "item.content[0]",
        ),
        (
            {"type": "conversation.item.create", "item": {**MESSAGE, "content": [{"type": "input_text"}]}},
            "missing_required_parameter",
            "item.content[0].text",
        ),
        (
            {
                "type": "conversation.item.create",
                "item": {**MESSAGE, "content": [{"type": "input_audio", "audio": ""}]},
            },
            "missing_required_parameter",
            "item.content[0].transcript",
        ),
        (
            {"type": "conversation.item.create", "item": {**MESSAGE, "content": [{"type": "input_image"}]}},
            "invalid_value",
            "item.content[0].type",
        ),
        (
            {"type": "conversation.item.create", "item": {"type": "function_call_output", "call_id": "c"}},
            "missing_required_parameter",
            "item.output",
        ),
        (
            {"type": "conversation.item.create", "item": {"type": "function_call_output", "call_id": "", "output": ""}},
            "invalid_value",
            "item.call_id",
        ),
        (
            {
                "type": "conversation.item.create",
                "item": {"type": "function_call", "call_id": "c", "name": "f", "arguments": "four"},
            },
            "invalid_value",
            "item.arguments",
        ),
        (
            {"type": "response.create", "response": {"tools": [{"type": "function"}]}},
            "missing_required_parameter",
            "response.tools[0].name",
        ),
        (
            {
                "type": "response.create",
                "response": {"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]},
            },
            "invalid_value",
            "response.input[0].type",
        ),
        ({"type": "conversation.item.create", "item": {"type": "mcp_call"}}, "invalid_value", "item.type"),
        ({"type": "conversation.item.retrieve"}, "missing_required_parameter", "item_id"),
        ({"type": "conversation.item.truncate", "item_id": "i"}, "missing_required_parameter", "audio_end_ms"),
        ({"type": "conversation.item.truncate", "item_id": "i", "audio_end_ms": -1}, "invalid_value", "audio_end_ms"),
        ({"type": "conversation.item.truncate", "item_id": "i", "audio_end_ms": "1"}, "invalid_type", "audio_end_ms"),
        (
            {"type": "conversation.item.truncate", "item_id": "i", "audio_end_ms": 1, "content_index": 1},
            "invalid_value",
            "content_index",
        ),
        ({"type": "response.create", "response": 5}, "invalid_type", "response"),
        ({"type": "response.create", "response": {"conversation": "other"}}, "invalid_value", "response.conversation"),
        ({"type": "response.create", "response": {"metadata": {"a": 1}}}, "invalid_type", "response.metadata.a"),
        (
            {"type": "response.create", "response": {"metadata": {str(n): "" for n in range(17)}}},
            "invalid_value",
            "response.metadata",
        ),
        (
            {"type": "response.create", "response": {"input": [{"type": "x"}]}},
            "invalid_value",
            "response.input[0].type",
        ),
        ({"type": "voiceagent.playout", "item_id": "i"}, "missing_required_parameter", "played_ms"),
        ({"type": "voiceagent.playout", "item_id": "i", "played_ms": True}, "invalid_type", "played_ms"),
    ],
)
def test_each_mistake_is_named_with_its_code_and_place(message: Event, code: str, param: str) -> None:
    error = refusal(make_codec(), json.dumps({**message, "event_id": "evt_1"}))
    assert (error.code, error.param, error.event_id, error.type) == (code, param, "evt_1", "invalid_request_error")
    (event,) = make_codec().refused(error)
    check_event(event)


@pytest.mark.parametrize(
    ("session", "param"),
    [
        ({"instructions": 5}, "instructions"),
        ({"output_modalities": []}, "output_modalities"),
        ({"output_modalities": ["video"]}, "output_modalities"),
        ({"output_modalities": "audio"}, "output_modalities"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 4097}, "max_output_tokens"),
        ({"max_output_tokens": 1.5}, "max_output_tokens"),
        ({"max_output_tokens": "lots"}, "max_output_tokens"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"name": "f"}]}, "tools[0].type"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"truncation": 5}, "truncation"),
        ({"audio": []}, "audio"),
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}}, "audio.input.format.rate"),
        ({"audio": {"input": {"format": {}}}}, "audio.input.format.type"),
        ({"audio": {"input": {"format": "pcm16"}}}, "audio.input.format"),
        ({"audio": {"input": {"noise_reduction": {"type": "studio"}}}}, "audio.input.noise_reduction.type"),
        ({"audio": {"input": {"transcription": {"model": 5}}}}, "audio.input.transcription.model"),
        ({"audio": {"input": {"turn_detection": {}}}}, "audio.input.turn_detection.type"),
        (
            {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}},
            "audio.input.turn_detection.threshold",
        ),
        (
            {"audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 20}}}},
            "audio.input.turn_detection.silence_duration_ms",
        ),
        (
            {"audio": {"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": "soon"}}}},
            "audio.input.turn_detection.idle_timeout_ms",
        ),
        (
            {"audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "wild"}}}},
            "audio.input.turn_detection.eagerness",
        ),
        ({"audio": {"output": {"voice": 5}}}, "audio.output.voice"),
        ({"audio": {"output": {"speed": 9}}}, "audio.output.speed"),
        ({"voiceagent": {"target_ms": 1}}, "voiceagent.target_ms"),
        ({"voiceagent": {"when_late": "never"}}, "voiceagent.when_late"),
        ({"voiceagent": {"events": "yes"}}, "voiceagent.events"),
        ({"voiceagent": {"barge_in": "never"}}, "voiceagent.barge_in"),
        ({"voiceagent": {"backchannels": ["mhm", "!"]}}, "voiceagent.backchannels"),
        ({"voiceagent": {"backchannels": "mhm"}}, "voiceagent.backchannels"),
        ({"voiceagent": {"fragments": ["!"]}}, "voiceagent.fragments"),
        ({"voiceagent": {"echo_gate": "no"}}, "voiceagent.echo_gate"),
        ({"voiceagent": {"stopping_words": [""]}}, "voiceagent.stopping_words"),
        ({"voiceagent": {"hums": 1}}, "voiceagent.hums"),
        ({"voiceagent": {"mutes": "no"}}, "voiceagent.mutes"),
        ({"voiceagent": {"silence": 5}}, "voiceagent.silence"),
        ({"voiceagent": {"silence": {"prompt_after_ms": 10}}}, "voiceagent.silence.prompt_after_ms"),
        ({"voiceagent": {"silence": {"prompts": [" "]}}}, "voiceagent.silence.prompts"),
        ({"voiceagent": {"silence": {"prompts": "Hello?"}}}, "voiceagent.silence.prompts"),
        ({"voiceagent": {"silence": {"prompts": ["x" * 1001]}}}, "voiceagent.silence.prompts"),
        ({"voiceagent": {"silence": {"goodbye": "x" * 1001}}}, "voiceagent.silence.goodbye"),
        ({"voiceagent": {"silence": {"goodbye": 1}}}, "voiceagent.silence.goodbye"),
    ],
)
def test_each_bad_session_field_is_named(session: Event, param: str) -> None:
    codec = make_codec()
    before = codec.session
    error = refusal(codec, json.dumps({"type": "session.update", "session": {"type": "realtime", **session}}))
    assert error.param == f"session.{param}"
    assert codec.session is before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "5",
        "{'a':1}",
        '{"type":NaN}',
        '{"a":1e999}',
        "[" * 100_000,
        '{"a":' * 50_000,
        "9" * 5000,
    ],
)
def test_what_is_not_a_json_object_is_said_to_be_so(text: str) -> None:
    assert refusal(make_codec(), text).code == "invalid_json"


def test_an_append_larger_than_the_protocol_allows_is_refused() -> None:
    audio = base64.b64encode(bytes(15 * 1024 * 1024 + 3)).decode()
    assert refusal(make_codec(), json.dumps({"type": "input_audio_buffer.append", "audio": audio})).param == "audio"


def test_a_lone_surrogate_becomes_text_that_can_be_encoded() -> None:
    content = [{"type": "input_text", "text": "\ud83d and \U0001f600"}]
    command = receive(
        make_codec(), "conversation.item.create", item={"type": "message", "role": "user", "content": content}
    )
    assert isinstance(command, CreateItem) and isinstance(command.item, Item)
    assert command.item.text == "\ufffd and \U0001f600"

"""The codec from the client: what client messages become, and what is said about wrong ones."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.voiceagent.realtime import Event, check_event
from tests.voiceagent.test_wire import make_codec, send
from voiceagent.barge_in import BACKCHANNELS, FRAGMENTS, STOPPING_WORDS
from voiceagent.errors import ProtocolError
from voiceagent.events import CallItem, Item, ItemAdded, OutputItem, ResponseAudio, ResponseCalled, ResponseStarted
from voiceagent.session import ResponseOptions, SessionSettings, TurnDetection
from voiceagent.silences import GOODBYE
from voiceagent.tools import ToolCall, ToolChoice, ToolSpec
from voiceagent.wire import (
    AppendAudio,
    CancelResponse,
    ClearAudio,
    Command,
    CommitAudio,
    CreateItem,
    CreateResponse,
    DeleteItem,
    Greet,
    ItemReference,
    Playout,
    RealtimeCodec,
    RetrieveItem,
    SessionUpdate,
    TruncateItem,
)


def receive(codec: RealtimeCodec, kind: str, **fields: Any) -> Command:
    return codec.receive(json.dumps({"type": kind, **fields}))


def update(codec: RealtimeCodec, **session: Any) -> Event:
    """The session as `session.updated` shows it after an update."""
    command = receive(codec, "session.update", session={"type": "realtime", **session})
    assert isinstance(command, SessionUpdate)
    (updated,) = codec.apply(command)
    check_event(updated)
    assert updated["type"] == "session.updated"
    shown: Any = updated["session"]
    return shown


def refusal(codec: RealtimeCodec, text: str) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        codec.receive(text)
    return caught.value


# --- each command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "command"),
    [
        ({"type": "input_audio_buffer.append", "audio": "AAEC"}, AppendAudio(audio=b"\0\1\2")),
        ({"type": "input_audio_buffer.append", "audio": ""}, AppendAudio(audio=b"")),
        ({"type": "input_audio_buffer.commit"}, CommitAudio()),
        ({"type": "input_audio_buffer.clear"}, ClearAudio()),
        ({"type": "conversation.item.retrieve", "item_id": "i"}, RetrieveItem(item_id="i")),
        ({"type": "conversation.item.delete", "item_id": "i"}, DeleteItem(item_id="i")),
        (
            {"type": "conversation.item.truncate", "item_id": "i", "content_index": 0, "audio_end_ms": 1500},
            TruncateItem(item_id="i", audio_end_s=1.5),
        ),
        (
            {"type": "conversation.item.truncate", "item_id": "i", "audio_end_ms": 0},
            TruncateItem(item_id="i", audio_end_s=0.0),
        ),
        ({"type": "response.create"}, CreateResponse(options=ResponseOptions())),
        ({"type": "response.create", "response": None}, CreateResponse(options=ResponseOptions())),
        (
            {"type": "response.create", "response": {"instructions": None, "tools": None, "metadata": None}},
            CreateResponse(options=ResponseOptions()),
        ),
        ({"type": "response.cancel"}, CancelResponse()),
        ({"type": "response.cancel", "response_id": "r"}, CancelResponse(response_id="r")),
        ({"type": "voiceagent.playout", "item_id": "i", "played_ms": 320.5}, Playout(item_id="i", played_s=0.3205)),
        ({"type": "voiceagent.greet"}, Greet()),
    ],
)
def test_each_client_event_becomes_its_command(message: Event, command: Command) -> None:
    assert make_codec().receive(json.dumps(message)) == command
    with_id = make_codec().receive(json.dumps({**message, "event_id": "evt_1", "unknown": {"a": 1}}))
    assert with_id == replace(command, event_id="evt_1"), "the id is kept and unknown fields are ignored"


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            Item("i", "user", "hi"),
        ),
        (
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            Item("i", "user", "a\nb"),
        ),
        (
            {"role": "user", "content": [{"type": "input_audio", "audio": "AAAA", "transcript": "said"}]},
            Item("i", "user", "said", spoken=True),
        ),
        ({"role": "system", "content": [{"type": "input_text", "text": "s"}]}, Item("i", "system", "s")),
        ({"role": "developer", "content": [{"type": "input_text", "text": "s"}]}, Item("i", "system", "s")),
        ({"role": "assistant", "content": [{"type": "output_text", "text": "o"}]}, Item("i", "agent", "o")),
        ({"role": "assistant", "content": [{"type": "input_text", "text": "o"}]}, Item("i", "agent", "o")),
        ({"role": "assistant", "content": [{"type": "text", "text": "o"}]}, Item("i", "agent", "o")),
        (
            {"role": "assistant", "status": "incomplete", "content": [{"type": "output_audio", "transcript": "o"}]},
            Item("i", "agent", "o", "incomplete", spoken=True),
        ),
    ],
)
def test_items_are_read_as_clients_write_them(item: Event, expected: Item) -> None:
    command = receive(make_codec(), "conversation.item.create", item={"type": "message", "id": "i", **item})
    assert command == CreateItem(item=expected)


def test_calls_and_their_outputs_are_read_as_clients_write_them() -> None:
    codec = make_codec()
    call = {"type": "function_call", "id": "i", "call_id": "c", "name": "f", "arguments": '{"n": 4, "s": "\\ud800"}'}
    assert receive(codec, "conversation.item.create", item=call) == CreateItem(
        item=CallItem("i", "c", ToolCall("f", {"n": 4, "s": "\ufffd"}))
    )
    output = {"type": "function_call_output", "id": "o", "call_id": "c", "output": "done"}
    assert receive(codec, "conversation.item.create", item=output) == CreateItem(item=OutputItem("o", "c", "done"))


def test_functions_of_a_session_are_the_conversations_and_other_tools_are_only_echoed() -> None:
    codec = make_codec()
    function = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}
    shown = update(codec, tools=[function, {"type": "mcp", "server_label": "x"}], tool_choice="required")
    assert [tool["type"] for tool in shown["tools"]] == ["function", "mcp"] and shown["tool_choice"] == "required"
    assert codec.session.settings.tools == (ToolSpec("f", "d", {"type": "object"}),)
    assert codec.session.settings.tool_choice == ToolChoice("required")
    update(codec, tool_choice={"type": "function", "name": "f"})
    assert codec.session.settings.tool_choice == ToolChoice("required", "f")
    update(codec, tool_choice={"type": "mcp", "server_label": "x"}, tools=None)
    assert codec.session.settings.tool_choice == ToolChoice() and codec.session.settings.tools == ()
    command = receive(codec, "response.create", response={"tools": [function], "tool_choice": "none"})
    assert isinstance(command, CreateResponse)
    assert command.options.tools is not None and command.options.tools[0].name == "f"
    assert command.options.tool_choice == ToolChoice("none")


def test_two_functions_of_one_name_and_too_many_of_them_are_refused() -> None:
    function = {"type": "function", "name": "f"}
    many = [{"type": "function", "name": f"f{n}"} for n in range(129)]
    for tools, param in (([function, function], "session.tools[1].name"), (many, "session.tools")):
        text = json.dumps({"type": "session.update", "session": {"type": "realtime", "tools": tools}})
        assert refusal(make_codec(), text).param == param


@pytest.mark.parametrize("depth", [200, 600, 900])
def test_what_nests_too_deeply_is_refused_and_ends_nothing(depth: int) -> None:
    nested = '{"a":' * depth + "1" + "}" * depth
    tool = f'{{"type": "function", "name": "f", "parameters": {nested}}}'
    text = f'{{"type": "session.update", "session": {{"type": "realtime", "tools": [{tool}]}}}}'
    assert "deep" in str(refusal(make_codec(), text))
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": nested}
    error = refusal(make_codec(), json.dumps({"type": "conversation.item.create", "item": call}))
    assert error.param == "item.arguments"


def test_an_item_without_an_id_gets_a_fresh_one_and_a_chosen_id_stays() -> None:
    codec = make_codec()
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    first = receive(codec, "conversation.item.create", item=item, previous_item_id="root")
    second = receive(codec, "conversation.item.create", item=item)
    assert isinstance(first, CreateItem) and isinstance(second, CreateItem)
    assert first.item.id != second.item.id and first.previous_item_id == "root" and second.previous_item_id is None
    chosen = receive(codec, "conversation.item.create", item={**item, "id": "0123456789abcdef0123456789abcdef"})
    assert isinstance(chosen, CreateItem) and chosen.item.id == "0123456789abcdef0123456789abcdef"


def test_a_response_overrides_what_it_names() -> None:
    command = receive(
        make_codec(),
        "response.create",
        response={
            "conversation": "none",
            "instructions": "Be brief.",
            "output_modalities": ["text"],
            "max_output_tokens": "inf",
            "metadata": {"client_event_id": "evt_c9"},
            "voiceagent": {"target_ms": 250},
            "input": [
                {"type": "item_reference", "id": "item_1"},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            ],
        },
    )
    assert isinstance(command, CreateResponse)
    assert command.options == ResponseOptions(
        instructions="Be brief.",
        modality="text",
        metadata={"client_event_id": "evt_c9"},
        target_s=0.25,
        in_conversation=False,
    )
    assert command.context == (ItemReference("item_1"), ("user", "hi"))
    empty = receive(make_codec(), "response.create", response={"input": []})
    assert isinstance(empty, CreateResponse) and empty.context == (), "an empty input is not a missing one"


# --- the session ------------------------------------------------------------------------------------------------------


def test_only_the_fields_present_change() -> None:
    codec = make_codec(defaults=SessionSettings(instructions="Original."))
    shown = update(codec, audio={"output": {"voice": "cedar"}})
    assert shown["instructions"] == "Original." and shown["audio"]["output"]["voice"] == "cedar"
    shown = update(codec, audio={"output": {"format": {"type": "audio/pcma"}}})
    assert shown["audio"]["output"] == {"format": {"type": "audio/pcma"}, "voice": "cedar", "speed": 1.0}
    assert shown["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24000}
    shown = update(codec, instructions="")
    assert shown["instructions"] == "" and codec.session.settings.instructions == ""


def test_turn_detection_is_replaced_whole() -> None:
    defaults = SessionSettings(turn_detection=TurnDetection(threshold=0.6, silence_s=0.4))
    codec = make_codec(defaults=defaults)
    given = {"type": "server_vad", "threshold": 0.7, "silence_duration_ms": 900, "interrupt_response": False}
    shown = update(codec, audio={"input": {"turn_detection": given}})["audio"]["input"]["turn_detection"]
    assert shown == {
        "type": "server_vad",
        "threshold": 0.7,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 900,
        "idle_timeout_ms": None,
        "create_response": True,
        "interrupt_response": False,
    }
    shown = update(codec, audio={"input": {"turn_detection": {"type": "semantic_vad", "create_response": False}}})
    assert shown["audio"]["input"]["turn_detection"] == {
        "type": "semantic_vad",
        "eagerness": "auto",
        "create_response": False,
        "interrupt_response": True,
    }
    detection = codec.session.settings.turn_detection
    assert detection is not None and (detection.threshold, detection.silence_s) == (0.6, 0.4), "the agent's own again"
    shown = update(codec, audio={"input": {"turn_detection": {"type": "server_vad"}}})
    assert shown["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 400


@pytest.mark.parametrize("idle_ms", [None, 5000, 30_000])
def test_an_idle_timeout_is_accepted_and_answered_with_none(idle_ms: int | None) -> None:
    given = {"type": "server_vad", "idle_timeout_ms": idle_ms}
    shown = update(make_codec(), audio={"input": {"turn_detection": given}})
    assert shown["audio"]["input"]["turn_detection"]["idle_timeout_ms"] is None


def test_eagerness_orders_the_silence_that_ends_a_turn() -> None:
    silences = []
    for eagerness in ("high", "medium", "low"):
        codec = make_codec()
        update(codec, audio={"input": {"turn_detection": {"type": "semantic_vad", "eagerness": eagerness}}})
        detection = codec.session.settings.turn_detection
        assert detection is not None
        silences.append(detection.silence_s)
    assert silences == sorted(set(silences)) and silences[0] >= 0.2 and silences[-1] <= 2.0
    longest = make_codec(defaults=SessionSettings(turn_detection=TurnDetection(silence_s=9.0)))
    update(longest, audio={"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}}})


def test_semantic_vad_weighs_the_words_and_server_vad_does_not() -> None:
    costs = []
    for eagerness in ("high", "medium", "low"):
        codec = make_codec()
        update(codec, audio={"input": {"turn_detection": {"type": "semantic_vad", "eagerness": eagerness}}})
        detection = codec.session.settings.turn_detection
        assert detection is not None and detection.weighs_words
        costs.append(detection.cut_off_cost_s)
    assert costs == sorted(set(costs)) and costs[1] == TurnDetection().cut_off_cost_s
    codec = make_codec(defaults=SessionSettings(turn_detection=TurnDetection(weighs_words=True)))
    shown = update(codec, instructions="Be brief.")
    assert shown["audio"]["input"]["turn_detection"] == {
        "type": "semantic_vad",
        "eagerness": "auto",
        "create_response": True,
        "interrupt_response": True,
    }
    shown = update(codec, audio={"input": {"turn_detection": {"type": "server_vad"}}})
    assert shown["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    detection = codec.session.settings.turn_detection
    assert detection is not None and not detection.weighs_words


def test_null_turns_things_off() -> None:
    codec = make_codec()
    update(
        codec, audio={"input": {"noise_reduction": {"type": "near_field"}}}, tools=[{"type": "function", "name": "f"}]
    )
    shown = update(
        codec,
        audio={"input": {"turn_detection": None, "transcription": None, "noise_reduction": None}},
        tools=[],
        tracing=None,
        prompt=None,
    )
    found = shown["audio"]["input"]
    assert found["turn_detection"] is found["transcription"] is found["noise_reduction"] is None
    assert shown["tools"] == [] and codec.session.settings.turn_detection is None
    assert not codec.session.settings.transcribe


def test_what_agents_realtime_sends_by_default_is_accepted_and_reflected() -> None:
    tool = {
        "type": "function",
        "name": "lookup",
        "description": "d",
        "parameters": {"type": "object", "properties": {}},
    }
    shown = update(
        make_codec(),
        model="gpt-realtime",
        instructions="You are concise.",
        output_modalities=["audio"],
        audio={
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "noise_reduction": {"type": "near_field"},
                "transcription": {"model": "gpt-4o-mini-transcribe"},
                "turn_detection": {"type": "semantic_vad", "create_response": True, "interrupt_response": True},
            },
            "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "ash", "speed": 1},
        },
        tools=[tool],
        tool_choice="auto",
        parallel_tool_calls=True,
        tracing="auto",
    )
    assert shown["model"] == "local", "the client library fills in its own default when the URL named another model"
    assert shown["tools"] == [tool] and shown["tracing"] == "auto"
    assert shown["audio"]["output"]["voice"] == "ash"
    assert shown["audio"]["input"]["transcription"] == {"model": "gpt-4o-mini-transcribe"}
    assert shown["audio"]["input"]["noise_reduction"] == {"type": "near_field"}


@pytest.mark.parametrize("modalities", [["audio", "text"], ["text", "audio"], ["audio"]])
def test_both_modalities_are_read_as_audio(modalities: list[str]) -> None:
    assert update(make_codec(), output_modalities=modalities)["output_modalities"] == ["audio"]


def test_extensions_can_be_asked_for_in_the_session() -> None:
    codec = make_codec()
    assert "voiceagent" not in update(codec, instructions="x")
    shown = update(codec, voiceagent={"events": True, "target_ms": 350, "when_late": "answer_later"})
    assert shown["voiceagent"] == {
        "events": True,
        "target_ms": 350.0,
        "when_late": "answer_later",
        "barge_in": "two_stage",
        "backchannels": list(BACKCHANNELS),
        "fragments": list(FRAGMENTS),
        "stopping_words": list(STOPPING_WORDS),
        "hums": True,
        "echo_gate": True,
        "silence": None,
        "repair": "off",
        "speculate": True,
    }
    assert codec.session.settings.target_s == 0.35
    assert "voiceagent" not in update(codec, voiceagent={"events": False})


def test_how_the_agent_is_interrupted_can_be_asked_for_and_outlives_other_turn_detection() -> None:
    codec = make_codec()
    update(
        codec,
        voiceagent={
            "events": True,
            "barge_in": "immediate",
            "backchannels": ["genau"],
            "fragments": ["der"],
            "stopping_words": ["halt"],
            "hums": False,
            "echo_gate": False,
        },
    )
    shown = update(codec, audio={"input": {"turn_detection": {"type": "server_vad", "threshold": 0.7}}})
    assert (shown["voiceagent"]["barge_in"], shown["voiceagent"]["backchannels"]) == ("immediate", ["genau"])
    assert (shown["voiceagent"]["fragments"], shown["voiceagent"]["echo_gate"]) == (["der"], False)
    assert (shown["voiceagent"]["stopping_words"], shown["voiceagent"]["hums"]) == (["halt"], False)
    detection = codec.session.settings.turn_detection
    assert detection is not None and not detection.interrupts_in_stages and detection.threshold == 0.7
    shown = update(codec, audio={"input": {"turn_detection": None}}, voiceagent={"barge_in": "two_stage"})
    assert "barge_in" not in shown["voiceagent"], "a client that ends its turns itself is not interrupted for"


def test_early_drafts_can_be_switched_off_and_on_only_where_the_server_has_them() -> None:
    codec = make_codec(extensions=True)
    assert update(codec, voiceagent={"speculate": False})["voiceagent"]["speculate"] is False
    assert not codec.session.settings.speculate
    assert update(codec, voiceagent={"speculate": None, "target_ms": 400})["voiceagent"]["speculate"] is False
    assert update(codec, voiceagent={"speculate": True})["voiceagent"]["speculate"] is True
    without = make_codec(extensions=True, defaults=SessionSettings(speculate=False))
    assert update(without, voiceagent={"speculate": False})["voiceagent"]["speculate"] is False
    wanted = {"type": "session.update", "session": {"type": "realtime", "voiceagent": {"speculate": True}}}
    error = refusal(without, json.dumps(wanted))
    assert error.param == "session.voiceagent.speculate" and "budget.speculate" in error.message


def test_silences_are_changed_key_by_key_and_null_ends_them() -> None:
    codec = make_codec()

    def shown(silence: object) -> object:
        extension: Any = update(codec, voiceagent={"events": True, "silence": silence})["voiceagent"]
        return extension["silence"]

    first = shown({"prompt_after_ms": 5000, "prompts": ["Hello?"]})
    assert first == {"prompt_after_ms": 5000.0, "prompts": ["Hello?"], "goodbye": GOODBYE}
    assert shown({"goodbye": ""}) == {"prompt_after_ms": 5000.0, "prompts": ["Hello?"], "goodbye": ""}
    assert codec.session.settings.silence.prompt_after_s == 5.0
    assert shown(None) is None
    assert shown({"prompt_after_ms": None}) is None
    assert shown({"prompt_after_ms": 9000}) == {"prompt_after_ms": 9000.0, "prompts": ["Hello?"], "goodbye": ""}


def test_a_failed_update_changes_nothing_and_only_apply_does() -> None:
    codec = make_codec()
    before = codec.session
    bad = {"instructions": "changed", "audio": {"input": {"format": {"type": "audio/opus"}}}}
    text = json.dumps({"type": "session.update", "event_id": "evt_3", "session": {"type": "realtime", **bad}})
    error = refusal(codec, text)
    assert (error.code, error.param, error.event_id) == ("invalid_value", "session.audio.input.format.type", "evt_3")
    receive(codec, "session.update", session={"type": "realtime", "instructions": "not applied yet"})
    assert codec.session is before


def test_the_voice_is_fixed_once_it_was_heard() -> None:
    import numpy as np

    codec = make_codec()
    update(codec, audio={"output": {"voice": "ash"}})
    audio = ResponseAudio("r", "item_a", np.zeros(2400, np.float32), 24_000)
    send(codec, ResponseStarted("r", "item_a", "audio"))
    codec.send(audio, 0.0)
    update(codec, audio={"output": {"voice": "ash"}})
    text = json.dumps(
        {"type": "session.update", "session": {"type": "realtime", "audio": {"output": {"voice": "sage"}}}}
    )
    assert refusal(codec, text).param == "session.audio.output.voice"


# --- what is wrong with a message -------------------------------------------------------------------------------------

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


# --- fuzz -------------------------------------------------------------------------------------------------------------

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

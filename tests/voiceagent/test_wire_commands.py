"""The codec from the client: what client messages become."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.voiceagent.realtime import Event
from tests.voiceagent.test_wire import make_codec, send
from tests.voiceagent.wiring import receive, refusal, update
from voiceagent.barge_in import BACKCHANNELS, FRAGMENTS, STOPPING_WORDS
from voiceagent.config_conversation import TurnConfig
from voiceagent.errors import ConfigError
from voiceagent.events import CallItem, Item, OutputItem, ResponseAudio, ResponseStarted
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
    RetrieveItem,
    TruncateItem,
)
from voiceagent.wire.fields import MAX_TEXT_CHARS
from voiceagent.wire.session import EXTENSION_KEYS

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


def test_a_message_that_would_hold_up_all_callers_is_refused() -> None:
    def create(count: int) -> str:
        parts = [{"type": "input_text", "text": "x" * count}, {"type": "input_text", "text": "y"}]
        item = {"type": "message", "id": "i", "role": "user", "content": parts}
        return json.dumps({"type": "conversation.item.create", "item": item})

    error = refusal(make_codec(), create(MAX_TEXT_CHARS - 1))
    assert error.param == "item.content" and f"at most {MAX_TEXT_CHARS} characters" in error.message
    command = make_codec().receive(create(MAX_TEXT_CHARS - 2))
    assert isinstance(command, CreateItem) and isinstance(command.item, Item)
    assert len(command.item.text or "") == MAX_TEXT_CHARS


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (
            lambda text: {"type": "session.update", "session": {"type": "realtime", "instructions": text}},
            "session.instructions",
        ),
        (lambda text: {"type": "response.create", "response": {"instructions": text}}, "response.instructions"),
        (lambda text: output_of("output", text), "item.output"),
        (lambda text: output_of("arguments", text), "item.arguments"),
    ],
    ids=["session", "response", "output", "arguments"],
)
def test_whatever_else_the_model_reads_is_bounded_too(message: Callable[[str], Event], param: str) -> None:
    text = '{"a": 1}'
    make_codec().receive(json.dumps(message(text + " " * (MAX_TEXT_CHARS - len(text)))))
    error = refusal(make_codec(), json.dumps(message(text + " " * (MAX_TEXT_CHARS + 1 - len(text)))))
    assert error.param == param and f"at most {MAX_TEXT_CHARS} characters" in error.message


def output_of(key: str, text: str) -> Event:
    kind = {"output": "function_call_output", "arguments": "function_call"}[key]
    item = {"type": kind, "id": "i", "call_id": "c", "name": "f", key: text}
    return {"type": "conversation.item.create", "item": item}


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
        "mutes": True,
        "echo_gate": True,
        "sound": True,
        "silence": None,
        "repair": "off",
        "speculate": True,
    }
    assert codec.session.settings.target_s == 0.35
    assert "voiceagent" not in update(codec, voiceagent={"events": False})


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"type": "session.update", "session": {"type": "realtime", "voiceagent": {"taget_ms": 350}}}, "taget_ms"),
        (
            {"type": "session.update", "session": {"type": "realtime", "voiceagent": {"silence": {"prompt": "x"}}}},
            "silence.prompt",
        ),
        ({"type": "response.create", "response": {"voiceagent": {"speculate": False}}}, "speculate"),
    ],
)
def test_a_key_that_our_own_table_does_not_have_is_refused_with_those_it_has(
    message: dict[str, Any], param: str
) -> None:
    codec = make_codec(extensions=True)
    error = refusal(codec, json.dumps(message))
    assert error.code == "unknown_parameter" and error.param is not None and error.param.endswith(f"voiceagent.{param}")
    known = "prompt_after_ms, prompts, goodbye" if "." in param else "target_ms, when_late"
    assert known in error.message
    assert codec.session.settings.target_s == SessionSettings().target_s, "nothing else of the message is done"


def test_what_a_session_shows_of_our_own_table_may_be_sent_back() -> None:
    codec = make_codec(extensions=True)
    shown = update(codec, voiceagent={"silence": {"prompt_after_ms": 5000}, "repair": "off"})
    assert set(shown["voiceagent"]) == set(EXTENSION_KEYS)
    assert update(codec, voiceagent=shown["voiceagent"])["voiceagent"] == shown["voiceagent"]


def test_a_client_can_be_held_as_long_as_it_hears_our_own_events() -> None:
    assert make_codec(extensions=True).session.settings.can_be_held
    codec = make_codec()
    assert not codec.session.settings.can_be_held
    for wanted in (True, False):
        update(codec, voiceagent={"events": wanted})
        assert codec.session.settings.can_be_held == wanted
    update(codec, voiceagent={"events": True})
    update(codec, instructions="x", voiceagent={"target_ms": 350})
    assert codec.session.settings.can_be_held


@pytest.mark.parametrize("key", ["backchannels", "fragments", "stopping_words"])
def test_words_over_the_agent_have_a_letter_in_them_wherever_they_are_given(key: str) -> None:
    wanted = {"type": "session.update", "session": {"type": "realtime", "voiceagent": {key: ["mhm", "123"]}}}
    error = refusal(make_codec(), json.dumps(wanted))
    assert error.param == f"session.voiceagent.{key}" and "a letter in it" in error.message
    with pytest.raises(ConfigError, match="a letter in it"):
        replace(TurnConfig(), **{key: ("123",)})  # type: ignore[arg-type]


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
            "mutes": False,
            "echo_gate": False,
            "sound": False,
        },
    )
    shown = update(codec, audio={"input": {"turn_detection": {"type": "server_vad", "threshold": 0.7}}})
    assert (shown["voiceagent"]["barge_in"], shown["voiceagent"]["backchannels"]) == ("immediate", ["genau"])
    assert (shown["voiceagent"]["fragments"], shown["voiceagent"]["echo_gate"]) == (["der"], False)
    assert (shown["voiceagent"]["stopping_words"], shown["voiceagent"]["hums"]) == (["halt"], False)
    assert (shown["voiceagent"]["mutes"], shown["voiceagent"]["sound"]) == (False, False)
    detection = codec.session.settings.turn_detection
    assert (
        detection is not None
        and not detection.weighs_sound
        and not detection.interrupts_in_stages
        and detection.threshold == 0.7
    )
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

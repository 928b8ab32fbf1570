"""Tool calls that are decided before a word is written, at the HTTP door."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import httpx
import pytest

from dllm import loader
from dllm.calls import Call, Tool
from dllm.codec import Message
from dllm.constraints import Lexicon
from dllm.deciding import Decider, Decision, decider_of
from dllm.drafts import DraftSpec
from dllm.engine import Engine
from dllm.grammar import compile_choices
from dllm.habits import family_options
from dllm.loader import Checkpoint
from dllm.runner import EngineRunner
from dllm.server import ServerSettings, create_app
from dllm.server.decided import MOST_ARGUMENTS, DecidedCall, as_spoken, can_decide, is_answered
from dllm.server.plans import Room
from tests.conftest import run_async
from tests.dllm import tiny
from tests.dllm.server.serving import events_of, text_of

# --- what can be decided ----------------------------------------------------------------------------------------------


def known(schema: dict[str, Any], **parameters: Any) -> bool:
    return can_decide([Tool("any", "", {"type": "object", "properties": {"key": schema}, **parameters})])


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string", "description": "which one", "title": "Key", "default": "none"},
        {"type": "integer", "minimum": 1, "exclusiveMaximum": 9},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "string", "minLength": 1, "maxLength": 20},
        {"enum": ["a", 2, 3.5]},
    ],
)
def test_flat_tools_whose_schemas_are_seen_to_are_decided(schema: dict[str, Any]) -> None:
    assert known(schema, required=["key"], additionalProperties=False)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array"},
        {"type": ["string", "null"]},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
        {"type": "string", "pattern": "[0-9]+"},
        {"type": "string", "format": "date"},
        {"$ref": "#/$defs/key"},
        {"enum": ["a", None]},
        {"enum": [["a"]]},
    ],
)
def test_schemas_that_ask_for_more_are_not(schema: dict[str, Any]) -> None:
    assert not known(schema)


def test_nor_are_conditions_between_arguments_or_very_many_of_them() -> None:
    assert not known({}, dependentRequired={"key": ["other"]})
    many = [Tool(f"tool_{at}", "", {"properties": {f"key_{at}": {}}}) for at in range(MOST_ARGUMENTS)]
    assert can_decide(many) and not can_decide([*many, Tool("one_more", "", {"properties": {"key": {}}})])


# --- the chat as it would be spoken -----------------------------------------------------------------------------------


def call_of(**arguments: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "renew", "arguments": json.dumps(arguments)}}


def test_a_chat_is_read_as_if_it_had_been_spoken() -> None:
    called = call_of(card=3321, count=7, day="Friday", gift=True, note=None)
    told = as_spoken(
        [
            Message("system", "Be brief, Anna."),
            Message("user", "Card three three two one, on Friday!"),
            Message("assistant", "Sure, OK.", tool_calls=(called,)),
            Message("tool", '{"a": 1}', tool_call_id="c"),
        ]
    )
    assert [message.text for message in told] == [
        "Be brief, Anna.",
        "card three three two one on friday",
        "Sure, OK.",
        '{"a": 1}',
    ]
    words = json.loads(told[2].tool_calls[0]["function"]["arguments"])
    assert words == {"card": "three three two one", "count": "seven", "day": "friday", "gift": "yes", "note": ""}


@pytest.mark.parametrize(
    "function", [None, {}, {"name": "renew", "arguments": "["}, {"name": "renew", "arguments": "[]"}]
)
def test_a_call_that_is_none_is_left_for_the_codec_to_refuse(function: Any) -> None:
    body = {"id": "c", "function": function}
    [told] = as_spoken([Message("assistant", "", tool_calls=(body,))])
    assert told.tool_calls == (body,)


def test_a_chat_is_answered_when_a_tool_spoke_after_the_user() -> None:
    user, tool, words = Message("user", "a"), Message("tool", "b"), Message("assistant", "c")
    assert is_answered([user, tool]) and is_answered([user, tool, words]) and is_answered([tool])
    assert not is_answered([user, tool, words, user]) and not is_answered([user]) and not is_answered([])


# --- a model that knows nothing: what is asked of it, and what becomes of what it says --------------------------------

COUNT = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
NAMED = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def function(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "does it", "parameters": parameters}}


ORDER = function("order", COUNT)
LEAVE = function("leave", {"type": "object", "properties": {}})


@asynccontextmanager
async def random_model(settings: ServerSettings | None = None) -> AsyncIterator[httpx.AsyncClient]:
    network = tiny.model()
    async with EngineRunner(Engine(network, tiny.codec().token_table)) as runner:
        transport = httpx.ASGITransport(create_app(runner, tiny.codec(), network.spec, settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            yield client


class Deciding:
    """Stands in for what the model decides, and notes what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, decision: Decision) -> None:
        self.asked: list[tuple[list[str], bool]] = []

        def decide(_: Decider, prompt: Sequence[int], tools: Sequence[Tool], *, must_call: bool = False) -> Decision:
            self.asked.append(([tool.name for tool in tools], must_call))
            return decision if tools else NO_CALL

        monkeypatch.setattr(Decider, "decide", decide)


NO_CALL = Decision(None, -1.0)
FOUR = Decision(Call("order", {"count": "four"}), 9.0)


def ask(*requests: dict[str, Any], settings: ServerSettings | None = None) -> list[httpx.Response]:
    async def main() -> list[httpx.Response]:
        async with random_model(settings) as client:
            chat = {
                "messages": [{"role": "user", "content": "four teas for Anna Lee"}],
                "seed": 1,
                "tools": [ORDER, LEAVE],
            }
            return [await client.post("/v1/chat/completions", json=chat | fields) for fields in requests]

    return run_async(main())


def choices_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["choices"]
    return found


CALLED = {"name": "order", "arguments": '{"count": 4}'}


@pytest.mark.parametrize(
    ("choice", "names", "must_call"),
    [
        ("auto", ["order", "leave"], False),
        ("required", ["order", "leave"], True),
        ({"type": "function", "function": {"name": "order"}}, ["order"], True),
    ],
)
def test_what_is_decided_is_the_whole_reply(
    monkeypatch: pytest.MonkeyPatch, choice: Any, names: list[str], must_call: bool
) -> None:
    deciding = Deciding(monkeypatch, FOUR)
    [response] = ask({"tool_choice": choice, "logprobs": True, "dllm": {"pins": ["tea"]}})
    [found] = choices_of(response)
    assert found["finish_reason"] == "tool_calls" and found["message"]["content"] is None
    assert [call["function"] for call in found["message"]["tool_calls"]] == [CALLED]
    assert response.json()["usage"]["dllm"]["steps"] == 0
    assert deciding.asked == [(names, must_call)]


def test_the_same_call_is_streamed_shown_as_a_canvas_and_had_by_every_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    deciding = Deciding(monkeypatch, FOUR)
    several, streamed, shown = ask(
        {"n": 3, "parallel_tool_calls": False}, {"stream": True}, {"stream": True, "diffusing": True}
    )
    assert len(deciding.asked) == 3, "once for each request, however many choices it has"
    for choice in choices_of(several):
        assert [call["function"] for call in choice["message"]["tool_calls"]] == [CALLED]
    chunks = events_of(streamed.content)
    fragments = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert fragments[0]["function"] == {"name": "order", "arguments": ""} and fragments[0]["id"]
    assert "".join(call["function"]["arguments"] for call in fragments) == CALLED["arguments"]
    assert text_of(chunks) == "" and chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    frames = [chunk["choices"][0] for chunk in events_of(shown.content)]
    assert [call["function"] for call in frames[-2]["delta"]["tool_calls"]] == [CALLED]
    assert frames[-1]["finish_reason"] == "tool_calls"


def test_where_nothing_is_decided_the_model_cannot_call(monkeypatch: pytest.MonkeyPatch) -> None:
    deciding = Deciding(monkeypatch, NO_CALL)
    requests = [{"seed": seed, "logit_bias": {str(tiny.codec().special.call): 100}} for seed in range(3)]
    for response in ask(*requests):
        [choice] = choices_of(response)
        assert "tool_calls" not in choice["message"] and choice["message"]["content"]
    assert len(deciding.asked) == 3


def test_a_decided_call_is_held_to_no_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    Deciding(monkeypatch, FOUR)
    codec = tiny.codec()
    decider = decider_of(Engine(tiny.model(), codec.token_table), codec)
    assert decider is not None
    tool, held = (
        Tool("order", "", COUNT),
        DraftSpec((), "", 64, constraint=compile_choices(["tea"], Lexicon.read(codec))),
    )
    call = DecidedCall(decider, (), (), [tool], Room(64, 63), must_call=True, check=lambda: None).draft(held)
    assert call.constraint is None and [token for _, token in call.given] == list(decider.tokens(FOUR.call or Call("")))


@pytest.mark.parametrize("grammar", [{"choices": ["tea", "no tea"]}, {"regex": "(no )?tea"}])
def test_beside_a_grammar_a_reply_is_the_decided_call_or_obeys_it(
    monkeypatch: pytest.MonkeyPatch, grammar: dict[str, Any]
) -> None:
    Deciding(monkeypatch, FOUR)
    [call] = choices_of(ask({"dllm": grammar})[0])
    assert [call["function"] for call in call["message"]["tool_calls"]] == [CALLED]
    Deciding(monkeypatch, NO_CALL)
    [words] = choices_of(ask({"dllm": grammar})[0])
    assert words["message"]["content"] in ("tea", "no tea") and words["finish_reason"] == "stop"


def test_nothing_is_asked_where_nothing_may_be_called_or_a_schema_wants_more(monkeypatch: pytest.MonkeyPatch) -> None:
    deciding = Deciding(monkeypatch, FOUR)
    listed = function("list", {"type": "object", "properties": {"all": {"type": "array"}}})
    for response in ask({"tool_choice": "none"}, {"tools": None}, {"tools": [ORDER, listed]}):
        choices_of(response)
    assert not deciding.asked
    [choice] = choices_of(
        ask({"tools": [ORDER, listed], "tool_choice": {"type": "function", "function": {"name": "order"}}})[0]
    )
    assert deciding.asked == [(["order"], True)] and choice["finish_reason"] == "tool_calls", (
        "only what may be called counts"
    )


def test_behind_a_tools_result_there_are_words_unless_a_call_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    deciding = Deciding(monkeypatch, FOUR)
    call = {"id": "c", "type": "function", "function": CALLED}
    messages = [
        {"role": "user", "content": "four teas"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]
    words, forced, later = ask(
        {"messages": messages},
        {"messages": messages, "tool_choice": "required"},
        {"messages": [*messages, {"role": "user", "content": "four more"}]},
    )
    assert deciding.asked == [([], False), (["order", "leave"], True), (["order", "leave"], False)]
    assert "tool_calls" not in choices_of(words)[0]["message"]
    assert choices_of(forced)[0]["finish_reason"] == choices_of(later)[0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("decision", "parameters"),
    [
        (Decision(Call("order", {}), 9.0, ("count",)), COUNT),
        (Decision(Call("order", {"count": "soon"}), 9.0), COUNT),
        (
            Decision(Call("order", {"count": "a; b"}), 9.0),
            {"type": "object", "properties": {"count": {"enum": ["a; b"]}}},
        ),
        (
            Decision(Call("order", {"name": "anna"}), 9.0),
            NAMED | {"properties": {"name": {"type": "string", "minLength": 5}}},
        ),
        (Decision(Call("order", {"name": "ann"}), 9.0), NAMED),
    ],
)
def test_a_call_that_would_not_obey_its_schema_is_not_made(
    monkeypatch: pytest.MonkeyPatch, decision: Decision, parameters: dict[str, Any]
) -> None:
    Deciding(monkeypatch, decision)
    [choice] = choices_of(ask({"tools": [function("order", parameters)]})[0])
    assert "tool_calls" not in choice["message"]


def test_texts_are_the_users_own_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    Deciding(monkeypatch, Decision(Call("order", {"name": "anna lee"}), 9.0))
    [choice] = choices_of(ask({"tools": [function("order", NAMED)]})[0])
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"name": "Anna Lee"}'


def test_a_call_that_the_canvas_does_not_hold_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    Deciding(monkeypatch, FOUR)
    size = len(tiny.codec().encode_text("order; count: four")) + 1  # the call's token comes first
    fits, words, refused = ask(
        {"max_tokens": size}, {"max_tokens": size - 1}, {"max_tokens": 3, "tool_choice": "required"}
    )
    assert choices_of(fits)[0]["finish_reason"] == "tool_calls"
    assert "tool_calls" not in choices_of(words)[0]["message"]
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "max_tokens"


def test_a_request_that_is_turned_away_asks_the_model_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    deciding = Deciding(monkeypatch, FOUR)
    [response] = ask({"n": 2}, settings=ServerSettings(max_drafts=1))
    assert response.status_code == 400 and not deciding.asked


# --- the built-in model -----------------------------------------------------------------------------------------------

SYSTEM = {
    "role": "system",
    "content": "You answer the phone of Luigi's, a restaurant. You book tables. Ask for what is missing.",
}
GREETING = {"role": "assistant", "content": "Luigi's, hello! What can I do for you?"}
BOOK = {
    "type": "function",
    "function": {
        "name": "book_table",
        "description": "books a table",
        "parameters": {
            "type": "object",
            "properties": {
                "people": {"type": "integer", "minimum": 1},
                "day": {"type": "string"},
                "time": {"type": "string"},
                "name": {"type": "string"},
            },
            "required": ["people", "day"],
        },
    },
}


@cache
def checkpoint() -> Checkpoint:
    return loader.load()


def converse(*said: Sequence[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    """The first choice of each conversation, which begins with the greeting."""

    async def main() -> list[dict[str, Any]]:
        found = checkpoint()
        settings = ServerSettings(options=family_options(found.defaults, found.spec))
        async with EngineRunner(Engine(found.model, found.codec.token_table)) as runner:
            transport = httpx.ASGITransport(create_app(runner, found.codec, found.spec, settings))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
                choices = []
                for messages in said:
                    body = {"messages": [SYSTEM, GREETING, *messages], "tools": [BOOK], "seed": 1, **fields}
                    choices += choices_of(await client.post("/v1/chat/completions", json=body))
                return choices

    return run_async(main())


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def called(choice: dict[str, Any]) -> dict[str, Any]:
    [call] = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and call["function"]["name"] == "book_table"
    arguments: dict[str, Any] = json.loads(call["function"]["arguments"])
    return arguments


def test_the_built_in_model_calls_with_what_was_typed_and_asks_for_what_was_not() -> None:
    full = user("I'd like a table for 4 on Friday at 7 pm. My name is Anna Lee.")
    short = user("A table for 5, please.")
    whole, half, more = converse(
        [full], [short], [short, {"role": "assistant", "content": "Which day?"}, user("Next Tuesday.")]
    )
    assert called(whole) == {"people": 4, "day": "Friday", "time": "7 pm", "name": "Anna Lee"}
    assert half["finish_reason"] == "stop" and half["message"]["content"] and "tool_calls" not in half["message"]
    assert called(more) == {"people": 5, "day": "Next Tuesday"}


def test_the_built_in_models_call_is_answered_in_words_and_not_made_again() -> None:
    asked = user("A table for 12 on Friday, please.")
    [call] = converse([asked])
    message = {"role": "assistant", **call["message"]}
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": '{"table": 3}'}
    answer, later = converse(
        [asked, message, result],
        [asked, message, result, {"role": "assistant", "content": "Done."}, user("Thank you, bye!")],
    )
    for choice in (answer, later):
        assert choice["message"]["content"] and "tool_calls" not in choice["message"]


def test_a_required_call_obeys_its_schema_though_not_all_was_said() -> None:
    said, missing = converse(
        [user("A table for 5 on Monday.")], [user("A table for 5, please.")], tool_choice="required"
    )
    assert called(said) == {"people": 5, "day": "Monday"}
    arguments = called(missing)
    assert isinstance(arguments["people"], int) and isinstance(arguments["day"], str)

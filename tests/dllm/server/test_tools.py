"""Tools and grammars: what the engine is held to, and what clients get of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dllm.constraints import GrammarConstraint
from dllm.drafts import DraftSpec
from dllm.server.grammars import Grammars, ordered
from dllm.server.requests import Grammar, Tool
from tests.conftest import run_async
from tests.dllm import tiny
from tests.dllm.server.serving import ROOMY, events_of, served

SIZES = {"type": "object", "properties": {"size": {"enum": ["small", "large"]}}, "required": ["size"]}
TOOLS = [
    {"type": "function", "function": {"name": "order", "description": "Order a tea", "parameters": SIZES}},
    {"type": "function", "function": {"name": "leave"}},
]
CALL = '<tool_call>{"name": "order", "arguments": {"size": "large"}}</tool_call>'


def ask(script: str, status: int = 200, **fields: Any) -> tuple[dict[str, Any], list[DraftSpec]]:
    async def main() -> tuple[dict[str, Any], list[DraftSpec]]:
        async with served(script, spec=ROOMY) as server:
            response = await server.chat(**fields)
            assert response.status_code == status, response.text
            if fields.get("stream"):
                return {"chunks": events_of(response.content)}, server.engine.specs
            return response.json(), server.engine.specs

    return run_async(main())


def obeys(spec: DraftSpec, text: str) -> bool:
    assert isinstance(spec.constraint, GrammarConstraint)
    return spec.constraint.accepts(tiny.codec().encode(text))


def test_a_tool_call_is_read_from_the_reply() -> None:
    body, [spec] = ask(f"One moment. {CALL}", tools=TOOLS)
    [choice] = body["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "One moment."
    [call] = choice["message"]["tool_calls"]
    assert call["type"] == "function" and call["id"].startswith("call_")
    assert call["function"] == {"name": "order", "arguments": '{"size": "large"}'}
    assert spec.constraint is None, "the built-in model calls in its own way where it may and need not"


def test_where_a_tool_may_be_called_the_reply_is_text_or_calls() -> None:
    tools = [
        Tool(tool["function"]["name"], tool["function"].get("parameters", {"type": "object"}), tool) for tool in TOOLS
    ]
    order = ordered(Grammar(), tools, "auto")
    assert order is not None
    constraint = Grammars(tiny.codec()).compile(order)
    assert constraint is not None

    def accepts(text: str) -> bool:
        return constraint.accepts(tiny.codec().encode(text))

    assert accepts(" Just text.") and accepts(f"One moment. {CALL}")
    assert not accepts('<tool_call>{"name": "other", "arguments": {}}</tool_call>')


def test_a_call_alone_has_no_content() -> None:
    body, _ = ask(CALL, tools=TOOLS)
    assert body["choices"][0]["message"]["content"] is None


def test_a_streamed_call_is_opened_with_its_name_and_then_filled() -> None:
    body, _ = ask(f"Well. {CALL}", tools=TOOLS, stream=True)
    deltas = [choice["delta"] for chunk in body["chunks"] for choice in chunk["choices"]]
    fragments = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert fragments[0]["id"] and fragments[0]["function"] == {"name": "order", "arguments": ""}
    assert "".join(call["function"]["arguments"] for call in fragments) == '{"size": "large"}'
    assert all(call["index"] == 0 for call in fragments)
    assert "".join(delta.get("content") or "" for delta in deltas) == "Well."
    assert body["chunks"][-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_diffusing_stream_ends_with_the_call() -> None:
    body, _ = ask(CALL, tools=TOOLS, stream=True, diffusing=True)
    frame = body["chunks"][-2]["choices"][0]["delta"]
    assert frame["content"] == "" and frame["tool_calls"][0]["function"]["name"] == "order"
    assert body["chunks"][-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "order"}}])
def test_a_required_call_is_all_the_reply_may_be(choice: Any) -> None:
    _, [spec] = ask(CALL, tools=TOOLS, tool_choice=choice)
    assert obeys(spec, CALL) and not obeys(spec, " Just text.")
    leave = '<tool_call>{"name": "leave", "arguments": {}}</tool_call>'
    assert obeys(spec, leave) == (choice == "required")
    assert obeys(spec, CALL + CALL) == (choice == "required")


def test_one_call_at_a_time_is_kept_to() -> None:
    body, [spec] = ask(CALL, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert not obeys(spec, CALL + CALL)
    assert len(body["choices"][0]["message"]["tool_calls"]) == 1


def test_tools_that_may_not_be_called_are_not_shown_to_the_model() -> None:
    _, [silent] = ask("No.", tools=TOOLS, tool_choice="none")
    _, [plain] = ask("No.")
    assert silent.prompt == plain.prompt and silent.constraint is None


def test_calls_and_their_results_are_part_of_the_prompt() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "order", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "a tea"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    _, [spec] = ask("Here.", messages=messages)
    text = tiny.codec().decode(spec.prompt)
    assert "order" in text and text.endswith(" done")


def test_a_reply_may_be_held_to_a_schema() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "size", "schema": SIZES, "strict": True}}
    body, [spec] = ask('{"size": "small"}', response_format=form)
    assert json.loads(body["choices"][0]["message"]["content"]) == {"size": "small"}
    assert obeys(spec, '{"size": "small"}') and not obeys(spec, '{"size": "huge"}')


def test_a_reply_may_be_held_to_json_a_pattern_or_a_choice() -> None:
    _, [spec] = ask("{}", response_format={"type": "json_object"})
    assert obeys(spec, '{"a": 1}') and not obeys(spec, "tea")
    _, [spec] = ask("42", dllm={"regex": "[0-9]+"})
    assert obeys(spec, "42") and not obeys(spec, "tea")
    _, [spec] = ask("tea", dllm={"choices": ["tea", "mocha"]})
    assert obeys(spec, "mocha") and not obeys(spec, "muffin")
    _, [spec] = ask("tea", response_format={"type": "text"})
    assert spec.constraint is None


def test_a_schema_and_tools_together_allow_either() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "size", "schema": SIZES}}
    _, [spec] = ask(CALL, tools=TOOLS, response_format=form)
    assert obeys(spec, '{"size": "small"}') and obeys(spec, CALL) and not obeys(spec, " Just text.")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
            "response_format",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 1}}}]}, "tools"),
        ({"dllm": {"regex": "("}}, "dllm.regex"),
        ({"dllm": {"regex": "a", "choices": ["b"]}}, "dllm.regex"),
        ({"dllm": {"choices": ["a text that is longer than the canvas has room for"]}, "max_tokens": 3}, "max_tokens"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice.function.name"),
    ],
)
def test_grammars_that_cannot_be_are_refused_where_they_stand(fields: dict[str, Any], param: str) -> None:
    body, specs = ask("x", 400, **fields)
    assert body["error"]["param"] == param and not specs


def test_the_same_grammar_is_compiled_once() -> None:
    async def main() -> list[DraftSpec]:
        async with served(CALL, spec=ROOMY) as server:
            for _ in range(2):
                await server.chat(tools=TOOLS)
            return server.engine.specs

    first, second = run_async(main())
    assert first.constraint is second.constraint

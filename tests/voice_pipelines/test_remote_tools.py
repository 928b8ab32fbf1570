"""Tool calls of a remote language model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import run_async
from tests.voice_pipelines.remote_desk import asking, call_piece, calling, desk
from tests.voice_pipelines.scripted_endpoint import piece
from voice_pipelines.adapters.remote_wire import EndpointError, RemoteEndpoint, chat_messages, read_event, request_body
from voiceagent.backends import DraftFinished, PromptTurn
from voiceagent.tools import ToolCall, ToolChoice, ToolSpec

BOOK = ToolSpec("book_table", "books a table", {"type": "object", "properties": {"people": {"type": "integer"}}})


def call_of(*events: str, must_say: tuple[str, ...] = ()) -> tuple[DraftFinished, dict[str, Any]]:
    async def main() -> tuple[DraftFinished, dict[str, Any]]:
        async with desk(calling(*events)) as here:
            request = replace(asking(*must_say), tools=(BOOK,), tool_choice=ToolChoice("required"))
            end = await here.write(request).end()
            assert isinstance(end, DraftFinished), end
            return end, here.remote.exchanges[0].body

    return run_async(main())


def test_a_call_that_comes_in_pieces_is_put_together_and_other_calls_are_left() -> None:
    end, body = call_of(
        call_piece("", name="book_table"),
        call_piece('{"peo'),
        call_piece("{}", name="other", index=1),
        call_piece('ple": 4}'),
        must_say=("$5",),
    )
    assert (end.text, end.call) == ("", ToolCall("book_table", {"people": 4}))
    assert body["tools"][0]["function"]["name"] == "book_table" and body["tool_choice"] == "required"


def test_words_before_a_call_are_the_text() -> None:
    end, _ = call_of(piece("Let me look. "), call_piece("{}", name="book_table"))
    assert (end.text, end.call) == ("Let me look.", ToolCall("book_table"))


@pytest.mark.parametrize("arguments", ["four", "[4]", '{"a": NaN}', '{"people": ', '{"a": 1e999}', '{"a": "\\ud800"}'])
def test_arguments_that_are_no_object_are_a_problem_of_the_call(arguments: str) -> None:
    end, _ = call_of(call_piece(arguments, name="book_table"))
    assert end.call is not None and end.call.name == "book_table" and end.call.problem


def test_a_piece_of_a_call_that_is_none_fails_the_draft() -> None:
    with pytest.raises(EndpointError):
        read_event(call_piece("x").replace('"x"', "5"))


def test_calls_and_results_are_told_in_the_apis_own_shape() -> None:
    turns = (
        PromptTurn("user", "a table"),
        PromptTurn("agent", "", ToolCall("book_table", {"people": 4}), "c1"),
        PromptTurn("note", "book_table: table 12", call_id="c1"),
    )
    _, call_message, answer = chat_messages(turns)
    assert call_message["role"] == "assistant" and call_message["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "book_table", "arguments": '{"people": 4}'}}
    ]
    assert answer == {"role": "tool", "tool_call_id": "c1", "content": "book_table: table 12"}
    assert "tools" not in request_body(RemoteEndpoint("http://h", "m"), asking(turns=turns), 0.0)

"""The built-in model's own tool calls at the HTTP door."""

from __future__ import annotations

import math

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.calls import Tool
from dllm.runner import EngineRunner
from dllm.server import create_app
from dllm.server.native_calls import MARK, CallCodec, CallReader
from dllm.server.tools import Piece, ToolCall, ToolReader
from tests.conftest import run_async
from tests.dllm import tiny
from tests.dllm.server.serving import ROOMY
from tests.dllm.standin import StandInEngine

TABLE = Tool("book_table", "", {"properties": {"people": {"type": "integer"}, "day": {}}, "required": ["people"]})


def read(text: str, cuts: list[int]) -> list[Piece]:
    """All pieces, text joined."""
    reader = CallReader([TABLE], ToolReader(["book_table"]))
    pieces: list[Piece] = []
    places = sorted(cut % (len(text) + 1) for cut in cuts)
    for start, stop in zip([0, *places], [*places, len(text)], strict=True):
        pieces += reader.feed(text[start:stop])
    pieces += reader.flush()
    said = "".join(piece for piece in pieces if isinstance(piece, str))
    return [*([said] if said else []), *(piece for piece in pieces if not isinstance(piece, str))]


@given(st.lists(st.integers(0, 99), max_size=5))
def test_a_call_is_read_however_it_arrives(cuts: list[int]) -> None:
    call = ToolCall("book_table", '{"people": 4, "day": "friday"}')
    assert read(f"{MARK} book_table; people: four; day: friday", cuts) == [call]


@given(st.lists(st.integers(0, 99), max_size=5))
def test_a_call_behind_words_is_a_call_and_its_mark_is_never_shown(cuts: list[int]) -> None:
    call = ToolCall("book_table", '{"people": 4}')
    assert read(f"One moment. \n{MARK} book_table; people: four", cuts) == ["One moment.", call]
    assert read(f"One moment.{MARK}cancel_table; people: four", cuts) == ["One moment. cancel_table; people: four"]
    assert read(f"One moment. {MARK}", cuts) == ["One moment."]
    assert read(f"{MARK} book_table; {MARK} people: four", cuts) == [call]
    assert read(f"{MARK} {MARK} book a table", cuts) == ["book a table"]


@given(
    st.sampled_from(["Hello.", "<", "<cal", "<callous", "", "A <cal> x ", " <"]),
    st.lists(st.integers(0, 99), max_size=5),
)
def test_everything_else_is_text_however_it_arrives(text: str, cuts: list[int]) -> None:
    assert read(text, cuts) == ([text] if text else [])


@pytest.mark.parametrize("said", ["cancel_table; people: four", "book_table; people", "book a table", ""])
def test_what_is_no_call_of_a_tool_stays_text(said: str) -> None:
    assert read(f"{MARK} {said}", []) == ([said] if said else [])


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("book_table", "{}"),
        ("book_table; people: soon", '{"people": "soon"}'),
        ("book_table; hat: red", '{"hat": "red"}'),
    ],
)
def test_a_call_whose_arguments_do_not_fit_is_the_clients_to_refuse(said: str, arguments: str) -> None:
    assert read(f"{MARK} {said}", []) == [ToolCall("book_table", arguments)]


def test_text_leaves_at_once_and_a_call_only_when_it_is_whole() -> None:
    reader = CallReader([TABLE], ToolReader(["book_table"]))
    assert reader.feed("Hello") == ["Hello"]
    assert reader.feed(f" {MARK}") == reader.feed(" book_table; people: four") == []
    assert reader.flush() == [ToolCall("book_table", '{"people": 4}')]
    reader = CallReader([TABLE], ToolReader(["book_table"]))
    assert reader.feed(f"{MARK} book_table; people: four") == []
    assert reader.again(f"{MARK} book_table; people: two") == [ToolCall("book_table", '{"people": 2}')]
    assert reader.flush() == [ToolCall("book_table", '{"people": 4}')]


def test_the_call_token_is_visible_and_nothing_else_changes() -> None:
    codec = tiny.codec()
    shown = CallCodec(codec)
    ids = [codec.special.call, *codec.encode_text("book_table; people: four"), codec.special.end]
    assert shown.decode(ids) == f"{MARK} book_table; people: four"
    assert codec.decode(ids) == " book_table; people: four"
    text = codec.encode_text("a tea")
    assert shown.decode(text) == codec.decode(text)


def test_a_client_sees_the_models_own_call() -> None:
    codec = tiny.codec()
    said = (codec.special.call, *codec.encode_text("book_table; people: four; day: friday"))
    tool = {"name": "book_table", "description": "books a table", "parameters": TABLE.parameters}

    async def main() -> None:
        standin = StandInEngine(lambda _: said)
        async with EngineRunner(standin) as runner:
            transport = httpx.ASGITransport(create_app(runner, codec, ROOMY))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                body = {
                    "messages": [{"role": "user", "content": "a table"}],
                    "tools": [{"type": "function", "function": tool}],
                }
                [choice] = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
                assert choice["finish_reason"] == "tool_calls" and not choice["message"]["content"]
                [call] = choice["message"]["tool_calls"]
                assert call["function"] == {"name": "book_table", "arguments": '{"people": 4, "day": "friday"}'}

    run_async(main())


@pytest.mark.parametrize(("choice", "may_call"), [("auto", True), ("none", False), (None, False)])
def test_a_model_that_may_not_call_cannot(choice: str | None, may_call: bool) -> None:
    """Without tools the words of a call would be the reply."""
    codec = tiny.codec()
    standin = StandInEngine(lambda _: tuple(codec.encode_text("a tea")))
    tool = {"type": "function", "function": {"name": "book_table", "parameters": TABLE.parameters}}

    async def main() -> None:
        async with EngineRunner(standin) as runner:
            transport = httpx.ASGITransport(create_app(runner, codec, ROOMY))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                body: dict[str, object] = {"messages": [{"role": "user", "content": "a table"}]}
                if choice is not None:
                    body |= {"tools": [tool], "tool_choice": choice}
                (await client.post("/v1/chat/completions", json=body)).raise_for_status()

    run_async(main())
    (spec,) = standin.specs
    assert ((codec.special.call, -math.inf) not in spec.options.logit_bias) == may_call
    assert (spec.unpinned == codec.special.call) == may_call

"""Stop strings, replies and tool calls give the same answer however their input is cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from dllm.drafts import Cell, CellState, Committed, Finished, Prefilled, Stepped, Usage
from dllm.reply import CanvasShown, Reply, TextDelta, show_canvas
from dllm.server.tools import ToolCall, ToolReader
from dllm.stops import StopFinder
from tests.dllm import tiny

DRAFT = cast(Any, None)

letters = st.text("abc ", max_size=40)
stops = st.lists(st.text("abc ", min_size=1, max_size=4), max_size=3)


def cut(text: Sequence[Any], places: Sequence[int]) -> list[Any]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


places = st.lists(st.integers(0, 100), max_size=10)


def read_slowly(text: str, stops: Sequence[str]) -> str:
    """The definition: read a character at a time and look whether what was read ends with a stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(letters, stops, places)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(
    text: str, stops: list[str], places: list[int]
) -> None:
    finder = StopFinder(stops)
    released = [finder.feed(piece) for piece in cut(text, places)]
    assert "".join(released) + finder.flush() == read_slowly(text, stops)
    assert (finder.found is not None) == any(stop in text for stop in stops)


@given(letters, stops, places)
def test_nothing_of_a_stop_string_leaves_before_it_is_known_to_be_none(
    text: str, stops: list[str], places: list[int]
) -> None:
    finder, released = StopFinder(stops), ""
    for piece in cut(text, places):
        released += finder.feed(piece)
        assert read_slowly(text, stops).startswith(released)


texts = st.text(st.sampled_from("abc é日🙂\n"), max_size=25)


def play(reply: Reply, tokens: Sequence[int], places: Sequence[int], *, is_full: bool = False) -> tuple[str, list[Any]]:
    """Feed a reply's commits, cut in any places; the text that left and what was told of its tokens."""
    events: list[Any] = [Prefilled(DRAFT, 1, 2, 0.1)]
    start = 0
    for step, piece in enumerate(cut(tokens, places), 1):
        done = start + len(piece)
        cells = tuple(
            Cell(token, CellState.COMMITTED if at < done else CellState.PROVISIONAL, 0.5)
            for at, token in enumerate(tokens)
        )
        events.append(Stepped(DRAFT, step, "rest", cells, len(piece), 0, 0.1, 1))
        events.append(Committed(DRAFT, start, tuple(piece), "rest"))
        start = done
    usage = Usage(3, 1, len(tokens), 1, len(places) + 1)
    reason = "canvas_full" if is_full else "end_of_turn"
    events.append(Finished(DRAFT, cast(Any, reason), tuple(tokens), (0.5,) * len(tokens), 0, len(places) + 1, 0, usage))
    deltas = [delta for event in events for delta in reply.feed(event)]
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    return text, [chance for delta in deltas if isinstance(delta, TextDelta) for chance in delta.chances]


@given(
    texts,
    st.lists(st.text(st.sampled_from("abc é日\n"), min_size=1, max_size=3), max_size=2),
    places,
    st.integers(1, 60),
)
def test_a_reply_is_the_same_however_the_engine_cuts_its_commits(
    text: str, stops: list[str], places: list[int], limit: int
) -> None:
    codec = tiny.codec()
    tokens = codec.encode(" " + text)

    def read(places: Sequence[int]) -> tuple[Any, ...]:
        reply = Reply(codec, limit, stops, drops_space=True)
        out, chances = play(reply, tokens, places)
        assert out == reply.text
        return out, reply.reason, reply.visible_tokens, [chance.text for chance in chances], reply.usage.visible_tokens

    at_once = read([])
    assert read(places) == at_once
    whole = codec.decode(tokens[:limit]).removeprefix(" ")
    assert at_once[0] == read_slowly(whole, stops)
    if not any(stop in whole for stop in stops):
        assert at_once[1] == ("length" if len(tokens) > limit else "stop")
        assert at_once[2] == min(len(tokens), limit)
    else:
        assert at_once[1] == "stop"
    assert len(at_once[3]) == at_once[2]


def test_a_full_canvas_is_a_length() -> None:
    reply = Reply(tiny.codec(), 60)
    play(reply, tiny.codec().encode(" tea"), [], is_full=True)
    assert reply.reason == "length"


def test_nothing_is_told_after_the_end() -> None:
    reply = Reply(tiny.codec(), 60, ["e"])
    text, _ = play(reply, tiny.codec().encode(" teas"), [1, 2, 3])
    assert text == " t"
    assert reply.feed(Committed(DRAFT, 9, (30,), "rest")) == []


def test_a_canvas_shows_guesses_and_masks_up_to_its_end() -> None:
    codec = tiny.codec()
    tea, end = codec.encode(" tea"), codec.special.end
    cells = [
        Cell(tea[0], CellState.COMMITTED, 1.0),
        Cell(codec.special.mask, CellState.MASKED, 0.0),
        Cell(tea[0], CellState.PROVISIONAL, 0.3),
        Cell(end, CellState.PROVISIONAL, 0.3),
        Cell(tea[0], CellState.COMMITTED, 1.0),
    ]
    first = codec.decode(tea[:1])
    assert show_canvas(cells, codec) == CanvasShown(f"{first}▒{first}", round(1 / 3, 4))
    assert show_canvas(cells, codec, ["▒"]).text == first
    assert show_canvas([], codec) == CanvasShown("", 0.0)


def read_tools(pieces: Sequence[str], most: int = 9) -> list[Any]:
    """Text between calls joined, so that it does not matter how it was cut."""
    reader = ToolReader(("f", "g"), most=most)
    out: list[Any] = []
    for found in [piece for text in pieces for piece in reader.feed(text)] + reader.flush():
        if isinstance(found, str) and out and isinstance(out[-1], str):
            out[-1] += found
        else:
            out.append(found)
    return out


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'
fragments = st.sampled_from(
    [CALL, "<tool_call>", "</tool_call>", "a", " ", "\n", "<", '{"name": "g"}', "<tool_call>{}</tool_call>"]
)


@given(st.lists(fragments, max_size=8).map("".join), places, st.integers(0, 2))
def test_tool_calls_are_the_same_however_the_text_is_cut(text: str, places: list[int], most: int) -> None:
    assert read_tools(cut(text, places), most) == read_tools([text], most)
    assert read_tools(list(text), most) == read_tools([text], most)


def test_calls_are_read_with_the_text_around_them() -> None:
    call = ToolCall("f", '{"x": "é"}')
    assert read_tools([f"Let me see.\n{CALL}\n{CALL}\n"]) == ["Let me see.", call, call]
    assert read_tools([f"{CALL} done  now "]) == [call, "done  now"]
    assert read_tools(['<tool_call>{"name": "g"}</tool_call>']) == [ToolCall("g", "{}")]
    assert read_tools([f"{CALL}{CALL}"], most=1) == [call, CALL]


def test_what_is_no_call_stays_text() -> None:
    for text in (
        "<tool_call>not JSON</tool_call>",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": []}</tool_call>',
        "<tool_call>[1]</tool_call>",
        '<tool_call>{"name": "f"',
        "a < b and <tool_calls>",
        " spaces stay ",
    ):
        assert read_tools([text]) == [text]

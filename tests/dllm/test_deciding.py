"""Whether a reply is a call, and with what: values that share no words, nothing that was not said, nothing twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dllm import loader
from dllm.calls import Call, Tool, read_call, with_tools
from dllm.deciding import MOST_HEARD, Decider, Said, best_fit, decider_of, heard_so_far, lately
from dllm.engine import Engine
from dllm.said import Heard, Value
from dllm.server.native_calls import CallCodec
from dllm.text import DialogueCodec, Role
from tests.dllm import tiny
from tests.dllm.standin import StandInEngine

SYSTEM = "You answer the phone of Luigi's, a restaurant. You book tables. Ask for what is missing."
GREETING = "Luigi's, hello! What can I do for you?"
BOOK = Tool(
    "book_table",
    "books a table",
    {
        "type": "object",
        "properties": {"people": {"type": "integer"}, "day": {"type": "string"}, "time": {"type": "string"}},
        "required": ["people", "day"],
    },
)


def value(text: str, first: int) -> Value:
    return Value(text, 0, first, first + len(text.split()))


def test_the_best_values_share_no_words_and_what_is_missing_is_told() -> None:
    four, friday = value("four", 0), value("friday", 2)
    fit = best_fit(
        BOOK, {"people": [(6.0, four)], "day": [(7.0, value("four", 0)), (5.0, friday)], "time": [(4.0, friday)]}
    )
    assert dict(fit.values) == {"people": four, "day": friday} and not fit.missing
    assert best_fit(BOOK, {"people": [(6.0, four)]}).missing == ("day",)
    assert best_fit(BOOK, {"people": [(6.0, four)], "day": [(0.5, friday)]}).missing == ("day",), (
        "too unlikely to be meant"
    )


def test_only_so_many_words_are_looked_at_and_those_the_latest() -> None:
    turns = [Heard.of("one two three", "first"), Heard.of("four five", "second"), Heard.of("six", "third")]
    assert lately(turns, 6) == turns
    assert lately(turns, 4) == [Heard.of("three", "first"), *turns[1:]]
    assert lately(turns, 3) == turns[1:] and lately(turns, 1) == turns[2:] and lately([], 3) == []


def test_calls_are_decided_by_engines_of_the_built_in_family_with_a_causal_mode() -> None:
    engine = Engine(tiny.model(), tiny.codec().token_table)
    assert decider_of(engine, tiny.codec()) is not None
    assert decider_of(engine, CallCodec(tiny.codec())) is None, "a published checkpoint's codec"
    assert decider_of(StandInEngine(lambda _: ()), tiny.codec()) is None
    engine.model.spec = replace(tiny.spec(), causal_verify=False)
    assert decider_of(engine, tiny.codec()) is None


@pytest.fixture(scope="module")
def desk() -> tuple[Decider, DialogueCodec]:
    checkpoint = loader.load(None)
    codec = checkpoint.dialogue_codec
    return Decider(Engine(checkpoint.model, codec.token_table), codec), codec


def prompt_of(codec: DialogueCodec, *turns: tuple[Role, str], tool: Tool = BOOK) -> list[int]:
    return codec.encode_prompt([("system", with_tools(SYSTEM, [tool])), ("agent", GREETING), *turns])


def test_a_booking_is_called_with_the_callers_own_words(desk: tuple[Decider, DialogueCodec]) -> None:
    decider, codec = desk
    found = decider.decide(prompt_of(codec, ("user", "a table for four on friday at seven")), [BOOK])
    assert found.call == Call("book_table", {"people": "four", "day": "friday", "time": "seven"})
    tokens = decider.tokens(found.call)
    assert tokens[0] == codec.special.call and tokens[-1] == codec.special.end
    assert read_call(codec.decode(tokens).strip()) == found.call


def test_what_was_not_said_makes_no_call_unless_there_has_to_be_one(desk: tuple[Decider, DialogueCodec]) -> None:
    decider, codec = desk
    prompt = prompt_of(codec, ("user", "a table for five please"))
    found = decider.decide(prompt, [BOOK])
    assert found.call is None and found.missing == ("day",)
    forced = decider.decide(prompt, [BOOK], must_call=True)
    assert forced.call == Call("book_table", {"people": "five"})


def test_what_was_said_long_ago_is_not_looked_at(desk: tuple[Decider, DialogueCodec]) -> None:
    decider, codec = desk
    said = "a table for four on friday at seven"
    for much, is_heard in ((MOST_HEARD - 8, True), (MOST_HEARD, False)):
        found = decider.decide(prompt_of(codec, ("user", f"{said}{' well' * much}")), [BOOK])
        assert ("day" not in found.missing) == is_heard


def test_an_answer_fills_what_the_agent_asked_for(desk: tuple[Decider, DialogueCodec]) -> None:
    decider, codec = desk
    turns: list[tuple[Role, str]] = [
        ("user", "a table for five please"),
        ("agent", "Which day?"),
        ("user", "next tuesday"),
    ]
    found = decider.decide(prompt_of(codec, *turns), [BOOK])
    assert found.call == Call("book_table", {"people": "five", "day": "next tuesday"})


def test_nothing_is_called_for_a_greeting_or_without_tools_or_words(desk: tuple[Decider, DialogueCodec]) -> None:
    decider, codec = desk
    assert decider.decide(prompt_of(codec, ("user", "hello good evening")), [BOOK]).call is None
    assert decider.decide(prompt_of(codec, ("user", "a table for four on friday")), []).call is None
    assert decider.decide(prompt_of(codec), [BOOK], must_call=True).call is None


@pytest.mark.parametrize("note", ["book_table: table: 12; code: K72", "book_table failed: no table is free"])
def test_the_same_call_does_not_follow_its_own_result(desk: tuple[Decider, DialogueCodec], note: str) -> None:
    decider, codec = desk
    prompt = prompt_of(codec, ("user", "a table for four on friday"))[:-1]
    prompt += codec.encode_call(Call("book_table", {"people": "four", "day": "friday"}))
    prompt += [*codec.encode_turn("note", note), codec.special.agent]
    assert decider.decide(prompt, [BOOK]).call is None


def test_a_call_that_failed_may_be_made_again_with_other_words_and_one_that_ran_is_spent(
    desk: tuple[Decider, DialogueCodec],
) -> None:
    _, codec = desk
    before = prompt_of(codec, ("user", "a table for four on friday"))[:-1]
    before += codec.encode_call(Call("book_table", {"people": "four", "day": "friday"}))
    behind = [
        *codec.encode_turn("agent", "Another day?"),
        *codec.encode_turn("user", "then on saturday"),
        codec.special.agent,
    ]
    failed = heard_so_far(codec, [*before, *codec.encode_turn("note", "book_table failed: full"), *behind], [BOOK])
    words = [" ".join(turn.words) for turn in failed.turns]
    assert words == ["a table for four on friday", "then on saturday"] and not failed.ran
    note = codec.encode_turn("note", "book_table: table: 12")
    ran = heard_so_far(codec, [*before, *note, codec.special.agent], [BOOK])
    assert [" ".join(turn.words) for turn in ran.turns] == ["a table for - on -"] and ran.ran_now == {"book_table"}
    ran = heard_so_far(codec, [*before, *note, *behind], [BOOK])
    assert [" ".join(turn.words) for turn in ran.turns] == ["then on saturday"] and ran.ran == {"book_table"}
    assert ran.turns[-1].asked == "another day"


FAULT = Tool("report_fault", "sends a plumber", {"properties": {"fault": {"enum": ["blocked drain", "leaking tap"]}}, "required": ["fault"]})  # fmt: skip
TRANSFER = Tool("transfer", "puts the caller through to a person", {"properties": {}})


@pytest.mark.parametrize(
    ("tool", "said", "call"),
    [
        (FAULT, "my drain is blocked can you send somebody", Call("report_fault", {"fault": "blocked drain"})),
        (TRANSFER, "can i talk to a person please", Call("transfer")),
    ],
)
@pytest.mark.parametrize("then", ["", "thank you", "what time do you close", "okay great", "goodbye"])
def test_what_ran_is_not_called_again_for_thanks(
    desk: tuple[Decider, DialogueCodec], tool: Tool, said: str, call: Call, then: str
) -> None:
    decider, codec = desk
    asked = prompt_of(codec, ("user", said), tool=tool)
    assert decider.decide(asked, [tool]).call == call
    behind = [*asked[:-1], *codec.encode_call(call), *codec.encode_turn("note", f"{tool.name}: ticket: 7")]
    if then:
        behind += [*codec.encode_turn("agent", "All done."), *codec.encode_turn("user", then)]
    assert decider.decide([*behind, codec.special.agent], [tool]).call is None


def test_a_tool_that_needs_nothing_may_be_asked_for_again_by_name() -> None:
    said = Said([Heard.of("please put me through to a person")], ran=frozenset({"transfer"}))
    assert said.may_call(TRANSFER) and not replace(said, ran_now=frozenset({"transfer"})).may_call(TRANSFER)
    assert not replace(said, turns=[Heard.of("okay great")]).may_call(TRANSFER)


def test_a_small_piece_of_a_long_turn_is_no_message(desk: tuple[Decider, DialogueCodec]) -> None:
    decider, codec = desk
    tool = Tool("send_message", "sends a message to the kitchen", {"properties": {"message": {"type": "string"}}, "required": ["message"]})  # fmt: skip
    said = (
        "i would really like to reserve a corner table near the large window because my grandmother prefers sunny places and we bring"
        " several hungry cousins along with big suitcases from another quiet village"
    )
    assert decider.decide(prompt_of(codec, ("user", said), tool=tool), [tool]).call is None

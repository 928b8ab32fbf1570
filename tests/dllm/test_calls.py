"""Tool calls: what is written is what is read, and words become the types that a schema asks for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.calls import (
    Call,
    Tool,
    declare,
    failure_note,
    is_within,
    output_note,
    read_call,
    result_note,
    typed_arguments,
    with_tools,
    write_call,
)
from dllm.errors import CallError, ConfigError

TABLE = Tool(
    "book_table",
    "books a table.",
    {
        "type": "object",
        "properties": {
            "people": {"type": "integer"},
            "day": {"type": "string"},
            "size": {"enum": ["small", "large", 3]},
            "window": {"type": "boolean"},
            "price": {"type": "number"},
            "more": {"type": "array"},
        },
        "required": ["people"],
    },
)
names = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
keys = st.from_regex(r"[^\s;:?|\[\]]{1,20}", fullmatch=True)
values = st.text(st.characters(exclude_characters=";"), min_size=1, max_size=30).filter(lambda text: text.strip())


@given(names, st.dictionaries(keys, values, max_size=4))
def test_a_call_that_was_written_is_read_back(name: str, arguments: dict[str, str]) -> None:
    joined = {key: " ".join(value.split()) for key, value in arguments.items()}
    assert read_call(write_call(Call(name, arguments))) == Call(name, joined)


@given(st.text(max_size=60))
def test_whatever_a_model_writes_is_a_call_or_a_call_error(text: str) -> None:
    try:
        assert read_call(write_call(read_call(text))) == read_call(text)
    except CallError as error:
        assert error.problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected the name of a tool"),
        ("book table; people: four", "expected the name of a tool"),
        ("book_table; people", "expected `key: value`"),
        ("book_table; people:", "expected `key: value`"),
        ("book_table; day: friday; day: sunday", "day is given twice"),
    ],
)
def test_what_is_no_call_says_why(text: str, problem: str) -> None:
    with pytest.raises(CallError, match=problem):
        read_call(text)


def test_tools_are_declared_in_one_line() -> None:
    declared = (
        "[book_table; people: integer; day?; size?: small|large|3; window?: boolean; price?: number; more?: array]"
    )
    assert declare([TABLE, Tool("hours")]) == f"Tools: {declared} books a table. [hours]"
    assert declare([]) == ""
    assert with_tools(" Hi. ", [Tool("hours", "tells the hours")]) == "Hi. Tools: [hours] tells the hours."


def test_choices_are_told_and_called_without_what_separates_them() -> None:
    choices = ["fish; chips", "24|7", "[none]", "Fish, Chips"]
    tool = Tool("order", "", {"properties": {"meal": {"enum": choices}}})
    assert declare([tool]) == "Tools: [order; meal?: fish, chips|24/7|(none)|Fish, Chips]"
    for said, meant in (
        ("fish, chips", "fish; chips"),
        ("Fish, Chips", "Fish, Chips"),
        ("FISH, chips", "fish; chips"),
        ("24/7", "24|7"),
        ("24|7", "24|7"),
        ("(None)", "[none]"),
    ):
        assert typed_arguments(read_call(f"order; meal: {said}"), tool) == {"meal": meant}
    assert declare([Tool("order", "", {"properties": {"meal": {"enum": ["", "pie"]}}})]).endswith("[order; meal?: pie]")
    for same in (["a;b", "a,b"], ["a  b", "a b"], ["", " "]):
        with pytest.raises(ConfigError, match="enum"):
            Tool("order", "", {"properties": {"meal": {"enum": same}}})


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("four", 4),
        ("4", 4),
        ("twenty five", 25),
        ("one two five", 125),
        ("a hundred and three", 103),
        ("two thousand and six", 2006),
        ("a couple of people", 2),
        ("1,200", 1200),
        ("two hundred thousand", 200_000),
        ("three million", 3_000_000),
        ("twenty-five", 25),
        ("-5", -5),
        ("minus twenty", -20),
        ("12345678901234567891", 12345678901234567891),
        ("5 5 5 0 1 3 4", 5550134),
        ("555 0134", 5550134),
        ("10 000", 10000),
    ],
)
def test_whole_numbers_are_understood_as_they_are_said(said: str, number: int) -> None:
    assert typed_arguments(Call("book_table", {"people": said}), TABLE) == {"people": number}


@pytest.mark.parametrize(
    "said",
    [
        "soon",
        "four or five",
        "twenty twenty",
        "20 5",
        "100 20 5",
        "five twenty",
        "two point five",
        "-",
        "one hundred thousand soon",
        "5-6",
        "four ²",
        "²",
        "9" * 400,
        f"{'9' * 400} point five",
    ],
)
def test_what_is_no_whole_number_is_refused(said: str) -> None:
    with pytest.raises(CallError, match="people = .*: expected a whole number"):
        typed_arguments(Call("book_table", {"people": said}), TABLE)


@pytest.mark.parametrize(
    ("said", "number"),
    [("twelve dollars and fifty cents", 12.5), ("three point two five", 3.25), ("fifty cents", 0.5), ("$4.50", 4.5)],
)
def test_amounts_are_understood_as_they_are_said(said: str, number: float) -> None:
    assert typed_arguments(Call("book_table", {"people": "1", "price": said}), TABLE)["price"] == number


def test_other_types() -> None:
    call = Call("book_table", {"people": "two", "size": "Large", "window": "yes", "more": "[1, 2]", "day": "friday"})
    assert typed_arguments(call, TABLE) == {
        "people": 2,
        "size": "large",
        "window": True,
        "more": [1, 2],
        "day": "friday",
    }
    assert typed_arguments(Call("book_table", {"people": "2", "size": "three"}), TABLE)["size"] == 3


def test_of_several_types_the_first_that_is_something_counts() -> None:
    properties = {"day": {"type": ["string", "null"]}, "people": {"type": ["null", "integer"]}}
    tool = Tool("book", "", {"properties": properties})
    assert declare([tool]) == "Tools: [book; day?; people?: integer]"
    assert typed_arguments(Call("book", {"day": "friday", "people": "four"}), tool) == {"day": "friday", "people": 4}


def test_null_among_the_choices_stands_for_no_other_word() -> None:
    tool = Tool("f", "", {"properties": {"size": {"enum": ["small", None]}}})
    with pytest.raises(CallError, match="expected one of small, None"):
        typed_arguments(Call("f", {"size": "huge"}), tool)


said = st.lists(
    st.sampled_from("one twenty hundred million point minus dollars cents a an oh 5 ² 1.5 - $ -3 ٣".split())
    | st.text(max_size=4),
    max_size=6,
).map(" ".join)


@given(st.sampled_from(["people", "size", "window", "price", "more"]), said)
def test_whatever_is_said_is_of_its_type_or_a_call_error(key: str, value: str) -> None:
    try:
        typed_arguments(Call("book_table", {"people": "1"} | {key: value}), TABLE)
    except CallError as error:
        assert key in error.problem


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "people is missing"),
        ({"people": "2", "colour": "red"}, "unknown colour; expected people, day"),
        ({"people": "2", "size": "huge"}, "size = 'huge': expected one of small, large"),
        ({"people": "2", "window": "perhaps"}, "window = 'perhaps': expected yes or no"),
        ({"people": "2", "more": "red"}, "more = 'red': expected array as JSON"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, str], problem: str) -> None:
    with pytest.raises(CallError, match=problem):
        typed_arguments(Call("book_table", arguments), TABLE)


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({"name": "a b"}, "tool name"),
        ({"name": "f", "parameters": {"type": "array"}}, "f.parameters"),
        ({"name": "f", "parameters": {"properties": {"a b": {}}}}, "f.parameters.a b"),
        ({"name": "f", "parameters": {"properties": {"a": 1}}}, "f.parameters.a"),
        ({"name": "f", "parameters": {"properties": {"a": {"enum": []}}}}, "f.parameters.a.enum"),
        ({"name": "f", "parameters": {"required": ["a"]}}, "f.parameters.required"),
        ({"name": "f", "parameters": {"required": [["a"]]}}, "f.parameters.required"),
        ({"description": "no name"}, "tool"),
        ([], "tool"),
    ],
)
def test_bad_descriptions_are_refused_by_key(body: object, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Tool.from_json(body)
    assert caught.value.key == key


def test_descriptions_come_bare_or_wrapped() -> None:
    body = {"name": "hours", "description": "tells the hours"}
    assert (
        Tool.from_json({"type": "function", "function": body})
        == Tool.from_json(body)
        == Tool("hours", "tells the hours")
    )


def test_results_are_told_as_notes() -> None:
    assert result_note("book_table", {"table_number": 12, "codes": ["a", "b"], "free": True}) == (
        "book_table: table number: 12; codes: a, b; free: yes"
    )
    assert result_note("pay", None) == result_note("pay", "") == "pay: done"
    assert result_note("list", []) == "list: none"
    assert failure_note("pay", " timed\nout ") == "pay failed: timed out"


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ('{"table": 12, "code": "K72"}', "table: 12; code: K72"),
        ('["a", "b"]', "a, b"),
        ("open till five", "open till five"),
        ('"done"', '"done"'),
        ("12", "12"),
        ('{"error": "it is full", "until": "nine"}', "error: it is full; until: nine"),
        ("{" * 9, "{" * 9),
        ('{"half": "\\ud800"}', '{"half": "\\ud800"}'),
    ],
)
def test_what_a_clients_tool_gave_is_told_in_words(output: str, told: str) -> None:
    assert output_note("book", output) == f"book: {told}"


def test_an_error_alone_is_a_failure_and_what_is_nested_without_end_is_text() -> None:
    assert output_note("book", '{"error": "it is full"}') == "book failed: it is full"
    deep = "[" * 100_000 + "]" * 100_000
    assert output_note("book", deep) == f"book: {deep}"


@pytest.mark.parametrize(
    ("value", "schema", "keeps"),
    [
        (4, {"minimum": 4, "maximum": 4}, True),
        (3, {"minimum": 4}, False),
        (5.5, {"maximum": 5}, False),
        (5, {"exclusiveMaximum": 5}, False),
        (5, {"exclusiveMinimum": 5}, False),
        (5, {"minimum": "six", "exclusiveMaximum": True}, True),
        ("ab", {"minLength": 3}, False),
        ("abcd", {"maxLength": 3}, False),
        ("abc", {"minLength": 3, "maxLength": 3, "minimum": 9}, True),
        (True, {"minimum": 4}, True),
    ],
)
def test_an_argument_keeps_to_the_bounds_of_its_schema(value: object, schema: dict[str, Any], keeps: bool) -> None:
    assert is_within(value, schema) == keeps


def test_a_tool_is_flat_when_a_call_can_write_its_arguments() -> None:
    def is_flat(schema: dict[str, Any]) -> bool:
        return Tool("any", "", {"properties": {"key": schema}}).is_flat

    assert is_flat({}) and is_flat({"type": "boolean"}) and is_flat({"type": ["string", "null"], "enum": ["a"]})
    assert (
        not is_flat({"type": "object"}) and not is_flat({"type": "array"}) and not is_flat({"type": ["string", "null"]})
    )

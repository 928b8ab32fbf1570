"""Tools as values: short tables of parameters, schemas, results, and how a configuration declares them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceagent.config import Config, assignment_layer, environment_layer, load_config
from voiceagent.errors import ConfigError, ToolError
from voiceagent.tools import (
    MAX_NOTE_CHARS,
    ServerTool,
    ToolSpec,
    as_declared,
    check_schema,
    failure,
    mismatch,
    output_note,
    parameters_schema,
    read_result,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


async def nothing(arguments: Mapping[str, object]) -> object:
    return None


def tool(**options: object) -> ServerTool:
    return ServerTool(ToolSpec("book"), nothing, **options)  # type: ignore[arg-type]


def test_a_short_table_of_parameters_is_a_schema() -> None:
    assert parameters_schema("p", {"people": "integer", "day": " string ? ", "size": "small|large?"}) == {
        "type": "object",
        "properties": {
            "people": {"type": "integer"},
            "day": {"type": "string"},
            "size": {"type": "string", "enum": ["small", "large"]},
        },
        "required": ["people"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("value", "schema", "found"),
    [
        (4, {"type": "integer"}, ""),
        (4.0, {"type": "integer"}, ""),
        (4.5, {"type": "integer"}, "it should be a whole number, not 4.5"),
        (True, {"type": "integer"}, "it should be a whole number, not true"),
        (None, {"type": ["string", "null"]}, ""),
        ("s", {"enum": ["m", "l"]}, 'it should be one of "m", "l", not "s"'),
        (1, {"enum": [True]}, "it should be one of true, not 1"),
        ({"a": 1}, {"properties": {"a": {"type": "string"}}}, "a should be text, not 1"),
        ({"b": [1, "x"]}, {"properties": {"b": {"items": {"type": "number"}}}}, 'b[1] should be a number, not "x"'),
        ({}, {"required": ["a"]}, "a is missing"),
        ({"c": 1}, {"properties": {}, "additionalProperties": False}, "c is unknown"),
        (3, {"minimum": 4}, "it should be at least 4, not 3"),
        ("abc", {"maxLength": 2}, "it should be at most 2 characters, not 3"),
        (1_000_001, {"maximum": 1_000_000}, "it should be at most 1000000, not 1000001"),
        (10**400, {"maximum": 9}, f"it should be at most 9, not 1{'0' * 39}…"),
        ({}, {"required": [["a"], {}]}, ""),
        ([], {"minItems": 1}, "it should be at least 1 entries, not 0"),
    ],
)
def test_the_first_thing_that_does_not_fit_is_named(value: object, schema: object, found: str) -> None:
    assert mismatch(value, schema) == found


@given(JSON, JSON)
def test_any_value_and_any_schema_can_be_compared(value: object, schema: object) -> None:
    assert isinstance(mismatch(value, schema), str)


@given(JSON)
def test_any_result_is_told_or_refused(value: object) -> None:
    try:
        result = read_result(tool(), value)
    except ToolError:
        return
    result.note.encode("utf-8")
    assert result.note.startswith("book: ")


def test_arguments_are_of_the_types_that_their_schema_declares() -> None:
    schema = parameters_schema("p", {"people": "integer", "price": "number", "day": "string?"})
    typed = as_declared({"people": 4.0, "price": 4.0, "day": "friday", "hat": 1.0}, schema)
    assert [(key, type(value)) for key, value in typed.items()] == [
        ("people", int),
        ("price", float),
        ("day", str),
        ("hat", float),
    ]
    assert as_declared({"a": 1.0}, {"properties": {"a": True}}) == {"a": 1.0}


def test_what_must_be_said_can_be_encoded() -> None:
    assert read_result(tool(), {"must_say": ["K\ud800", "$5"]}).must_say == ("K?", "$5")


def test_notes_tell_values_as_they_are_said_and_have_an_end() -> None:
    value = {"by_window": True, "names": ["Ann", "Bo"], "none": None, "inner": {"a": 1}}
    assert read_result(tool(), value).note == "book: by window: yes; names: Ann, Bo; none: done; inner: a: 1"
    assert read_result(tool(), None).note == read_result(tool(), "").note == "book: done"
    assert len(read_result(tool(), "word " * 1000).note) <= MAX_NOTE_CHARS + 2
    assert len(failure("book", "x" * 1000).note) < 250
    assert failure("book", " ").note == "book failed: no reason given"


@pytest.mark.parametrize(
    ("output", "note"),
    [
        ("table 12", "f: table 12"),
        ('{"table": 12}', "f: table: 12"),
        ('["a", "b"]', "f: a, b"),
        ('{"error": "closed"}', "f failed: closed"),
        ("12", "f: 12"),
        ("\ud800", "f: ?"),
        ("[" * 5000, None),
    ],
)
def test_a_clients_output_is_told_whether_it_is_text_or_json(output: str, note: str | None) -> None:
    assert note is None or output_note("f", output) == note
    assert output_note("f", output).startswith("f")


# --- the configuration ------------------------------------------------------------------------------------------------


def declare(**keys: object) -> Config:
    return load_config([{"tools": {"book": {"function": "m:f", **keys}}}])


def test_a_tool_is_read_with_its_defaults_and_set_from_the_command_line() -> None:
    layers = [{"tools": {"book": {"function": "m:f"}}}, assignment_layer(["tools.book.timeout_s=2"])]
    book = load_config(layers).tools["book"]
    assert (book.timeout_s, book.side_effect, book.method, book.result) == (2.0, True, "POST", {})
    assert load_config([]).tools == {}


@pytest.mark.parametrize(
    ("keys", "key", "expected"),
    [
        ({"timeout_s": 0}, "tools.book.timeout_s", "seconds from 0.05 to 120"),
        ({"side_effects": False}, "tools.book.side_effects", "did you mean tools.book.side_effect?"),
        ({"side_effect": "no"}, "tools.book.side_effect", "true or false"),
        ({"function": "m.f"}, "tools.book.function", "'package.module:function'"),
        ({"function": ""}, "tools.book.function", "exactly one of function and url"),
        ({"url": "https://h/x"}, "tools.book.url", "exactly one of function and url"),
        ({"function": "", "url": "ftp://h/x"}, "tools.book.url", "a URL such as"),
        ({"function": "", "url": "https://user:pw@h/x"}, "tools.book.url", "a URL such as"),
        ({"function": "", "url": "https://h/x", "method": "FETCH"}, "tools.book.method", "'POST', 'PUT'"),
        ({"headers": {"A": "b"}}, "tools.book.headers", "headers belong to a url"),
        ({"parameters": {"people": "int"}}, "tools.book.parameters.people", "'string', 'integer'"),
        ({"parameters": {"a b": "string"}}, "tools.book.parameters.a b", "letters, digits and underscores"),
        ({"parameters": ["people"]}, "tools.book.parameters", "a table such as"),
        ({"result": {"type": "text"}}, "tools.book.result.type", "one of string"),
        ({"result": {"pattern": "x"}}, "tools.book.result.pattern", "a keyword among"),
        ({"result": {"properties": {"a": 1}}}, "tools.book.result.properties.a", "a JSON schema"),
        ({"result": {"minimum": "1"}}, "tools.book.result.minimum", "a finite number"),
        ({"result": {"minimum": True}}, "tools.book.result.minimum", "a finite number"),
        ({"result": {"maximum": float("nan")}}, "tools.book.result.maximum", "nan: expected a finite number"),
        ({"result": {"minimum": float("-inf")}}, "tools.book.result.minimum", "a finite number"),
        ({"result": {"minLength": -1}}, "tools.book.result.minLength", "-1: expected a whole number, at least 0"),
        ({"result": {"maxLength": 2.5}}, "tools.book.result.maxLength", "a whole number, at least 0"),
        ({"result": {"minItems": "two"}}, "tools.book.result.minItems", "a whole number, at least 0"),
        ({"result": {"maxItems": float("inf")}}, "tools.book.result.maxItems", "a whole number, at least 0"),
        ({"result": {"minLength": 5, "maxLength": 3}}, "tools.book.result.maxLength", "at least minLength, which is 5"),
        ({"result": {"minimum": 0.5, "maximum": 0}}, "tools.book.result.maximum", "at least minimum, which is 0.5"),
        (
            {"result": {"items": {"minItems": 2, "maxItems": 1}}},
            "tools.book.result.items.maxItems",
            "at least minItems",
        ),
        (
            {"result": {"properties": {"a": {"maxLength": -1}}}},
            "tools.book.result.properties.a.maxLength",
            "at least 0",
        ),
        ({"result": {"type": "integer", "minLength": 2}}, "tools.book.result.minLength", "the type string beside it"),
        ({"result": {"type": ["string", "null"], "minimum": 2}}, "tools.book.result.minimum", "integer or number"),
        ({"result": {"enum": []}}, "tools.book.result.enum", "at least one value"),
        ({"result": {"type": []}}, "tools.book.result.type", "one of string"),
        ({"result": {"required": "a"}}, "tools.book.result.required", "a list"),
        ({"result": {"required": [["a"]]}}, "tools.book.result.required", "names"),
        ({"result": {"type": [["string"]]}}, "tools.book.result.type", "one of string"),
    ],
)
def test_each_mistake_names_its_key_and_what_was_expected(keys: dict[str, object], key: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        declare(**keys)
    assert caught.value.key == key and expected in str(caught.value)


def test_names_tables_and_variables_are_checked_and_headers_are_never_shown() -> None:
    for layer, key in (
        ({"tools": {"a-b": {}}}, "tools.a-b"),
        ({"tools": {"a": 5}}, "tools.a"),
        ({"tools": 5}, "tools"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config([layer])
        assert caught.value.key == key
    with pytest.raises(ConfigError) as caught:
        declare(headers={"Authorization": 12345})
    assert "12345" not in str(caught.value)
    with pytest.raises(ConfigError):
        environment_layer({"VOICEAGENT_TOOLS_BOOK_URL": "x"})


@pytest.mark.parametrize(
    "schema",
    [
        {"minimum": -3, "maximum": -3},
        {"minimum": 10**400},
        {"minLength": 0, "maxLength": 4.0},
        {"type": ["string", "null"], "maxLength": 4},
        {"type": "number", "minimum": 0.5},
        {"type": "array", "minItems": 1, "items": {"type": "string"}},
    ],
)
def test_bounds_that_something_can_keep_are_taken(schema: dict[str, object]) -> None:
    check_schema("s", schema)


@given(JSON)
def test_any_schema_is_accepted_or_a_config_error(schema: object) -> None:
    try:
        check_schema("s", schema)
    except ConfigError:
        return
    assert mismatch("value", schema) is not None

"""What callers may ask for: expressions, JSON schemas, choices, phrases and tool calls, each as replies that obey."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch

from dllm.automata import both, either, escape, from_regex, without
from dllm.constraints import GrammarConstraint, Lexicon
from dllm.errors import ConfigError
from dllm.grammar import (
    compile_choices,
    compile_containing,
    compile_json,
    compile_json_schema,
    compile_regex,
    compile_spans,
    compile_tool_calls,
)
from dllm.schema import schema_regex
from tests.dllm import tiny

ORDER: Mapping[str, Any] = {
    "type": "object",
    "title": "An order",
    "properties": {
        "name": {"type": "string", "description": "who calls"},
        "size": {"enum": ["small", "medium", "large"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 12},
        "price": {"type": "number"},
        "extras": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
    },
    "required": ["name", "size", "count"],
}


@cache
def lexicon() -> Lexicon:
    return Lexicon.read(tiny.codec())


def text_of(tokens: list[int]) -> str:
    return b"".join(tiny.codec().token_bytes(token) for token in tokens).decode()


def written(constraint: GrammarConstraint, seed: int, width: int = 0) -> str:
    """A reply to random wishes, decided in random order, a few positions at a time."""
    choose = random.Random(seed)
    width = width or constraint.shortest() + choose.randrange(24)
    decided: list[int | None] = [None] * width
    masked = list(range(width))
    choose.shuffle(masked)
    while masked:
        generator = torch.Generator().manual_seed(choose.randrange(2**30))
        log_probabilities = torch.log_softmax(3 * torch.randn(width, tiny.codec().vocab_size, generator=generator), -1)
        tokens, _ = constraint.complete([], log_probabilities, decided, 0)
        for _ in range(min(len(masked), choose.randint(1, 9))):
            at = masked.pop()
            decided[at] = tokens[at]
    return text_of([token for token in decided if token is not None])


def obeys(value: Any, schema: Any) -> bool:
    """A small validator, enough for the schemas of this file."""
    if schema is True:
        return True
    if "anyOf" in schema:
        return any(obeys(value, branch) for branch in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if "const" in schema:
        return bool(value == schema["const"])
    kinds: dict[str, Callable[[], bool]] = {
        "null": lambda: value is None,
        "boolean": lambda: isinstance(value, bool),
        "integer": lambda: (
            isinstance(value, int) and schema.get("minimum", value) <= value <= schema.get("maximum", value)
        ),
        "number": lambda: isinstance(value, int | float),
        "string": lambda: (
            isinstance(value, str)
            and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**6)
            and re.search(schema.get("pattern", ""), value) is not None
        ),
        "array": lambda: (
            isinstance(value, list)
            and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**6)
            and all(obeys(item, schema.get("items", True)) for item in value)
        ),
        "object": lambda: (
            isinstance(value, dict)
            and set(schema.get("required", ())) <= set(value)
            and all(obeys(inner, schema.get("properties", {}).get(name, True)) for name, inner in value.items())
        ),
    }
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    return any(kinds[kind]() for kind in types)


SCHEMAS: dict[str, Any] = {
    "order": ORDER,
    "enum": {"enum": ["tea", 3, None, "fish; chips|peas", 'say "hi"', {"a": [1, 2]}]},
    "number": {"type": "number"},
    "bounds": {"type": "integer", "minimum": -3, "maximum": 11},
    "array": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    "nested": {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": {"type": "object", "properties": {"tea": {"type": "boolean"}}}}
        },
        "required": ["items"],
    },
    "all optional": {"type": "object", "properties": {name: {"type": "null"} for name in "abcd"}},
    "odd names": {"type": "object", "properties": {'a"b.c': {"const": "é"}}, "required": ['a"b.c']},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"},
    "alternatives in a pattern": {"type": "string", "pattern": "^(tea|milk)$"},
    "searched pattern": {"type": "string", "pattern": "tea"},
    "lengths": {"type": "string", "minLength": 2, "maxLength": 5},
    "several types": {"type": ["string", "null", "integer"]},
    "union": {
        "anyOf": [{"type": "integer"}, {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}]
    },
    "anything inside": {"type": "object", "properties": {"a": {}, "b": True}, "required": ["b"]},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_replies_under_a_schema_are_documents_that_obey_it(name: str) -> None:
    schema = SCHEMAS[name]
    constraint = compile_json_schema(schema, lexicon())
    for seed in range(3):
        assert obeys(json.loads(written(constraint, seed)), schema)


def test_a_document_fits_the_narrowest_canvas_to_the_token() -> None:
    constraint = compile_json_schema(ORDER, lexicon())
    least = constraint.shortest()
    assert obeys(json.loads(written(constraint, 0, least)), ORDER)
    with pytest.raises(ValueError, match=f"needs at least {least} tokens, the canvas has {least - 1}"):
        written(constraint, 0, least - 1)


def test_optional_members_are_there_or_not_as_the_model_wants() -> None:
    pattern = schema_regex(SCHEMAS["all optional"])
    found = from_regex(pattern)
    for members in range(16):
        chosen = [name for at, name in enumerate("abcd") if members >> at & 1]
        assert found.accepts(json.dumps(dict.fromkeys(chosen)).encode())
    for wrong in ('{"a":null,}', '{,"b":null}', '{"a":null "b":null}', '{"e":null}', '{"a":1}'):
        assert not found.accepts(wrong.encode())


def test_required_members_are_never_left_out() -> None:
    found = from_regex(schema_regex(ORDER))
    assert found.accepts(b'{"name": "Jo", "size": "small", "count": 2, "extras": []}')
    for wrong in (
        b'{"name": "Jo", "size": "small"}',
        b'{"size": "small", "count": 2}',
        b'{"name": "Jo", "size": "huge", "count": 2}',
    ):
        assert not found.accepts(wrong)


def test_references_are_followed_and_a_recursion_ends() -> None:
    tree = {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
                "required": ["value"],
            }
        },
        "$ref": "#/$defs/node",
    }
    found = from_regex(schema_regex(tree))
    assert found.accepts(b'{"value": 1, "next": {"value": 2, "next": {"value": 3}}}')
    assert not found.accepts(b'{"next": {"value": 2}}')


def test_a_recursion_without_an_end_is_refused() -> None:
    endless = {
        "$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}},
        "$ref": "#/$defs/a",
    }
    with pytest.raises(ConfigError, match="recursion that can end"):
        schema_regex(endless)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "schema.uniqueItems"),
        ({"type": "object", "properties": {"a": {"type": "number", "multipleOf": 2}}}, "schema.a.multipleOf"),
        ({"not": {"type": "string"}}, "'not'"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "schema.allOf"),
        ({"type": "object", "patternProperties": {}}, "schema.patternProperties"),
        ({"type": "object", "properties": {"a": True}, "required": ["b"]}, "schema.required = 'b'"),
        ({"type": "thing"}, "schema.type = 'thing'"),
        ({"type": "string", "format": "iri"}, "schema.format = 'iri'"),
        ({"type": "string", "pattern": "^.*$"}, "quotation marks"),
        ({"type": "string", "pattern": "("}, "pattern"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "schema.maxLength"),
        ({"type": "integer", "minimum": 5}, "from 5 to None"),
        ({"$ref": "#/$defs/none"}, "there is no '\\$defs'"),
        ({"$ref": "https://example.org/a"}, "a place in this schema"),
        ({"anyOf": [{"type": "null"}], "type": "object", "properties": {}}, "schema.properties"),
        ({"enum": ["a"], "type": "integer"}, "at least one value of this type"),
        (False, "that something obeys"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        schema_regex(schema)


def test_a_json_object_of_any_members_parses() -> None:
    constraint = compile_json(lexicon())
    for seed in range(4):
        assert isinstance(json.loads(written(constraint, seed)), dict)


@pytest.mark.parametrize("format_, good, bad", [
    ("date", "2024-02-29", "2024-13-01"),
    ("time", "23:59:59Z", "24:00:00Z"),
    ("date-time", "2024-02-29T08:00:00+01:00", "2024-02-29 08:00"),
    ("email", "jo.doe@example.co.uk", "jo@example"),
    ("ipv4", "255.0.10.9", "256.0.0.1"),
    ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
    ("uri", "https://example.org/a?b=c", "example.org"),
])  # fmt: skip
def test_formats_accept_what_they_name(format_: str, good: str, bad: str) -> None:
    found = from_regex(schema_regex({"type": "string", "format": format_}))
    assert found.accepts(json.dumps(good).encode())
    assert not found.accepts(json.dumps(bad).encode())


def test_choices_are_one_of_the_texts_and_nothing_else() -> None:
    choices = ("yes", "no", "yes, please!", "it's $5.10 (more or less)")
    constraint = compile_choices(choices, lexicon())
    assert {written(constraint, seed).removeprefix(" ") for seed in range(30)} == set(choices)
    with pytest.raises(ConfigError, match="at least one text"):
        compile_choices([], lexicon())


def test_a_space_in_front_is_allowed_where_replies_begin_with_one() -> None:
    codec = tiny.codec()
    assert compile_choices(["tea"], codec).accepts(codec.encode_text("tea"))
    assert not compile_choices(["tea"], codec, leading_space=False).accepts(codec.encode_text("tea"))


def test_phrases_are_all_included_in_any_order() -> None:
    phrases = ("large mocha", "$5.10", "milk")
    constraint = compile_containing(phrases, lexicon())
    orders = set()
    for seed in range(12):
        reply = written(constraint, seed)
        assert all(phrase in reply for phrase in phrases)
        orders.add(tuple(sorted(phrases, key=reply.index)))
    assert len(orders) > 1
    for wrong in ((), ("tea", "")):
        with pytest.raises(ConfigError, match="phrases"):
            compile_containing(wrong, lexicon())


TOOLS = {"order": ORDER, "hang_up": {"type": "object", "properties": {}}}
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


def are_calls(text: str) -> bool:
    calls = [json.loads(body) for body in _CALL.findall(text)]
    return bool(calls) and all(
        set(call) == {"name", "arguments"} and obeys(call["arguments"], TOOLS[call["name"]]) for call in calls
    )


def test_replies_with_tools_are_text_or_whole_calls() -> None:
    constraint = compile_tool_calls(TOOLS, lexicon())
    codec = tiny.codec()
    for seed in range(6):
        reply = written(constraint, seed, 40)
        assert "<tool_call>" not in reply or are_calls(reply)
    for good in (
        "Anything else?",
        'One moment. <tool_call>\n{"name": "hang_up", "arguments": {}}\n</tool_call>',
        '<tool_call>{"name":"hang_up","arguments":{}}</tool_call>\n<tool_call>{"name":"hang_up","arguments":{}}</tool_call>\n',
        "less <tool than <tool_cal",
    ):
        assert constraint.accepts(codec.tokenizer.encode(good).ids)
    for bad in (
        "<tool_call>",
        '<tool_call>{"name": "fly", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "hang_up", "arguments": {}}</tool_call> and text',
        '<tool_call>{"name": "hang_up", "arguments": {}}',
    ):
        assert not constraint.accepts(codec.tokenizer.encode(bad).ids)


def test_an_opener_decided_in_the_middle_becomes_a_whole_call() -> None:
    constraint = compile_tool_calls(TOOLS, lexicon())
    codec = tiny.codec()
    opener = codec.tokenizer.encode("<tool_call>").ids
    decided: list[int | None] = [None] * 80
    decided[5 : 5 + len(opener)] = opener
    tokens, _ = constraint.complete([], torch.zeros(80, codec.vocab_size), decided, 0)
    assert tokens[5 : 5 + len(opener)] == opener
    assert are_calls(text_of(tokens))


def test_a_required_call_leaves_no_room_for_text() -> None:
    constraint = compile_tool_calls(TOOLS, lexicon(), required=True, several=False)
    for seed in range(4):
        reply = written(constraint, seed).strip()
        assert reply.startswith("<tool_call>")
        assert reply.count("<tool_call>") == 1
        assert are_calls(reply)


def test_spans_take_any_markers_and_refuse_none() -> None:
    constraint = compile_spans([{"type": "integer"}], lexicon(), opener="[[", closer="]]", required=True)
    assert re.fullmatch(r"(\s*\[\[\s*-?\d+\s*\]\]\s*)+", written(constraint, 1))
    with pytest.raises(ConfigError, match="opener"):
        compile_spans([True], lexicon(), opener="", closer="]]")
    with pytest.raises(ConfigError, match="schemas"):
        compile_spans([], lexicon(), opener="[[", closer="]]")


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("a|ab", "ab", True),
        ("a(bc)?", "abc", True),
        ("a*?", "aaa", True),
        ("^a|b$", "b", True),
        ("", "", True),
        (r"a\$", "a$", True),
        ("é+", "éé", True),
        (".", "é", True),
        (".", "\n", False),
        ("[^a]", "漢", True),
        ("a{2}", "aaa", False),
    ],
)
def test_an_expression_accepts_its_full_matches(pattern: str, text: str, matches: bool) -> None:
    assert from_regex(pattern).accepts(text.encode()) is matches


def test_an_escaped_text_matches_itself_alone() -> None:
    text = "".join(map(chr, range(32, 127))) + "\n\t é漢"
    assert from_regex(escape(text)).accepts(text.encode())
    assert not from_regex(escape("a.c")).accepts(b"abc")


def test_automata_join_as_sets_do() -> None:
    left, right = from_regex("[ab]*a[ab]*"), from_regex("[ab]{2}")
    for text in ("", "a", "b", "ab", "bb", "aba"):
        in_left, in_right = "a" in text, len(text) == 2
        assert both(left, right).accepts(text.encode()) is (in_left and in_right)
        assert either(left, right).accepts(text.encode()) is (in_left or in_right)
        assert without(left, right).accepts(text.encode()) is (in_left and not in_right)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "unterminated subpattern"),
        ("[b", "unterminated character set"),
        (r"(a)\1", "not regular"),
        ("a(?=b)", "not regular"),
    ],
)
def test_an_invalid_expression_is_refused_with_the_reason(pattern: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        compile_regex(pattern, lexicon())


def test_an_expression_with_too_many_states_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 30000 states"):
        from_regex("(a|b)*a(a|b){14}")

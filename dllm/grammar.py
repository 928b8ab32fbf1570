"""From what a caller asks for to a `GrammarConstraint`: expressions, JSON schemas, choices, phrases, tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dllm.automata import Automaton, both, chain, either, escape, from_regex, without
from dllm.constraints import GrammarConstraint, Lexicon, Speller
from dllm.errors import ConfigError
from dllm.schema import Schema, schema_regex

_ANYTHING = "(?s:.)*"
_SPACE = "[ \\n\\r\\t]*"


def compile_regex(pattern: str, codec: Speller | Lexicon, *, leading_space: bool = True) -> GrammarConstraint:
    """Replies that match the whole pattern.

    Args:
        pattern: In Rust's `regex` syntax, matched against the reply's UTF-8 from end to end.
        codec: Whose tokens; a `Lexicon` where several grammars are compiled or special tokens take part.
        leading_space: Whether one space may stand before the match. The built-in family begins every reply with one.

    Raises:
        ConfigError: If the pattern is invalid, too large, or matches nothing that the tokens can spell.
    """
    return GrammarConstraint(_spaced(pattern, leading_space), _lexicon(codec))


def compile_json_schema(schema: Schema, codec: Speller | Lexicon, *, leading_space: bool = True) -> GrammarConstraint:
    """Replies that are one JSON document; see `dllm.schema` for what of a schema is understood.

    Raises:
        ConfigError: Naming the keyword, if the schema is malformed or asks for more than that.
    """
    return compile_regex(schema_regex(schema), codec, leading_space=leading_space)


def compile_json(codec: Speller | Lexicon, *, leading_space: bool = True) -> GrammarConstraint:
    """Replies that are a JSON object of any members, nested up to three deep."""
    return compile_json_schema({"type": "object"}, codec, leading_space=leading_space)


def compile_choices(texts: Sequence[str], codec: Speller | Lexicon, *, leading_space: bool = True) -> GrammarConstraint:
    """Replies that are one of these texts.

    Raises:
        ConfigError: If there are none.
    """
    if not texts:
        raise ConfigError("choices", texts, "at least one text")
    return compile_regex("|".join(escape(text) for text in texts), codec, leading_space=leading_space)


def compile_containing(phrases: Sequence[str], codec: Speller | Lexicon) -> GrammarConstraint:
    """Replies with each of these phrases somewhere in them, in any order; they may overlap.

    Raises:
        ConfigError: If there are none, one is empty, or there are too many: states multiply.
    """
    if not phrases or not all(phrases):
        raise ConfigError("phrases", phrases, "at least one phrase, none of them empty")
    found = from_regex(_ANYTHING)
    for phrase in phrases:
        found = both(found, from_regex(f"{_ANYTHING}{escape(phrase)}{_ANYTHING}"))
    return GrammarConstraint(found, _lexicon(codec))


def compile_spans(
    schemas: Sequence[Schema],
    codec: Speller | Lexicon,
    *,
    opener: str,
    closer: str,
    required: bool = False,
    several: bool = True,
) -> GrammarConstraint:
    """Replies of free text and `opener` JSON `closer` spans: once an opener is written, a document and a closer follow.

    White space may stand around the document and behind a closer, other text in front of the first opener only.

    Args:
        schemas: Each document obeys one of them.
        opener: Text that free text never contains.
        closer: Text behind a document.
        required: Whether there is a span in every reply, and no text in front of it.
        several: Whether more than one span may follow another.

    Raises:
        ConfigError: As `compile_json_schema`, and for an empty opener.
    """
    if not opener:
        raise ConfigError("opener", opener, "some text")
    if not schemas:
        raise ConfigError("schemas", schemas, "at least one")
    document = "|".join(schema_regex(schema) for schema in schemas)
    span = f"{_SPACE}(?:{document}){_SPACE}{escape(closer)}"
    more = f"(?:{_SPACE}{escape(opener)}{span})*" if several else ""
    if required:
        spans = from_regex(f"{_SPACE}{escape(opener)}{span}{more}{_SPACE}")
        return GrammarConstraint(spans, _lexicon(codec))
    opened = from_regex(f"{_ANYTHING}{escape(opener)}")
    containing = from_regex(f"{_ANYTHING}{escape(opener)}{_ANYTHING}")
    first = without(opened, from_regex(f"{_ANYTHING}{escape(opener)}(?s:.)+"))
    text = without(from_regex(_ANYTHING), containing)
    spans = chain(first, from_regex(f"{span}{more}{_SPACE}"))
    return GrammarConstraint(either(text, spans), _lexicon(codec))


def compile_tool_calls(
    tools: Mapping[str, Schema],
    codec: Speller | Lexicon,
    *,
    opener: str = "<tool_call>",
    closer: str = "</tool_call>",
    required: bool = False,
    several: bool = True,
) -> GrammarConstraint:
    """Replies that are text or calls of these tools: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Qwen and Hermes write.

    Args:
        tools: Name to the schema of its arguments.
        codec: Pass a `Lexicon` with `spelled` where the markers are special tokens.
        opener: In front of each call.
        closer: Behind each call.
        required: Whether the reply must be calls.
        several: Whether it may be more than one.

    Raises:
        ConfigError: As `compile_spans`.
    """
    calls: list[Schema] = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": arguments},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, arguments in tools.items()
    ]
    return compile_spans(calls, codec, opener=opener, closer=closer, required=required, several=several)


def _spaced(pattern: str, leading_space: bool) -> Automaton:
    automaton = from_regex(pattern)
    if leading_space and not automaton.is_empty:
        return either(automaton, chain(from_regex(" "), automaton))
    return automaton


def _lexicon(codec: Speller | Lexicon) -> Lexicon:
    return codec if isinstance(codec, Lexicon) else Lexicon.read(codec)

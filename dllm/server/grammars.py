"""Schemas, expressions and tools to constraints. Each is compiled once: clients send the same ones with every request."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dllm.codec import Codec
from dllm.errors import ConfigError
from dllm.patterns import of_strangers
from dllm.server.problems import ApiError
from dllm.server.requests import Grammar, Tool, ToolMode
from dllm.server.tools import CLOSE, OPEN

if TYPE_CHECKING:
    from dllm.constraints import GrammarConstraint, Lexicon

KEPT = 64
"""Compiled grammars that are kept: tables of up to some tens of MB."""


class Grammars:
    """Compiles for one codec. Slow (a first call reads the whole vocabulary), so not for an event loop; any thread may call."""

    def __init__(self, codec: Codec, *, most: int = KEPT) -> None:
        self._codec, self._most = codec, most
        self._lock = threading.Lock()
        self._lexicon: Lexicon | None = None
        self._kept: OrderedDict[str, GrammarConstraint] = OrderedDict()

    def compile(
        self,
        grammar: Grammar,
        tools: Sequence[Tool] = (),
        mode: ToolMode = "none",
        forced: str | None = None,
        *,
        several: bool = True,
    ) -> GrammarConstraint | None:
        """The constraint of a reply; None for free text.

        With tools that may be called the reply is text or calls; with tools that must be, calls alone, whatever else was asked.
        With a grammar and tools it is either.

        Raises:
            ApiError: If a schema or an expression cannot be compiled.
        """
        callable_tools = [tool for tool in tools if forced is None or tool.name == forced] if mode != "none" else []
        if not callable_tools:
            return self._whole(grammar)
        schemas = {tool.name: tool.parameters for tool in callable_tools}
        key = json.dumps(["tools", schemas, mode, several, _key(grammar)], sort_keys=True)
        if mode == "auto" and not grammar.is_free:
            return self._get(key, "response_format", lambda lexicon: _either(grammar, callable_tools, lexicon))

        def build(lexicon: Lexicon) -> GrammarConstraint:
            from dllm.grammar import compile_tool_calls

            return compile_tool_calls(schemas, lexicon, required=mode == "required", several=several)

        return self._get(key, "tools", build)

    def _whole(self, grammar: Grammar) -> GrammarConstraint | None:
        if grammar.is_free:
            return None

        def build(lexicon: Lexicon) -> GrammarConstraint:
            from dllm.grammar import compile_choices, compile_json_schema, compile_regex

            if grammar.schema is not None:
                return compile_json_schema(grammar.schema, lexicon)
            if grammar.regex is not None:
                return compile_regex(grammar.regex, lexicon)
            return compile_choices(grammar.choices, lexicon)

        param = "response_format" if grammar.schema is not None else "dllm.regex" if grammar.regex else "dllm.choices"
        return self._get(json.dumps(_key(grammar), sort_keys=True), param, build)

    def _get(self, key: str, param: str, build: Callable[[Lexicon], GrammarConstraint]) -> GrammarConstraint:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
            lexicon = self._read()
        try:
            with of_strangers():
                found = build(lexicon)  # Nobody waits for somebody else's: it may take seconds.
        except ConfigError as error:
            raise ApiError(400, f"{param}: {error}", param=param) from error
        with self._lock:
            self._kept[key] = found
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return found

    def _read(self) -> Lexicon:
        if self._lexicon is None:
            from dllm.constraints import Lexicon

            self._lexicon = Lexicon.read(self._codec)
        return self._lexicon


def _key(grammar: Grammar) -> list[object]:
    return [grammar.schema, grammar.regex, list(grammar.choices)]


def _either(grammar: Grammar, tools: Sequence[Tool], lexicon: Lexicon) -> GrammarConstraint:
    """A reply that follows the grammar, or one call."""
    from dllm.automata import escape
    from dllm.grammar import compile_regex
    from dllm.schema import schema_regex

    if grammar.schema is not None:
        text = schema_regex(grammar.schema)
    else:
        text = grammar.regex if grammar.regex is not None else "|".join(map(escape, grammar.choices))
    calls = [
        schema_regex(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": tool.parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
        for tool in tools
    ]
    space = "[ \\n\\r\\t]*"
    call = f"{escape(OPEN)}{space}(?:{'|'.join(calls)}){space}{escape(CLOSE)}{space}"
    return compile_regex(f"(?:{text})|(?:{call})", lexicon)

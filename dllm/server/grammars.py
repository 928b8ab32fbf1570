"""Schemas, expressions and tools to constraints. Each is compiled once: clients send the same ones with every request."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllm.codec import Codec
from dllm.errors import ConfigError
from dllm.patterns import Trial, of_strangers
from dllm.server.problems import ApiError
from dllm.server.requests import Grammar, Tool, ToolMode
from dllm.server.tools import CLOSE, OPEN

if TYPE_CHECKING:
    from dllm.constraints import GrammarConstraint, Lexicon

KEPT = 64
"""Compiled grammars that are kept: tables of up to some tens of MB."""


@dataclass(frozen=True, slots=True)
class Order:
    """A grammar that is wanted."""

    key: str
    """The same for the same grammar."""
    param: str
    """The field of the request that it comes from."""
    build: Callable[[Lexicon], GrammarConstraint]


def ordered(
    grammar: Grammar,
    tools: Sequence[Tool] = (),
    mode: ToolMode = "none",
    forced: str | None = None,
    *,
    several: bool = True,
) -> Order | None:
    """What holds a reply; None for free text.

    With tools that may be called the reply is text or calls; with tools that must be, calls alone, whatever else was asked.
    With a grammar and tools it is either.
    """
    callable_tools = [tool for tool in tools if forced is None or tool.name == forced] if mode != "none" else []
    if not callable_tools:
        return _whole(grammar)
    schemas = {tool.name: tool.parameters for tool in callable_tools}
    key = json.dumps(["tools", schemas, mode, several, _key(grammar)], sort_keys=True)
    if mode == "auto" and not grammar.is_free:
        return Order(key, "response_format", lambda lexicon: _either(grammar, callable_tools, lexicon))

    def build(lexicon: Lexicon) -> GrammarConstraint:
        from dllm.grammar import compile_tool_calls

        return compile_tool_calls(schemas, lexicon, required=mode == "required", several=several)

    return Order(key, "tools", build)


def _whole(grammar: Grammar) -> Order | None:
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
    return Order(json.dumps(_key(grammar), sort_keys=True), param, build)


class Grammars:
    """Compiles for one codec and keeps what it compiled. Any thread may call."""

    def __init__(self, codec: Codec, *, most: int = KEPT) -> None:
        self._codec, self._most = codec, most
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._lexicon: Lexicon | None = None
        self._kept: OrderedDict[str, GrammarConstraint] = OrderedDict()

    def kept(self, order: Order) -> GrammarConstraint | None:
        """What was compiled for it before, if that is still here. Does not block."""
        with self._lock:
            found = self._kept.get(order.key)
            if found is not None:
                self._kept.move_to_end(order.key)
            return found

    def compile(self, order: Order, trial: Trial | None = None) -> GrammarConstraint:
        """Slow: a first call reads the whole vocabulary. Not for an event loop.

        Args:
            trial: What another thread may end it by, where that can take long.

        Raises:
            ApiError: If a schema or an expression cannot be compiled.
            TrialEndedError, TrialUnavailableError, TrialFailedError: As `dllm.patterns.is_too_large`.
        """
        found = self.kept(order)
        if found is not None:
            return found
        lexicon = self._read()
        try:
            with of_strangers(trial):
                found = order.build(lexicon)  # Outside the locks: it may take seconds.
        except ConfigError as error:
            raise ApiError(400, f"{order.param}: {error}", param=order.param) from error
        with self._lock:
            self._kept[order.key] = found
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return found

    def _read(self) -> Lexicon:
        with self._reading:
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

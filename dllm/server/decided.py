"""Tool calls of the built-in model that are decided before a word is written (`dllm.deciding`), for one request."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from dllm.calls import Call, Tool, is_within, typed_arguments
from dllm.codec import Message
from dllm.deciding import Decider
from dllm.drafts import DraftSpec
from dllm.errors import CallError
from dllm.said import words_of_number
from dllm.server.plans import Room
from dllm.spoken import typed_form, written_form

MOST_ARGUMENTS = 32
"""Of all tools of a request together: looking for values takes time in which nobody else's reply is written."""

_TOLD = frozenset({"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"})
"""What a schema says and asks nothing by."""
_OF_VALUES = _TOLD | {"type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength"}  # fmt: skip
_OF_OBJECTS = _TOLD | {"type", "properties", "required", "additionalProperties", "$schema", "$defs", "definitions"}


def can_decide(tools: Sequence[Tool]) -> bool:
    """Whether calls of these tools can be decided, so that what is called obeys their schemas."""
    return sum(len(tool.properties) for tool in tools) <= MOST_ARGUMENTS and all(map(_is_known, tools))


def _is_known(tool: Tool) -> bool:
    """Whether a tool's schema asks for nothing that is not seen to."""
    return (
        tool.is_flat
        and _OF_OBJECTS.issuperset(tool.parameters)
        and all(
            _OF_VALUES.issuperset(schema) and all(isinstance(one, str | int | float) for one in schema.get("enum", ()))
            for schema in tool.properties.values()
        )
    )


def is_answered(messages: Sequence[Message]) -> bool:
    """Whether a tool has answered what the user said last."""
    said_last = max((at for at, message in enumerate(messages) if message.role == "user"), default=-1)
    return any(message.role == "tool" for message in messages[said_last + 1 :])


def as_spoken(messages: Sequence[Message]) -> list[Message]:
    """The chat as if it had been spoken, which is how `dllm.said` reads it: the user's words, and those that calls were made of."""
    told: list[Message] = []
    for message in messages:
        text = typed_form(message.text) if message.role == "user" else message.text
        heard = [one.text for one in reversed(told) if one.role == "user"]
        calls = tuple(_spoken_call(body, heard) for body in message.tool_calls)
        told.append(replace(message, text=text, tool_calls=calls))
    return told


def _spoken_call(body: Mapping[str, Any], heard: Sequence[str]) -> Mapping[str, Any]:
    try:
        function = body["function"]
        arguments = json.loads(function["arguments"] or "{}")
        words = {key: _spoken_value(value, heard) for key, value in arguments.items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return body  # The codec says what is wrong with it.
    return {**body, "function": {**function, "arguments": json.dumps(words)}}


def _spoken_value(value: object, heard: Sequence[str]) -> str:
    """An argument in words; a number in those that said it, which may be a row of figures.

    Args:
        heard: What the user said before, the latest first.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    found = (words_of_number(value, text) for text in heard) if isinstance(value, int | float) else ()
    return next((words for words in found if words), typed_form(str(value)))


class DecidedCall:
    """Whether the replies to a chat are a call: the model is asked once, on the engine's thread, when the first of them is to be written.

    Args:
        prompt: The chat as it would be spoken, up to the reply.
        said: The user's messages as they were written, oldest first.
        tools: What may be called.
        must_call: Whether nothing but calls is allowed. One in which something is missing is left to the grammar all the same.
        check: Raises where a reply that is no decided call cannot be written.
    """

    def __init__(
        self,
        decider: Decider,
        prompt: Sequence[int],
        said: Sequence[str],
        tools: Sequence[Tool],
        room: Room,
        *,
        must_call: bool,
        check: Callable[[], None],
    ) -> None:
        self._decider, self._prompt, self._said, self._tools = decider, prompt, said, tools
        self._room, self._must_call, self._check = room, must_call, check

    def draft(self, spec: DraftSpec) -> DraftSpec:
        """The reply to be written: the call, or `spec`, which is that of a reply in words or in a grammar."""
        if self._call:
            return replace(spec, given=tuple(enumerate(self._call)), constraint=None)
        self._check()
        if spec.constraint is not None:
            return spec
        no_call = (self._decider.sign, -math.inf)
        return replace(spec, options=replace(spec.options, logit_bias=(*spec.options.logit_bias, no_call)))

    @cached_property
    def _call(self) -> tuple[int, ...]:
        """The whole reply where it is a call that obeys its tool's schema and fits; empty otherwise."""
        found = self._decider.decide(self._prompt, self._tools, must_call=self._must_call)
        if found.call is None:
            return ()
        tool = next(tool for tool in self._tools if tool.name == found.call.name)
        call = self._as_written(found.call, tool)
        if call is None:
            return ()
        try:
            arguments = typed_arguments(call, tool)
            reply = self._decider.tokens(call)
        except CallError:
            return ()
        fits = len(reply) <= self._room.width and len(reply) - 1 <= self._room.limit
        return reply if fits and all(is_within(arguments[key], tool.properties[key]) for key in arguments) else ()

    def _as_written(self, call: Call, tool: Tool) -> Call | None:
        """The same with texts in the user's own writing: "Anna Lee" for "anna lee". None where a text is a piece of a word that was typed."""
        arguments = dict(call.arguments)
        for key, value in arguments.items():
            schema = tool.properties[key]
            if "enum" not in schema and schema.get("type", "string") == "string":
                forms = (written_form(value, text) for text in reversed(self._said))
                written = next((form.replace(";", ",") for form in forms if form), None)
                if written is None:
                    return None
                arguments[key] = written
        return Call(call.name, arguments)

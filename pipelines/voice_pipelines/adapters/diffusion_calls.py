"""A reply's tokens as what is spoken and the tool call behind it. Pure.

The built-in family begins a call with the token `<call>` (`dllm.calls`); published chat models write JSON between tags, as Qwen's and
Nous's templates teach them. Nothing from there on is spoken, whether or not it turns out to be a call that can be read. Nor is what the built-in family spells of
a call without that token (`bare_calls`): nothing is carried out for it, the model is asked again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dllm.calls import Call, Tool, read_call, typed_arguments
from dllm.codec import Codec
from dllm.detokenize import IncrementalDecoder
from dllm.errors import CallError, ConfigError
from dllm.hub_codec import HubCodec
from dllm.text import DialogueCodec
from voice_pipelines.adapters.bare_calls import BareCalls
from voice_pipelines.adapters.remote_text import spoken_part
from voiceagent.tools import ToolCall, ToolSpec

OPEN, CLOSE = "<tool_call>", "</tool_call>"
CUT_OFF = "that was too long for one reply"
UNREAD = "a detail is missing"
"""What the model is told of a call that nobody can read. It repeats such words to the caller, and these the built-in model can say: tried with
twenty others, of which "that was not clear" became "it says not"."""


def call_sign(codec: Codec) -> int | None:
    """The token that begins a call, where one token does."""
    if isinstance(codec, DialogueCodec):
        return codec.special.call
    return codec.tokenizer.token_to_id(OPEN) if isinstance(codec, HubCodec) else None


class ReplyReader(Protocol):
    """Reads one reply. Used on the engine's thread only."""

    def feed(self, tokens: Sequence[int]) -> None: ...

    @property
    def spoken(self) -> str:
        """Text so far that may be spoken. Only grows."""
        ...

    @property
    def whole(self) -> str:
        """All that may be spoken, once the reply is complete."""
        ...

    @property
    def lacks_words(self) -> bool:
        """Whether something that is no call, but reads like one, was left out of it."""
        ...

    def call(self, *, is_cut: bool = False) -> ToolCall | None:
        """The call, once the reply is complete; `is_cut` when it filled its canvas."""
        ...


def reply_reader(codec: Codec, tools: Sequence[ToolSpec], *, may_call: bool = True) -> ReplyReader:
    """
    Args:
        tools: Those that the model was told of.
        may_call: Whether this reply may be a call.
    """
    if isinstance(codec, DialogueCodec):
        return DialogueReader(codec, tools, may_call=may_call)
    return ChatReader(codec, tools)


class DialogueReader:
    """The built-in family: what follows `<call>` is a name and words, which become what the tool's schema asks for."""

    def __init__(self, codec: DialogueCodec, tools: Sequence[ToolSpec], *, may_call: bool = True) -> None:
        self._sign = codec.special.call
        self._tools = {tool.name: tool for tool in known_tools(tools)}
        self._bare = BareCalls(list(self._tools.values()))
        self._may_call = may_call
        self._text, self._call = IncrementalDecoder(codec), IncrementalDecoder(codec)
        self._said = self._written = ""
        self._has_call = False

    def feed(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if token == self._sign:
                self._has_call = True
            elif self._has_call:
                self._written += self._call.feed((token,))
            else:
                self._said += self._text.feed((token,))

    @property
    def spoken(self) -> str:
        text = spoken_part(self._said)
        return text[: self._bare.settled(text)].strip()

    @property
    def whole(self) -> str:
        text = spoken_part(self._said)
        return text[: self._bare.find(text)].strip()

    @property
    def lacks_words(self) -> bool:
        return self._bare.find(spoken_part(self._said)) is not None

    def call(self, *, is_cut: bool = False) -> ToolCall | None:
        if not self._has_call:
            return self._unmarked() if self._may_call else None
        written = " ".join(self._written.split())
        if is_cut:
            return ToolCall(written.partition(";")[0][:64], {}, written, CUT_OFF)
        try:
            call = read_call(written)
            tool = self._tools.get(call.name)
            arguments: Mapping[str, object] = call.arguments if tool is None else typed_arguments(call, tool)
        except CallError as error:
            return ToolCall(error.name, {}, written, error.told)
        return ToolCall(call.name, arguments, written)

    def _unmarked(self) -> ToolCall | None:
        """What reads like a call and was not begun as one: whether it was meant is not known, so it is refused and not run."""
        text = spoken_part(self._said)
        begun = self._bare.find(text)
        if begun is None:
            return None
        written = " ".join(text[begun:].split())
        return ToolCall(self._bare.name_of(written), {}, written, UNREAD)


class ChatReader:
    """A published chat model. Where it was offered no tools, tags are text like any other."""

    def __init__(self, codec: Codec, tools: Sequence[ToolSpec]) -> None:
        self._decoder = IncrementalDecoder(codec)
        self._raw = ""
        self._may_call = bool(tools)

    def feed(self, tokens: Sequence[int]) -> None:
        self._raw += self._decoder.feed(tokens)

    @property
    def spoken(self) -> str:
        text = spoken_part(self._raw)
        if self._may_call:
            text = text.partition(OPEN)[0]
            # The end may be the beginning of a tag.
            begun = next((size for size in range(len(OPEN) - 1, 0, -1) if text.endswith(OPEN[:size])), 0)
            text = text[: len(text) - begun]
        return text.strip()

    @property
    def whole(self) -> str:
        return self.spoken

    @property
    def lacks_words(self) -> bool:
        return False

    def call(self, *, is_cut: bool = False) -> ToolCall | None:
        _, sign, rest = spoken_part(self._raw).partition(OPEN) if self._may_call else ("", "", "")
        if not sign:
            return None
        block, end, _ = rest.partition(CLOSE)
        if is_cut and not end:
            return ToolCall("tool", {}, problem=CUT_OFF)
        try:
            body = json.loads(block, parse_constant=_refuse)
            # It is told again in every later prompt, which takes no lone surrogate and no number like 1e999.
            json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8")
            name, arguments = body["name"], body.get("arguments") or {}
            if not isinstance(name, str) or not isinstance(arguments, dict):
                raise TypeError
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return ToolCall("tool", {}, problem=UNREAD)
        return ToolCall(name, arguments)


def known_tools(tools: Sequence[ToolSpec]) -> list[Tool]:
    """Those that the built-in family can be told of: arguments that are flat and plain."""
    found = []
    for spec in tools:
        try:
            tool = Tool(spec.name, spec.description, spec.parameters)
        except (ConfigError, TypeError):  # A client's schema may hold anything, names that are no texts included.
            continue
        if tool.is_flat:
            found.append(tool)
    return found


def function_body(spec: ToolSpec) -> dict[str, Any]:
    """A tool as chat templates and OpenAI's API are told of it."""
    function = {"name": spec.name, "description": spec.description, "parameters": dict(spec.parameters)}
    return {"type": "function", "function": function}


def encode_call(codec: DialogueCodec, call: ToolCall) -> list[int]:
    """An agent's turn that was a call: as the model wrote it, also where it could not be read."""
    if call.written:
        special = codec.special
        return [special.agent, special.call, *codec.encode_text(call.written), special.end]
    words = {key: " ".join(_words(value).replace(";", ",").split()) for key, value in call.arguments.items()}
    return codec.encode_call(Call(call.name, {key: value for key, value in words.items() if value}))


def _words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")

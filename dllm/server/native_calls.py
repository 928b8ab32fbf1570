"""Tool calls as the built-in model writes them (`dllm.calls`): from the token `<call>` on a reply is one call, mostly the whole of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm.calls import Tool, read_call, typed_arguments
from dllm.canvas import TokenTable
from dllm.codec import Message
from dllm.errors import CallError
from dllm.server.tools import Piece, Reader, ToolCall
from dllm.text import DialogueCodec

MARK = "<call>"


class CallCodec:
    """A `DialogueCodec` whose `<call>` token is visible in what it decodes."""

    def __init__(self, codec: DialogueCodec) -> None:
        self._codec = codec

    @property
    def vocab_size(self) -> int:
        return self._codec.vocab_size

    @property
    def token_table(self) -> TokenTable:
        return self._codec.token_table

    def encode(self, text: str) -> list[int]:
        return self._codec.encode(text)

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        return self._codec.encode_chat(messages, tools)

    def encode_pin(self, text: str) -> tuple[int, ...]:
        return self._codec.encode_pin(text)

    def token_bytes(self, token: int) -> bytes:
        return MARK.encode() if token == self._codec.special.call else self._codec.token_bytes(token)

    def save(self, folder: Path) -> None:
        self._codec.save(folder)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes(token) for token in ids).decode("utf-8", "ignore")


class CallReader:
    """Tells a call from text that arrives in pieces: text leaves at once, a call when the reply is whole.

    White space before a call is dropped. What is behind the mark and no call of a tool is text, without the mark. A call whose arguments do
    not fit their schema is a call with the words that the model wrote: the client finds what is wrong and can tell the model, where text
    would be spoken.

    Args:
        tools: What may be called.
        other: Reads what is before the mark.
    """

    def __init__(self, tools: Sequence[Tool], other: Reader) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._other = other
        self._held = ""
        self._has_words = False

    def again(self, text: str) -> list[Piece]:
        words, mark, said = text.partition(MARK)
        if not mark:
            return self._other.again(text)
        return self._other.again(words.rstrip()) + self._call(said, is_behind_words=bool(words.strip()))

    def feed(self, text: str) -> list[Piece]:
        self._held += text
        begun = self._held.find(MARK)
        if begun < 0:
            ends = (size for size in range(len(MARK) - 1, 0, -1) if self._held.endswith(MARK[:size]))
            begun = len(self._held) - next(ends, 0)
        words = self._held[:begun].rstrip()
        self._held = self._held[len(words) :]
        self._has_words = self._has_words or bool(words)
        return self._other.feed(words) if words else []

    def flush(self) -> list[Piece]:
        held, self._held = self._held, ""
        _, mark, said = held.partition(MARK)
        if not mark:
            return self._other.feed(held) + self._other.flush()
        return self._other.flush() + self._call(said, is_behind_words=self._has_words)

    def _call(self, said: str, *, is_behind_words: bool) -> list[Piece]:
        said = " ".join(said.replace(MARK, " ").split())
        text: list[Piece] = [f" {said}" if is_behind_words else said] if said else []
        try:
            call = read_call(said)
        except CallError:
            return text
        tool = self._tools.get(call.name)
        if tool is None:
            return text
        try:
            arguments: Mapping[str, object] = typed_arguments(call, tool)
        except CallError:
            arguments = call.arguments
        return [ToolCall(call.name, json.dumps(dict(arguments), ensure_ascii=False))]

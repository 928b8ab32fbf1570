"""Tool calls as the built-in model writes them (`dllm.calls`): a reply that begins with the token `<call>` is one call, the whole of it."""

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
    """Tells a call from text that arrives in pieces.

    A call of an unknown tool stays text. One whose arguments do not fit their schema is a call with the words that the model wrote: the
    client finds what is wrong and can tell the model, where text would be spoken.

    Args:
        tools: What may be called.
        other: Reads what does not begin as a call.
    """

    def __init__(self, tools: Sequence[Tool], other: Reader) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._other = other
        self._held = ""
        self._is_other = False

    def again(self, text: str) -> list[Piece]:
        begun = text.lstrip()
        return self._call(begun) if begun.startswith(MARK) else self._other.again(text)

    def feed(self, text: str) -> list[Piece]:
        if not self._is_other:
            self._held += text
            begun = self._held.lstrip()
            if begun.startswith(MARK) or MARK.startswith(begun):
                return []
            text, self._held, self._is_other = self._held, "", True
        return self._other.feed(text)

    def flush(self) -> list[Piece]:
        held, self._held = self._held, ""
        begun = held.lstrip()
        if begun.startswith(MARK):
            return self._call(begun)
        return self._other.feed(held) + self._other.flush()

    def _call(self, text: str) -> list[Piece]:
        said = text.removeprefix(MARK).strip()
        try:
            call = read_call(said)
        except CallError:
            return [said] if said else []
        tool = self._tools.get(call.name)
        if tool is None:
            return [said]
        try:
            arguments: Mapping[str, object] = typed_arguments(call, tool)
        except CallError:
            arguments = call.arguments
        return [ToolCall(call.name, json.dumps(dict(arguments), ensure_ascii=False))]

"""What the engine's surroundings need of a tokenizer: the built-in family's `DialogueCodec` and published ones' `HubCodec` both do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from dllm.canvas import TokenTable

ChatRole: TypeAlias = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat. `tool_calls` are the assistant's, as the OpenAI API writes them."""

    role: ChatRole
    text: str
    name: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None


class Codec(Protocol):
    """Text to tokens and back."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def token_table(self) -> TokenTable: ...

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text as it stands, without special tokens; text that spells one is ordinary text."""
        ...

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Tokens of a conversation up to where the assistant's next reply begins.

        Raises:
            ConfigError: If the checkpoint's template refuses the messages (two user turns in a row, for instance).
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of reply tokens; special tokens and incomplete UTF-8 are left out, nothing is stripped."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; empty for special tokens."""
        ...

    def encode_pin(self, text: str) -> tuple[int, ...]:
        """Tokens of a text inside a sentence, the space before it included."""
        ...

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into a checkpoint's folder."""
        ...

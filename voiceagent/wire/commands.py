"""What a client may ask for, as values.

Each command keeps the client's own `event_id`, which an error about the command has to carry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from voiceagent.events import AnyItem
from voiceagent.session import ResponseOptions
from voiceagent.wire.session import FormatName, WireSession


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionUpdate:
    """`session` is the whole session as it would be; nothing has changed until the codec is told to apply it."""

    session: WireSession
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendAudio:
    """`audio` is encoded in the session's input format; `RealtimeCodec.input_samples` turns it into samples."""

    audio: bytes
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitAudio:
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearAudio:
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateItem:
    item: AnyItem
    previous_item_id: str | None = None
    """None appends; "root" is the front."""
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveItem:
    item_id: str
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteItem:
    item_id: str
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncateItem:
    item_id: str
    audio_end_s: float
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class ItemReference:
    """An item of the conversation, by id, as input of one response."""

    item_id: str


ResponseInput: TypeAlias = ItemReference | tuple[Literal["system", "user", "agent"], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateResponse:
    """`options.turns` is not filled in: `context` may refer to items of the conversation, which the codec does not keep."""

    options: ResponseOptions
    context: tuple[ResponseInput, ...] | None = None
    output_format: FormatName | None = None
    voice: str | None = None
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelResponse:
    response_id: str | None = None
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Playout:
    """Extension: how much of an agent item the client has played."""

    item_id: str
    played_s: float
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Greet:
    """Extension: speak the agent's greeting."""

    event_id: str | None = None


Command: TypeAlias = (
    SessionUpdate
    | AppendAudio
    | CommitAudio
    | ClearAudio
    | CreateItem
    | RetrieveItem
    | DeleteItem
    | TruncateItem
    | CreateResponse
    | CancelResponse
    | Playout
    | Greet
)

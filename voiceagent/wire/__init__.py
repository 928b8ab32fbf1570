"""The OpenAI Realtime protocol (GA names) without a socket: text in, commands out; conversation events in, JSON objects out."""

from voiceagent.wire.codec import RealtimeCodec
from voiceagent.wire.commands import (
    AppendAudio,
    CancelResponse,
    ClearAudio,
    Command,
    CommitAudio,
    CreateItem,
    CreateResponse,
    DeleteItem,
    Greet,
    ItemReference,
    Playout,
    RetrieveItem,
    SessionUpdate,
    TruncateItem,
)
from voiceagent.wire.fields import Json, parse_object
from voiceagent.wire.session import WireSession

__all__ = [
    "AppendAudio",
    "CancelResponse",
    "ClearAudio",
    "Command",
    "CommitAudio",
    "CreateItem",
    "CreateResponse",
    "DeleteItem",
    "Greet",
    "ItemReference",
    "Json",
    "Playout",
    "RealtimeCodec",
    "RetrieveItem",
    "SessionUpdate",
    "TruncateItem",
    "WireSession",
    "parse_object",
]

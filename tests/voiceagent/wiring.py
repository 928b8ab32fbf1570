"""Messages of a client to the codec: what the tests of the wire share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.voiceagent.realtime import Event, check_event
from voiceagent.errors import ProtocolError
from voiceagent.wire import Command, RealtimeCodec, SessionUpdate


def receive(codec: RealtimeCodec, kind: str, **fields: Any) -> Command:
    return codec.receive(json.dumps({"type": kind, **fields}))


def update(codec: RealtimeCodec, **session: Any) -> Event:
    """The session as `session.updated` shows it after an update."""
    command = receive(codec, "session.update", session={"type": "realtime", **session})
    assert isinstance(command, SessionUpdate)
    (updated,) = codec.apply(command)
    check_event(updated)
    assert updated["type"] == "session.updated"
    shown: Any = updated["session"]
    return shown


def refusal(codec: RealtimeCodec, text: str) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        codec.receive(text)
    return caught.value

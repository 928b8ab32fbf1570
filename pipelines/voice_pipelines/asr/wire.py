"""What the runtime and a recogniser process say to each other over a pipe: frames of kind, utterance and payload."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

_HEADER = struct.Struct("<BII")
MAX_PAYLOAD_BYTES = 1 << 24
"""Eight minutes of audio in one piece: more means that the two sides have lost their place."""


class Kind(IntEnum):
    # To the recogniser. AUDIO carries little-endian 16-bit samples at 16 kHz; the others are empty.
    OPEN = 1
    AUDIO = 2
    FINISH = 3
    CANCEL = 4
    # From the recogniser; payloads are JSON.
    READY = 16
    PARTIAL = 17
    FINAL = 18
    FAILED = 19
    WORKED = 20
    """Processor time since READY."""


@dataclass(frozen=True, slots=True)
class Message:
    kind: Kind
    utterance: int
    payload: bytes = b""

    def encode(self) -> bytes:
        return _HEADER.pack(self.kind, self.utterance, len(self.payload)) + self.payload


class MessageReader:
    """Cuts a stream of bytes into messages, however the bytes arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take bytes; give every message that is complete.

        Raises:
            ValueError: If the bytes are not messages.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            kind, utterance, size = _HEADER.unpack_from(self._buffer)
            if size > MAX_PAYLOAD_BYTES:
                raise ValueError(f"a payload of {size} bytes: expected at most {MAX_PAYLOAD_BYTES}")
            end = _HEADER.size + size
            if len(self._buffer) < end:
                return
            message = Message(Kind(kind), utterance, bytes(self._buffer[_HEADER.size : end]))
            del self._buffer[:end]
            yield message

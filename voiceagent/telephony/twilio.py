"""The dialect of Twilio Media Streams, and of the bridges that copy it. No socket and no clock. Source: protocols 5.2.

Clones differ in versions, extra fields, and in whether numbers are numbers or strings: what is not needed is not looked at.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from voiceagent.errors import ProtocolError
from voiceagent.wire.fields import Fields, clean_text, parse_object

MAX_PAYLOAD_BYTES = 40_000
"""5 s of audio in one message; Twilio sends 20 ms."""

MAX_MESSAGE_CHARS = 64 * 1024
"""The longest message, with that much audio in it."""
MAX_NAME_CHARS = 256
"""The longest `streamSid`: it goes into every message that is sent back."""

_DIGITS = frozenset("0123456789*#ABCD")
_MU_LAW = frozenset({"audio/x-mulaw", "audio/mulaw", "audio/pcmu", "pcmu", "mulaw", "ulaw"})


@dataclass(frozen=True, slots=True)
class Start:
    """The stream begins: the first thing we learn about the call."""

    stream_sid: str
    call_sid: str
    parameters: Mapping[str, str]
    """The `<Parameter>`s of the TwiML; one may be the API key, so they are neither logged nor shown."""


@dataclass(frozen=True, slots=True)
class Media:
    """µ-law at 8 kHz, what the caller says."""

    audio: bytes


@dataclass(frozen=True, slots=True)
class Digit:
    """A key that the caller pressed."""

    digit: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Everything that was sent before this mark has been played, or thrown away by a clear."""

    name: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The call is over, or goes on without us."""


@dataclass(frozen=True, slots=True)
class Other:
    """A message that asks for nothing: `connected`, the other track, an event we do not know."""


Message: TypeAlias = Start | Media | Digit | Mark | Stop | Other


class UnsupportedFormatError(ProtocolError):
    """The stream's audio is not what this door speaks, so that nothing can be said about it either."""


def parse(text: str, stream_sid: str | None) -> Message:
    """What one message from the bridge says.

    Args:
        stream_sid: The stream that has started, None before it has. Messages that name another are refused; clones name none.

    Raises:
        ProtocolError: If it breaks the protocol; `UnsupportedFormatError` if the stream's audio is of another kind.
    """
    if len(text) > MAX_MESSAGE_CHARS:
        raise ProtocolError("invalid_value", f"A message of {len(text)} characters; the limit is {MAX_MESSAGE_CHARS}.")
    data = parse_object(text)
    if stream_sid is not None and (payload := _plain_payload(data, stream_sid)) is not None:
        return Media(_audio(payload))
    message = Fields(data)
    event = message.required_string("event")
    if event in ("media", "dtmf", "mark"):
        if stream_sid is None:
            raise ProtocolError("invalid_value", f"A {event} message before the stream's start.", param="event")
        if (message.string("streamSid") or stream_sid) != stream_sid:
            raise message.invalid("streamSid", "that of this stream")
    match event:
        case "start":
            if stream_sid is not None:
                raise ProtocolError("invalid_value", "A second start on one socket.", param="event")
            return _parse_start(message)
        case "media":
            media = message.required_child("media")
            if (media.string("track") or "inbound") not in ("inbound", "inbound_track"):
                return Other()
            return Media(_audio(media.required_string("payload")))
        case "dtmf":
            dtmf = message.required_child("dtmf")
            digit = dtmf.required_string("digit").upper()
            if digit not in _DIGITS:
                raise dtmf.invalid("digit", "one of 0 to 9, *, # and A to D")
            return Digit(digit)
        case "mark":
            return Mark(message.required_child("mark").required_string("name"))
        case "stop":
            return Stop()
        case _:
            return Other()


def media(stream_sid: str, audio: bytes) -> str:
    """Audio for the caller, of any length."""
    return _message("media", stream_sid, media={"payload": base64.b64encode(audio).decode("ascii")})


def mark(stream_sid: str, name: str) -> str:
    """Comes back when everything before it was played."""
    return _message("mark", stream_sid, mark={"name": name})


def clear(stream_sid: str) -> str:
    """The caller hears nothing more of what was sent."""
    return _message("clear", stream_sid)


def _message(event: str, stream_sid: str, **fields: object) -> str:
    return json.dumps({"event": event, "streamSid": stream_sid, **fields}, separators=(",", ":"))


def _parse_start(message: Fields) -> Start:
    start = message.required_child("start")
    stream_sid = start.string("streamSid") or message.required_string("streamSid")
    if len(stream_sid) > MAX_NAME_CHARS:
        raise ProtocolError("invalid_value", f"streamSid has more than {MAX_NAME_CHARS} characters.", param="streamSid")
    parameters = start.child("customParameters") or Fields({})
    given = {clean_text(name): clean_text(str(value)) for name, value in parameters.data.items()}
    _check_format(start.child("mediaFormat") or Fields({}, "start.mediaFormat"))
    return Start(stream_sid, start.string("callSid") or "", given)


def _check_format(form: Fields) -> None:
    """A bridge that says nothing means Twilio's only format."""
    encoding = form.string("encoding")
    rate, channels = (str(form.data.get(key, default)) for key, default in (("sampleRate", 8000), ("channels", 1)))
    if (encoding or "audio/x-mulaw").lower() not in _MU_LAW or (rate, channels) != ("8000", "1"):
        shown = f"{encoding} at {rate[:20]} Hz with {channels[:20]} channels"
        raise UnsupportedFormatError(
            "invalid_value", f"Audio is {shown[:80]!a}: only audio/x-mulaw at 8000 Hz, mono, is understood."
        )


def _plain_payload(data: Mapping[str, object], stream_sid: str) -> str | None:
    """The payload of a media message that is exactly what Twilio sends, as fifty a second of every caller are; None of all others, which are looked at
    field by field."""
    if data.get("event") != "media" or data.get("streamSid") != stream_sid:
        return None
    media = data.get("media")
    if not isinstance(media, dict) or media.get("track") != "inbound":
        return None
    payload = media.get("payload")
    return payload if isinstance(payload, str) else None


def _audio(payload: str) -> bytes:
    try:
        audio = binascii.a2b_base64(payload, strict_mode=True)
    except ValueError as error:  # `binascii.Error` is one
        raise ProtocolError(
            "invalid_value", f"media.payload is not base64 ({error}).", param="media.payload"
        ) from error
    if len(audio) > MAX_PAYLOAD_BYTES:
        raise ProtocolError(
            "invalid_value",
            f"media.payload holds {len(audio)} bytes; the limit is {MAX_PAYLOAD_BYTES}.",
            param="media.payload",
        )
    return audio

"""The dialect of Twilio Media Streams: what its messages say, and what strangers may send without harm."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.voiceagent.telephony.phone import media_message, start_message
from voiceagent.errors import ProtocolError
from voiceagent.telephony import twilio
from voiceagent.telephony.twilio import Digit, Mark, Media, Other, Start, Stop, UnsupportedFormatError


def parse(message: Any, stream_sid: str | None = "MZ1") -> twilio.Message:
    return twilio.parse(json.dumps(message), stream_sid)


def test_the_documented_messages_are_understood() -> None:
    assert parse({"event": "connected", "protocol": "Call", "version": "1.0.0"}, None) == Other()
    assert parse(start_message(key="k", tenant="a1"), None) == Start("MZ1", "CA1", {"key": "k", "tenant": "a1"})
    assert parse(media_message(b"\xff\x00\x7f")) == Media(b"\xff\x00\x7f")
    dtmf = {
        "event": "dtmf",
        "streamSid": "MZ1",
        "sequenceNumber": "9",
        "dtmf": {"track": "inbound_track", "digit": "1"},
    }
    assert parse(dtmf) == Digit("1")
    assert parse({"event": "mark", "streamSid": "MZ1", "sequenceNumber": "12", "mark": {"name": "u7"}}) == Mark("u7")
    assert parse({"event": "stop", "streamSid": "MZ1", "stop": {"accountSid": "AC1", "callSid": "CA1"}}) == Stop()


def test_clones_may_leave_out_and_spell_otherwise_what_does_not_matter() -> None:
    assert parse({"event": "start", "streamSid": "s", "start": {}}, None) == Start("s", "", {})
    form = {"encoding": "PCMU", "sampleRate": "8000", "channels": "1"}
    bare = {"event": "start", "extra": [1], "start": {"streamSid": "s", "callSid": "c", "mediaFormat": form}}
    bare["start"]["customParameters"] = {"count": 3}  # type: ignore[index]
    assert parse(bare, None) == Start("s", "c", {"count": "3"})
    assert parse({"event": "media", "media": {"payload": "/w=="}}) == Media(b"\xff")
    assert parse({"event": "media", "media": {"payload": "/w==", "track": "outbound"}}) == Other(), "our own voice"
    assert parse({"event": "something.new"}) == Other()


@pytest.mark.parametrize("payload", ["/w==", "?", "\u00e9", "A", 3, None, base64.b64encode(bytes(40_001)).decode()])
@pytest.mark.parametrize("track", ["inbound", "inbound_track", "", None])
@pytest.mark.parametrize("stream_sid", ["MZ1", "", None])
def test_the_form_that_twilio_sends_is_read_as_all_others_are(payload: Any, track: Any, stream_sid: Any) -> None:
    def said(message: Any) -> object:
        try:
            return parse(message)
        except ProtocolError as error:
            return error.message

    plain = {"event": "media", "streamSid": "MZ1", "media": {"track": "inbound", "payload": payload}}
    assert said({"event": "media", "streamSid": stream_sid, "media": {"track": track, "payload": payload}}) == said(
        plain
    )


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ([], "must be a JSON object"),
        ({}, "Missing required parameter: 'event'"),
        ({"event": 3}, "expected a string"),
        ({"event": "media"}, "'media'"),
        ({"event": "media", "media": {}}, "'media.payload'"),
        ({"event": "media", "media": {"payload": "?"}}, "not base64"),
        ({"event": "media", "media": {"payload": base64.b64encode(bytes(40_001)).decode()}}, "40001 bytes"),
        ({"event": "media", "media": {"payload": "A" * 70_000}}, "characters"),
        ({"event": "media", "streamSid": "MZ2", "media": {"payload": ""}}, "that of this stream"),
        ({"event": "dtmf", "dtmf": {"digit": "11"}}, "0 to 9"),
        ({"event": "mark", "mark": {}}, "'mark.name'"),
        (start_message(), "second start"),
    ],
)
def test_a_wrong_message_is_refused_with_what_is_wrong(message: Any, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        parse(message)


@pytest.mark.parametrize("event", ["media", "dtmf", "mark"])
def test_nothing_comes_before_the_start(event: str) -> None:
    with pytest.raises(ProtocolError, match="before the stream's start"):
        parse({"event": event}, None)


@pytest.mark.parametrize(
    "form",
    [
        {"encoding": "audio/x-l16", "sampleRate": 8000, "channels": 1},
        {"encoding": "audio/x-mulaw", "sampleRate": 16000, "channels": 1},
        {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 2},
        {"encoding": "\udc80" * 500, "sampleRate": [8000] * 500, "channels": {}},
    ],
)
def test_a_format_of_another_kind_is_told_apart(form: dict[str, Any]) -> None:
    message = start_message()
    message["start"]["mediaFormat"] = form
    with pytest.raises(UnsupportedFormatError, match="only audio/x-mulaw at 8000 Hz"):
        parse(message, None)


def test_a_stream_without_a_name_or_with_an_endless_one_is_refused() -> None:
    with pytest.raises(ProtocolError, match="streamSid"):
        parse({"event": "start", "start": {}}, None)
    with pytest.raises(ProtocolError, match="256"):
        parse(start_message(stream_sid="M" * 257), None)


def test_what_is_sent_is_what_the_vendor_documents() -> None:
    assert json.loads(twilio.media("MZ1", b"\xff\x00")) == {
        "event": "media",
        "streamSid": "MZ1",
        "media": {"payload": "/wA="},
    }
    assert json.loads(twilio.mark("MZ1", "1.7")) == {"event": "mark", "streamSid": "MZ1", "mark": {"name": "1.7"}}
    assert json.loads(twilio.clear("MZ1")) == {"event": "clear", "streamSid": "MZ1"}
    assert twilio.clear("\udc80é").isascii(), "whatever the stream is called"


# --- anything may come ------------------------------------------------------------------------------------------------

NAMES = ["event", "streamSid", "start", "media", "mark", "dtmf", "payload", "name", "digit", "track", "mediaFormat"]
NAMES += ["customParameters", "callSid", "sampleRate", "channels", "encoding"]
EVENTS = st.sampled_from(["start", "media", "mark", "dtmf", "stop", "connected", "clear"])
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), EVENTS)
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=6)
    ),
    max_leaves=6,
)
MESSAGES = st.builds(
    lambda event, rest: json.dumps({**rest, "event": event}),
    EVENTS,
    st.dictionaries(st.sampled_from(NAMES), OBJECTS, max_size=6),
)


@given(st.one_of(st.text(), OBJECTS.map(json.dumps), MESSAGES), st.sampled_from([None, "MZ1"]))
def test_whatever_comes_is_a_message_or_a_protocol_error(text: str, stream_sid: str | None) -> None:
    try:
        message = twilio.parse(text, stream_sid)
    except ProtocolError as error:
        assert str(error)
    else:
        assert isinstance(message, twilio.Message)  # type: ignore[misc, arg-type]


@given(st.binary(max_size=400))
def test_audio_comes_out_as_it_went_in(audio: bytes) -> None:
    assert parse(media_message(audio)) == Media(audio)
    assert parse(json.loads(twilio.media("MZ1", audio))) == Media(audio)

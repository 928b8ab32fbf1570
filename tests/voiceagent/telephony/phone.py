"""A phone network in small: it sends what Twilio Media Streams sends, plays what it gets in real time, and returns marks."""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from tests.voiceagent.realtime import AsgiClient, Closed, Event, connect_as
from tests.voiceagent.standins import silence
from voiceagent.audio import PCMU_8K, StreamingResampler
from voiceagent.backends import Samples
from voiceagent.clock import ManualClock

PATH = "/telephony/twilio"
CHUNK_S = 0.02


def start_message(stream_sid: str = "MZ1", **parameters: str) -> Event:
    """As documented by the vendor: the numbers of `mediaFormat` are numbers, all others are strings."""
    form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    start = {"streamSid": stream_sid, "accountSid": "AC1", "callSid": "CA1", "tracks": ["inbound"], "mediaFormat": form}
    start["customParameters"] = parameters
    return {"event": "start", "sequenceNumber": "1", "streamSid": stream_sid, "start": start}


def media_message(audio: bytes, number: int = 1, stream_sid: str = "MZ1") -> Event:
    media = {"track": "inbound", "chunk": str(number), "timestamp": str(20 * number)}
    media["payload"] = base64.b64encode(audio).decode()
    return {"event": "media", "sequenceNumber": str(number + 1), "streamSid": stream_sid, "media": media}


def to_ulaw(samples: Samples, rate_hz: int = 16_000) -> bytes:
    resampler = StreamingResampler(rate_hz, 8_000)
    return PCMU_8K.encode(np.concatenate([resampler.push(samples), resampler.flush()]))


class Phone(AsgiClient):
    """One caller's line. `talk` is 20 ms of the caller at a time; what the agent says plays as the clock goes.

    `latency_s` is each way; a network without `marks` returns none, as some clones do not.
    """

    def __init__(self, clock: ManualClock, *, latency_s: float = 0.05, marks: bool = True) -> None:
        super().__init__()
        self.clock = clock
        self.heard = bytearray()
        """µ-law that has been played to the caller's ear."""
        self.clears: list[float] = []
        """Seconds of audio that each clear threw away."""
        self.ended: Closed | None = None
        self._latency_s = latency_s
        self._returns_marks = marks
        self._arriving: deque[tuple[float, Event]] = deque()
        self._queue: deque[bytes | str] = deque()
        self._returning: deque[tuple[float, str]] = deque()
        self._sent = 0

    @property
    def queued_s(self) -> float:
        """What waits to be played, on its way included."""
        pieces = [piece for piece in self._queue if isinstance(piece, bytes)]
        arriving = [event["media"]["payload"] for _, event in self._arriving if event["event"] == "media"]
        return PCMU_8K.duration_s(sum(map(len, pieces)) + sum(len(base64.b64decode(text)) for text in arriving))

    @property
    def heard_s(self) -> float:
        return PCMU_8K.duration_s(len(self.heard))

    async def say(self, message: Event) -> None:
        await self.send_text(json.dumps(message))

    async def dial(self, **parameters: str) -> None:
        await self.say({"event": "connected", "protocol": "Call", "version": "1.0.0"})
        await self.say(start_message(**parameters))

    async def talk(self, samples: Samples) -> None:
        """Say `samples` (16 kHz) in real time while listening."""
        audio = to_ulaw(samples)
        for begin in range(0, len(audio), 160):
            self._sent += 1
            await self.say(media_message(audio[begin : begin + 160], self._sent))
            await self.clock.advance(CHUNK_S)
            await self._listen()

    async def wait(self, duration_s: float) -> None:
        """Be silent for so long; a phone sends its silence."""
        await self.talk(silence(duration_s))

    async def hang_up(self) -> Closed:
        await self.say({"event": "stop", "streamSid": "MZ1", "stop": {"accountSid": "AC1", "callSid": "CA1"}})
        return await self.closing()

    async def closing(self) -> Closed:
        """How the server closes, which it must do within 40 s."""
        for _ in range(2000):
            await self._listen()
            if self.ended is not None:
                return self.ended
            await self.clock.advance(CHUNK_S)
        raise AssertionError("the server did not close")

    async def _listen(self) -> None:
        now = self.clock.now()
        while not self._from_server.empty():
            try:
                event = self.take(self._from_server.get_nowait())
            except Closed as closed:
                self.ended = closed
            else:
                self._arriving.append((now + self._latency_s, event))
        if self.ended is not None:
            return  # What has not been played by now never will be.
        while self._arriving and self._arriving[0][0] <= now:
            self._arrive(self._arriving.popleft()[1])
        self._play()
        while self._returning and self._returning[0][0] <= now:
            mark = {"name": self._returning.popleft()[1]}
            await self.say({"event": "mark", "sequenceNumber": "9", "streamSid": "MZ1", "mark": mark})

    def _arrive(self, event: Event) -> None:
        assert event["streamSid"] == "MZ1"
        match event["event"]:
            case "media":
                self._queue.append(base64.b64decode(event["media"]["payload"], validate=True))
            case "mark":
                self._queue.append(event["mark"]["name"])
            case "clear":
                self.clears.append(self.queued_s)
                for name in [piece for piece in self._queue if isinstance(piece, str)]:
                    self._return(name)
                self._queue.clear()
            case other:
                raise AssertionError(f"{other} is no message of this direction")

    def _play(self) -> None:
        """20 ms of the queue, from now on; the marks behind it come back when they are over."""
        left = round(CHUNK_S * 8000)
        while self._queue and (left or isinstance(self._queue[0], str)):
            piece = self._queue.popleft()
            if isinstance(piece, str):
                self._return(piece, after_s=CHUNK_S)
                continue
            self.heard += piece[:left]
            if len(piece) > left:
                self._queue.appendleft(piece[left:])
            left -= min(left, len(piece))

    def _return(self, name: str, *, after_s: float = 0.0) -> None:
        if self._returns_marks:
            self._returning.append((self.clock.now() + after_s + self._latency_s, name))


@asynccontextmanager
async def phone(app: Any, clock: ManualClock, query: str = "", **how: Any) -> AsyncIterator[Phone]:
    """A connected bridge that has not said anything yet."""
    handshake = {key: how.pop(key) for key in ("headers",) if key in how}
    async with connect_as(Phone(clock, **how), app, query, path=PATH, **handshake) as caller:
        yield caller

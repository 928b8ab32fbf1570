"""A caller over a real websocket: speaks recordings in real time and records what comes back, on one clock.

Used by the latency benchmark and the soak run. It speaks the OpenAI Realtime protocol and knows nothing of the server's inside; the
server's own timelines are kept beside the measurement, never in its place.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from voice_pipelines.measure import Track, first_audible_s, voice_to_voice_s
from voiceagent.backends import Samples

RATE_HZ = 24_000
FRAME_S = 0.02
ANSWER_LIMIT_S = 20.0
"""A turn without any audible answer this long after the caller's last word counts as unanswered."""
TAIL_S = 1.2
"""Room sound kept after the last word; the answer has begun by then, and the line goes on with silence."""
PAUSE_S = 0.4
"""The caller waits this long after the agent has finished before speaking again."""


@dataclass(frozen=True, slots=True)
class Recording:
    path: str
    kind: str
    text: str
    samples: Samples
    """24 kHz mono float32."""
    speech_start_s: float
    speech_end_s: float


@dataclass(slots=True)
class Turn:
    """One recording played and the answer to it. Times are seconds on the call's clock."""

    recording: str
    said: str
    speech_end_s: float
    voice_to_voice_s: float | None = None
    heard: str = ""
    reply: str = ""
    cut_off: bool = False
    """The server ended the turn more than 0.15 s before the caller's last word."""
    underruns_s: list[float] = field(default_factory=list)
    timeline: dict[str, Any] | None = None


@dataclass(slots=True)
class CallResult:
    turns: list[Turn] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    track: Track | None = None


def load_recordings(folder: Path, kinds: Sequence[str]) -> list[Recording]:
    """Recordings of the wanted kinds that say where speech begins and ends, in the manifest's order.

    Raises:
        ValueError: If none fits.
    """
    found: list[Recording] = []
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["kind"] not in kinds or "speech_end_s" not in entry:
            continue
        samples, rate = soundfile.read(folder / entry["path"], dtype="float32")
        samples = samples[: round((entry["speech_end_s"] + TAIL_S) * rate)]
        samples = soxr.resample(samples, rate, RATE_HZ).astype(np.float32)
        found.append(
            Recording(
                entry["path"], entry["kind"], entry["text"], samples, entry["speech_start_s"], entry["speech_end_s"]
            )
        )
    if not found:
        raise ValueError(f"{folder}/manifest.jsonl: no recording of kind {', '.join(kinds)} with speech_end_s")
    return found


class Caller:
    """One websocket and a microphone that never stops: silence between recordings, as a phone line has."""

    def __init__(self, url: str, api_key: str | None = None, *, answer_limit_s: float = ANSWER_LIMIT_S) -> None:
        self._url = url
        self._answer_limit_s = answer_limit_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.result = CallResult(track=Track(RATE_HZ))
        self._start = 0.0
        self._speaking: tuple[Samples, int] | None = None
        self._spoken_at_s = 0.0
        self._spoken = asyncio.Event()
        self._responses: dict[str, str] = {}
        self._with_audio: set[str] = set()
        self._open: set[str] = set()
        self._turn: Turn | None = None
        self._changed = asyncio.Event()
        self.stop_notices_s: list[float] = []

    async def call(
        self, recordings: Sequence[Recording], *, first_pause_s: float = 0.5, greet: bool = False
    ) -> CallResult:
        """Play the recordings as consecutive turns of one conversation. A server that hangs up ends it, with an entry in `errors`."""
        async with connect(
            self._url,
            additional_headers=self._headers,
            max_size=None,
            compression=None,
            open_timeout=self._answer_limit_s,
            ping_timeout=self._answer_limit_s,
        ) as socket:
            await self._expect(socket, "session.created")
            audio = {"type": "audio/pcm", "rate": RATE_HZ}
            await self._send(
                socket,
                {
                    "type": "session.update",
                    "session": {
                        "type": "realtime",
                        "audio": {"input": {"format": audio}, "output": {"format": audio}},
                    },
                },
            )
            self._start = time.monotonic()
            if greet:
                await self._send(socket, {"type": "voiceagent.greet"})
            reader = asyncio.create_task(self._read(socket))
            microphone = asyncio.create_task(self._microphone(socket))
            talking = asyncio.create_task(self._talk(recordings, first_pause_s))
            try:
                await asyncio.wait({talking, reader, microphone}, return_when=asyncio.FIRST_COMPLETED)
                for task in (talking, reader, microphone):
                    if task.done() and not isinstance(task.exception(), ConnectionClosed):
                        task.result()
                if not talking.done():
                    self.result.errors.append(f"the server closed the call: {socket.close_code} {socket.close_reason}")
            finally:
                for task in (talking, microphone, reader):
                    task.cancel()
                await asyncio.gather(talking, microphone, reader, return_exceptions=True)
        return self.result

    async def _talk(self, recordings: Sequence[Recording], first_pause_s: float) -> None:
        await self._quiet(first_pause_s)
        for recording in recordings:
            await self._take_turn(recording)

    def now_s(self) -> float:
        return time.monotonic() - self._start

    async def _take_turn(self, recording: Recording) -> None:
        track = self.result.track
        assert track is not None
        self._spoken.clear()
        self._turn = turn = Turn(recording.path, recording.text, 0.0)
        self.result.turns.append(turn)
        self.stop_notices_s.clear()
        self._speaking = (recording.samples, 0)
        await self._spoken.wait()
        turn.speech_end_s = self._spoken_at_s + recording.speech_end_s
        limit = turn.speech_end_s + self._answer_limit_s
        while self.now_s() < limit:
            heard = first_audible_s(track.samples(), RATE_HZ, turn.speech_end_s)
            over = track.end_s <= self.now_s() and not self._open
            if heard is not None and over and turn.timeline is not None:
                break
            await asyncio.sleep(0.02)
        turn.voice_to_voice_s = voice_to_voice_s(track.samples(), RATE_HZ, turn.speech_end_s)
        turn.cut_off = any(at < turn.speech_end_s - 0.15 for at in self.stop_notices_s)
        turn.underruns_s, track.underruns_s = track.underruns_s, []
        self._turn = None
        await self._quiet(PAUSE_S)

    async def _quiet(self, duration_s: float) -> None:
        """Wait until the agent has been silent for a while."""
        assert self.result.track is not None
        limit = self.now_s() + self._answer_limit_s
        while self.now_s() < limit:
            quiet_for = self.now_s() - self.result.track.end_s
            if not self._open and quiet_for >= duration_s:
                return
            await asyncio.sleep(0.02)

    async def _microphone(self, socket: ClientConnection) -> None:
        frame = round(RATE_HZ * FRAME_S)
        silence = np.zeros(frame, dtype=np.float32)
        index = 0
        while True:
            piece = silence
            if self._speaking is not None:
                samples, position = self._speaking
                if position == 0:
                    self._spoken_at_s = index * FRAME_S
                piece = samples[position : position + frame]
                if piece.size < frame:
                    piece = np.concatenate([piece, silence[piece.size :]])
                self._speaking = (samples, position + frame) if position + frame < samples.size else None
                if self._speaking is None:
                    self._spoken.set()
            # A frame can leave a microphone only when its last sample was spoken.
            await asyncio.sleep(max(self._start + (index + 1) * FRAME_S - time.monotonic(), 0.0))
            pcm = (np.clip(piece, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()
            await self._send(
                socket, {"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm).decode("ascii")}
            )
            index += 1

    async def _read(self, socket: ClientConnection) -> None:
        async for message in socket:
            self._receive(json.loads(message))

    def _receive(self, event: dict[str, Any]) -> None:
        at_s = self.now_s()
        track, turn = self.result.track, self._turn
        assert track is not None
        match event["type"]:
            case "response.output_audio.delta":
                samples = np.frombuffer(base64.b64decode(event["delta"]), dtype="<i2").astype(np.float32) / 32768.0
                track.play(samples, at_s, continues=event["response_id"] in self._with_audio)
                self._with_audio.add(event["response_id"])
            case "response.output_audio_transcript.delta":
                if turn is not None:
                    turn.reply += event["delta"]
            case "response.created":
                self._open.add(event["response"]["id"])
                if turn is not None:
                    turn.reply = ""
            case "response.done":
                self._open.discard(event["response"]["id"])
            case "input_audio_buffer.speech_started":
                track.stop(at_s)
            case "input_audio_buffer.speech_stopped":
                self.stop_notices_s.append(at_s)
            case "conversation.item.input_audio_transcription.completed":
                if turn is not None:
                    turn.heard = f"{turn.heard} {event['transcript']}".strip()
            case "voiceagent.turn.timeline":
                if turn is not None:
                    turn.timeline = event["timeline"]
            case "error":
                self.result.errors.append(event["error"]["message"])
            case _:
                pass

    async def _expect(self, socket: ClientConnection, kind: str) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(await socket.recv())
        if event["type"] != kind:
            raise RuntimeError(f"expected {kind}, the server sent {event['type']}: {event}")
        return event

    @staticmethod
    async def _send(socket: ClientConnection, event: dict[str, Any]) -> None:
        await socket.send(json.dumps(event))

"""A spoken conversation held with the official openai package; only its base URL is changed.

Runs in the package's own environment: `python openai_conversation.py BASE_URL CALLER.pcm`, the recording as 16-bit mono at 24 kHz.
Streams it at the pace of speech and goes on with silence, as a microphone does; then types a turn; then cancels one. Prints what
happened as one JSON object.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

CHUNK_S = 0.1
CHUNK_BYTES = round(CHUNK_S * 24_000) * 2


async def speak(connection: Any, audio: bytes, ended: asyncio.Event) -> None:
    """Append `audio` and then silence, 100 ms every 100 ms, until `ended`."""
    started = time.monotonic()
    sent = 0
    while not ended.is_set():
        chunk = audio[sent * CHUNK_BYTES : (sent + 1) * CHUNK_BYTES].ljust(CHUNK_BYTES, b"\0")
        await connection.input_audio_buffer.append(audio=base64.b64encode(chunk).decode())
        sent += 1
        await asyncio.sleep(max(0.0, started + sent * CHUNK_S - time.monotonic()))


class Listener:
    """Reads events up to the end of a response; every one has to pass the package's own model, strictly."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.types: list[str] = []
        self.errors: list[Any] = []
        self.transcript: str | None = None

    async def next(self) -> Any:
        event = await self._connection.recv()
        type(event).model_validate(json.loads(event.to_json()), strict=True)
        self.types.append(event.type)
        if event.type == "error":
            self.errors.append(event.error.to_dict())
        if event.type == "conversation.item.input_audio_transcription.completed":
            self.transcript = event.transcript
        return event

    async def until(self, kind: str) -> Any:
        while (event := await self.next()).type != kind:
            pass
        return event

    async def response(self) -> dict[str, Any]:
        audio, text = b"", ""
        while (event := await self.next()).type != "response.done":
            if event.type == "response.output_audio.delta":
                audio += base64.b64decode(event.delta, validate=True)
            elif event.type in ("response.output_audio_transcript.delta", "response.output_text.delta"):
                text += event.delta
        samples = memoryview(audio).cast("h")
        return {
            "status": event.response.status,
            "text": text,
            "audio_s": len(samples) / 24_000,
            "peak": max((abs(sample) for sample in samples), default=0),
            "usage": event.response.usage.to_dict(),
        }


async def converse(base_url: str, audio: bytes) -> dict[str, Any]:
    client = AsyncOpenAI(base_url=base_url, api_key="local")
    async with client.realtime.connect(model="voiceagent") as connection:
        listener = Listener(connection)
        created = await listener.next()
        await connection.session.update(
            session={
                "type": "realtime",
                "audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 500}}},
            }
        )
        updated = await listener.until("session.updated")

        ended = asyncio.Event()
        speaking = asyncio.create_task(speak(connection, audio, ended))
        spoken = await listener.response()
        ended.set()
        await speaking

        item = {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "And a small latte, please."}],
        }
        await connection.conversation.item.create(item=item)
        await connection.response.create(response={"output_modalities": ["text"]})
        typed = await listener.response()

        await connection.response.create()
        await connection.response.cancel()
        cancelled = await listener.response()
    return {
        "first": created.type,
        "silence_duration_ms": updated.session.audio.input.turn_detection.silence_duration_ms,
        "transcript": listener.transcript,
        "spoken": spoken,
        "typed": typed,
        "cancelled": cancelled,
        "types": sorted(set(listener.types)),
        "errors": listener.errors,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(converse(sys.argv[1], Path(sys.argv[2]).read_bytes()))))

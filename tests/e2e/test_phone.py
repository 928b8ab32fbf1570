"""A phone call to the real server: a recorded order, as a telephone carries it, is heard and answered aloud."""

from __future__ import annotations

import asyncio
import base64
import json
import time

import httpx
import numpy as np
import soundfile
from websockets.asyncio.client import ClientConnection, connect

from tests.conftest import DATA, run_async
from tests.e2e.processes import running_server
from voiceagent.audio import PCMU_8K, StreamingResampler

ORDER = DATA / "order" / "1cf61395-1205-46c4-bf1c-2e43dd489455.flac"
"""make me a dark roast iced coffee"""
PIECE_S = 0.02


def recording() -> bytes:
    samples, rate_hz = soundfile.read(ORDER, dtype="float32")
    resampler = StreamingResampler(rate_hz, 8_000)
    return PCMU_8K.encode(np.concatenate([resampler.push(samples), resampler.flush()]))


async def speak(bridge: ClientConnection, audio: bytes) -> None:
    """The recording and then silence, at the pace of speech, until cancelled."""
    begun, sent = time.monotonic(), 0
    while True:
        piece = audio[160 * sent : 160 * (sent + 1)].ljust(160, b"\xff")
        media = {"track": "inbound", "chunk": str(sent + 1), "payload": base64.b64encode(piece).decode()}
        await bridge.send(json.dumps({"event": "media", "streamSid": "MZ1", "media": media}))
        sent += 1
        await asyncio.sleep(begun + PIECE_S * sent - time.monotonic())


async def call(url: str) -> bytes:
    """What the agent says, which has no greeting, as µ-law; the connection has been closed in order."""
    form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    start = {"streamSid": "MZ1", "callSid": "CA1", "customParameters": {"key": "secret"}, "mediaFormat": form}
    answer = bytearray()
    async with connect(url) as bridge:
        await bridge.send(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
        await bridge.send(json.dumps({"event": "start", "streamSid": "MZ1", "start": start}))
        speaking = asyncio.create_task(speak(bridge, recording()))
        try:
            while PCMU_8K.duration_s(len(answer)) < 0.6:
                event = json.loads(await bridge.recv())
                if event["event"] == "media":
                    answer += base64.b64decode(event["media"]["payload"])
                if event["event"] == "mark":
                    mark = {"event": "mark", "streamSid": "MZ1", "mark": event["mark"]}
                    await bridge.send(json.dumps(mark))
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
        await bridge.send('{"event":"stop","streamSid":"MZ1","stop":{"callSid":"CA1"}}')
        async for _ in bridge:
            pass
        assert bridge.close_code == 1000
    return bytes(answer)


def test_a_recorded_order_over_a_phone_line_is_answered_aloud() -> None:
    with running_server("--set", "server.api_key=secret", "--set", "agent.greeting=") as server:
        url = server.url.replace("http", "ws", 1) + "/telephony/twilio"
        answer = run_async(call(url), timeout_s=120.0)
        key = {"authorization": "Bearer secret"}
        counted = httpx.get(f"{server.url}/metrics", headers=key).text.splitlines()
    level = np.abs(PCMU_8K.decode(answer))
    assert float(level.max()) > 0.05, "audible speech"
    assert len(set(answer)) > 50, "speech, no tone and no silence"
    for stage in ("endpoint", "asr", "prefill", "denoise_first", "tts", "transport"):
        assert any(line.startswith(f'voiceagent_stage_seconds_count{{stage="{stage}"}} ') for line in counted), stage

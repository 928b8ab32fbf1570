"""A server in process over instant models, and how tests talk to it: a client that talks ASGI, and a clock that only the test moves."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette

from tests.conftest import run_async
from tests.voiceagent.realtime import AsgiClient, Refused, StandinRuntime, connect
from tests.voiceagent.standins import ScriptedDrafter, ScriptedTranscriber, silence, tone
from voiceagent.audio import PCM16_24K, StreamingResampler
from voiceagent.clock import ManualClock
from voiceagent.conversation import Conversation
from voiceagent.server import create_app
from voiceagent.server_settings import ServerSettings
from voiceagent.tools import ToolCall

REPLY = "Sure. What size would you like?"


@dataclass
class House:
    clock: ManualClock
    runtime: StandinRuntime
    app: Starlette

    async def settle(self) -> None:
        await self.clock.settle()


def serve(
    scenario: Callable[[House], Awaitable[None]],
    *,
    settings: ServerSettings | None = None,
    heard: tuple[str | Exception, ...] = ("a mocha please",),
    written: tuple[str | Exception | ToolCall, ...] = (REPLY,),
    wrap: Callable[[Conversation], Any] | None = None,
) -> House:
    async def main() -> House:
        clock = ManualClock(100.0)
        runtime = StandinRuntime(clock, ScriptedDrafter(clock, *written), ScriptedTranscriber(*heard))
        if wrap is not None:
            runtime.wrap = wrap
        app = create_app(runtime, settings or ServerSettings(), clock=clock, wall_clock=lambda: 1_795_216_400.0)
        house = House(clock, runtime, app)
        await scenario(house)
        await clock.settle()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, f"left running: {others}"
        return house

    return run_async(main())


def pcm(samples: np.ndarray) -> bytes:
    resampler = StreamingResampler(16_000, 24_000)
    return PCM16_24K.encode(np.concatenate([resampler.push(samples), resampler.flush()]))


def pieces(audio: bytes, size: int = 4_801) -> Iterator[str]:
    """Base64 chunks that do not respect the borders of samples."""
    for start in range(0, len(audio), size):
        yield base64.b64encode(audio[start : start + size]).decode()


async def speak(house: House, client: AsgiClient, samples: np.ndarray | None = None) -> None:
    spoken = np.concatenate([tone(0.8), silence(0.7)]) if samples is None else samples
    for piece in pieces(pcm(spoken)):
        await client.send("input_audio_buffer.append", audio=piece)
        await house.clock.advance(0.1)


async def pump(house: House, work: Awaitable[Any]) -> Any:
    """Move the clock until `work` is done."""
    task = asyncio.ensure_future(work)
    for _ in range(4000):
        if task.done():
            return await task
        await house.clock.advance(0.02)
    task.cancel()
    raise AssertionError("nothing happened in 80 s of the manual clock")


def text_item(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


async def refusal(house: House, query: str = "model=m", **how: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        async with connect(house.app, query, **how):
            pass
    return caught.value


KEYED = ServerSettings(host="0.0.0.0", api_key="secret-key", allowed_origins=("https://app.example",))


async def get(house: House, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(house.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
        return await client.get(path, headers=headers)


async def _shown(house: House) -> None:
    assert (await get(house, "/readyz", host="voice.example")).status_code == 200

"""The application over an engine that writes what the test says."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import uvicorn

from dllm.drafts import DraftSpec
from dllm.runner import EngineRunner
from dllm.server import ServerSettings, create_app
from dllm.spec import ModelSpec
from tests.dllm import tiny
from tests.dllm.standin import StandInEngine

ROOMY = replace(tiny.spec(), max_position_embeddings=4096, max_canvas=256)
"""Room for tools in the prompt and for a call spelled letter by letter."""
CREATED = 1_795_216_000

Script = Callable[[DraftSpec], str]


def saying(text: str) -> Script:
    return lambda _: text


def engine(script: Script | str, **how: Any) -> StandInEngine:
    say = saying(script) if isinstance(script, str) else script

    def tokens(spec: DraftSpec) -> Sequence[int]:
        text = say(spec)
        # The built-in family begins every reply with a space.
        return tiny.codec().encode(text if spec.given else " " + text)

    return StandInEngine(tokens, **how)


@dataclass
class Served:
    client: httpx.AsyncClient
    engine: StandInEngine
    runner: EngineRunner[StandInEngine]

    async def chat(self, text: str = "hello", **fields: Any) -> httpx.Response:
        body = {"model": "dllm", "messages": [{"role": "user", "content": text}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)

    async def complete(self, prompt: Any = "hello", **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"model": "dllm", "prompt": prompt, **fields})

    async def stream(self, **fields: Any) -> list[dict[str, Any]]:
        return events_of((await self.chat(stream=True, **fields)).content)


@asynccontextmanager
async def served(
    script: Script | str = "Hello there.",
    settings: ServerSettings | None = None,
    spec: ModelSpec | None = None,
    **how: Any,
) -> AsyncIterator[Served]:
    standin = engine(script, **how)
    async with EngineRunner(standin) as runner:
        app = create_app(runner, tiny.codec(), spec or tiny.spec(), settings, wall_clock=lambda: CREATED)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield Served(client, standin, runner)


def events_of(raw: bytes) -> list[dict[str, Any]]:
    """The objects of a stream, which must end with [DONE] or an error."""
    events = raw.split(b"\n\n")
    assert events.pop() == b""
    assert all(event.startswith(b"data: ") for event in events)
    bodies = [event.removeprefix(b"data: ") for event in events]
    if bodies[-1] == b"[DONE]":
        bodies.pop()
    else:
        assert "error" in json.loads(bodies[-1])
    return [json.loads(body) for body in bodies]


def text_of(chunks: Sequence[dict[str, Any]], index: int = 0) -> str:
    """The content that an appending client ends up with."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@dataclass
class Live:
    url: str
    engine: StandInEngine
    runner: EngineRunner[StandInEngine]


@contextmanager
def live(script: Script | str = "Hello there.", settings: ServerSettings | None = None, **how: Any) -> Iterator[Live]:
    """The same on a real port of this machine, served from a thread."""
    standin = engine(script, **how)
    runner = EngineRunner(standin)
    app = create_app(runner, tiny.codec(), ROOMY, settings)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    is_up = threading.Event()

    async def main() -> None:
        asyncio.get_running_loop().call_soon(is_up.set)
        await server.serve(sockets=[listening])
        await runner.aclose()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert is_up.wait(30)
        yield Live(f"http://127.0.0.1:{listening.getsockname()[1]}", standin, runner)
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive()

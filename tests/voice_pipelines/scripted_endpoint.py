"""A chat endpoint on 127.0.0.1 that says what a test scripts, byte for byte, and sees when its client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(slots=True)
class Exchange:
    """One request and the hand that writes its answer."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    transport: asyncio.Transport
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the connection is closed."""

    def begin(self, status: str = "200 OK", kind: str = "text/event-stream") -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.transport.write(head.encode())

    def write(self, data: bytes) -> None:
        if data:
            self.transport.write(b"%x\r\n%s\r\n" % (len(data), data))

    def send(self, *events: str) -> None:
        self.write(sse(*events))

    def end(self) -> None:
        self.transport.write(b"0\r\n\r\n")

    def refuse(self, status: str, body: bytes) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


Script: TypeAlias = Callable[[Exchange], Awaitable[None]]


@dataclass(slots=True)
class Endpoint:
    url: str
    exchanges: list[Exchange] = field(default_factory=list)
    listings: list[Exchange] = field(default_factory=list)
    """Requests for the list of models."""


def sse(*events: str) -> bytes:
    return "".join(f"data: {event}\n\n" for event in events).encode()


def piece(text: str | None, reason: str | None = None) -> str:
    """A chunk of OpenAI's dialect."""
    delta = {} if text is None else {"content": text}
    return json.dumps(
        {
            "id": "c1",
            "object": "chat.completion.chunk",
            "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }
    )


def frame(text: str, progress: float) -> str:
    """A canvas of Inception's dialect."""
    chunk = json.loads(piece(text))
    chunk["diffusion_meta"] = {"diffusion_content": True, "diffusion_progress": progress}
    return json.dumps(chunk)


def saying(*pieces: str, reason: str = "stop") -> Script:
    """Stream these pieces and end properly."""

    async def script(exchange: Exchange) -> None:
        exchange.begin()
        exchange.send(*map(piece, pieces), piece(None, reason), "[DONE]")
        exchange.end()

    return script


class _Connection(asyncio.Protocol):
    """Reads requests one after another; each script runs in a task of its own."""

    def __init__(self, answer: Callable[[Exchange], Awaitable[None]], tasks: set[asyncio.Task[None]]) -> None:
        self._answer = answer
        self._tasks = tasks
        self._received = b""
        self._exchanges: list[Exchange] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, rest = self._received.partition(b"\r\n\r\n")
        if not blank:
            return
        first, *lines = head.decode("ascii").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        size = int(headers.get("content-length", "0"))
        if len(rest) < size:
            return
        self._received = rest[size:]
        exchange = Exchange(method, path, headers, json.loads(rest[:size] or b"{}"), self._transport)
        self._exchanges.append(exchange)
        self._tasks.add(asyncio.ensure_future(self._answer(exchange)))  # type: ignore[arg-type]

    def connection_lost(self, error: Exception | None) -> None:
        for exchange in self._exchanges:
            exchange.gone.set()


@asynccontextmanager
async def endpoint(
    *scripts: Script, models: Sequence[str] = ("m",), models_status: str = "200 OK"
) -> AsyncGenerator[Endpoint, None]:
    """Answer the n-th chat request by the n-th script, and all further ones by the last."""
    found = Endpoint("")
    tasks: set[asyncio.Task[None]] = set()

    async def answer(exchange: Exchange) -> None:
        if exchange.method == "GET":
            found.listings.append(exchange)
            exchange.refuse(models_status, json.dumps({"data": [{"id": name} for name in models]}).encode())
        else:
            found.exchanges.append(exchange)
            await scripts[min(len(found.exchanges), len(scripts)) - 1](exchange)

    server = await asyncio.get_running_loop().create_server(lambda: _Connection(answer, tasks), "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield found
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        for exchange in (*found.exchanges, *found.listings):
            exchange.transport.abort()
        for error in done:  # A mistake in a script must not pass as a failing endpoint.
            if isinstance(error, Exception):
                raise error

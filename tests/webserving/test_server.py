"""A server that is told to stop: once, and twice."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any

import pytest
import uvicorn

from tests.conftest import run_async
from webserving.server import Server, url_of

ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Told(Server):
    """Says when it was told to stop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_told = asyncio.Event()

    def stop(self) -> None:
        super().stop()
        self.is_told.set()


class Host:
    """A server whose answer waits for the test."""

    def __init__(self) -> None:
        self.is_asked, self.may_answer = asyncio.Event(), asyncio.Event()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self._writers: list[asyncio.StreamWriter] = []
        config = uvicorn.Config(self._answer, interface="asgi3", ws="none", lifespan="off", log_config=None)
        self.server = Told(config)
        self.serving = asyncio.create_task(self.server.serve([self.listening]))

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        self.is_asked.set()
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def ask(self) -> asyncio.StreamReader:
        """The client's end, once the server has its request."""
        reader, writer = await asyncio.open_connection(*self.listening.getsockname())
        self._writers.append(writer)
        writer.write(ASK)
        await self.is_asked.wait()
        return reader

    async def over(self) -> None:
        """Waits for the server's end."""
        await self.serving
        self.may_answer.set()
        for writer in self._writers:
            writer.transport.abort()
        self.listening.close()


def tell(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_once_it_answers_who_has_asked_and_ends_without_a_signal(number: signal.Signals) -> None:
    async def main() -> None:
        host = Host()
        reader = await host.ask()
        tell(number)
        await host.server.is_told.wait()
        assert not host.server.force_exit and not host.serving.done()
        host.may_answer.set()
        assert (await reader.read()).endswith(b"ok")
        await host.over()
        assert not asyncio.get_running_loop().remove_signal_handler(number), "the handler is gone"

    run_async(main(), timeout_s=60.0)


def test_told_twice_it_waits_for_nobody() -> None:
    async def main() -> None:
        host = Host()
        await host.ask()
        tell()
        await host.server.is_told.wait()
        tell()
        await host.over()
        assert host.server.force_exit

    run_async(main(), timeout_s=60.0)


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:80"), ("::1", "http://[::1]:80"), ("a.b", "http://a.b:80")]
)
def test_an_address_of_colons_has_brackets_in_its_url(host: str, url: str) -> None:
    assert url_of("http", host, 80) == url

"""Connections in the middle of their TLS handshake: one place in the lobby, and one patience."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.conftest import run_async
from tests.voiceagent.test_serving import make_certificate
from voiceagent.handshake import Handshakes
from webserving.lobby import Lobby, Transport

NEVER_S = 3600.0


class Greeting(asyncio.Protocol):
    """Says hello to whoever has shaken hands, and then waits for a request."""

    def __init__(self, lobby: Lobby) -> None:
        self._lobby = lobby

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._lobby.enter(transport)
        transport.write(b"hello")


class Hall(Lobby):
    """A lobby for one, with a way to wait for somebody."""

    def __init__(self, cuts: list[str]) -> None:
        super().__init__(1, NEVER_S, NEVER_S, cuts.append)
        self.was_entered = asyncio.Event()

    def enter(self, transport: Transport) -> None:
        super().enter(transport)
        self.was_entered.set()


@asynccontextmanager
async def accepting(lobby: Hall, cert: Path, key: Path) -> AsyncIterator[socket.socket]:
    """A client's socket, connected and silent, to a server that accepts for this lobby."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    handshakes = Handshakes(lobby, context, lambda: Greeting(lobby))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        handshakes.listen(listening)
        raw = socket.create_connection(listening.getsockname())
        raw.setblocking(False)
        await lobby.was_entered.wait()
        try:
            yield raw
        finally:
            raw.close()
            await handshakes.close()


def test_the_end_of_the_handshake_neither_takes_a_second_place_nor_begins_the_patience_anew(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)

    async def main() -> None:
        cuts: list[str] = []
        lobby = Hall(cuts)
        async with accepting(lobby, cert, key) as raw:
            ((shaking, timer),) = lobby._waiting.items()
            trusted = ssl.create_default_context(cafile=str(cert))
            reader, writer = await asyncio.open_connection(sock=raw, ssl=trusted, server_hostname="localhost")
            assert await reader.readexactly(5) == b"hello"
            ((transport, later),) = lobby._waiting.items()
            assert transport is not shaking and timer.cancelled() and later.when() == timer.when()
            assert cuts == []
            later._run()  # its time has come
            assert await reader.read() == b"" and cuts == ["late"]
            writer.close()

    run_async(main())


def test_who_is_cut_amid_the_handshake_never_meets_the_protocol_behind_it(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)

    async def main() -> None:
        cuts: list[str] = []
        lobby = Hall(cuts)
        async with accepting(lobby, cert, key) as raw:
            ((_, timer),) = lobby._waiting.items()
            timer._run()
            assert await asyncio.get_running_loop().sock_recv(raw, 1) == b""
            assert cuts == ["late"] and not lobby._waiting

    run_async(main())

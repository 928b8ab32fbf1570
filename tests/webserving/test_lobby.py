"""Connections that owe a request: they stand in few file descriptors and not for ever."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from tests.conftest import run_async
from webserving.lobby import Lobby, protocol_of

NEVER_S = 3600.0
ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass
class Wire:
    """A client that says what the test says."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def hears(self, end: bytes = b"ok") -> bytes:
        return await self.reader.readuntil(end)

    async def is_cut(self) -> bool:
        """Returns once the server has cut it; what is left to be read is thrown away."""
        try:
            while await self.reader.read(65_536):
                pass
        except ConnectionError:
            pass
        return True


class Cuts(list[str]):
    """What the lobby told, and a way to wait for more."""

    def __init__(self) -> None:
        super().__init__()
        self._came = asyncio.Event()

    def tell(self, why: str) -> None:
        self.append(why)
        self._came.set()

    async def reach(self, count: int) -> None:
        while len(self) < count:
            self._came.clear()
            await self._came.wait()


@dataclass
class Place:
    port: int
    lobby: Lobby
    cuts: Cuts
    wires: list[Wire] = field(default_factory=list)

    async def connect(self, **how: Any) -> Wire:
        self.wires.append(Wire(*await asyncio.open_connection("127.0.0.1", self.port, **how)))
        return self.wires[-1]


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Reads the whole request; answers `/large` with more than any buffer holds, and everything else with ok."""
    while (await receive()).get("more_body"):
        pass
    body = b"x" * 16_000_000 if scope["path"] == "/large" else b"ok"
    length = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


@asynccontextmanager
async def place(*, most: int, patience_s: float, stall_s: float) -> AsyncIterator[Place]:
    cuts = Cuts()
    lobby = Lobby(most, patience_s, stall_s, cuts.tell)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        answer, http=protocol_of(lobby), ws="none", lifespan="off", log_config=None, timeout_keep_alive=3600
    )
    server = Server(config)
    serving = asyncio.create_task(server._serve([listening]))
    await server.is_up.wait()
    found = Place(listening.getsockname()[1], lobby, cuts)
    try:
        yield found
    finally:
        for wire in found.wires:
            wire.writer.transport.abort()
        server.should_exit = True
        await serving


Scenario = Callable[[Place], Awaitable[None]]


def run(scenario: Scenario, *, most: int = 8, patience_s: float = NEVER_S, stall_s: float = NEVER_S) -> None:
    async def main() -> None:
        async with place(most=most, patience_s=patience_s, stall_s=stall_s) as server:
            await scenario(server)

    run_async(main(), timeout_s=60.0)


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
    ],
    ids=["nothing", "a line", "headers", "a body"],
)
def test_a_connection_whose_request_does_not_come_is_cut(words: bytes) -> None:
    async def scenario(server: Place) -> None:
        wire = await server.connect()
        wire.say(words)
        assert await wire.is_cut()
        assert server.cuts == ["late"]

    run(scenario, patience_s=0.05)


def test_words_that_trickle_buy_no_time() -> None:
    async def scenario(server: Place) -> None:
        wire = await server.connect()
        wire.say(ASK[:-4])
        cut = asyncio.create_task(wire.is_cut())
        while not cut.done():
            wire.say(b"\r\nX: y")
            await asyncio.sleep(0.001)
        assert server.cuts == ["late"]

    run(scenario, patience_s=0.05)


def test_an_answered_client_that_asks_nothing_more_is_cut_too() -> None:
    async def scenario(server: Place) -> None:
        wire = await server.connect()
        wire.say(ASK)
        assert (await wire.hears()).startswith(b"HTTP/1.1 200")
        wire.say(b"G")  # which ends uvicorn's own patience with an idle connection
        assert await wire.is_cut()
        assert server.cuts == ["late"]

    run(scenario, patience_s=0.5)  # enough to ask in


def test_however_many_stand_silent_who_speaks_at_once_is_answered_and_the_oldest_go() -> None:
    async def scenario(server: Place) -> None:
        silent = [await server.connect() for _ in range(12)]
        caller = await server.connect()
        caller.say(ASK)
        assert (await caller.hears()).startswith(b"HTTP/1.1 200")
        assert all(await asyncio.gather(*(wire.is_cut() for wire in silent[:5])))
        assert server.cuts == ["crowded"] * 5
        silent[-1].say(ASK)
        assert (await silent[-1].hears()).startswith(b"HTTP/1.1 200")

    run(scenario, most=8)


def test_a_client_that_waits_for_its_answer_owes_nothing() -> None:
    async def scenario(server: Place) -> None:
        asking = await server.connect(limit=32_000_000)
        asking.say(ASK.replace(b"/", b"/large", 1))
        await asking.hears(b"\r\n\r\n")  # the rest is on its way and waits to be read
        for _ in range(3):
            await server.connect()
        await server.cuts.reach(2)
        body = await asking.reader.readexactly(16_000_000)
        assert len(body) == 16_000_000

    run(scenario, most=1)


def test_a_client_that_takes_nothing_of_its_answer_is_cut() -> None:
    async def scenario(server: Place) -> None:
        wire = await server.connect()
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.say(ASK.replace(b"/", b"/large", 1))
        await server.cuts.reach(1)
        assert server.cuts == ["stalled"]

    run(scenario, stall_s=0.05)


class Pipe(asyncio.Transport):
    """A transport of which the test says how much of what was written the client has not taken."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left, self.ends = left, list[str]()

    def get_write_buffer_size(self) -> int:
        return self.left

    def is_closing(self) -> bool:
        return bool(self.ends)

    def close(self) -> None:
        self.ends.append("close")

    def abort(self) -> None:
        self.ends.append("abort")

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def test_the_end_of_an_answer_is_not_cut_off_as_long_as_the_client_takes_of_it() -> None:
    async def main() -> None:
        cuts = Cuts()
        lobby = Lobby(1, NEVER_S, NEVER_S, cuts.tell)
        slow = Pipe(left=3)
        lobby.enter(slow)
        lobby.enter(Pipe(left=0))
        assert (slow.ends, cuts) == (["close"], ["crowded"])
        for slow.left in (2, 1):
            lobby.resume(slow)
            lobby._stalled[slow]._run()  # its time has come
            assert (slow.ends, cuts) == (["close"], ["crowded"])
        lobby._stalled[slow]._run()
        assert (slow.ends, cuts) == (["close", "abort"], ["crowded"]), "told once, by why it had to go"
        assert slow not in lobby._stalled and not lobby._told

    run_async(main())


def test_a_connection_that_gets_another_transport_keeps_its_place_and_its_time() -> None:
    async def main() -> None:
        cuts = Cuts()
        lobby = Lobby(2, NEVER_S, NEVER_S, cuts.tell)
        before, after, younger, third = (Pipe(left=0) for _ in range(4))
        lobby.enter(before)
        until = lobby._waiting[before].when()
        lobby.enter(younger)
        lobby.hand_over(before, after)
        lobby.enter(after)
        assert list(lobby._waiting) == [after, younger] and lobby._waiting[after].when() == until
        lobby.enter(third)
        assert (before.ends, after.ends, younger.ends, cuts) == ([], ["abort"], [], ["crowded"])

    run_async(main())


class Taking(asyncio.Protocol):
    """A protocol for websockets, to which all is well."""

    def __init__(self, **_: Any) -> None:
        super().__init__()


def test_a_websocket_is_not_cut_for_an_answer_before_it_that_was_slow_to_go() -> None:
    async def main() -> None:
        cuts = Cuts()
        lobby = Lobby(8, NEVER_S, NEVER_S, cuts.tell)
        config = uvicorn.Config(answer, ws=Taking, lifespan="off", log_config=None)
        config.load()
        protocol, pipe = protocol_of(lobby)(config, ServerState(), {}), Pipe(left=100_000)
        protocol.connection_made(pipe)
        protocol.pause_writing()
        timer = lobby._stalled[pipe]
        protocol.data_received(ASK[:-2] + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert timer.cancelled() and not lobby._stalled and not lobby._waiting

    run_async(main())


def test_connections_that_are_gone_leave_nothing_behind() -> None:
    async def scenario(server: Place) -> None:
        for words in (b"", ASK, ASK[:9]):
            wire = await server.connect()
            wire.say(words)
            wire.writer.close()
            await wire.writer.wait_closed()
        caller = await server.connect()
        caller.say(ASK)
        await caller.hears()
        assert len(server.lobby._waiting) == 1 and not server.lobby._stalled
        assert server.cuts == []

    run(scenario)

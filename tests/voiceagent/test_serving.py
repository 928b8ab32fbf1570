"""The server process over real sockets: handshakes as clients make them, TLS, stalled clients, signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from tests.conftest import run_async
from tests.voiceagent.realtime import Event, StandinRuntime, check_event, check_events
from tests.voiceagent.standins import ScriptedDrafter
from voiceagent import serving as serving_module
from voiceagent.clock import MonotonicClock
from voiceagent.conversation import Conversation
from voiceagent.errors import ConfigError
from voiceagent.server import RealtimeServer, create_app
from voiceagent.server_settings import ServerSettings
from voiceagent.serving import bind, check_address, run
from voiceagent.serving import serve as serve_app
from webserving.descriptors import OWN, Limit, finding, remedy

REPLY = "Sure. What size would you like?"


@dataclass
class Place:
    address: str
    runtime: StandinRuntime
    realtime: RealtimeServer
    served: asyncio.Task[None]

    @property
    def url(self) -> str:
        return self.address.replace("http", "ws", 1) + "/v1/realtime?model=local"


@asynccontextmanager
async def serving(settings: ServerSettings | None = None, *, written: str = REPLY) -> AsyncIterator[Place]:
    """A running server, stopped by a real SIGTERM at the end unless the test did that itself."""
    clock = MonotonicClock()
    runtime = StandinRuntime(clock, ScriptedDrafter(clock, written, step_s=0.0))
    settings = settings or ServerSettings(port=0)
    app = create_app(runtime, settings, clock=clock)
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    served = asyncio.create_task(serve_app(app, settings, on_started=address.set_result))
    try:
        await asyncio.wait({served, address}, return_when=asyncio.FIRST_COMPLETED)
        if served.done():
            await served
        yield Place(await address, runtime, app.state.realtime, served)
    finally:
        if not served.done():
            os.kill(os.getpid(), signal.SIGTERM)
            await served


def scene(scenario: Callable[[Place], Awaitable[None]], settings: ServerSettings | None = None, **how: Any) -> None:
    async def main() -> None:
        async with serving(settings, **how) as place:
            await scenario(place)
        await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert {task for task in others if task.get_coro().__qualname__ not in _WRAPPERS} == set()  # type: ignore[union-attr]

    run_async(main(), timeout_s=120.0)


_WRAPPERS = {"run_async.<locals>.bounded"}


async def next_event(websocket: ClientConnection) -> Event:
    event: Event = json.loads(await websocket.recv())
    check_event(event)
    return event


async def until(websocket: ClientConnection, kind: str) -> list[Event]:
    events = [await next_event(websocket)]
    while events[-1]["type"] != kind:
        events.append(await next_event(websocket))
    return events


def test_a_running_server_measures_the_lag_of_its_own_loop() -> None:
    async def scenario(place: Place) -> None:
        async with httpx.AsyncClient() as client:
            shown = 'voiceagent_event_loop_lag_seconds_bucket{le="+Inf"} 0'
            while shown in (await client.get(f"{place.address}/metrics")).text:
                pass
            assert place.realtime.telemetry.lag.count() > 0

    scene(scenario)


# --- handshakes -------------------------------------------------------------------------------------------------------


def test_a_client_holds_a_typed_conversation_over_a_real_socket_without_compression() -> None:
    async def scenario(place: Place) -> None:
        async with connect_websocket(place.url) as websocket:
            assert websocket.subprotocol is None
            assert "Sec-WebSocket-Extensions" not in websocket.response.headers  # type: ignore[union-attr]
            assert (await next_event(websocket))["type"] == "session.created"
            await websocket.send('{"type":"response.create"}')
            events = await until(websocket, "response.done")
            check_events(events)
            assert any(event["type"] == "response.output_audio.delta" for event in events)

    scene(scenario)


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="this system does not list open files")
def test_a_caller_takes_one_open_file_of_the_server_and_gives_it_back() -> None:
    async def scenario(place: Place) -> None:
        before = len(os.listdir("/dev/fd"))
        async with contextlib.AsyncExitStack() as callers:
            for _ in range(5):
                await next_event(await callers.enter_async_context(connect_websocket(place.url)))
            assert len(os.listdir("/dev/fd")) == before + 5 + 5  # Theirs are in this process too.
        await place.realtime._nobody.wait()
        assert len(os.listdir("/dev/fd")) <= before

    scene(scenario)


def test_realtime_is_selected_when_offered_and_the_key_is_neither_echoed_nor_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(place: Place) -> None:
        offered: Any = ["realtime", "openai-insecure-api-key.ek_secret.1", "openai-agents-sdk.0.20.0"]
        async with connect_websocket(place.url, subprotocols=offered) as websocket:
            assert websocket.subprotocol == "realtime"
            assert "ek_secret" not in str(websocket.response.headers)  # type: ignore[union-attr]

    # "websockets" is the client of this test, which logs what it sends.
    with caplog.at_level(logging.WARNING, logger="websockets"), caplog.at_level(logging.DEBUG):
        scene(scenario, ServerSettings(port=0, api_key="ek_secret.1"))
    assert "ek_secret" not in caplog.text


def test_a_caller_and_a_bridge_without_a_call_each_find_their_open_files() -> None:
    demand = ServerSettings(max_sessions=1_000, max_waiting=256).open_files(each=4)
    assert demand.needed == OWN + 256 + 5 * 1_000
    assert "1000 conversations" in finding(Limit(1_024, 1_024), demand)
    usual = ServerSettings(max_sessions=32).open_files(each=4)
    assert remedy(Limit(1_024, 1_024), usual) is None, "with a remote model and tools as well"


def test_a_refused_handshake_has_a_json_body() -> None:
    async def scenario(place: Place) -> None:
        with pytest.raises(InvalidStatus) as caught:
            async with connect_websocket(place.url, additional_headers={"Authorization": "Bearer wrong"}):
                pass
        response = caught.value.response
        assert response.status_code == 401
        assert response.headers["Content-Type"] == "application/json"
        assert json.loads(response.body or b"")["error"]["code"] == "invalid_api_key"
        with pytest.raises(InvalidStatus) as caught:
            async with connect_websocket(place.url, origin="http://evil.org"):  # type: ignore[arg-type]
                pass
        assert caught.value.response.status_code == 403

    scene(scenario, ServerSettings(port=0, api_key="right"))


@pytest.mark.parametrize(("path", "status"), [("/v1/realtime?model=local", 503), ("/no/such/door", 403)])
def test_callers_who_are_refused_make_no_noise_in_the_log(
    path: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(place: Place) -> None:
        async with connect_websocket(place.url) as inside:
            await next_event(inside)
            for _ in range(2):
                with pytest.raises(InvalidStatus) as caught:
                    async with connect_websocket(place.address.replace("http", "ws", 1) + path):
                        pass
                assert caught.value.response.status_code == status

    scene(scenario, ServerSettings(port=0, max_sessions=1))
    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_a_message_over_the_limit_closes_with_1009_and_one_below_it_is_heard() -> None:
    settings = ServerSettings(port=0)

    async def scenario(place: Place) -> None:
        async with connect_websocket(place.url, max_size=None) as websocket:
            await next_event(websocket)
            padding = "A" * (21 * 1024 * 1024)
            await websocket.send(json.dumps({"type": "input_audio_buffer.append", "audio": padding}))
            (error,) = await until(websocket, "error")
            assert error["error"]["param"] == "audio", "more than 15 MiB of audio, but the connection lives"
            with contextlib.suppress(ConnectionClosed):
                await websocket.send("A" * (settings.max_message_bytes + 1))
            with pytest.raises(ConnectionClosed) as caught:
                await until(websocket, "nothing")
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009

    scene(scenario, settings)


class Pipe(asyncio.Transport):
    """A transport that knows only whether it is read from."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses = self.resumes = 0

    def pause_reading(self) -> None:
        self.pauses += 1

    def resume_reading(self) -> None:
        self.resumes += 1


def protocol(pipe: Pipe) -> serving_module._RealtimeProtocol:
    config = uvicorn.Config(app=lambda scope: None, ws="none", lifespan="off", log_config=None)
    made = serving_module._RealtimeProtocol(config, ServerState(), {})
    made.transport = pipe
    return made


def test_a_client_that_is_not_ahead_is_read_from_all_the_time() -> None:
    async def main() -> None:
        pipe = Pipe()
        connection = protocol(pipe)
        for number in range(100):
            connection.handle_text(Frame(Opcode.TEXT, b"%d" % number))
            assert (await connection.receive()) == {"type": "websocket.receive", "text": str(number)}
        assert (pipe.pauses, pipe.resumes) == (0, 0)

    run_async(main())


@pytest.mark.parametrize(
    ("size", "fits"), [(10, serving_module.MESSAGES_AHEAD), (serving_module.LARGE_MESSAGE_BYTES + 1, 0)]
)
def test_a_client_that_is_ahead_has_to_wait_until_what_it_sent_was_taken(size: int, fits: int) -> None:
    async def main() -> None:
        pipe = Pipe()
        connection = protocol(pipe)
        for _ in range(fits):
            connection.handle_text(Frame(Opcode.TEXT, b"x" * size))
        assert pipe.pauses == 0
        connection.handle_text(Frame(Opcode.TEXT, b"x" * size))
        connection.handle_text(Frame(Opcode.TEXT, b"x" * size))
        assert (pipe.pauses, pipe.resumes) == (1, 0)
        for _ in range(fits + 1):
            await connection.receive()
        assert pipe.resumes == 0
        await connection.receive()
        assert pipe.resumes == 1

    run_async(main())


def test_invalid_utf_8_closes_with_1007() -> None:
    async def scenario(place: Place) -> None:
        async with connect_websocket(place.url) as websocket:
            await next_event(websocket)
            await websocket.send(b"\xff\xfe", text=True)
            with pytest.raises(ConnectionClosed) as caught:
                await until(websocket, "nothing")
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1007

    scene(scenario)


def test_a_client_that_closes_gets_its_own_code_back_and_frees_its_place() -> None:
    async def scenario(place: Place) -> None:
        async with connect_websocket(place.url) as websocket:
            await next_event(websocket)
            await websocket.close(1000)
            assert websocket.close_code == 1000
        await place.realtime.wait_until_empty()
        async with connect_websocket(place.url) as websocket:
            await next_event(websocket)

    scene(scenario, ServerSettings(port=0, max_sessions=1))


# --- clients that do not speak ----------------------------------------------------------------------------------------


async def _silent_client(place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = place.address.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


def test_connections_that_ask_nothing_are_cut_and_callers_talk_on() -> None:
    async def scenario(place: Place) -> None:
        async with connect_websocket(place.url) as caller:
            await until(caller, "session.created")
            reader, writer = await _silent_client(place)
            assert await reader.read() == b""
            writer.close()
            await caller.send('{"type":"input_audio_buffer.clear"}')
            await until(caller, "input_audio_buffer.cleared")
        assert place.realtime.telemetry.cuts.value("late") == 1

    scene(scenario, ServerSettings(port=0, request_timeout_s=0.5))  # enough for the handshake


def test_a_caller_gets_in_however_many_connections_ask_nothing() -> None:
    async def scenario(place: Place) -> None:
        silent = [await _silent_client(place) for _ in range(20)]
        async with connect_websocket(place.url) as caller:
            await until(caller, "session.created")
        assert place.realtime.telemetry.cuts.value("crowded") == 17
        for _, writer in silent:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in silent), return_exceptions=True)

    scene(scenario, ServerSettings(port=0, request_timeout_s=3600.0, max_waiting=4))


# --- clients that do not read -----------------------------------------------------------------------------------------


def test_a_client_that_stops_reading_is_cut_off_and_the_others_go_on() -> None:
    async def scenario(place: Place) -> None:
        async with connect_websocket(place.url) as other:
            await until(other, "session.created")
            ended = asyncio.Event()
            place.runtime.wrap = lambda conversation: _Watched(conversation, ended)
            stalled = await _stalled_client(place)
            try:
                await ended.wait()  # nothing is read meanwhile: the reply piles up in the server
                await other.send('{"type":"input_audio_buffer.clear"}')
                await until(other, "input_audio_buffer.cleared")
                received = await asyncio.to_thread(_drain, stalled)
            finally:
                stalled.close()
            assert b"the client does not read: 65536 bytes wait for it" in received[-200:]

    scene(scenario, ServerSettings(port=0, send_buffer_limit=65_536), written="word " * 2000 + ".")


class _Watched:
    """A conversation that tells when it is closed."""

    def __init__(self, conversation: Conversation, ended: asyncio.Event) -> None:
        self._conversation = conversation
        self._ended = ended

    async def aclose(self, *, drain_s: float = 0.0) -> None:
        await self._conversation.aclose(drain_s=drain_s)
        self._ended.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conversation, name)


async def _stalled_client(place: Place) -> socket.socket:
    """A raw client that asks for a very long reply and then reads nothing."""
    host, port = place.address.removeprefix("http://").split(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, (host, int(port)))
    lines = (
        "GET /v1/realtime HTTP/1.1",
        f"Host: {host}:{port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    await loop.sock_sendall(raw, ("\r\n".join(lines) + "\r\n\r\n").encode())
    await loop.sock_recv(raw, 12)  # the handshake is answered before the request that follows
    text = b'{"type":"response.create"}'
    await loop.sock_sendall(raw, bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
    return raw


def _drain(raw: socket.socket) -> bytes:
    raw.setblocking(True)
    raw.settimeout(20)
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := raw.recv(65_536):
            received += chunk
    return received


# --- the process ------------------------------------------------------------------------------------------------------


def test_sigterm_lets_the_reply_finish_and_then_says_goodbye() -> None:
    async def scenario(place: Place) -> None:
        async with connect_websocket(place.url) as websocket:
            await next_event(websocket)
            place.runtime.llm.step_s = 0.05
            await websocket.send('{"type":"response.create","response":{"output_modalities":["text"]}}')
            await until(websocket, "response.created")
            os.kill(os.getpid(), signal.SIGTERM)
            done = (await until(websocket, "response.done"))[-1]
            assert done["response"]["status"] == "completed"
            with pytest.raises(ConnectionClosed) as caught:
                await until(websocket, "nothing")
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1001, "the server is shutting down")
        await place.served

    scene(scenario)


def test_a_second_signal_does_not_wait() -> None:
    async def scenario(place: Place) -> None:
        async with connect_websocket(place.url) as websocket:
            await next_event(websocket)
            place.runtime.llm.step_s = 3600.0
            await websocket.send('{"type":"response.create"}')
            await until(websocket, "response.created")
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(ConnectionClosed):
                await until(websocket, "nothing")
        await place.served
        assert place.runtime.conversations[0].id in place.runtime.llm.forgotten

    scene(scenario, ServerSettings(port=0, drain_s=3600.0))


def test_a_port_that_is_taken_or_a_host_that_is_not_ours_is_named() -> None:
    taken = bind(ServerSettings(port=0))
    try:
        taken[0].listen()
        port = taken[0].getsockname()[1]
        with pytest.raises(ConfigError, match=f"port = {port}: expected a free port on 127.0.0.1"):
            bind(ServerSettings(port=port))
    finally:
        for listening in taken:
            listening.close()
    for host in ("no.such.host.invalid", "192.0.2.1", "a" * 64):
        with pytest.raises(ConfigError, match=f"host = '{host}': expected .*address of this machine"):
            bind(ServerSettings(host=host, api_key="key"))


def test_localhost_listens_on_every_loopback_address_with_one_port() -> None:
    sockets = bind(ServerSettings(host="localhost", port=0))
    try:
        assert len({listening.getsockname()[1] for listening in sockets}) == 1
        assert all(listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for listening in sockets)
    finally:
        for listening in sockets:
            listening.close()


def test_https_and_wss_are_served_with_a_certificate(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)

    async def scenario(place: Place) -> None:
        assert place.address.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=str(cert))
        async with httpx.AsyncClient(verify=trusted) as client:
            assert (await client.get(f"{place.address}/readyz")).status_code == 200
        async with connect_websocket(place.url, ssl=trusted) as websocket:
            await next_event(websocket)

    scene(scenario, ServerSettings(port=0, tls_cert=str(cert), tls_key=str(key)))


def test_who_begins_no_tls_handshake_is_cut_like_anybody_and_who_fails_one_is_gone(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)

    async def scenario(place: Place) -> None:
        host, port = place.address.removeprefix("https://").split(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(6)]
        strangers = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        for reader, writer in strangers:
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                await reader.read()
        trusted = ssl.create_default_context(cafile=str(cert))
        async with httpx.AsyncClient(verify=trusted) as client:
            told = (await client.get(f"{place.address}/metrics")).text
        assert 'voiceagent_cut_connections_total{reason="crowded"} 4' in told, "8 were there, where 4 may be"
        for _, writer in silent + strangers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in silent + strangers), return_exceptions=True)

    settings = ServerSettings(port=0, tls_cert=str(cert), tls_key=str(key), request_timeout_s=3600.0, max_waiting=4)
    scene(scenario, settings)


@pytest.mark.parametrize("most", [1, 4])
def test_as_many_as_may_wait_get_in_over_tls(tmp_path: Path, most: int) -> None:
    cert, key = make_certificate(tmp_path)

    async def scenario(place: Place) -> None:
        host, port = place.address.removeprefix("https://").split(":")
        trusted = ssl.create_default_context(cafile=str(cert))
        callers = [await asyncio.open_connection(host, int(port), ssl=trusted) for _ in range(most)]
        for reader, writer in callers:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
        assert place.realtime.telemetry.cuts.value("crowded") == 0

    settings = ServerSettings(port=0, tls_cert=str(cert), tls_key=str(key), request_timeout_s=3600.0, max_waiting=most)
    scene(scenario, settings)


def test_a_request_that_comes_with_the_end_of_the_tls_handshake_is_answered(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)

    def ask(host: str, port: int) -> bytes:
        """In one piece with the client's last message of the handshake."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        trusted = ssl.create_default_context(cafile=str(cert))
        tls = trusted.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection((host, port), 20) as raw:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    raw.sendall(outgoing.read())
                    incoming.write(raw.recv(65_536))
            tls.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            raw.sendall(outgoing.read())
            while True:
                try:
                    return tls.read(65_536)
                except ssl.SSLWantReadError:
                    incoming.write(raw.recv(65_536))

    async def scenario(place: Place) -> None:
        host, port = place.address.removeprefix("https://").split(":")
        assert (await asyncio.to_thread(ask, host, int(port))).startswith(b"HTTP/1.1 200")

    scene(scenario, ServerSettings(port=0, tls_cert=str(cert), tls_key=str(key)))


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        missing = str(tmp_path / "missing.pem")
        async with serving(ServerSettings(port=0, tls_cert=missing, tls_key=missing)):
            pass

    with pytest.raises(ConfigError, match=r"tls_cert = .*missing\.pem"):
        run_async(main())


def make_certificate(folder: Path) -> tuple[Path, Path]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
    ]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run([*command, *names, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


def test_the_event_loop_is_uvloop_where_it_is_installed() -> None:
    async def name() -> str:
        return type(asyncio.get_running_loop()).__module__

    wanted = "asyncio" if sys.platform == "win32" else "uvloop"
    assert run(name()).startswith(wanted)


def test_a_certificate_in_the_home_of_nobody_is_named() -> None:
    with pytest.raises(ConfigError, match=r"tls_cert = '~no_such_user_here/cert\.pem'"):
        check_address(ServerSettings(port=0, tls_cert="~no_such_user_here/cert.pem", tls_key="~/key.pem"))

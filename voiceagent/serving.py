"""The process around the application: sockets, uvicorn and an orderly end."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar, cast

import uvicorn
from starlette.applications import Starlette
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from voiceagent.errors import ConfigError
from voiceagent.handshake import Handshakes
from voiceagent.inbox import Inbox
from voiceagent.line import CLOSE_NOW
from voiceagent.server import RealtimeServer
from voiceagent.server_settings import ServerSettings
from webserving.lobby import AT_ONCE, Lobby, protocol_of
from webserving.server import Server, url_of

T = TypeVar("T")

MESSAGES_AHEAD = 8
"""Messages of one client that may wait to be taken before it is read from again; a large one waits alone."""
LARGE_MESSAGE_BYTES = 65_536

LINGER_S = 2.0
"""How long a closed connection may take to hand over its last bytes before it is cut."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def serve(app: Starlette, settings: ServerSettings, *, on_started: Callable[[str], None] | None = None) -> None:
    """Serve `app` (from `create_app`) until SIGTERM or SIGINT; a second signal does not wait for anybody.

    Args:
        on_started: Called with the server's address, such as `http://127.0.0.1:8080`, once it accepts connections.

    Raises:
        ConfigError: If the port is taken, the address is not ours or the certificate cannot be used.
    """
    sockets = bind(settings)
    try:
        context = _tls_context(settings)
        scheme = "http" if context is None else "https"
        cuts = app.state.realtime.telemetry.cuts
        lobby = Lobby(settings.max_waiting, settings.request_timeout_s, settings.send_timeout_s, cuts.add)
        http = protocol_of(lobby)
        config = uvicorn.Config(
            app,
            http=http,
            backlog=AT_ONCE,
            ws=_RealtimeProtocol,
            ws_max_size=settings.max_message_bytes,
            ws_ping_interval=settings.ping_interval_s,
            ws_ping_timeout=settings.ping_timeout_s,
            ws_per_message_deflate=False,  # costs latency and processor time on audio, for little gain
            timeout_graceful_shutdown=max(1, round(settings.close_timeout_s)),
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="warning",  # below that, the protocol library logs every header, keys included
            server_header=False,
        )
        server = _Server(config, app.state.realtime)
        if context is not None:
            server.secure = Handshakes(lobby, context, lambda: http(config, server.server_state, server.lifespan.state))
        started = asyncio.create_task(_announce(server, _address(sockets[0], settings, scheme), on_started))
        watching = asyncio.create_task(app.state.realtime.watch_loop())
        try:
            await server.serve(sockets=sockets)
        finally:
            started.cancel()
            watching.cancel()
            await asyncio.gather(started, watching, return_exceptions=True)
    finally:
        for listening in sockets:
            listening.close()


def check_address(settings: ServerSettings) -> None:
    """Try what `serve` will need, so that a port that is taken is known before a model is loaded.

    Raises:
        ConfigError: As `serve` would.
    """
    for listening in bind(settings):
        listening.close()
    _tls_context(settings)


def bind(settings: ServerSettings) -> list[socket.socket]:
    """Listening sockets for every address of the host, all on one port.

    Raises:
        ConfigError: If that is not possible.
    """
    try:
        found = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise ConfigError("host", settings.host, f"a name or an address of this machine ({error})") from error
    sockets: list[socket.socket] = []
    port = settings.port
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listening = socket.socket(family, kind, protocol)
            sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit it: a delta of audio must not wait for the acknowledgement of the one before.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((str(address[0]), port, *address[2:]))
            port = listening.getsockname()[1]
            listening.setblocking(False)
    except OSError as error:
        for listening in sockets:
            listening.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError("host", settings.host, f"an address of this machine ({error.strerror})") from error
        raise ConfigError("port", settings.port, f"a free port on {settings.host} ({error.strerror})") from error
    return sockets


class _Server(Server):
    """Drains the conversations before it closes connections, and speaks TLS of its own."""

    def __init__(self, config: uvicorn.Config, realtime: RealtimeServer) -> None:
        super().__init__(config)
        self._realtime = realtime
        self.secure: Handshakes | None = None
        """What accepts connections where they are TLS."""
        self._hurry = asyncio.Event()
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self.secure is None:
            await super().startup(sockets)
        else:
            self.servers, self.started = [], True
            for listening in sockets or ():
                self.secure.listen(listening)
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain = asyncio.create_task(self._realtime.drain())
        hurry = asyncio.create_task(self._hurry.wait())
        try:
            await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            drain.cancel()
            hurry.cancel()
        await asyncio.gather(drain, hurry, return_exceptions=True)
        if self.secure is not None:
            await self.secure.close()
        await super().shutdown(sockets)

    def stop(self) -> None:
        super().stop()
        if self.force_exit:
            self._hurry.set()


class _RealtimeProtocol(WebSocketsSansIOProtocol):
    """uvicorn's websocket protocol, with a way out when the client does not read.

    uvicorn sends nothing, not even a close frame, before the client has emptied the buffer, and closing a transport waits for the
    same; a stalled client would keep its socket and its buffer for as long as it likes. And it takes a handshake that the application has
    refused with a whole response for one that was left open, and logs an error for every caller that a full server turns away.
    """

    _cut: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.queue = cast("asyncio.Queue[ASGIReceiveEvent]", Inbox())

    def send_receive_event_to_app(self) -> None:
        """As uvicorn does, which stops reading with every message and goes on when it was taken: twice in 20 ms for every caller.

        Here only a client that is ahead of us has to wait.
        """
        if self.queue.qsize() >= MESSAGES_AHEAD or sum(map(len, self.frames)) > LARGE_MESSAGE_BYTES:
            super().send_receive_event_to_app()
            return
        was_paused, self.read_paused = self.read_paused, True  # What is paused is not paused again.
        super().send_receive_event_to_app()
        self.read_paused = was_paused

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:  # the handshake was in order; the application starts with the next turn of the loop
            cast(dict[str, object], self.scope["extensions"])[CLOSE_NOW] = self._close_now

    def connection_lost(self, exc: Exception | None) -> None:
        if self._cut is not None:
            self._cut.cancel()
        super().connection_lost(exc)

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:  # All of the refusal is written.
            self.handshake_complete = True

    async def run_asgi(self) -> None:
        try:
            await super().run_asgi()
        finally:
            self._cut_later()

    def _close_now(self, code: int, reason: str) -> None:
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.stop_keepalive()
        self.transport.close()
        self._cut_later()

    def _cut_later(self) -> None:
        if self._cut is None and not self.disconnected:
            self._cut = self.loop.call_later(LINGER_S, self.transport.abort)


async def _announce(server: _Server, address: str, on_started: Callable[[str], None] | None) -> None:
    await server.listening.wait()
    if on_started is not None:
        on_started(address)


def _address(listening: socket.socket, settings: ServerSettings, scheme: str) -> str:
    return url_of(scheme, settings.host or "0.0.0.0", listening.getsockname()[1])


def _tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(Path(settings.tls_cert).expanduser(), Path(settings.tls_key).expanduser())
    except (OSError, RuntimeError) as error:  # The latter of the home of a user who is not known here.
        raise ConfigError("tls_cert", settings.tls_cert, f"a readable certificate with its key ({error})") from error
    return context

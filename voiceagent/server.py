"""The doors of the runtime: the page, the operators' routes, the Realtime websocket and the phone bridges.

`create_app` builds the ASGI application; `voiceagent.serving` runs it until it is told to stop, letting what is being said finish first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, get_args

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from voiceagent import page
from voiceagent.agent import AgentProfile
from voiceagent.backends import BackendInfo
from voiceagent.clock import Clock, MonotonicClock
from voiceagent.connection import Connection, ConversationPort
from voiceagent.errors import OverloadedError
from voiceagent.events import ConversationEvent
from voiceagent.lag import LoopLoad, watch_lag
from voiceagent.security import AccessPolicy, extract_key, select_subprotocol
from voiceagent.server_settings import ServerSettings
from voiceagent.session import SessionSettings
from voiceagent.telemetry import Door, Session, Telemetry
from voiceagent.telephony.call import PhoneCall
from voiceagent.telephony.signature import is_signed
from voiceagent.wire.codec import RealtimeCodec
from voiceagent.wire.fields import Json, clean_text
from webserving.metrics import CONTENT_TYPE

_log = logging.getLogger("voiceagent.server")

RETRY_AFTER_S = 5


class Runtime(Protocol):
    """The models and the agent, ready to talk; wired by `voice_pipelines`."""

    @property
    def ready(self) -> bool:
        """Whether the models are loaded."""
        ...

    @property
    def infos(self) -> Sequence[BackendInfo]:
        """What was chosen for each part, and why."""
        ...

    @property
    def agent(self) -> AgentProfile: ...

    @property
    def default_settings(self) -> SessionSettings:
        """The settings of a conversation before its client has said anything."""
        ...

    @property
    def fullness(self) -> Mapping[str, float]:
        """By part of the machine, how much of what it can do in time is taken; from 1 on nobody more is let in, or only the floor is granted."""
        ...

    def unready(self) -> str | None:
        """Why callers should be sent elsewhere, or None: one more would be refused, or was and hardly any room has been made since."""
        ...

    def open_conversation(
        self, emit: Callable[[ConversationEvent], None], settings: SessionSettings
    ) -> ConversationPort:
        """A conversation that tells `emit` what happens. It has not been started.

        Raises:
            OverloadedError: If the models cannot serve another caller on time.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Caller:
    session: Session
    conversation: ConversationPort


class RealtimeServer:
    """The state behind the routes: who is connected, and whether anyone still may."""

    def __init__(
        self, runtime: Runtime, settings: ServerSettings, clock: Clock, wall_clock: Callable[[], float]
    ) -> None:
        self._runtime = runtime
        self._settings = settings
        self._clock = clock
        self._wall_clock = wall_clock
        self._access = settings.access
        self._connections: dict[Connection | PhoneCall, _Caller | None] = {}
        """Who is connected, and their conversation once they have one."""
        self.telemetry = Telemetry(self._callers_by_door, settings.max_sessions, lambda: runtime.fullness)
        self._loop_load = LoopLoad()
        self._nobody = asyncio.Event()
        self._nobody.set()
        self.is_draining = False

    async def realtime(self, websocket: WebSocket) -> None:
        """A client of `WS /v1/realtime`, from its handshake to its end."""
        refusal = self._refusal(websocket)
        if refusal is not None:
            await self._deny(websocket, refusal)
            return
        connection = Connection(websocket, self._settings, self._clock)
        with self._present(connection):
            try:
                await self._converse(websocket, connection)
            except OverloadedError as error:
                await self._deny(websocket, _overloaded(str(error)), error.code)

    async def twilio(self, websocket: WebSocket) -> None:
        """A phone bridge of `WS /telephony/twilio`, from its handshake to its end."""
        refusal, key = self._bridge_refusal(websocket)
        if refusal is not None:
            await self._deny(websocket, refusal)
            return
        defaults = self._runtime.default_settings
        call = PhoneCall(
            websocket,
            self._settings,
            self._clock,
            key=key,
            why_full=self._why_full,
            open_conversation=lambda emit: self._open(call, "twilio", websocket, emit),
            tell_refused=self.telemetry.refusals.add,
            interrupts=defaults.turn_detection is not None and defaults.turn_detection.interrupt_response,
        )
        with self._present(call):
            await websocket.accept()
            await call.serve()

    @contextlib.contextmanager
    def _present(self, connection: Connection | PhoneCall) -> Iterator[None]:
        """Count this connection among those that a shutdown waits for."""
        self._connections[connection] = None
        self._nobody.clear()
        try:
            yield
        finally:
            del self._connections[connection]
            if not self._connections:
                self._nobody.set()

    async def _converse(self, websocket: WebSocket, connection: Connection) -> None:
        defaults = self._runtime.default_settings.for_client()
        conversation = self._open(connection, "realtime", websocket, connection.emit)
        try:
            codec = RealtimeCodec(
                session_id=f"sess_{uuid.uuid4().hex[:24]}",
                conversation_id=conversation.id,
                model=clean_text(websocket.query_params.get("model") or self._runtime.agent.name),
                defaults=defaults,
                transcriber=next((info.name for info in self._runtime.infos if info.part == "asr"), "asr"),
                expires_at=int(self._wall_clock() + self._settings.session_s),
                extensions=_wants_our_events(websocket),
            )
            await websocket.accept(subprotocol=select_subprotocol(websocket.scope.get("subprotocols", [])))
            await connection.run(conversation, codec)
        finally:
            await conversation.aclose()

    def _open(
        self,
        connection: Connection | PhoneCall,
        door: Door,
        websocket: WebSocket,
        emit: Callable[[ConversationEvent], None],
    ) -> ConversationPort:
        """The conversation of this connection, with everything it says counted on its way out."""
        session = Session(self.telemetry, door, websocket.client.host if websocket.client else "", self._clock)
        settings = self._runtime.default_settings
        if door != "twilio":
            settings = settings.for_client()
        settings = replace(settings, can_be_held=door == "twilio" or _wants_our_events(websocket))
        conversation = self._runtime.open_conversation(session.watch(emit), settings)
        self._connections[connection] = _Caller(session, conversation)
        self.telemetry.conversations.add(door)
        return conversation

    async def _deny(self, websocket: WebSocket, refusal: _Refusal, why: str | None = None) -> None:
        self.telemetry.refusals.add(why or refusal.code)
        await websocket.send_denial_response(refusal)

    def _refusal(self, websocket: WebSocket) -> _Refusal | None:
        """Why this client is not let in, or None. Nothing it sent is repeated but the origin."""
        if (foreign := self._foreign(websocket)) is not None:
            return foreign
        key = extract_key(websocket.headers.get("authorization"), websocket.scope.get("subprotocols", []))
        if not self._access.allows_key(key):
            return _wrong_key(key)
        query = websocket.query_params
        if "call_id" in query or query.get("intent", "conversation") != "conversation":
            return _error(404, "not_found", "Only conversations over this websocket are offered (?model=…).")
        full = self._why_full()
        return None if full is None else _overloaded(full)

    def _bridge_refusal(self, websocket: WebSocket) -> tuple[_Refusal | None, str | None]:
        """Why this phone bridge is not let in, or None; and the key that its start message still has to bring, or None.

        A key in the request or a signature decides at once. Twilio can send a key as a parameter of its start message only.
        """
        if (foreign := self._foreign(websocket)) is not None:
            return foreign, None
        settings, headers, wanted = self._settings, websocket.headers, None
        key = extract_key(headers.get("authorization"), ()) or websocket.query_params.get("key")
        signature = headers.get("x-twilio-signature")
        if settings.api_key is not None and key is not None:
            if not self._access.allows_key(key):
                return _wrong_key(key), None
        elif settings.twilio_auth_token is not None and signature is not None:
            url = settings.websocket_url(websocket.url.path, websocket.url.query)
            if not is_signed(signature, settings.twilio_auth_token, url):
                reason = f"X-Twilio-Signature does not fit {url.partition('?')[0]} and the auth token."
                return _error(403, "invalid_signature", reason, kind="authentication_error"), None
        elif settings.api_key is not None:
            wanted = settings.api_key
        elif settings.twilio_auth_token is not None:
            return _wrong_key("No X-Twilio-Signature."), None
        if len(self._connections) - self._callers >= settings.max_sessions:
            return _overloaded("Too many bridges have connected and not started a call."), None
        full = self._why_full()
        return None if full is None else _overloaded(full), wanted

    def _foreign(self, websocket: WebSocket) -> _Refusal | None:
        """The answer to a page or a name that must not reach this server, or None."""
        host, origin = websocket.headers.get("host"), websocket.headers.get("origin")
        if not self._access.allows_host(host):
            return _error(403, "forbidden_host", "This server answers to localhost only; set an API key to open it.")
        if not self._access.allows_origin(origin, host):
            return _error(
                403, "forbidden_origin", f"Pages of {origin!a} may not connect; allowed_origins can name them."
            )
        return None

    @property
    def _callers(self) -> int:
        """Who holds a conversation or is about to; a bridge whose call has not started does not."""
        return sum(connection.is_admitted for connection in self._connections)

    def _callers_by_door(self) -> Mapping[str, float]:
        doors = [caller.session.door for caller in self._connections.values() if caller is not None]
        return {door: float(doors.count(door)) for door in get_args(Door)}

    def _why_full(self) -> str | None:
        """Why nobody can be let in now, or None."""
        if self.is_draining:
            return "The server is shutting down."
        if not self._runtime.ready:
            return "The models are still loading."
        if self._callers >= self._settings.max_sessions:
            return str(OverloadedError(self._callers, self._settings.max_sessions))
        return self._loop_load.refusal(self._callers)

    async def healthz(self, request: Request) -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Whether callers should be sent here now, and what would serve them. 503 when not."""
        reason = self._why_full() or self._runtime.unready()
        agent = self._runtime.agent
        body: Json = {
            "ready": reason is None,
            "reason": reason,
            "draining": self.is_draining,
            "agent": {"name": agent.name, "greeting": agent.greeting},
            "parts": [
                {"part": info.part, "name": info.name, "reason": info.reason, "upgrade": info.upgrade}
                for info in self._runtime.infos
            ],
            "sessions": self._callers,
            "max_sessions": self._settings.max_sessions,
            "key_required": self._settings.api_key is not None,
        }
        return JSONResponse(body, 200 if reason is None else 503)

    async def metrics(self, request: Request) -> Response:
        """Everything that is counted, as Prometheus reads it. With a key for those who present it."""
        refusal = self._operator_refusal(request)
        return refusal or Response(self.telemetry.exposition(), media_type=CONTENT_TYPE)

    async def sessions(self, request: Request) -> Response:
        """Who is there, what they are doing and how long they wait for answers. With a key for those who present it."""
        refusal = self._operator_refusal(request)
        if refusal is not None:
            return refusal
        callers = [caller for caller in self._connections.values() if caller is not None]
        return JSONResponse(
            {
                "sessions": [
                    caller.session.as_json(caller.conversation.id, caller.conversation.phase) for caller in callers
                ],
                "max_sessions": self._settings.max_sessions,
                "draining": self.is_draining,
            }
        )

    def _operator_refusal(self, request: Request) -> _Refusal | None:
        key = extract_key(request.headers.get("authorization"), ())
        if self._access.allows_key(key):
            return None
        return _wrong_key(key)

    async def watch_loop(self) -> None:
        """Measure how late the event loop is, until cancelled."""

        def tell(lag_s: float) -> None:
            self.telemetry.lag.observe(lag_s)
            self._loop_load.observe(lag_s)

        await watch_lag(self._clock, tell)

    async def drain(self) -> None:
        """Let nobody in any more, let everybody's current reply finish, and close with 1001. Bounded by `drain_s` and a little."""
        self.is_draining = True
        if self._connections:
            told = "shutting down: what is being said on %d connections may finish, for at most %g s"
            _log.info(told, len(self._connections), self._settings.drain_s)
        waits = [asyncio.create_task(connection.drain(self._settings.drain_s)) for connection in self._connections]
        limit_s = self._settings.drain_s + 2 * self._settings.close_timeout_s
        timer = asyncio.create_task(self._clock.sleep_until(self._clock.now() + limit_s))
        nobody = asyncio.create_task(self.wait_until_empty())
        try:
            await asyncio.wait({timer, nobody}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*waits, timer, nobody):
                task.cancel()
            await asyncio.gather(*waits, timer, nobody, return_exceptions=True)

    async def wait_until_empty(self) -> None:
        """Return once nobody is connected."""
        await self._nobody.wait()


def create_app(
    runtime: Runtime,
    settings: ServerSettings,
    *,
    clock: Clock | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Starlette:
    """The ASGI application. Its `state.realtime` is the `RealtimeServer`, which `serve` drains before it stops."""
    realtime = RealtimeServer(runtime, settings, clock or MonotonicClock(), wall_clock)
    app = Starlette(
        routes=[
            Route("/healthz", realtime.healthz),
            Route("/readyz", realtime.readyz),
            Route("/metrics", realtime.metrics),
            Route("/sessions", realtime.sessions),
            WebSocketRoute("/v1/realtime", realtime.realtime),
            Route("/v1/realtime", _no_websocket),
            Route("/v1/{path:path}", _not_offered, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
            WebSocketRoute("/telephony/twilio", realtime.twilio),
            Mount("/static", page.static_files()),
            Mount("/", page.static_files()),
        ],
        middleware=[Middleware(page.PageHeaders), Middleware(_HostGuard, access=settings.access)],
    )
    app.state.realtime = realtime
    return app


def _wants_our_events(websocket: WebSocket) -> bool:
    return websocket.query_params.get("extensions") == "1"


async def _no_websocket(request: Request) -> Response:
    """What a proxy that does not pass upgrades on, or a browser's address bar, gets to see."""
    message = (
        "This address speaks websocket. If the client does too, a proxy on the way has dropped its Upgrade header."
    )
    response = _error(426, "upgrade_required", message)
    response.headers["upgrade"], response.headers["connection"] = "websocket", "Upgrade"
    return response


async def _not_offered(request: Request) -> Response:
    """WebRTC, ephemeral keys and the other interfaces of OpenAI's, in the shape that its clients read."""
    message = f"{request.method} {request.url.path} is not offered: conversations are WS /v1/realtime."
    return _error(404, "not_found", message)


class _HostGuard:
    """Refuses HTTP requests for a foreign host name on an open loopback server: a page that got here by DNS rebinding."""

    def __init__(self, app: ASGIApp, access: AccessPolicy) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host")
            if not self._access.allows_host(None if host is None else host.decode("latin-1")):
                refusal = _error(403, "forbidden_host", "This server answers to localhost only.")
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Refusal(JSONResponse):
    """An error of the HTTP API, known by its code."""

    def __init__(self, status: int, code: str, message: str, kind: str) -> None:
        super().__init__({"error": {"type": kind, "code": code, "message": message, "param": None}}, status)
        self.code = code


def _error(status: int, code: str, message: str, *, kind: str = "invalid_request_error") -> _Refusal:
    return _Refusal(status, code, message, kind)


def _wrong_key(key: str | None) -> _Refusal:
    message = "Incorrect API key provided." if key else "No API key provided: send it as `Authorization: Bearer KEY`."
    return _error(401, "invalid_api_key", message, kind="authentication_error")


def _overloaded(message: str) -> _Refusal:
    response = _error(503, "overloaded", message, kind="server_error")
    response.headers["retry-after"] = str(RETRY_AFTER_S)
    return response

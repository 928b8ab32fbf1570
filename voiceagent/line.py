"""One websocket's life: what arrives is handed on, what is put is sent, and the first reason to close ends everything.

Four tasks share a line: the conversation, one that reads, one that writes, one that watches the time. The first of them to end, or
the first reason to close, ends them all; nothing outlives `Line.run`. What the messages mean is the owner's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected

from voiceagent.clock import Clock
from voiceagent.errors import ProtocolError
from voiceagent.outbox import Outbox
from voiceagent.server_settings import ServerSettings

CLOSE_NOW = "voiceagent.close_now"
"""ASGI extension of our own websocket protocol class: a close frame past a send buffer that the client does not empty."""

MESSAGES_PER_BREATH = 16
"""After so many messages in a row the others get the loop, however fast this client sends."""

_log = logging.getLogger("voiceagent.server")


class Talk(Protocol):
    """What lives at our end of the line."""

    async def run(self) -> None: ...
    async def aclose(self, *, drain_s: float = 0.0) -> None: ...


@dataclass(frozen=True, slots=True)
class Close:
    """Why a connection ends. `at_once` leaves out what still waits to be sent, because the client does not take it."""

    code: int
    reason: str
    at_once: bool = False

    @property
    def told(self) -> str:
        """The reason as it fits into a close frame, which holds 123 bytes of it."""
        return self.reason.encode()[:123].decode(errors="ignore")


class Line:
    """A client's websocket. Messages may be put before `run`, and leave once it runs."""

    def __init__(self, websocket: WebSocket, settings: ServerSettings, clock: Clock) -> None:
        self._websocket = websocket
        self._settings = settings
        self._clock = clock
        self._talk: Talk | None = None
        self._outbox = Outbox(settings.send_buffer_limit)
        self._ending: asyncio.Future[Close] = asyncio.get_running_loop().create_future()
        self._sending_since: float | None = None
        self._malformed = 0
        self.is_draining = False

    def put(self, text: str) -> None:
        """Queue one message (ASCII). A client that reads too slowly is closed."""
        self._outbox.put(text)
        if self._outbox.overflowed:
            limit = self._settings.send_buffer_limit
            self.end(Close(1008, f"the client does not read: {limit} bytes wait for it", at_once=True))

    def end(self, close: Close) -> None:
        """Close for this reason, unless there already is one."""
        if not self._ending.done():
            self._ending.set_result(close)

    def count_malformed(self, is_malformed: bool, what: str = "were not JSON") -> None:
        """Too many messages in a row that nobody can use end the connection."""
        self._malformed = self._malformed + 1 if is_malformed else 0
        if self._malformed >= self._settings.max_malformed_messages:
            self.end(Close(1007, f"{self._malformed} messages in a row {what}"))

    async def run(
        self, talk: Talk, handle: Callable[[str], Awaitable[None]], refuse: Callable[[ProtocolError], None]
    ) -> None:
        """Serve the client until either side ends it. The websocket is accepted; afterwards it is closed and nothing runs.

        Args:
            handle: Carries out one message. What it raises is a bug and ends this connection only.
            refuse: Tells the client why the connection is about to end, where its protocol has words for that.
        """
        self._talk = talk
        talking = asyncio.create_task(talk.run())
        reader = asyncio.create_task(self._read(handle, refuse))
        writer = asyncio.create_task(self._write())
        watcher = asyncio.create_task(self._watch(refuse))
        try:
            ends: set[asyncio.Future[Any]] = {talking, reader, writer, watcher, self._ending}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            close = self._verdict(talking, reader, writer, watcher)
            await stop(reader, watcher)
            await talk.aclose()
            if close is not None:
                await self._say_goodbye(close, writer)
        finally:
            self._outbox.close()
            await stop(reader, watcher, writer)
            await talk.aclose()
            await stop(talking)

    async def drain(self, drain_s: float) -> None:
        """Let what is being said finish, for at most `drain_s`, then close with 1001."""
        self.is_draining = True
        if self._talk is not None:
            await self._talk.aclose(drain_s=drain_s)
        self.end(Close(1001, "the server is shutting down"))

    # --- ending -------------------------------------------------------------------------------------------------------

    def _verdict(
        self,
        talking: asyncio.Task[None],
        reader: asyncio.Task[None],
        writer: asyncio.Task[None],
        watcher: asyncio.Task[None],
    ) -> Close | None:
        """How to close, or None when the client has gone. A crash is logged here, once."""
        for task in (talking, reader, writer, watcher):
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                _log.error("a connection failed and is closed; the others go on", exc_info=error)
                return Close(1011, "internal error")
        if self._ending.done():
            return self._ending.result()
        if reader.done() or writer.done():
            return None
        return (
            Close(1001, "the server is shutting down") if self.is_draining else Close(1000, "the conversation is over")
        )

    async def _say_goodbye(self, close: Close, writer: asyncio.Task[None]) -> None:
        """Send what waits and then the close frame; or the close frame alone, to a client that takes nothing."""
        if not close.at_once:
            self._outbox.close()
            if await self._within(self._settings.close_timeout_s, asyncio.shield(writer)):
                with contextlib.suppress(WebSocketDisconnect, WebSocketDisconnected):
                    await self._within(self._settings.close_timeout_s, self._websocket.close(close.code, close.told))
                return
        await stop(writer)
        close_now: Callable[[int, str], None] | None = self._websocket.scope.get("extensions", {}).get(CLOSE_NOW)
        if close_now is not None:
            close_now(close.code, close.told)
        else:
            with contextlib.suppress(WebSocketDisconnect, WebSocketDisconnected):
                await self._within(self._settings.close_timeout_s, self._websocket.close(close.code, close.told))

    async def _within(self, limit_s: float, work: Awaitable[None]) -> bool:
        """Whether `work` was done in time; if not it is cancelled."""
        task = asyncio.ensure_future(work)
        timer = asyncio.ensure_future(self._clock.sleep_until(self._clock.now() + limit_s))
        try:
            await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return False
            await task
            return True
        finally:
            await stop(task, timer)

    # --- the tasks ----------------------------------------------------------------------------------------------------

    async def _read(self, handle: Callable[[str], Awaitable[None]], refuse: Callable[[ProtocolError], None]) -> None:
        """Hand on what the client sends; return when it has gone or must go."""
        received = 0
        while not self._ending.done():
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            if text is None:
                reason = "binary messages are not part of the protocol"
                refuse(ProtocolError("invalid_value", f"{reason}; audio goes as base64 in JSON."))
                self.end(Close(1003, reason))
                return
            await handle(text)
            received += 1
            if received % MESSAGES_PER_BREATH == 0:
                await asyncio.sleep(0)

    async def _write(self) -> None:
        """Send what the outbox holds, until it is closed or the client has gone."""
        while (text := await self._outbox.get()) is not None:
            self._sending_since = self._clock.now()
            try:
                await self._websocket.send_text(text)
            except (WebSocketDisconnect, WebSocketDisconnected):
                return
            self._sending_since = None

    async def _watch(self, refuse: Callable[[ProtocolError], None]) -> None:
        """End the session when its time is over, or when the client has stopped reading."""
        timeout_s = self._settings.send_timeout_s
        expiry = self._clock.now() + self._settings.session_s
        while (now := self._clock.now()) < expiry:
            since = self._sending_since
            if since is not None and now - since >= timeout_s:
                self.end(Close(1008, f"the client has read nothing for {timeout_s:g} s", at_once=True))
                return
            await self._clock.sleep_until(min(expiry, now + timeout_s / 4))
        limit_min = self._settings.session_s / 60
        message = f"Your session hit the maximum duration of {limit_min:g} minutes."
        refuse(ProtocolError("session_expired", message))
        self.end(Close(1000, "session expired"))


async def stop(*tasks: asyncio.Future[Any]) -> None:
    """Cancel and wait; what a task had to say was heard before, or no longer matters."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

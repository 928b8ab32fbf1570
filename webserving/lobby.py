"""Connections that owe the server a request: each has so long, and there are so many at most.

uvicorn waits without end for a request's last byte and for a client that takes no answer. Each such connection holds a file descriptor, of
which a process mostly has 1024, and without one left nobody is accepted. The oldest goes first when there are too many: who has just come and
speaks at once gets in however many stand there silent.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol, TypeAlias

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

Cut: TypeAlias = Literal["late", "crowded", "stalled"]
"""late: no whole request in time. crowded: the oldest of too many. stalled: the client takes nothing of its answer."""

AT_ONCE = 64
"""Connections that asyncio accepts in one go, uvicorn's `backlog`: it looks at none of them before, and each takes a file descriptor."""
QUEUED = 2048
"""Connections that may wait in the system's queue, as many as uvicorn usually lets."""


def lengthen_queues(listening: Iterable[socket.socket]) -> None:
    """Let `QUEUED` wait again: `AT_ONCE` is asyncio's number for both."""
    for each in listening:
        each.listen(QUEUED)


class Transport(Protocol):
    """What is asked of a connection; an `asyncio.Transport` is one."""

    def get_write_buffer_size(self) -> int: ...
    def is_closing(self) -> bool: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class Lobby:
    """Who stands in it, by their transports. For one event loop.

    Args:
        most: How many may owe a request; one more cuts the oldest.
        patience_s: How long one may.
        stall_s: How long a client may take nothing of what is to be sent.
        tell: Hears of every connection that is cut, and of one that may only take the end of its answer first. Once of each.
    """

    def __init__(
        self, most: int, patience_s: float, stall_s: float, tell: Callable[[Cut], None] = lambda _: None
    ) -> None:
        self._most, self._patience_s, self._stall_s, self._tell = most, patience_s, stall_s, tell
        self._waiting: dict[Transport, asyncio.TimerHandle] = {}
        """Oldest first."""
        self._stalled: dict[Transport, asyncio.TimerHandle] = {}
        self._told: set[Transport] = set()

    def enter(self, transport: Transport) -> None:
        """From now on, if it does not yet, this connection owes a request."""
        if transport in self._waiting:
            return
        self._waiting[transport] = self._later(self._patience_s, self._dismiss, transport, "late")
        if len(self._waiting) > self._most:
            self._dismiss(next(iter(self._waiting)), "crowded")

    def hand_over(self, old: Transport, new: Transport) -> None:
        """A connection has another transport from now on: it keeps its place and what is left of its time."""
        if old not in self._waiting:
            return
        timer = self._waiting[old]
        timer.cancel()
        again = asyncio.get_running_loop().call_at(timer.when(), self._dismiss, new, "late")
        places = self._waiting.items()
        self._waiting = {new if each is old else each: again if each is old else its for each, its in places}

    def leave(self, transport: Transport) -> None:
        """Its request is there. Safe twice."""
        _cancel(self._waiting.pop(transport, None))

    def stall(self, transport: Transport) -> None:
        """More waits to be sent to the client than is good; it is cut once it takes nothing of it for too long."""
        if transport not in self._stalled:
            self._watch(transport)

    def resume(self, transport: Transport) -> None:
        """It took most of it. Of a connection that is being closed it has to take all."""
        if not transport.is_closing():
            _cancel(self._stalled.pop(transport, None))

    def forget(self, transport: Transport) -> None:
        """It is gone, or somebody else's."""
        self.leave(transport)
        _cancel(self._stalled.pop(transport, None))
        self._told.discard(transport)

    def _later(self, seconds: float, act: Callable[..., None], *what: object) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, act, *what)

    def _watch(self, transport: Transport) -> None:
        left = transport.get_write_buffer_size()
        self._stalled[transport] = self._later(self._stall_s, self._look_again, transport, left)

    def _look_again(self, transport: Transport, left: int) -> None:
        if transport.get_write_buffer_size() < left:
            self._watch(transport)
        else:
            self._cut(transport, "stalled")

    def _dismiss(self, transport: Transport, why: Cut) -> None:
        if not transport.get_write_buffer_size():
            self._cut(transport, why)
            return
        self.leave(transport)  # The end of an answer is on its way.
        self._tell_once(transport, why)
        transport.close()
        self.stall(transport)

    def _cut(self, transport: Transport, why: Cut) -> None:
        self._tell_once(transport, why)
        self.forget(transport)
        transport.abort()  # Closing would wait for a client that takes nothing.

    def _tell_once(self, transport: Transport, why: Cut) -> None:
        if transport not in self._told:
            self._told.add(transport)
            self._tell(why)


def protocol_of(lobby: Lobby) -> type[H11Protocol]:
    """uvicorn's HTTP for a server with this lobby."""

    class Entering(_LobbyProtocol):
        _lobby = lobby

    return Entering


class _LobbyProtocol(H11Protocol):
    _lobby: Lobby
    _is_ours = True
    """Until it is upgraded, or lost."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._is_ours = False  # From here on another protocol has the connection, and hears of its end.
        self._lobby.forget(self.transport)
        super().handle_websocket_upgrade(event)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._lobby.stall(self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._lobby.resume(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lobby.forget(self.transport)
        self._is_ours = False
        super().connection_lost(exc)

    def _look(self) -> None:
        """Whether the client owes anything: between two requests, and until the last byte of one."""
        if not self._is_ours:
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            self._lobby.enter(self.transport)
        else:
            self._lobby.leave(self.transport)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

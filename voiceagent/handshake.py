"""TLS, in the lobby: a connection counts from its first moment, not from the end of its handshake.

A server of asyncio's hears of a connection once its handshake is over, for which it gives a minute, and to as many as like.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Coroutine

from webserving.lobby import QUEUED, Lobby

_RETRY_S = 0.1
"""After a connection that could not be accepted, mostly for want of a file descriptor."""


class Handshakes:
    """Accepts connections and shakes hands with each.

    Args:
        make: The protocol of a connection whose handshake is over.
    """

    def __init__(self, lobby: Lobby, context: ssl.SSLContext, make: Callable[[], asyncio.Protocol]) -> None:
        self._lobby, self._context, self._make = lobby, context, make
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, listening: socket.socket) -> None:
        """Accept from now on, until `close`. The socket is bound and does not block."""
        listening.listen(QUEUED)
        self._start(self._accept(listening))

    async def close(self) -> None:
        """Accept nobody any more, and drop those whose handshake is not over. Safe twice."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError:
                await asyncio.sleep(_RETRY_S)
                continue
            self._start(self._shake(accepted))
            await asyncio.sleep(0)  # It begins, and whom the lobby cuts for it goes, before another comes.

    async def _shake(self, accepted: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        shaking = _Shaking(task, self._lobby, self._make)
        self._lobby.enter(shaking)
        try:
            # Who speaks no TLS, or is gone, has nobody to be told of it.
            with contextlib.suppress(OSError):
                loop = asyncio.get_running_loop()
                await loop.connect_accepted_socket(lambda: shaking, accepted, ssl=self._context)
        finally:
            self._lobby.forget(shaking)


class _Shaking(asyncio.Protocol):
    """A connection whose handshake is not over, as the lobby sees it: nothing waits to be sent to it.

    Its protocol too until then: it hands the place in the lobby over before the protocol to come enters, so that a connection has one.
    """

    def __init__(self, task: asyncio.Task[None], lobby: Lobby, make: Callable[[], asyncio.Protocol]) -> None:
        self._task, self._lobby, self._make = task, lobby, make

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if self.is_closing():
            transport.abort()
            return
        self._lobby.hand_over(self, transport)
        protocol = self._make()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._task.cancelling() > 0

    def close(self) -> None:
        self._task.cancel()

    def abort(self) -> None:
        self._task.cancel()

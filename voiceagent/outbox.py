"""What waits to be sent to one client: a queue that knows its size in bytes and refuses to grow without end."""

from __future__ import annotations

import asyncio
from collections import deque


class Outbox:
    """Messages in order, from synchronous producers to one asynchronous consumer.

    `limit_bytes` bounds what waits here; one message more than that and the outbox is `overflowed`: the client does not read,
    and whoever owns the connection has to end it. Nothing is dropped silently.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._messages: deque[str] = deque()
        self._bytes = 0
        self._is_closed = False
        self._changed = asyncio.Event()
        self.overflowed = False

    @property
    def waiting_bytes(self) -> int:
        return self._bytes

    def put(self, message: str) -> None:
        """Queue `message` (ASCII text). After `close` or an overflow it is dropped: nobody will read it."""
        if self._is_closed or self.overflowed:
            return
        if self._messages and self._bytes + len(message) > self._limit_bytes:
            self.overflowed = True
            return
        self._messages.append(message)
        self._bytes += len(message)
        self._changed.set()

    def close(self) -> None:
        """No more messages; `get` hands out those that wait, then None."""
        self._is_closed = True
        self._changed.set()

    async def get(self) -> str | None:
        """The next message, or None when the outbox is closed and empty."""
        while not self._messages:
            if self._is_closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        message = self._messages.popleft()
        self._bytes -= len(message)
        return message

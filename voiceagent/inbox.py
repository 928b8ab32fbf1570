"""What waits for one task: a queue without a limit and with a single reader.

`asyncio.Queue` asks for the running loop at every wait, which asks the system for the process's number, and looks after any number of readers. Fifty
messages a second of every caller pass two queues.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Things in order, from synchronous producers to one asynchronous consumer, all on one event loop. Has what uvicorn asks of an `asyncio.Queue`."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        """The reader's, from its first wait on."""
        self._wanted: asyncio.Future[None] | None = None

    def qsize(self) -> int:
        return len(self._items)

    def empty(self) -> bool:
        return not self._items

    def put_nowait(self, item: T) -> None:
        self._items.append(item)
        wanted = self._wanted
        if wanted is not None and not wanted.done():
            wanted.set_result(None)

    async def get(self) -> T:
        """The oldest thing. Cancelling it loses none.

        Raises:
            RuntimeError: If somebody else is waiting already.
        """
        while not self._items:
            if self._wanted is not None:
                raise RuntimeError("an inbox has one reader, and that one is waiting")
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._wanted = self._loop.create_future()
            try:
                await self._wanted
            finally:
                self._wanted = None
        return self._items.popleft()

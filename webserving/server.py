"""uvicorn, with an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import uvicorn

from webserving.lobby import lengthen_queues


class Server(uvicorn.Server):
    """Ends with status 0 when it is told to by SIGTERM or SIGINT, and at once when it is told twice. For a `backlog` of `AT_ONCE`.

    uvicorn's own raises the signal anew at the end, which would end the process before what it serves is closed.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        lengthen_queues(sockets or ())

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
            yield
            return
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """What a signal does."""
        self.force_exit = self.should_exit
        self.should_exit = True


def url_of(scheme: str, host: str, port: int) -> str:
    """Where a server is found; an IPv6 address gets its brackets."""
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

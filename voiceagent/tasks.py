"""The tasks of one conversation, and names for what it makes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Coroutine

log = logging.getLogger(__name__)


class TaskGroup:
    """Tasks that end with their conversation. One of them that raises is a bug: it is logged, and touches none of the others."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(
        self, work: Coroutine[None, None, None], also: set[asyncio.Task[None]] | None = None
    ) -> asyncio.Task[None]:
        """Run `work`; while it runs it is a member of `also`, too."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        for members in (self._tasks, also):
            if members is not None:
                members.add(task)
                task.add_done_callback(members.discard)
        task.add_done_callback(_report)
        return task

    async def aclose(self) -> None:
        """Cancel all and wait for them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _report(task: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        if error := task.exception():
            log.error("a conversation's task failed", exc_info=error)


def new_id(kind: str) -> str:
    """A name that nothing else has, such as `resp_4f…`."""
    return f"{kind}_{uuid.uuid4().hex[:20]}"

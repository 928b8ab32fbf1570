"""Drafts of one request: submitted together, read together, cancelled together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from dllm.drafts import Event
from dllm.runner import DraftStream


async def merged(streams: Sequence[DraftStream]) -> AsyncGenerator[tuple[int, Event], None]:
    """Events of several drafts as they come, each with its draft's index; each draft's own are in order.

    The first failure is raised. However it ends, every draft that is not finished is cancelled.
    """
    if len(streams) == 1:
        async with streams[0] as only:
            async for event in only:
                yield 0, event
        return
    pending = {asyncio.ensure_future(anext(stream)): index for index, stream in enumerate(streams)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=pending.__getitem__):
                index = pending.pop(task)
                try:
                    event = task.result()
                except StopAsyncIteration:
                    continue
                pending[asyncio.ensure_future(anext(streams[index]))] = index
                yield index, event
    finally:
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

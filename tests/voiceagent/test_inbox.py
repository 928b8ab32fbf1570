"""The queue of one reader."""

from __future__ import annotations

import asyncio

import pytest

from voiceagent.inbox import Inbox


def test_things_come_in_order_whether_they_were_there_or_are_waited_for() -> None:
    async def scenario() -> None:
        inbox: Inbox[int] = Inbox()
        inbox.put_nowait(1)
        inbox.put_nowait(2)
        assert (inbox.qsize(), inbox.empty()) == (2, False)
        assert [await inbox.get(), await inbox.get()] == [1, 2]
        assert (inbox.qsize(), inbox.empty()) == (0, True)
        waiting = asyncio.create_task(inbox.get())
        await asyncio.sleep(0)
        inbox.put_nowait(3)
        inbox.put_nowait(4)
        assert await waiting == 3
        assert await inbox.get() == 4

    asyncio.run(scenario())


def test_whoever_is_cancelled_while_waiting_takes_nothing_along() -> None:
    async def scenario() -> None:
        inbox: Inbox[int] = Inbox()
        waiting = asyncio.create_task(inbox.get())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        inbox.put_nowait(1)
        assert await inbox.get() == 1

    asyncio.run(scenario())


def test_what_came_in_the_same_moment_as_the_end_is_still_there() -> None:
    async def scenario() -> None:
        inbox: Inbox[int] = Inbox()
        waiting = asyncio.create_task(inbox.get())
        await asyncio.sleep(0)
        inbox.put_nowait(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await inbox.get() == 1

    asyncio.run(scenario())


def test_a_second_reader_is_a_mistake_and_is_told() -> None:
    async def scenario() -> None:
        inbox: Inbox[int] = Inbox()
        waiting = asyncio.create_task(inbox.get())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one reader"):
            await inbox.get()
        inbox.put_nowait(1)
        assert await waiting == 1

    asyncio.run(scenario())

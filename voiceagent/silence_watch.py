"""Waits out a conversation's silences and carries out what `silences` says is due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from voiceagent.clock import Clock
from voiceagent.silences import Silence, SilenceSettings
from voiceagent.tasks import TaskGroup
from voiceagent.turn import TurnState

MARGIN_S = 0.5
"""By our estimate the caller has heard everything; they may be so far behind it."""
HEARD_WITHIN_S = 2.0
"""A client that reports positions is waited for so long beyond our estimate: then it reports no more."""
_LOOK_S = 0.1


class SilenceWatch:
    """One conversation's patience. It costs a task only while the settings ask for it.

    Args:
        settings: As they are now.
        is_waiting: Whether a tool is at work, here or at the client's: the caller is silent because they wait.
        say: Speaks a text as a reply of its own.
        is_heard: Whether the client has reported the newest reply as heard to its end; None where it reports nothing.
        end: Ends the conversation.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        tasks: TaskGroup,
        settings: Callable[[], SilenceSettings],
        is_waiting: Callable[[], bool],
        say: Callable[[str], None],
        is_heard: Callable[[], bool | None],
        end: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._tasks = tasks
        self._settings = settings
        self._is_waiting = is_waiting
        self._say = say
        self._is_heard = is_heard
        self._end = end
        self._silence = Silence()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def observe(self, state: TurnState) -> None:
        """Whose turn it is, or the settings, may have changed."""
        self._silence = self._silence.observe(state, self._clock.now())
        self._changed.set()
        if self._task is None and self._silence.due(self._settings()) is not None:
            self._task = self._tasks.spawn(self._run())

    def answered(self) -> None:
        """The caller said or typed something, or pressed a key."""
        self._silence = self._silence.answered(self._clock.now())
        self._changed.set()

    def asked(self) -> None:
        """The client wants the agent to speak: a goodbye that was said is none."""
        self._silence = self._silence.taken_back()
        self._changed.set()

    def served(self) -> None:
        """The client's tool is done, for which the caller has waited."""
        self._silence = self._silence.restarted(self._clock.now())
        self._changed.set()

    async def _run(self) -> None:
        while True:
            due = self._silence.due(self._settings())
            if due is None or self._clock.now() < due:
                await self._change_or(due)
            elif self._is_waiting():
                self._silence = self._silence.restarted(self._clock.now())
            else:
                self._silence, remark = self._silence.speak(self._settings())
                self._say(remark.text)
                if remark.is_goodbye and await self._is_let_go():
                    self._end()
                    return

    async def _is_let_go(self) -> bool:
        """Whether the caller has heard the goodbye and said nothing to it; the call goes on where they did."""
        while self._silence.is_parting and self._silence.since is None:
            await self._change_or(None)
        over = self._clock.now()
        while self._silence.is_parting and self._silence.since is not None:
            waited_s, is_heard = self._clock.now() - over, self._is_heard()
            if is_heard or waited_s >= (MARGIN_S if is_heard is None else HEARD_WITHIN_S):
                return True
            await self._change_or(self._clock.now() + _LOOK_S)
        return False

    async def _change_or(self, deadline: float | None) -> None:
        """Return when something has changed, or at the deadline."""
        self._changed.clear()
        changed = asyncio.ensure_future(self._changed.wait())
        waits: set[asyncio.Future[object]] = {changed}  # type: ignore[arg-type]
        if deadline is not None:
            waits.add(asyncio.ensure_future(self._clock.sleep_until(deadline)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

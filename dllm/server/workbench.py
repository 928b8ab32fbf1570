"""One thread for the grammars of requests, so that those which take long hold up nothing else.

asyncio's own threads are few (six on two cores), and reading a prompt needs one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllm.errors import TrialEndedError, TrialUnavailableError
from dllm.patterns import Trial
from dllm.server.grammars import Grammars, Order, ordered
from dllm.server.meters import GrammarOutcome
from dllm.server.problems import ApiError, stopping, too_many
from dllm.server.requests import Grammar, Tool, ToolMode

if TYPE_CHECKING:
    from dllm.constraints import GrammarConstraint

WAITING = 8
"""Grammars that may wait for the one being compiled; each can take `dllm.patterns.PROCESSOR_S` for every expression in it."""


@dataclass(slots=True)
class _Work:
    """A grammar on its way, and how many requests wait for it."""

    future: asyncio.Future[GrammarConstraint]
    trial: Trial
    awaited: int = 0


class Workbench:
    """Compiles one grammar after the other; those that were compiled before are had at once. For one event loop.

    Args:
        tell: Hears what came of each grammar that was asked for; one that several wait for is told once.
    """

    def __init__(
        self, grammars: Grammars, *, most: int = WAITING, tell: Callable[[GrammarOutcome], None] = lambda _: None
    ) -> None:
        self._grammars, self._most, self._tell = grammars, most, tell
        self._threads = ThreadPoolExecutor(1, "grammars")
        self._works: dict[str, _Work] = {}
        self._is_closed = False

    @property
    def works(self) -> int:
        """Grammars that are being compiled or wait for it."""
        return len(self._works)

    def close(self) -> None:
        """Take no new grammar any more, and end the trials of those that are wanted. Does not block."""
        self._is_closed = True
        for work in self._works.values():
            work.trial.end()

    async def compile(
        self,
        grammar: Grammar,
        tools: Sequence[Tool] = (),
        mode: ToolMode = "none",
        forced: str | None = None,
        *,
        several: bool = True,
    ) -> GrammarConstraint | None:
        """The constraint of a reply; None for free text. Requests for the same grammar share the work; it ends when the last of them goes.

        Raises:
            ApiError: If it cannot be compiled, or too many others wait (429), or the bench is closed by now (503).
            TrialUnavailableError, TrialFailedError: As `dllm.patterns.is_too_large`.
        """
        order = ordered(grammar, tools, mode, forced, several=several)
        if order is None:
            return None
        found = self._grammars.kept(order)
        if found is not None:
            self._tell("kept")
            return found
        return await self._work(order)

    async def _work(self, order: Order) -> GrammarConstraint:
        if self._is_closed:
            raise stopping()
        work = self._works.get(order.key)
        if work is None:
            if len(self._works) > self._most:
                raise too_many(f"{len(self._works)} grammars are being compiled", "grammars_full")
            work = self._begin(order)
        work.awaited += 1
        try:
            return await asyncio.shield(work.future)
        except TrialEndedError as error:
            raise stopping() from error  # It ends as well when nobody waits, but then nobody hears of it.
        finally:
            work.awaited -= 1
            if not work.awaited and not work.future.done():
                work.trial.end()
                work.future.cancel()
                self._forget(order.key, work)

    def _begin(self, order: Order) -> _Work:
        trial = Trial()
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._grammars.compile, order, trial)
        work = self._works[order.key] = _Work(future, trial)
        future.add_done_callback(lambda _: self._over(order.key, work))
        return work

    def _over(self, key: str, work: _Work) -> None:
        self._forget(key, work)
        self._tell(_outcome(work.future))

    def _forget(self, key: str, work: _Work) -> None:
        if self._works.get(key) is work:
            del self._works[key]


def _outcome(future: asyncio.Future[GrammarConstraint]) -> GrammarOutcome:
    if future.cancelled():
        return "ended"
    match future.exception():
        case None:
            return "compiled"
        case ApiError():
            return "invalid"
        case TrialEndedError():
            return "ended"
        case TrialUnavailableError():
            return "unavailable"
        case _:
            return "failed"

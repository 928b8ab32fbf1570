"""One thread for the grammars of requests, so that those which take long hold up nothing else.

asyncio's own threads are few (six on two cores), and reading a prompt needs one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllm.patterns import Trial
from dllm.server.grammars import Grammars, Order, ordered
from dllm.server.problems import too_many
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
    """Compiles one grammar after the other; those that were compiled before are had at once. For one event loop."""

    def __init__(self, grammars: Grammars, *, most: int = WAITING) -> None:
        self._grammars, self._most = grammars, most
        self._threads = ThreadPoolExecutor(1, "grammars")
        self._works: dict[str, _Work] = {}

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
            ApiError: If it cannot be compiled, or (429) too many others wait.
            TrialUnavailableError, TrialFailedError: As `dllm.patterns.is_too_large`.
        """
        order = ordered(grammar, tools, mode, forced, several=several)
        if order is None:
            return None
        found = self._grammars.kept(order)
        return found if found is not None else await self._work(order)

    async def _work(self, order: Order) -> GrammarConstraint:
        work = self._works.get(order.key)
        if work is None:
            if len(self._works) > self._most:
                raise too_many(f"{len(self._works)} grammars are being compiled")
            work = self._begin(order)
        work.awaited += 1
        try:
            return await asyncio.shield(work.future)
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
        future.add_done_callback(lambda _: self._forget(order.key, work))
        return work

    def _forget(self, key: str, work: _Work) -> None:
        if self._works.get(key) is work:
            del self._works[key]

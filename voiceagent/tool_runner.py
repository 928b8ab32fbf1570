"""Runs the server's tools for one conversation: each within its time, none that changes something twice for one turn.

A tool that changes something goes on when the reply that called it is interrupted, since half a booking is worse than an unwanted
one; its result is kept in the history. A harmless one is cancelled. Whatever a tool does, the conversation goes on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from voiceagent.acknowledging import Acknowledgements
from voiceagent.clock import Clock
from voiceagent.errors import ToolError
from voiceagent.events import CallItem, ConversationEvent, ItemAdded, ItemDone, OutputItem
from voiceagent.history import History
from voiceagent.tools import ServerTool, ToolResult, as_declared, failure, read_result
from voiceagent.trace import ToolRecord

log = logging.getLogger(__name__)

Outcome: TypeAlias = Literal["ok", "failed", "timed_out", "cancelled", "refused"]


@dataclass(slots=True, eq=False)
class Job:
    """A call that is being carried out, or was."""

    tool: ServerTool
    arguments: Mapping[str, object]
    key: str
    """Name and arguments: what makes a call the same call."""
    item: CallItem
    record: ToolRecord
    result: ToolResult | None = None
    task: asyncio.Task[None] | None = None
    is_late: bool = False
    """The reply that called it is over."""


class ToolDesk:
    """One conversation's tools at work.

    Args:
        emit: Told of every call and output as items of the conversation.
        spawn: Runs a coroutine in a task that ends with the conversation.
    """

    def __init__(
        self,
        tools: Sequence[ServerTool],
        *,
        clock: Clock,
        history: History,
        emit: Callable[[ConversationEvent], None],
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self.tools: Mapping[str, ServerTool] = {tool.spec.name: tool for tool in tools}
        self.clock = clock
        self._history = history
        self._emit = emit
        self._spawn = spawn
        self._running: set[Job] = set()
        self._done: dict[str, ToolResult] = {}
        """Results of this turn's calls that changed something."""
        self._untold: dict[str, ToolResult] = {}
        """Those among them that no caller has heard of: the next reply is the first that can tell them."""
        self._is_new_turn = False
        self.acknowledgements = Acknowledgements()

    @property
    def is_busy(self) -> bool:
        """Whether a tool is running."""
        return bool(self._running)

    def turn_began(self) -> None:
        """The caller said something new: in the reply to it the same call may be meant again, but not in one that is still being made."""
        self._is_new_turn = True

    def reply_unheard(self) -> None:
        """A reply has been stopped before anything of it was heard."""
        self._untold.update(self._done)

    async def settled(self) -> None:
        """A reply begins. Return once nothing runs any more; every tool has its time, so this does."""
        while self._running:
            await asyncio.wait([job.task for job in self._running if job.task is not None])
        if self._is_new_turn:
            self._is_new_turn = False
            self._done, self._untold = self._untold, {}

    def refuse(self, item: CallItem | None, name: str, reason: str, record: ToolRecord) -> ToolResult:
        """Answer a call that is not carried out. `item` is None where the conversation keeps no trace of it."""
        result = failure(name, reason)
        self._close(record, "refused")
        if item is not None:
            self._tell(item, result, behind_call=True)
        return result

    def start(self, tool: ServerTool, item: CallItem, record: ToolRecord) -> Job:
        """Carry out a call whose arguments fit; a repetition of one that changed something gets that one's result."""
        name, arguments = tool.spec.name, as_declared(item.call.arguments, tool.spec.parameters)
        job = Job(tool, arguments, json.dumps([name, arguments], sort_keys=True, default=str), item, record)
        if (earlier := self._done.get(job.key)) is not None:
            log.info("tool %s was called again with the same arguments; it is not run twice in one turn", name)
            self._finish(job, "refused", earlier)
            return job
        self._running.add(job)
        job.task = self._spawn(self._work(job))
        return job

    def interrupt(self, job: Job) -> None:
        """The reply that called it has been stopped."""
        if job.result is not None:
            return
        job.is_late = True
        if not job.tool.side_effect and job.task is not None:
            job.task.cancel()
            self._finish(job, "cancelled", failure(job.tool.spec.name, "the caller went on speaking"))

    def announce(self, item: CallItem) -> None:
        """Put a call into the history and tell the client."""
        previous = self._history.add(item)
        self._emit(ItemAdded(item, previous))
        self._emit(ItemDone(item, previous))

    async def _work(self, job: Job) -> None:
        try:
            outcome, result = await run_tool(job.tool, job.arguments, self.clock)
            self._finish(job, outcome, result)
        finally:
            self._running.discard(job)

    def _finish(self, job: Job, outcome: Outcome, result: ToolResult) -> None:
        self._running.discard(job)
        job.result = result
        if job.tool.side_effect:
            self._done[job.key] = result
            if job.is_late:
                self._untold[job.key] = result
        self._close(job.record, outcome)
        log.info("tool %s: %s after %.0f ms", job.tool.spec.name, outcome, (self.clock.now() - job.record.start) * 1000)
        self._tell(job.item, result, behind_call=not job.is_late)

    def _close(self, record: ToolRecord, outcome: Outcome) -> None:
        record.end, record.outcome = self.clock.now(), outcome

    def _tell(self, item: CallItem, result: ToolResult, *, behind_call: bool) -> None:
        """A result that comes in time stands behind its call; a late one where the conversation has got to, so that it is told next."""
        output = OutputItem(f"item_{uuid.uuid4().hex[:20]}", item.call_id, result.output, result.note, result.must_say)
        previous = self._history.add(output, item.id if behind_call and item.id in self._history else None)
        self._emit(ItemAdded(output, previous))
        self._emit(ItemDone(output, previous))


async def run_tool(tool: ServerTool, arguments: Mapping[str, object], clock: Clock) -> tuple[Outcome, ToolResult]:
    """Run a tool for at most its time-out; what it raises becomes a failure. Only a cancellation from outside leaves this function."""
    name = tool.spec.name
    work = asyncio.ensure_future(_run(tool, arguments))
    limit = asyncio.ensure_future(clock.sleep_until(clock.now() + tool.timeout_s))
    try:
        await asyncio.wait((work, limit), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            log.warning("tool %s did not answer within %g s", name, tool.timeout_s)
            return "timed_out", failure(name, f"no answer within {tool.timeout_s:g} seconds")
        return "ok", read_result(tool, work.result())
    except ToolError as error:
        log.info("tool %s failed: %s", name, error)
        return "failed", failure(name, str(error))
    except Exception as error:
        log.warning("tool %s failed", name, exc_info=error)
        return "failed", failure(name, str(error) or type(error).__name__)
    finally:
        # Not waited for: a tool that ignores its cancellation must not hold the call.
        work.add_done_callback(_forget)
        for task in (work, limit):
            task.cancel()


async def _run(tool: ServerTool, arguments: Mapping[str, object]) -> object:
    try:
        return await tool.run(arguments)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise ToolError("it was cancelled") from error


def _forget(work: asyncio.Future[object]) -> None:
    """What a tool says after it was given up is of no use to anybody."""
    if not work.cancelled():
        work.exception()

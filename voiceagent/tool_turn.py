"""The calls within one reply: each is checked, carried out or handed to the client, and the draft is asked for again with its result."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from voiceagent.backends import DraftRequest, PromptTurn
from voiceagent.errors import BackendError
from voiceagent.events import CallItem, ConversationEvent, ResponseCalled
from voiceagent.tool_runner import Job, ToolDesk
from voiceagent.tools import MAX_CALLS, ToolCall, ToolChoice, ToolResult, ToolSpec, mismatch
from voiceagent.trace import ToolRecord, TurnTrace

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What every endpoint takes as the name of a call when it is told of one."""


@dataclass(slots=True)
class ToolTurn:
    """One reply's calls.

    Args:
        emit: The reply's own way to tell of `ResponseCalled`.
        client_tools: Tools that the client runs.
        is_spoken: Whether silence has to be covered; a reader needs no words for it.
        keeps_history: False for a response outside the conversation, whose calls nobody else sees.
    """

    desk: ToolDesk
    trace: TurnTrace
    response_id: str
    emit: Callable[[ConversationEvent], None]
    client_tools: Mapping[str, ToolSpec] = field(default_factory=dict)
    keeps_history: bool = True
    is_spoken: bool = True
    _calls: int = 0
    _has_acknowledged: bool = False

    async def take(
        self,
        call: ToolCall,
        request: DraftRequest,
        acknowledge: Callable[[Sequence[str]], Awaitable[None]],
    ) -> DraftRequest | None:
        """Carry out what a finished draft calls for.

        Args:
            request: What that draft was asked for.
            acknowledge: Speaks one of the texts while the tool runs, unless the reply has begun.

        Returns:
            The request of the next draft, or None when the client has the word.

        Raises:
            BackendError: If the drafter calls although it may not.
        """
        if request.tool_choice.mode == "none":
            raise BackendError("llm", f"called {call.name!r} although it was asked to answer")
        self._calls += 1
        if not _NAME.fullmatch(call.name) and all(spec.name != call.name for spec in request.tools):
            # The call stays in the history: one that an endpoint refuses would end every later reply.
            call = replace(call, name="tool")
        record = ToolRecord(call.name, self.desk.clock.now())
        self.trace.called(record)
        item = CallItem(_new_id("item"), _new_id("call"), call)
        problem = call.problem or self._problem(call, request)
        if not problem and call.name in self.client_tools:
            record.end, record.outcome = record.start, "client"
            self.emit(ResponseCalled(self.response_id, item, None))
            return None
        if self.keeps_history:
            self.desk.announce(item)
        if problem:
            result = self.desk.refuse(item if self.keeps_history else None, call.name, problem, record)
        else:
            job = self.desk.start(self.desk.tools[call.name], item, record)
            result = await self._result(job, acknowledge)
        self.trace.begin_again(self.desk.clock.now())
        return replace(
            request,
            turns=(
                *request.turns,
                PromptTurn("agent", "", call, item.call_id),
                PromptTurn("note", result.note, call_id=item.call_id),
            ),
            must_say=(*request.must_say, *result.must_say),
            tool_choice=ToolChoice("none" if self._calls >= MAX_CALLS else "auto"),
        )

    def _problem(self, call: ToolCall, request: DraftRequest) -> str:
        """Why the call cannot be carried out, in words for the model."""
        spec = next((spec for spec in request.tools if spec.name == call.name), None)
        if spec is None:
            # The model knows their names, and may say what it reads here.
            return "there is no such tool"
        return mismatch(call.arguments, spec.parameters)

    async def _result(self, job: Job, acknowledge: Callable[[Sequence[str]], Awaitable[None]]) -> ToolResult:
        """Wait for a job, which is interrupted when this reply is."""
        try:
            if job.task is not None:
                texts, after_s = job.tool.say_while_running, job.tool.acknowledge_after_s
                may_say = self.is_spoken and not self._has_acknowledged and bool(texts)
                if may_say and after_s is not None and not await self._is_quick(job.task, after_s):
                    self._has_acknowledged = True
                    await acknowledge(texts)
                await asyncio.wait((job.task,))
        finally:
            self.desk.interrupt(job)
        assert job.result is not None, "a tool that ended has a result"
        return job.result

    async def _is_quick(self, task: asyncio.Task[None], within_s: float) -> bool:
        clock = self.desk.clock
        limit = asyncio.ensure_future(clock.sleep_until(clock.now() + within_s))
        try:
            await asyncio.wait((task, limit), return_when=asyncio.FIRST_COMPLETED)
            return task.done()
        finally:
            limit.cancel()


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:20]}"

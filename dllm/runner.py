"""One thread owns the engine; everybody else asks it and listens.

Commands go to the thread through a queue and are obeyed between two rounds, so a cancel or a new plan takes effect before the next
forward. Events come back in order: to a callback on the engine's thread (`start`), or to an async iterator (`submit`). With nothing
to do the thread waits on a condition. Prefill ahead of time (`warm`) runs only while nobody waits for a step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

from dllm.drafts import DraftSpec, Event, Failed, Finished, Plan, Stepped
from dllm.errors import DraftExpiredError, EngineClosedError, EngineFailedError

if TYPE_CHECKING:
    from dllm.draft import Draft

log = logging.getLogger(__name__)

T = TypeVar("T")

BACKLOG = 64
"""Snapshots of a canvas that wait for a slow reader. Older ones are dropped: each replaces the one before. Nothing else ever is."""


class EngineLike(Protocol):
    """What the thread asks of an engine; `dllm.engine.Engine` says what each promises."""

    @property
    def drafts(self) -> Sequence[Draft]: ...
    def submit(self, spec: DraftSpec) -> Draft: ...
    def replan(self, draft: Draft, plan: Plan) -> None: ...
    def cancel(self, draft: Draft) -> None: ...
    def warm(self, conversation: str, tokens: Sequence[int]) -> int: ...
    def forget(self, conversation: str) -> None: ...
    def run_round(self) -> list[Event]: ...


E = TypeVar("E", bound=EngineLike)

SpecSource: TypeAlias = DraftSpec | Callable[[], DraftSpec]
"""A spec, or a function that makes it on the engine's thread (where the order of requests is the order of forwards)."""
TokenSource: TypeAlias = Sequence[int] | Callable[[], Sequence[int]]


@dataclass(slots=True, eq=False)
class DraftHandle:
    """One draft as whoever asked for it holds it. Its methods may be called from any thread and return at once."""

    runner: EngineRunner[Any]
    on_event: Callable[[Event], None]
    on_failure: Callable[[Exception], None]
    expires: float | None
    draft: Draft | None = None
    """Set on the engine's thread once the engine has taken the draft."""
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Stop between two forwards; nothing is reported of this draft any more. Safe twice."""
        if not self.is_cancelled:
            self.is_cancelled = True
            self.runner._command(lambda: self.runner._cancel(self))

    def replan(self, plan: Plan) -> None:
        """Give the draft new steps and deadlines before the next forward."""
        self.apply(lambda draft: self.runner.engine.replan(draft, plan))

    def apply(self, act: Callable[[Draft], None]) -> None:
        """Do something to the unfinished draft on the engine's thread; nothing happens if it is over by then."""
        self.runner._command(lambda: self.runner._apply(self, act))


@dataclass(slots=True)
class _Command:
    act: Callable[[], None]
    refuse: Callable[[Exception], None] | None = None
    """Called instead of `act` when the thread ends before it was obeyed."""


class EngineRunner(Generic[E]):
    """Runs an engine on a thread of its own.

    Args:
        engine: Nobody else may touch it from now on.
        clock: Reads the time that `expires` refers to, in seconds: the engine's clock.
    """

    def __init__(self, engine: E, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine = engine
        self._clock = clock
        self._handles: dict[Draft, DraftHandle] = {}
        self._wake = threading.Condition()
        self._commands: deque[_Command] = deque()
        self._warming: dict[str, TokenSource] = {}
        self._watch: Callable[[Sequence[Event]], None] | None = None
        self._end: Exception | None = None
        """Why the thread takes nothing more; None while it does."""
        self._thread = threading.Thread(target=self._work, name="diffusion-engine", daemon=True)
        self._thread.start()

    # --- anybody's side -----------------------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Drafts that the engine has taken and not finished."""
        return len(self._handles)

    @property
    def failure(self) -> Exception | None:
        """Why no draft is taken any more, or None."""
        return self._end

    def start(
        self,
        spec: SpecSource,
        on_event: Callable[[Event], None],
        on_failure: Callable[[Exception], None],
        *,
        expires: float | None = None,
    ) -> DraftHandle:
        """Ask for a draft; its events are reported on the engine's thread, in order.

        Args:
            on_event: Gets everything up to `Finished`, and never `Failed`.
            on_failure: Gets what ended the draft instead: an error of the engine's or of `spec`, `DraftExpiredError`,
                `EngineFailedError` or `EngineClosedError`. Exactly one of `Finished` and a failure comes, unless it is cancelled.
            expires: When the draft is of no use any more, by the clock.

        Raises:
            EngineClosedError: If the runner is closed.
            EngineFailedError: If the engine is broken beyond use.
        """
        handle = DraftHandle(self, on_event, on_failure, expires)
        self._command(lambda: self._submit(handle, spec), on_failure, is_strict=True)
        return handle

    def submit(self, spec: SpecSource, *, expires: float | None = None, backlog: int = BACKLOG) -> DraftStream:
        """Ask for a draft and read its events on the running event loop. Raises as `start` does."""
        stream = DraftStream(asyncio.get_running_loop(), backlog, self._clock)
        stream.handle = self.start(spec, stream._put, stream._fail, expires=expires)
        return stream

    def warm(self, conversation: str, tokens: TokenSource) -> None:
        """Prefill the beginning of a prompt when nobody waits for a step. A later call for the same conversation replaces it."""
        with self._wake:
            if self._end is None:
                self._warming[conversation] = tokens
                self._wake.notify()

    def watch(self, tell: Callable[[Sequence[Event]], None]) -> None:
        """Tell what each round brought, all drafts' events in order, on the engine's thread before anybody else hears of them."""
        self._watch = tell

    def forget(self, conversation: str) -> None:
        """Drop what the engine keeps for one conversation."""

        def act() -> None:
            with self._wake:
                self._warming.pop(conversation, None)
            self.engine.forget(conversation)

        self._command(act)

    async def call(self, act: Callable[[E], T]) -> T:
        """Run a function on the engine's thread between two rounds and return what it returns, or raise what it raises.

        Raises:
            EngineClosedError, EngineFailedError: If the thread ends before.
        """
        future: Future[T] = Future()

        def obey() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(act(self.engine))
                except Exception as error:
                    future.set_exception(error)

        def refuse(error: Exception) -> None:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

        self._command(obey, refuse, is_strict=True)
        return await asyncio.wrap_future(future)

    async def aclose(self) -> None:
        """Finish the forward that is running and stop. What is pending fails with `EngineClosedError`. Safe twice."""
        with self._wake:
            self._end = self._end or EngineClosedError()
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    async def __aenter__(self) -> EngineRunner[E]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _command(
        self, act: Callable[[], None], refuse: Callable[[Exception], None] | None = None, *, is_strict: bool = False
    ) -> None:
        with self._wake:
            if self._end is None:
                self._commands.append(_Command(act, refuse))
                self._wake.notify()
            elif is_strict:
                raise self._end

    # --- the engine's thread ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (todo := self._next()) is not None:
                commands, warming = todo
                for command in commands:
                    self._obey(command)
                if warming is not None:
                    self._warm(*warming)
                elif self._handles:
                    self._round()
        except BaseException as error:
            with self._wake:
                self._end = self._end or EngineFailedError(error)
            raise
        finally:
            self._leave()

    def _next(self) -> tuple[list[_Command], tuple[str, TokenSource] | None] | None:
        """What to do next, waiting for it; None to end."""
        with self._wake:
            while not (self._commands or self._handles or self._warming or self._end):
                self._wake.wait()
            if self._end is not None:
                return None
            commands, self._commands = list(self._commands), deque()
            is_idle = not commands and not self._handles
            return commands, self._warming.popitem() if is_idle and self._warming else None

    @staticmethod
    def _obey(command: _Command) -> None:
        """One command that fails must not take the others asked for at the same time with it."""
        try:
            command.act()
        except Exception:
            log.exception("a command to the engine failed")

    def _submit(self, handle: DraftHandle, spec: SpecSource) -> None:
        if handle.is_cancelled:
            return
        try:
            handle.draft = self.engine.submit(spec if isinstance(spec, DraftSpec) else spec())
        except Exception as error:
            self._report_failure(handle, error)
            return
        self._handles[handle.draft] = handle

    def _cancel(self, handle: DraftHandle) -> None:
        if handle.draft is not None and self._handles.pop(handle.draft, None) is not None:
            self.engine.cancel(handle.draft)

    def _apply(self, handle: DraftHandle, act: Callable[[Draft], None]) -> None:
        if handle.draft is not None and handle.draft in self._handles:
            act(handle.draft)

    def _warm(self, conversation: str, tokens: TokenSource) -> None:
        try:
            self.engine.warm(conversation, tokens() if callable(tokens) else tokens)
        except Exception:
            log.exception("prefill ahead of time failed")

    def _round(self) -> None:
        try:
            self._expire()
            if self._handles:
                events = self.engine.run_round()
                if self._watch is not None:
                    self._watch(events)
                for event in events:
                    self._deliver(event)
        except Exception as error:  # A bug here must not leave callers waiting for events that never come.
            log.exception("the engine failed")
            self._fail_all(EngineFailedError(error))

    def _expire(self) -> None:
        now = self._clock()
        for handle in [handle for handle in self._handles.values() if handle.expires is not None]:
            if handle.expires is not None and now >= handle.expires:
                self._cancel(handle)
                self._report_failure(handle, DraftExpiredError(now - handle.expires))

    def _deliver(self, event: Event) -> None:
        handle = self._handles.get(event.draft)
        if handle is None:
            return
        if isinstance(event, Failed):
            del self._handles[event.draft]
            self._report_failure(handle, event.error)
            return
        if isinstance(event, Finished):
            del self._handles[event.draft]
        if handle.is_cancelled:
            return
        try:
            handle.on_event(event)
        except Exception:
            log.exception("a draft's listener failed; the draft is cancelled")
            self._cancel(handle)

    def _fail_all(self, error: EngineFailedError) -> None:
        handles, self._handles = list(self._handles.values()), {}
        for handle in handles:
            try:
                if handle.draft is not None:
                    self.engine.cancel(handle.draft)
            except Exception:
                log.exception("a draft of the failed engine cannot be cancelled")
            self._report_failure(handle, error)
        if self.engine.drafts:  # It kept what it was told to drop: the next round would fail in the same way.
            with self._wake:
                self._end = self._end or error

    @staticmethod
    def _report_failure(handle: DraftHandle, error: Exception) -> None:
        if handle.is_cancelled:
            return
        try:
            handle.on_failure(error)
        except Exception:
            log.exception("a draft's listener failed")

    def _leave(self) -> None:
        with self._wake:
            end = self._end or EngineClosedError()
            commands, self._commands = list(self._commands), deque()
            self._warming.clear()
        handles, self._handles = list(self._handles.values()), {}
        for handle in handles:
            self._report_failure(handle, end)
        for command in commands:
            if command.refuse is not None:
                command.refuse(end)


@dataclass(slots=True, eq=False)
class DraftStream:
    """The events of one draft as an async iterator: in order, `Finished` last.

    A failure is raised where the next event would have been, once. Closing it, and cancelling a task that waits for its next event,
    cancels the draft before the next forward. The reader may be slow: beyond `backlog` waiting snapshots (`Stepped`) the oldest are
    dropped, so memory stays bounded by them and by the reply's length.
    """

    loop: asyncio.AbstractEventLoop
    backlog: int
    clock: Callable[[], float]
    handle: DraftHandle | None = None
    came: float = 0.0
    """When the event that was read last came from the engine, by the clock: a slow reader reads it later. Nothing before the first."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _buffer: deque[tuple[float, Event]] = field(default_factory=deque)
    _snapshots: int = 0
    _is_over: bool = False
    """Nothing more will be put into the buffer."""
    _error: Exception | None = None
    _ready: asyncio.Event = field(default_factory=asyncio.Event)
    _is_woken: bool = False

    def __aiter__(self) -> DraftStream:
        return self

    async def __anext__(self) -> Event:
        while True:
            with self._lock:
                if self._buffer:
                    self.came, event = self._buffer.popleft()
                    self._snapshots -= isinstance(event, Stepped)
                    return event
                if self._is_over:
                    error, self._error = self._error, None
                    raise error if error is not None else StopAsyncIteration
                self._is_woken = False
                self._ready.clear()
            try:
                await self._ready.wait()
            except asyncio.CancelledError:
                self.cancel()
                raise

    def cancel(self) -> None:
        """End the iteration and stop the draft between two forwards. Safe twice, and after the end."""
        with self._lock:
            was_over, self._is_over, self._error = self._is_over, True, None
            self._buffer.clear()
            self._snapshots = 0
        self._ready.set()
        if not was_over and self.handle is not None:
            self.handle.cancel()

    def replan(self, plan: Plan) -> None:
        """Give the draft new steps and deadlines before the next forward."""
        if self.handle is not None:
            self.handle.replan(plan)

    async def aclose(self) -> None:
        self.cancel()

    async def __aenter__(self) -> DraftStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    # --- the engine's thread ------------------------------------------------------------------------------------------

    def _put(self, event: Event) -> None:
        now = self.clock()
        with self._lock:
            if self._is_over:
                return
            if isinstance(event, Stepped):
                if self._snapshots >= self.backlog:
                    oldest = next(at for at, (_, waiting) in enumerate(self._buffer) if isinstance(waiting, Stepped))
                    del self._buffer[oldest]
                    self._snapshots -= 1
                self._snapshots += 1
            self._buffer.append((now, event))
            self._is_over = isinstance(event, Finished)
        self._wake()

    def _fail(self, error: Exception) -> None:
        with self._lock:
            if self._is_over:
                return
            self._is_over, self._error = True, error
        self._wake()

    def _wake(self) -> None:
        """At most one wake-up is under way, however far behind the event loop is."""
        with self._lock:
            if self._is_woken:
                return
            self._is_woken = True
        try:
            self.loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:
            log.debug("a draft's event loop is gone")
            if self.handle is not None:
                self.handle.cancel()

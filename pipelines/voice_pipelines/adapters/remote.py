"""A language model behind an OpenAI-compatible or Inception endpoint as a `Drafter`: one streamed request for each draft.

The same rules hold as for the model on this machine. A cancel closes the request at once and nothing follows it. Time is the plan's: a
first clause may come late, since nothing can be spoken before it is there, and is counted; when the caller's queue has run dry, the
reply ends with its last whole sentence. What must be said is asked for, looked for in the text, and added where it is missing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import httpx2

from voice_pipelines.adapters.remote_text import ReplyEnd, ReplyText
from voice_pipelines.adapters.remote_wire import (
    Appended,
    CallPiece,
    Ended,
    EndpointError,
    RemoteEndpoint,
    Shown,
    guess_tokens,
    read_call,
    read_event,
    read_models,
    refusal,
    request_body,
)
from voiceagent.backends import (
    BackendInfo,
    Draft,
    DraftEvent,
    DraftFailed,
    DraftFinished,
    DraftPrefilled,
    DraftRequest,
    DraftStepped,
    PromptTurn,
    QualityCurve,
    StepPlan,
)
from voiceagent.clock import Clock, MonotonicClock
from voiceagent.errors import BackendError, ConfigError
from voiceagent.tools import ToolSpec

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 60.0
"""How long a connection that nobody uses is kept; the endpoint may close it sooner."""
WARM_AFTER_S = 4.0
"""A connection is opened ahead of time when none was used for so long. Common servers keep an idle one for 5 s."""
WARM_TIMEOUT_S = 5.0
DRAIN_S = 1.0
"""How long the end of a finished answer is waited for, so that its connection can be used again."""
ERROR_BYTES = 65_536
"""How much of a refusal is read."""
CLOSED = "is no longer asked: the drafter is closed"
NO_LISTING = (404, 405, 501)
"""Answers of an endpoint that does not list its models; anything else that is not 200 is a refusal."""


@dataclass(slots=True)
class RemoteCounts:
    """What became of the drafts so far."""

    started: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    late: int = 0
    """First clauses that came after their deadline."""
    cut: int = 0
    """Replies that ended at a deadline, before the model's own end."""
    repaired: int = 0
    """Replies to which a text that must be said was added."""


class RemoteDraft:
    """One reply being streamed, as its conversation holds it. Lives on one event loop."""

    def __init__(self, owner: RemoteDrafter, request: DraftRequest, on_event: Callable[[DraftEvent], None]) -> None:
        self._owner = owner
        self._request = request
        self._on_event = on_event
        self._plan = request.plan
        self._text = ReplyText()
        self._calls: list[CallPiece] = []
        self._is_over = False
        self._changed = asyncio.Event()
        """Set when a deadline may have moved."""
        self._prompt_tokens = 0
        self._phase: Literal["first", "rest"] = "first"
        self._steps = {"first": 0, "rest": 0}
        self._has_begun = False
        self._sent_at = self._heard_at = owner.clock.now()
        self.task = asyncio.create_task(self._run())

    def replan(self, plan: StepPlan) -> None:
        """Deadlines take effect at once. What the request asked for was sent with it and stays."""
        self._plan = plan
        self._changed.set()

    def cancel(self) -> None:
        if not self._is_over:
            self._owner.counts.cancelled += 1
            self._end()

    def fail(self, message: str) -> None:
        """End with `DraftFailed`, unless the draft is over."""
        if not self._is_over:
            endpoint = self._owner.endpoint
            self._owner.counts.failed += 1
            error = BackendError("llm", endpoint.without_key(f"{endpoint.host} {message}"))
            self._emit(DraftFailed(error, self._owner.clock.now()))
            self._end()

    def _end(self) -> None:
        """Nothing is delivered from here on, and the request is closed."""
        self._is_over = True
        self.task.cancel()

    def _emit(self, event: DraftEvent) -> None:
        assert not self._is_over, "no event may follow the last"
        self._on_event(event)

    # --- the request --------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        if self._owner.is_closed:
            self.fail(CLOSED)
            return
        watching = asyncio.create_task(self._watch())
        try:
            await self._ask()
        except EndpointError as error:
            self.fail(str(error))
        except httpx2.SSEError as error:
            self.fail(f"sent what is no event stream: {error}")
        except httpx2.ConnectError as error:
            self.fail(f"cannot be reached: {error}")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            self.fail(f"broke off the connection ({type(error).__name__}: {error})")
        except Exception as error:  # A bug here must not leave a caller waiting for events that never come.
            log.exception("a draft of the remote language model failed")
            self.fail(f"could not be asked: {type(error).__name__}: {error}")
        finally:
            watching.cancel()

    async def _ask(self) -> None:
        owner = self._owner
        body = request_body(owner.endpoint, self._request, owner.clock.now())
        self._prompt_tokens = guess_tokens(body["messages"])
        url = f"{owner.endpoint.url}/chat/completions"
        # `dllm serve` keeps its prefix cache by conversation; other endpoints pass over headers that they do not know.
        headers = {"X-Conversation": self._request.conversation_id}
        for is_last_try in (False, True):
            is_answered = False
            try:
                async with owner.client.stream("POST", url, json=body, headers=headers) as answer:
                    is_answered = True
                    await self._read(answer)
                return
            except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                # A kept connection may have been closed by the other side just as it was used; a second one is new.
                if is_answered or is_last_try:
                    raise

    async def _read(self, answer: httpx2.Response) -> None:
        """Deliver the answer's events; after the last, read on to the end so that the connection can be used again.

        Raises:
            EndpointError: If the endpoint refuses, reports an error, sends what is no answer, or stops before the end.
        """
        if answer.status_code != httpx2.codes.OK:
            said = b""
            async for part in answer.aiter_bytes():
                said += part
                if len(said) >= ERROR_BYTES:
                    break
            raise EndpointError(refusal(answer.status_code, answer.reason_phrase, said[:ERROR_BYTES]))
        try:
            async with asyncio.timeout(None) as drain:
                async for event in httpx2.EventSource(answer):
                    if self._is_over:
                        continue
                    for update in read_event(event.data):
                        self._take(update)
                        if self._is_over:
                            drain.reschedule(asyncio.get_running_loop().time() + DRAIN_S)
                            break
        except TimeoutError:
            return
        except httpx2.HTTPError:
            if not self._is_over:
                raise
        if not self._is_over:
            raise EndpointError("closed the stream before the end of the reply")

    def _take(self, update: Appended | Shown | CallPiece | Ended) -> None:
        if isinstance(update, Ended):
            self._finish(ReplyEnd.LIMIT if update.reason == "length" else ReplyEnd.MODEL, update.reason)
            return
        self._begin()
        if isinstance(update, CallPiece):
            self._calls.append(update)
            self._heard_at = self._owner.clock.now()
            self._changed.set()
            return
        try:
            if isinstance(update, Appended):
                self._text.append(update.text)
            else:
                self._text.show(update.text, update.progress)
        except ValueError as error:
            raise EndpointError(f"changed text that it had called final: {error}") from error
        self._step()
        if self._is_cut_due():
            self._finish(ReplyEnd.DEADLINE, "deadline")

    # --- events -------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            now = self._owner.clock.now()
            self._emit(DraftPrefilled(0, self._prompt_tokens, now - self._sent_at, now))
            self._heard_at = now

    def _step(self) -> None:
        """A step of a remote model is a piece of text or a canvas that arrived."""
        now = self._owner.clock.now()
        phase = self._phase
        self._steps[phase] += 1
        committed, due = self._text.committed, self._plan.first_deadline
        if phase == "first" and committed:
            self._phase = "rest"
            if due is not None and now > due:
                self._owner.counts.late += 1
                log.info("the remote language model's first clause came %.0f ms late", (now - due) * 1000)
        self._emit(
            DraftStepped(
                step=sum(self._steps.values()),
                phase=phase,
                canvas=self._text.canvas(self._request.plan.canvas_width),
                committed_text=committed,
                forced_tokens=0,
                compute_s=now - self._heard_at,
                at=now,
            )
        )
        self._heard_at = now
        self._changed.set()

    def _finish(self, end: ReplyEnd, reason: str) -> None:
        counts = self._owner.counts
        call = read_call(self._calls)
        try:
            # What a reply lacks may follow the tool's result.
            text, added = self._text.finish(end, self._request.must_say if call is None else ())
        except ValueError as error:
            raise EndpointError(f"changed text that it had called final: {error}") from error
        if not text and call is None:
            raise EndpointError(f"answered without any text (finish_reason {reason!r})")
        self._begin()
        # Nothing arrived: the time that was waited in vain is no step's.
        self._heard_at = self._owner.clock.now()
        self._step()
        counts.finished += 1
        counts.cut += end is ReplyEnd.DEADLINE
        if added:
            counts.repaired += 1
            log.info("the remote language model left out %s, which was added", ", ".join(added))
        steps = self._steps
        self._emit(DraftFinished(text, steps["first"], steps["rest"], 0, self._owner.clock.now(), call))
        self._is_over = True
        if end is ReplyEnd.DEADLINE:
            log.info("a reply of the remote language model was ended at its last whole sentence: the caller waited")
            self._end()

    # --- deadlines ----------------------------------------------------------------------------------------------------

    def _cut_at(self) -> float | None:
        """When the caller has waited long enough for the next sentence; nothing can be cut before the first clause, nor a call."""
        due = self._plan.rest_deadline
        return None if due is None or self._phase == "first" or self._calls else due + self._owner.endpoint.pause_s

    def _is_cut_due(self) -> bool:
        cut_at = self._cut_at()
        return cut_at is not None and self._owner.clock.now() >= cut_at and self._text.ends_sentence

    async def _watch(self) -> None:
        """End the draft when its time is up, whatever the endpoint does."""
        clock, timeout_s = self._owner.clock, self._owner.endpoint.timeout_s
        while True:
            self._changed.clear()
            due = self._heard_at + timeout_s
            cut_at = self._cut_at()
            if cut_at is not None and self._text.ends_sentence:
                due = min(due, cut_at)
            sleeping = asyncio.ensure_future(clock.sleep_until(due))
            changing = asyncio.ensure_future(self._changed.wait())
            try:
                await asyncio.wait((sleeping, changing), return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeping.cancel()
                changing.cancel()
            if self._is_over:
                return
            if clock.now() >= self._heard_at + timeout_s:
                what = "the next piece of the reply" if self._has_begun else "an answer"
                self.fail(f"timed out: no sign of {what} in {timeout_s:g} s")
                return
            if self._is_cut_due():
                self._finish(ReplyEnd.DEADLINE, "deadline")
                return


class RemoteDrafter:
    """A `Drafter` over a chat endpoint; one client and its kept connections serve all conversations.

    Args:
        endpoint: Where and how; `model` names one of the endpoint's models.
        info: What the start-up report says of it.
        clock: Whose readings the deadlines of plans are.
    """

    quality_curve = QualityCurve((), (), ())
    """Nothing is known of a remote model's steps."""
    min_steps = 1
    can_revise = False

    def __init__(self, endpoint: RemoteEndpoint, info: BackendInfo, clock: Clock | None = None) -> None:
        self.endpoint = endpoint
        self.info = info
        self.clock = clock or MonotonicClock()
        self.canvas_widths = endpoint.canvas_widths
        self.counts = RemoteCounts()
        self._drafts: set[RemoteDraft] = set()
        self._warming: asyncio.Task[None] | None = None
        self._used_at = float("-inf")
        self.is_closed = False
        # No caller waits for another's connection, and how long one may wait for an answer is the draft's own business.
        self.client = httpx2.AsyncClient(
            headers=endpoint.headers(),
            timeout=None,
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S),
        )

    @classmethod
    def connect(cls, endpoint: RemoteEndpoint) -> RemoteDrafter:
        """Ask the endpoint once for its models, which costs nothing, and take the one that is meant. Blocks.

        Raises:
            ConfigError: If no model is named and the endpoint has not exactly one.
            BackendError: If it cannot be reached or refuses.
        """
        listing = ask_models(endpoint)
        endpoint = replace(endpoint, model=choose_name(endpoint, listing))
        reason = f"chosen in the configuration; it answered in {listing.seconds * 1000:.0f} ms"
        if listing.names is not None and endpoint.model not in listing.names:
            reason += ", and its list of models does not name this one"
        name = f"{endpoint.model} at {endpoint.host} ({DIALECTS[endpoint.dialect]})"
        return cls(endpoint, BackendInfo("llm", name, reason, is_remote=True))

    def start(self, request: DraftRequest, on_event: Callable[[DraftEvent], None]) -> RemoteDraft:
        self.counts.started += 1
        draft = RemoteDraft(self, request, on_event)
        self._drafts.add(draft)
        draft.task.add_done_callback(lambda _: self._ended(draft))
        return draft

    def revise(
        self,
        draft: Draft,
        request: DraftRequest,
        on_event: Callable[[DraftEvent], None],
        *,
        unheard: str | None = None,
    ) -> RemoteDraft:
        """Start anew: no endpoint takes a reply back to change it."""
        draft.cancel()
        return self.start(request, on_event)

    def warm(self, conversation_id: str, turns: Sequence[PromptTurn], tools: Sequence[ToolSpec] = ()) -> None:
        """Open a connection while the caller speaks: handshakes cost two or three round trips. The prompt itself is not sent."""
        is_idle = self.clock.now() - self._used_at >= WARM_AFTER_S
        if is_idle and not self._drafts and not self.is_closed and (self._warming is None or self._warming.done()):
            self._warming = asyncio.create_task(self._warm())

    def forget(self, conversation_id: str) -> None:
        """Nothing is kept here; what the endpoint caches is its own."""

    async def aclose(self) -> None:
        """Fail what is still being written and close all connections."""
        self.is_closed = True
        tasks = [draft.task for draft in self._drafts]
        for draft in tuple(self._drafts):
            draft.fail(CLOSED)
            draft.task.cancel()
        if self._warming is not None:
            self._warming.cancel()
            tasks.append(self._warming)
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.client.aclose()

    async def _warm(self) -> None:
        try:
            await self.client.get(f"{self.endpoint.url}/models", timeout=WARM_TIMEOUT_S)
            self._used_at = self.clock.now()
        except httpx2.HTTPError as error:  # The draft that follows will say what is wrong, if it still is.
            log.debug("%s could not be connected to ahead of time: %s", self.endpoint.host, error)

    def _ended(self, draft: RemoteDraft) -> None:
        self._drafts.discard(draft)
        self._used_at = self.clock.now()


DIALECTS = {"openai": "OpenAI's dialect", "inception": "Inception's dialect"}


# --- before any draft -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listing:
    """An endpoint's answer to `GET {url}/models`. `names` is None when it keeps no list."""

    names: tuple[str, ...] | None
    seconds: float


def ask_models(endpoint: RemoteEndpoint) -> Listing:
    """Ask once for the list of models. Blocks for at most the endpoint's time-out.

    Raises:
        BackendError: If the endpoint cannot be reached, refuses the key or fails.
    """
    try:
        # Certificates are read before the clock starts: the time told is the endpoint's.
        with httpx2.Client(headers=endpoint.headers(), timeout=endpoint.timeout_s) as client:
            asked = time.monotonic()
            answer = client.get(f"{endpoint.url}/models")
            seconds = time.monotonic() - asked
    except httpx2.TimeoutException as error:
        raise BackendError("llm", f"{endpoint.host} timed out: no answer in {endpoint.timeout_s:g} s") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise BackendError("llm", f"{endpoint.host} cannot be reached: {error}") from error
    if answer.status_code == httpx2.codes.OK:
        return Listing(read_models(answer.content), seconds)
    if answer.status_code in NO_LISTING:
        return Listing(None, seconds)
    said = refusal(answer.status_code, answer.reason_phrase, answer.content[:ERROR_BYTES])
    raise BackendError("llm", endpoint.without_key(f"{endpoint.host} {said}"))


def choose_name(endpoint: RemoteEndpoint, listing: Listing) -> str:
    """The configured model, else the only one there is.

    Raises:
        ConfigError: If none is configured and the list does not hold exactly one.
    """
    if endpoint.model:
        return endpoint.model
    if listing.names is not None and len(listing.names) == 1:
        return listing.names[0]
    known = f"one of {', '.join(listing.names[:20])}" if listing.names else "its name: the endpoint lists none"
    raise ConfigError("remote.model", "", known)

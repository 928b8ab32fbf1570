"""One reply from plan to last audio: the draft denoises, finished clauses are spoken, and the plan follows the playout.

A draft that ends with a call of a tool is followed by another, which knows the result.

Two tasks share a bounded queue of clauses. The writer turns draft events into clauses; the voice turns clauses into text and audio events.
While the first clause plays, the rest of the canvas goes on denoising with the steps that the playout leaves it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

import numpy as np

from voiceagent.backends import (
    Draft,
    Drafter,
    DraftEvent,
    DraftFailed,
    DraftFinished,
    DraftPrefilled,
    DraftRequest,
    DraftRevised,
    DraftStepped,
    Samples,
    StepPlan,
    Synthesizer,
)
from voiceagent.budget import BudgetController
from voiceagent.budget_terms import Grant, TurnRequest, WhenLate
from voiceagent.clauses import ClauseFinder
from voiceagent.clock import Clock
from voiceagent.costs import Stage
from voiceagent.early import Beginning
from voiceagent.events import (
    ConversationEvent,
    Item,
    Modality,
    ResponseAudio,
    ResponseItemStarted,
    ResponsePlanned,
    ResponseStepped,
    ResponseText,
    Usage,
)
from voiceagent.playout import Playout
from voiceagent.tool_turn import ToolTurn
from voiceagent.tools import ToolCall
from voiceagent.trace import StepRecord, TurnTrace

FIRST_PIECE_S = 0.2
"""Audio collected before a reply's first piece leaves: a player that starts at once has this long until the next piece. Making it takes
eSpeak 4 ms; pieces of 50 ms ran dry once in 32 replies while the rest of the canvas was denoised on the same two cores."""
CLAUSE_QUEUE = 16
"""Clauses waiting for the voice. A reply has fewer; the bound is there so that a stuck voice stops the writer."""


@dataclass(frozen=True, slots=True)
class ReplyRequest:
    """What one reply is made from. `text` is spoken as it stands (a greeting); otherwise `draft` is written by the model."""

    response_id: str
    item_id: str
    modality: Modality
    target_s: float
    draft: DraftRequest | None = None
    text: str | None = None
    prompt_tokens: float = 64.0
    """Prompt tokens that are probably not in the cache yet."""
    when_late: WhenLate = WhenLate.FEWER_STEPS
    acknowledgements: tuple[str, ...] = ()


@dataclass(slots=True)
class Reply:
    """A reply being made. `run` may be cancelled at any moment; what was said until then stands in `said` and `playout`."""

    request: ReplyRequest
    llm: Drafter
    tts: Synthesizer
    budget: BudgetController
    clock: Clock
    emit: Callable[[ConversationEvent], None]
    trace: TurnTrace
    on_audio: Callable[[], None]
    """Called once, when the first audio has left."""
    plays: Callable[[Samples, int, float], None] | None
    """Told of all audio with its rate, and when the caller's queue plays it; None where nobody wants to know."""
    tools: ToolTurn
    beginning: Beginning | None = None
    """How the first draft begins, where it is not from nothing."""
    last_draft: Draft | None = None
    """The one whose text is said."""
    playout: Playout = field(default_factory=Playout)
    usage: Usage = field(default_factory=Usage)
    said: str = ""
    item_started: bool = False
    _plan: StepPlan | None = None
    _draft: Draft | None = None
    _grant: Grant | None = None
    _is_first: bool = False
    """The draft's first clause is not written yet."""
    _stepped_at: float = 0.0
    """When the draft had its last step, or was prefilled."""
    _earlier: tuple[DraftStepped | DraftRevised, ...] = ()
    """How what the draft keeps was written, if it keeps anything."""
    _first_steps: int = 0
    _rest_steps: int = 0
    _has_words: bool = False
    """Something of it is spoken or waits for the voice."""

    async def run(self) -> None:
        """Make the whole reply.

        Raises:
            BackendError: If the drafter or the synthesizer failed.
        """
        clauses: asyncio.Queue[str | None] = asyncio.Queue(CLAUSE_QUEUE)
        voice = asyncio.create_task(self._voice(clauses))
        writer = asyncio.create_task(self._write(clauses))
        try:
            # Whichever fails first ends the reply; a plain gather would leave the other running.
            done, _ = await asyncio.wait((voice, writer), return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in (writer, voice):
                task.cancel()
            await asyncio.gather(writer, voice, return_exceptions=True)
            if self.beginning is not None:  # It failed before the draft was taken up.
                self.beginning.drop()

    # --- the writer ---------------------------------------------------------------------------------------------------

    async def _write(self, clauses: asyncio.Queue[str | None]) -> None:
        draft = self.request.draft
        if draft is None:
            await self._put(clauses, self.request.text or "")
        while draft is not None:
            call = await self._write_draft(draft, clauses)
            draft = (
                None if call is None else await self.tools.take(call, draft, lambda texts: self._cover(clauses, texts))
            )
        await clauses.put(None)

    async def _write_draft(self, draft: DraftRequest, clauses: asyncio.Queue[str | None]) -> ToolCall | None:
        """Write what the draft says; the call that it ends with, if any."""
        finder, seen, before = ClauseFinder(), 0, self.usage
        call: ToolCall | None = None
        beginning = self.beginning or Beginning(self.llm)
        grant = self._plan_draft(draft, beginning)
        if grant.acknowledgement is not None:
            self.trace.acknowledged(grant.acknowledgement, self.clock.now())
            await self._fill(clauses, grant.acknowledgement)
        async with contextlib.aclosing(self._draft_events(draft, grant, beginning)) as events:
            async for event, is_news in events:
                match event:
                    case DraftPrefilled():
                        self._prefilled(event, before, is_news=is_news)
                    case DraftRevised():
                        self._revised(event, is_news=is_news)
                    case DraftStepped():
                        self._stepped(event, before, is_news=is_news)
                        for clause in finder.push(event.committed_text[seen:], ends_word=True):
                            self._first_clause_done()
                            await self._put_clause(clauses, clause)
                        seen = len(event.committed_text)
                    case DraftFinished():
                        call = event.call
                        if self.trace.speculation is not None:
                            self.trace.speculation.written()
                        self.usage = replace(
                            self.usage, output_tokens=max(self.usage.output_tokens, before.output_tokens + 1)
                        )
                        self.trace.mark("draft_done", event.at)
                        for clause in (*finder.push(event.text[seen:]), *finder.flush()):
                            await self._put_clause(clauses, clause)
                    case DraftFailed(error=error):
                        raise error
                    case _:
                        assert_never(event)
        return call

    async def _put(self, clauses: asyncio.Queue[str | None], text: str) -> None:
        finder = ClauseFinder()
        for clause in (*finder.push(text), *finder.flush()):
            await clauses.put(clause)

    async def _put_clause(self, clauses: asyncio.Queue[str | None], clause: str) -> None:
        if clause.strip():
            self._has_words = True
            self.trace.mark("first_clause", self.clock.now())
            await clauses.put(clause)

    async def _fill(self, clauses: asyncio.Queue[str | None], text: str) -> None:
        """Say something while the answer is not there yet, unless the reply has begun."""
        if not self._has_words:
            self._has_words = True
            self.trace.mark("first_clause", self.clock.now())
            await self._put(clauses, text)

    async def _cover(self, clauses: asyncio.Queue[str | None], texts: Sequence[str]) -> None:
        """A tool takes long: say one of the texts, unless the reply has begun."""
        if not self._has_words:
            text = self.tools.desk.acknowledgements.choose(texts)
            self.trace.acknowledged(text, self.clock.now())
            await self._fill(clauses, text)

    def _plan_draft(self, draft: DraftRequest, beginning: Beginning) -> Grant:
        width = draft.plan.canvas_width
        # This draft will be one of them.
        self.budget.running_drafts += 1
        self.budget.first_drafts += 1
        company = self.budget.company(width, is_first=True)
        self.budget.running_drafts -= 1
        self.budget.first_drafts -= 1
        # Once a tool has run the target for the turn is past; what is written then has it from there.
        done = max((record.end or 0.0 for record in self.trace.tools), default=self.trace.origin)
        grant = self.budget.plan_turn(
            TurnRequest(
                now=self.clock.now(),
                speech_end=max(self.trace.origin, done),
                target_s=self.request.target_s,
                prompt_tokens=0.0 if beginning.is_prefilled else self.request.prompt_tokens,
                canvas_width=width,
                active_drafts=company,
                recognition_wait_s=0.0 if self.trace.tools else self.trace.asr_waited_s,
                written_in=beginning.steps[0] if beginning.has_clause else None,
                needs_audio=self.request.modality == "audio",
                when_late=self.request.when_late,
                acknowledgements=() if self._has_words or beginning.has_clause else self.request.acknowledgements,
            )
        )
        self.trace.planned(grant)
        self._grant = grant
        self._adopt(grant.plan, grant.reason)
        return grant

    async def _draft_events(
        self, draft: DraftRequest, grant: Grant, beginning: Beginning
    ) -> AsyncGenerator[tuple[DraftEvent, bool], None]:
        """Start the draft, or take over one that was begun early, and yield its events, each with whether it happens now.

        Leaving early cancels the draft between two steps.
        """
        self._first_steps, self._rest_steps = beginning.steps
        self._is_first = True
        events: asyncio.Queue[DraftEvent] = asyncio.Queue()
        self._stepped_at = self.clock.now()
        self.trace.mark("draft_start", self._stepped_at)
        self._draft = self.last_draft = beginning.start(replace(draft, plan=grant.plan), events.put_nowait)
        self.beginning = None
        told, self._earlier = beginning.told(), beginning.earlier
        self.trace.speculation = beginning.speculation or self.trace.speculation
        self.budget.running_drafts += 1
        self.budget.first_drafts += 1
        try:
            for event in told:
                yield event, False
                if isinstance(event, DraftFinished | DraftFailed):
                    return
            while True:
                event = await events.get()
                yield event, True
                if isinstance(event, DraftFinished | DraftFailed):
                    return
        finally:
            self._first_clause_done()
            self.budget.running_drafts -= 1
            self._draft.cancel()
            self._draft = None

    def _first_clause_done(self) -> None:
        if self._is_first:
            self._is_first = False
            self.budget.first_drafts -= 1

    def _adopt(self, plan: StepPlan, reason: str) -> None:
        self._plan = plan
        self.trace.plans.append((self.clock.now(), plan, reason))
        self.emit(ResponsePlanned(self.request.response_id, plan, reason))

    def _prefilled(self, event: DraftPrefilled, before: Usage, *, is_news: bool) -> None:
        self.trace.mark("prefill", event.at if is_news else self._stepped_at)
        self.usage = replace(
            self.usage,
            input_tokens=before.input_tokens + event.cached_tokens + event.new_tokens,
            cached_tokens=before.cached_tokens + event.cached_tokens,
        )
        if not is_news:
            return
        wall_s, self._stepped_at = max(event.at - self._stepped_at, 0.0), event.at
        if self.llm.info.is_remote:
            self.budget.costs.observe(Stage.PREFILL, event.compute_s, event.new_tokens)
            return
        company = self.budget.company(self._canvas_width(), is_first=True)
        self.budget.prefilled(event.at, event.compute_s, wall_s, event.new_tokens, company)

    def _canvas_width(self) -> int:
        assert self._plan is not None
        return self._plan.canvas_width

    def _revised(self, event: DraftRevised, *, is_news: bool) -> None:
        """What was written before has been asked for again; how long that took is no step's time."""
        self.trace.revised = event
        if event.kept_tokens:
            for earlier in self._earlier:
                self._show(earlier, is_news=False)
        if event.canvas:  # Where all of it stands no step follows.
            self._show(event, is_news=is_news)
        if not is_news:
            return
        self._stepped_at = event.at
        if not self.llm.info.is_remote:
            self.budget.rated(event.at, event.forwards, self._canvas_width(), is_early=False)
        if self.trace.speculation is not None:
            self.trace.speculation.revised(event.kept_tokens, event.forwards)

    def _stepped(self, event: DraftStepped, before: Usage, *, is_news: bool) -> None:
        assert self._plan is not None and self._draft is not None
        # The drafter may have widened the canvas to hold what must be said.
        self._plan = replace(self._plan, canvas_width=len(event.canvas))
        written = sum(1 for token in event.canvas if token.text)
        self.usage = replace(self.usage, output_tokens=before.output_tokens + written)
        self._show(event, is_news=is_news)
        if not is_news:
            if event.phase == "rest":
                self._first_clause_done()
            return
        if self.trace.speculation is not None:
            self.trace.speculation.stepped(has_clause=bool(event.committed_text))
        wall_s, self._stepped_at = max(event.at - self._stepped_at, event.compute_s), event.at
        company = self.budget.company(len(event.canvas), is_first=event.phase == "first")
        if event.phase == "rest":
            self._rest_steps += 1
            self._first_clause_done()
            # It may have given way to others, so that its pace is of its own choosing: a forward is what it costs.
            self._learn_step(event, event.compute_s, event.batch, self._rest_steps - 1)
        else:
            self._first_steps += 1
            self._learn_step(event, wall_s, max(company, event.batch), self._first_steps - 1)
        self.trace.steps.append(
            StepRecord(
                event.step,
                event.phase,
                event.at,
                event.compute_s,
                len(event.committed_text),
                event.forced_tokens,
                event.batch,
                wall_s,
            )
        )
        if not self.llm.info.is_remote:
            # Those who came or left while it ran count from the next step on.
            company = self.budget.company(len(event.canvas), is_first=event.phase == "first")
            self._replan(event, company)

    def _show(self, event: DraftStepped | DraftRevised, *, is_news: bool) -> None:
        early_s = None if is_news else max(self.trace.marks["draft_start"] - event.at, 0.0)
        self.emit(ResponseStepped.of(self.request.response_id, event, early_s))

    def _learn_step(self, event: DraftStepped, wall_s: float, company: int, steps_done: int) -> None:
        width = len(event.canvas)
        if self.llm.info.is_remote:
            self.budget.costs.observe(Stage.STEP, event.compute_s, width, event.batch)
        else:
            self.budget.stepped(
                event.at,
                event.compute_s,
                wall_s,
                width,
                batch=event.batch,
                company=company,
                steps_done=steps_done,
            )

    def _replan(self, event: DraftStepped, company: int) -> None:
        """Before the next step: what is left of the plan follows what has happened."""
        assert self._plan is not None and self._draft is not None and self._grant is not None
        now = self.clock.now()
        if event.phase == "rest":
            again = self.budget.replan_rest(self._plan, now=now, steps_done=self._rest_steps, active_drafts=company)
            reason = "" if again is None else f"{again.steps_rest} steps for the rest"
        else:
            again = self.budget.replan_first(
                self._plan, now=now, step=event.step, active_drafts=company, may_grow=self._grant.is_on_time
            )
            reason = "" if again is None else f"{again.steps_first} steps for the first clause"
        if again is not None:
            others = f" beside {company - 1} others" if company > 1 else ""
            busy = self.budget.room.busy(now)
            self._draft.replan(again)
            if (again.steps_first, again.steps_rest) == (self._plan.steps_first, self._plan.steps_rest):
                self._plan = again  # Who may share its forwards is nobody's news.
                return
            self._adopt(again, f"after step {event.step}{others}{busy}: {reason}")

    def _replan_rest(self) -> None:
        """More audio is queued at the caller's: the rest of the canvas has until it runs dry."""
        dry_at = self.playout.dry_at()
        if self._draft is None or self._plan is None or dry_at is None:
            return
        if self._is_first:
            self._replan_behind(dry_at)
            return
        plan = self.budget.plan_rest(
            self._plan,
            now=self.clock.now(),
            dry_at=dry_at,
            steps_done=self._rest_steps,
            active_drafts=self.budget.company(self._plan.canvas_width, is_first=False),
        )
        self._draft.replan(plan)
        if plan.steps_rest == self._plan.steps_rest and self._plan.rest_deadline is not None:
            self._plan = plan  # Only the deadline has moved.
        else:
            room_ms = (dry_at - self.clock.now()) * 1000
            self._adopt(plan, f"{plan.steps_rest} steps for the rest: {room_ms:.0f} ms of speech are queued")

    def _replan_behind(self, dry_at: float) -> None:
        """Something is being said while the first clause is written: it is due when that has been heard."""
        assert self._plan is not None and self._draft is not None
        now = self.clock.now()
        plan = self.budget.replan_first(
            self._plan,
            now=now,
            step=self._first_steps,
            active_drafts=self.budget.company(self._plan.canvas_width, is_first=True),
            may_grow=True,
            dry_at=dry_at,
        )
        if plan is not None:
            self._draft.replan(plan)
            self._adopt(
                plan,
                f"{plan.steps_first} steps for the first clause: {(dry_at - now) * 1000:.0f} ms of speech are queued",
            )

    # --- the voice ----------------------------------------------------------------------------------------------------

    async def _voice(self, clauses: asyncio.Queue[str | None]) -> None:
        while (clause := await clauses.get()) is not None:
            if not clause.strip():
                continue
            self._say(clause)
            if self.request.modality == "audio":
                await self._speak(clause)

    def _say(self, clause: str) -> None:
        if not self.item_started:
            self.item_started = True
            item = Item(self.request.item_id, "agent", "", "in_progress", spoken=self.request.modality == "audio")
            self.emit(ResponseItemStarted(self.request.response_id, item, None))
        delta = clause.strip() if not self.said else f" {clause.strip()}"
        self.said += delta
        self.trace.reply = self.said
        if self.request.modality == "text":
            self.trace.mark("first_text", self.clock.now())
        self.emit(ResponseText(self.request.response_id, self.request.item_id, delta))

    async def _speak(self, clause: str) -> None:
        asked = self.clock.now()
        self.playout.begin_clause(clause.strip())
        is_first_chunk = True
        # Closed at once when the reply is cancelled: the synthesizer must stop now, not at garbage collection.
        held: list[Samples] = []
        async with contextlib.aclosing(self.tts.speak(clause)) as audio:
            async for samples in audio:
                if samples.size == 0:
                    continue
                if is_first_chunk:
                    is_first_chunk = False
                    made = self.clock.now()
                    self.trace.mark("tts_audio", made)
                    self.budget.costs.observe(Stage.TTS, max(made - asked, 0.0), len(clause))
                if self.playout.dry_at() is None:
                    held.append(samples)
                    if sum(map(len, held)) < FIRST_PIECE_S * self.tts.rate_hz:
                        continue
                    samples, held = np.concatenate(held), []
                self._send(samples)
        if held:
            self._send(np.concatenate(held))
        self.playout.end_clause()
        self._replan_rest()

    def _send(self, samples: Samples) -> None:
        made = self.clock.now()
        self.emit(ResponseAudio(self.request.response_id, self.request.item_id, samples, self.tts.rate_hz))
        now = self.clock.now()
        is_first = self.playout.dry_at() is None
        duration_s = samples.size / self.tts.rate_hz
        dry_at = self.playout.sent(duration_s, now)
        if self.plays is not None:
            self.plays(samples, self.tts.rate_hz, dry_at - duration_s)
        self.budget.costs.observe(Stage.TRANSPORT, max(now - made, 0.0))
        if is_first:
            self.trace.mark("first_audio", now)
            if self._grant is not None and self._grant.is_on_time and not self.trace.tools:
                self.budget.margin.answered(late=now > self.trace.origin + self.request.target_s)
            self.on_audio()


def expected_prompt_tokens(new_words: int) -> float:
    """Tokens that a prompt grew by, guessed from its words: byte-level BPE with 4,096 entries makes about 1.4 per word."""
    return float(math.ceil(new_words * 1.4) + 8)

"""The drafts of one reply: each is planned, started and followed, and its plan follows what happens.

What a draft's steps take goes to the budget, which makes the plan again after every step; so it does whenever more of the reply is on its way to
the caller, since the rest of the canvas has until that has been heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace

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
    StepPlan,
)
from voiceagent.budget import BudgetController
from voiceagent.budget_terms import Grant, TurnRequest, WhenLate
from voiceagent.clock import Clock
from voiceagent.costs import Stage
from voiceagent.early import Beginning
from voiceagent.events import ConversationEvent, ResponsePlanned, ResponseStepped
from voiceagent.playout import Playout
from voiceagent.trace import StepRecord, TurnTrace


@dataclass(slots=True)
class Drafting:
    """The draft of a reply that is being written. Those of a reply that calls tools follow each other."""

    response_id: str
    llm: Drafter
    budget: BudgetController
    clock: Clock
    emit: Callable[[ConversationEvent], None]
    trace: TurnTrace
    playout: Playout
    last_draft: Draft | None = None
    """The newest, also when it is over."""
    grant: Grant | None = None
    """What it was granted at its start."""
    _plan: StepPlan | None = None
    _draft: Draft | None = None
    _told: Sequence[DraftEvent] = ()
    """What it said before it was a reply's."""
    _is_first: bool = False
    """The draft's first clause is not written yet."""
    _stepped_at: float = 0.0
    """When the draft had its last step, or was prefilled."""
    _earlier: tuple[DraftStepped | DraftRevised, ...] = ()
    """How what the draft keeps was written, if it keeps anything."""
    _first_steps: int = 0
    _rest_steps: int = 0

    # --- its start ----------------------------------------------------------------------------------------------------

    def plan(
        self,
        draft: DraftRequest,
        beginning: Beginning,
        *,
        target_s: float,
        prompt_tokens: float,
        needs_audio: bool,
        when_late: WhenLate,
        acknowledgements: Sequence[str],
    ) -> Grant:
        """Ask the budget for the steps of a draft that begins like this; the plan is told and kept."""
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
                target_s=target_s,
                prompt_tokens=0.0 if beginning.is_prefilled else prompt_tokens,
                canvas_width=width,
                active_drafts=company,
                recognition_wait_s=0.0 if self.trace.tools else self.trace.asr_waited_s,
                written=beginning.written,
                steps_had=0 if beginning.has_clause else beginning.steps[0],
                needs_audio=needs_audio,
                when_late=when_late,
                acknowledgements=() if beginning.has_clause else acknowledgements,
            )
        )
        self.trace.planned(grant)
        self.grant = grant
        self._adopt(grant.plan, grant.reason)
        return grant

    def start(self, draft: DraftRequest, grant: Grant, beginning: Beginning) -> asyncio.Queue[DraftEvent]:
        """Start the draft, or take over one that was begun early; its events from now on."""
        self._first_steps, self._rest_steps = beginning.steps
        self._is_first = True
        self._stepped_at = self.clock.now()
        self.trace.mark("draft_start", self._stepped_at)
        events: asyncio.Queue[DraftEvent] = asyncio.Queue()
        self._draft = self.last_draft = beginning.start(replace(draft, plan=grant.plan), events.put_nowait)
        self._told, self._earlier = beginning.told(), beginning.earlier
        self.trace.speculation = beginning.speculation or self.trace.speculation
        return events

    async def follow(self, events: asyncio.Queue[DraftEvent]) -> AsyncGenerator[tuple[DraftEvent, bool], None]:
        """What the draft says until it is over, each with whether it happens now. Leaving early cancels it between two steps."""
        self.budget.running_drafts += 1
        self.budget.first_drafts += 1
        try:
            for event in self._told:
                yield event, False
                if isinstance(event, DraftFinished | DraftFailed):
                    return
            while True:
                event = await events.get()
                yield event, True
                if isinstance(event, DraftFinished | DraftFailed):
                    return
        finally:
            self.first_clause_done()
            self.budget.running_drafts -= 1
            if self._draft is not None:
                self._draft.cancel()
            self._draft = None

    # --- what it says -------------------------------------------------------------------------------------------------

    def first_clause_done(self) -> None:
        """The first clause is written; what follows is the rest."""
        if self._is_first:
            self._is_first = False
            self.budget.first_drafts -= 1

    def _adopt(self, plan: StepPlan, reason: str) -> None:
        self._plan = plan
        if self.grant is not None and self.grant.is_written:
            plan = replace(plan, first_deadline=None)  # Nothing of it is due any more.
        self.trace.adopted(self.clock.now(), plan, reason)
        self.emit(ResponsePlanned(self.response_id, plan, reason))

    def prefilled(self, event: DraftPrefilled, *, is_news: bool) -> None:
        """Its prompt is known to the engine."""
        self.trace.mark("prefill", event.at if is_news else self._stepped_at)
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

    def revised(self, event: DraftRevised, *, is_news: bool) -> None:
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

    def stepped(self, event: DraftStepped, *, is_news: bool) -> None:
        """It had a step: learned, told and, if it happens now, the reason to plan again."""
        assert self._plan is not None and self._draft is not None
        # The drafter may have widened the canvas to hold what must be said.
        self._plan = replace(self._plan, canvas_width=len(event.canvas))
        self._show(event, is_news=is_news)
        if not is_news:
            if event.phase == "rest":
                self.first_clause_done()
            return
        if self.trace.speculation is not None:
            self.trace.speculation.stepped(has_clause=bool(event.committed_text))
        wall_s, self._stepped_at = max(event.at - self._stepped_at, event.compute_s), event.at
        company = self.budget.company(len(event.canvas), is_first=event.phase == "first")
        if event.phase == "rest":
            self._rest_steps += 1
            self.first_clause_done()
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
                len(self.trace.tools),
            )
        )
        if not self.llm.info.is_remote:
            # Those who came or left while it ran count from the next step on.
            company = self.budget.company(len(event.canvas), is_first=event.phase == "first")
            self._replan(event, company)

    def _show(self, event: DraftStepped | DraftRevised, *, is_news: bool) -> None:
        early_s = None if is_news else max(self.trace.marks["draft_start"] - event.at, 0.0)
        self.emit(ResponseStepped.of(self.response_id, event, early_s))

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
        assert self._plan is not None and self._draft is not None and self.grant is not None
        now = self.clock.now()
        if event.phase == "rest":
            again = self.budget.replan_rest(self._plan, now=now, steps_done=self._rest_steps, active_drafts=company)
            reason = "" if again is None else f"{again.steps_rest} steps for the rest"
        else:
            again = self.budget.replan_first(
                self._plan, now=now, step=event.step, active_drafts=company, may_grow=self.grant.is_on_time
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

    def more_is_queued(self) -> None:
        """The caller's queue runs dry at another moment: more audio is in it, or it was held. The rest of the canvas has until then."""
        dry_at = self.playout.due_at(self.clock.now())
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

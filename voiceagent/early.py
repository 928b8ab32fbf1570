"""Drafts that are there before they are asked for: one on the caller's words so far, and what was not heard of the reply before.

The asyncio edge of `speculation`: it holds the draft, keeps what the drafter tells of it, and hands both to the reply once the turn is over.
Nothing of a draft leaves before that: neither a word nor a call of a tool.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

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
from voiceagent.budget_terms import Written
from voiceagent.clock import Clock
from voiceagent.speculation import Pause, Speculation, asks_alike, wants_draft

log = logging.getLogger(__name__)

SHOWN = 16
"""Canvases of earlier drafts that are kept to be shown, the newest. Whoever thinks aloud has many drafts, and all are sent at once when their
turn is over."""


@dataclass(frozen=True, slots=True)
class Unheard:
    """The end of an interrupted reply that the caller did not hear, and the draft that it is from."""

    draft: Draft
    text: str


@dataclass(slots=True, eq=False)
class EarlyDraft:
    """A draft that nobody hears yet. What it tells waits here."""

    request: DraftRequest
    on_event: Callable[[DraftEvent], None]
    earlier: tuple[DraftStepped | DraftRevised, ...] = ()
    """How the draft was written that this one revises, while it is not known that nothing of it stands."""
    steps_before: int = 0
    """Steps that the first clause of that draft took, as long as any of it may stand."""
    draft: Draft | None = None
    prefilled: DraftPrefilled | None = None
    revised: DraftRevised | None = None
    steps: list[DraftStepped] = field(default_factory=list)
    end: DraftFinished | DraftFailed | None = None
    is_stopped: bool = False
    """All early drafts have had their share of the engine: it stands as it is, for a later one to start from."""

    def take(self, event: DraftEvent) -> None:
        match event:
            case DraftPrefilled():
                self.prefilled = event
            case DraftRevised():
                self.revised = event
                if not event.kept_tokens:
                    self.earlier, self.steps_before = (), 0
            case DraftStepped():
                self.steps.append(event)
                if self.revised is None:
                    self.earlier, self.steps_before = (), 0
            case DraftFinished() | DraftFailed():
                self.end = event
        self.on_event(event)

    @property
    def written(self) -> tuple[DraftStepped | DraftRevised, ...]:
        """How it was written, oldest first."""
        revised = () if self.revised is None else (self.revised,)
        return (*self.earlier, *revised, *self.steps)[-SHOWN:]

    @property
    def first_steps(self) -> int:
        """Steps that its first clause has had, those included whose words it kept."""
        return self.steps_before + sum(step.phase == "first" for step in self.steps)

    @property
    def has_failed(self) -> bool:
        return isinstance(self.end, DraftFailed)

    @property
    def has_clause(self) -> bool:
        """Whether its first clause is written."""
        return isinstance(self.end, DraftFinished) or (bool(self.steps) and bool(self.steps[-1].committed_text))


@dataclass(slots=True)
class Beginning:
    """How a reply's first draft begins.

    Args:
        early: The draft on the caller's words, where there is one.
        is_hit: It replies to the very request of the reply.
        unheard: Where there is no early draft: what was not heard of the reply before.
    """

    llm: Drafter
    early: EarlyDraft | None = None
    is_hit: bool = False
    unheard: Unheard | None = None
    speculation: Speculation | None = None

    @property
    def has_clause(self) -> bool:
        """Something can be said at once."""
        return self.is_hit and self.early is not None and self.early.has_clause

    @property
    def written(self) -> Written | None:
        """In how many steps its first clause is there; None where it is not."""
        if self.early is None or not self.has_clause:
            return None
        in_all, granted = self.early.first_steps, self.early.request.plan.steps_first
        return Written(self.steps[0], in_all, is_sure=in_all < granted)

    @property
    def is_prefilled(self) -> bool:
        return self.is_hit and self.early is not None and self.early.prefilled is not None

    @property
    def steps(self) -> tuple[int, int]:
        """Steps that it has had: for the first clause and for the rest."""
        if not self.is_hit or self.early is None:
            return 0, 0
        rest = sum(step.phase == "rest" for step in self.early.steps)
        return len(self.early.steps) - rest, rest

    @property
    def earlier(self) -> tuple[DraftStepped | DraftRevised, ...]:
        """How that was written which the draft is asked to keep, if it has told or will tell that it keeps anything."""
        if self.early is None:
            return ()
        return self.early.earlier if self.is_hit else self.early.written

    def told(self) -> tuple[DraftEvent, ...]:
        """What the draft has told so far, in order."""
        if not self.is_hit or self.early is None:
            return ()
        early = self.early
        events: tuple[DraftEvent | None, ...] = (early.prefilled, early.revised, *early.steps, early.end)
        return tuple(event for event in events if event is not None)

    def start(self, request: DraftRequest, on_event: Callable[[DraftEvent], None]) -> Draft:
        """The draft under its real plan; what it tells from now on goes to `on_event`."""
        if self.early is not None and self.early.draft is not None:
            if self.is_hit:
                self.early.on_event = on_event
                self.early.draft.replan(request.plan)
                return self.early.draft
            self.early.on_event = _ignore
            return self.llm.revise(self.early.draft, request, on_event)
        if self.unheard is not None:
            return self.llm.revise(self.unheard.draft, request, on_event, unheard=self.unheard.text)
        return self.llm.start(request, on_event)

    def drop(self) -> None:
        """Nobody will start it: what was begun early ends."""
        if self.early is not None and self.early.draft is not None:
            self.early.on_event = _ignore
            self.early.draft.cancel()


@dataclass(slots=True)
class EarlyDrafts:
    """One conversation's.

    Args:
        imagine: What would be asked if the caller's turn ended with these words; None where nobody can say without doing it.
        is_wanted: Whether the conversation's settings ask for drafts on the caller's words, now.
    """

    llm: Drafter
    budget: BudgetController
    clock: Clock
    imagine: Callable[[str], DraftRequest | None]
    is_wanted: Callable[[], bool] = lambda: True
    _early: EarlyDraft | None = None
    _unheard: Unheard | None = None
    _tried: str | None = None
    """The words that a draft was last wanted to. One that failed, or for which nobody can say what would be asked, is not
    tried again with every window of the same pause."""
    _speculation: Speculation = field(default_factory=Speculation)

    @property
    def is_on(self) -> bool:
        """Never with a remote model: its owner is paid for what nobody hears."""
        return self.is_wanted() and self.llm.can_revise and not self.llm.info.is_remote

    def consider(self, pause: Pause) -> None:
        """The caller pauses: start a draft on their words, or revise the one there is."""
        if not self.is_on or not wants_draft(pause, self._tried):
            return
        if not self.budget.may_speculate(self.clock.now()):
            return
        self._tried = pause.words
        request, early = self.imagine(pause.words), self._early
        if request is None or (early is not None and asks_alike(request, early.request)):
            return
        if early is not None and early.has_failed:
            early = self._early = None
            self._speculation.drop()
        request = replace(request, plan=self._plan(request.plan))
        try:
            self._early = self._begin(request, early)
        except Exception:  # Whoever listens to the caller calls this: they are heard, whatever fails here.
            log.exception("conversation %s: no reply can be drafted early", request.conversation_id)
            self.drop()
            self._tried = pause.words

    def interrupted(self, draft: Draft | None, unheard: str) -> None:
        """The caller spoke over a reply: `unheard` is the end of it that they did not hear."""
        self._unheard = Unheard(draft, unheard) if draft is not None and unheard and self.llm.can_revise else None

    def take(self, request: DraftRequest) -> Beginning:
        """The turn is over and this is what a reply is wanted to: how its draft begins. Nothing is kept here any longer."""
        early, self._early, self._tried = self._early, None, None
        unheard, self._unheard = self._unheard, None
        speculation, self._speculation = self._speculation, Speculation()
        if early is None or early.has_failed:
            speculation.forgo()
            told = speculation if speculation.drafts else None
            return Beginning(self.llm, unheard=unheard, speculation=told)
        is_hit = asks_alike(request, early.request) and not early.is_stopped
        speculation.release(is_hit=is_hit)
        return Beginning(self.llm, early, is_hit, None, speculation)

    def drop(self) -> None:
        """What was drafted on is not a turn after all. What it took is told with the next one."""
        early, self._early, self._tried = self._early, None, None
        if early is not None:
            early.on_event = _ignore
            if early.draft is not None:
                early.draft.cancel()
            self._speculation.drop()

    def _begin(self, request: DraftRequest, before: EarlyDraft | None) -> EarlyDraft:
        early = EarlyDraft(request, self._count)
        if before is not None:
            early.earlier, early.steps_before = before.written, before.first_steps
        if before is not None and before.draft is not None:
            before.on_event = _ignore
            self._speculation.revising()
            early.draft = self.llm.revise(before.draft, request, early.take)
        elif self._unheard is not None:
            self._speculation.began(is_cold=False)
            early.draft = self.llm.revise(self._unheard.draft, request, early.take, unheard=self._unheard.text)
        else:
            self._speculation.began()
            early.draft = self.llm.start(request, early.take)
        return early

    def _count(self, event: DraftEvent) -> None:
        match event:
            case DraftRevised():
                self._speculation.revised(event.kept_tokens, event.forwards)
                if self._early is not None:
                    width = self._early.request.plan.canvas_width
                    self.budget.rated(event.at, event.forwards, width, is_early=True)
            case DraftStepped():
                self._speculation.stepped(has_clause=bool(event.committed_text))
                self.budget.speculated(event.at, event.compute_s / event.batch)
                self._stop_beyond_share(event.at)
            case DraftFinished():
                self._speculation.written()
            case DraftPrefilled():
                self.budget.speculated(event.at, event.compute_s)
            case DraftFailed():
                pass

    def _stop_beyond_share(self, now: float) -> None:
        early = self._early
        if early is not None and early.draft is not None and not self.budget.may_go_on(now):
            early.is_stopped = True
            early.draft.cancel()

    def _plan(self, plan: StepPlan) -> StepPlan:
        """All the steps that help and that load leaves: nobody waits yet. The turn's own plan comes when it is over."""
        budget, now = self.budget, self.clock.now()
        return replace(
            plan,
            steps_first=budget.affordable_steps(budget.clause_width, now),
            steps_rest=budget.affordable_steps(plan.canvas_width, now),
            fact_threshold=budget.settings.fact_threshold,
            is_speculative=True,
        )


def _ignore(event: DraftEvent) -> None:
    """What a draft tells that is over."""

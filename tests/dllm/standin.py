"""An engine without a model: it writes what a script says, a few tokens a round."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dllm.drafts import (
    Cell,
    CellState,
    Committed,
    DraftSpec,
    Event,
    Failed,
    Finished,
    Plan,
    Prefilled,
    Stepped,
    Usage,
)

MASK = 1


@dataclass(eq=False)
class StandInDraft:
    spec: DraftSpec
    number: int
    reply: tuple[int, ...]
    plan: Plan
    step: int = 0
    emitted: int = 0
    phase: str = "first"


@dataclass
class StandInEngine:
    """Every draft commits `piece` tokens of its script a round.

    With a gate, each round takes one permit first: a test that releases them one by one knows exactly where the engine is.
    """

    script: Callable[[DraftSpec], Sequence[int]]
    piece: int = 3
    gate: threading.Semaphore | None = None
    before_round: Callable[[], None] | None = None
    clock: Callable[[], float] = lambda: 0.0
    open_drafts: list[StandInDraft] = field(default_factory=list)
    specs: list[DraftSpec] = field(default_factory=list)
    cancelled: list[StandInDraft] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    warmed: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    rounds: int = 0
    was_submitted: threading.Event = field(default_factory=threading.Event)
    was_cancelled: threading.Event = field(default_factory=threading.Event)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    @property
    def drafts(self) -> tuple[Any, ...]:
        return tuple(self.open_drafts)

    def submit(self, spec: DraftSpec) -> Any:
        self.specs.append(spec)
        draft = StandInDraft(spec, next(self.numbers), tuple(self.script(spec)), spec.plan)
        self.open_drafts.append(draft)
        self.was_submitted.set()
        return draft

    def replan(self, draft: Any, plan: Plan) -> None:
        self.plans.append(plan)

    def cancel(self, draft: Any) -> None:
        if draft in self.open_drafts:
            self.open_drafts.remove(draft)
            self.cancelled.append(draft)
            self.was_cancelled.set()

    def warm(self, conversation: str, tokens: Sequence[int]) -> int:
        self.warmed.append((conversation, tuple(tokens)))
        return len(tokens)

    def forget(self, conversation: str) -> None:
        self.forgotten.append(conversation)

    def run_round(self) -> list[Event]:
        if self.gate is not None:
            assert self.gate.acquire(timeout=20), "the test lets no further round through"
        if self.before_round is not None:
            self.before_round()
        self.rounds += 1
        events: list[Any] = []
        for draft in list(self.open_drafts):
            events += self._advance(draft)
        return events

    def fail(self, draft: Any, error: Exception) -> Event:
        self.open_drafts.remove(draft)
        return Failed(draft, error)

    def _advance(self, draft: StandInDraft) -> list[Any]:
        events: list[Any] = []
        prompt = len(draft.spec.prompt)
        cached = min(2, prompt)
        if draft.step == 0:
            events.append(Prefilled(draft, cached, prompt - cached, 0.5))  # type: ignore[arg-type]
        draft.step += 1
        width = draft.spec.width
        reply = draft.reply[:width]
        end = min(draft.emitted + self.piece, len(reply))
        cells = tuple(
            Cell(reply[at], CellState.COMMITTED, 0.5)
            if at < end
            else Cell(reply[at], CellState.PROVISIONAL, 0.25)
            if at < min(end + self.piece, len(reply))
            else Cell(MASK, CellState.MASKED, 0.0)
            for at in range(width)
        )
        events.append(Stepped(draft, draft.step, "first", cells, end - draft.emitted, 0, 0.25, 1))  # type: ignore[arg-type]
        if end > draft.emitted:
            events.append(Committed(draft, draft.emitted, reply[draft.emitted : end], "first"))  # type: ignore[arg-type]
            draft.emitted = end
        if end == len(reply):
            self.open_drafts.remove(draft)
            usage = Usage(prompt, cached, len(reply), 1, draft.step, 0, 0, 0.5, 0.25 * draft.step)
            is_full = len(reply) == width
            reason = "canvas_full" if is_full else "end_of_turn"
            events.append(Finished(draft, reason, reply, (0.5,) * len(reply), draft.step, 0, 0, usage))  # type: ignore[arg-type]
        return events

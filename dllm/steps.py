"""Denoising steps of a company of drafts: what each wants, one or several of them, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from dllm.company import Company, Works
from dllm.costs import StepCosts
from dllm.denoise import Denoiser
from dllm.draft import Draft, Live, Pass, Work
from dllm.drafts import Cell, Event, Revised, Stepped
from dllm.outcome import Outcome, Visit
from dllm.pins import keep_room
from dllm.register import Register
from dllm.revision import with_shadow
from dllm.sampling import Guesses
from dllm.strategy import FullMask
from dllm.texts import Texts, text_of
from dllm.visits import goes_on_from, steps_before, steps_together
from dllm.window import Window


class Steps:
    """Carries out what a round's drafts want of the network.

    Args:
        most: Denoising steps between two looks at their outcome.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        company: Company,
        texts: Texts,
        register: Register,
        costs: StepCosts,
        clock: Callable[[], float],
        most: int,
    ) -> None:
        self._denoiser, self._company, self._texts, self._register = denoiser, company, texts, register
        self._costs, self._clock, self._most = costs, clock, most
        self._model, self._spec = denoiser.model, denoiser.model.spec

    def run(self, drafts: Sequence[Draft], events: list[Event]) -> None:
        """A forward over all their windows, or a few where they cannot share one."""
        works = [(draft, work) for draft in drafts if (work := self._next(draft, events)) is not None]
        for together in self._company.forwards(works):
            try:
                self._step(together, events)
            except Exception as error:
                self._step_apart(together, error, events)

    def _next(self, draft: Draft, events: list[Event]) -> Work | None:
        """What a draft wants of this round's forward; None while it stores something, or when it has just finished."""
        if draft not in self._register or draft.pending:
            return None
        try:
            draft.steps_left_now = draft.steps_left(self._clock())
            if draft.rescore is not None:
                rating = draft.rescore.next(draft, self._spec)
                if rating is not None:
                    return rating
                done, draft.rescore = draft.rescore, None
                events.append(Revised(draft, done.kept, done.asked, done.forwards, _cells(draft)))
            self._seed(draft)
            events += self._register.conclude(draft)
            work = draft.strategy.next(draft) if draft in self._register else None
            if isinstance(work, Live) and draft.spec.options.wino_threshold is not None and not draft.finishes_now:
                assert self._spec.special.mask is not None
                return with_shadow(work, self._spec.special.mask)
            return work
        except Exception as error:
            self._register.fail(draft, error, events)
            return None

    def _seed(self, draft: Draft) -> None:
        """Decide the token that the causal pass before the canvas predicts."""
        position, carry = draft.strategy.seed_position(draft), draft.strategy.carry
        if position is None or carry is None:
            return
        if draft.unplaced and keep_room(draft, position):
            return
        logits = self._model.logits(carry.unsqueeze(0)).float()
        if draft.unplaced or draft.canvas.last_pin() > position:
            logits.index_fill_(1, self._denoiser.ends, float("-inf"))
        if draft.spec.constraint is None:
            guess = draft.picker.pick(draft, logits, [position])
        else:
            draft.picker.process(draft, logits, [position])
            guess = Guesses(*draft.picker.complete(draft, logits, [position]))
        draft.canvas.commit(position, guess.tokens[0], guess.probabilities[0])

    def _step_apart(self, works: Works, error: Exception, events: list[Event]) -> None:
        """A forward failed: find out whose fault it was by running each draft alone."""
        if len(works) == 1:
            self._register.fail(works[0][0], error, events)
            return
        for draft, work in works:
            try:
                self._step([(draft, work)], events)
            except Exception as own_error:
                self._register.fail(draft, own_error, events)

    def _step(self, works: Works, events: list[Event]) -> None:
        began = self._clock()
        ready = self._company.arranged(works)
        works = ready.works
        count = self._count(works, began)
        outcomes: dict[int, Outcome | Exception] = {}
        lives = [(row, draft, work) for row, (draft, work) in enumerate(works) if isinstance(work, Live)]
        drafts = [draft for _, draft, _ in lives]
        visit: Visit | None = None
        if len(lives) == len(works):
            visit = self._denoiser.visit(
                drafts, [live for _, _, live in lives], ready.forward, ready.ids, count, ready.recorded
            )
        else:
            hidden = ready.forward(None)
            if lives:
                # As wide as these alone would be: positions are counted in it, and what is only rated may have a wider window.
                own = hidden[[row for row, _, _ in lives], : max(live.window.length for _, _, live in lives)]
                visit = self._denoiser.visit(drafts, [live for _, _, live in lives], lambda _: own, None, 1)
            for row, (draft, work) in enumerate(works):
                if isinstance(work, Pass):
                    outcomes[row] = self._absorb(draft, work, hidden[row])
        if visit is not None:
            for index, (row, draft, live) in enumerate(lives):
                outcomes[row] = visit.put(draft, index, 0)
                if not isinstance(outcomes[row], Exception):
                    self._commit(draft, live.window, live.commits)
                    if isinstance(draft.strategy, FullMask):
                        draft.strategy.keep_carry(visit.hidden[index], live)
        seconds = (self._clock() - began) / count
        for _ in range(count):
            self._costs.observe_step(len(works), max(work.window.length for _, work in works), seconds)
        self._tell(works, outcomes, seconds, events)
        if visit is not None and count > 1:
            self._replay(visit, [(draft, live) for _, draft, live in lives], began, seconds, events)

    def _replay(
        self, visit: Visit, lives: list[tuple[Draft, Live]], began: float, seconds: float, events: list[Event]
    ) -> None:
        """The further steps of a visit, as if each had had one of its own. What a draft would have done otherwise by then is dropped."""
        going = list(enumerate(lives))
        for step in range(1, len(visit.steps)):
            going = [
                (row, (draft, live))
                for row, (draft, live) in going
                if visit.goes_on(row, step - 1) and self._wants(draft, live, step, began)
            ]
            outcomes = {index: visit.put(draft, row, step) for index, (row, (draft, _)) in enumerate(going)}
            self._tell([pair for _, pair in going], outcomes, seconds, events, batch=len(lives))

    def _wants(self, draft: Draft, live: Live, step: int, began: float) -> bool:
        """Whether a draft, as it stands after some steps of a visit, would take just the step that was taken for it."""
        if draft not in self._register:
            return False
        draft.steps_left_now = draft.steps_left(began)
        return goes_on_from(draft.strategy.next(draft), live, step)

    def _count(self, works: Sequence[tuple[Draft, Work]], now: float) -> int:
        """Steps until the next visit."""
        most = self._most
        if most == 1:
            return 1
        deadline = min(draft.deadline for draft, _ in works)
        length = max(work.window.length for _, work in works)
        step_s = self._costs.load(0, len(works), length, 0).step_p95_s
        return steps_together(works, most, steps_before(deadline, now, step_s, most))

    def _tell(
        self,
        works: Sequence[tuple[Draft, Work]],
        outcomes: dict[int, Outcome | Exception],
        seconds: float,
        events: list[Event],
        batch: int | None = None,
    ) -> None:
        """The events of one step."""
        for row, (draft, work) in sorted(enumerate(works), key=lambda entry: entry[1][0].number):
            outcome = outcomes[row]
            if isinstance(outcome, Exception):
                self._register.fail(draft, outcome, events)
                continue
            draft.seconds_denoise += seconds
            if isinstance(work, Pass) and not work.is_step:
                draft.forwards_other += 1
                continue
            draft.count_step()
            draft.forced += outcome.forced
            draft.forwards_wasted += outcome.committed == 0 and isinstance(work, Live)
            events.append(
                Stepped(
                    draft,
                    draft.steps,
                    draft.phase,
                    _cells(draft),
                    outcome.committed,
                    outcome.forced,
                    seconds,
                    batch or len(works),
                )
            )
            events += self._register.conclude(draft)

    def _absorb(self, draft: Draft, work: Pass, hidden: Tensor) -> Outcome | Exception:
        before = sum(draft.canvas.is_decided(at) for at in range(draft.canvas.width))
        forced = draft.forced
        try:
            wanted = hidden[list(work.wanted)]
            final = work.absorb(wanted, self._model.logits(wanted).float())
            self._commit(draft, work.window, final)
        except Exception as error:  # this draft's alone
            return error
        after = sum(draft.canvas.is_decided(at) for at in range(draft.canvas.width))
        forced, draft.forced = draft.forced - forced, forced
        return Outcome(after - before, forced)

    def _commit(self, draft: Draft, window: Window, count: int) -> None:
        """The first `count` tokens of a window are final: their keys and values go to the draft's pages."""
        if count:
            row = self._texts.workspace.row(draft.number)
            self._texts.cache.write(text_of(draft), list(window.tokens[:count]), row, window.start)


def _cells(draft: Draft) -> tuple[Cell, ...]:
    return tuple(map(Cell, draft.canvas.tokens, draft.canvas.states, draft.canvas.confidence))

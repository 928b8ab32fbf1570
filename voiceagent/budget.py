"""How many denoising steps a reply may have, and by when: timings in, plans out, no clock and no I/O.

Voice-to-voice time is spent in stages: recognition after the endpoint, prefill of the prompt, denoising of the first clause, speech
synthesis to the first audible sample, transport. Each stage's cost is learned online as a quantile (`costs`); the plan gives denoising
whatever the others leave at their 95th percentile. Once the first clause plays, the rest of the reply has until the moment the
caller's queue runs dry. Both plans are made again after every step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from voiceagent.backends import QualityCurve, StepPlan
from voiceagent.budget_curve import quality_at, steps_for, useful_steps
from voiceagent.budget_load import LOAD_LOW, EngineLoad
from voiceagent.budget_margin import Margin
from voiceagent.budget_terms import BudgetSettings, Grant, Prediction, TurnRequest, WhenLate
from voiceagent.costs import Cost, CostModel, Stage
from voiceagent.playout import SECONDS_PER_CHAR
from voiceagent.room import Room

WORTH_ACKNOWLEDGING_S = 0.3
"""An answer that is late by less comes sooner than a caller would miss it; words in between would only delay it."""
COSTLY_COMPANY = 1.25
"""Where a step of two drafts takes so much longer than that of one, the rest of a reply gives way to first clauses. A CPU pays 1.6."""
YIELD_MARGIN_S = 0.4
"""So much earlier than the floor needs it a draft stops giving way: others may be in the same position."""
UNHEARD_YIELD_S = 1.0
"""The longest that a reply gives way of which nothing is heard yet, or which is not spoken at all."""


@dataclass(slots=True)
class BudgetController:
    """Plans turns from learned costs. One controller serves all conversations, so that they learn from each other."""

    settings: BudgetSettings = field(default_factory=BudgetSettings)
    costs: CostModel = field(default_factory=CostModel)
    curve: QualityCurve = field(default_factory=lambda: QualityCurve((), (), ()))
    running_drafts: int = 0
    """Drafts being denoised now, kept up to date by the replies."""
    first_drafts: int = 0
    """Those of them whose first clause is not written yet."""
    open_utterances: int = 0
    """Utterances being recognised now, kept up to date by those who hear them."""
    speculation: EngineLoad = field(default_factory=EngineLoad)
    margin: Margin = field(default_factory=Margin)
    room: Room = field(init=False)
    spare_s: float = 0.0
    """Time of the engine so far that fewer steps would have saved, by the clock."""

    def __post_init__(self) -> None:
        self.room = Room(self.costs)

    # --- what happened ------------------------------------------------------------------------------------------------

    def recognised(self, seconds: float, company: int, held_s: float = 0.0) -> float:
        """The words of an utterance were known so long after its end, beside those of `company - 1` others.

        For `held_s` of it nothing ran here, which is no work of the recogniser's.

        Returns:
            What of it was waiting for the others: all beyond what it takes alone; 0 where nobody knows how long that is.
        """
        seconds = max(seconds - held_s, 0.0)
        self.costs.observe(Stage.ASR, seconds, company=company)
        if company <= 1:
            return 0.0
        return max(seconds - self.costs.predict(Stage.ASR).p50, 0.0)

    def prefilled(self, now: float, compute_s: float, wall_s: float, tokens: float, company: int = 1) -> None:
        """A prompt was prefilled: `compute_s` of the engine's time, `wall_s` of its draft's."""
        self.room.load.worked(now, compute_s)
        if tokens > 0:
            self.costs.observe(Stage.PREFILL, max(wall_s, compute_s), tokens, company)

    def stepped(
        self,
        now: float,
        compute_s: float,
        wall_s: float,
        canvas_width: int,
        *,
        batch: int = 1,
        company: int = 1,
        steps_done: int = 0,
    ) -> None:
        """A draft had a step, behind `steps_done` others of its phase.

        Its forward took `compute_s` for all `batch` drafts in it, and `wall_s` have passed since the step before.
        """
        self.room.load.worked(now, compute_s / batch)
        if steps_done >= self.settings.min_steps:
            self.spare_s += compute_s / batch
        self.costs.observe(Stage.STEP, max(wall_s, compute_s), canvas_width, company)

    def speculated(self, now: float, compute_s: float) -> None:
        """An early draft has taken so much of the engine's time."""
        self.speculation.worked(now, compute_s)
        self.spare_s += compute_s

    def rated(self, now: float, forwards: int, canvas_width: int, *, is_early: bool) -> None:
        """What was written before was asked for again, in so many forwards: of an early draft, or of one that a caller waits for."""
        seconds = forwards * self.costs.predict(Stage.STEP, canvas_width).p50
        if is_early:
            self.speculated(now, seconds)
        else:
            self.room.load.worked(now, seconds)

    def may_go_on(self, now: float) -> bool:
        """Whether an early draft that has begun is still within the share of all of them."""
        return self.speculation.share(now) < self.settings.speculation_share

    def may_speculate(self, now: float) -> bool:
        """Whether an early draft may be begun: nobody waits for a first clause, the engine has time, and this is within its share."""
        has_time = self.room.load.share(now) < LOAD_LOW
        return not self.first_drafts and has_time and self.may_go_on(now)

    # --- what steps are worth -----------------------------------------------------------------------------------------

    @property
    def clause_width(self) -> int:
        """The canvas whose curve tells of first clauses: the narrowest measured, which is about as long as one. Wider ones tell of whole
        replies, most of which is denoised while the first clause plays."""
        return min(self.curve.widths, default=0)

    def useful_steps(self, canvas_width: int) -> int:
        """The most steps that the measured curve says still help at this width; `max_steps` where nothing was measured."""
        best = useful_steps(self.curve, canvas_width, self.settings.useful_gain)
        return self._within(self.settings.max_steps if best is None else best)

    def affordable_steps(self, canvas_width: int, now: float) -> int:
        """Useful steps that the engine's load leaves to one draft: steps shrink before anybody's wait grows (rule 4)."""
        floor, useful = self.settings.min_steps, self.useful_steps(canvas_width)
        return floor + math.floor((useful - floor) * self.room.for_steps(now) + 1e-9)

    def wanted_steps(self, when_late: WhenLate) -> int:
        """Steps of the first clause that this policy will not go below to be on time."""
        if when_late is WhenLate.FEWER_STEPS:
            return self.settings.min_steps
        wanted = steps_for(self.curve, self.clause_width, self.settings.wanted_quality)
        return min(self._within(wanted or self.settings.min_steps), self.useful_steps(self.clause_width))

    def _within(self, steps: int) -> int:
        return min(max(steps, self.settings.min_steps), self.settings.max_steps)

    # --- company ------------------------------------------------------------------------------------------------------

    def gives_way(self, canvas_width: int) -> bool:
        """Whether company costs so much here that drafts with time should leave the engine to those without."""
        alone = self.costs.predict(Stage.STEP, canvas_width)
        return self.costs.predict(Stage.STEP, canvas_width, 2).p50 > COSTLY_COMPANY * alone.p50

    def company(self, canvas_width: int, *, is_first: bool) -> int:
        """Drafts that share the engine with one in this phase, itself included."""
        only_first = is_first and self.gives_way(canvas_width)
        return max(self.first_drafts if only_first else self.running_drafts, 1)

    def _guests(self, canvas_width: int, company: int, steps: int, room_s: float) -> int:
        """1 where a first clause has its steps in `room_s` beside one more draft, which then need not wait for it; else 0."""
        if not self.gives_way(canvas_width):
            return 0  # Nobody waits here anyway.
        step = self.costs.predict(Stage.STEP, canvas_width, company + 1)
        return int(_fitting(room_s, step.p95) >= steps)

    # --- the first clause ---------------------------------------------------------------------------------------------

    def predict(self, request: TurnRequest) -> Prediction:
        costs, company = self.costs, request.active_drafts
        nothing = Cost(0.0, 0.0)
        has_news = request.prompt_tokens > 0
        return Prediction(
            asr=costs.predict(Stage.ASR),
            prefill=costs.predict(Stage.PREFILL, request.prompt_tokens, company) if has_news else nothing,
            step=costs.predict(Stage.STEP, request.canvas_width, company),
            tts=costs.predict(Stage.TTS, self.settings.first_clause_chars) if request.needs_audio else nothing,
            transport=costs.predict(Stage.TRANSPORT),
            spent_s=max(request.now - request.speech_end, 0.0),
            company=company,
            steps_had=request.steps_had,
        )

    def plan_turn(self, request: TurnRequest) -> Grant:
        """Grant the first clause as many steps as fit before its deadline at p95.

        Never more than the curve says still help, never fewer than the floor (design, section 5, rules 1 and 4). What a draft has had
        that was begun early counts among them and takes no time any more.
        """
        expected = self.predict(request)
        target_at = request.speech_end + request.target_s
        behind = expected.tts.p95 + expected.transport.p95
        if (written := request.written) is not None:
            self._count(request, expected)
            reason = f"the first clause is written already, in {written.in_all} step{'s' * (written.in_all != 1)}"
            is_on_time = request.now + behind <= target_at
            grant = self._grant(request, expected, max(written.steps, 1), target_at - behind, reason, is_on_time)
            known = not written.is_sure and written.in_all > 0
            quality = quality_at(self.curve, self.clause_width, written.in_all) if known else None
            return replace(grant, quality=quality, is_written=True)
        begin, had = request.now + expected.prefill.p95, request.steps_had
        wanted = max(self.wanted_steps(request.when_late), had + 1)
        fits = had + _fitting(target_at - behind - begin, expected.step.p95)
        # The margin takes none of the steps that are wanted: without them the answer counts as late, with a smaller margin it may not be.
        kept_s = min(self.margin.seconds, max(target_at - behind - begin - (wanted - had) * expected.step.p95, 0.0))
        behind += kept_s
        fits = max(had + _fitting(target_at - behind - begin, expected.step.p95), min(fits, wanted))
        useful = max(self.affordable_steps(self.clause_width, request.now), wanted)
        self._count(request, expected)
        if fits >= wanted:
            steps = min(fits, useful)
            room_ms = (target_at - behind - begin) * 1000
            reason = (
                f"all {useful} useful steps fit ({fits} would)"
                if fits >= useful
                else f"{fits - had} {'more ' * (had > 0)}steps fit in {room_ms:.0f} ms"
            )
            return self._grant(request, expected, steps, target_at - behind, reason, is_on_time=True)
        return self._late(request, expected, fits, wanted)

    def _late(self, request: TurnRequest, expected: Prediction, fits: int, wanted: int) -> Grant:
        """The target cannot be met with the steps that are wanted."""
        had, step_s = request.steps_had, expected.step.p95
        floor, useful = max(self.settings.min_steps, had + 1), max(self.useful_steps(self.clause_width), had + 1)
        behind = expected.tts.p95 + expected.transport.p95
        begin = request.now + expected.prefill.p95
        target_at = request.speech_end + request.target_s
        late_s = begin + (wanted - had) * step_s + behind - target_at
        when_late = request.when_late
        speakable = [text for text in request.acknowledgements if text.strip()] if request.needs_audio else []
        if when_late is WhenLate.ACKNOWLEDGE and speakable and late_s >= WORTH_ACKNOWLEDGING_S:
            answer_at = begin + (wanted - had) * step_s + behind
            text, audible, dry_at = self._acknowledgement(speakable, request.now, answer_at)
            steps = min(max(had + _fitting(dry_at - behind - begin, step_s), wanted), useful)
            deadline = max(dry_at - behind, begin + (steps - had) * step_s)
            reason = (
                f"{wanted} steps would be {late_s * 1000:.0f} ms late: {text!r} first, then an answer of {steps} steps"
            )
            return self._grant(
                request, expected, steps, deadline, reason, audible <= target_at, WhenLate.ACKNOWLEDGE, text
            )
        if when_late is WhenLate.ANSWER_LATER:
            patient_until = request.speech_end + self.settings.patience_s - behind
            patient = had + _fitting(patient_until - begin, step_s)
            steps = min(max(patient, floor), wanted)
            if steps > fits:
                reason = (
                    f"{steps} steps, {late_s * 1000:.0f} ms late if need be: {max(fits, 0)} fit before the deadline"
                )
                # Until patience ends no slow step takes any of them away, and as the answer is late none is added.
                deadline = max(patient_until, begin + (steps - had) * step_s)
                return self._grant(request, expected, steps, deadline, reason, False, WhenLate.ANSWER_LATER)
        steps = min(max(fits, floor), useful)
        if fits >= floor:
            reason, deadline = f"{fits} steps fit, fewer than the {wanted} wanted", target_at - behind
        else:
            # Late anyway: the deadline moves to where the floor ends, or it would take the floor's steps away again.
            reason, deadline = f"floor of {floor} steps: {fits} fit before the deadline", begin + (floor - had) * step_s
        return self._grant(request, expected, steps, deadline, reason, fits >= floor, WhenLate.FEWER_STEPS)

    def _acknowledgement(self, texts: Sequence[str], now: float, answer_at: float) -> tuple[str, float, float]:
        """The shortest text that is still being spoken when the answer comes, or the longest; when it is heard, and when it ends."""
        found = ("", 0.0, 0.0)
        for text in sorted(texts, key=len):
            cost, transport = self.costs.predict(Stage.TTS, len(text)), self.costs.predict(Stage.TRANSPORT)
            audible = now + cost.p95 + transport.p95
            # Its end is reckoned from when it probably begins, or the answer would come too late to follow it.
            found = (text, audible, now + cost.p50 + transport.p50 + SECONDS_PER_CHAR * len(text.strip()))
            if found[2] >= answer_at:
                break
        return found

    def _grant(
        self,
        request: TurnRequest,
        expected: Prediction,
        steps: int,
        deadline: float,
        reason: str,
        is_on_time: bool,
        late: WhenLate | None = None,
        acknowledgement: str | None = None,
    ) -> Grant:
        plan = StepPlan(
            canvas_width=request.canvas_width,
            steps_first=steps,
            steps_rest=self.useful_steps(request.canvas_width),
            threshold=self.settings.threshold,
            first_deadline=deadline,
            rest_deadline=None,
            fact_threshold=self.settings.fact_threshold,
            yields_until=deadline + UNHEARD_YIELD_S if self.gives_way(request.canvas_width) else None,
            first_guests=self._guests(
                request.canvas_width,
                request.active_drafts,
                steps - request.steps_had,
                deadline - request.now - expected.prefill.p95,
            ),
        )
        quality = quality_at(self.curve, self.clause_width, steps)
        return Grant(plan, reason, expected, is_on_time, quality, late, acknowledgement)

    def _count(self, request: TurnRequest, expected: Prediction) -> None:
        """Tell admission whether company alone keeps the floor from fitting, in the engine or in the recogniser before it. A recogniser that is
        slow for everybody is no reason to refuse callers.

        By medians: p95 of every stage at once is rarer than any promise, and would close the door while nearly everybody is on time.
        """
        alone = self.predict(replace(request, active_drafts=1))
        behind = expected.tts.p50 + expected.transport.p50
        room_s = request.speech_end + request.target_s - behind - request.now
        if request.written is not None:  # Nothing but the wait for the recogniser can have made it late.
            is_crowded = room_s < 0.0 <= room_s + request.recognition_wait_s
            self.room.admission.count(request.now, is_crowded=is_crowded)
            return
        floor = max(self.settings.min_steps - request.steps_had, 1)
        fits = _fitting(room_s - expected.prefill.p50, expected.step.p50)
        fits_alone = _fitting(room_s + request.recognition_wait_s - alone.prefill.p50, alone.step.p50)
        self.room.admission.count(request.now, is_crowded=fits < floor <= fits_alone)

    def replan_first(
        self,
        plan: StepPlan,
        *,
        now: float,
        step: int,
        active_drafts: int = 1,
        may_grow: bool = False,
        dry_at: float | None = None,
    ) -> StepPlan | None:
        """Make the plan of the first clause again for its remaining steps: a slow step or another caller takes some away.

        At the deadline the best complete draft is spoken: one step that commits everything is always left, and the floor is
        never undercut. With `may_grow` steps that were quicker than p95 are given back, up to those that the curve says help; a plan
        that is late already must not grow, or it would be later. With `dry_at` something else is being spoken until then, and the
        first clause is due behind it. Returns None when the plan still holds.
        """
        if dry_at is not None:
            tts = self.costs.predict(Stage.TTS, self.settings.first_clause_chars)
            plan = replace(plan, first_deadline=dry_at - tts.p95 - self.costs.predict(Stage.TRANSPORT).p95)
        if plan.first_deadline is None or step >= plan.steps_first:
            return None
        cost = self.costs.predict(Stage.STEP, plan.canvas_width, active_drafts)
        fits = max(_fitting(plan.first_deadline - now, cost.p95), 1)
        steps = max(step + fits, self.settings.min_steps)
        if may_grow:
            steps = min(steps, max(self.affordable_steps(self.clause_width, now), plan.steps_first))
        elif steps > plan.steps_first:
            steps = plan.steps_first
        guests = self._guests(plan.canvas_width, active_drafts, steps - step, plan.first_deadline - now)
        if steps == plan.steps_first and guests == plan.first_guests and dry_at is None:
            return None
        return replace(plan, steps_first=steps, first_guests=guests)

    # --- the rest -----------------------------------------------------------------------------------------------------

    def plan_rest(
        self,
        plan: StepPlan,
        *,
        now: float,
        dry_at: float,
        steps_done: int = 0,
        clause_chars: int = 60,
        active_drafts: int = 1,
    ) -> StepPlan:
        """Grant the rest of the reply the steps that fit until the caller's queue runs dry (rule 2), and never less than the floor.

        `steps_done` counts those it had already; the plan's steps count from the start of the rest.
        """
        tts = self.costs.predict(Stage.TTS, clause_chars)
        transport = self.costs.predict(Stage.TRANSPORT)
        return self._rest(plan, now, dry_at - tts.p95 - transport.p95, steps_done, active_drafts)

    def replan_rest(self, plan: StepPlan, *, now: float, steps_done: int, active_drafts: int = 1) -> StepPlan | None:
        """The same after a step, for the deadline that the rest has. None when the plan still holds or there is no deadline yet."""
        if plan.rest_deadline is None or steps_done >= plan.steps_rest:
            return None
        again = self._rest(plan, now, plan.rest_deadline, steps_done, active_drafts)
        return None if again.steps_rest == plan.steps_rest else again

    def _rest(self, plan: StepPlan, now: float, deadline: float, steps_done: int, active_drafts: int) -> StepPlan:
        floor = self.settings.min_steps
        step = self.costs.predict(Stage.STEP, plan.canvas_width, active_drafts)
        fits = max(_fitting(deadline - now, step.p95), 1 if steps_done else 0)
        most = max(self.affordable_steps(plan.canvas_width, now), steps_done + 1)
        yields_until = None
        if self.gives_way(plan.canvas_width):
            # It may wait as long as the floor still fits behind: what fits beyond is a gift of the engine's idle time.
            yields_until = deadline - max(floor - steps_done + 1, 1) * step.p95 - YIELD_MARGIN_S
        steps = min(max(steps_done + fits, floor), most)
        return replace(plan, steps_rest=steps, rest_deadline=deadline, yields_until=yields_until)


def _fitting(room_s: float, step_s: float) -> int:
    """Steps that fit into `room_s`, which may be negative."""
    # A hair of slack: 0.07 s hold seven steps of 0.01 s, whatever their floats say.
    return math.floor(room_s / max(step_s, 1e-6) + 1e-9) if room_s > 0 else 0

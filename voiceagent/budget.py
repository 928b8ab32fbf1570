"""How many denoising steps a reply may have, and by when: timings in, plans out, no clock and no I/O.

Voice-to-voice time is spent in stages: recognition after the endpoint, prefill of the prompt, denoising of the first clause, speech
synthesis to the first audible sample, transport. Each stage's cost is learned online as a quantile; the plan gives denoising
whatever the others leave at their 95th percentile. Once the first clause plays, the rest of the reply has until the moment the
caller's queue runs dry.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from voiceagent.backends import QualityCurve, StepPlan


class Stage(StrEnum):
    """What is timed. The unit of `size` differs: see each stage."""

    ASR = "asr"
    """Recognition after the end of audio; size is ignored."""
    PREFILL = "prefill"
    """Prompt tokens that the cache did not hold; size is their number."""
    STEP = "step"
    """One denoising forward; size is canvas width times the drafts that share it."""
    TTS = "tts"
    """Clause in to first audible sample out; size is the clause's characters."""
    TRANSPORT = "transport"
    """Audio made to audio handed to the socket; size is ignored."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Predicted seconds."""

    p50: float
    p95: float


@dataclass(slots=True)
class _Window:
    """The newest observations of one size class."""

    values: deque[float]

    def quantile(self, q: float) -> float:
        """Nearest-rank quantile: with few values p95 is their maximum, which is the cautious reading."""
        ordered = sorted(self.values)
        return ordered[min(math.ceil(q * len(ordered)), len(ordered)) - 1]


class CostModel:
    """Quantiles of recent stage times by size class.

    Size classes are powers of two. A class that was never seen borrows from the nearest one that was: scaled up in proportion to
    size when that one is smaller, unchanged when it is larger, so that a guess errs on the slow side.
    """

    def __init__(self, defaults: Mapping[Stage, Cost] | None = None, window: int = 128) -> None:
        if window < 1:
            raise ValueError(f"window = {window}: expected at least 1 observation")
        self._defaults = dict(DEFAULT_COSTS if defaults is None else defaults)
        self._window = window
        self._seen: dict[Stage, dict[int, _Window]] = {stage: {} for stage in Stage}

    def observe(self, stage: Stage, seconds: float, size: float = 1.0) -> None:
        """Learn one outcome. Negative and non-finite times are a caller's bug.

        Raises:
            ValueError: If `seconds` is not a finite number of at least 0.
        """
        if not (math.isfinite(seconds) and seconds >= 0.0):
            raise ValueError(f"{stage}: seconds = {seconds}: expected a finite time of at least 0")
        classes = self._seen[stage]
        key = _size_class(size)
        if key not in classes:
            classes[key] = _Window(deque(maxlen=self._window))
        classes[key].values.append(seconds)

    def predict(self, stage: Stage, size: float = 1.0) -> Cost:
        """Expected seconds for one more of this stage."""
        classes = self._seen[stage]
        if not classes:
            return self._defaults[stage]
        key = _size_class(size)
        nearest = min(classes, key=lambda seen: (abs(seen - key), seen < key))
        window = classes[nearest]
        scale = 2.0 ** max(key - nearest, 0)
        return Cost(window.quantile(0.5) * scale, window.quantile(0.95) * scale)

    def observations(self, stage: Stage) -> int:
        return sum(len(window.values) for window in self._seen[stage].values())


def _size_class(size: float) -> int:
    return max(math.ceil(math.log2(max(size, 1.0))), 0)


# Before anything is measured: rough times of the built-in models on two CPU cores, replaced by the start-up calibration.
DEFAULT_COSTS: Mapping[Stage, Cost] = {
    Stage.ASR: Cost(0.02, 0.06),
    Stage.PREFILL: Cost(0.02, 0.05),
    Stage.STEP: Cost(0.008, 0.015),
    Stage.TTS: Cost(0.01, 0.03),
    Stage.TRANSPORT: Cost(0.001, 0.003),
}


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """Limits of every plan.

    `min_steps` is the floor below which a reply is not worth hearing. `useful_gain` is the share of the quality curve's range
    that one more step must still bring. `threshold` is the commit confidence; 0.9 is Fast-dLLM's (reference, 5.2, S2).
    """

    min_steps: int = 2
    max_steps: int = 24
    threshold: float = 0.9
    useful_gain: float = 0.002
    first_clause_chars: int = 40
    """Length that the first clause is assumed to have before it is written."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_steps <= self.max_steps:
            raise ValueError(f"min_steps = {self.min_steps}: expected 1 to max_steps = {self.max_steps}")
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"threshold = {self.threshold}: expected above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan expects of each stage, kept beside what then happened."""

    asr: Cost
    prefill: Cost
    step: Cost
    tts: Cost
    transport: Cost
    spent_s: float
    """Time already gone since speech ended when the plan was made."""

    def stages(self) -> Iterable[tuple[str, Cost]]:
        yield from (("asr", self.asr), ("prefill", self.prefill), ("tts", self.tts), ("transport", self.transport))


@dataclass(frozen=True, slots=True)
class Grant:
    """A plan, why it is what it is, and what it expects."""

    plan: StepPlan
    reason: str
    prediction: Prediction
    is_on_time: bool
    """Whether the plan fits its deadline at p95; False means the floor was granted anyway."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What the controller must know to plan a turn. Times are readings of one clock."""

    now: float
    speech_end: float
    target_s: float
    prompt_tokens: float
    """Prompt tokens that are probably not cached yet."""
    canvas_width: int
    active_drafts: int = 1
    """Drafts that will share each forward, this one included."""
    needs_audio: bool = True


@dataclass(slots=True)
class BudgetController:
    """Plans turns from learned costs. One controller serves all conversations, so that they learn from each other."""

    settings: BudgetSettings = field(default_factory=BudgetSettings)
    costs: CostModel = field(default_factory=CostModel)
    curve: QualityCurve = field(default_factory=lambda: QualityCurve((), (), ()))
    running_drafts: int = 0
    """Drafts being denoised now, kept up to date by the replies."""

    def useful_steps(self, canvas_width: int) -> int:
        """The most steps that the measured curve says still help at this width; `max_steps` where nothing was measured."""
        if not self.curve.quality:
            return self.settings.max_steps
        row = min(range(len(self.curve.widths)), key=lambda i: abs(self.curve.widths[i] - canvas_width))
        quality = self.curve.quality[row]
        best = self.curve.steps[0]
        for index in range(1, len(quality)):
            gained = quality[index] - quality[index - 1]
            steps = self.curve.steps[index] - self.curve.steps[index - 1]
            if gained > self.settings.useful_gain * steps:
                best = self.curve.steps[index]
        return min(max(best, self.settings.min_steps), self.settings.max_steps)

    def predict(self, request: TurnRequest) -> Prediction:
        costs = self.costs
        nothing = Cost(0.0, 0.0)
        return Prediction(
            asr=costs.predict(Stage.ASR),
            prefill=costs.predict(Stage.PREFILL, request.prompt_tokens) if request.prompt_tokens > 0 else nothing,
            step=costs.predict(Stage.STEP, request.canvas_width * request.active_drafts),
            tts=costs.predict(Stage.TTS, self.settings.first_clause_chars) if request.needs_audio else nothing,
            transport=costs.predict(Stage.TRANSPORT),
            spent_s=max(request.now - request.speech_end, 0.0),
        )

    def plan_turn(self, request: TurnRequest) -> Grant:
        """Grant the first clause as many steps as fit before its deadline at p95.

        Never more than the curve says still help, never fewer than the floor (design, section 5, rules 1 and 4).
        """
        expected = self.predict(request)
        first_deadline = request.speech_end + request.target_s - expected.tts.p95 - expected.transport.p95
        room_s = first_deadline - request.now - expected.prefill.p95
        fits = math.floor(room_s / max(expected.step.p95, 1e-6)) if room_s > 0 else 0
        useful = self.useful_steps(request.canvas_width)
        floor = self.settings.min_steps
        steps = min(max(fits, floor), useful)
        if fits < floor:
            # Late anyway: the deadline moves to where the floor ends, or it would take the floor's steps away again.
            first_deadline = request.now + expected.prefill.p95 + floor * expected.step.p95
            reason = f"floor of {floor} steps: {fits} fit before the deadline"
        elif fits >= useful:
            reason = f"all {useful} useful steps fit ({fits} would)"
        else:
            reason = f"{fits} steps fit in {room_s * 1000:.0f} ms"
        plan = StepPlan(
            canvas_width=request.canvas_width,
            steps_first=steps,
            steps_rest=useful,
            threshold=self.settings.threshold,
            first_deadline=first_deadline,
            rest_deadline=None,
        )
        return Grant(plan, reason, expected, fits >= floor)

    def replan_first(self, plan: StepPlan, *, now: float, step: int, active_drafts: int = 1) -> StepPlan | None:
        """Cut the first clause's remaining steps when time has gone faster than planned.

        At the deadline the best complete draft is spoken: one step that commits everything is always left, and the floor is
        never undercut. Returns None when the plan still holds.
        """
        if plan.first_deadline is None or step >= plan.steps_first:
            return None
        cost = self.costs.predict(Stage.STEP, plan.canvas_width * active_drafts)
        fits = max(math.floor((plan.first_deadline - now) / max(cost.p95, 1e-6)), 1)
        steps = max(step + fits, self.settings.min_steps)
        return None if steps >= plan.steps_first else replace(plan, steps_first=steps)

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
        step = self.costs.predict(Stage.STEP, plan.canvas_width * active_drafts)
        tts = self.costs.predict(Stage.TTS, clause_chars)
        transport = self.costs.predict(Stage.TRANSPORT)
        deadline = dry_at - tts.p95 - transport.p95
        fits = math.floor(max(deadline - now, 0.0) / max(step.p95, 1e-6))
        useful = self.useful_steps(plan.canvas_width)
        return replace(
            plan, steps_rest=min(max(steps_done + fits, self.settings.min_steps), useful), rest_deadline=deadline
        )

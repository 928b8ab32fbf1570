"""What a plan is asked with and what it says: the limits, the request, the prediction and the grant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from voiceagent.backends import StepPlan
from voiceagent.costs import Cost


class WhenLate(StrEnum):
    """What happens when the target cannot be met with as many steps as are wanted."""

    FEWER_STEPS = "fewer_steps"
    """Answer as early as the floor allows."""
    ACKNOWLEDGE = "acknowledge"
    """Say something short in time, and answer behind it with the steps that its speech leaves room for."""
    ANSWER_LATER = "answer_later"
    """Take the steps that are wanted, as long as the caller's patience lasts."""


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """Limits of every plan.

    `min_steps` is the floor below which a reply is not worth hearing. `useful_gain` is the share of the quality curve's range
    that one more step must still bring. `threshold` is the commit confidence; 0.9 is Fast-dLLM's (reference, 5.2, S2). Figures
    and names wait for `fact_threshold`. `wanted_quality` is what `WhenLate` holds on to where it is not `FEWER_STEPS`.
    """

    min_steps: int = 2
    max_steps: int = 24
    threshold: float = 0.9
    fact_threshold: float = 0.97
    useful_gain: float = 0.002
    wanted_quality: float = 0.95
    patience_s: float = 2.0
    """From the end of speech: the latest answer under `ANSWER_LATER`."""
    first_clause_chars: int = 40
    """Length that the first clause is assumed to have before it is written."""
    speculation_share: float = 0.25
    """Share of the engine's time that all callers' early drafts may take."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_steps <= self.max_steps:
            raise ValueError(f"min_steps = {self.min_steps}: expected 1 to max_steps = {self.max_steps}")
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"threshold = {self.threshold}: expected above 0 and at most 1")
        if not self.threshold <= self.fact_threshold <= 1.0:
            raise ValueError(f"fact_threshold = {self.fact_threshold}: expected threshold = {self.threshold} to 1")
        if not 0.0 <= self.wanted_quality <= 1.0:
            raise ValueError(f"wanted_quality = {self.wanted_quality}: expected 0 to 1")
        if self.patience_s <= 0.0:
            raise ValueError(f"patience_s = {self.patience_s}: expected seconds above 0")
        if not 0.0 < self.speculation_share <= 1.0:
            raise ValueError(f"speculation_share = {self.speculation_share}: expected above 0 and at most 1")


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
    company: int = 1
    """Drafts that were expected to share the engine, this one included."""
    steps_had: int = 0
    """Steps that the draft had had when the plan was made, which counts them too."""

    def stages(self) -> Iterable[tuple[str, Cost]]:
        yield from (("asr", self.asr), ("prefill", self.prefill), ("tts", self.tts), ("transport", self.transport))


@dataclass(frozen=True, slots=True)
class Grant:
    """A plan, why it is what it is, and what it expects."""

    plan: StepPlan
    reason: str
    prediction: Prediction
    is_on_time: bool
    """Whether the first words fit the target at p95: those of the answer, or of the acknowledgement before it."""
    quality: float | None
    """What the curve expects of the first clause; None where it says nothing: of one that was sure before its steps were over."""
    late: WhenLate | None = None
    """What was done because the steps that are wanted do not fit; None when they do."""
    acknowledgement: str | None = None
    """To be spoken at once, before the answer."""
    is_written: bool = False
    """The first clause is there already."""


@dataclass(frozen=True, slots=True)
class Written:
    """A first clause that is there before it is asked for."""

    steps: int
    """That its draft has had, which is what a plan counts."""
    in_all: int
    """With those of the drafts before it whose words it kept."""
    is_sure: bool = False
    """It ended by confidence, with steps left: the curve, which tells of steps that were all taken, says nothing of it."""


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
    """Drafts that will share the engine, this one included."""
    recognition_wait_s: float = 0.0
    """Part of the time that has passed: what recognition took longer because of other callers, as `recognised` says."""
    written: Written | None = None
    """Where the first clause is written already, by a draft that was begun early."""
    steps_had: int = 0
    """Steps that such a draft has had whose first clause is not there yet: it needs one more at least."""
    needs_audio: bool = True
    when_late: WhenLate = WhenLate.FEWER_STEPS
    acknowledgements: Sequence[str] = ()

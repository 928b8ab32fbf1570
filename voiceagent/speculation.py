"""Drafting a reply before the caller's turn is over: when it is worth it, and what came of it. Pure.

While the caller pauses, a draft is kept on what they have said so far. When the words change it is revised; when the turn ends it is released:
as it stands where its question was the right one (a *hit*), revised once more where it was nearly (*repaired*), and thrown away where
hardly a word of it fits (*wasted*). Drafting early costs the engine's time only, which other callers may need more: it has a
bounded share of it, and none while somebody waits for a first clause.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from voiceagent.backends import DraftRequest, StepPlan

_NO_PLAN = StepPlan(canvas_width=1, steps_first=1, steps_rest=1, threshold=1.0)

SETTLE_S = 0.03
"""The words must have stood for so long, one window of the voice detector: a recogniser that changes its mind does so in a burst."""
LATE_S = 0.15
"""A judge of the words who has not answered by then is not waited for."""
UNLIKELY = 0.1
"""Words less complete than this go on, mostly: nothing is drafted on them until the pause is long."""
LONG_PAUSE_S = 0.5
"""A pause that may be the end whatever the words say."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause in the caller's turn, as far as it is known."""

    words: str
    """What was said so far."""
    silence_s: float
    stable_s: float
    """Since the recogniser last changed its mind."""
    completeness: float | None = None
    """Probability that nothing follows; None where nobody says so, or not yet."""
    is_judged: bool = False
    """An answer to that is on its way."""


def wants_draft(pause: Pause, drafted: str | None) -> bool:
    """Whether a reply to these words is worth starting, or revising where there is one to the words `drafted`."""
    if not pause.words.strip() or pause.stable_s < SETTLE_S:
        return False
    if drafted is not None and heard_alike(pause.words, drafted):
        return False
    if pause.silence_s >= LONG_PAUSE_S:
        return True
    if pause.is_judged and pause.silence_s < LATE_S:
        return False
    return pause.completeness is None or pause.completeness >= UNLIKELY


def heard_alike(one: str, other: str) -> bool:
    """Whether two transcripts are the same words: recognisers change case and punctuation without having heard anything else."""
    return _heard(one) == _heard(other)


def asks_alike(one: DraftRequest, other: DraftRequest) -> bool:
    """Whether a reply to one request is one to the other: all that the model is told and may do is the same, plans aside."""
    return _asked(one) == _asked(other)


def _asked(request: DraftRequest) -> DraftRequest:
    turns = tuple(replace(turn, text=_heard(turn.text)) if turn.role == "user" else turn for turn in request.turns)
    return replace(request, turns=turns, plan=replace(_NO_PLAN, canvas_width=request.plan.canvas_width))


_SILENT = r"[.,;:!?…\"“”«»()\[\]–—-]"
"""Marks that nobody says. Others are words: 20% is not 20, nor is $5 five of something else."""
_PUNCTUATION = re.compile(rf"(?<!\d){_SILENT}(?!\d)|(?<=\d){_SILENT}(?!\d)|(?<!\d)(?!-){_SILENT}(?=\d)")
"""What stands between two figures stays, and a minus before one: 4.50 is not 450, and -5 is not 5."""


def _heard(text: str) -> str:
    """The words of a transcript."""
    return " ".join(_PUNCTUATION.sub(" ", text.casefold()).split())


# --- what came of it --------------------------------------------------------------------------------------------------


class Outcome(StrEnum):
    HIT = "hit"
    """The turn ended with the words that were drafted on: the draft was released as it stood."""
    REPAIRED = "repaired"
    """Other words came; what still fitted was kept."""
    WASTED = "wasted"
    """Nothing that was drafted early was used."""


@dataclass(slots=True)
class Speculation:
    """One turn's early drafts. Steps are forwards of the model that this caller's draft took part in, those that ask for kept words
    included."""

    outcome: Outcome = Outcome.WASTED
    drafts: int = 0
    """Drafts that were begun or revised before the turn was over."""
    early_steps: int = 0
    """Steps until then."""
    wasted_steps: int = 0
    """Those of them that came to nothing."""
    late_steps: int = 0
    """Steps after it, until the first clause was written."""
    cold_steps: int | None = None
    """Steps for the first clause of the draft that was begun from nothing; None where none got there."""
    _at_stake: int = 0
    """Steps of a draft that is being revised: wasted if hardly anything of it is kept."""
    _standing: int = 0
    """Steps of the draft as it is."""
    _is_cold: bool = True
    _has_clause: bool = False
    _is_released: bool = False

    @property
    def saved_steps(self) -> int | None:
        """Steps that the caller did not wait for."""
        if self.cold_steps is None:
            return None
        return 0 if self.outcome is Outcome.WASTED else max(self.cold_steps - self.late_steps, 0)

    def began(self, *, is_cold: bool = True) -> None:
        """A draft was begun: from nothing, or from what was not heard of an earlier reply."""
        self.drop()
        self.drafts += 1
        self._is_cold, self._has_clause = is_cold, False

    def revising(self) -> None:
        """A draft is revised: what it has taken so far is at stake."""
        if not self._is_released:
            self.drafts += 1
        self._at_stake, self._standing = self._at_stake + self._standing, 0
        self._is_cold = self._has_clause = False

    def revised(self, kept: int, forwards: int) -> None:
        """`kept` of its tokens stayed."""
        if kept:
            self._standing, self._at_stake = self._at_stake, 0
            if self._is_released and self.outcome is Outcome.WASTED:
                self.outcome = Outcome.REPAIRED
        self._count(forwards, is_useful=kept > 0)

    def stepped(self, *, has_clause: bool) -> None:
        """A step was taken; `has_clause` once the first clause is written."""
        # A draft that is written again without a word on what was kept of it kept nothing.
        self.wasted_steps += self._at_stake
        self._at_stake = 0
        self._count(1, is_useful=True)
        if has_clause:
            self.written()

    def written(self) -> None:
        """The first clause is written."""
        if not self._has_clause and self._is_cold and not self._is_released:
            self.cold_steps = self._standing
        self._has_clause = True

    def drop(self) -> None:
        """The draft was thrown away."""
        self.wasted_steps += self._standing + self._at_stake
        self._standing = self._at_stake = 0

    def release(self, *, is_hit: bool) -> None:
        """The turn is over. A draft that is no hit is revised now."""
        self._is_released = True
        if is_hit:
            self.outcome = Outcome.HIT
        else:
            self.revising()

    def forgo(self) -> None:
        """The turn is over and no draft is there any more: the reply begins from nothing, and all its steps are late."""
        self.drop()
        self._is_released, self._has_clause, self.cold_steps = True, False, None

    def as_json(self) -> dict[str, object]:
        return {
            "outcome": self.outcome.value,
            "drafts": self.drafts,
            "early_steps": self.early_steps,
            "wasted_steps": self.wasted_steps,
            "late_steps": self.late_steps,
            "cold_steps": self.cold_steps,
            "saved_steps": self.saved_steps,
        }

    def _count(self, forwards: int, *, is_useful: bool) -> None:
        if self._is_released:
            self.late_steps += 0 if self._has_clause else forwards
            return
        self.early_steps += forwards
        if is_useful:
            self._standing += forwards
        else:
            self.wasted_steps += forwards

"""The timeline of a turn: what was predicted, what happened, and which stage ate a missed deadline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from voiceagent.backends import INPUT_RATE_HZ, DraftRevised, StepPlan
from voiceagent.budget_terms import Grant, Prediction, WhenLate
from voiceagent.costs import Cost
from voiceagent.endpoint import EndedBy
from voiceagent.repair import Repair
from voiceagent.speculation import Speculation
from voiceagent.vad import WINDOW_SAMPLES

WORTH_TELLING_S = 0.005
"""A wait that is shorter belongs to the stage behind it."""
WINDOW_S = WINDOW_SAMPLES / INPUT_RATE_HZ
"""Whether a turn is over is decided once per window: silence alone takes up to one longer than it asks for."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    step: int
    phase: str
    at: float
    compute_s: float
    committed_chars: int
    forced_tokens: int
    batch: int
    wall_s: float = 0.0
    """Since the step before, or the prefill: what is beyond `compute_s` was waiting for other drafts."""
    draft: int = 0
    """Drafts of the turn before this one: each ended in a call."""


@dataclass(slots=True)
class ToolRecord:
    """A call and what became of it: `running`, then `ok`, `failed`, `timed_out`, `cancelled` or `refused`; or `client`, which runs its own."""

    name: str
    start: float
    end: float | None = None
    outcome: str = "running"
    written_from: float | None = None
    """When the draft that is the call began; None where the reply had words before it, whose way to the caller it is not on."""
    expected: Cost | None = None
    """What that draft's first clause was expected to take: nobody knows how long a call will be."""
    reasons: list[str] = field(default_factory=list)
    """Of that draft's plans."""
    resumed: float | None = None
    """When the reply went on."""


@dataclass(slots=True)
class TurnTrace:
    """Marks of one turn as readings of the conversation's clock; `origin` is the end of speech, or the request of a typed turn."""

    turn: int
    origin: float
    target_s: float
    is_spoken: bool
    transcript: str = ""
    repair: Repair | None = None
    """Words of it that were probably misheard."""
    reply: str = ""
    status: str = "completed"
    reason: str | None = None
    marks: dict[str, float] = field(default_factory=dict)
    steps: list[StepRecord] = field(default_factory=list)
    plans: list[tuple[float, StepPlan, str]] = field(default_factory=list)
    tools: list[ToolRecord] = field(default_factory=list)
    prediction: Prediction | None = None
    ended_by: EndedBy | None = None
    """Why the caller's turn was over; None for one that was typed."""
    asr_expected: Cost | None = None
    """What recognition was expected to take when the turn ended; the prediction of the plan is made after it."""
    asr_waited_s: float = 0.0
    """What it took longer because of other callers."""
    planned_on_time: bool | None = None
    """Whether the first plan fitted its deadline at p95; None before there was one."""
    quality: float | None = None
    """What the curve expects of the first clause, by the first plan; None where it cannot say."""
    is_written: bool = False
    """The first clause was there before the plan, by an early draft."""
    late: WhenLate | None = None
    """What was done because the steps that are wanted did not fit."""
    acknowledgement: str | None = None
    echo_windows: int = 0
    """Windows of the microphone whose voice was the agent's own."""
    speculation: Speculation | None = None
    """What was drafted before the turn was over; None where nothing was."""
    guarded_drafts: int = 0
    """Drafts that did not converge by themselves and were finished greedily or held open."""
    revised: DraftRevised | None = None
    """What was kept of text that was there when the reply began: an early draft's, or what was not heard of the reply before."""

    _has_spoken: bool = False
    """A draft has said words and called a tool behind them: those were the turn's first, whatever later drafts write."""

    @property
    def _has_words(self) -> bool:
        """Whether anything is said that a draft has written."""
        return "first_clause" in self.marks and self.acknowledgement is None

    def planned(self, grant: Grant) -> None:
        """A draft has got its plan. The turn's is that of the draft which says its first words."""
        if self._has_spoken:
            return
        self.prediction, self.planned_on_time = grant.prediction, grant.is_on_time
        self.quality, self.late = grant.quality, grant.late
        self.is_written = grant.is_written

    def acknowledged(self, text: str, at: float) -> None:
        """Something is said before the answer, which could not be there in time."""
        self.acknowledgement = text
        self.mark("acknowledged", at)

    def mark(self, name: str, at: float) -> None:
        """Remember the first time something happened."""
        self.marks.setdefault(name, at)

    def adopted(self, at: float, plan: StepPlan, reason: str) -> None:
        """A plan was made, or made again."""
        if self._has_spoken:
            self.tools[-1].reasons.append(reason)
        else:
            self.plans.append((at, plan, reason))

    def called(self, record: ToolRecord) -> None:
        """A draft has ended in a call: unless it has said something before, all that it took was writing it."""
        self.tools.append(record)
        if self._has_words:
            self._has_spoken = True
            return
        expected = self._expected_first()
        record.written_from = self.marks.get("draft_start")
        if expected is not None and self.prediction is not None:
            prefill = self.prediction.prefill
            record.expected = Cost(prefill.p50 + expected.p50, prefill.p95 + expected.p95)
        record.reasons = [reason for _, _, reason in self.plans]
        self.plans = []
        for name in ("draft_start", "prefill", "draft_done"):
            self.marks.pop(name, None)

    def begin_again(self, at: float) -> None:
        """A tool has answered and the reply is written now."""
        self.marks["tools_done"] = at
        self.tools[-1].resumed = at

    def _expected_first(self) -> Cost | None:
        """What denoising the first clause was expected to take when its plan was made: of a draft that was begun early, what was left of it."""
        if self.prediction is None or not self.plans:
            return None
        left, step = self.plans[0][1].steps_first - self.prediction.steps_had, self.prediction.step
        steps = 0 if self.is_written else left
        return Cost(step.p50 * steps, step.p95 * steps)

    @property
    def latency_s(self) -> float | None:
        """Origin to first audio handed to the transport. Not voice-to-voice: that is measured at the caller."""
        at = self.marks.get("first_audio")
        return None if at is None else at - self.origin

    def stages(self) -> list[dict[str, object]]:
        """The way from the origin to the first audio without a gap, each stage with its prediction.

        A turn with tools has `call` and `tools` for each of them that came before its first words; `wait` is what no stage accounts for
        before a draft begins: words of other turns that are not known yet, tools of the reply before, an event loop that is busy.
        """
        found: list[dict[str, object]] = []
        at = self.origin
        for name, end, cost in self._ends():
            if end is None or (name == "wait" and end - at < WORTH_TELLING_S):
                continue
            end = max(end, at)
            found.append(
                {
                    "name": name,
                    "start_ms": self._ms(at),
                    "end_ms": self._ms(end),
                    "took_ms": round((end - at) * 1000, 2),
                    "predicted_p50_ms": None if cost is None else round(cost.p50 * 1000, 2),
                    "predicted_p95_ms": None if cost is None else round(cost.p95 * 1000, 2),
                }
            )
            at = end
        return found

    def _ends(self) -> Iterator[tuple[str, float | None, Cost | None]]:
        """Each stage in order: its name, when it ended if it did, and what was expected of it."""
        marks = self.marks
        expected: dict[str, Cost] = dict(self.prediction.stages()) if self.prediction else {}
        yield "endpoint", marks.get("endpoint"), None
        yield "asr", marks.get("asr_final"), self.asr_expected or expected.get("asr")
        first_words = marks.get("first_clause", math.inf)
        for tool in self.tools:
            if tool.written_from is None or tool.start > first_words:
                break
            yield "wait", tool.written_from, None
            yield "call", tool.start, tool.expected
            # Something may have been said while it ran.
            known = [end for end in (tool.resumed, first_words) if end is not None and end < math.inf]
            yield "tools", min(known, default=None), None
        if self.acknowledgement is None:
            yield "wait", marks.get("draft_start"), None
            yield "prefill", marks.get("prefill"), expected.get("prefill")
            yield "denoise_first", marks.get("first_clause"), self._expected_first()
        else:  # What was said first was no draft's.
            yield "wait", marks.get("first_clause"), None
        yield "tts", marks.get("tts_audio"), expected.get("tts")
        yield "transport", marks.get("first_audio"), expected.get("transport")

    def missed_deadline(self) -> Mapping[str, object] | None:
        """Which stage made the first audio come after the target, and why.

        It is the stage that exceeded its median prediction most. The median, not p95: on a machine that has been slow for a while p95 is
        slow too, and would excuse the stage that eats the time. When that explains less than a quarter of the delay, all took about what
        they usually take, and the longest of them is named. The end of a turn has no prediction: what silence alone would have taken stands for it.
        """
        latency = self.latency_s
        if latency is None or latency <= self.target_s:
            return None
        late_ms = (latency - self.target_s) * 1000
        worst, excess_ms, longest, most_ms = "endpoint", 0.0, "endpoint", 0.0
        for stage in self.stages():
            name, took_ms, usual_ms = str(stage["name"]), stage["took_ms"], stage["predicted_p50_ms"]
            assert isinstance(took_ms, float)
            if took_ms > most_ms:
                longest, most_ms = name, took_ms
            if usual_ms is None and name in ("tools", "wait"):
                usual_ms = 0.0  # Nobody can say how long a tool takes; the target holds for replies without one.
            if name == "endpoint" and self.ended_by is not None and self.ended_by.silence_alone_s is not None:
                usual_ms = (self.ended_by.silence_alone_s + WINDOW_S) * 1000
            if isinstance(usual_ms, float) and took_ms - usual_ms > excess_ms:
                worst, excess_ms = name, took_ms - usual_ms
        if excess_ms >= late_ms / 4:
            found, cause = worst, self._cause(worst, excess_ms)
        elif self._was_planned_short():
            found, cause, excess_ms = longest, "floor", 0.0
        else:
            found, cause, excess_ms = longest, "endpoint" if longest == "endpoint" else "usual", 0.0
        return {"stage": found, "late_ms": round(late_ms, 2), "excess_ms": round(excess_ms, 2), "cause": cause}

    def _was_planned_short(self) -> bool:
        """Whether there was time when the first clause was planned, and too little for its fewest steps."""
        if self.planned_on_time is not False or self.is_written or not self.plans:
            return False
        return self.plans[0][0] < self.origin + self.target_s

    def _cause(self, stage: str, excess_ms: float) -> str:
        """Why a stage took longer than usual: `slow`, `words`, `company`, `stall`, `tool` or `wait`."""
        own, calls = self.draft, stage == "call"
        first = [
            step for step in self.steps if step.phase == "first" and (step.draft < own if calls else step.draft == own)
        ]
        if stage in ("tools", "wait"):
            return "tool" if stage == "tools" else "wait"
        if stage == "endpoint" and self._held_open_s() * 1000 > excess_ms / 2:
            return "words"
        if stage == "asr" and self.asr_waited_s * 1000 > excess_ms / 2:
            return "company"
        if stage in ("denoise_first", "call") and first:
            waited_ms = sum(max(record.wall_s - record.compute_s, 0.0) for record in first) * 1000
            if waited_ms > excess_ms / 2 or max(record.batch for record in first) > 2 * self._expected_company():
                return "company"
            if len(first) > 1 and max(record.compute_s for record in first) * 1000 > excess_ms / 2:
                return "stall"
        return "slow"

    def _held_open_s(self) -> float:
        """Silence beyond what would have ended the turn without its words."""
        ended_by = self.ended_by
        if ended_by is None or ended_by.silence_s is None or ended_by.silence_alone_s is None:
            return 0.0
        return ended_by.silence_s - ended_by.silence_alone_s

    @property
    def draft(self) -> int:
        """Which of the turn's drafts says its first words."""
        return sum(tool.written_from is not None for tool in self.tools)

    def _expected_company(self) -> int:
        return 1 if self.prediction is None else self.prediction.company

    def as_json(self) -> dict[str, object]:
        """Times in milliseconds from the origin."""
        names = {"draft_start", "tts_audio"}
        marks = [(name, at) for name, at in self.marks.items() if name not in names]
        marks += [(f"step {record.step}", record.at) for record in self.steps]
        if self.is_spoken:
            marks.append(("speech_end", self.origin))
        plan = self.plans[-1][1] if self.plans else None
        return {
            "turn": self.turn,
            "transcript": self.transcript,
            "repair": None if self.repair is None else self.repair.as_json(),
            "repair_missed": None if self.repair is None else self.repair.missed,
            "reply": self.reply,
            "status": self.status,
            "reason": self.reason,
            "target_ms": round(self.target_s * 1000, 2),
            "origin": "speech_end" if self.is_spoken else "request",
            "ended_by": None if self.ended_by is None else self.ended_by.as_json(),
            "marks": [{"name": name, "at_ms": self._ms(at)} for name, at in sorted(marks, key=lambda mark: mark[1])],
            "stages": self.stages(),
            "echo_windows": self.echo_windows,
            "plan": None
            if plan is None
            else {
                "draft": self.draft,
                "canvas_width": plan.canvas_width,
                "steps_first": plan.steps_first,
                "steps_rest": plan.steps_rest,
                "granted_first": self.plans[0][1].steps_first,
                "granted_rest": plan.steps_rest,
                "threshold": plan.threshold,
                "first_deadline_ms": None if plan.first_deadline is None else self._ms(plan.first_deadline),
                "rest_deadline_ms": None if plan.rest_deadline is None else self._ms(plan.rest_deadline),
                "on_time": self.planned_on_time,
                "late": None if self.late is None else self.late.value,
                "acknowledgement": self.acknowledgement,
                "quality": None if self.quality is None else round(self.quality, 4),
                "company": self._expected_company(),
                "spent_ms": self._ms(self.plans[0][0]),
                "written_already": self.is_written,
                "reasons": [reason for _, _, reason in self.plans],
            },
            "steps": [
                {
                    "step": record.step,
                    "draft": record.draft,
                    "phase": record.phase,
                    "at_ms": self._ms(record.at),
                    "compute_ms": round(record.compute_s * 1000, 2),
                    "waited_ms": round(max(record.wall_s - record.compute_s, 0.0) * 1000, 2),
                    "committed": record.committed_chars,
                    "forced": record.forced_tokens,
                    "batch": record.batch,
                }
                for record in self.steps
            ],
            "guarded_drafts": self.guarded_drafts,
            "speculation": None if self.speculation is None else self.speculation.as_json(),
            "revised": None
            if self.revised is None
            else {
                "kept_tokens": self.revised.kept_tokens,
                "asked_tokens": self.revised.asked_tokens,
                "forwards": self.revised.forwards,
            },
            "tools": [
                {
                    "name": record.name,
                    "start_ms": self._ms(record.start),
                    "end_ms": None if record.end is None else self._ms(record.end),
                    "outcome": record.outcome,
                    "reasons": list(record.reasons),
                }
                for record in self.tools
            ],
            "server_latency_ms": None if self.latency_s is None else round(self.latency_s * 1000, 2),
            "missed_deadline": self.missed_deadline(),
        }

    def _ms(self, at: float) -> float:
        return round((at - self.origin) * 1000, 2)

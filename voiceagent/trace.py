"""The timeline of a turn: what was predicted, what happened, and which stage ate a missed deadline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from voiceagent.backends import DraftRevised, StepPlan
from voiceagent.budget_terms import Grant, Prediction, WhenLate
from voiceagent.costs import Cost
from voiceagent.endpoint import EndedBy
from voiceagent.repair import Repair
from voiceagent.speculation import Speculation


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


@dataclass(slots=True)
class ToolRecord:
    """A call and what became of it: `running`, then `ok`, `failed`, `timed_out`, `cancelled` or `refused`; or `client`, which runs its own."""

    name: str
    start: float
    end: float | None = None
    outcome: str = "running"


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
    """What the curve expects of the first clause, by the first plan."""
    late: WhenLate | None = None
    """What was done because the steps that are wanted did not fit."""
    acknowledgement: str | None = None
    echo_windows: int = 0
    """Windows of the microphone whose voice was the agent's own."""
    speculation: Speculation | None = None
    """What was drafted before the turn was over; None where nothing was."""
    revised: DraftRevised | None = None
    """What was kept of text that was there when the reply began: an early draft's, or what was not heard of the reply before."""

    def planned(self, grant: Grant) -> None:
        """A draft has got its plan; that of the last draft counts."""
        self.prediction, self.planned_on_time = grant.prediction, grant.is_on_time
        self.quality, self.late = grant.quality, grant.late

    def acknowledged(self, text: str, at: float) -> None:
        """Something is said before the answer, which could not be there in time."""
        self.acknowledgement = text
        self.mark("acknowledged", at)

    def mark(self, name: str, at: float) -> None:
        """Remember the first time something happened."""
        self.marks.setdefault(name, at)

    def begin_again(self, at: float) -> None:
        """A tool has answered and the reply is written now: the stages before its first words are those of this draft."""
        self.marks["tools_done"] = at
        if "first_clause" not in self.marks:
            for name in ("draft_start", "prefill", "draft_done"):
                self.marks.pop(name, None)

    @property
    def latency_s(self) -> float | None:
        """Origin to first audio handed to the transport. Not voice-to-voice: that is measured at the caller."""
        at = self.marks.get("first_audio")
        return None if at is None else at - self.origin

    def stages(self) -> list[dict[str, object]]:
        """The critical path to the first audio, each stage with its prediction."""
        expected: dict[str, Cost] = dict(self.prediction.stages()) if self.prediction else {}
        if self.asr_expected is not None:
            expected["asr"] = self.asr_expected
        if self.prediction and self.plans:
            steps = self.plans[0][1].steps_first
            step = self.prediction.step
            expected["denoise_first"] = Cost(step.p50 * steps, step.p95 * steps)
        path = (
            ("endpoint", "origin", "endpoint"),
            ("asr", "endpoint", "asr_final"),
            ("tools", "tools_start", "tools_covered" if self.acknowledgement else "tools_done"),
            # What was said first was no draft's.
            *(
                ()
                if self.acknowledgement
                else (("prefill", "draft_start", "prefill"), ("denoise_first", "prefill", "first_clause"))
            ),
            ("tts", "first_clause", "tts_audio"),
            ("transport", "tts_audio", "first_audio"),
        )
        known = {"origin": self.origin, **self.marks}
        if self.tools:
            known["tools_start"] = self.tools[0].start
            if (covered := self.marks.get("acknowledged")) is not None and covered >= self.tools[0].start:
                known["tools_covered"] = covered  # What was said first did not wait for the result.
        found: list[dict[str, object]] = []
        for name, start, end in path:
            if start in known and end in known:
                cost = expected.get(name)
                found.append(
                    {
                        "name": name,
                        "start_ms": self._ms(known[start]),
                        "end_ms": self._ms(known[end]),
                        "took_ms": round((known[end] - known[start]) * 1000, 2),
                        "predicted_p50_ms": None if cost is None else round(cost.p50 * 1000, 2),
                        "predicted_p95_ms": None if cost is None else round(cost.p95 * 1000, 2),
                    }
                )
        return found

    def missed_deadline(self) -> Mapping[str, object] | None:
        """Which stage made the first audio come after the target, and why.

        It is the stage that exceeded its median prediction most. The median, not p95: on a machine that has been slow for a while p95 is
        slow too, and would excuse the stage that eats the time. When that explains less than a quarter of the delay, all took about what
        they usually take, and the longest of them is named.
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
            if usual_ms is None and name == "tools":
                usual_ms = 0.0  # Nobody can say how long a tool takes; the target holds for replies without one.
            if isinstance(usual_ms, float) and took_ms - usual_ms > excess_ms:
                worst, excess_ms = name, took_ms - usual_ms
        if excess_ms >= late_ms / 4:
            found, cause = worst, self._cause(worst, excess_ms)
        elif self.planned_on_time is False:
            found, cause, excess_ms = longest, "floor", 0.0
        else:
            found, cause, excess_ms = longest, "endpoint" if longest == "endpoint" else "usual", 0.0
        return {"stage": found, "late_ms": round(late_ms, 2), "excess_ms": round(excess_ms, 2), "cause": cause}

    def _cause(self, stage: str, excess_ms: float) -> str:
        """Why a stage took longer than usual: `slow`, `company`, `stall` or `tool`."""
        first = [record for record in self.steps if record.phase == "first"]
        if stage == "tools":
            return "tool"
        if stage == "asr" and self.asr_waited_s * 1000 > excess_ms / 2:
            return "company"
        if stage == "denoise_first" and first:
            waited_ms = sum(max(record.wall_s - record.compute_s, 0.0) for record in first) * 1000
            if waited_ms > excess_ms / 2 or max(record.batch for record in first) > 2 * self._expected_company():
                return "company"
            if len(first) > 1 and max(record.compute_s for record in first) * 1000 > excess_ms / 2:
                return "stall"
        return "slow"

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
                "spent_ms": None if self.prediction is None else round(self.prediction.spent_s * 1000, 2),
                "reasons": [reason for _, _, reason in self.plans],
            },
            "steps": [
                {
                    "step": record.step,
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
                }
                for record in self.tools
            ],
            "server_latency_ms": None if self.latency_s is None else round(self.latency_s * 1000, 2),
            "missed_deadline": self.missed_deadline(),
        }

    def _ms(self, at: float) -> float:
        return round((at - self.origin) * 1000, 2)

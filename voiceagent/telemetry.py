"""What operators see: every conversation's events become counts and times, and each caller a line of `/sessions`.

All of it is read off the events that a conversation emits anyway, so a conversation knows nothing of being watched. No text that anybody
said gets in here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

from voiceagent import label_values
from voiceagent.clock import Clock
from voiceagent.events import (
    CallItem,
    ConversationEvent,
    ItemAdded,
    ItemTruncated,
    OutputItem,
    PlaybackDucked,
    PlaybackMuted,
    PlaybackRestored,
    ResponseAudio,
    ResponseFinished,
    ResponseStarted,
    SpeechStarted,
    TurnTraced,
)
from voiceagent.turn import Phase
from voiceagent.wire.fields import Json
from webserving.lobby import Cut
from webserving.metrics import Counter, Gauge, Histogram, Metric, exposition
from webserving.process import process_metrics

Door: TypeAlias = Literal["realtime", "twilio"]

REMEMBERED_LATENCIES = 100
"""Spoken turns of a caller that the quantiles of `/sessions` are taken over."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""From a millisecond to what nobody waits for."""
LATENCIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
ANSWERS = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0)
"""Fine where there are stand-ins for the models and the rest is the runtime's own."""
QUALITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
STEPS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0)


class Telemetry:
    """The meters of one server. `callers` tells who is there now, by door, `fullness` how full the machine is, by part."""

    def __init__(
        self,
        callers: Callable[[], Mapping[str, float]],
        limit: int,
        fullness: Callable[[], Mapping[str, float]],
    ) -> None:
        self.conversations = Counter(
            "voiceagent_conversations_total", "Conversations that began.", ["door"], get_args(Door)
        )
        self.refusals = Counter(
            "voiceagent_refusals_total", "Clients that were not let in.", ["reason"], label_values.REFUSALS
        )
        self.cuts = Counter(
            "voiceagent_cut_connections_total",
            "Connections that brought no whole request in time, or took nothing of an answer.",
            ["reason"],
            get_args(Cut),
        )
        self.turns = Counter(
            "voiceagent_turns_total", "Replies that ended, greetings included.", ["status"], label_values.STATUSES
        )
        self.interruptions = Counter("voiceagent_interruptions_total", "Replies that the caller spoke over.")
        self.ducks = Counter(
            "voiceagent_ducks_total", "Times the agent was turned down because there was voice over it."
        )
        self.mutes = Counter(
            "voiceagent_mutes_total",
            "Ducks in which the voice lasted, so that the agent was held until its words were known.",
        )
        self.duck_stops = Counter("voiceagent_duck_stops_total", "Ducks after which the agent was stopped.")
        self.duck_restores = Counter(
            "voiceagent_duck_restores_total",
            "Ducks after which the agent was brought back, and why.",
            ["reason"],
            label_values.RESTORES,
        )
        self.echo_windows = Counter(
            "voiceagent_echo_windows_total", "Windows of 32 ms whose voice was the agent's own, come back."
        )
        self.underruns = Counter("voiceagent_underruns_total", "Times the caller's queue ran dry inside a reply.")
        self.latency = Histogram(
            "voiceagent_turn_latency_seconds",
            "End of speech (or a typed request) to the first audio handed to the connection; not voice-to-voice.",
            LATENCIES,
            ["origin"],
        )
        self.answer = Histogram(
            "voiceagent_turn_answer_seconds",
            "The decision that a caller's turn is over to the first audio handed to the connection.",
            ANSWERS,
        )
        self.slack = Histogram(
            "voiceagent_turn_slack_seconds", "What was left of the target, of turns that met it.", LATENCIES
        )
        self.late = Histogram(
            "voiceagent_turn_late_seconds", "Time over the target, of turns that missed it.", LATENCIES
        )
        self.misses = Counter(
            "voiceagent_deadline_misses_total",
            "Turns that missed their target, by the stage that ate the time, and why.",
            ["stage", "cause"],
            label_values.MISSES,
        )
        self.short = Counter(
            "voiceagent_short_plans_total",
            "Turns whose target left no time for the steps that are wanted, by what was done.",
            ["action"],
            label_values.LATE,
        )
        self.turn_ends = Counter(
            "voiceagent_turn_ends_total", "Callers' turns that ended, by the rule.", ["rule"], label_values.RULES
        )
        self.quality = Histogram(
            "voiceagent_expected_quality_ratio", "What the curve expects of a first clause by its plan.", QUALITIES
        )
        self.stages = Histogram("voiceagent_stage_seconds", "Stages on the way to the first audio.", SECONDS, ["stage"])
        self.stages_over = Counter(
            "voiceagent_stage_over_p95_total",
            "Stages that took longer than their predicted p95.",
            ["stage"],
            label_values.PREDICTED,
        )
        self.steps = Histogram("voiceagent_denoise_steps", "Denoising steps taken by a reply.", STEPS, ["phase"])
        self.granted = Histogram("voiceagent_denoise_steps_granted", "Steps that the plan allowed.", STEPS, ["phase"])
        self.step_time = Histogram("voiceagent_denoise_step_seconds", "Computing one denoising step.", SECONDS)
        self.step_wait = Histogram(
            "voiceagent_denoise_wait_seconds", "Waiting for other drafts before a step.", SECONDS
        )
        self.forced = Counter("voiceagent_forced_tokens_total", "Tokens committed because time was up.")
        self.guarded = Counter(
            "voiceagent_guarded_drafts_total", "Drafts that did not converge and were finished greedily or held open."
        )
        self.tools = Counter("voiceagent_tool_calls_total", "Calls of tools.", ["outcome"], label_values.TOOL_OUTCOMES)
        self.speculations = Counter(
            "voiceagent_speculations_total",
            "Turns that a reply was drafted to before they were over.",
            ["outcome"],
            label_values.SPECULATIONS,
        )
        self.early_steps = Counter(
            "voiceagent_speculative_steps_total",
            "Steps of such drafts until the turn was over.",
            ["use"],
            ("used", "wasted"),
        )
        self.saved_steps = Counter("voiceagent_saved_steps_total", "Steps of first clauses that nobody waited for.")
        self.lag = Histogram("voiceagent_event_loop_lag_seconds", "How late the event loop runs what is due.", SECONDS)
        self._metrics: Sequence[Metric] = (
            Gauge("voiceagent_callers", "Conversations now.", callers, "door"),
            Gauge("voiceagent_fullness_ratio", "Share that is taken of what can be done in time.", fullness, "part"),
            Gauge("voiceagent_callers_limit", "Conversations that are let in at one time.", lambda: limit),
            self.conversations,
            self.refusals,
            self.cuts,
            self.turns,
            self.interruptions,
            self.ducks,
            self.mutes,
            self.duck_stops,
            self.duck_restores,
            self.echo_windows,
            self.underruns,
            self.latency,
            self.answer,
            self.slack,
            self.late,
            self.misses,
            self.short,
            self.turn_ends,
            self.quality,
            self.stages,
            self.stages_over,
            self.steps,
            self.granted,
            self.step_time,
            self.step_wait,
            self.forced,
            self.guarded,
            self.tools,
            self.speculations,
            self.early_steps,
            self.saved_steps,
            self.lag,
            *process_metrics(),
        )

    def exposition(self) -> str:
        """All of it in Prometheus' text format."""
        return exposition(self._metrics)

    def count_turn(self, timeline: Timeline) -> None:
        """Take a finished turn apart."""
        self.turns.add(timeline.text("status") or "unknown")
        if timeline.text("reason") == "turn_detected":
            self.interruptions.add()
        latency, target = timeline.seconds("server_latency_ms"), timeline.seconds("target_ms")
        if latency is not None:
            self.latency.observe(max(latency, 0.0), timeline.text("origin") or "unknown")
        if latency is not None and target is not None:
            missed = timeline.child("missed_deadline")
            if missed is None:
                self.slack.observe(max(target - latency, 0.0))
            else:
                self.late.observe(max(latency - target, 0.0))
                self.misses.add(missed.text("stage") or "unknown", missed.text("cause") or "unknown")
        if (ended_by := timeline.child("ended_by")) is not None:
            self.turn_ends.add(ended_by.text("rule") or "unknown")
        for stage in timeline.children("stages"):
            self._count_stage(stage)
            if (
                latency is not None
                and stage.text("name") == "endpoint"
                and (decided := stage.seconds("end_ms")) is not None
            ):
                self.answer.observe(max(latency - decided, 0.0))
        self._count_steps(timeline)
        self.echo_windows.add(amount=timeline.number("echo_windows") or 0.0)
        self.guarded.add(amount=timeline.number("guarded_drafts") or 0.0)
        for tool in timeline.children("tools"):
            self.tools.add(tool.text("outcome") or "unknown")
        if (early := timeline.child("speculation")) is not None:
            self._count_speculation(early)

    def _count_speculation(self, early: Timeline) -> None:
        self.speculations.add(early.text("outcome") or "unknown")
        steps, wasted = early.number("early_steps") or 0.0, early.number("wasted_steps") or 0.0
        self.early_steps.add("wasted", amount=wasted)
        self.early_steps.add("used", amount=max(steps - wasted, 0.0))
        self.saved_steps.add(amount=early.number("saved_steps") or 0.0)

    def _count_stage(self, stage: Timeline) -> None:
        name, start, end = stage.text("name"), stage.seconds("start_ms"), stage.seconds("end_ms")
        if name is None or start is None or end is None:
            return
        took = max(end - start, 0.0)
        self.stages.observe(took, name)
        predicted = stage.seconds("predicted_p95_ms")
        if predicted and took > predicted:  # A stage that was done already is predicted to take nothing.
            self.stages_over.add(name)

    def _count_steps(self, timeline: Timeline) -> None:
        steps, plan = timeline.children("steps"), timeline.child("plan")
        draft = None if plan is None else plan.number("draft")
        planned = [step for step in steps if (step.number("draft") or 0.0) == (draft or 0.0)]
        if plan is not None and (action := plan.text("late")) is not None:
            self.short.add(action)
        if plan is not None and (quality := plan.number("quality")) is not None:
            self.quality.observe(quality)
        for phase in ("first", "rest"):
            granted = None if plan is None else plan.number(f"granted_{phase}")
            if granted is not None:
                self.granted.observe(granted, phase)
                self.steps.observe(float(sum(step.text("phase") == phase for step in planned)), phase)
        for step in steps:
            compute = step.seconds("compute_ms")
            if compute is not None:
                self.step_time.observe(max(compute, 0.0))
            waited = step.seconds("waited_ms")
            if waited is not None:
                self.step_wait.observe(max(waited, 0.0))
        self.forced.add(amount=sum(step.number("forced") or 0.0 for step in steps))


class Session:
    """One caller, as the events of their conversation show them."""

    def __init__(self, telemetry: Telemetry, door: Door, peer: str, clock: Clock) -> None:
        self.door = door
        self._telemetry = telemetry
        self._peer = peer
        self._clock = clock
        self._opened = clock.now()
        self._dry_at: float | None = None
        self._is_ducked = False
        self._turns = 0
        self._interruptions = 0
        self._underruns = 0
        self._misses = 0
        self._latencies: deque[float] = deque(maxlen=REMEMBERED_LATENCIES)
        self._last_turn: Json | None = None

    def watch(self, emit: Callable[[ConversationEvent], None]) -> Callable[[ConversationEvent], None]:
        """`emit`, and what passes is counted."""

        def watched(event: ConversationEvent) -> None:
            self._observe(event)
            emit(event)

        return watched

    def as_json(self, conversation_id: str, phase: Phase) -> Json:
        """The caller's line of `/sessions`; times in milliseconds but where the name says otherwise."""
        ordered = sorted(self._latencies)
        return {
            "id": conversation_id,
            "door": self.door,
            "peer": self._peer,
            "connected_s": round(self._clock.now() - self._opened, 3),
            "phase": phase.value,
            "turns": self._turns,
            "interruptions": self._interruptions,
            "underruns": self._underruns,
            "missed_deadlines": self._misses,
            "latency_ms": {"p50": _quantile(ordered, 0.5), "p95": _quantile(ordered, 0.95), "turns": len(ordered)},
            "last_turn": self._last_turn,
        }

    def _observe(self, event: ConversationEvent) -> None:
        if self._is_ducked and _stops(event):
            self._telemetry.duck_stops.add()
            self._is_ducked = False
        match event:
            case ResponseStarted() | ResponseFinished() | ItemAdded(item=CallItem() | OutputItem()):
                self._dry_at = None  # Between replies, and while a tool runs, silence is no underrun.
            case PlaybackDucked():
                self._telemetry.ducks.add()
                self._is_ducked, self._dry_at = True, None  # What is held back in doubt is no underrun.
            case PlaybackMuted():
                self._telemetry.mutes.add()
            case PlaybackRestored(reason=reason):
                self._telemetry.duck_restores.add(reason.value)
                self._is_ducked = False
            case ResponseAudio():
                self._sent(event.samples.size / event.rate_hz)
            case TurnTraced(timeline=timeline):
                self._telemetry.count_turn(Timeline(timeline))
                self._remember(Timeline(timeline))
            case _:
                pass

    def _sent(self, duration_s: float) -> None:
        """More audio leaves; when all before it must have been played by now, the caller heard a gap."""
        if self._is_ducked:
            return  # It may be held: when its queue runs dry is known once it plays on.
        now = self._clock.now()
        if self._dry_at is not None and now > self._dry_at:
            self._underruns += 1
            self._telemetry.underruns.add()
        self._dry_at = max(now, self._dry_at or now) + duration_s

    def _remember(self, timeline: Timeline) -> None:
        self._turns += 1
        self._interruptions += timeline.text("reason") == "turn_detected"
        missed, latency = timeline.child("missed_deadline"), timeline.number("server_latency_ms")
        self._misses += missed is not None
        if latency is not None and timeline.text("origin") == "speech_end":
            self._latencies.append(latency)
        self._last_turn = {
            "status": timeline.text("status"),
            "latency_ms": latency,
            "target_ms": timeline.number("target_ms"),
            "steps": len(timeline.children("steps")),
            "missed_by": None if missed is None else {key: missed.text(key) for key in ("stage", "cause")},
        }


def _stops(event: ConversationEvent) -> bool:
    """Whether this ends the reply that plays: words, a key, the client's own command."""
    match event:
        case SpeechStarted() | ItemTruncated() | ResponseFinished(status="cancelled"):
            return True
        case _:
            return False


class Timeline:
    """A turn's timeline as `TurnTraced` carries it: JSON, read with what is missing as None."""

    def __init__(self, data: Mapping[str, object]) -> None:
        self._data = data

    def text(self, key: str) -> str | None:
        value = self._data.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> float | None:
        value = self._data.get(key)
        is_number = isinstance(value, int | float) and math.isfinite(value)
        return float(value) if is_number and isinstance(value, int | float) else None

    def seconds(self, key: str) -> float | None:
        """A time in milliseconds, in seconds."""
        value = self.number(key)
        return None if value is None else value / 1000.0

    def child(self, key: str) -> Timeline | None:
        value = self._data.get(key)
        return Timeline(value) if isinstance(value, Mapping) else None

    def children(self, key: str) -> list[Timeline]:
        value = self._data.get(key)
        return [Timeline(each) for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _quantile(ordered: Sequence[float], q: float) -> float | None:
    """Nearest rank."""
    return None if not ordered else ordered[min(math.ceil(q * len(ordered)), len(ordered)) - 1]

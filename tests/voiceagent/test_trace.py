from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from voiceagent.backends import StepPlan
from voiceagent.budget_terms import Prediction
from voiceagent.costs import Cost
from voiceagent.endpoint import EndedBy
from voiceagent.trace import StepRecord, ToolRecord, TurnTrace

PREDICTION = Prediction(
    asr=Cost(0.02, 2.0),
    prefill=Cost(0.02, 0.05),
    step=Cost(0.01, 0.02),
    tts=Cost(0.01, 0.03),
    transport=Cost(0.0, 0.0),
    spent_s=0.4,
)


def traced(asr_s: float = 0.02, tts_s: float = 0.01, target_s: float = 0.5) -> TurnTrace:
    trace = TurnTrace(turn=1, origin=100.0, target_s=target_s, is_spoken=True, prediction=PREDICTION)
    trace.plans.append((100.4, StepPlan(32, 4, 8, 0.9, first_deadline=100.48), "4 steps fit"))
    at = 100.36
    trace.mark("endpoint", at)
    for name, took in (("asr_final", asr_s), ("draft_start", 0.0), ("prefill", 0.02), ("first_clause", 0.04)):
        at += took
        trace.mark(name, at)
    trace.mark("tts_audio", at + tts_s)
    trace.mark("first_audio", at + tts_s)
    trace.steps.append(StepRecord(1, "first", 100.42, 0.01, 12, 0, 1))
    return trace


def test_a_turn_on_time_misses_nothing() -> None:
    assert traced().missed_deadline() is None


def test_a_missed_target_names_the_stage_that_took_longer_than_it_usually_does() -> None:
    asr = {"stage": "asr", "late_ms": 230.0, "excess_ms": 280.0, "cause": "slow"}
    assert traced(asr_s=0.3).missed_deadline() == asr
    tts = {"stage": "tts", "late_ms": 140.0, "excess_ms": 190.0, "cause": "slow"}
    assert traced(tts_s=0.2).missed_deadline() == tts


def test_when_every_stage_was_as_usual_the_wait_for_silence_was_the_cause() -> None:
    missed = traced(target_s=0.2).missed_deadline()
    assert missed is not None and missed["stage"] == missed["cause"] == "endpoint"


def denoised(*steps: StepRecord) -> TurnTrace:
    """Its first clause took 0.4 s instead of 0.04."""
    trace = traced()
    trace.steps = list(steps)
    for name in ("first_clause", "tts_audio", "first_audio"):
        trace.marks[name] += 0.36
    return trace


def test_a_late_first_clause_says_whether_it_waited_stood_still_or_was_slow() -> None:
    def step(compute_s: float, wall_s: float, batch: int = 1) -> StepRecord:
        return StepRecord(1, "first", 100.42, compute_s, 12, 0, batch, wall_s)

    waited = denoised(*(step(0.01, 0.1) for _ in range(4))).missed_deadline()
    assert waited is not None and (waited["stage"], waited["cause"]) == ("denoise_first", "company")
    shared = denoised(*(step(0.1, 0.1, batch=4) for _ in range(4))).missed_deadline()
    assert shared is not None and shared["cause"] == "company"
    stalled = denoised(step(0.01, 0.01), step(0.37, 0.37), step(0.01, 0.01), step(0.01, 0.01)).missed_deadline()
    assert stalled is not None and stalled["cause"] == "stall"
    slow = denoised(*(step(0.1, 0.1) for _ in range(4))).missed_deadline()
    assert slow is not None and slow["cause"] == "slow"


def held_open(endpoint_s: float, ended_by: EndedBy, *, asr_s: float = 0.02) -> TurnTrace:
    """Its turn was over so long after the end of speech, and everything behind that took as long as ever."""
    trace = traced(asr_s=asr_s)
    trace.ended_by = ended_by
    for name in trace.marks:
        trace.marks[name] += endpoint_s - 0.36
    trace.plans = [(trace.marks["asr_final"], *trace.plans[0][1:])]
    return trace


def test_a_turn_that_its_words_held_open_blames_them_and_not_the_stages_behind() -> None:
    trace = held_open(1.357, EndedBy("complete", 1.344, 0.35, 0.5), asr_s=0.392)
    missed = trace.missed_deadline()
    assert missed is not None and (missed["stage"], missed["cause"]) == ("endpoint", "words")
    assert missed["excess_ms"] == 975.0, "more than silence alone and its window"


def test_an_end_of_turn_that_came_late_after_its_silence_was_slow() -> None:
    missed = held_open(1.357, EndedBy("silence", 0.352, 0.35)).missed_deadline()
    assert missed is not None and (missed["stage"], missed["cause"]) == ("endpoint", "slow")


def test_silence_alone_takes_its_window_as_ever() -> None:
    trace = held_open(0.38, EndedBy("silence", 0.352, 0.35))
    trace.target_s = 0.46
    missed = trace.missed_deadline()
    assert missed is not None and missed["stage"] == missed["cause"] == "endpoint"


def test_a_clause_that_was_written_already_or_planned_after_the_target_did_not_lack_steps() -> None:
    held = EndedBy("ceiling", 1.984, 0.35, 0.07)
    trace = held_open(1.998, held)
    trace.planned_on_time, trace.is_written = False, True
    missed = trace.missed_deadline()
    assert missed is not None and (missed["stage"], missed["cause"]) == ("endpoint", "words")
    for is_written, planned_at in ((True, 100.38), (False, 100.42)):
        trace = traced(target_s=0.4)
        trace.planned_on_time, trace.is_written = False, is_written
        trace.plans = [(planned_at, *trace.plans[0][1:])]
        for name in ("first_clause", "tts_audio", "first_audio"):
            trace.marks[name] -= 0.04 if is_written else 0.0
        missed = trace.missed_deadline()
        assert missed is not None and missed["cause"] == "endpoint"


def test_a_turn_whose_floor_did_not_fit_says_so() -> None:
    trace = traced(target_s=0.42)
    trace.planned_on_time = False
    missed = trace.missed_deadline()
    assert missed is not None and missed["cause"] == "floor"


def test_a_turn_as_slow_as_usual_names_its_longest_stage() -> None:
    trace = traced(asr_s=1.0)
    trace.asr_expected = Cost(0.98, 1.2)
    missed = trace.missed_deadline()
    assert missed is not None and (missed["stage"], missed["cause"]) == ("asr", "usual")


def test_recognition_is_held_against_what_was_expected_before_it() -> None:
    trace = traced(asr_s=1.0)
    trace.asr_expected = Cost(0.02, 0.06)
    missed = trace.missed_deadline()
    assert missed is not None and (missed["stage"], missed["cause"]) == ("asr", "slow")


def test_recognition_that_waited_for_other_callers_says_so() -> None:
    trace = traced(asr_s=1.0)
    trace.asr_expected, trace.asr_waited_s = Cost(0.02, 0.06), 0.9
    missed = trace.missed_deadline()
    assert missed is not None and (missed["stage"], missed["cause"]) == ("asr", "company")


def test_what_is_said_first_is_no_draft_and_its_way_has_no_denoising() -> None:
    trace = traced()
    trace.acknowledgement = "One moment."
    trace.marks["first_clause"] = trace.marks["asr_final"]
    names = [stage["name"] for stage in trace.stages()]
    assert names == ["endpoint", "asr", "tts", "transport"]


def test_a_first_clause_is_expected_to_take_what_was_left_of_it_when_its_plan_was_made() -> None:
    def expected(trace: TurnTrace) -> tuple[Any, Any]:
        (stage,) = [stage for stage in trace.stages() if stage["name"] == "denoise_first"]
        return stage["predicted_p50_ms"], stage["predicted_p95_ms"]

    assert expected(traced()) == (40.0, 80.0)
    begun, written = traced(), traced()
    begun.prediction = replace(PREDICTION, steps_had=3)
    assert expected(begun) == (10.0, 20.0), "three of the four steps were taken before the turn was over"
    written.is_written = True
    assert expected(written) == (0.0, 0.0)


def test_the_first_mark_of_a_name_counts() -> None:
    trace = traced()
    trace.mark("endpoint", 999.0)
    assert trace.marks["endpoint"] == 100.36


def test_the_timeline_is_json_in_milliseconds_from_the_end_of_speech() -> None:
    timeline = json.loads(json.dumps(traced().as_json()))
    marks = {mark["name"]: mark["at_ms"] for mark in timeline["marks"]}
    assert marks["speech_end"] == 0.0
    assert marks["endpoint"] == 360.0
    assert marks["step 1"] == 420.0
    assert [mark["at_ms"] for mark in timeline["marks"]] == sorted(mark["at_ms"] for mark in timeline["marks"])
    assert timeline["server_latency_ms"] == 450.0
    assert timeline["plan"]["first_deadline_ms"] == 480.0
    stages = {stage["name"]: stage["end_ms"] - stage["start_ms"] for stage in timeline["stages"]}
    assert set(stages) == {"endpoint", "asr", "prefill", "denoise_first", "tts", "transport"}
    assert round(sum(stages.values()), 3) == 450.0, "the stages are the whole way from speech end to first audio"


def test_a_turn_that_never_spoke_has_no_latency() -> None:
    trace = TurnTrace(turn=2, origin=5.0, target_s=0.5, is_spoken=False, status="cancelled", reason="client_cancelled")
    timeline = trace.as_json()
    assert timeline["server_latency_ms"] is None
    assert timeline["origin"] == "request"
    assert timeline["stages"] == [] and timeline["plan"] is None


# --- tools ------------------------------------------------------------------------------------------------------------


def called(write_s: float = 0.06, tool_s: float = 0.3, *, wait_s: float = 0.0, before: bool = False) -> TurnTrace:
    """A typed turn: a draft that is a call, the tool, and a draft that answers; or words and the call behind them."""
    trace = TurnTrace(turn=1, origin=100.0, target_s=0.5, is_spoken=False, prediction=PREDICTION)
    at = 100.0 + wait_s
    trace.adopted(at, StepPlan(32, 4, 8, 0.9), "the call")
    trace.mark("draft_start", at)
    trace.mark("prefill", at + 0.02)
    if before:
        trace.mark("first_clause", at + 0.04)
        trace.mark("tts_audio", at + 0.05)
        trace.mark("first_audio", at + 0.05)
    trace.steps.append(StepRecord(1, "first", at + write_s, write_s - 0.02, 0, 0, 1))
    at += write_s
    record = ToolRecord("book", at, at + tool_s, "ok")
    trace.called(record)
    at += tool_s
    trace.begin_again(at)
    trace.adopted(at, StepPlan(32, 2, 8, 0.9), "the answer")
    for name, took in (("draft_start", 0.0), ("prefill", 0.02), ("first_clause", 0.02), ("tts_audio", 0.01)):
        at += took
        trace.mark(name, at)
    trace.mark("first_audio", at)
    trace.steps.append(StepRecord(1, "first", at - 0.01, 0.01, 9, 0, 1, draft=1))
    return trace


def covered(trace: TurnTrace) -> list[str]:
    """Names of the stages, which must leave no gap from the origin to the first audio."""
    stages: list[Any] = list(trace.stages())
    ends = [0.0, *(stage["end_ms"] for stage in stages)]
    assert [stage["start_ms"] for stage in stages] == ends[:-1]
    assert ends[-1] == pytest.approx((trace.marks["first_audio"] - trace.origin) * 1000, abs=0.01)
    return [stage["name"] for stage in stages]


def test_writing_the_call_is_a_stage_of_its_own_before_the_tool() -> None:
    assert covered(called()) == ["call", "tools", "prefill", "denoise_first", "tts", "transport"]
    stages: dict[str, Any] = {str(stage["name"]): stage for stage in called().stages()}
    assert (stages["call"]["took_ms"], stages["tools"]["took_ms"]) == (60.0, 300.0)
    assert stages["call"]["predicted_p50_ms"] == 60.0, "its prefill and four steps"
    assert stages["denoise_first"]["predicted_p50_ms"] == 20.0, "the answer's two, not the call's four"


def test_a_call_that_took_long_to_write_is_named_not_the_tool() -> None:
    slow = called(write_s=0.7, tool_s=0.01).missed_deadline()
    assert slow is not None and (slow["stage"], slow["cause"], slow["excess_ms"]) == ("call", "slow", 640.0)
    tool = called(tool_s=0.9).missed_deadline()
    assert tool is not None and (tool["stage"], tool["cause"]) == ("tools", "tool")


def test_a_draft_that_had_to_wait_for_words_is_late_because_of_the_wait() -> None:
    trace = called(wait_s=0.8, tool_s=0.01)
    assert covered(trace)[:2] == ["wait", "call"]
    missed = trace.missed_deadline()
    assert missed is not None and missed["stage"] == missed["cause"] == "wait"


def test_a_call_behind_the_first_words_is_not_on_the_way_to_them() -> None:
    trace = called(before=True)
    assert covered(trace) == ["prefill", "denoise_first", "tts", "transport"]
    timeline: Any = trace.as_json()
    assert timeline["plan"]["reasons"] == ["the call"] and timeline["plan"]["draft"] == 0
    assert timeline["tools"][0]["reasons"] == ["the answer"], "every plan is in the timeline"


def test_two_calls_are_two_pairs_of_stages() -> None:
    trace = called()
    for name in ("first_clause", "tts_audio", "first_audio"):
        trace.marks.pop(name)
    trace.called(ToolRecord("again", 100.5, 100.6, "ok"))
    trace.begin_again(100.6)
    for name, at in (("draft_start", 100.6), ("prefill", 100.62), ("first_clause", 100.7)):
        trace.mark(name, at)
    trace.mark("tts_audio", 100.71)
    trace.mark("first_audio", 100.71)
    assert covered(trace) == ["call", "tools", "call", "tools", "prefill", "denoise_first", "tts", "transport"]

from __future__ import annotations

from typing import Any, get_args

import pytest

from tests.voiceagent.test_trace import held_open, traced
from voiceagent import tool_runner
from voiceagent.backends import DraftRevised, StepPlan
from voiceagent.endpoint import EndedBy
from voiceagent.explain import CAUSES, ENDINGS, OUTCOMES, STAGES, TOOL_OUTCOMES, explain
from voiceagent.speculation import Outcome, Speculation
from voiceagent.trace import StepRecord, ToolRecord, TurnTrace


def told(**changes: float) -> str:
    return "\n".join(explain(traced(**changes).as_json()))


def test_a_turn_on_time_is_told_stage_by_stage() -> None:
    text = told()
    assert "Turn 1 was on time: its first sound left 450 ms after the end of speech, the target was 500.0 ms." in text
    assert "360.0 ms waiting until it was certain that the caller had finished" in text
    assert "40.0 ms writing the first clause (expected 40, seldom over 80)" in text
    assert "granted 4 steps" in text and "4 steps fit." in text
    assert "late" not in text


def test_a_late_turn_names_its_stage_and_cause() -> None:
    text = told(tts_s=0.2)
    assert "was late" in text
    assert "It was 140 ms late because of turning it into sound, which took 190 ms more than usual" in text
    assert "more than 19 times in 20" in text


def test_a_turn_that_its_words_held_open_is_compared_with_silence_alone() -> None:
    last = explain(held_open(1.357, EndedBy("complete", 1.344, 0.35, 0.4)).as_json())[-1]
    assert "which took 975 ms more than silence alone would have: the turn was held open for its words" in last


def test_a_turn_that_was_never_heard_says_so() -> None:
    trace = traced()
    del trace.marks["first_audio"]
    trace.status, trace.reason = "cancelled", "turn_detected"
    assert explain(trace.as_json())[0] == "Turn 1 was never heard: it was cancelled (turn_detected)."


@pytest.mark.parametrize(
    "timeline", [{}, {"turn": 1, "plan": {}, "stages": [{}], "steps": [{}], "missed_deadline": {}}]
)
def test_gaps_are_passed_over(timeline: dict[str, object]) -> None:
    assert explain(timeline)


def test_early_drafts_are_told_with_what_they_saved_and_what_they_cost() -> None:
    trace = traced()
    early = trace.speculation = Speculation()
    early.began()
    early.stepped(has_clause=False)
    early.stepped(has_clause=True)
    early.revising()
    early.revised(0, 1)
    early.stepped(has_clause=True)
    early.release(is_hit=True)
    assert (
        "A reply was drafted before the turn was over, in 4 steps, and the turn ended with just those words, so that it was released "
        "as it stood; its first clause took 0 more, where from nothing it had taken 2. 3 of the early steps came to nothing."
    ) in explain(trace.as_json())
    trace.revised = DraftRevised(8, 11, 2, 0.0)
    assert "Of 11 tokens that were written before, 8 still fitted and stayed." in explain(trace.as_json())
    wasted = trace.speculation = Speculation()
    wasted.began()
    wasted.stepped(has_clause=True)
    wasted.release(is_hit=False)
    assert (
        "A reply was drafted before the turn was over, in 1 step, and thrown away, for the turn ended with other words."
    ) in explain(trace.as_json())
    assert set(OUTCOMES) == set(Outcome)


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        ("ok", "It called book, which answered after 250 ms."),
        ("timed_out", "It called book, which took too long and was given up after 250 ms."),
        ("refused", "It called book, which was refused: there is no such tool, or it cannot be asked this."),
    ],
)
def test_a_tool_is_told_with_what_came_of_it_and_only_the_answers_plan_is(outcome: str, told: str) -> None:
    trace = TurnTrace(turn=1, origin=0.0, target_s=0.5, is_spoken=False)
    for at, reason in ((0.0, "plan of the call"), (0.05, "after step 1: 3 steps for the call")):
        trace.adopted(at, StepPlan(32, 4, 8, 0.9), reason)
    trace.mark("draft_start", 0.0)
    trace.steps.append(StepRecord(1, "first", 0.05, 0.05, 0, 0, 1))
    trace.called(ToolRecord("book", 0.1, 0.35, outcome))
    trace.begin_again(0.35)
    trace.adopted(0.35, StepPlan(32, 1, 8, 0.9), "plan of the answer")
    trace.steps.append(StepRecord(1, "first", 0.36, 0.01, 9, 0, 1, draft=1))
    lines = explain(trace.as_json())
    assert told in lines
    assert "It was planned 350 ms after the request." in lines
    assert "The first clause was granted 1 step: plan of the answer." in lines
    assert "The first clause took 1 step of 10.0 ms on average." in lines
    assert "Then the plan changed:" not in lines
    timeline: Any = trace.as_json()
    assert timeline["tools"][0]["reasons"] == ["plan of the call", "after step 1: 3 steps for the call"]


def test_there_are_words_for_every_stage_and_cause() -> None:
    assert set(STAGES) == {"endpoint", "asr", "wait", "call", "tools", "prefill", "denoise_first", "tts", "transport"}
    assert set(CAUSES) == {"endpoint", "floor", "usual", "words", "slow", "company", "stall", "tool", "wait"}
    assert set(TOOL_OUTCOMES) == set(get_args(tool_runner.Outcome)) | {"client", "running"}


@pytest.mark.parametrize(
    ("ended_by", "words"),
    [
        (EndedBy("silence", 0.352, 0.35), "was over after 352 ms of silence: the caller was silent for as long"),
        (
            EndedBy("complete", 0.224, 0.35, 0.968),
            "after 224 ms of silence: the words called for no longer silence, which were complete with a probability of 0.97. "
            "Silence alone would have waited 350 ms.",
        ),
        (
            EndedBy("complete", 0.224, 0.35, 0.968, 0.7, is_misheard=False),
            "complete with a probability of 0.97, the sound alone, which is weighed in it, of an end with 0.70. Silence alone would have waited 350 ms.",
        ),
        (
            EndedBy("complete", 1.056, 0.35, 0.5, 0.7, is_misheard=True),
            "complete with a probability of 0.50, as far as words tell that were misheard or make no sense, the sound alone, which did not count beside them, of an end with 0.70.",
        ),
        (
            EndedBy("complete", 0.224, 0.35, 0.968, 0.7),
            "complete with a probability of 0.97, the sound alone, which counts where the words make sense, of an end",
        ),
        (
            EndedBy("dictation", 1.216, 0.35, 0.9),
            "dictated, which waits longer, and the silence had lasted as long; the words",
        ),
        (EndedBy("ceiling", 2.016, 0.35, 0.01), "with a probability of 0.01. Silence alone would have waited 350 ms."),
        (
            EndedBy("complete", 1.344, 0.35),
            "was over after 1344 ms of silence: no words were known yet, and the silence had lasted as long as that asks for. "
            "Silence alone would have waited 350 ms.",
        ),
        (
            EndedBy("complete", 0.224, 0.35, 0.968, confidence=0.034),
            "Silence alone would have waited 350 ms. The recogniser takes its words for right with a probability of 0.03.",
        ),
        (EndedBy("too_long"), "The caller's turn was over: the voice went on for longer than a turn may last."),
        (EndedBy("client"), "The caller's turn was over: the client said so."),
    ],
)
def test_why_the_turn_was_over_is_told(ended_by: EndedBy, words: str) -> None:
    trace = traced()
    trace.ended_by = ended_by
    assert ended_by.rule in ENDINGS
    assert words in explain(trace.as_json())[1]


def test_a_misheard_that_is_no_truth_is_passed_over() -> None:
    ended_by = {"rule": "complete", "completeness": 0.9, "sound": 0.5, "misheard": ["a"]}
    text = "\n".join(explain({"turn": 1, "status": "completed", "ended_by": ended_by}))
    assert "the sound alone, which counts where the words make sense, of an end with 0.50" in text

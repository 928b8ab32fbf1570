from __future__ import annotations

import pytest

from tests.voiceagent.test_trace import traced
from voiceagent.explain import CAUSES, STAGES, explain


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


def test_there_are_words_for_every_stage_and_cause() -> None:
    assert set(STAGES) == {"endpoint", "asr", "tools", "prefill", "denoise_first", "tts", "transport"}
    assert set(CAUSES) == {"endpoint", "floor", "usual", "slow", "company", "stall", "tool"}

from __future__ import annotations

import pytest

from tests.voiceagent.test_trace import traced
from voiceagent.backends import DraftRevised
from voiceagent.endpoint import EndedBy
from voiceagent.explain import CAUSES, ENDINGS, OUTCOMES, STAGES, explain
from voiceagent.speculation import Outcome, Speculation


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
        "A reply was drafted before the turn was over, in 1 steps, and thrown away, for the turn ended with other words."
    ) in explain(trace.as_json())
    assert set(OUTCOMES) == set(Outcome)


def test_there_are_words_for_every_stage_and_cause() -> None:
    assert set(STAGES) == {"endpoint", "asr", "tools", "prefill", "denoise_first", "tts", "transport"}
    assert set(CAUSES) == {"endpoint", "floor", "usual", "slow", "company", "stall", "tool"}


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
            EndedBy("dictation", 1.216, 0.35, 0.9),
            "dictated, which waits longer, and the silence had lasted as long; the words",
        ),
        (EndedBy("ceiling", 2.016, 0.35, 0.01), "with a probability of 0.01. Silence alone would have waited 350 ms."),
        (EndedBy("too_long"), "The caller's turn was over: the voice went on for longer than a turn may last."),
        (EndedBy("client"), "The caller's turn was over: the client said so."),
    ],
)
def test_why_the_turn_was_over_is_told(ended_by: EndedBy, words: str) -> None:
    trace = traced()
    trace.ended_by = ended_by
    assert ended_by.rule in ENDINGS
    assert words in explain(trace.as_json())[1]

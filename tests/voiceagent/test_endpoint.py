"""When a pause ends the turn."""

from __future__ import annotations

from dataclasses import replace

import pytest

from voiceagent.endpoint import (
    EndedBy,
    EndpointDecision,
    EndpointSettings,
    Evidence,
    cheapest_wait_s,
    decide,
    longer_pauses,
)
from voiceagent.vad import WINDOW_SAMPLES, VoiceActivity

W = WINDOW_SAMPLES


def first_decision(
    probabilities: list[float], settings: EndpointSettings, evidence: Evidence | None = None
) -> EndpointDecision | None:
    activity = VoiceActivity()
    for probability in probabilities:
        activity.update(probability)
        if decision := decide(activity.utterance, settings, evidence):
            return decision
    return None


def silence_before(evidence: Evidence | None, settings: EndpointSettings) -> tuple[float, str]:
    """Seconds of silence that ended a turn, and why."""
    decision = first_decision([0.9] * 10 + [0.0] * 400, settings, evidence)
    assert decision is not None
    return (decision.endpoint_sample - decision.speech_end_sample) / 16_000, decision.ended_by.rule


def test_nobody_speaking_is_no_endpoint() -> None:
    assert decide(None, EndpointSettings()) is None
    assert first_decision([0.0] * 100, EndpointSettings()) is None


def test_silence_as_long_as_asked_for_ends_the_turn_where_the_voice_ended() -> None:
    decision = first_decision([0.9] * 10 + [0.0] * 100, EndpointSettings(silence_s=0.32))
    assert decision == EndpointDecision(10 * W, 20 * W, EndedBy("silence", 0.32, 0.32))


def test_pause_shorter_than_the_silence_keeps_the_turn_open() -> None:
    words = [0.9] * 10 + [0.0] * 9
    assert first_decision(words * 5 + [0.9], EndpointSettings(silence_s=0.32)) is None


def test_a_word_that_begins_in_the_last_moment_of_the_silence_keeps_the_turn_open() -> None:
    settings = EndpointSettings(silence_s=0.32)
    pause = [0.9] * 10 + [0.0] * 9
    assert first_decision(pause + [0.9] * 2, settings) is None
    breath = first_decision([*pause, 0.9, 0.0], settings)
    assert breath == EndpointDecision(10 * W, 21 * W, EndedBy("silence", 11 * W / 16_000, 0.32))


def test_silence_counts_from_the_last_voice_of_several() -> None:
    decision = first_decision(([0.9] * 10 + [0.0] * 5) * 2 + [0.0] * 50, EndpointSettings(silence_s=0.32))
    assert decision is not None
    assert decision.speech_end_sample == 25 * W


def test_a_voice_that_never_stops_is_a_turn_by_force() -> None:
    decision = first_decision([0.9] * 100, EndpointSettings(max_utterance_s=1.0))
    assert decision == EndpointDecision(32 * W, 32 * W, EndedBy("too_long"))


# --- with the words ---------------------------------------------------------------------------------------------------

WORDS = EndpointSettings(silence_s=0.6, cut_off_cost_s=6.0, min_silence_s=0.2, max_silence_s=2.0, settle_s=0.1)
WINDOW_S = W / 16_000


def test_complete_words_end_a_turn_sooner_than_silence_alone_and_unfinished_ones_later() -> None:
    complete, why = silence_before(Evidence(0.98, stable_s=1.0), WORDS)
    alone, why_alone = silence_before(None, WORDS)
    unfinished, _ = silence_before(Evidence(0.02, stable_s=1.0), WORDS)
    assert 0.2 <= complete < 0.2 + WINDOW_S < alone < unfinished <= 2.0 + WINDOW_S
    assert (why, why_alone) == ("complete", "silence")


def test_the_ceiling_answers_whatever_the_words_say() -> None:
    for evidence in (
        Evidence(1e-9, 9.0),
        Evidence(0.5, 0.0),
        Evidence(None, 0.0, is_awaited=True),
        Evidence(0.0, 0.0, is_dictation=True),
    ):
        silence_s, reason = silence_before(evidence, WORDS)
        assert 2.0 <= silence_s < 2.0 + WINDOW_S and reason == "ceiling"


def test_words_that_have_just_changed_or_are_being_looked_at_end_nothing() -> None:
    activity = VoiceActivity()
    for probability in [0.9] * 10 + [0.0] * 30:
        activity.update(probability)
    assert decide(activity.utterance, WORDS, Evidence(0.99, stable_s=0.09)) is None
    assert decide(activity.utterance, WORDS, Evidence(None, stable_s=9.0, is_awaited=True)) is None
    assert decide(activity.utterance, WORDS, Evidence(0.99, stable_s=0.11)) is not None


def test_dictation_waits_longer_however_complete_it_sounds() -> None:
    silence_s, reason = silence_before(Evidence(0.99, 9.0, is_dictation=True), WORDS)
    assert 1.2 <= silence_s < 1.2 + WINDOW_S and reason == "dictation"


def test_without_an_answer_silence_alone_decides_and_dictation_still_waits_longer() -> None:
    silence_s, reason = silence_before(Evidence(None, 0.0), WORDS)
    assert 0.6 <= silence_s < 0.6 + WINDOW_S and reason == "silence"
    silence_s, reason = silence_before(Evidence(None, 0.0, is_dictation=True), WORDS)
    assert 1.2 <= silence_s < 1.2 + WINDOW_S and reason == "dictation"


def test_a_short_answer_that_may_well_be_all_waits_no_longer_than_without_being_looked_at() -> None:
    settings = replace(WORDS, cut_off_cost_s=2.0)
    likely, why = silence_before(Evidence(0.65, 9.0, is_answer=True), settings)
    assert 0.6 <= likely < 0.6 + WINDOW_S and why == "complete"
    assert silence_before(Evidence(0.65, 9.0), settings)[0] > 0.7, "words that answer nothing"
    assert silence_before(Evidence(0.3, 9.0, is_answer=True), settings) == silence_before(Evidence(0.3, 9.0), settings)
    assert silence_before(Evidence(0.98, 9.0, is_answer=True), settings)[0] < 0.2 + WINDOW_S


def test_whoever_is_more_patient_is_so_with_short_answers_too() -> None:
    likely = Evidence(0.55, 9.0, is_answer=True)
    assert silence_before(likely, replace(WORDS, cut_off_cost_s=2.0))[0] < 0.6 + WINDOW_S
    assert silence_before(likely, WORDS)[0] > 1.0
    assert silence_before(likely, WORDS) == silence_before(replace(likely, is_answer=False), WORDS)


def test_a_short_answer_that_is_dictated_waits_as_dictation_does_and_none_ends_before_the_shortest_silence() -> None:
    silence_s, reason = silence_before(Evidence(0.65, 9.0, is_dictation=True, is_answer=True), WORDS)
    assert 1.2 <= silence_s < 1.2 + WINDOW_S and reason == "dictation"
    hasty = replace(WORDS, silence_s=0.05, min_silence_s=0.3)
    assert silence_before(Evidence(0.65, 9.0, is_answer=True), hasty)[0] >= 0.3


def test_a_decision_tells_what_was_waited_for_and_what_silence_alone_would_have_waited() -> None:
    decision = first_decision([0.9] * 10 + [0.0] * 400, WORDS, Evidence(0.98, stable_s=1.0))
    assert decision is not None
    assert decision.ended_by == EndedBy("complete", 7 * W / 16_000, 0.6, 0.98)
    assert decision.ended_by.as_json() == {
        "rule": "complete",
        "silence_ms": 224.0,
        "silence_alone_ms": 600.0,
        "completeness": 0.98,
        "sound": None,
        "confidence": None,
        "misheard": None,
    }
    assert replace(decision.ended_by, confidence=0.12345).as_json()["confidence"] == 0.1235
    sounded = first_decision([0.9] * 10 + [0.0] * 400, WORDS, Evidence(0.98, stable_s=1.0, sound=0.7))
    assert sounded is not None and sounded.ended_by == replace(decision.ended_by, sound=0.7)
    misheard = first_decision([0.9] * 10 + [0.0] * 400, WORDS, Evidence(0.98, stable_s=1.0, is_misheard=True))
    assert misheard is not None and misheard.ended_by.as_json()["misheard"] is True


def test_dictation_that_waits_no_longer_than_its_words_is_not_the_reason() -> None:
    silence_s, reason = silence_before(Evidence(0.3, 9.0, is_dictation=True), WORDS)
    assert silence_s > 1.2 and reason == "complete"


def test_a_word_after_the_pause_keeps_the_turn_open_with_the_words_too() -> None:
    pause = [0.9] * 10 + [0.0] * 5
    assert first_decision((pause * 4)[:-5] + [0.9] * 2, WORDS, Evidence(0.99, 9.0)) is None


@pytest.mark.parametrize("cost_s", [0.5, 3.0, 20.0])
@pytest.mark.parametrize("completeness", [0.0, 0.01, 0.2, 0.5, 0.8, 0.95, 0.999, 1.0])
def test_the_silence_asked_for_is_the_cheapest_of_all(completeness: float, cost_s: float) -> None:
    def cost(wait_s: float) -> float:
        return completeness * wait_s + (1 - completeness) * cost_s * longer_pauses(wait_s)

    found = cheapest_wait_s(completeness, cost_s, 0.2)
    assert found >= 0.2
    assert cost(found) <= min(cost(0.2 + step / 200) for step in range(1600)) + 1e-4


def test_more_complete_words_never_wait_longer_and_dearer_cut_offs_never_shorter() -> None:
    shares = [step / 50 for step in range(51)]
    for cost_s in (1.0, 6.0, 30.0):
        waits = [cheapest_wait_s(share, cost_s, 0.2) for share in shares]
        assert waits == sorted(waits, reverse=True)
    for share in shares:
        waits = [cheapest_wait_s(share, cost_s, 0.2) for cost_s in (0.5, 2.0, 8.0, 32.0)]
        assert waits == sorted(waits)


def test_the_pauses_are_those_of_the_benchmark() -> None:
    assert longer_pauses(0.6) == pytest.approx(0.5)
    assert longer_pauses(1.5) == pytest.approx(0.05, abs=1e-4)


def test_a_shortest_silence_above_the_longest_is_refused() -> None:
    with pytest.raises(ValueError, match=r"min_silence_s = 2\.0.*max_silence_s = 1\.0"):
        EndpointSettings(min_silence_s=2.0, max_silence_s=1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("silence_s", 0.0),
        ("silence_s", 11.0),
        ("max_utterance_s", 0.5),
        ("cut_off_cost_s", 0.0),
        ("min_silence_s", 0.01),
        ("dictation_silence_s", 11.0),
        ("settle_s", -0.1),
    ],
)
def test_settings_out_of_range_name_the_key_and_the_value(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        EndpointSettings(**{name: value})

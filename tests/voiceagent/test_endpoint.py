"""When a pause ends the turn."""

from __future__ import annotations

import pytest

from voiceagent.endpoint import EndpointDecision, EndpointSettings, decide
from voiceagent.vad import WINDOW_SAMPLES, VoiceActivity

W = WINDOW_SAMPLES


def first_decision(probabilities: list[float], settings: EndpointSettings) -> EndpointDecision | None:
    activity = VoiceActivity()
    for probability in probabilities:
        activity.update(probability)
        if decision := decide(activity.utterance, settings):
            return decision
    return None


def test_nobody_speaking_is_no_endpoint() -> None:
    assert decide(None, EndpointSettings()) is None
    assert first_decision([0.0] * 100, EndpointSettings()) is None


def test_silence_as_long_as_asked_for_ends_the_turn_where_the_voice_ended() -> None:
    decision = first_decision([0.9] * 10 + [0.0] * 100, EndpointSettings(silence_s=0.32))
    assert decision == EndpointDecision(10 * W, 20 * W, "silence")


def test_pause_shorter_than_the_silence_keeps_the_turn_open() -> None:
    words = [0.9] * 10 + [0.0] * 9
    assert first_decision(words * 5 + [0.9], EndpointSettings(silence_s=0.32)) is None


def test_a_word_that_begins_in_the_last_moment_of_the_silence_keeps_the_turn_open() -> None:
    settings = EndpointSettings(silence_s=0.32)
    pause = [0.9] * 10 + [0.0] * 9
    assert first_decision(pause + [0.9] * 2, settings) is None
    breath = first_decision([*pause, 0.9, 0.0], settings)
    assert breath == EndpointDecision(10 * W, 21 * W, "silence")


def test_silence_counts_from_the_last_voice_of_several() -> None:
    decision = first_decision(([0.9] * 10 + [0.0] * 5) * 2 + [0.0] * 50, EndpointSettings(silence_s=0.32))
    assert decision is not None
    assert decision.speech_end_sample == 25 * W


def test_a_voice_that_never_stops_is_a_turn_by_force() -> None:
    decision = first_decision([0.9] * 100, EndpointSettings(max_utterance_s=1.0))
    assert decision == EndpointDecision(32 * W, 32 * W, "too_long")


@pytest.mark.parametrize(("name", "value"), [("silence_s", 0.0), ("silence_s", 11.0), ("max_utterance_s", 0.5)])
def test_settings_out_of_range_name_the_key_and_the_value(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        EndpointSettings(**{name: value})

"""Voice activity: hysteresis, minimum lengths, media time; windows and pre-roll."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceagent.vad import (
    WINDOW_SAMPLES,
    Paused,
    PreRoll,
    Resumed,
    Started,
    VadSettings,
    VoiceActivity,
    VoiceChange,
    Windower,
)

W = WINDOW_SAMPLES


def changes(activity: VoiceActivity, probabilities: Iterable[float]) -> list[VoiceChange]:
    return [change for probability in probabilities for change in activity.update(probability)]


def test_speech_starts_after_the_minimum_and_is_dated_back_to_its_first_window() -> None:
    activity = VoiceActivity()
    assert changes(activity, [0.1, 0.2, 0.9, 0.9]) == []
    assert not activity.is_speaking
    assert changes(activity, [0.9]) == [Started(2 * W)]
    assert activity.is_speaking
    assert activity.position_sample == 5 * W


def test_a_click_shorter_than_the_minimum_starts_nothing() -> None:
    assert changes(VoiceActivity(), [0.9, 0.9, 0.1] * 10) == []


def test_speech_stays_open_between_the_two_thresholds() -> None:
    activity = VoiceActivity(VadSettings(threshold=0.5, hysteresis=0.15))
    assert changes(activity, [0.6, 0.4, 0.36]) == [Started(0)]
    assert changes(activity, [0.36] * 20) == []
    assert changes(activity, [0.34]) == [Paused(23 * W)]


def test_a_probability_between_the_thresholds_does_not_open() -> None:
    assert changes(VoiceActivity(), [0.4] * 20) == []


def test_a_pause_is_dated_to_its_first_silent_window_and_counts_silence() -> None:
    activity = VoiceActivity()
    assert changes(activity, [0.9] * 4 + [0.0] * 3) == [Started(0), Paused(4 * W)]
    utterance = activity.utterance
    assert utterance is not None
    assert utterance.is_paused
    assert utterance.voice_end_sample == 4 * W
    assert utterance.silence_s == pytest.approx(3 * 0.032)
    assert utterance.duration_s == pytest.approx(7 * 0.032)


def test_voice_that_comes_back_resumes_the_same_utterance() -> None:
    activity = VoiceActivity()
    heard = changes(activity, [0.9] * 4 + [0.0] * 3 + [0.9] * 2)
    assert heard == [Started(0), Paused(4 * W), Resumed(7 * W)]
    assert activity.utterance is not None
    assert activity.utterance.silence_s == 0
    assert activity.utterance.start_sample == 0


def test_one_window_of_breath_does_not_interrupt_the_silence() -> None:
    activity = VoiceActivity()
    heard = changes(activity, [0.9] * 4 + [0.0] * 3 + [0.9] + [0.0] * 3)
    assert heard == [Started(0), Paused(4 * W)]
    assert activity.utterance is not None
    assert activity.utterance.silence_s == pytest.approx(7 * 0.032)


def test_after_the_end_the_next_voice_is_a_new_utterance_on_the_same_timeline() -> None:
    activity = VoiceActivity()
    changes(activity, [0.9] * 4 + [0.0] * 4)
    activity.end_utterance()
    assert activity.utterance is None
    assert changes(activity, [0.0] * 2 + [0.9] * 3) == [Started(10 * W)]


def test_voice_that_goes_on_through_the_end_starts_anew_at_once() -> None:
    activity = VoiceActivity()
    changes(activity, [0.9] * 4)
    activity.end_utterance()
    assert changes(activity, [0.9] * 3) == [Started(4 * W)]


def test_while_the_agent_speaks_opening_takes_a_higher_probability_and_longer_speech() -> None:
    activity = VoiceActivity()
    echo = [activity.update(0.6, agent_is_speaking=True) for _ in range(50)]
    assert not any(echo)
    caller = [activity.update(0.9, agent_is_speaking=True) for _ in range(6)]
    assert caller == [(), (), (), (), (), (Started(50 * W),)]


def test_the_agents_voice_does_not_make_it_harder_to_go_on() -> None:
    activity = VoiceActivity()
    changes(activity, [0.9] * 3)
    assert not any(activity.update(0.4, agent_is_speaking=True) for _ in range(10))
    assert activity.utterance is not None and not activity.utterance.is_paused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 0.0),
        ("threshold", 1.0),
        ("hysteresis", -0.1),
        ("min_speech_s", 6.0),
        ("agent_threshold_rise", 1.0),
    ],
)
def test_settings_out_of_range_name_the_key_and_the_value(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        VadSettings(**{name: value})


@given(st.lists(st.floats(0, 1), max_size=200), st.booleans())
def test_changes_always_alternate_and_time_never_goes_back(probabilities: list[float], agent_is_speaking: bool) -> None:
    activity = VoiceActivity()
    state, last = "idle", 0
    for probability in probabilities:
        for change in activity.update(probability, agent_is_speaking=agent_is_speaking):
            match change:
                case Started(start_sample):
                    assert state == "idle"
                    state, at = "voice", start_sample
                case Paused(at_sample):
                    assert state == "voice"
                    state, at = "pause", at_sample
                case Resumed(at_sample):
                    assert state == "pause"
                    state, at = "voice", at_sample
            assert last <= at <= activity.position_sample
            last = at


@given(st.lists(st.integers(0, 1500), max_size=30))
def test_windows_are_the_same_however_the_input_is_cut(lengths: list[int]) -> None:
    samples = np.arange(sum(lengths), dtype=np.float32)
    windower, start, windows = Windower(), 0, []
    for length in lengths:
        windows += windower.push(samples[start : start + length])
        start += length
    count = len(samples) // W
    assert len(windows) == count
    assert np.array_equal(np.concatenate([*windows, np.zeros(0)]), samples[: count * W])
    assert windower.pending_samples == len(samples) - count * W


def test_a_window_is_a_copy_and_reset_drops_what_is_incomplete() -> None:
    windower = Windower(4)
    source = np.ones(4, np.float32)
    (window,) = windower.push(source)
    source[:] = 0
    assert window.tolist() == [1, 1, 1, 1]
    windower.push(source[:3])
    windower.reset()
    assert windower.pending_samples == 0


@given(st.integers(1, 50), st.lists(st.integers(0, 120), max_size=20), st.integers(0, 2000))
def test_pre_roll_gives_the_newest_samples_from_where_it_is_asked(
    capacity: int, lengths: list[int], since: int
) -> None:
    samples = np.arange(sum(lengths), dtype=np.float32)
    ring, end = PreRoll(capacity), 0
    for length in lengths:
        ring.push(samples[end : end + length])
        end += length
    assert ring.end_sample == end
    assert ring.start_sample == max(end - capacity, 0)
    assert np.array_equal(ring.since(since), samples[max(since, end - capacity, 0) :])


def test_sizes_must_be_positive() -> None:
    for make in (Windower, PreRoll):
        with pytest.raises(ValueError, match="expected a positive number"):
            make(0)

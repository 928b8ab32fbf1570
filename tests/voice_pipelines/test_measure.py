from __future__ import annotations

import numpy as np
import pytest

from voice_pipelines.measure import Track, first_audible_s, percentiles, voice_to_voice_s

RATE = 16_000


def clip(silent_s: float, loud_s: float, level: float = 0.2) -> np.ndarray:  # type: ignore[type-arg]
    tone = level * np.sin(2 * np.pi * 300 * np.arange(round(loud_s * RATE)) / RATE)
    return np.concatenate([np.zeros(round(silent_s * RATE)), tone]).astype(np.float32)


@pytest.mark.parametrize("silent_s", [0.0, 0.1, 0.7305, 3.0])
def test_the_first_audible_frame_is_found_to_its_length(silent_s: float) -> None:
    assert first_audible_s(clip(silent_s, 0.5), RATE) == pytest.approx(silent_s, abs=0.0051)


def test_leading_silence_of_the_voice_counts_as_waiting() -> None:
    assert voice_to_voice_s(clip(1.5, 0.5), RATE, speech_end_s=1.0) == pytest.approx(0.5, abs=0.006)


def test_noise_below_the_threshold_is_not_an_answer() -> None:
    hiss = np.random.default_rng(1).normal(0, 10 ** (-60 / 20), RATE).astype(np.float32)
    assert first_audible_s(hiss, RATE) is None
    assert voice_to_voice_s(hiss, RATE, 0.2) is None


def test_an_agent_that_already_speaks_did_not_wait() -> None:
    assert voice_to_voice_s(clip(0.0, 2.0), RATE, 1.0) == 0.0


def test_percentiles_are_nearest_rank() -> None:
    found = percentiles([value / 100 for value in range(1, 101)])
    assert (found.p50, found.p95, found.p99, found.count) == (0.50, 0.95, 0.99, 100)
    assert percentiles([0.3]).as_ms() == {
        "count": 1,
        "mean_ms": 300.0,
        "p50_ms": 300.0,
        "p95_ms": 300.0,
        "p99_ms": 300.0,
    }
    with pytest.raises(ValueError, match="nothing"):
        percentiles([])


def test_a_track_plays_pieces_one_after_the_other_and_notices_underruns() -> None:
    track = Track(RATE)
    piece = clip(0.0, 0.5)
    track.play(piece, 1.0, continues=False)
    track.play(piece, 1.1, continues=True)
    assert track.end_s == pytest.approx(2.0)
    assert track.underruns_s == []
    track.play(piece, 2.25, continues=True)
    assert track.underruns_s == [pytest.approx(0.25)]
    track.play(piece, 9.0, continues=False)
    assert len(track.underruns_s) == 1, "a new reply after a pause is no underrun"
    audio = track.samples()
    assert first_audible_s(audio, RATE) == pytest.approx(1.0, abs=0.006)
    assert not audio[round(2.01 * RATE) : round(2.24 * RATE)].any()


def test_a_stopped_track_is_silent_from_there() -> None:
    track = Track(RATE)
    track.play(clip(0.0, 2.0), 1.0, continues=False)
    track.stop(1.5)
    assert track.end_s == pytest.approx(1.5)
    assert first_audible_s(track.samples(5.0), RATE, from_s=1.5) is None
    track.play(clip(0.0, 0.2), 3.0, continues=False)
    assert first_audible_s(track.samples(), RATE, from_s=1.6) == pytest.approx(3.0, abs=0.006)

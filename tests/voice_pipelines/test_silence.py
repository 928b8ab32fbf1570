"""Silence around a clause."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from voice_pipelines.silence import SilenceTrimmer

RATE = 1000


def trimmed(samples: np.ndarray, *, cut: int | None = None) -> np.ndarray:
    trimmer = SilenceTrimmer(RATE, lead_s=0.002, tail_s=0.01)
    step = cut or max(len(samples), 1)
    parts = [trimmer.push(samples[i : i + step]) for i in range(0, len(samples), step)]
    return np.concatenate([*parts, trimmer.flush()])


def test_silence_in_front_is_cut_and_behind_is_shortened() -> None:
    quiet, loud = np.full(50, 0.001, np.float32), np.full(30, 0.5, np.float32)
    assert len(trimmed(np.concatenate([quiet, loud, quiet]))) == 2 + 30 + 10


def test_a_pause_inside_stays_as_it_is() -> None:
    loud, pause = np.full(5, 0.5, np.float32), np.zeros(100, np.float32)
    samples = np.concatenate([loud, pause, loud])
    assert np.array_equal(trimmed(samples), samples)


def test_a_pause_is_held_back_until_voice_follows() -> None:
    trimmer = SilenceTrimmer(RATE)
    assert len(trimmer.push(np.full(5, 0.5, np.float32))) == 5
    assert len(trimmer.push(np.zeros(100, np.float32))) == 0
    assert len(trimmer.push(np.full(5, 0.5, np.float32))) == 105


def test_silence_alone_gives_nothing() -> None:
    assert len(trimmed(np.zeros(500, np.float32))) == 0


@given(st.lists(st.sampled_from([0.0, 0.001, -0.001, 0.5, -0.5]), max_size=120), st.integers(1, 40))
def test_the_same_samples_come_out_however_the_clause_is_cut(values: list[float], cut: int) -> None:
    samples = np.array(values, np.float32)
    assert np.array_equal(trimmed(samples, cut=cut), trimmed(samples))

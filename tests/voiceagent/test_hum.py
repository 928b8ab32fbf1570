"""What sounds like a hum: on sounds made here, whose nature is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from voiceagent.backends import INPUT_RATE_HZ, Samples
from voiceagent.hum import LEAST_S, likeness, traits
from voiceagent.hum_weights import TRAITS

RATE = INPUT_RATE_HZ


def murmur(duration_s: float, pitch_hz: float = 120.0, level: float = 0.2) -> Samples:
    """Harmonics that fall by 12 dB an octave, and do not move."""
    t = np.arange(round(duration_s * RATE)) / RATE
    parts = [np.sin(2 * np.pi * pitch_hz * k * t) / k**2 for k in range(1, 25)]
    sound: Samples = (level * np.sum(parts, axis=0)).astype(np.float32)
    return sound


def hiss(duration_s: float, level: float = 0.1, seed: int = 1) -> Samples:
    """Frication: noise whose energy lies high."""
    noise = np.random.default_rng(seed).standard_normal(round(duration_s * RATE) + 1)
    return (level * np.diff(noise)).astype(np.float32)


@pytest.mark.parametrize("pitch_hz", [90.0, 140.0, 230.0])
def test_a_steady_murmur_is_a_hum_at_every_pitch(pitch_hz: float) -> None:
    assert likeness(murmur(0.35, pitch_hz)) > 0.8


def test_frication_and_closures_make_a_word_of_it() -> None:
    word = np.concatenate([hiss(0.1), murmur(0.1), np.zeros(800, np.float32), hiss(0.08, 0.2), murmur(0.1, 180.0)])
    assert likeness(word) < 0.5


@pytest.mark.parametrize("gain", [0.02, 0.5, 3.0])
def test_loudness_says_nothing(gain: float) -> None:
    assert likeness(gain * murmur(0.4)) == pytest.approx(likeness(murmur(0.4)), abs=0.02)


@pytest.mark.parametrize("size", [0, 1, 399, round(LEAST_S * RATE) - 1])
def test_what_is_too_short_is_no_hum(size: int) -> None:
    assert likeness(np.ones(size, np.float32)) == 0.0


@pytest.mark.parametrize(
    "samples",
    [np.zeros(8000, np.float32), np.ones(8000, np.float32), np.eye(1, 1600, 800, dtype=np.float32)[0], hiss(3.0)],
)
def test_any_sound_has_a_probability(samples: Samples) -> None:
    assert math.isfinite(likeness(samples)) and 0.0 <= likeness(samples) <= 1.0


def test_every_trait_has_its_weight() -> None:
    assert len(traits(murmur(0.3))) == len(TRAITS) - 1
    assert all(spread > 0 for _, spread, _ in TRAITS.values())

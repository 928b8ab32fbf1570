"""What sounds like a hum: on sounds made here, whose nature is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from voiceagent import hum_weights as weights
from voiceagent.backends import INPUT_RATE_HZ, Samples
from voiceagent.hum import LEAST_S, likeness, traits

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


def vowel(begin_hz: tuple[float, ...], end_hz: tuple[float, ...], pitch_hz: float) -> Samples:
    """0.35 s whose resonances go from the first to the last."""
    t = np.arange(round(0.35 * RATE)) / RATE
    sound = np.zeros(t.size)
    for hz in pitch_hz * np.arange(1, 30):
        resonances = [
            gain / (1 + ((hz - np.linspace(begin, end, t.size)) / 90) ** 2)
            for begin, end, gain in zip(begin_hz, end_hz, (1.0, 0.7, 0.4), strict=True)
        ]
        sound += np.sum(resonances, axis=0) * np.sin(2 * np.pi * hz * t) / np.sqrt(hz / pitch_hz)
    return (0.1 * sound).astype(np.float32)


@pytest.mark.parametrize("pitch_hz", [90.0, 140.0, 230.0])
def test_two_murmurs_around_a_breath_are_a_hum(pitch_hz: float) -> None:
    breath = (0.01 * np.random.default_rng(1).standard_normal(1000)).astype(np.float32)
    assert likeness(np.concatenate([murmur(0.13, pitch_hz), breath, murmur(0.2, 1.1 * pitch_hz)])) > 0.8


@pytest.mark.parametrize("pitch_hz", [90.0, 140.0, 230.0])
def test_a_vowel_that_becomes_another_is_a_word(pitch_hz: float) -> None:
    open_mouth, front = (700.0, 1100.0, 2500.0), (350.0, 2100.0, 2800.0)
    assert likeness(vowel(open_mouth, front, pitch_hz)) < 0.3
    assert likeness(vowel(front, open_mouth, pitch_hz)) < 0.3


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
    many, hidden = weights.INTO.shape
    assert traits(murmur(0.3)).shape == weights.MEANS.shape == weights.SPREADS.shape == (many,)
    assert weights.INTO_BIAS.shape == weights.OUT.shape == (hidden,)
    assert (weights.SPREADS > 0).all()

"""How a voice sounds before a pause: on voices made here, whose nature is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from voiceagent.backends import INPUT_RATE_HZ, Samples
from voiceagent.endpoint_sound import (
    LOOK_BACK_S,
    MOST_ODDS,
    NAMES,
    NOTHING_S,
    UNHEARD_FRAMES,
    a_voice,
    completeness,
    heard_s,
    probability,
    table_of,
    traits,
)
from voiceagent.endpoint_sound_weights import TRAITS

RATE = INPUT_RATE_HZ
SYLLABLE_S, HOLE_S = 0.16, 0.05


def syllables(pitches_hz: list[float], levels: list[float], lengths_s: list[float] | None = None) -> Samples:
    """Harmonics that fall by 12 dB an octave, with a short hole between syllables."""
    parts = []
    for pitch_hz, level, length_s in zip(pitches_hz, levels, lengths_s or [SYLLABLE_S] * len(levels), strict=True):
        t = np.arange(round(length_s * RATE)) / RATE
        sound = sum(np.sin(2 * np.pi * pitch_hz * k * t) / k**2 for k in range(1, 15))
        fade = np.minimum(np.minimum(np.arange(t.size), np.arange(t.size)[::-1]) / (0.02 * RATE), 1)
        parts += [level * sound * fade, np.zeros(round(HOLE_S * RATE))]
    voice: Samples = (0.2 * np.concatenate(parts[:-1])).astype(np.float32)
    return voice + (1e-4 * np.random.default_rng(1).standard_normal(voice.size)).astype(np.float32)


EVEN = syllables([130.0] * 9, [1.0] * 9)
FALLING = syllables(
    [150, 150, 148, 150, 145, 140, 130, 112, 95], [1, 1, 1, 1, 1, 0.9, 0.7, 0.35, 0.2], [0.16] * 8 + [0.3]
)
"""Lower, softer and slower at the end."""


def found(voice: Samples) -> dict[str, float]:
    measured = traits(voice)
    assert measured is not None
    return dict(zip(NAMES, measured.tolist(), strict=True))


def test_a_voice_that_falls_off_sounds_more_like_an_end_than_one_that_stays() -> None:
    end, middle = completeness(FALLING), completeness(EVEN)
    assert end is not None and middle is not None and end > 0.5 and end > middle + 0.1


def test_what_is_measured_is_the_end_against_the_rest() -> None:
    even, falling = found(EVEN), found(FALLING)
    for name in ("pitch_end", "pitch_quarter", "pitch_slope_500ms", "voice_200ms", "voice_500ms", "syllable_end"):
        assert falling[name] < even[name] - 1.5 and abs(even[name]) < 3.0, name
    assert falling["stretch_against_others"] > even["stretch_against_others"] + 0.2


@pytest.mark.parametrize("gain", [0.05, 0.5, 2.0])
def test_loudness_says_nothing(gain: float) -> None:
    assert completeness(gain * FALLING) == pytest.approx(completeness(FALLING), abs=0.05)


def test_the_last_moments_of_the_voice_are_not_listened_to() -> None:
    voice = syllables([130.0] * 8, [1.0] * 8, [0.16] * 7 + [0.5])
    faded = voice.copy()
    last = round((UNHEARD_FRAMES * 0.01 - 0.02) * RATE)
    faded[-last:] *= np.linspace(1, 0.1, last, dtype=np.float32)
    assert completeness(faded) == pytest.approx(completeness(voice), abs=0.03)


def test_only_the_last_seconds_are_listened_to() -> None:
    long = np.concatenate([syllables([300.0] * 6, [3.0] * 6), EVEN, FALLING])
    newest = long[-round(LOOK_BACK_S * RATE) :]
    assert completeness(long) == completeness(newest)


@pytest.mark.parametrize("duration_s", [0.0, 0.0001, 0.03, 0.1, 0.3, NOTHING_S])
def test_nothing_is_said_of_a_voice_with_nothing_to_compare(duration_s: float) -> None:
    assert completeness(FALLING[: round(duration_s * RATE)]) is None


def test_what_is_said_of_a_short_voice_counts_for_less() -> None:
    table = table_of({**dict.fromkeys(NAMES, (0.0, 1.0, 0.0)), "bias": (0.0, 1.0, 2.0)})
    measured = np.zeros(len(NAMES))
    said = [probability(measured, table, duration_s) for duration_s in (0.5, 0.6, 0.85, 1.2, 5.0)]
    assert said[0] is None and said[3] == said[4] == pytest.approx(1 / (1 + math.exp(-2)))
    assert said[2] == pytest.approx(1 / (1 + math.exp(-1)))
    assert 0.5 < (said[1] or 0) < (said[2] or 0)
    assert probability(None, table, 5.0) is None


def test_a_sound_alone_is_never_sure() -> None:
    for bias in (-100.0, 100.0):
        table = table_of({**dict.fromkeys(NAMES, (0.0, 1.0, 0.0)), "bias": (0.0, 1.0, bias)})
        said = probability(np.zeros(len(NAMES)), table, 3.0)
        assert said is not None and abs(math.log(said / (1 - said))) == pytest.approx(MOST_ODDS)


def noise(duration_s: float) -> Samples:
    return (0.1 * np.random.default_rng(1).standard_normal(round(duration_s * RATE))).astype(np.float32)


@pytest.mark.parametrize(
    "voice",
    [
        np.zeros(48_000, np.float32),
        np.ones(48_000, np.float32),
        np.eye(1, 32_000, 16_000, dtype=np.float32)[0],
        noise(4.0),
        np.sign(np.tile(FALLING, 3)),
        np.concatenate([np.zeros(32_000, np.float32), FALLING[:2000]]),
        1e-9 * FALLING,
        1e4 * FALLING,
    ],
)
def test_any_sound_has_a_probability_or_none(voice: Samples) -> None:
    said = completeness(voice)
    assert said is None or 0.0 < said < 1.0
    measured = traits(voice)
    assert measured is None or np.isfinite(measured).all()


def test_every_trait_has_its_weight() -> None:
    measured = traits(EVEN)
    assert measured is not None and len(measured) == len(TRAITS) - 1 == len(NAMES)
    assert all(spread > 0 for _, spread, _ in TRAITS.values())
    assert heard_s(EVEN) == pytest.approx(EVEN.size / RATE - 0.06)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", [slice(None), slice(-4000, -3999)])
def test_nothing_is_said_of_what_is_no_sound(value: float, where: slice) -> None:
    voice = FALLING.copy()
    voice[where] = value
    with np.errstate(invalid="ignore"):
        assert completeness(voice) is None


def test_what_the_first_call_costs_is_spent_on_a_voice_of_which_everything_is_measured() -> None:
    voice = a_voice()
    assert voice.dtype == np.float32 and voice.size == LOOK_BACK_S * RATE
    assert completeness(voice) is not None and found(voice)["since_syllable"] != 0

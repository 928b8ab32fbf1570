"""Whether a voice sounds as at the end of a turn before it pauses. Pure numpy, no recogniser.

    completeness(voice)     # of the utterance so far up to its last voiced sample; at most once per pause

Who ends a turn lowers voice and pitch, lets the last syllable fall off, and slows down; who goes on does less of it. Measured is how the last half second differs from the
seconds before it, so neither loudness nor the height of a voice counts, and a logistic regression weighs it. The last 60 ms of voice are not listened to: what they tell is how
sound was cut, or how a room rings. Of a voice of half a second there is nothing to compare with, so nothing is said; what is said of one little longer counts for less.

It knows nothing of words, so it is weighed beside whoever judges them. `benchmarks/turn_sound.py` sets it on people's orders and commands; docs/endpointing.md says how it
does on speakers that it was not set on, and that readers who pause within a sentence sound to it as at its end.

Sources: what foretells an end is A. Gravano and J. Hirschberg, Turn-taking cues in task-oriented dialogue (Computer Speech and Language 25, 2011), and L. Ferrer,
E. Shriberg and A. Stolcke, Is the speaker done yet? (ICSLP 2002); pitch by autocorrelation divided by the window's, P. Boersma (IFA Proceedings 17, 1993).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voiceagent.backends import INPUT_RATE_HZ, Samples
from voiceagent.endpoint_sound_weights import TRAITS

# N: frames of 40 ms, 10 ms apart. B: bands. V: voiced frames. T: traits.
Floats = NDArray[np.float32]
Marks = NDArray[np.bool_]

LOOK_BACK_S = 3.0
"""Of voice before the pause, at most."""
NOTHING_S, ENOUGH_S = 0.5, 1.2
"""Of voice up to 60 ms before its end: with less than the first nothing is said, with more than the second it counts in full."""
CLIP = 3.0
"""Standard deviations beyond which a trait counts no more."""
MOST_ODDS = 4.0
"""Log-odds are kept so far from certainty: a sound alone is never sure."""
FRAME_S = 0.01
UNHEARD_FRAMES = 6
"""At the end, which tell how sound was cut and how a room rings."""
HEARD_DB, VOICED_DB = 25.0, 20.0
"""Below the loudest frames: what is part of the voice, and what may be voiced."""
VOICED = 0.45
"""Least periodicity of a voiced frame."""
LEAST_VOICED = 8
"""Frames; with fewer there is no pitch to speak of."""
EDGES_HZ = (100, 250, 400, 600, 850, 1150, 1500, 2000, 2600, 3400)
"""[B + 1] Within what a telephone carries."""

_RATE_HZ = INPUT_RATE_HZ // 2
_HALF_BAND = (9 / 32, -1 / 32)
"""Taps one and three samples beside the middle one, which weighs a half."""
_SIZE, _HOP, _FFT = round(0.04 * _RATE_HZ), round(FRAME_S * _RATE_HZ), 512
_TAPER = np.hanning(_SIZE + 1)[:-1].astype(np.float32)
_HZ = np.fft.rfftfreq(_FFT, 1 / _RATE_HZ)
_BANDS = np.stack([(_HZ >= low) & (_HZ < high) for low, high in itertools.pairwise(EDGES_HZ)], axis=1).astype(
    np.float32
)
_PITCHES = np.arange(-6.0, 24.0, 0.25, dtype=np.float32)
"""Semitones above 100 Hz: 71 to 394 Hz."""
_LAGS = _RATE_HZ / (100.0 * 2 ** (_PITCHES / 12))
_PITCHED = slice(4, 97)
"""Bins from 60 to 1500 Hz."""
_COSINES = np.cos(2 * np.pi * np.outer(np.arange(_PITCHED.start, _PITCHED.stop), _LAGS) / _FFT).astype(np.float32)
_WINDOW = np.fft.irfft(np.abs(np.fft.rfft(_TAPER, _FFT)) ** 2, _FFT)
_COSINES /= np.interp(_LAGS, np.arange(_FFT), _WINDOW / _WINDOW[0]).astype(np.float32)
_OCTAVE = 0.03
"""Of periodicity, that a pitch an octave lower must be better by: half of a pitch fits as well as the pitch."""
_FAVOUR = (_OCTAVE * _PITCHES / 12).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Voice:
    """What is listened to: the voice without its last 60 ms."""

    bands_db: Floats
    """[N, B]"""
    level_db: Floats
    """[N] Without the lowest band, which telephones lack."""
    tilt_db: Floats
    """[N] What lies above 1.5 kHz against what lies below."""
    periodicity: Floats
    """[N]"""
    pitch: Floats
    """[N] Semitones above 100 Hz; says something where the frame is voiced."""
    is_heard: Marks
    """[N]"""
    stretches: tuple[tuple[int, int], ...]
    """Voiced frames in a row, first and one past the last."""
    voiced: NDArray[np.intp]
    """[V] All of them."""


def completeness(voice: Samples) -> float | None:
    """The probability that a turn which sounds like this is over, where there are five ends to three pauses; None where too little was heard, or what is no sound (NaN).

    Args:
        voice: 16 kHz, up to the last voiced sample before the pause; the last `LOOK_BACK_S` of it are listened to.
    """
    return probability(traits(voice), _TABLE, heard_s(voice))


def warm_up() -> None:
    """Spend now what the first call costs more than the others: what numpy loads and plans when it is first asked."""
    completeness(a_voice())


def a_voice() -> Samples:
    """[48000] Two seconds and more of syllables that fall in pitch, in a little noise: something of everything that is measured."""
    t = np.arange(round(LOOK_BACK_S * INPUT_RATE_HZ)) / INPUT_RATE_HZ
    turns = np.cumsum(150 - 15 * t) / INPUT_RATE_HZ
    buzz = np.stack([np.sin(2 * np.pi * k * turns) / k for k in range(1, 12)]).sum(axis=0)
    noise = np.random.default_rng(0).standard_normal(t.size)
    voice: Samples = (0.1 * buzz * (0.55 - 0.45 * np.cos(2 * np.pi * 4 * t)) + 1e-4 * noise).astype(np.float32)
    return voice


def heard_s(voice: Samples) -> float:
    """How much of it is listened to, in seconds."""
    return min(voice.size / INPUT_RATE_HZ, LOOK_BACK_S) - UNHEARD_FRAMES * FRAME_S


def probability(measured: NDArray[np.float64] | None, table: NDArray[np.float64], duration_s: float) -> float | None:
    """What a table of weights makes of what was measured.

    Args:
        measured: [T]; None where there is nothing to measure.
        table: [3, T + 1] means, standard deviations, weights; the last column is the bias.
    """
    share = min((duration_s - NOTHING_S) / (ENOUGH_S - NOTHING_S), 1.0)
    if measured is None or share <= 0:
        return None
    means, spreads, weights = table[:, :-1]
    odds = float(np.clip((measured - means) / spreads, -CLIP, CLIP) @ weights + table[2, -1])
    return 1 / (1 + math.exp(-share * min(max(odds, -MOST_ODDS), MOST_ODDS)))


def traits(voice: Samples) -> NDArray[np.float64] | None:
    """[T] What is weighed, in the order of `TRAITS` without its bias; None where the voice has too few voiced frames."""
    heard = _listen(voice[-round(LOOK_BACK_S * INPUT_RATE_HZ) :])
    if heard is None:
        return None
    voiced, level = heard.voiced, heard.level_db
    pitch, loud = _steadied(heard.pitch[voiced]), level[voiced]
    low, middle, high = np.percentile(pitch, (10, 50, 90)).tolist()
    usual, peak = np.percentile(loud, (50, 90)).tolist()
    lengths = np.array([end - start for start, end in heard.stretches]) * FRAME_S
    shape = heard.bands_db - level[:, None]
    flux = np.abs(np.diff(shape, axis=0)).mean(axis=1)
    both = heard.is_heard[1:] & heard.is_heard[:-1]
    usual_flux = flux[both].mean() if both.any() else flux.mean()
    unsteady = np.minimum(np.abs(np.diff(heard.pitch[voiced])), 4.0)
    found = {
        "pitch_end": np.median(pitch[-8:]) - middle,
        "pitch_quarter": np.median(pitch[-25:]) - middle,
        "pitch_above_floor": np.median(pitch[-8:]) - low,
        "pitch_lowest": pitch[-40:].min() - low,
        "pitch_highest": pitch[-40:].max() - high,
        "pitch_slope_200ms": _slope(pitch[-20:], 60.0),
        "pitch_slope_500ms": _slope(pitch[-50:], 40.0),
        "pitch_slope_1s": _slope(pitch[-100:], 20.0),
        "pitch_unsteady": unsteady[-15:].mean() - unsteady.mean(),
        "voice_end": loud[-10:].mean() - usual,
        "voice_200ms": loud[-20:].mean() - usual,
        "voice_500ms": loud[-50:].mean() - usual,
        "voice_highest": loud[-35:].max() - peak,
        "level_300ms": level[-30:].mean() - usual,
        "level_1s": level[-100:].mean() - usual,
        "level_slope_300ms": _slope(level[-30:], 150.0),
        "stretch": math.log(lengths[-1]),
        "stretch_against_others": math.log(lengths[-1]) - np.log(lengths).mean(),
        "since_voiced": (level.size - heard.stretches[-1][1]) * FRAME_S,
        "flux_200ms": flux[-20:].mean() - usual_flux,
        "flux_400ms": flux[-40:].mean() - usual_flux,
        "tilt": heard.tilt_db[voiced[-20:]].mean() - heard.tilt_db[voiced].mean(),
        "periodicity_end": heard.periodicity[voiced[-8:]].mean() - heard.periodicity[voiced].mean(),
        **_pace(heard),
    }
    return np.array([found[name] for name in NAMES])


def _listen(voice: Samples) -> _Voice | None:
    halved = _halved(voice)
    if halved.size < _SIZE + LEAST_VOICED * _HOP:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(halved, _SIZE)[::_HOP]
    spectrum = np.fft.rfft(frames * _TAPER, _FFT, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    bands = power @ _BANDS + np.float32(1e-7)
    level = _db(bands[:, 1:].sum(axis=1))
    if not np.isfinite(level).all():
        return None
    top = np.percentile(level, 95)
    end = int(np.flatnonzero(level > top - HEARD_DB)[-1]) + 1 - UNHEARD_FRAMES
    if end < LEAST_VOICED:
        return None
    power, bands, level = power[:end], bands[:end], level[:end]
    pitched = power[:, _PITCHED]
    fits = (pitched @ _COSINES) / (pitched.sum(axis=1, keepdims=True) + np.float32(1e-9))
    best = (fits + _FAVOUR).argmax(axis=1)
    periodicity = fits[np.arange(end), best]
    stretches = _stretches((periodicity > VOICED) & (level > top - VOICED_DB))
    if sum(last - first for first, last in stretches) < LEAST_VOICED:
        return None
    voiced = np.concatenate([np.arange(*stretch) for stretch in stretches])
    tilt = _db(bands[:, 6:].sum(axis=1) / bands[:, 1:5].sum(axis=1))
    return _Voice(_db(bands), level, tilt, periodicity, _PITCHES[best], level > top - HEARD_DB, stretches, voiced)


def _halved(samples: Samples) -> Floats:
    """The same at 8 kHz, through a half-band filter of seven taps."""
    if samples.size < 8:
        return np.zeros(0, np.float32)
    near, far = _HALF_BAND
    count = (samples.size - 6) // 2
    parts = [samples[at : at + 2 * count : 2] for at in range(7)]
    halved: Floats = 0.5 * parts[3] + near * (parts[2] + parts[4]) + far * (parts[0] + parts[6])
    return halved.astype(np.float32, copy=False)


def _stretches(is_voiced: Marks) -> tuple[tuple[int, int], ...]:
    """Voiced frames in a row, at least three; holes of one or two do not end them."""
    closed = is_voiced.copy()
    for first, last in _rows(~is_voiced):
        if last - first <= 2 and first > 0 and last < is_voiced.size:
            closed[first:last] = True
    return tuple((first, last) for first, last in _rows(closed) if last - first >= 3)


def _rows(marks: Marks) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(np.int8), [0]])))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def _steadied(pitch: Floats) -> Floats:
    """Octaves that were mistaken put right, and the median of five."""
    middle = np.median(pitch)
    near = np.where(pitch > middle + 8.5, pitch - 12, np.where(pitch < middle - 8.5, pitch + 12, pitch))
    steady: Floats = np.median(np.lib.stride_tricks.sliding_window_view(np.pad(near, 2, "edge"), 5), axis=1)
    return steady


def _pace(heard: _Voice) -> dict[str, float]:
    """Syllables, as far as peaks of loudness tell them: how far apart and how loud the last ones are against the others."""
    smooth = np.convolve(heard.level_db, np.full(5, 0.2, np.float32), "same")
    is_voiced = np.zeros(smooth.size, bool)
    is_voiced[heard.voiced] = True
    rises = (smooth[1:-1] >= smooth[:-2]) & (smooth[1:-1] > smooth[2:])
    near = is_voiced[:-2] | is_voiced[1:-1] | is_voiced[2:]
    peaks: list[int] = []
    for at in (np.flatnonzero(rises & near) + 1).tolist():
        if peaks and not _is_another(smooth, peaks[-1], at):
            peaks[-1] = at if smooth[at] > smooth[peaks[-1]] else peaks[-1]
        else:
            peaks.append(at)
    if not peaks:
        return {"since_syllable": 0.0, "pace_end": 0.0, "pace_last": 0.0, "syllable_end": 0.0, "syllables_end": 0.0}
    gaps = np.diff(peaks) * FRAME_S
    gaps = gaps[gaps < _LONGEST_SYLLABLE_S]
    usual_s = float(np.median(gaps)) if gaps.size else _USUAL_SYLLABLE_S
    loud = smooth[peaks]
    return {
        "since_syllable": math.log(((smooth.size - peaks[-1]) * FRAME_S + 0.03) / usual_s),
        "pace_end": math.log(gaps[-1] / usual_s) if gaps.size else 0.0,
        "pace_last": math.log(gaps[-3:].mean() / usual_s) if gaps.size > 2 else 0.0,
        "syllable_end": float(loud[-1] - np.median(loud)),
        "syllables_end": float(loud[-3:].mean() - np.median(loud)),
    }


_LONGEST_SYLLABLE_S, _USUAL_SYLLABLE_S = 0.6, 0.22
_DIP_DB, _APART = 2.5, 6
"""Between two syllables the voice falls by as much, and they are so many frames apart."""


def _is_another(smooth: Floats, last: int, at: int) -> bool:
    dip = smooth[last : at + 1].min()
    return at - last >= _APART and min(smooth[at], smooth[last]) - dip >= _DIP_DB


def _slope(values: Floats, most: float) -> float:
    """Of a line through them, per second, at most so steep; 0 of fewer than five."""
    if values.size < 5:
        return 0.0
    at = (np.arange(values.size) - (values.size - 1) / 2) * FRAME_S
    return float(np.clip((at * (values - values.mean())).sum() / np.square(at).sum(), -most, most))


def _db(power: Floats) -> Floats:
    decibels: Floats = 10 * np.log10(power)
    return decibels


def table_of(weights: Mapping[str, tuple[float, float, float]]) -> NDArray[np.float64]:
    """[3, T + 1] Of weights by name, the bias last."""
    return np.array(list(weights.values()), np.float64).T


NAMES = tuple(name for name in TRAITS if name != "bias")
_TABLE = table_of(TRAITS)

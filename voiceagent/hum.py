"""Whether a short voice sounds like a hum, "mhm", "uh-huh", "oh", rather than like words. Pure numpy, no recogniser.

    likeness(samples)     # of the voice so far, from `LEAD_S` before its first voiced sample

A hum is one voiced sound that hardly moves, or two alike around a breath: its spectrum stays, most of it lies low, and no frication and no closure cuts
it. Words move. What is measured of that are means over frames, the course of spectrum and level in fifths, the deepest dip, and the pitch; three small nets with one hidden
layer weigh it, set side by side as one. They were set by `benchmarks/hum.py` on made hums (eSpeak, and a synthesizer of its own, also through the resonances of people's
voices) against made words and people's recordings; docs/barge-in.md says how they do on voices and people they were not set on. Nobody's real hums were among them.

Sources: spectral shape and flux as in E. Scheirer and M. Slaney, "Construction and evaluation of a robust multifeature speech/music discriminator"
(ICASSP 1997); backchannels as short, voiced and spectrally stable: N. Ward and W. Tsukahara, Journal of Pragmatics 32 (2000).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voiceagent import hum_weights as weights
from voiceagent.backends import INPUT_RATE_HZ, Samples

# N: frames of 25 ms, 10 ms apart. B: bands. T: traits.
Floats = NDArray[np.float32]

LEAD_S = 0.096
"""Before the first voiced sample: an "s" is no voice, but a word."""
LEAST_S = 0.1
EDGES_HZ = (100, 250, 400, 600, 850, 1150, 1500, 2000, 2600, 3400)
"""[B + 1] Within what a telephone carries."""
LOUD_DB, HEARD_DB = 15.0, 25.0
"""Below the loudest frame: frames that carry the voice, and frames that are part of it."""
LEAST_DB = -40.0
CLIP = 4.0
"""Standard deviations beyond which a trait counts no more."""
PARTS = 5
"""In which the course of a voice is told."""
PITCHED = 0.5
"""Periodicity from which a frame's pitch counts."""

_SIZE, _HOP, _FFT = round(0.025 * INPUT_RATE_HZ), round(0.01 * INPUT_RATE_HZ), 512
_TAPER = np.hanning(_SIZE + 1)[:-1].astype(np.float32)
_HZ = np.fft.rfftfreq(_FFT, 1 / INPUT_RATE_HZ)[: math.ceil(EDGES_HZ[-1] * _FFT / INPUT_RATE_HZ)]
"""[F] Of the bins that are looked at."""
_BANDS = np.stack([(_HZ >= low) & (_HZ < high) for low, high in itertools.pairwise(EDGES_HZ)], axis=1).astype(
    np.float32
)
_NUMBERS = np.arange(len(EDGES_HZ) - 1, dtype=np.float32)
_AT_ONCE = 32
_FAR = 6
"""Frames: as far apart as a syllable's vowel takes to become another."""
_PITCH_LAGS = np.arange(INPUT_RATE_HZ // 400, INPUT_RATE_HZ // 70)
_VOICE_BINS = int((_HZ < 1500).sum())
"""Bins whose pitch is looked for."""
_WAVES = 2 * np.cos(2 * np.pi * np.outer(_HZ[:_VOICE_BINS], np.concatenate([[0], _PITCH_LAGS])) / INPUT_RATE_HZ)
_WAVES[0] /= 2
_AUTOCORRELATION = (_WAVES / _FFT).astype(np.float32)
"""[_VOICE_BINS, 1 + lags] From power to the autocorrelation at no lag and at those of a pitch: of an inverse transform, what is needed."""


@dataclass(frozen=True, slots=True)
class _Frames:
    power: Floats
    """[N, B]"""
    level_db: Floats
    """[N]"""
    shape_db: Floats
    """[N, B] Each band against the whole."""
    periodicity: Floats
    """[N] Normalised autocorrelation at the best pitch between 70 and 400 Hz, of what lies below 1.5 kHz."""
    pitch_hz: Floats
    """[N]"""

    high_db: Floats
    """[N] What lies above 2 kHz, against what lies below 850 Hz."""
    is_loud: NDArray[np.bool_]
    """[N]"""
    is_heard: NDArray[np.bool_]
    """[N]"""


def likeness(samples: Samples) -> float:
    """The probability that these samples, 16 kHz, are a hum; 0 for less than `LEAST_S`."""
    if samples.size < LEAST_S * INPUT_RATE_HZ:
        return 0.0
    return probability(standard(traits(samples)))


def standard(measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., T] Traits in standard deviations from their means, as they are weighed."""
    return np.clip((measured - weights.MEANS) / weights.SPREADS, -CLIP, CLIP)


def probability(standardised: NDArray[np.float64]) -> float:
    """Of a hum, by what `standard` makes of its traits, [T]."""
    hidden = np.tanh(standardised @ weights.INTO + weights.INTO_BIAS)
    return float(1 / (1 + np.exp(-(hidden @ weights.OUT + weights.OUT_BIAS))))


def traits(samples: Samples) -> NDArray[np.float64]:
    """[T] What is weighed; of samples of at least `LEAST_S`."""
    frames = _frames(samples)
    return np.concatenate([_means(frames), _course(frames), _dip(frames), _tune(frames)])


def _means(frames: _Frames) -> NDArray[np.float64]:
    """How its spectrum lies, moves and is cut."""
    loud, heard = frames.is_loud, frames.is_heard
    shape = frames.shape_db
    pairs = loud[1:] & loud[:-1]
    flux = np.sort(np.abs(np.diff(shape, axis=0)).mean(axis=1)[pairs])
    steps = np.abs(np.diff(frames.level_db))[pairs]
    far = loud[_FAR:] & loud[:-_FAR]
    slow = np.sort(np.abs(shape[_FAR:] - shape[:-_FAR]).mean(axis=1)[far])
    power, high_db, periodicity = frames.power, frames.high_db, np.sort(frames.periodicity[loud])
    centre = ((power @ _NUMBERS) / power.sum(axis=1))[loud]
    shape_loud = shape[loud]
    third = max(len(shape_loud) // 3, 1)
    begin, middle, end = (shape_loud[part] for part in (slice(third), slice(third, 2 * third), slice(-third, None)))
    begin_db = begin.mean(axis=0)
    high_heard = np.sort(high_db[heard])
    above, below = (np.sort(power[:, part].sum(axis=1)) for part in (slice(6, None), slice(4)))
    return np.array(
        [
            *shape_loud.mean(axis=0),
            *shape_loud.std(axis=0),
            flux.mean() if flux.size else 0.0,
            _quantile(flux, 0.9) if flux.size else 0.0,
            slow.mean() if slow.size else 0.0,
            _quantile(slow, 0.9) if slow.size else 0.0,
            periodicity.mean(),
            _quantile(periodicity, 0.1),
            high_db[loud].mean(),
            _quantile(high_heard, 0.8),
            _quantile(high_heard, 0.95),
            _db(power[:, 8].max() / power[:, 2:5].sum(axis=1).max()),
            10 * math.log10(_quantile(above, 0.95) / _quantile(below, 0.95)),
            loud.mean(),
            len(shape_loud) * _HOP / INPUT_RATE_HZ,
            frames.level_db[loud].std(),
            steps.mean() if steps.size else 0.0,
            centre.mean(),
            centre.std(),
            centre.max() - centre.min(),
            np.abs(begin_db - end.mean(axis=0)).mean(),
            np.abs(begin_db - middle.mean(axis=0)).mean() if len(middle) else 0.0,
        ]
    )


def _course(frames: _Frames) -> NDArray[np.float64]:
    """[PARTS * (B + 1)] Its spectrum and its level in equal parts of the time between the first loud frame and the last, against the whole."""
    loud = np.flatnonzero(frames.is_loud)
    whole = frames.shape_db[loud].mean(axis=0)
    level = frames.level_db - frames.level_db.max()
    edges = np.linspace(loud[0], loud[-1] + 1, PARTS + 1).astype(int)
    first, last = edges[:-1], np.maximum(edges[1:], edges[:-1] + 1)
    sums = np.zeros((len(level) + 1, 1 + len(whole)))
    np.cumsum(np.column_stack([level, frames.shape_db]), axis=0, out=sums[1:])
    means = (sums[last] - sums[first]) / (last - first)[:, None]
    return np.concatenate([(means[:, 1:] - whole).reshape(-1), np.maximum(means[:, 0], LEAST_DB)])


def _dip(frames: _Frames) -> NDArray[np.float64]:
    """Of two syllables, what lies between them: "mhm" breathes, a word closes or hisses there; and how alike they are."""
    level = np.convolve(np.maximum(frames.level_db - frames.level_db.max(), LEAST_DB), np.ones(3) / 3, "same")
    before, behind = np.maximum.accumulate(level), np.maximum.accumulate(level[::-1])[::-1]
    depth = np.minimum(before, behind) - level
    at = int(depth.argmax())
    wide = slice(max(at - 2, 0), at + 3)
    loud = frames.is_loud
    loud_at = np.flatnonzero(loud)
    left, right = loud_at[loud_at < at], loud_at[loud_at > at]
    alike = 0.0
    if left.size and right.size:
        alike = float(np.abs(frames.shape_db[left].mean(axis=0) - frames.shape_db[right].mean(axis=0)).mean())
    return np.array(
        [
            depth[at],
            (depth > min(6.0, float(depth[at]) / 2 + 1e-6)).sum() * _HOP / INPUT_RATE_HZ,
            (at - loud_at[0]) / max(loud_at[-1] - loud_at[0], 1),
            alike,
            frames.high_db[wide].mean() - frames.high_db[loud].mean(),
            frames.high_db[wide].mean(),
            frames.periodicity[wide].mean(),
        ]
    )


def _tune(frames: _Frames) -> NDArray[np.float64]:
    """Its pitch, how it spreads, and where it goes, in octaves."""
    pitched = frames.is_loud & (frames.periodicity > PITCHED)
    if pitched.sum() < 4:
        return np.zeros(3)
    octaves = np.log2(frames.pitch_hz[pitched] / 100)
    half = len(octaves) // 2
    all_of_it, before, behind = (np.sort(part) for part in (octaves, octaves[:half], octaves[half:]))
    return np.array(
        [
            _quantile(all_of_it, 0.5),
            _quantile(all_of_it, 0.9) - _quantile(all_of_it, 0.1),
            _quantile(behind, 0.5) - _quantile(before, 0.5),
        ]
    )


def _frames(samples: Samples) -> _Frames:
    frames = np.lib.stride_tricks.sliding_window_view(samples, _SIZE)[::_HOP]
    # A few at a time: what is made of them stays in the processor's cache.
    power = np.concatenate([_power(frames[at : at + _AT_ONCE]) for at in range(0, len(frames), _AT_ONCE)])
    bands = power @ _BANDS + np.float32(1e-10)
    level = _db(bands.sum(axis=1))
    lags = power[:, :_VOICE_BINS] @ _AUTOCORRELATION
    best = lags[:, 1:].argmax(axis=1)
    periodicity = lags[np.arange(len(lags)), best + 1] / (lags[:, 0] + np.float32(1e-10))
    pitch = INPUT_RATE_HZ / _PITCH_LAGS[best]
    shape = np.maximum(_db(bands) - level[:, None], LEAST_DB)
    return _Frames(
        bands,
        level,
        shape,
        periodicity,
        pitch.astype(np.float32),
        high_db=_db(bands[:, 7:].sum(axis=1)) - _db(bands[:, :4].sum(axis=1)),
        is_loud=level > level.max() - LOUD_DB,
        is_heard=level > level.max() - HEARD_DB,
    )


def _power(frames: Floats) -> Floats:
    """[N, F] of frames [N, _SIZE]."""
    spectrum = np.fft.rfft(frames * _TAPER, _FFT, axis=1)[:, : len(_HZ)]
    power: Floats = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    return power


def _quantile(ordered: NDArray[np.floating], share: float) -> float:
    """Of values in order, between the two nearest; `np.percentile` takes twenty times as long."""
    at = (len(ordered) - 1) * share
    low = int(at)
    value, above = float(ordered[low]), float(ordered[min(low + 1, len(ordered) - 1)])
    return value + (at - low) * (above - value)


def _db(power: Floats) -> Floats:
    decibels: Floats = 10 * np.log10(power)
    return decibels

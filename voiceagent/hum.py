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
_HZ = np.fft.rfftfreq(_FFT, 1 / INPUT_RATE_HZ)
_BANDS = np.stack([(_HZ >= low) & (_HZ < high) for low, high in itertools.pairwise(EDGES_HZ)], axis=1).astype(
    np.float32
)
_FAR = 6
"""Frames: as far apart as a syllable's vowel takes to become another."""
_PITCH_LAGS = slice(INPUT_RATE_HZ // 400, INPUT_RATE_HZ // 70)


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

    @property
    def high_db(self) -> Floats:
        """[N] What lies above 2 kHz, against what lies below 850 Hz."""
        return _db(self.power[:, 7:].sum(axis=1)) - _db(self.power[:, :4].sum(axis=1))

    @property
    def is_loud(self) -> NDArray[np.bool_]:
        loud: NDArray[np.bool_] = self.level_db > self.level_db.max() - LOUD_DB
        return loud

    @property
    def is_heard(self) -> NDArray[np.bool_]:
        heard: NDArray[np.bool_] = self.level_db > self.level_db.max() - HEARD_DB
        return heard


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
    flux = np.abs(np.diff(shape, axis=0)).mean(axis=1)[pairs]
    steps = np.abs(np.diff(frames.level_db))[pairs]
    far = loud[_FAR:] & loud[:-_FAR]
    slow = np.abs(shape[_FAR:] - shape[:-_FAR]).mean(axis=1)[far]
    power, high_db = frames.power, frames.high_db
    centre = (power * np.arange(power.shape[1])).sum(axis=1) / power.sum(axis=1)
    at = np.flatnonzero(loud)
    third = max(len(at) // 3, 1)
    begin, middle, end = (shape[at[part]] for part in (slice(third), slice(third, 2 * third), slice(-third, None)))
    return np.array(
        [
            *shape[loud].mean(axis=0),
            *shape[loud].std(axis=0),
            flux.mean() if flux.size else 0.0,
            np.percentile(flux, 90) if flux.size else 0.0,
            slow.mean() if slow.size else 0.0,
            np.percentile(slow, 90) if slow.size else 0.0,
            frames.periodicity[loud].mean(),
            np.percentile(frames.periodicity[loud], 10),
            high_db[loud].mean(),
            np.percentile(high_db[heard], 80),
            np.percentile(high_db[heard], 95),
            _db(power[:, 8].max() / power[:, 2:5].sum(axis=1).max()),
            _db(np.percentile(power[:, 6:].sum(axis=1), 95) / np.percentile(power[:, :4].sum(axis=1), 95)),
            loud.mean(),
            len(at) * _HOP / INPUT_RATE_HZ,
            frames.level_db[loud].std(),
            steps.mean() if steps.size else 0.0,
            centre[loud].mean(),
            centre[loud].std(),
            np.ptp(centre[loud]),
            np.abs(begin.mean(axis=0) - end.mean(axis=0)).mean(),
            np.abs(begin.mean(axis=0) - middle.mean(axis=0)).mean() if len(middle) else 0.0,
        ]
    )


def _course(frames: _Frames) -> NDArray[np.float64]:
    """[PARTS * (B + 1)] Its spectrum and its level in equal parts of the time between the first loud frame and the last, against the whole."""
    loud = np.flatnonzero(frames.is_loud)
    whole = frames.shape_db[loud].mean(axis=0)
    level = frames.level_db - frames.level_db.max()
    edges = np.linspace(loud[0], loud[-1] + 1, PARTS + 1)
    parts = [slice(int(low), max(int(high), int(low) + 1)) for low, high in itertools.pairwise(edges)]
    shapes = [frames.shape_db[part].mean(axis=0) - whole for part in parts]
    return np.concatenate([*shapes, [max(float(level[part].mean()), LEAST_DB) for part in parts]])


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
    low, high = np.percentile(octaves, (10, 90))
    half = len(octaves) // 2
    return np.array([np.median(octaves), high - low, np.median(octaves[half:]) - np.median(octaves[:half])])


def _frames(samples: Samples) -> _Frames:
    frames = np.lib.stride_tricks.sliding_window_view(samples, _SIZE)[::_HOP]
    spectrum = np.fft.rfft(frames * _TAPER, _FFT, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    bands = power @ _BANDS + np.float32(1e-10)
    level = _db(bands.sum(axis=1))
    lags = np.fft.irfft(power * (_HZ < 1500), _FFT, axis=1)
    within = lags[:, _PITCH_LAGS]
    periodicity = within.max(axis=1) / (lags[:, 0] + 1e-10)
    pitch = INPUT_RATE_HZ / (_PITCH_LAGS.start + within.argmax(axis=1))
    shape = np.maximum(_db(bands) - level[:, None], LEAST_DB)
    return _Frames(bands, level, shape, periodicity.astype(np.float32), pitch.astype(np.float32))


def _db(power: Floats) -> Floats:
    decibels: Floats = 10 * np.log10(power)
    return decibels

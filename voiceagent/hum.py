"""Whether a short voice sounds like a hum, "mhm", "uh-huh", "oh", rather than like words. Pure numpy, no recogniser.

    likeness(samples)     # of the voice so far, from `LEAD_S` before its first voiced sample

A hum is one voiced sound that hardly moves: its spectrum stays, most of it lies low, and no frication and no closure cuts it. Words move. What is
measured of that are means over frames, and a logistic regression weighs them. It was set by `benchmarks/hum.py` on made hums (eSpeak in sixteen voices, and a
synthesizer of its own) against made words and people's recordings; docs/barge-in.md says how it does on voices and people it was not set on. Nobody's
real hums were among them.

Sources: spectral shape and flux as in E. Scheirer and M. Slaney, "Construction and evaluation of a robust multifeature speech/music discriminator"
(ICASSP 1997); backchannels as short, voiced and spectrally stable: N. Ward and W. Tsukahara, Journal of Pragmatics 32 (2000).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voiceagent.backends import INPUT_RATE_HZ, Samples
from voiceagent.hum_weights import TRAITS

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

_SIZE, _HOP, _FFT = round(0.025 * INPUT_RATE_HZ), round(0.01 * INPUT_RATE_HZ), 512
_TAPER = np.hanning(_SIZE + 1)[:-1].astype(np.float32)
_HZ = np.fft.rfftfreq(_FFT, 1 / INPUT_RATE_HZ)
_BANDS = np.stack([(_HZ >= low) & (_HZ < high) for low, high in itertools.pairwise(EDGES_HZ)], axis=1).astype(
    np.float32
)
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
    means, spreads, weights = _TABLE
    standard = np.clip((traits(samples) - means) / spreads, -CLIP, CLIP)
    return float(1 / (1 + np.exp(-(standard @ weights + TRAITS["bias"][2]))))


def traits(samples: Samples) -> NDArray[np.float64]:
    """[T] What is weighed, in the order of `TRAITS` without its bias; of at least `LEAST_S`."""
    frames = _frames(samples)
    loud, heard = frames.is_loud, frames.is_heard
    shape = frames.shape_db
    pairs = loud[1:] & loud[:-1]
    flux = np.abs(np.diff(shape, axis=0)).mean(axis=1)[pairs]
    steps = np.abs(np.diff(frames.level_db))[pairs]
    power = frames.power
    high_db = _db(power[:, 7:].sum(axis=1)) - _db(power[:, :4].sum(axis=1))
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
            frames.periodicity[loud].mean(),
            np.percentile(frames.periodicity[loud], 10),
            high_db[loud].mean(),
            np.percentile(high_db[heard], 80),
            np.percentile(high_db[heard], 95),
            _db(power[:, 8].max() / power[:, 2:5].sum(axis=1).max()),
            _db(np.percentile(power[:, 6:].sum(axis=1), 95) / np.percentile(power[:, :4].sum(axis=1), 95)),
            loud.mean(),
            frames.level_db[loud].std(),
            steps.mean() if steps.size else 0.0,
            centre[loud].mean(),
            centre[loud].std(),
            np.ptp(centre[loud]),
            np.abs(begin.mean(axis=0) - end.mean(axis=0)).mean(),
            np.abs(begin.mean(axis=0) - middle.mean(axis=0)).mean() if len(middle) else 0.0,
        ]
    )


def _frames(samples: Samples) -> _Frames:
    frames = np.lib.stride_tricks.sliding_window_view(samples, _SIZE)[::_HOP]
    spectrum = np.fft.rfft(frames * _TAPER, _FFT, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    bands = power @ _BANDS + np.float32(1e-10)
    level = _db(bands.sum(axis=1))
    lags = np.fft.irfft(power * (_HZ < 1500), _FFT, axis=1)
    periodicity = lags[:, _PITCH_LAGS].max(axis=1) / (lags[:, 0] + 1e-10)
    shape = np.maximum(_db(bands) - level[:, None], LEAST_DB)
    return _Frames(bands, level, shape, periodicity.astype(np.float32))


def _db(power: Floats) -> Floats:
    decibels: Floats = 10 * np.log10(power)
    return decibels


_TABLE = np.array([row for name, row in TRAITS.items() if name != "bias"], np.float64).T
"""[3, T] Means, standard deviations, weights."""

"""Which cepstral mean to subtract from a caller's audio: the sound of the microphone and the line, not of the words.

The acoustic model expects features with a mean of zero. PocketSphinx's own live estimate counts its starting value as five seconds of
audio, longer than most turns; over a telephone line that alone raised word errors from 19 to 68 in a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COEFFICIENTS = 13

Cepstrum = NDArray[np.float64]
"""[COEFFICIENTS]; the first is the energy."""


@dataclass(frozen=True, slots=True)
class MeanOptions:
    """Defaults were measured; see docs/asr.md.

    Before any word is decoded, `lookahead_blocks` of audio are listened to, or fewer when `pause_blocks` that are `pause_db` below
    the loudest follow it: "yes" must not wait. `prior_frames` frames of 10 ms with the `prior` mean
    (its leading coefficients; the rest are 0) are taken to have come before. Blocks whose energy is more than `gate` below the
    loudest block's are silence and say nothing about the voice.
    """

    lookahead_blocks: int = 12
    prior_frames: float = 30.0
    prior: tuple[float, ...] = (40.0, 3.0, -1.0)
    gate: float = 12.0
    pause_blocks: int = 2
    pause_db: float = 15.0

    def __post_init__(self) -> None:
        if (
            self.lookahead_blocks < 0
            or not self.prior_frames > 0
            or not self.gate > 0
            or len(self.prior) > COEFFICIENTS
        ):
            raise ValueError(
                f"{self}: expected lookahead_blocks >= 0, positive prior_frames and gate, at most {COEFFICIENTS} values"
            )


def heard_enough(levels_dbfs: Sequence[float], options: MeanOptions) -> bool:
    """Whether decoding may begin after blocks of this loudness."""
    if len(levels_dbfs) >= options.lookahead_blocks:
        return True
    tail = levels_dbfs[-options.pause_blocks :]
    return (
        max(tail, default=0.0) < max(levels_dbfs, default=0.0) - options.pause_db and len(tail) == options.pause_blocks
    )


class RunningMean:
    """The mean of an utterance's louder blocks, drawn towards the prior while little has been heard."""

    def __init__(self, options: MeanOptions) -> None:
        self._options = options
        self._prior: Cepstrum = np.zeros(COEFFICIENTS)
        self._prior[: len(options.prior)] = options.prior
        self._means: list[Cepstrum] = []
        self._frames: list[float] = []

    def add(self, mean: Cepstrum, frames: float) -> None:
        """Take in a block by its mean and its number of frames."""
        self._means.append(mean)
        self._frames.append(frames)

    @property
    def value(self) -> Cepstrum:
        if not self._means:
            return self._prior
        means, frames = np.array(self._means), np.array(self._frames)
        frames = np.where(means[:, 0] > means[:, 0].max() - self._options.gate, frames, 0.0)
        weight = self._options.prior_frames
        mean: Cepstrum = (frames @ means + weight * self._prior) / (frames.sum() + weight)
        return mean

"""A few small nets with one hidden layer, set side by side and averaged; numpy alone, so that setting one gives the same each time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Perceptron:
    """Log-odds are `tanh(x @ into + into_bias) @ out + out_bias`."""

    into: Floats
    """[T, H]"""
    into_bias: Floats
    """[H]"""
    out: Floats
    """[H]"""
    out_bias: float

    def log_odds(self, measured: Floats) -> Floats:
        """[N] of [N, T]."""
        found: Floats = np.tanh(measured @ self.into + self.into_bias) @ self.out + self.out_bias
        return found


def perceptron(
    measured: Floats,
    is_one: NDArray[np.bool_],
    weigh: Floats,
    *,
    hidden: int = 12,
    nets: int = 3,
    keep: float = 0.1,
    blur: float = 0.3,
    drop: float = 0.1,
    rounds: int = 40,
    seed: int = 5,
) -> Perceptron:
    """Set by Adam (D. Kingma and J. Ba, arXiv:1412.6980) on the cross-entropy; one wide net whose log-odds are the mean of theirs.

    Args:
        measured: [N, T], standardised.
        is_one: [N]
        weigh: [N] What each row counts for.
        hidden: Of each net.
        keep: Decay of the weights, of which each step takes this share of its length.
        blur: Noise on what is measured, in standard deviations: a made sound is measured more exactly than it means anything.
        drop: Share of what is measured that a row goes without.
        rounds: How often every row is seen.
    """
    generator = np.random.default_rng(seed)
    rows, traits = measured.shape
    share = weigh / weigh.mean()
    found = []
    for _ in range(nets):
        values = [
            generator.standard_normal((traits, hidden)) / np.sqrt(traits),
            np.zeros(hidden),
            generator.standard_normal(hidden) / np.sqrt(hidden),
            np.zeros(1),
        ]
        first, second = [np.zeros_like(each) for each in values], [np.zeros_like(each) for each in values]
        size = min(256, rows)
        steps = rounds * (rows // size)
        step = 0
        while step < steps:
            order = generator.permutation(rows)
            for at in range(0, rows - size + 1, size):
                step += 1
                chosen = order[at : at + size]
                x = measured[chosen] + blur * generator.standard_normal((size, traits))
                x *= generator.random((size, traits)) >= drop
                active = np.tanh(x @ values[0] + values[1])
                odds = active @ values[2] + values[3]
                slope = share[chosen] * (1 / (1 + np.exp(-odds)) - is_one[chosen]) / size
                back = np.outer(slope, values[2]) * (1 - active**2)
                slopes = [x.T @ back, back.sum(axis=0), active.T @ slope, np.array([slope.sum()])]
                rate = 4e-3 * 0.5 * (1 + np.cos(np.pi * step / steps))
                for number, each in enumerate(slopes):
                    first[number] += 0.1 * (each - first[number])
                    second[number] += 0.002 * (each**2 - second[number])
                    scale = np.sqrt(second[number] / (1 - 0.998**step)) + 1e-8
                    decay = keep if number in (0, 2) else 0.0
                    values[number] -= rate * (first[number] / (1 - 0.9**step) / scale + decay * values[number])
        found.append(values)
    return Perceptron(
        np.concatenate([each[0] for each in found], axis=1),
        np.concatenate([each[1] for each in found]),
        np.concatenate([each[2] for each in found]) / nets,
        float(np.mean([each[3][0] for each in found])),
    )

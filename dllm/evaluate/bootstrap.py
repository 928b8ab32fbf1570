"""Intervals by resampling dialogues: what is measured twice in one dialogue is not two independent measurements.

Percentile bootstrap over groups (Efron 1979), seeded. A measure is a function of sums, so a resample is one product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Combine: TypeAlias = Callable[[Floats], Floats]
"""From sums [R, S] to values [R]; not a number where there is nothing to divide by."""

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the interval around it; None where there was nothing to measure."""

    value: float | None
    low: float | None
    high: float | None
    count: int
    """Things measured: replies, facts, words."""
    groups: int
    """Dialogues they came from."""

    def to_json(self) -> dict[str, Any]:
        def short(value: float | None) -> float | None:
            return None if value is None else round(value, 5)

        return {
            "value": short(self.value),
            "low": short(self.low),
            "high": short(self.high),
            "count": self.count,
            "groups": self.groups,
        }


def ratio(sums: Floats) -> Floats:
    """First column by second."""
    return np.asarray(np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0))


def estimate(
    counts: Sequence[Sequence[float]],
    groups: Sequence[Hashable],
    combine: Combine = ratio,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Estimate:
    """A measure and its interval.

    Args:
        counts: One row of S numbers for each thing measured; the measure is `combine` of their sum.
        groups: The dialogue of each row.
    """
    if not len(counts):
        return Estimate(None, None, None, 0, 0)
    number: dict[Hashable, int] = {}
    row_of = np.array([number.setdefault(group, len(number)) for group in groups])
    rows = np.asarray(counts, dtype=np.float64)
    summed = np.zeros((len(number), rows.shape[1]))
    np.add.at(summed, row_of, rows)
    value = float(combine(summed.sum(axis=0, keepdims=True))[0])
    if np.isnan(value):
        return Estimate(None, None, None, len(rows), len(number))
    weights = np.random.default_rng(seed).multinomial(len(number), [1 / len(number)] * len(number), size=resamples)
    drawn = combine(weights @ summed)
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), len(rows), len(number))


def estimate_of(
    sample: Callable[[NDArray[np.int64]], float],
    groups: Sequence[Hashable],
    *,
    resamples: int = 300,
    seed: int = 0,
    level: float = LEVEL,
) -> Estimate:
    """The same for measures that are no function of sums, such as the area under a curve.

    Args:
        sample: The measure over the rows with these indices, repetitions counted.
    """
    if not len(groups):
        return Estimate(None, None, None, 0, 0)
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    rows = [np.array(indices, dtype=np.int64) for indices in members.values()]
    value = sample(np.arange(len(groups)))
    if np.isnan(value):
        return Estimate(None, None, None, len(groups), len(rows))
    generator = np.random.default_rng(seed)
    drawn = [
        sample(np.concatenate([rows[at] for at in generator.integers(len(rows), size=len(rows))]))
        for _ in range(resamples)
    ]
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high), len(groups), len(rows))

"""What denoising steps buy: a measured quality curve read between and beyond its points."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

from voiceagent.backends import QualityCurve


@lru_cache(maxsize=4096)
def quality_at(curve: QualityCurve, canvas_width: int, steps: float) -> float:
    """Expected quality in [0, 1] after `steps`; 1 where nothing was measured.

    Linear between the measured steps and between the measured widths, and constant beyond them. A dip between two steps is the noise of
    the measurement: more steps never count for less.
    """
    if not curve.quality:
        return 1.0
    by_width = [(width, _between(curve.steps, _rising(row), steps)) for width, row in _rows(curve)]
    widths, values = [width for width, _ in by_width], [value for _, value in by_width]
    return _between(widths, values, canvas_width)


@lru_cache(maxsize=256)
def steps_for(curve: QualityCurve, canvas_width: int, quality: float) -> int | None:
    """The fewest steps that reach `quality`; None when the curve never does, or nothing was measured."""
    if not curve.quality:
        return None
    most = curve.steps[-1]
    return next((n for n in range(1, most + 1) if quality_at(curve, canvas_width, n) >= quality - 1e-9), None)


@lru_cache(maxsize=256)
def useful_steps(curve: QualityCurve, canvas_width: int, gain: float) -> int | None:
    """The most steps of which each, on average from one measured point to the next, still brings more than `gain`.

    None where nothing was measured. A gain behind a dip counts: the last rise decides.
    """
    if not curve.quality:
        return None
    quality = [quality_at(curve, canvas_width, steps) for steps in curve.steps]
    best = curve.steps[0]
    for index in range(1, len(quality)):
        if quality[index] - quality[index - 1] > gain * (curve.steps[index] - curve.steps[index - 1]):
            best = curve.steps[index]
    return best


def _rows(curve: QualityCurve) -> list[tuple[int, Sequence[float]]]:
    return sorted(zip(curve.widths, curve.quality, strict=True), key=lambda row: row[0])


def _rising(row: Sequence[float]) -> list[float]:
    best = -math.inf
    return [best := max(best, value) for value in row]


def _between(points: Sequence[float], values: Sequence[float], at: float) -> float:
    """Linear interpolation; the end values beyond the ends. `points` rise."""
    right = bisect_left(points, at)
    if right == 0:
        return values[0]
    if right == len(points):
        return values[-1]
    share = (at - points[right - 1]) / (points[right] - points[right - 1])
    return values[right - 1] + share * (values[right] - values[right - 1])

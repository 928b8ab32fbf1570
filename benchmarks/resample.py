"""How far a held-out figure would move with other speakers: a bootstrap over them.

Speakers are drawn with replacement as often as there are, and what is held out is done anew on each draw: the setting is chosen on the drawn
speakers of four folds and reported on those of the fifth. Whoever is drawn twice is in one fold, so no speaker is on both sides.

Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), 8.3, on drawing whole clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
MIDDLE = (2.5, 97.5)
"""Percentiles of the draws: 95 of 100 lie between."""

# S: settings. N: cases.
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spread:
    """Between which values 95 of 100 draws lie."""

    cut_off: tuple[float, float]
    """Share of cases under the words."""
    sooner: tuple[float, float]
    """By how much of its mean delay silence alone is undercut; 0 where it cut everybody off."""


class _Row:
    """Delays under a row of settings, summed by weight."""

    def __init__(self, delays: Floats, early_s: float) -> None:
        self._is_cut = (delays < -early_s).astype(np.float64)
        self._kept_s = np.where(self._is_cut, 0.0, delays)

    def sums(self, weights: Floats) -> tuple[Floats, Floats]:
        """[S] cases cut off, and [S] seconds of the others."""
        return self._is_cut @ weights, self._kept_s @ weights

    def held_out(self, parts: Sequence[Floats], goal: float) -> tuple[float, float]:
        """Share cut off and mean delay of all parts, each under what was best on the others.

        Args:
            parts: [N] each: how often a case was drawn, where it is of that fold.
        """
        sums = [self.sums(part) for part in parts]
        drawn = [float(part.sum()) for part in parts]
        cut = sum(each for each, _ in sums)
        kept_s = sum(each for _, each in sums)
        cut_off, waited_s = 0.0, 0.0
        for (part_cut, part_kept_s), size in zip(sums, drawn, strict=True):
            at = _best(cut - part_cut, kept_s - part_kept_s, sum(drawn) - size, goal)
            cut_off, waited_s = cut_off + float(part_cut[at]), waited_s + float(part_kept_s[at])
        return cut_off / sum(drawn), waited_s / max(sum(drawn) - cut_off, 1e-9)


def _best(cut: Floats, kept_s: Floats, cases: float, goal: float) -> int:
    """The fastest setting within the goal; the one with fewest cut-offs where none is."""
    is_fit = cut <= goal * cases + 1e-9
    mean_s = np.where(is_fit, kept_s / np.maximum(cases - cut, 1e-9), np.inf)
    return int(np.argmin(mean_s)) if is_fit.any() else int(np.argmin(cut))


def spread(
    words: Floats,
    silence: Floats,
    speakers: Sequence[str],
    *,
    goal: float,
    early_s: float,
    folds: int = 5,
    draws: int = DRAWS,
    seed: int = 0,
) -> Spread:
    """Both rows on the same draws.

    Args:
        words: [S, N] seconds from the end of speech to the endpoint.
        silence: [R, N]
        speakers: [N]
        goal: Share that may be cut off.
        early_s: An endpoint so long before the end of speech is a cut-off.
    """
    generator = np.random.default_rng(seed)
    names, speaker = np.unique(np.array(speakers), return_inverse=True)
    rows = _Row(words, early_s), _Row(silence, early_s)
    found = []
    for _ in range(draws):
        times = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))
        drawn = generator.permutation(np.flatnonzero(times))
        fold = np.full(len(names), -1)
        fold[drawn] = np.arange(len(drawn)) % folds
        parts = [times[speaker] * (fold[speaker] == part).astype(np.float64) for part in range(folds)]
        (cut_off, with_words_s), (_, alone_s) = (row.held_out(parts, goal) for row in rows)
        found.append((cut_off, 1 - with_words_s / alone_s if alone_s > 0 else 0.0))
    low, high = np.percentile(np.array(found), MIDDLE, axis=0)
    return Spread((float(low[0]), float(high[0])), (float(low[1]), float(high[1])))

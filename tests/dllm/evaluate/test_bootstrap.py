"""Intervals: they cover what they should, and know that a dialogue's turns belong together."""

from __future__ import annotations

import numpy as np
import pytest

from dllm.evaluate.bootstrap import estimate, estimate_of


def test_a_ratio_is_of_sums_and_the_same_on_every_call() -> None:
    counts = [[1.0, 2.0], [3.0, 4.0], [0.0, 2.0]]
    found = estimate(counts, ["a", "b", "c"], seed=3)
    assert found.value == pytest.approx(0.5)
    assert (found.count, found.groups) == (3, 3)
    assert found == estimate(counts, ["a", "b", "c"], seed=3)
    assert found.low is not None and found.high is not None and found.low < 0.5 < found.high


def test_nothing_measured_is_none_and_nothing_to_divide_by_is_too() -> None:
    assert estimate([], []).value is None
    assert estimate([[1.0, 0.0]], ["a"]).value is None
    assert estimate_of(lambda rows: float("nan"), ["a"]).value is None


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        counts = [[float(value), 1.0] for value in generator.random(60) < 0.3]
        found = estimate(counts, range(60), resamples=300, seed=trial)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.3 <= found.high
    # 95 % of 200 is 190, four standard deviations of that are 12; the percentile bootstrap is a little too narrow.
    assert 176 <= hits <= 200


def test_turns_of_one_dialogue_do_not_make_an_interval_narrower() -> None:
    single = estimate([[float(at % 2), 1.0] for at in range(20)], range(20))
    tenfold = estimate(
        [[float(at % 2), 1.0] for at in range(20) for _ in range(10)], [at for at in range(20) for _ in range(10)]
    )
    assert (tenfold.low, tenfold.high) == pytest.approx((single.low, single.high))


def test_measures_that_are_no_sums_are_resampled_by_dialogue_too() -> None:
    values = np.array([0.0, 0.0, 1.0, 1.0])
    found = estimate_of(lambda rows: float(np.median(values[rows])), ["a", "a", "b", "b"])
    assert (found.value, found.low, found.high, found.groups) == (0.5, 0.0, 1.0, 2)

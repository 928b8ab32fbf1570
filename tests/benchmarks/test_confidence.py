"""How sure the recogniser is: set on one half of the speakers, held against the other."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest

from tests.benchmarks.test_tapes import BENCHMARKS


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("confidence")


def recordings(bench: ModuleType, half_at: float, slope: float) -> list[object]:
    """Many, right as often as the logistic with these numbers has it."""
    draw = np.random.default_rng(0)
    made = []
    for number in range(4_000):
        rate = draw.uniform(-25.0, -5.0)
        is_right = draw.random() < 1 / (1 + np.exp(-slope * (rate - half_at)))
        errors = 0.0 if is_right else 1.0
        made.append(bench.Heard(f"{number}.flac", "order", f"speaker {number % 40}", 8, rate, errors))
    return made


def test_what_made_the_recordings_is_found_again_on_either_half(bench: ModuleType) -> None:
    heard = recordings(bench, half_at=-14.0, slope=0.6)
    first = bench.first_half(heard)
    for side in (True, False):
        found = bench.fit([each for each, mine in zip(heard, first == side, strict=True) if mine])
        assert found.half_at == pytest.approx(-14.0, abs=0.4) and found.slope == pytest.approx(0.6, abs=0.08)


def test_no_speaker_is_on_both_sides_whatever_they_were_recorded_for(bench: ModuleType) -> None:
    heard = [
        bench.Heard("", kind, speaker, 5, -10.0, 0.0)
        for kind, speakers in (("order", "abcd"), ("read", "dcef"))
        for speaker in speakers
    ]
    first = bench.first_half(heard)
    by_speaker = {
        speaker: {bool(mine) for each, mine in zip(heard, first, strict=True) if each.speaker == speaker}
        for speaker in "abcdef"
    }
    assert all(len(found) == 1 for found in by_speaker.values())
    assert sum(True in found for found in by_speaker.values()) == 3


def test_the_area_is_one_where_all_right_ones_are_likelier_and_a_half_where_nothing_tells(bench: ModuleType) -> None:
    assert bench.area(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1.0
    assert bench.area(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5
    assert bench.area(np.array([]), np.array([1.0])) is None


def test_few_words_are_reported_and_not_fitted(bench: ModuleType) -> None:
    heard = recordings(bench, half_at=-14.0, slope=0.6)
    few = [bench.Heard("", "command", f"speaker {number}", 1, -6.0, 1.0) for number in range(500)]
    with_few, without = (bench.report(some, bench.SHIPPED) for some in ([*heard, *few], heard))
    assert with_few["set on the first half"] == without["set on the first half"]
    assert with_few["shipped"]["fewer words"]["recordings"] == 500

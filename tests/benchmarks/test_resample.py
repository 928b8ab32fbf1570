"""How far a held-out figure would move with other speakers."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def resample(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("resample")


SPEAKERS = [f"{number // 4}" for number in range(40)]
QUICK, SLOW = np.full(40, 0.4), np.full(40, 1.0)
CUTS_OFF = np.full(40, -0.5)


def test_speakers_who_are_alike_leave_nothing_open(resample: ModuleType) -> None:
    words, silence = np.stack([QUICK, SLOW]), np.stack([CUTS_OFF, SLOW])
    found = resample.spread(words, silence, SPEAKERS, goal=0.05, early_s=0.15, draws=50)
    assert found.cut_off == (0.0, 0.0), "nobody was cut off"
    assert found.sooner == pytest.approx((0.6, 0.6)), (
        "silence of the first length cuts everybody off, so the second is taken"
    )


def test_one_speaker_who_is_cut_off_may_be_drawn_or_not(resample: ModuleType) -> None:
    words = np.stack([np.where(np.array(SPEAKERS) == "0", -0.5, 0.4)])
    found = resample.spread(words, np.stack([SLOW]), SPEAKERS, goal=0.05, early_s=0.15, draws=200)
    assert found.cut_off[0] == 0.0 < 0.1 < found.cut_off[1], "a tenth of the speakers, and more in some draws"


def test_a_setting_is_chosen_by_those_it_is_not_reported_on(resample: ModuleType) -> None:
    # Each of two settings cuts off all cases of one speaker, so whoever chooses without that speaker takes the wrong one for them.
    speakers = ["a", "b"] * 20
    is_a = np.array(speakers) == "a"
    words = np.stack([np.where(is_a, -0.5, 0.4), np.where(is_a, 0.4, -0.5)])
    found = resample.spread(words, np.stack([SLOW]), speakers, goal=0.05, early_s=0.15, folds=2, draws=50)
    assert found.cut_off[1] == 1.0


def test_the_same_seed_draws_the_same(resample: ModuleType) -> None:
    delays = np.random.default_rng(1).normal(0.4, 0.4, size=(5, 40))
    first, second = (
        resample.spread(delays, delays + 0.5, SPEAKERS, goal=0.2, early_s=0.15, draws=20) for _ in range(2)
    )
    assert first == second

"""How different words sound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voice_pipelines.asr.sounds import distance

PHONES = st.lists(st.sampled_from("AA IY UW P T K S M".split()), max_size=6)


def test_what_sounds_the_same_is_no_distance_away_and_nothing_in_common_is_one() -> None:
    assert distance(["S", "OY"], ["S", "OY"]) == distance([], []) == 0.0
    assert distance(["S"], ["AA"]) == distance(["S"], []) == 1.0


def test_one_vowel_for_another_costs_less_than_a_sound_that_is_missing() -> None:
    base = ["AY", "S", "T"]
    assert distance(base, ["AA", "S", "T"]) == pytest.approx(0.2)
    assert distance(base, ["AY", "S"]) == pytest.approx(1 / 3)


@given(one=PHONES, other=PHONES, third=PHONES)
def test_it_is_symmetric_and_between_nothing_and_one(one: list[str], other: list[str], third: list[str]) -> None:
    assert distance(one, other) == pytest.approx(distance(other, one))
    assert 0.0 <= distance(one, other) <= 1.0
    assert (distance(one, other) == 0.0) == (one == other)
    longest = max(len(one), len(other), 1)
    assert distance(one, other) >= abs(len(one) - len(other)) / longest - 1e-9, (
        "each sound too many is one that differs"
    )

"""What the benchmark of early drafts makes of texts and of what it measured."""

from __future__ import annotations

import importlib
import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("speculation")


def test_a_text_grows_word_by_word_and_ends_as_it_is_unless_it_changes_late(bench: ModuleType) -> None:
    made = bench.Made(misheard=0.0, changed_late=0.0)
    partials, end_s, final = bench.grown("a large mocha", ["tea"], made, random.Random(1))
    assert [text for _, text in partials] == ["a", "a large", "a large mocha"]
    assert [at for at, _ in partials] == pytest.approx([0.45, 0.75, 1.05])
    assert (end_s, final) == (pytest.approx(0.9), "a large mocha")


def test_words_are_misheard_first_and_right_later(bench: ModuleType) -> None:
    made = bench.Made(misheard=1.0, changed_late=1.0)
    partials, _, final = bench.grown("a mocha", ["tea"], made, random.Random(1))
    assert partials == sorted(partials) and final == "a tea"
    assert [text for _, text in partials if text.endswith("tea")] == ["tea", "a tea"]
    assert {"a", "a mocha"} <= {text for _, text in partials}


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("A large mocha, that's $4.50.", True),
        ("A LARGE MOCHA, that's $4.50.", True),
        ("A large mocha.", False),
        ("Two large mocha, that's $4.50.", False),
        ("A large mocha, that's $4.50 in 5 minutes.", False),
    ],
)
def test_facts_are_right_when_all_are_said_and_no_figure_beside_them(bench: ModuleType, said: str, right: bool) -> None:
    assert bench._has_facts(said, ("large mocha", "$4.50")) is right


def test_a_turn_is_quick_with_at_most_a_third_of_a_cold_drafts_steps(bench: ModuleType) -> None:
    row = bench.Row("a", "hit", 1, 9, 0, 0, 4, 9, True, True, True, "Sure.", "Sure.")
    assert row.is_quick and replace(row, late=2, cold=6).is_quick
    assert not replace(row, late=2, cold=5).is_quick
    rows = [row, replace(row, outcome="wasted", late=5, wasted=9, forwards=18, is_same=False)]
    told = bench.summary("two turns", rows)
    assert told["at most a third"] == told["same text as cold"] == 0.5
    assert told["outcomes"] == {"hit": 0.5, "wasted": 0.5}
    assert told["wasted share of all forwards"] == pytest.approx(9 / 27)
    assert told["by outcome"]["wasted"]["steps at the end"] == 5
    assert "target 60%: missed" in bench.report(told)

"""What `benchmarks/repair.py` counts and chooses, from values alone."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from voiceagent.backends import Proposal
from voiceagent.repair import RepairSettings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("repair")


def case(bench: ModuleType, said: str, heard: str, *proposals: Proposal, speaker: str = "a") -> Any:
    return bench.Case(f"{said}.flac", "order", speaker, tuple(said.split()), heard, proposals)


RIGHT = Proposal(1, 2, "skin", "skim", 0.3, 500.0, 0.2)
WRONG = Proposal(0, 1, "with", "white", 0.9, 20.0, 0.3)


def test_errors_are_counted_before_and_after_and_so_are_transcripts_that_get_worse(bench: ModuleType) -> None:
    cases = [case(bench, "with skim milk", "with skin milk", RIGHT), case(bench, "with oat", "with oat", WRONG)]
    all_in = bench.measure(cases, RepairSettings("use", 1.0, 1.0, 1.0))
    assert (all_in.cases, all_in.replaced, all_in.better, all_in.worse) == (2, 2, 1, 1)
    assert (all_in.before.total, all_in.after.total, all_in.before.reference_words) == (1, 1, 5)
    careful = bench.measure(cases, RepairSettings("use", 0.5, 100.0, 0.25))
    assert (careful.after.total, careful.replaced, careful.worse) == (0, 1, 0)
    assert careful.as_json()["word_error_rate_before"] == 0.2


def test_the_settings_with_the_fewest_errors_are_chosen_and_of_equal_ones_the_strictest(bench: ModuleType) -> None:
    cases = [case(bench, "with skim milk", "with skin milk", RIGHT), case(bench, "with oat", "with oat", WRONG)]
    assert bench.choose(cases) == RepairSettings("use", 0.5, 300.0, 0.2)
    nothing = bench.choose([case(bench, "tea", "tea")])
    assert (nothing.below, nothing.factor, nothing.distance) == (
        min(bench.BELOW),
        max(bench.FACTORS),
        min(bench.DISTANCES),
    )


def test_one_spelling_is_no_error(bench: ModuleType) -> None:
    assert bench.measure([case(bench, "a tea okay", "an tea ok")], RepairSettings()).before.total == 0
    written = case(bench, "i'd like two teas please", "I'd like 2 teas, please.")
    assert bench.measure([written], RepairSettings()).before.total == 0, "capitals, marks and figures of a Whisper"


def test_what_takes_longer_than_the_agent_waits_is_not_in_time(bench: ModuleType) -> None:
    limit_s = bench.REPAIR_WITHIN_S
    times = bench.timing([0.01, 0.02, 0.03, limit_s, 1.2 * limit_s])
    assert times == {
        "p50": 30.0,
        "p95": pytest.approx(1000 * limit_s, rel=0.21),
        "p100": 1200 * limit_s,
        "in_time": 0.8,
    }


def test_no_speaker_is_in_both_halves(bench: ModuleType) -> None:
    cases = [case(bench, "tea", "tea", speaker=f"speaker {number % 20}") for number in range(60)]
    tuned, told = bench.halves(cases)
    assert len(tuned) + len(told) == 60 and tuned and told
    assert not {each.speaker for each in tuned} & {each.speaker for each in told}


def test_a_report_tells_of_the_other_half_and_lists_what_was_replaced(bench: ModuleType) -> None:
    cases = [
        case(bench, f"with skim milk {number}", f"with skin milk {number}", RIGHT, speaker=f"speaker {number}")
        for number in range(20)
    ]
    result = bench.report("made", cases, RepairSettings("use"))
    told = result["told_of"]
    assert told["errors_before"] == told["transcripts"] == len(result["replacements"]) and told["errors_after"] == 0
    assert result["chosen_on"]["transcripts"] + told["transcripts"] == 20
    assert json.dumps(result) and "| made: told of |" in bench.table([result])

"""The replay of turns keeps its promises: same seed, same turns; what is granted is counted; time moves forward only."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("budget")


def replayed(bench: ModuleType, policy: object, callers: int, noise: object) -> object:
    scenario = bench.Scenario(((0.0, callers),), 60.0, noise, 1, warm_up_s=10.0)
    return bench.Replay(bench.TWO_CORES, scenario, policy, bench.quality_curve()).run()


def test_the_same_seed_gives_the_same_turns(bench: ModuleType) -> None:
    def once() -> object:
        policy = bench.Controlled(bench.TWO_CORES, bench.quality_curve(), bench.settings_for(bench.quality_curve()))
        return replayed(bench, policy, 6, bench.NOISE)

    assert once() == once()


def test_a_fixed_count_takes_as_many_steps_as_it_says_and_no_time_without_noise(bench: ModuleType) -> None:
    calm = bench.Noise(sigma=0.0, drift=0.0)
    result = replayed(bench, bench.Policy("fixed 4", bench.TWO_CORES, 4, 4), 1, calm)
    assert result.outcomes  # type: ignore[attr-defined]
    for turn in result.outcomes:  # type: ignore[attr-defined]
        assert (turn.steps_first, turn.steps_rest) == (4, 4)
        # Endpoint, recognition, prefill of 15 to 60 tokens, four steps alone, speech of 25 to 55 characters, transport.
        assert 0.362 + 0.018 + 0.022 + 4 * 0.0109 < turn.latency_s < 0.362 + 0.018 + 0.12 + 4 * 0.0109 + 0.01
        assert turn.is_on_time and not turn.has_gap


def test_alone_the_budget_grants_everything_that_helps(bench: ModuleType) -> None:
    curve = bench.quality_curve()
    policy = bench.Controlled(bench.TWO_CORES, curve, bench.settings_for(curve))
    row = bench.summary(replayed(bench, policy, 1, bench.NOISE))
    assert row["on_time"] == 1.0 and row["quality"] > 0.99


def test_a_verdict_knows_the_best_rival_that_meets_as_many(bench: ModuleType) -> None:
    def row(policy: str, met: float, quality: float) -> dict[str, object]:
        same = {"what": "steady", "load": 1.0, "turns": 9, "on_time": met, "without_gap": 1.0}
        return {**same, "policy": policy, "deadlines_met": met, "quality": quality}

    rows = [row("budget", 0.99, 0.97), row("fixed 4", 1.0, 0.8), row("fixed 6", 0.99, 0.95), row("fixed 8", 0.9, 1.0)]
    found = bench.verdict(rows, 1.0, 0.99)
    assert found["is_met"] and found["rival"] == "fixed 6" and found["has_more_quality"]
    assert not bench.verdict(rows, 1.0, 0.995)["is_met"]

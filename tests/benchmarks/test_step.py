"""The step benchmark runs without a GPU, counts steps and not visits, and says what its floors are made of."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("step")
    for speed in ("copy_bytes_per_s", "flops_per_s"):
        monkeypatch.setattr(module, speed, lambda *_: 1e9)
    return module


def test_the_tiny_geometry_goes_all_the_way(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["step.py", "--tiny", "--canvas", "8", "--batch", "2", "--save", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert bench.main() == 0
    rows = json.loads((tmp_path / "step.json").read_text("utf-8"))["rows"]
    assert [row["way"] for row in rows] == ["reference", "x 4", "transformers, eager"]
    # Eight positions, one a step: without the first visit, of one step or of four.
    assert [row["steps"] for row in rows] == [7, 4, 8]
    for row in rows:
        assert row["weights"] == "random weights" and row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["over_floor"] > 0 and row["profile_ms"]["products"] > 0
        assert row["host_waits_per_step"] == 0, "there is no device to wait for"
    assert capsys.readouterr().out.count("random weights") == 3


def test_floors_are_bytes_once_or_two_operations_for_each_weight_and_token(bench: ModuleType) -> None:
    network = bench.random_network(bench.TINY, torch.device("cpu"), torch.float32)
    size = bench.Size(16, 2, 32)
    found = bench.floors(network, size, 1e9, 1e9)
    read = bench.weights_read(network)
    slots = 2 * 2 * 2 * 8 * 16 * 4 * (32 + 16)  # drafts; keys and values; layers; heads; numbers; bytes
    assert found["memory_floor_ms"] == pytest.approx((4 * read + slots) / 1e6, abs=1e-3)
    assert found["compute_floor_ms"] == pytest.approx(2 * read * 32 / 1e6, abs=1e-3)
    assert found["floor_ms"] == max(found["memory_floor_ms"], found["compute_floor_ms"])


def test_a_comparison_that_fails_is_reported_and_the_rest_runs(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["step.py", "--tiny", "--save", str(tmp_path)])

    def fail(*_: object, **options: object) -> list[dict[str, object]]:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(bench, "measure", fail)
    assert bench.main() == 1
    rows = json.loads((tmp_path / "step.json").read_text("utf-8"))["rows"]
    assert [row["error"] for row in rows] == ["RuntimeError: no memory left"] * 2


def test_our_figures_do_not_depend_on_what_others_can_do_here(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of transformers, a profiler that is not allowed."""
    monkeypatch.setattr(sys, "argv", ["step.py", "--tiny", "--canvas", "8", "--batch", "1", "--save", str(tmp_path)])

    def fail(*_: object, **__: object) -> None:
        raise AttributeError("no such thing in this version")

    monkeypatch.setattr(bench, "Theirs", fail)
    monkeypatch.setattr(bench, "profile", fail)
    assert bench.main() == 0
    rows = json.loads((tmp_path / "step.json").read_text("utf-8"))["rows"]
    assert [row["way"] for row in rows] == ["reference", "x 4"]
    for row in rows:
        assert row["p50_ms"] > 0 and row["transformers_ratio"] is None
        assert "no such thing" in row["without_transformers"] and "no such thing" in row["profile_error"]

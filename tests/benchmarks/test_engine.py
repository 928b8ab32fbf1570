"""The engine's benchmark runs, compares one model with itself, and counts what it says it counts."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("engine")
    monkeypatch.setattr(module, "CACHED", 64)
    tiny = replace(module.GEOMETRIES["0.03B"], hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    monkeypatch.setitem(module.GEOMETRIES, "0.03B", tiny)
    for speed in ("copy_bytes_per_s", "flops_per_s"):
        monkeypatch.setattr(module, speed, lambda *_: 1e9)
    return module


def settings(bench: ModuleType) -> Any:
    return bench.Settings(1, 2, 2, 0.0, 4, False, "none")


def test_every_way_writes_whole_replies_in_the_planned_steps(bench: ModuleType) -> None:
    network = bench.random_network(bench.GEOMETRIES["0.03B"], torch.device("cpu"), torch.float32)
    rows = bench.compare("0.03B", network, bench.transformers_twin(network), 2, settings(bench))
    assert [row["way"] for row in rows] == ["block 4", "canvas 32"]
    for row in rows:
        assert row["weights"] == "random weights" and "random weights" in bench.line(row)
        assert row["replies"] == 4, "two rounds of two callers"
        assert row["steps"] == 2 * (bench.PLAN.steps_first + bench.PLAN.steps_rest)
        assert row["ratio"] == pytest.approx(row["tokens_per_s"] / row["ar_tokens_per_s"], rel=0.1, abs=0.01)
        assert row["step_p50_ms"] <= row["step_p95_ms"] <= row["step_p99_ms"]


def test_a_twin_with_other_weights_is_noticed(bench: ModuleType) -> None:
    network = bench.random_network(bench.GEOMETRIES["0.03B"], torch.device("cpu"), torch.float32)
    twin = bench.transformers_twin(network)
    twin.model.norm.weight = torch.nn.Parameter(torch.linspace(0.5, 2.0, 64), requires_grad=False)
    with pytest.raises(AssertionError, match="differ from transformers'"):
        bench._check(network, twin)


def test_the_floor_counts_weights_once_and_every_callers_stored_tokens(bench: ModuleType) -> None:
    network = bench.random_network(bench.GEOMETRIES["0.03B"], torch.device("cpu"), torch.float32)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    one, two = (bench.floors(network, batch, 32, 1e9, 1e9) for batch in (1, 2))
    slot = 2 * 2 * 4 * 64 * 4  # keys and values, two layers, four heads of 64, float32
    assert bench.slot_bytes(network) == slot
    assert one["megabytes"] == pytest.approx((4 * parameters + 96 * slot) / 1e6, abs=0.06)
    assert two["megabytes"] - one["megabytes"] == pytest.approx(96 * slot / 1e6, abs=0.11)
    assert two["compute_floor_ms"] == pytest.approx(2 * one["compute_floor_ms"], rel=1e-3)


def test_percentiles_are_values_that_were_measured(bench: ModuleType) -> None:
    measuring = importlib.import_module("measuring")
    values = [float(value) for value in range(1, 101)]
    assert [measuring.percentile(values, share) for share in (0.0, 0.5, 0.95, 0.99, 1.0)] == [1, 50, 95, 99, 100]
    assert measuring.percentile([7.0], 0.99) == 7.0


def test_results_say_machine_commit_and_versions(bench: ModuleType) -> None:
    head = importlib.import_module("measuring").about(torch.device("cpu"))
    assert {"device", "system", "threads", "python", "torch", "triton", "transformers", "commit"} == set(head)
    assert head["torch"] == torch.__version__

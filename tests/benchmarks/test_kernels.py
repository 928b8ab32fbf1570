"""The kernels' benchmark compares like with like, and saves what it shows."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("kernels")


def first_of(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def test_every_case_does_what_it_is_compared_with(bench: ModuleType) -> None:
    compared = []
    for case in bench.cases(CPU):
        if "temperature 1" in case.size:
            continue  # the other one's draw is another
        compared.append(case.op)
        got = first_of(case.ours())
        others = [first_of(case.eager(*case.arguments))]
        # The library's head keeps logits; its product's weights are not the eight-bit ones; random pages hold other keys than the rows,
        # and a cache in e4m3 other numbers.
        if case.library is not None and case.op not in ("add_rms_norm", "skinny_linear"):
            others.append(first_of(case.library()))
        for other in [] if "pages" in case.size or "of e4m3" in case.size else others:
            scale = other.double().abs().max().item() + 1e-9
            torch.testing.assert_close(
                got.double() / scale, other.double() / scale, rtol=1e-4, atol=1e-4, msg=case.size
            )
    assert set(compared) == {
        "commit_from_logits", "add_rms_norm", "swiglu", "embed", "rotate_and_store", "select", "head_commit",
        "canvas_attention", "skinny_linear", "route_experts", "mix_experts",
    }  # fmt: skip


def test_results_are_counted_and_saved(bench: ModuleType, tmp_path: Path) -> None:
    case = next(case for case in bench.cases(CPU) if case.op == "skinny_linear")
    result = bench.measure(case, bench.Timer(CPU), 2, 1e9, 1e12, compiles=False)
    seconds = result.p50_us / 1e6
    assert result.of_copy == pytest.approx(case.moved / seconds / 1e9, abs=0.02 * result.of_copy + 1e-3)
    assert result.of_products == pytest.approx(case.flops / seconds / 1e12, abs=0.02 * result.of_products + 1e-3)
    assert result.compiled_ratio is None and result.library_ratio > 0
    head = {"device": "cpu", "implementation": "reference"}
    bench.save(tmp_path, head, [result], [])
    bench.plot(tmp_path, head, [result])
    saved = json.loads((tmp_path / "kernels.json").read_text())
    assert saved["device"] == "cpu" and saved["results"][0]["op"] == "skinny_linear"
    with (tmp_path / "kernels.csv").open() as file:
        assert next(csv.DictReader(file))["size"] == result.size
    assert (tmp_path / "kernels.png").stat().st_size > 0


def test_what_fails_is_named_and_costs_nothing_else(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> object:
        raise RuntimeError("out of resource: shared memory")

    def some(device: torch.device) -> Any:
        first, second, third = (case for case, _ in zip(every(device), range(3), strict=False))
        yield replace(first, ours=fail)
        yield replace(second, eager=fail, library=fail)
        yield third

    every = bench.cases
    monkeypatch.setattr(bench, "cases", some)
    for speed in ("copy_bytes_per_s", "flops_per_s"):
        monkeypatch.setattr(bench, speed, lambda *_: 1e9)
    command = ["kernels.py", "--runs", "2", "--compile-budget", "0", "--save", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert bench.main() == 1
    saved = json.loads((tmp_path / "kernels.json").read_text())
    assert len(saved["failed"]) == 1 and len(saved["results"]) == 2
    assert saved["results"][0]["p50_us"] > 0 and saved["results"][0]["eager_ratio"] is None
    assert saved["results"][1]["eager_ratio"] > 0

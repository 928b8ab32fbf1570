"""The step benchmark's arithmetic: what a floor counts, and time that is nobody's twice."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from dllm.spec import dialogue_spec

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("cpu_step")


def test_a_floor_reads_weights_and_stored_tokens_once_and_multiplies_each_token(bench: ModuleType) -> None:
    spec = dialogue_spec(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    speed = {"copy_bytes_per_s": 1.0, "float32_flops_per_s": 1.0, "bfloat16_flops_per_s": 2.0}
    layer = 8 * (8 + 4 + 4) + 8 * 8 + 3 * 8 * 16
    found = bench.floor_s(spec, "float32", (5, 7, 2), 6, speed)
    stored = 2 * 3 * 4 * (5 + 7) * 2
    assert found["memory"] == 4 * (3 * layer + 800 + stored)
    attention = 4 * (2 * 5) * (5 + 7) * 8 * 3
    assert found["arithmetic"] == 2 * 10 * 3 * layer + 2 * 6 * 800 + attention
    half = bench.floor_s(spec, "bfloat16", (5, 7, 2), 6, speed)
    assert half == {"memory": found["memory"] / 2, "arithmetic": found["arithmetic"] / 2}


def test_time_of_an_inner_function_is_not_the_outer_ones_too(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "thread_time", lambda: now[0])

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    place = SimpleNamespace()

    def call_twice() -> None:
        pass_time(1)
        place.inner()
        place.inner()
        pass_time(1)

    place.inner, place.outer = lambda: pass_time(3), call_twice
    plain = place.outer
    shares = bench.Shares()
    shares.watch(place, "inner", "inside")
    shares.watch(place, "outer", "outside")
    place.outer()
    assert shares.seconds == {"inside": 6.0, "outside": 2.0}
    shares.stop()
    assert place.outer is plain


def test_a_rate_is_that_of_the_least_disturbed_run(bench: ModuleType) -> None:
    ticks = iter([0, 5, *(tick for start in range(10, 90, 10) for tick in (start, start + 2))])
    assert bench.rate(lambda: None, 10, lambda: float(next(ticks))) == 5

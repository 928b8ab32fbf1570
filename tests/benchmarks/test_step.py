"""The step benchmark runs without a GPU, counts steps and not visits, and says what its floors are made of."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dllm_kernels
import dllm_kernels.choose
from dllm.drafts import Event, Finished
from dllm.spec import SpecialTokens

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
    assert [row["way"] for row in rows] == ["reference", "x 4", "x 4, as asked", "transformers, eager"]
    # Eight positions, one a step, of which a pin takes three in one: without the first visit, of one step or of four.
    assert [row["steps"] for row in rows] == [7, 4, 2, 8]
    for row in rows:
        assert row["weights"] == "random weights" and row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["over_floor"] > 0 and row["profile_ms"]["products"] > 0
        assert row["host_waits_per_step"] == 0, "there is no device to wait for"
    assert capsys.readouterr().out.count("random weights") == 4


def test_floors_are_bytes_once_or_two_operations_for_each_weight_and_token(bench: ModuleType) -> None:
    network = bench.random_network(bench.ALL["tiny"], torch.device("cpu"), torch.float32)
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


def test_the_ways_of_a_gpu_run_on_a_cpu_with_kernels_interpreted_and_recordings_done_again(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a rented machine runs must not run there for the first time. Attention alone is interpreted: all of it takes a minute."""
    module = dllm_kernels.choose._module
    monkeypatch.setattr(
        dllm_kernels.choose, "_module", lambda op, name: module(op, name if op == "canvas_attention" else "reference")
    )
    monkeypatch.setattr(bench, "profile", lambda *_: {"profile_ms": {}, "host_waits_per_step": 0})
    kinds = []
    use = dllm_kernels.use
    monkeypatch.setattr(dllm_kernels, "use", lambda kind: (kinds.append(kind), use(kind)))
    small = replace(bench.ALL["tiny"], vocab_size=300, num_hidden_layers=1, special=SpecialTokens(299, (298, 297), 297))
    monkeypatch.setitem(bench.ALL, "tiny", small)
    tokens = bench._tokens
    monkeypatch.setattr(bench, "_tokens", lambda number: tuple(token % 290 for token in tokens(number)))
    command = ["step.py", "--tiny", "--interpret", "--canvas", "8", "--batch", "1", "--save", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert bench.main() == 0
    rows = json.loads((tmp_path / "step.json").read_text("utf-8"))["rows"]
    ours = ["reference", "kernels", "graphs", "graphs x 4", "graphs x 4, as asked"]
    assert [row["way"] for row in rows] == [*ours, "transformers, eager"]
    assert [row["steps"] for row in rows] == [7, 7, 7, 4, 2, 8]
    assert [row.get("refused") for row in rows] == [[], [], [], [], [], None]
    assert all(row["recordings"] > 0 for row in rows[2:5])
    assert set(kinds) == {"reference", "triton", "auto"}


def test_a_way_that_fails_has_a_row_that_says_why_and_the_others_their_times(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways_of = bench.ways_of

    def broken(*given: object, **options: object) -> list[object]:
        ways = ways_of(*given, **options)

        def fail(**_: object) -> list[float]:
            raise RuntimeError("no kernel image is available")

        ways[1].write = fail
        return list(ways)

    monkeypatch.setattr(bench, "ways_of", broken)
    monkeypatch.setattr(sys, "argv", ["step.py", "--tiny", "--canvas", "8", "--batch", "1", "--save", str(tmp_path)])
    assert bench.main() == 1
    rows = json.loads((tmp_path / "step.json").read_text("utf-8"))["rows"]
    assert [row["way"] for row in rows] == ["reference", "x 4, as asked", "transformers, eager", "x 4"]
    assert rows[0]["p50_ms"] > 0 and "no kernel image" in rows[3]["error"]


def test_drafts_as_the_agent_asks_for_them_change_logits_find_a_pin_and_are_recorded_whole(bench: ModuleType) -> None:
    network = bench.random_network(bench.ALL["tiny"], torch.device("cpu"), torch.float32)
    way = bench.Ours(
        "graphs x 4", network, bench.Size(16, 2, 32), kind="reference", graphs=True, visit=4, as_asked=True
    )
    replies = []
    run_round = way._engine.run_round

    def watched() -> list[Event]:
        events: list[Event] = run_round()
        replies.extend(event.tokens for event in events if isinstance(event, Finished))
        return events

    way._engine.run_round = watched
    assert all(way.write() for _ in range(3))
    assert 4 in {told.shape.steps for told in way.recorded if not told.error}
    assert len(replies) == 6
    for reply in replies:
        assert bench.PIN in [reply[at : at + 3] for at in range(len(reply))] and bench.BANNED not in reply
        assert not any(reply[at : at + 3] == reply[at + 3 : at + 6] for at in range(len(reply) - 5)), "no stutter"


def test_shapes_that_cannot_be_recorded_are_named(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, run: object) -> object:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(bench.Repeater, "record", refuse)
    network = bench.random_network(bench.ALL["tiny"], torch.device("cpu"), torch.float32)
    way = bench.Ours("graphs", network, bench.Size(8, 1, 32), kind="reference", graphs=True, visit=1)
    assert way.write() and way.write()
    error = "operation not permitted when stream is capturing"
    assert {told.error for told in way.recorded} == {error}
    found = bench.refusals(way.recorded)
    assert 0 < len(found) <= len(way.recorded)
    for refusal in found:
        steps = refusal.pop("steps")
        assert steps in (0, 1), "of a forward alone, or of a visit"
        assert refusal == {"rows": 1, "length": 8, "slots": 64, "is_counted": False, "error": error}


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
    assert [row["way"] for row in rows] == ["reference", "x 4", "x 4, as asked"]
    for row in rows:
        assert row["p50_ms"] > 0 and row["transformers_ratio"] is None
        assert "no such thing" in row["without_transformers"] and "no such thing" in row["profile_error"]

"""Measured tile sizes: found by GPU, op and shape, never trusted blindly, and written by a measurement that a stand-in timer drives."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from dllm_kernels import (
    Cache,
    Choice,
    ExpertWeights,
    canvas_attention,
    commit_from_logits,
    head_commit,
    mix_experts,
    skinny_linear,
    tune,
    tuning,
)
from dllm_kernels.canvas_attention import triton as attention
from dllm_kernels.head_commit import triton as head
from dllm_kernels.mix_experts import triton as mixture
from dllm_kernels.skinny_linear import triton as linear
from tests.kernels.both import assert_close, on, randn


class Sizes(NamedTuple):
    block: int
    warps: int


REASONED = Sizes(64, 4)
GPU = torch.device("cuda", 0)
SHAPE = tuning.bucket(torch.bfloat16, rows=32, inputs=4096)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with an H200, and its file where kernels look."""
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    monkeypatch.setattr(tuning, "_name_of", lambda device: "NVIDIA H200")
    tuning._measured.cache_clear()
    tuning._tell_once.cache_clear()
    yield tmp_path
    tuning._measured.cache_clear()


def written(folder: Path, entry: object) -> None:
    body = {"device": "NVIDIA H200", "ops": {"op": {SHAPE: entry}}}
    (folder / "nvidia-h200.json").write_text(json.dumps(body), "utf-8")


def test_measured_sizes_are_used_on_their_gpu_for_their_op_and_shape(folder: Path) -> None:
    written(folder, {"block": 128, "warps": 8})
    assert SHAPE == "bfloat16 rows=32 inputs=4096"
    assert tuning.tiles("op", GPU, SHAPE, REASONED) == Sizes(128, 8)
    assert tuning.tiles("op", GPU, tuning.bucket(torch.bfloat16, rows=64, inputs=4096), REASONED) == REASONED
    assert tuning.tiles("another", GPU, SHAPE, REASONED) == REASONED
    assert tuning.tiles("op", torch.device("cpu"), SHAPE, REASONED) == REASONED


def test_a_gpu_without_a_file_has_reasoned_sizes_and_nothing_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert tuning.tiles("op", GPU, SHAPE, REASONED) == REASONED
    assert not caplog.records


@pytest.mark.parametrize("content", ["{", "[]", '{"ops": 3}', '{"ops": {"op": [1]}}', '{"device": "x"}', "\xff"])
def test_a_damaged_file_is_told_of_once_and_not_used(
    content: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "nvidia-h200.json").write_bytes(content.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert tuning.tiles("op", GPU, SHAPE, REASONED) == REASONED
    assert len(caplog.records) == 1
    assert "nvidia-h200.json" in caplog.text and "reasoned" in caplog.text


@pytest.mark.parametrize(
    "entry",
    [{"block": 128}, {"block": 128, "warps": 8, "x": 1}, {"block": "128", "warps": 8}, {"block": True, "warps": 8}]
    + [{"block": 0, "warps": 8}, {"block": 2**20, "warps": 8}, {"block": 96, "warps": 8}, [128, 8], None],
)
def test_a_damaged_entry_is_told_of_once_and_not_used(
    entry: object, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(folder, entry)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert tuning.tiles("op", GPU, SHAPE, REASONED) == REASONED
    assert len(caplog.records) == (entry is not None)
    assert entry is None or "expected block, warps from 1 to" in caplog.text


TIMES = {(64, 4): 100.0, (128, 4): 80.0, (128, 8): 90.0}


def case(shape: str = SHAPE) -> tune.Case:
    return tune.Case("op", shape, tuple(REASONED), Sizes._fields, ((64, 4), (128, 4), (128, 8), (256, 8)), lambda: None)


def stand_in(times: dict[tuple[int, ...], float]) -> Callable[[Callable[[], object]], float]:
    def timer(call: Callable[[], object]) -> float:
        sizes = tuning.tiles("op", torch.device("cpu"), SHAPE, REASONED)
        if sizes not in times:
            raise RuntimeError("out of resource: shared memory")
        return times[sizes]

    return timer


def test_the_fastest_that_runs_is_chosen() -> None:
    found = tune.measure(case(), stand_in(TIMES))
    assert (found.best, found.best_us, found.reasoned_us, found.left_out) == ((128, 4), 80.0, 100.0, 1)
    assert tuning.tiles("op", torch.device("cpu"), SHAPE, REASONED) == REASONED, "trying ends with the measurement"


def test_a_gain_within_the_noise_changes_nothing() -> None:
    assert tune.measure(case(), stand_in(TIMES | {(128, 4): 98.0, (128, 8): 99.0})).best == (64, 4)


def test_reasoned_sizes_that_do_not_run_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="shared memory"):
        tune.measure(case(), stand_in({(128, 4): 1.0}))


def test_what_was_measured_is_found_at_launch_and_what_was_not_stays(folder: Path) -> None:
    path = tuning.path_of("NVIDIA H200", folder)
    other = tuning.bucket(torch.bfloat16, rows=16, inputs=4096)
    ticks = iter([0.0, 1.0, 2.0, 99.0])
    todo = iter([case(other), case(), case("never")])
    assert tune.run(todo, stand_in(TIMES), path, "NVIDIA H200", 10.0, lambda: next(ticks)) == 2
    tune.write(path, "NVIDIA H200", [], {})
    assert set(tuning.read(path)["op"]) == {SHAPE, other}
    tuning._measured.cache_clear()
    assert tuning.tiles("op", GPU, SHAPE, REASONED) == Sizes(128, 4)
    assert [file.name for file in folder.iterdir()] == ["nvidia-h200.json"]


def test_without_a_gpu_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert tune.main([]) == 2
    assert "torch sees none" in capsys.readouterr().err


def test_answers_do_not_depend_on_tile_sizes() -> None:
    """Each op at sizes that are not its reasoned ones."""
    hidden, weight = randn(5, 48), randn(301, 48)
    with tuning.trying("head_commit", (32, 16, 4, 2)):
        got = on("triton", head_commit, hidden, weight)
    expected = commit_from_logits(hidden @ weight.T)
    assert got.token.tolist() == expected.token.tolist()
    torch.testing.assert_close(got.probability, expected.probability, rtol=3e-5, atol=3e-6)

    q, cache = randn(1, 4, 9, 16), Cache(randn(1, 2, 40, 16), randn(1, 2, 40, 16))
    visible = torch.arange(20, 29, dtype=torch.int32).unsqueeze(0)
    with tuning.trying("canvas_attention", (16, 16, 4, 2)):
        got = on("triton", canvas_attention, q, cache, visible)
    assert_close(got, canvas_attention(q, cache, visible))

    x, w = randn(9, 64), randn(40, 64)
    with tuning.trying("skinny_linear", (16, 16, 32, 2, 4, 2)):
        got = on("triton", skinny_linear, x, w)
    torch.testing.assert_close(got, x @ w.T, rtol=1e-5, atol=1e-5)

    choice = Choice(torch.tensor([[0, 2], [1, 2], [2, 0]]), torch.full((3, 2), 0.5))
    weights = ExpertWeights(randn(3, 2 * 20, 40), randn(3, 40, 20))
    with tuning.trying("mix_experts", (16, 16, 16, 4, 2)):
        got = on("triton", mix_experts, randn(3, 40), choice, weights)
    torch.testing.assert_close(got, mix_experts(randn(3, 40), choice, weights), rtol=1e-4, atol=1e-3)


def test_reasoned_sizes_are_named_as_the_measurement_names_them() -> None:
    assert head.Tiles._fields == ("block_v", "block_e", "num_warps", "num_stages")
    assert attention.reasoned(64, 128, 2) == (64, 64, 4, 3)
    assert attention.reasoned(64, 256, 2).num_warps == 8
    assert (attention.reasoned(64, 256, 2).block_m, attention.reasoned(64, 256, 4).block_m) == (64, 32)
    assert head.reasoned(32, 2, False) == (128, 64, 4, 4)
    assert mixture.reasoned(256, 256, 2, False) == (16, 64, 128, 4, 3)
    assert mixture.Tiles._fields[:3] == ("block_m", "block_n", "block_k")
    assert linear.plan_of(32, 4096, 4096, 2, 132)._fields[-1] == "num_stages"

"""The one choice of implementation: by device, said aloud where it is not the fast one, and undone after a comparison."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dllm_kernels import choose as chooser
from dllm_kernels.choose import choose, use

GPU = torch.device("cuda", 0)


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """What a GPU that is not there says of itself."""
    said = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: said[-1])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Imagined GPU")
    chooser._kind_on.cache_clear()
    yield said
    chooser._kind_on.cache_clear()


def name_of(*tensors: Tensor | None) -> str:
    return choose("swiglu", *tensors).__name__.rpartition(".")[2]  # type: ignore[no-any-return]


def test_a_cpu_has_the_reference_until_another_is_asked_for() -> None:
    x = torch.zeros(2, 4)
    assert name_of(x) == "reference"
    try:
        use("triton")
        assert name_of(x) == name_of(x, None, x.bfloat16(), x.long()) == "triton"
        assert name_of(x.double()) == name_of(x, x.double()) == "reference"
        assert name_of(x.requires_grad_()) == "reference"
        with torch.no_grad():
            assert name_of(x) == "triton"
    finally:
        use("auto")
    assert name_of(x) == "reference"


def test_a_gpu_has_triton_from_the_oldest_capability_on(
    capability: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    for version, kind in (((8, 0), "triton"), ((9, 0), "triton"), ((12, 1), "triton"), ((7, 5), "reference")):
        capability.append(version)
        chooser._kind_on.cache_clear()
        assert chooser._kind_on(GPU) == kind
        assert chooser._kind_on(torch.device("cpu")) == "reference"
    assert [record.message for record in caplog.records] == [
        "kernels run as plain PyTorch: Imagined GPU has capability 7.5, Triton's kernels need 8.0"
    ]


def test_e4m3_has_triton_where_the_gpu_knows_it_and_says_so_where_not(
    capability: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    for version, knows in (((8, 9), True), ((9, 0), True), ((8, 0), False)):
        capability.append(version)
        chooser._knows_e4m3.cache_clear()
        assert chooser._knows_e4m3(GPU) == chooser._knows_e4m3(GPU) == knows
    chooser._knows_e4m3.cache_clear()
    assert [record.message for record in caplog.records] == [
        "kernels with e4m3 numbers run as plain PyTorch: Imagined GPU has capability 8.0, they need 8.9"
    ]
    try:
        use("triton")
        assert name_of(torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.float8_e4m3fn)) == "triton"
        assert name_of(torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.float8_e5m2)) == "reference"
    finally:
        use("auto")


def test_a_gpu_without_triton_says_so_once(
    capability: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert chooser._kind_on(GPU) == chooser._kind_on(GPU) == "reference"
    assert [record.message for record in caplog.records] == [
        "kernels run as plain PyTorch on cuda:0: triton is not installed"
    ]

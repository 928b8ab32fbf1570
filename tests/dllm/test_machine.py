"""What is told of the processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dllm import machine


@pytest.mark.parametrize(
    ("vendor", "units", "is_faster"),
    [
        ("AuthenticAMD", {"avx512_bf16": True}, True),
        ("AuthenticAMD", {"avx512_bf16": False}, False),
        ("GenuineIntel", {"avx512_bf16": True, "amx_bf16": False}, False),
        ("GenuineIntel", {"avx512_bf16": True, "amx_bf16": True}, True),
        ("GenuineIntel", {}, False),
    ],
)
def test_bfloat16_is_faster_where_more_products_fit_into_a_cycle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, units: dict[str, bool], is_faster: bool
) -> None:
    table = tmp_path / "cpuinfo"
    table.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: Some Processor\n", encoding="utf-8")
    monkeypatch.setattr(machine, "PROCESSORS", table)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    assert machine.bfloat16_is_faster() == is_faster
    assert machine.processor_name() == "Some Processor"


def test_without_linux_table_python_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROCESSORS", tmp_path / "none")
    monkeypatch.setattr("platform.processor", lambda: "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert not machine.bfloat16_is_faster()
    assert "GenuineIntel" in machine.processor_name()

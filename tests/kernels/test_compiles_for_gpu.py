"""Every kernel compiles for the GPU it is written for, here, where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.compile_for_gpu import SHARED_LIMIT

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")
def test_every_kernel_compiles_fits_and_keeps_its_numbers_in_registers(tmp_path: Path) -> None:
    # In a process of its own: in this one Triton's decorator has made interpreted functions.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join([".", "kernels"])}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_for_gpu"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    in_source = {
        line.split("(")[0].removeprefix("def ")
        for path in (REPOSITORY / "kernels").rglob("*triton.py")
        for line in path.read_text("utf-8").splitlines()
        if line.startswith("def _") and "_kernel(" in line
    }
    assert {figures["kernel"] for figures in found} == in_source
    assert [figures for figures in found if figures["shared"] > SHARED_LIMIT or figures["spilled"]] == []

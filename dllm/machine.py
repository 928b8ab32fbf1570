"""What is computed on: its name and the commit of the code, for records and tables, and how well it multiplies in bfloat16."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

PROCESSORS = Path("/proc/cpuinfo")
"""Linux' table of them."""


def device_name(device: torch.device) -> str:
    """Of the GPU, else of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def has_bfloat16_units() -> bool:
    """Whether this processor multiplies in bfloat16 (AVX512-BF16, AMX): twice as fast as in float32 there, five times slower elsewhere."""
    asked = getattr(torch.cpu, "get_capabilities", None)  # since PyTorch 2.12
    if asked is not None:
        found = asked()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    older = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(older is not None and older())


def bfloat16_is_faster() -> bool:
    """Whether a product that is short of arithmetic, not of memory, takes less time in bfloat16 than in float32.

    AMD's cores with AVX512-BF16 do twice as many products in it. Intel's do no more of them than in float32 (a bfloat16 dot product a
    cycle, two float32 ones), which leaves the conversions as pure cost, unless the matrix units (AMX) are there.
    """
    if not has_bfloat16_units():
        return False
    asked = getattr(torch.cpu, "get_capabilities", None)
    has_matrix_units = bool(asked is not None and asked().get("amx_bf16"))
    return has_matrix_units or "GenuineIntel" not in _processor("vendor_id", platform.processor())


def processor_name() -> str:
    """The model that Linux tells, elsewhere what Python knows."""
    return _processor("model name", platform.processor() or platform.machine())


def _processor(field: str, otherwise: str) -> str:
    """A line of Linux' table of processors."""
    try:
        lines = PROCESSORS.read_text("utf-8").splitlines()
    except OSError:
        return otherwise
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), otherwise)


def system_name() -> str:
    """Operating system, architecture and processors."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"


def commit() -> str:
    """The commit of the code that runs, with a mark where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except OSError:
        return "unknown"

"""What is computed on: its name and the commit of the code, for records and tables, and whether it multiplies in bfloat16."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch


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


def processor_name() -> str:
    """The model that Linux tells, elsewhere what Python knows."""
    usual = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return usual
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), usual)


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

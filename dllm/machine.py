"""The name of what is computed on, for records and tables."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """Of the GPU, else of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def processor_name() -> str:
    """The model that Linux tells, elsewhere what Python knows."""
    usual = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return usual
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), usual)

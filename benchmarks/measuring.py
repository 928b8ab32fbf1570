"""What every benchmark says beside its numbers: the machine, the commit, versions, percentiles, and how fast memory and arithmetic are."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from dllm.machine import commit, device_name, system_name


def about(device: torch.device) -> dict[str, str]:
    """Machine, commit and versions, as they are written at the head of results."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return {
        "device": f"{device.type}: {device_name(device)}",
        "system": f"{system_name()}, load {load} at the start",
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "triton", "transformers")},
        "commit": commit(),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, the device's work included."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def copy_bytes_per_s(device: torch.device) -> float:
    """Speed of a copy far larger than any cache, bytes read and bytes written counted; the median of eleven."""
    size = 2**30 if device.type == "cuda" else 2**28
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = [timed(lambda: target.copy_(source), device) for _ in range(13)][2:]
    return 2 * size / statistics.median(seconds)


def flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Speed of a square matrix product, multiplications and additions counted; the median of five."""
    size = 8192 if device.type == "cuda" else 1536
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    seconds = [timed(lambda: left @ right, device) for _ in range(7)][2:]
    return 2 * size**3 / statistics.median(seconds)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

"""What every test shares: no GPU, network or sleeping unless marked; one thread per library; warnings are errors."""

from __future__ import annotations

import os
import shutil

# Set before numpy, torch or triton are imported anywhere: thread pools and Triton's interpreter read these once.
# Two cores run the suite and its servers, and pools that fight over them cost more than they give.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

import tempfile

# What a server of the tests learns is nobody else's.
_STATE = tempfile.TemporaryDirectory(prefix="voiceagent-state-")  # Goes when this process ends.
os.environ["XDG_STATE_HOME"] = _STATE.name

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

T = TypeVar("T")

DATA = Path(__file__).parent / "data"
"""Recordings and other files the tests need; sources and licences are in its NOTICES.md."""

# The time of one example depends on the machine, so it is no reason to fail. Printed blobs make a CI failure repeatable.
hypothesis.settings.register_profile("here", deadline=None, print_blob=True)
hypothesis.settings.load_profile("here")


def find_chromium() -> str | None:
    """Path of an installed Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


def run_async(main: Coroutine[Any, Any, T], *, timeout_s: float = 30.0) -> T:
    """Run one coroutine on a fresh event loop. The timeout turns a hang into a failure; no test measures it.

    Raises:
        TimeoutError: If it has not returned after `timeout_s`.
    """

    async def bounded() -> T:
        async with asyncio.timeout(timeout_s):
            return await main

    return asyncio.run(bounded())


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return DATA


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Chromium, for tests marked `browser`."""
    path = find_chromium()
    assert path is not None, "no chromium on the path: .ci/run installs one"
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot run. CI must have a browser: there its absence is a failure."""
    left_out = set()
    if not HAS_GPU:
        left_out.add("gpu")
    if find_chromium() is None and not os.environ.get("CI"):
        left_out.add("browser")
    dropped = [item for item in items if any(item.get_closest_marker(marker) for marker in left_out)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


def pytest_report_header() -> str:
    return f"devices: {'CUDA' if HAS_GPU else 'no GPU, Triton interpreted'}; browser: {find_chromium() or 'none'}"

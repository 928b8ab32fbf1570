"""Tile sizes that were measured, per GPU, op and shape; where there are none, kernels use reasoned ones.

Beside this file lies a JSON file for each GPU that was measured, `nvidia-h200.json` for one, written by `python -m dllm_kernels.tune`:

    {"device": "NVIDIA H200", "measured": {"torch": "2.11.0"},
     "ops": {"head_commit": {"bfloat16 rows=32 vocabulary=151936 inputs=4096": {"block_v": 128, "block_e": 64, …}}}}

A kernel asks once per shape. A file that is damaged, or an entry that does not fit, is told of in the log and not used.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

_LOG = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
LARGEST = 1024
"""No tile size, count of warps or of stages is larger: such a number is damage."""
COUNTS = ("parts", "num_stages")
"""Sizes that may be any number."""

T = TypeVar("T", bound=NamedTuple)
"""The sizes of one op: a named tuple of integers."""

_overridden: dict[str, tuple[int, ...]] = {}


def bucket(dtype: torch.dtype, **sizes: int) -> str:
    """Name of a shape bucket; the caller rounds what needs rounding."""
    return " ".join((str(dtype).removeprefix("torch."), *(f"{name}={size}" for name, size in sizes.items())))


def tiles(op: str, device: torch.device, shape: str, reasoned: T) -> T:
    """The sizes to launch with: those measured on this GPU for the bucket `shape`, else `reasoned`."""
    if op in _overridden:
        return reasoned._replace(**dict(zip(reasoned._fields, _overridden[op], strict=True)))
    if device.type != "cuda":
        return reasoned
    found = _measured(_name_of(device), FOLDER).get(op, {}).get(shape)
    if found is None:
        return reasoned
    sizes = _sizes(found, reasoned._fields)
    if sizes is None:
        _tell_once(
            f"{op}, {shape} in {path_of(_name_of(device), FOLDER)}: expected {_wanted(reasoned._fields)}, got {found}"
        )
        return reasoned
    return reasoned._replace(**sizes)


@contextmanager
def trying(op: str, sizes: tuple[int, ...]) -> Iterator[None]:
    """Launch an op with these sizes whatever is known, for measuring them."""
    _overridden[op] = sizes
    try:
        yield
    finally:
        del _overridden[op]


def path_of(device_name: str, folder: Path) -> Path:
    """The file of a GPU."""
    return folder / (re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-") + ".json")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Ops, buckets and what the file says of them; empty where there is no file, or none that makes sense, which is told."""
    try:
        body = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _LOG.warning("tile sizes in %s cannot be read, reasoned ones are used: %s", path, error)
        return {}
    ops = body.get("ops") if isinstance(body, dict) else None
    if not isinstance(ops, dict) or not all(isinstance(buckets, dict) for buckets in ops.values()):
        _LOG.warning("tile sizes in %s are damaged, reasoned ones are used: expected ops, and buckets in each", path)
        return {}
    return ops


@functools.cache
def _measured(device_name: str, folder: Path) -> dict[str, dict[str, Any]]:
    return read(path_of(device_name, folder))


@functools.cache
def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


@functools.cache
def _tell_once(problem: str) -> None:
    _LOG.warning("reasoned tile sizes are used: %s", problem)


def _sizes(found: object, names: tuple[str, ...]) -> dict[str, int] | None:
    """The entry, if it names just these sizes, and tiles and warps are powers of two: the compiler takes no others."""
    if not isinstance(found, Mapping) or set(found) != set(names):
        return None
    if any(type(size) is not int or not 1 <= size <= LARGEST for size in found.values()):
        return None
    if any(size & (size - 1) for name, size in found.items() if name not in COUNTS):
        return None
    return dict(found)


def _wanted(names: tuple[str, ...]) -> str:
    return f"{', '.join(names)} from 1 to {LARGEST}, powers of two but for {' and '.join(COUNTS)}"

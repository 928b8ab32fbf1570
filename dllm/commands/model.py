"""Loading a checkpoint for a command: arguments, and a progress bar with the time it took."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from dllm.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from dllm.engine import Engine
    from dllm.layers.linear import Mode
    from dllm.loader import Checkpoint, LoadProgress
    from dllm.parallel import Team
    from dllm.quantize import Quantisation

DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16"}
_BAR = 24


def add_model_arguments(parser: argparse.ArgumentParser, *, with_device: bool = True) -> None:
    parser.add_argument("--model", help="checkpoint folder, or ORG/NAME on the hub; default: the built-in model")
    if with_device:
        parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
        parser.add_argument("--dtype", help="float32, bfloat16 or float16; default: float32 on CPU, else as stored")
        parser.add_argument("--quantize", help="int8, int8-dynamic (CPU), fp8 or int4 weights")


def load(args: argparse.Namespace, stream: TextIO | None = None, team: Team | None = None) -> Checkpoint:
    """The checkpoint that the arguments name. On a terminal `stream` (standard error) shows how far it is, and the time it took.

    Args:
        team: Ranks that share the model; each loads its part, to the device that the team gave it.

    Raises:
        CheckpointError: If it cannot be loaded.
        ConfigError: If the device or the type does not exist here.
    """
    from dllm import loader

    place, dtype, quantize = device(args.device), dtype_of(args.dtype), quantisation(args.quantize)
    # Compiled layers read and write floats.
    compiled = getattr(args, "cache_dtype", None) is None
    stream = stream or sys.stderr
    if team is not None:
        return loader.load(source(args.model), team.device, dtype, quantize=quantize, team=team)
    if not stream.isatty():
        return _on_one_thread(
            loader.load(source(args.model), place, dtype, quantize=quantize, packed=True, compiled=compiled)
        )
    bar = LoadBar(stream)
    try:
        checkpoint = loader.load(
            source(args.model), place, dtype, quantize=quantize, progress=bar, packed=True, compiled=compiled
        )
    finally:
        bar.clear()
    print(
        f"{checkpoint.path.name}: {checkpoint.bytes / 2**20:.0f} MiB of weights in {checkpoint.seconds:.1f} s"
        + (f"; {checkpoint.compiled}" if checkpoint.compiled else ""),
        file=stream,
        flush=True,
    )
    return _on_one_thread(checkpoint)


def _on_one_thread(checkpoint: Checkpoint) -> Checkpoint:
    """Where layers are compiled they are for one; more threads would take PyTorch's, which are slower together."""
    import torch

    from dllm.packing import LAYERS_COMPILED

    if checkpoint.compiled == LAYERS_COMPILED:
        torch.set_num_threads(1)
    return checkpoint


def engine(
    checkpoint: Checkpoint, max_batch: int = 1, cache_mb: int = 128, cache_dtype: torch.dtype | None = None
) -> Engine:
    from dllm.engine import Engine

    return Engine(
        checkpoint.model,
        checkpoint.codec.token_table,
        max_batch=max_batch,
        cache_bytes=cache_mb * 2**20,
        cache_dtype=cache_dtype,
    )


def source(model: str | None) -> Path | str | None:
    """A folder where there is one of that name, else a name on the hub."""
    if model is None:
        return None
    if not model:
        raise ConfigError("--model", model, "a checkpoint's folder, or ORG/NAME")
    try:
        folder = Path(model).expanduser()
        return folder if folder.exists() else model
    except (OSError, RuntimeError) as error:  # Too long for a name, or of a user who is not known here.
        raise ConfigError("--model", model, f"a checkpoint's folder, or ORG/NAME ({error})") from error


def check_folder(option: str, path: Path) -> None:
    """That the folder can be made or written to, before hours are spent on what is to go there. Makes nothing.

    Raises:
        ConfigError: If it cannot.
    """
    there = path.absolute()
    try:
        while not there.exists():
            there = there.parent
    except OSError as error:  # Python 3.11 raises it below a folder that may not be looked into
        reason = error.strerror or type(error).__name__
        raise ConfigError(option, str(path), f"a folder that can be written to ({there}: {reason})") from error
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(option, str(path), f"a folder that can be written to, and {there} cannot")


def device(name: str) -> torch.device:
    """
    Raises:
        ConfigError: If this machine or this build of PyTorch has no such device.
    """
    import torch

    try:
        place = torch.device(name)
        torch.zeros(1, device=place).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = re.split(r"\n|(?<=\.) ", str(error))[0]
        raise ConfigError("--device", name, f"a device that PyTorch finds here ({reason})") from error
    return place


def dtype_of(name: str | None) -> torch.dtype | None:
    import torch

    if name is None:
        return None
    if name not in DTYPES:
        raise ConfigError("--dtype", name, f"one of {', '.join(DTYPES)}")
    found: torch.dtype = getattr(torch, DTYPES[name])
    return found


def add_cache_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache-dtype", metavar="TYPE", help="e4m3: keys and values in eight bits; default: the weights' type"
    )


def cache_dtype_of(name: str | None) -> torch.dtype | None:
    """
    Raises:
        ConfigError: If there is no such type.
    """
    from dllm.models.family import EIGHT_BITS

    if name not in (None, "e4m3"):
        raise ConfigError("--cache-dtype", name, "e4m3, or nothing for the weights' type")
    return None if name is None else EIGHT_BITS


def quantisation(mode: str | None) -> Quantisation | None:
    """
    Raises:
        ConfigError: If there is no such mode.
    """
    from dllm.quantize import Quantisation

    return None if mode is None else Quantisation(cast("Mode", mode))


class LoadBar:
    """One line on a terminal, redrawn at most ten times a second."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._start = time.perf_counter()
        self._drawn = 0.0

    def __call__(self, progress: LoadProgress) -> None:
        now = time.perf_counter()
        if now - self._drawn < 0.1 and progress.done_bytes < progress.total_bytes:
            return
        self._drawn = now
        share = progress.done_bytes / max(1, progress.total_bytes)
        bar = "#" * round(share * _BAR)
        self._stream.write(
            f"\r\x1b[K[{bar:.<{_BAR}}] {progress.done_bytes / 2**30:.2f} of {progress.total_bytes / 2**30:.2f} GiB, "
            f"{now - self._start:.0f} s"
        )
        self._stream.flush()

    def clear(self) -> None:
        self._stream.write("\r\x1b[K")
        self._stream.flush()

"""Weights on disk: one safetensors file, or several with an index that says which tensor is where. Reading maps files into memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dllm.errors import CheckpointError, MissingShardError, MissingTensorError, TensorTypeError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What can be read. Quantised types (F8_E4M3, I8, ...) need scales that each quantiser stores in its own way."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor on disk."""

    file: Path
    shape: tuple[int, ...]
    kind: str
    """As safetensors calls it: F32, BF16, F8_E4M3, ..."""
    bytes: int


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The files of a checkpoint, and which file its index promises each tensor in (empty without an index).

    Raises:
        CheckpointError: If there are none, or the index is damaged.
        MissingShardError: If a file of the index is missing.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        return [single], {}
    if not index.is_file():
        if any(folder.glob("*.safetensors")):
            raise CheckpointError(f"{index}: no such file; it says which tensor is in which of the weight files")
        if any(folder.glob("pytorch_model*.bin")):
            raise CheckpointError(
                f"{single}: no such file; pytorch_model.bin is not read, since reading it can run code"
            )
        raise CheckpointError(f"{single}: no such file, nor {INDEX}")
    try:
        promised = dict(json.loads(index.read_text("utf-8"))["weight_map"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{index}: not an index of weight files: {error!r}") from error
    names = sorted({str(name) for name in promised.values()})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index}: {name!r} is not the name of a file in this folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise MissingShardError(folder, missing)
    return [folder / name for name in names], promised


def list_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint, from the files' headers alone.

    Raises:
        CheckpointError: See `weight_files`; also if a file is damaged.
        MissingTensorError: If a file lacks a tensor that the index promises in it.
    """
    files, promised = weight_files(folder)
    found: dict[str, Stored] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    piece = file.get_slice(name)
                    shape, kind = tuple(piece.get_shape()), str(piece.get_dtype())
                    size = DTYPES[kind].itemsize if kind in DTYPES else 1
                    found[name] = Stored(path, shape, kind, torch.Size(shape).numel() * size)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not safetensors: {error}") from error
    for path in files:
        here = [name for name, file in promised.items() if file == path.name]
        if lost := sorted(name for name in here if name not in found or found[name].file != path):
            raise MissingTensorError(path, lost)
    return found


def check_types(stored: Mapping[str, Stored]) -> None:
    """
    Raises:
        TensorTypeError: If a tensor is of a type that cannot be read.
    """
    for name, tensor in stored.items():
        if tensor.kind not in DTYPES:
            raise TensorTypeError(tensor.file, name, tensor.kind, tuple(DTYPES))


def main_dtype(stored: Mapping[str, Stored]) -> torch.dtype:
    """The type that most bytes are stored in."""
    totals: dict[str, int] = {}
    for tensor in stored.values():
        totals[tensor.kind] = totals.get(tensor.kind, 0) + tensor.bytes
    return DTYPES[max(totals, key=lambda kind: totals[kind])]


def read_tensors(stored: Mapping[str, Stored]) -> Iterator[tuple[str, Tensor]]:
    """Tensors one by one, file by file. Each is a view of the mapped file: copy it before asking for the next.

    Raises:
        CheckpointError: If a file cannot be read any more.
    """
    by_file: dict[Path, list[str]] = {}
    for name, tensor in stored.items():
        by_file.setdefault(tensor.file, []).append(name)
    for path, names in by_file.items():
        try:
            with safe_open(path, framework="pt") as file:
                for name in names:
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not safetensors: {error}") from error


_HEADER_BYTES, _ENTRY_BYTES = 64, 128
"""Of a file and of a tensor in it, beside its name: more than safetensors writes, so that a limit holds for whole files."""


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, max_shard_bytes: int) -> None:
    """Write weights as one file, or as several with an index when they are more than `max_shard_bytes`.

    Former weights in the folder are removed. One shard at a time is copied to host memory.

    Args:
        tensors: By published name; views are welcome.
        dtype: None keeps each tensor's.
    """
    for old in (folder / SINGLE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
        old.unlink(missing_ok=True)
    sizes = {name: tensor.numel() * (dtype or tensor.dtype).itemsize for name, tensor in tensors.items()}
    in_file = {name: size + len(name.encode()) + _ENTRY_BYTES for name, size in sizes.items()}
    shards = _split(in_file, max_shard_bytes - _HEADER_BYTES)
    names = [f"model-{at:05d}-of-{len(shards):05d}.safetensors" for at in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE]
    for file, shard in zip(names, shards, strict=True):
        path = folder / file
        copies = {
            name: tensors[name].detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
            for name in shard
        }
        save_file(copies, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors writes for the owner alone
    if len(shards) > 1:
        where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _split(sizes: Mapping[str, int], limit: int) -> Sequence[Sequence[str]]:
    """Names in order, cut where a shard would grow beyond the limit; at least one name each."""
    shards: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards

"""What a model card says beside its measurements: weights, data, training record, machine and commit, all read and none typed."""

from __future__ import annotations

import hashlib
import json
import lzma
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dllm import loader
from dllm.errors import DataError
from dllm.loader import Checkpoint
from dllm.machine import commit, processor_name, system_name
from dllm.train.config import TrainConfig
from dllm.train.data import Split, find_sources
from dllm.train.files import read_objects

SOURCES: dict[str, tuple[str, str]] = {
    "cafe": ("café dialogues written by `voice_pipelines.cafe.dialogues`", "made by this repository's code"),
    "facts": (
        "businesses with facts in the prompt, written by `voice_pipelines.rehearsal`",
        "made by this repository's code",
    ),
    "tools": ("tool calls, written by `voice_pipelines.rehearsal`", "made by this repository's code"),
    "manners": ("telephone manners, written by `voice_pipelines.rehearsal`", "made by this repository's code"),
    "sgd": ("Schema-Guided Dialogue", "CC BY-SA 4.0"),
    "taskmaster4": ("Taskmaster-4, coffee orders", "CC BY 4.0"),
    "taskmaster4_reward": ("Taskmaster-4, reward set", "CC BY 4.0"),
    "taskmaster3_partial": ("Taskmaster-3, cinema tickets (beginnings)", "CC BY 4.0"),
    "self_dialogue": ("self-dialogue corpus", "BSD-3-Clause"),
    "synthetic_persona_chat": ("Synthetic-Persona-Chat", "CC BY 4.0"),
    "topical_chat": ("Topical-Chat", "CDLA-Sharing 1.0"),
    "casino": ("CaSiNo", "CC BY 4.0"),
    "multidogo_customer": ("MultiDoGO, customer turns", "CDLA-Permissive 1.0"),
}
"""Name and licence of the sources that the built-in model may be trained on."""
SHARE_ALIKE = "CC BY-SA 4.0"
LOG_POINTS = 200
"""Of a training curve, as it is kept for the plot."""


def weights_hash(folder: Path) -> str:
    """SHA-256 over the weight files in the order of their names."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        found.update(path.name.encode())
        with path.open("rb") as file:
            while piece := file.read(2**20):
                found.update(piece)
    return found.hexdigest()


def is_builtin(checkpoint: Checkpoint) -> bool:
    """Whether these are the weights that come with the package, wherever they were read."""
    return weights_hash(checkpoint.path) == weights_hash(loader.BUILTIN)


def tokenizer_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def about_model(checkpoint: Checkpoint) -> dict[str, Any]:
    config = json.loads((checkpoint.path / "config.json").read_text("utf-8"))
    return {
        "parameters": sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        "bytes": sum(path.stat().st_size for path in checkpoint.path.glob("*.safetensors")),
        "sha256": weights_hash(checkpoint.path),
        "family": checkpoint.spec.family,
        "mask_kind": checkpoint.spec.mask_kind,
        "corruption": checkpoint.spec.corruption,
        "canvas_multiple": checkpoint.spec.canvas_multiple,
        "config": config,
    }


def about_data(folders: Sequence[Path], weights: Mapping[str, float], split: Split) -> dict[str, Any]:
    """Each source's share, dialogues, licence, and how many held-back answers training shows word for word; train files may be absent."""
    held_back = find_sources(folders, split)
    try:
        train = find_sources(folders, "train")
    except DataError:
        train = {}
    total = sum(weights.values())
    table = {}
    for name, weight in weights.items():
        title, licence = SOURCES.get(name, (name, "unknown"))
        table[name] = {
            "title": title,
            "licence": licence,
            "share": round(weight / total, 5),
            "train": _lines(train[name]) if name in train else None,
            "held_back": _lines(held_back[name]),
            "seen": _seen(train[name], held_back[name]) if name in train else None,
        }
    return table


def data_hash(folders: Sequence[Path], names: Sequence[str], split: Split) -> str:
    """Of the files that are measured on."""
    found = hashlib.sha256()
    for name, path in sorted(find_sources(folders, split).items()):
        if name in names:
            found.update(name.encode() + path.read_bytes())
    return found.hexdigest()


def _lines(path: Path) -> int:
    """Dialogues of a file: lines that are not empty."""
    with lzma.open(path, "rb") if path.suffix == ".xz" else path.open("rb") as file:
        return sum(bool(line.strip()) for line in file)


def _seen(train: Path, held_back: Path) -> list[int]:
    """How many of the held-back agent's turns stand in the training file too, behind the same turn; and of how many."""
    wanted = Counter(_exchanges(held_back))
    seen = {exchange for exchange in _exchanges(train) if exchange in wanted}
    return [sum(wanted[exchange] for exchange in seen), wanted.total()]


def _exchanges(path: Path) -> Iterator[tuple[str, str]]:
    """Each agent's turn behind another, with that."""
    for _, body in read_objects(path):
        turns = [turn for turn in body.get("turns") or () if isinstance(turn, dict)]
        texts = [str(turn.get("text") or json.dumps(turn.get("call"), sort_keys=True)) for turn in turns]
        for turn, before, text in zip(turns[1:], texts, texts[1:], strict=False):
            if turn.get("role") == "agent":
                yield before, text


def about_training(run: Path | None) -> dict[str, Any]:
    """Counters, machine and thinned-out curves of a run folder; empty without one."""
    from dllm.train.logs import read_log, read_record

    if run is None:
        return {}
    record = read_record(run)
    log = read_log(run / "log.jsonl") if (run / "log.jsonl").is_file() else []
    found: dict[str, Any] = {name: record[name] for name in ("machine", "legs", "tokens") if name in record}
    config = record.get("config", {})
    found["objective"] = config.get("objective", "dialogue")
    if config.get("init"):
        # A run that went on from another checkpoint counts its own steps only.
        found["init"] = Path(config["init"]).name
    if not log:
        return found
    every = max(1, len(log) // LOG_POINTS)
    names = [
        name
        for name, value in log[-1].items()
        if isinstance(value, float) and name not in ("seconds", "tokens_per_s", "share", "gradient_norm")
    ]
    curves: dict[str, list[float | None]] = {"tokens": [], **{name: [] for name in names}}
    for first in range(0, len(log), every):
        some = log[first : first + every]
        curves["tokens"].append(some[-1]["tokens"])
        for name in names:
            values = [line[name] for line in some if isinstance(line.get(name), int | float)]
            curves[name].append(round(sum(values) / len(values), 5) if values else None)
    return found | {
        "steps": log[-1]["step"],
        "tokens": log[-1]["tokens"],
        "seconds": round(log[-1]["seconds"], 1),
        "curves": curves,
    }


def training_config(run: Path | None) -> TrainConfig | None:
    """The configuration that a run folder tells of."""
    if run is None or not (run / "config.json").is_file():
        return None
    return TrainConfig.from_json(json.loads((run / "config.json").read_text("utf-8")))


def about_machine() -> dict[str, Any]:
    return {
        "processor": processor_name(),
        "system": system_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
    }

"""Low-rank adapters beside frozen matrices (LoRA, arXiv:2106.09685), in the layout that PEFT publishes.

Matrices that a checkpoint has apart are fused in memory; each keeps an adapter of its own, on its rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from dllm.errors import ConfigError
from dllm.models.family import Slot
from dllm.train.config import TrainConfig

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Adapted:
    """One matrix with an adapter."""

    name: str
    """On disk, without ".weight"."""
    layer: str
    """The `LoraLinear` that holds it."""
    first: int
    rows: int


class LoraLinear(nn.Module):
    """A frozen linear layer, and `up @ down @ x * scale` added to some runs of its outputs."""

    def __init__(self, base: nn.Linear, runs: Sequence[tuple[int, int]], rank: int, scale: float) -> None:
        """
        Args:
            runs: First output and number of outputs of each adapted matrix, in order, not overlapping.
        """
        super().__init__()
        self.base, self.runs, self.rank, self.scale = base.requires_grad_(False), tuple(runs), rank, scale
        # float32 whatever the frozen weights are: steps of a thousandth would be lost in bfloat16.
        place = base.weight.device
        self.down = nn.Parameter(torch.empty(len(runs) * rank, base.in_features, device=place))
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(rows, rank, device=place)) for _, rows in runs)

    def reset(self, generator: torch.Generator) -> None:
        """Uniform as a linear layer's weights downwards, zero upwards: the model begins as it was."""
        bound = 1 / math.sqrt(self.base.in_features)
        with torch.no_grad():
            self.down.uniform_(-bound, bound, generator=generator)
            for up in self.up:
                up.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        out: Tensor = self.base(x)
        low = F.linear(x.to(self.down.dtype), self.down) * self.scale
        pieces: list[Tensor] = []
        at = 0
        for (first, rows), up, part in zip(self.runs, self.up, torch.split(low, self.rank, -1), strict=True):
            pieces.append(out[..., at:first])
            pieces.append(out[..., first : first + rows] + F.linear(part, up).to(out.dtype))
            at = first + rows
        pieces.append(out[..., at:])
        return torch.cat(pieces, -1)


class Adapters:
    """All adapters of a network."""

    def __init__(self, matrices: Sequence[Adapted], config: TrainConfig) -> None:
        self.matrices = tuple(matrices)
        self.rank, self.alpha = config.lora_rank, config.lora_alpha

    def _pair(self, weights: Mapping[str, Tensor], number: int) -> tuple[Tensor, Tensor]:
        """Down [rank, inputs] and up [rows, rank] of one matrix."""
        matrix = self.matrices[number]
        index = sum(other.layer == matrix.layer for other in self.matrices[:number])
        down = weights[f"{matrix.layer}.down"][index * self.rank : (index + 1) * self.rank]
        return down, weights[f"{matrix.layer}.up.{index}"]

    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights named as in the network without adapters, with what the adapters add, in float32 where they add something."""
        plain = {name.replace(".base.", "."): tensor for name, tensor in weights.items()}
        layers = {matrix.layer for matrix in self.matrices}
        found = {name: tensor for name, tensor in plain.items() if not _is_adapter(name, layers)}
        for layer in layers:
            found[f"{layer}.weight"] = found[f"{layer}.weight"].float().clone()
        for number, matrix in enumerate(self.matrices):
            down, up = self._pair(weights, number)
            rows = found[f"{matrix.layer}.weight"][matrix.first : matrix.first + matrix.rows]
            rows += up.float() @ down.float() * (self.alpha / self.rank)
        return found

    def save(self, folder: Path, weights: Mapping[str, Tensor], base: str) -> None:
        """The adapters alone, as PEFT's `PeftModel.from_pretrained` reads them.

        Args:
            base: Checkpoint that they belong to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for number, matrix in enumerate(self.matrices):
            down, up = self._pair(weights, number)
            tensors[f"base_model.model.{matrix.name}.lora_A.weight"] = down.contiguous().clone()
            tensors[f"base_model.model.{matrix.name}.lora_B.weight"] = up.contiguous().clone()
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors writes for the owner alone
        body = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "target_modules": sorted({matrix.name.rpartition(".")[2] for matrix in self.matrices}),
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "inference_mode": True,
            "modules_to_save": None,
            "use_dora": False,
            "use_rslora": False,
        }
        (folder / CONFIG_FILE).write_text(json.dumps(body, indent=2) + "\n", "utf-8")


def _is_adapter(name: str, layers: set[str]) -> bool:
    if name.endswith(".down"):
        return name.removesuffix(".down") in layers
    layer, is_up, _ = name.rpartition(".up.")
    return bool(is_up) and layer in layers


def adapt(network: nn.Module, slots: Mapping[str, Slot], config: TrainConfig) -> Adapters:
    """Freeze a network and put adapters on the matrices that the configuration names, in place.

    Args:
        slots: Where each tensor on disk lives (`Family.tensors`).

    Raises:
        ConfigError: If a name fits no matrix.
    """
    network.requires_grad_(False)
    runs: dict[str, list[tuple[int, int, str]]] = {}
    known: set[str] = set()
    for name, slot in slots.items():
        layer = slot.parameter.removesuffix(".weight")
        if not name.endswith(".weight") or slot.expert is not None or not layer.startswith("layers."):
            continue
        module = network.get_submodule(layer) if _has(network, layer) else None
        if not isinstance(module, nn.Linear):
            continue
        disk = name.removesuffix(".weight")
        known.add(disk.rpartition(".")[2])
        if config.lora_matrices and disk.rpartition(".")[2] not in config.lora_matrices:
            continue
        runs.setdefault(layer, []).append((slot.first, slot.rows or module.out_features, disk))
    if unknown := set(config.lora_matrices) - known:
        raise ConfigError("lora_matrices", sorted(unknown), f"some of {', '.join(sorted(known))}")
    generator = torch.Generator().manual_seed(config.seed)
    matrices = []
    for layer, found in runs.items():
        found.sort()
        base = cast(nn.Linear, network.get_submodule(layer))
        pairs = [(first, rows) for first, rows, _ in found]
        adapted = LoraLinear(base, pairs, config.lora_rank, config.lora_alpha / config.lora_rank)
        adapted.reset(generator)
        parent, _, child = layer.rpartition(".")
        setattr(network.get_submodule(parent), child, adapted)
        matrices += [Adapted(disk, layer, first, rows) for first, rows, disk in found]
    return Adapters(matrices, config)


def _has(network: nn.Module, layer: str) -> bool:
    try:
        network.get_submodule(layer)
    except AttributeError:
        return False
    return True

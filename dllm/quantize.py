"""Weights in eight or four bits: which parts of a network are quantised, and how tensors reach them while a checkpoint is read.

Projections of attention and feed-forwards, and experts. Embeddings, norms, routers, modulations and noise embeddings stay as they are,
and so does the output head unless asked for: thresholds act on its probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from dllm.errors import ConfigError
from dllm.layers.linear import Mode, QuantExperts, QuantLinear, fill
from dllm.layers.moe import Experts
from dllm.models.family import Slot

PROJECTIONS = ("qkv_proj", "o_proj", "gate_up_proj", "up_proj", "down_proj")
"""Last names of the linear layers that are quantised."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What to do with weights while they are loaded.

    Raises:
        ConfigError: If there is no such mode.
    """

    mode: Mode
    head: bool = False
    """The output head too. A head that is tied to the embedding becomes a quantised copy of it: less to read per step, more to hold."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError("quantize", self.mode, f"one of {', '.join(get_args(Mode))}")

    def check(self, device: torch.device) -> None:
        """
        Raises:
            ConfigError: If the mode is not for that device.
        """
        if self.mode == "int8-dynamic" and device.type != "cpu":
            raise ConfigError("quantize", self.mode, f"int8, fp8 or int4 on {device.type}; int8-dynamic is for the CPU")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a quantised parameter lives: what `Slot.of` cuts, twice."""

    values: Tensor
    scale: Tensor

    def put(self, slot: Slot, weights: Tensor) -> None:
        """Quantise a tensor of the files into its part of the parameter."""
        fill(slot.of(self.values), slot.of(self.scale), weights)


def swap_layers(network: nn.Module, how: Quantisation) -> None:
    """Replace layers by quantised ones, which hold nothing yet. For networks without memory (the meta device), before loading."""
    for name, module in list(network.named_modules()):
        parent, _, last = name.rpartition(".")
        if isinstance(module, nn.Linear) and last in PROJECTIONS:
            setattr(network.get_submodule(parent), last, _like(module, how.mode))
        elif isinstance(module, Experts):
            with _device_of(module.down_proj):
                setattr(network.get_submodule(parent), last, QuantExperts(how.mode, module))
    if how.head:
        head = network.lm_head
        if isinstance(head, nn.Linear):
            network.lm_head = _like(head, how.mode)
        else:
            embedding = network.embed_tokens
            assert isinstance(embedding, nn.Embedding)
            with _device_of(embedding.weight):
                network.lm_head = QuantLinear(how.mode, embedding.embedding_dim, embedding.num_embeddings)


def _like(linear: nn.Linear, mode: Mode) -> QuantLinear:
    with _device_of(linear.weight):
        return QuantLinear(mode, linear.in_features, linear.out_features, linear.bias)


def _device_of(tensor: Tensor) -> torch.device:
    return tensor.device


def places(network: nn.Module) -> dict[str, Place]:
    """Where quantised parameters live, by the names that slots know them by."""
    found: dict[str, Place] = {}
    for name, module in network.named_modules():
        if isinstance(module, QuantLinear):
            found[f"{name}.weight"] = Place(module.values, module.scale)
        elif isinstance(module, QuantExperts):
            found[f"{name}.gate_up_proj"] = Place(module.gate_up_proj, module.gate_up_scale)
            found[f"{name}.down_proj"] = Place(module.down_proj, module.down_scale)
    return found


def copy_tied_head(network: nn.Module) -> None:
    """Quantise the embedding, once it is loaded, into a head that no tensor of the files fills."""
    head, embedding = network.lm_head, network.embed_tokens
    assert isinstance(head, QuantLinear) and isinstance(embedding, nn.Embedding)
    fill(head.values, head.scale, embedding.weight)

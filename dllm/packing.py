"""Networks that only write, on a CPU: their linear layers laid out for its matrix units (`dllm.layers.packed`)."""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn

from dllm.layers.packed import PackedLinear
from dllm.machine import has_bfloat16_units
from dllm.quantize import PROJECTIONS

COPIED_HEAD_BYTES = 64 * 2**20
"""A head that is tied to the embedding is packed as a copy of it, up to this size. Beyond, memory is worth more than the time."""


def pack(network: nn.Module) -> int:
    """Pack the projections and the output head of a network on the CPU; how many layers that were.

    Nothing happens to layers that would not gain: on another device, in a type that this processor does not multiply in, or where PyTorch
    comes without oneDNN. A packed network cannot be trained, copied or saved.
    """
    count = 0
    for name, module in list(network.named_modules()):
        parent, _, last = name.rpartition(".")
        if isinstance(module, nn.Linear) and last in (*PROJECTIONS, "lm_head") and can_pack(module.weight):
            setattr(network.get_submodule(parent), last, PackedLinear(module.weight, module.bias))
            count += 1
    return count + _pack_tied_head(network)


def can_pack(weight: Tensor) -> bool:
    """Whether a layer with these weights gains from being packed here. Measured on x86 alone."""
    if weight.device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bfloat16_units())


def _pack_tied_head(network: nn.Module) -> int:
    embedding = getattr(network, "embed_tokens", None)
    if not isinstance(embedding, nn.Embedding) or getattr(network, "lm_head", embedding) is not None:
        return 0
    weight = embedding.weight
    if not can_pack(weight) or weight.numel() * weight.element_size() > COPIED_HEAD_BYTES:
        return 0
    network.lm_head = PackedLinear(weight, is_copy=True)
    return 1

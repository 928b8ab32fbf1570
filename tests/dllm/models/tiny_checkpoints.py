"""Tiny models of every dense family: the published config with small numbers, and random weights under the published names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dllm.models.registry import family_named
from dllm.spec import ModelSpec

VOCAB = 96
MASK = 95

_QWEN: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "mask_token_id": MASK,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
    "bos_token_id": 1,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "dllm_llama": _QWEN | {"tie_word_embeddings": True, "mask_token_id": 1, "max_canvas": 16, "canvas_multiple": 8},
    "sdar": _QWEN | {"block_size": 4},
    "fast_dllm": _QWEN | {"bd_size": 8, "tie_word_embeddings": True},
    "dream": _QWEN,
    "nemotron": {key: value for key, value in _QWEN.items() if key != "rope_theta"}
    | {
        "block_size": 8,
        "rms_norm_eps": 1e-5,
        # An original context of 16 puts most test positions beyond it, where YaRN and the query scale act.
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 16.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 4.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "llada": {
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": 4,
        "n_layers": 2,
        "mlp_hidden_size": 48,
        "vocab_size": VOCAB - 2,
        "embedding_size": VOCAB,
        "max_sequence_length": 256,
        "rope_theta": 5e5,
        "rms_norm_eps": 1e-5,
        "weight_tying": False,
        "mask_token_id": MASK,
        "eos_token_id": [2, 3],
        "pad_token_id": 0,
        "bos_token_id": 1,
    },
}
"""config.json by family, as published but small. Not there: `model_type` and `architectures`, which `write_config` adds."""


def tiny_spec(family_name: str) -> ModelSpec:
    """Two layers, hidden size 32, heads 4 on 2 (LLaDA: 4 on 4), 96 tokens."""
    return family_named(family_name).read_config(CONFIGS[family_name])


def random_network(spec: ModelSpec, seed: int = 0, scale: float = 8.0) -> nn.Module:
    """A network with opinions: at the usual .02 every token would be equally likely. Norms and biases are random too."""
    network = family_named(spec.family).build(spec)
    generator = torch.Generator().manual_seed(seed)
    network.reset_parameters(generator)  # type: ignore[operator]
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
            else:
                centre = 0.0 if name.endswith("bias") else 1.0
                parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))
    return network.eval().requires_grad_(False)


def on_disk(network: nn.Module) -> dict[str, Tensor]:
    """The weights under their published names, each a tensor of its own."""
    spec: ModelSpec = network.spec  # type: ignore[assignment]
    state = network.state_dict()
    return {
        name: slot.of(state[slot.parameter]).clone() for name, slot in family_named(spec.family).tensors(spec).items()
    }


def from_disk(spec: ModelSpec, tensors: dict[str, Tensor]) -> nn.Module:
    """A network filled from published names; what no name fills is NaN, so that a hole in the map shows."""
    family = family_named(spec.family)
    network = family.build(spec)
    state = network.state_dict()
    with torch.no_grad():
        for value in state.values():
            if value.is_floating_point():
                value.fill_(float("nan"))
        for name, slot in family.tensors(spec).items():
            place = slot.of(state[slot.parameter])
            assert place.shape == tensors[name].shape, name
            place.copy_(tensors[name])
    return network.eval().requires_grad_(False)

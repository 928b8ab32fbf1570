"""Networks that only write, on a CPU: their linear layers laid out for its matrix units (`dllm.layers.packed`), and, of a small one, all
layers compiled into one call (`dllm_kernels.decoder`)."""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn

from dllm.layers.norm import RMSNorm
from dllm.layers.packed import PackedLinear
from dllm.machine import has_bfloat16_units
from dllm.models.transformer import Transformer
from dllm.quantize import PROJECTIONS
from dllm.spec import ModelSpec
from dllm_kernels import native
from dllm_kernels.decoder import PANEL, Decoder, Geometry, LayerWeights, takes

SMALL_BYTES = 256 * 2**20
"""Layers up to this size get a second copy for the compiled call, which is for one core."""
LAYERS_COMPILED = "layers compiled"
COPIED_HEAD_BYTES = 64 * 2**20
"""A head that is tied to the embedding is packed as a copy of it, up to this size. Beyond, memory is worth more than the time."""


def compile_layers(network: nn.Module) -> str:
    """Give a small network on the CPU the compiled call for all its layers.

    For layers as the built-in family's: norms of heads or none, SwiGLU, whole heads turned, no biases, no experts, sizes in multiples of 32.

    The built-in model, 32 positions behind 300, one core of a Zen 4: 3.6 ms instead of 8.1 in float32, 2.3 instead of 6.9 in bfloat16 (other
    work on the machine, the thread's own time).

    Returns:
        What is to be told of it: `LAYERS_COMPILED`, why not, or nothing where it is for other networks, devices or types.
    """
    if not isinstance(network, Transformer) or not _is_simple(network.spec):
        return ""
    modules = [
        module for layer in network.layers for module in layer.modules() if isinstance(module, (nn.Linear, RMSNorm))
    ]
    weights = [module.weight for module in modules]
    is_whole = len(modules) == len(network.layers) * (8 if network.spec.qk_norm else 6)  # others are quantised
    is_small = sum(weight.numel() * weight.element_size() for weight in weights) <= SMALL_BYTES
    dtype, is_here = weights[0].dtype, weights[0].device.type == "cpu"
    is_known = dtype in (torch.float32, torch.bfloat16) and all(weight.dtype == dtype for weight in weights)
    if not (is_whole and is_small and is_here and is_known):
        return ""
    prepared = native.prepare()
    if prepared.library is None:
        return f"layers not compiled: {prepared.reason}"
    if not takes(dtype):
        return f"layers not compiled: no products in bfloat16 ({prepared.reason})"
    spec = network.spec
    network.decoder = Decoder(
        [_layer_weights(layer, spec.qk_norm) for layer in network.layers],
        network.norm.weight,
        Geometry(spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim, spec.rms_norm_eps),
    )
    return LAYERS_COMPILED


def _is_simple(spec: ModelSpec) -> bool:
    rope = spec.rope
    has_plain_turns = rope.partial == 1.0 and not rope.query_scale_beta
    sizes = (spec.hidden_size, spec.intermediate_size, spec.head_dim)
    return has_plain_turns and spec.moe is None and spec.activation == "silu" and not spec.qkv_bias and not any(
        size % PANEL for size in sizes
    )  # fmt: skip


def _layer_weights(layer: nn.Module, has_norms: bool) -> LayerWeights:
    def weight(name: str) -> Tensor:
        return layer.get_parameter(f"{name}.weight")

    return LayerWeights(
        weight("input_layernorm"),
        weight("self_attn.q_norm") if has_norms else None,
        weight("self_attn.k_norm") if has_norms else None,
        weight("post_attention_layernorm"),
        weight("self_attn.qkv_proj"),
        weight("self_attn.o_proj"),
        weight("mlp.gate_up_proj"),
        weight("mlp.down_proj"),
    )


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

"""The built-in family: Qwen3's block, causal finished text and a bidirectional canvas, tokens with roles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dllm.errors import ConfigError
from dllm.models.family import DecodeDefaults, Family
from dllm.models.layout import qwen_tensors
from dllm.models.transformer import Transformer
from dllm.spec import DialogueTokens, ModelSpec, dialogue_spec

_GEOMETRY = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim rms_norm_eps "
    "max_position_embeddings tie_word_embeddings max_canvas canvas_multiple"
).split()


def read_config(body: Mapping[str, Any]) -> ModelSpec:
    """config.json as a record; unknown keys are ignored.

    Raises:
        ConfigError: If `mask_token_id` and the special-token table disagree, or the geometry is impossible.
    """
    tokens = DialogueTokens(**body.get("special_tokens", {}))
    if body.get("mask_token_id", tokens.mask) != tokens.mask:
        raise ConfigError("mask_token_id", body["mask_token_id"], f"{tokens.mask}, as in special_tokens.mask")
    known = {name: body[name] for name in (*_GEOMETRY, "rope_theta") if name in body}
    return dialogue_spec(**known, dialogue=tokens)


def write_config(spec: ModelSpec) -> dict[str, Any]:
    """The content of config.json."""
    tokens = spec.dialogue or DialogueTokens()
    return {name: getattr(spec, name) for name in _GEOMETRY} | {
        "rope_theta": spec.rope.theta,
        "mask_kind": spec.mask_kind,
        "model_type": spec.family,
        "architectures": ["LlamaDiffusion"],
        "torch_dtype": "bfloat16",
        "mask_token_id": tokens.mask,
        "eos_token_id": tokens.end,
        "pad_token_id": tokens.pad,
        "special_tokens": asdict(tokens),
    }


FAMILY = Family(
    name="dllm_llama",
    model_types=("dllm_llama",),
    architectures=("LlamaDiffusion",),
    read_config=read_config,
    write_config=write_config,
    tensors=qwen_tensors,
    build=Transformer,
    defaults=DecodeDefaults(rule="threshold", threshold=0.9, hold_ends=True, no_stutter=True),
)

"""What published checkpoints have in common: keys of config.json and names of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dllm.errors import ConfigError
from dllm.models.family import Slot
from dllm.spec import ModelSpec, RopeSpec

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def read_geometry(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelSpec` that are written in Hugging Face's usual keys.

    Raises:
        KeyError: For a key without which there is no geometry.
        ConfigError: For a feature that the network does not have: sliding windows, other activations or position scalings.
    """
    expect(body, {"use_sliding_window": False, "mlp_bias": False})
    activation = body.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise ConfigError("hidden_act", activation, f"one of {', '.join(_ACTIVATIONS)}")
    heads = int(body["num_attention_heads"])
    return {
        "vocab_size": int(body["vocab_size"]),
        "hidden_size": int(body["hidden_size"]),
        "intermediate_size": int(body["intermediate_size"]),
        "num_hidden_layers": int(body["num_hidden_layers"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(body.get("num_key_value_heads") or heads),
        "head_dim": int(body.get("head_dim") or int(body["hidden_size"]) // heads),
        "rope": read_rope(body),
        "rms_norm_eps": float(body.get("rms_norm_eps", 1e-6)),
        "max_position_embeddings": int(body["max_position_embeddings"]),
        "tie_word_embeddings": bool(body.get("tie_word_embeddings", False)),
        "activation": _ACTIVATIONS[activation],
    }


def write_geometry(spec: ModelSpec) -> dict[str, Any]:
    """The opposite of `read_geometry`."""
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "rms_norm_eps max_position_embeddings tie_word_embeddings"
    ).split()
    return {
        **{name: getattr(spec, name) for name in names},
        "hidden_act": "silu" if spec.activation == "silu" else "gelu_pytorch_tanh",
        **write_rope(spec.rope),
        "torch_dtype": "bfloat16",
    }


def read_rope(body: Mapping[str, Any]) -> RopeSpec:
    """Rotary positions from `rope_parameters` (newer) or `rope_theta` and `rope_scaling` (older)."""
    scaling = dict(body.get("rope_parameters") or body.get("rope_scaling") or {})
    theta = float(scaling.get("rope_theta", body.get("rope_theta", 10_000.0)))
    partial = float(scaling.get("partial_rotary_factor", body.get("partial_rotary_factor", 1.0)))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RopeSpec(theta, partial)
    if kind != "yarn":
        raise ConfigError("rope_type", kind, "default or yarn")
    expect(scaling, {"attention_factor": None, "truncate": True})
    mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return RopeSpec(
        theta,
        partial,
        yarn_factor=float(scaling["factor"]),
        yarn_original=int(scaling["original_max_position_embeddings"]),
        yarn_beta_fast=float(scaling.get("beta_fast") or 32.0),
        yarn_beta_slow=float(scaling.get("beta_slow") or 1.0),
        yarn_mscale=None if mscale is None else float(mscale),
        yarn_mscale_all_dim=None if all_dim is None else float(all_dim),
        query_scale_beta=float(scaling.get("llama_4_scaling_beta") or 0.0),
    )


def write_rope(rope: RopeSpec) -> dict[str, Any]:
    """`rope_theta` alone where that says it all, as most families publish it; else `rope_parameters`."""
    partial = {"partial_rotary_factor": rope.partial} if rope.partial != 1.0 else {}
    if rope.yarn_factor == 1.0:
        return {"rope_theta": rope.theta, **partial}
    optional = {
        "mscale": rope.yarn_mscale,
        "mscale_all_dim": rope.yarn_mscale_all_dim,
        "llama_4_scaling_beta": rope.query_scale_beta or None,
    }
    return {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": rope.theta,
            "factor": rope.yarn_factor,
            "original_max_position_embeddings": rope.yarn_original,
            "beta_fast": rope.yarn_beta_fast,
            "beta_slow": rope.yarn_beta_slow,
            **partial,
            **{key: value for key, value in optional.items() if value is not None},
        }
    }


def expect(body: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse a config whose key, if there, has another value than the only one that the network can do.

    Raises:
        ConfigError: Naming the first such key.
    """
    for key, value in values.items():
        if key in body and body[key] != value and body[key] is not None:
            raise ConfigError(key, body[key], f"{value!r}, which is all this network can do")


def token_id(body: Mapping[str, Any], key: str, default: int | None) -> int | None:
    """An id of the config, or the family's own where the config has none."""
    found = body.get(key)
    return default if found is None else int(found)


def end_ids(body: Mapping[str, Any], own: Iterable[int]) -> tuple[int, ...]:
    """The ids that end a reply.

    A list in the config is complete. A single id is what base models were configured with, so the family's own end-of-turn ids that the
    vocabulary has come before it.
    """
    found = body.get("eos_token_id")
    if isinstance(found, (list, tuple)):
        return tuple(int(token) for token in found)
    known = [token for token in own if token < int(body["vocab_size"])]
    return tuple(dict.fromkeys(known if found is None else [*known, int(found)]))


def qwen_tensors(spec: ModelSpec, root: str = "model", head: str = "lm_head.weight") -> dict[str, Slot]:
    """Llama's and Qwen's names, which most families keep: every dense layer, embedding, final norm and untied head."""
    names = {f"{root}.embed_tokens.weight": Slot("embed_tokens.weight"), f"{root}.norm.weight": Slot("norm.weight")}
    for index in range(spec.num_hidden_layers):
        disk, memory = f"{root}.layers.{index}", f"layers.{index}"
        names |= attention_slots(spec, f"{disk}.self_attn", f"{memory}.self_attn")
        names |= feed_forward_slots(spec.intermediate_size, f"{disk}.mlp", f"{memory}.mlp")
        for norm in ("input_layernorm", "post_attention_layernorm"):
            names[f"{disk}.{norm}.weight"] = Slot(f"{memory}.{norm}.weight")
    if not spec.tie_word_embeddings:
        names[head] = Slot("lm_head.weight")
    if spec.self_conditioning:
        names[f"{root}.soft_proj.weight"] = Slot("soft_proj.weight")
    return names


def attention_slots(spec: ModelSpec, disk: str, memory: str) -> dict[str, Slot]:
    """q, k and v as runs of rows of the fused projection; norms and biases where the family has them."""
    names = {f"{disk}.o_proj.weight": Slot(f"{memory}.o_proj.weight")}
    first = 0
    for letter, heads in (
        ("q", spec.num_attention_heads),
        ("k", spec.num_key_value_heads),
        ("v", spec.num_key_value_heads),
    ):
        for kind in ("weight", "bias") if spec.qkv_bias else ("weight",):
            names[f"{disk}.{letter}_proj.{kind}"] = Slot(f"{memory}.qkv_proj.{kind}", first, heads * spec.head_dim)
        first += heads * spec.head_dim
    if spec.qk_norm:
        names |= {f"{disk}.{letter}_norm.weight": Slot(f"{memory}.{letter}_norm.weight") for letter in "qk"}
    return names


def feed_forward_slots(size: int, disk: str, memory: str) -> dict[str, Slot]:
    """gate and up as runs of rows of the fused projection."""
    return {
        f"{disk}.gate_proj.weight": Slot(f"{memory}.gate_up_proj.weight", 0, size),
        f"{disk}.up_proj.weight": Slot(f"{memory}.gate_up_proj.weight", size, size),
        f"{disk}.down_proj.weight": Slot(f"{memory}.down_proj.weight"),
    }

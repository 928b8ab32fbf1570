"""LLaDA-8B, LLaDA-1.5 and iLLaDA: Llama that sees everything, with names of its own (arXiv:2502.09992)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm.models.family import DecodeDefaults, Family, Slot
from dllm.models.layout import end_ids, expect, token_id
from dllm.models.transformer import Transformer
from dllm.spec import ModelSpec, RopeSpec, SpecialTokens

_MASK, _MASK_TIED, _END, _END_OF_TURN, _BOS = 126336, 5, 126081, 126348, 126080
"""iLLaDA, the tied one, has another tokenizer, in which the mask is 5; its other ids are the config's."""

_EXPECTED = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "bias_for_layer_norm": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "multi_query_attention": False,
}


def read_config(body: Mapping[str, Any]) -> ModelSpec:
    expect(body, _EXPECTED)
    hidden, heads = int(body["d_model"]), int(body["n_heads"])
    is_tied = bool(body.get("weight_tying", False))
    vocab_size = int(body.get("embedding_size") or body["vocab_size"])
    special = SpecialTokens(
        mask=token_id(body, "mask_token_id", _MASK_TIED if is_tied else _MASK),
        ends=end_ids({**body, "vocab_size": vocab_size}, () if is_tied else (_END_OF_TURN, _END)),
        pad=token_id(body, "pad_token_id", None if is_tied else _END),
        bos=token_id(body, "bos_token_id", None if is_tied else _BOS),
    )
    return ModelSpec(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=int(body.get("mlp_hidden_size") or hidden * int(body["mlp_ratio"])),
        num_hidden_layers=int(body["n_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=int(body.get("n_kv_heads") or heads),
        head_dim=hidden // heads,
        special=special,
        family="llada",
        rope=RopeSpec(float(body.get("rope_theta", 10_000.0))),
        rms_norm_eps=float(body.get("rms_norm_eps", 1e-5)),
        max_position_embeddings=int(body["max_sequence_length"]),
        tie_word_embeddings=is_tied,
        mask_kind="full",
    )


def write_config(spec: ModelSpec) -> dict[str, Any]:
    special = spec.special
    return {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        **_EXPECTED,
        "vocab_size": spec.vocab_size,
        "embedding_size": spec.vocab_size,
        "d_model": spec.hidden_size,
        "n_layers": spec.num_hidden_layers,
        "n_heads": spec.num_attention_heads,
        "n_kv_heads": spec.num_key_value_heads,
        "mlp_hidden_size": spec.intermediate_size,
        "max_sequence_length": spec.max_position_embeddings,
        "rope_theta": spec.rope.theta,
        "rms_norm_eps": spec.rms_norm_eps,
        "weight_tying": spec.tie_word_embeddings,
        "mask_token_id": special.mask,
        "eos_token_id": list(special.ends),
        "pad_token_id": special.pad,
        "bos_token_id": special.bos,
        "torch_dtype": "bfloat16",
    }


def tensors(spec: ModelSpec) -> dict[str, Slot]:
    """`ff_out` is a block's down projection inside `blocks`, and the head outside."""
    root = "model.transformer"
    queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
    names = {f"{root}.wte.weight": Slot("embed_tokens.weight"), f"{root}.ln_f.weight": Slot("norm.weight")}
    for index in range(spec.num_hidden_layers):
        disk, memory = f"{root}.blocks.{index}", f"layers.{index}"
        names |= {
            f"{disk}.attn_norm.weight": Slot(f"{memory}.input_layernorm.weight"),
            f"{disk}.q_proj.weight": Slot(f"{memory}.self_attn.qkv_proj.weight", 0, queries),
            f"{disk}.k_proj.weight": Slot(f"{memory}.self_attn.qkv_proj.weight", queries, keys),
            f"{disk}.v_proj.weight": Slot(f"{memory}.self_attn.qkv_proj.weight", queries + keys, keys),
            f"{disk}.attn_out.weight": Slot(f"{memory}.self_attn.o_proj.weight"),
            f"{disk}.ff_norm.weight": Slot(f"{memory}.post_attention_layernorm.weight"),
            f"{disk}.ff_proj.weight": Slot(f"{memory}.mlp.gate_up_proj.weight", 0, spec.intermediate_size),
            f"{disk}.up_proj.weight": Slot(
                f"{memory}.mlp.gate_up_proj.weight", spec.intermediate_size, spec.intermediate_size
            ),
            f"{disk}.ff_out.weight": Slot(f"{memory}.mlp.down_proj.weight"),
        }
    if not spec.tie_word_embeddings:
        names[f"{root}.ff_out.weight"] = Slot("lm_head.weight")
    return names


def is_dense(body: Mapping[str, Any], names: frozenset[str]) -> bool:
    """Whether a `llada` checkpoint has no experts: LLaDA-MoE goes by the same model_type."""
    in_config = any("expert" in key and value for key, value in body.items())
    return not in_config and not any(".experts." in name for name in names)


FAMILY = Family(
    name="llada",
    model_types=("llada",),
    architectures=("LLaDAModelLM",),
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    build=Transformer,
    defaults=DecodeDefaults(rule="threshold", threshold=0.9, block=32),
    is_this=is_dense,
    landmarks=("model.transformer.wte.weight", "model.transformer.blocks.0.ff_proj.weight"),
)

"""LLaDA-MoE: OLMoE's experts behind a full attention mask (arXiv:2509.24389), under Qwen-like names.

Its `model_type` is dense LLaDA's; architecture and expert keys tell them apart. The published code takes the most probable experts with
their probabilities as they are, whatever the config says of scores, groups or scaling; so does this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm.errors import ConfigError
from dllm.models.family import DecodeDefaults, Family, Slot
from dllm.models.layout import (
    attention_slots,
    end_ids,
    expect,
    feed_forward_slots,
    read_geometry,
    token_id,
    write_geometry,
)
from dllm.models.llada import is_dense
from dllm.models.transformer import Transformer
from dllm.spec import ModelSpec, MoeSpec, SpecialTokens

_MASK, _END = 156895, 156892
"""Not in the published config."""

_EXPECTED = {"attention_bias": False, "clip_qkv": None, "moe_router_enable_expert_bias": False}


def read_config(body: Mapping[str, Any]) -> ModelSpec:
    expect(body, _EXPECTED)
    expert_size = int(body["expert_intermediate_size"])
    dense_size = int(body.get("dense_intermediate_size") or expert_size)
    return ModelSpec(
        **read_geometry({**body, "intermediate_size": dense_size}),
        special=SpecialTokens(
            mask=token_id(body, "mask_token_id", _MASK),
            ends=end_ids(body, (_END,)),
            pad=token_id(body, "pad_token_id", None),
            bos=token_id(body, "bos_token_id", None),
        ),
        family="llada_moe",
        qk_norm=bool(body.get("qk_layernorm")),
        moe=MoeSpec(
            experts=int(body["num_experts"]),
            experts_per_token=int(body["num_experts_per_tok"]),
            expert_size=expert_size,
            shared_size=int(body.get("shared_expert_intermediate_size") or 0),
            first_dense=_leading_dense(body.get("moe_layer_freq") or (), int(body["num_hidden_layers"])),
            scoring="softmax",
            normalise=False,
        ),
        mask_kind="full",
    )


def _leading_dense(frequency: list[int] | tuple[int, ...], layers: int) -> int:
    """How many layers come before the first with experts; `moe_layer_freq` has a 0 for each dense layer."""
    if not frequency:
        return 0
    dense = frequency.index(1) if 1 in frequency else len(frequency)
    if len(frequency) != layers or any(kind != 1 for kind in frequency[dense:]):
        raise ConfigError(
            "moe_layer_freq", frequency, f"{layers} numbers, dense layers (0) before those with experts (1)"
        )
    return dense


def write_config(spec: ModelSpec) -> dict[str, Any]:
    moe, special = spec.moe, spec.special
    assert moe is not None
    geometry = write_geometry(spec)
    del geometry["intermediate_size"]
    return {
        "model_type": "llada",
        "architectures": ["LLaDAMoEModelLM"],
        **geometry,
        **_EXPECTED,
        "dense_intermediate_size": spec.intermediate_size,
        "expert_intermediate_size": moe.expert_size,
        "shared_expert_intermediate_size": moe.shared_size or None,
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.experts_per_token,
        "moe_layer_freq": [int(index >= moe.first_dense) for index in range(spec.num_hidden_layers)],
        "moe_router_score_function": "softmax",
        "norm_topk_prob": False,
        "qk_layernorm": spec.qk_norm,
        "mask_token_id": special.mask,
        "eos_token_id": list(special.ends),
        "pad_token_id": special.pad,
        "bos_token_id": special.bos,
    }


def tensors(spec: ModelSpec) -> dict[str, Slot]:
    moe = spec.moe
    assert moe is not None
    names = {"model.embed_tokens.weight": Slot("embed_tokens.weight"), "model.norm.weight": Slot("norm.weight")}
    for index in range(spec.num_hidden_layers):
        disk, memory = f"model.layers.{index}", f"layers.{index}"
        names |= attention_slots(spec, f"{disk}.self_attn", f"{memory}.self_attn")
        for norm in ("input_layernorm", "post_attention_layernorm"):
            names[f"{disk}.{norm}.weight"] = Slot(f"{memory}.{norm}.weight")
        if index < moe.first_dense:
            names |= feed_forward_slots(spec.intermediate_size, f"{disk}.mlp", f"{memory}.mlp")
            continue
        names |= expert_slots(moe, f"{disk}.mlp", f"{memory}.mlp")
        if moe.shared_size:
            names |= feed_forward_slots(moe.shared_size, f"{disk}.shared_expert", f"{memory}.mlp.shared")
    if not spec.tie_word_embeddings:
        names["lm_head.weight"] = Slot("lm_head.weight")
    return names


def expert_slots(moe: MoeSpec, disk: str, memory: str) -> dict[str, Slot]:
    """The router, and every expert's own tensors in the packed parameters."""
    names = {f"{disk}.gate.weight": Slot(f"{memory}.gate")}
    for expert in range(moe.experts):
        gate_up, own = f"{memory}.experts.gate_up_proj", f"{disk}.experts.{expert}"
        names |= {
            f"{own}.gate_proj.weight": Slot(gate_up, 0, moe.expert_size, expert),
            f"{own}.up_proj.weight": Slot(gate_up, moe.expert_size, moe.expert_size, expert),
            f"{own}.down_proj.weight": Slot(f"{memory}.experts.down_proj", expert=expert),
        }
    return names


def has_experts(body: Mapping[str, Any], names: frozenset[str]) -> bool:
    return not is_dense(body, names)


FAMILY = Family(
    name="llada_moe",
    model_types=("llada", "lladamoe"),
    architectures=("LLaDAMoEModelLM",),
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    build=Transformer,
    defaults=DecodeDefaults(rule="threshold", threshold=0.9, block=32),
    is_this=has_experts,
)

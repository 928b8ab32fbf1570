"""LLaDA2.0, 2.1 and 2.2: Ling's mixture of experts under a block-causal mask (LLaDA2.1: arXiv:2602.08676).

Two families share this file, since their checkpoints look alike and are decoded differently: from 2.1 on the model may overwrite its own
decided tokens. A config says so by `model_type` llada21_moe, by `edit_capable`, or by `expert_capacity` (2.2); where it says nothing,
name the family `llada2_edit` when loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from dllm.models.family import DecodeDefaults, Family, Slot
from dllm.models.layout import end_ids, expect, feed_forward_slots, read_geometry, token_id, write_geometry
from dllm.models.llada_moe import expert_slots
from dllm.models.transformer import Transformer
from dllm.spec import ModelSpec, MoeSpec, SpecialTokens

_MASK, _END, _DELETE, _SPLIT = 156895, 156892, 156930, 156931
"""Not in the published config."""

_BLOCK = 32

_EXPECTED = {
    "use_bias": False,
    "use_qkv_bias": False,
    "norm_head": False,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
}


def read_config(body: Mapping[str, Any], edits: bool) -> ModelSpec:
    # The class of the published code has biases unless told otherwise: a config that is silent about them has them.
    expect({"use_bias": True, **body}, _EXPECTED)
    chosen = int(body["num_experts_per_tok"])
    expert_size = int(body["moe_intermediate_size"])
    shared_size = int(body.get("moe_shared_expert_intermediate_size") or expert_size)
    capacity = int(body.get("expert_capacity") or 0)
    has_edit_ids = edits and capacity > 0
    return ModelSpec(
        **read_geometry({"partial_rotary_factor": 0.5, **body}),
        special=SpecialTokens(
            mask=token_id(body, "mask_token_id", _MASK),
            ends=end_ids(body, (_END,)),
            pad=token_id(body, "pad_token_id", None),
            bos=token_id(body, "bos_token_id", None),
            delete=token_id(body, "delete_token_id", _DELETE if has_edit_ids else None),
            split=token_id(body, "split_token_id", _SPLIT if has_edit_ids else None),
        ),
        family=_name(edits),
        qk_norm=bool(body.get("use_qk_norm", True)),
        moe=MoeSpec(
            experts=int(body["num_experts"]),
            experts_per_token=chosen,
            expert_size=expert_size,
            shared_size=shared_size * int(body.get("num_shared_experts") or 0),
            first_dense=int(body.get("first_k_dense_replace", 0)),
            scoring="sigmoid",
            has_bias=True,
            groups=int(body.get("n_group", 8)),
            groups_kept=int(body.get("topk_group", 4)),
            normalise=chosen > 1,
            scale=float(body.get("routed_scaling_factor", 2.5)),
            per_block=capacity,
        ),
        mask_kind="block_causal",
        block=int(body.get("block_size") or _BLOCK),
        edit_capable=edits,
    )


def _name(edits: bool) -> str:
    return "llada2_edit" if edits else "llada2"


def write_config(spec: ModelSpec) -> dict[str, Any]:
    moe, special = spec.moe, spec.special
    assert moe is not None
    edit_ids = {"delete_token_id": special.delete, "split_token_id": special.split}
    return {
        "model_type": "llada2_moe",
        "architectures": ["LLaDA2MoeModelLM"],
        **write_geometry(spec),
        **_EXPECTED,
        "partial_rotary_factor": spec.rope.partial,
        "use_qk_norm": spec.qk_norm,
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.experts_per_token,
        "moe_intermediate_size": moe.expert_size,
        "num_shared_experts": moe.shared_size // moe.expert_size or None,
        "first_k_dense_replace": moe.first_dense,
        "n_group": moe.groups,
        "topk_group": moe.groups_kept,
        "routed_scaling_factor": moe.scale,
        "block_size": spec.block,
        "mask_token_id": special.mask,
        "eos_token_id": list(special.ends),
        "pad_token_id": special.pad,
        "bos_token_id": special.bos,
        **({"expert_capacity": moe.per_block} if moe.per_block else {}),
        **({"edit_capable": True} if spec.edit_capable else {}),
        **{key: token for key, token in edit_ids.items() if token is not None},
    }


def tensors(spec: ModelSpec) -> dict[str, Slot]:
    """Queries, keys and values lie on disk as they lie in memory: one tensor, all query heads, all key heads, all value heads."""
    moe = spec.moe
    assert moe is not None
    names = {"model.word_embeddings.weight": Slot("embed_tokens.weight"), "model.norm.weight": Slot("norm.weight")}
    for index in range(spec.num_hidden_layers):
        disk, memory = f"model.layers.{index}", f"layers.{index}"
        names |= {
            f"{disk}.attention.query_key_value.weight": Slot(f"{memory}.self_attn.qkv_proj.weight"),
            f"{disk}.attention.dense.weight": Slot(f"{memory}.self_attn.o_proj.weight"),
            f"{disk}.input_layernorm.weight": Slot(f"{memory}.input_layernorm.weight"),
            f"{disk}.post_attention_layernorm.weight": Slot(f"{memory}.post_attention_layernorm.weight"),
        }
        if spec.qk_norm:
            names[f"{disk}.attention.query_layernorm.weight"] = Slot(f"{memory}.self_attn.q_norm.weight")
            names[f"{disk}.attention.key_layernorm.weight"] = Slot(f"{memory}.self_attn.k_norm.weight")
        if index < moe.first_dense:
            names |= feed_forward_slots(spec.intermediate_size, f"{disk}.mlp", f"{memory}.mlp")
            continue
        names |= expert_slots(moe, f"{disk}.mlp", f"{memory}.mlp")
        names[f"{disk}.mlp.gate.expert_bias"] = Slot(f"{memory}.mlp.expert_bias")
        if moe.shared_size:
            names |= feed_forward_slots(moe.shared_size, f"{disk}.mlp.shared_experts", f"{memory}.mlp.shared")
    if not spec.tie_word_embeddings:
        names["lm_head.weight"] = Slot("lm_head.weight")
    return names


def says_it_edits(body: Mapping[str, Any], names: frozenset[str] = frozenset()) -> bool:
    """Whether a config tells that the checkpoint is LLaDA2.1 or later."""
    return body.get("model_type") == "llada21_moe" or bool(body.get("edit_capable") or body.get("expert_capacity"))


def _says_nothing_of_edits(body: Mapping[str, Any], names: frozenset[str]) -> bool:
    return not says_it_edits(body, names)


FAMILY = Family(
    name=_name(False),
    model_types=("llada2_moe",),
    architectures=("LLaDA2MoeModelLM",),
    read_config=partial(read_config, edits=False),
    write_config=write_config,
    tensors=tensors,
    build=Transformer,
    defaults=DecodeDefaults(rule="threshold", threshold=0.95),
    is_this=_says_nothing_of_edits,
    landmarks=("model.word_embeddings.weight", "model.layers.0.attention.query_key_value.weight"),
)

EDITING = Family(
    name=_name(True),
    model_types=("llada2_moe", "llada21_moe"),
    architectures=("LLaDA2MoeModelLM", "LLaDA21MoeModelLM"),
    read_config=partial(read_config, edits=True),
    write_config=write_config,
    tensors=tensors,
    build=Transformer,
    defaults=DecodeDefaults(rule="threshold", threshold=0.95, edit_threshold=0.9),
    is_this=says_it_edits,
)

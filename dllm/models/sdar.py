"""SDAR and TraDo: Qwen3 made block-causal (arXiv:2510.06303)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm.models.family import DecodeDefaults, Family
from dllm.models.layout import end_ids, expect, qwen_tensors, read_geometry, token_id, write_geometry
from dllm.models.transformer import Transformer
from dllm.spec import ModelSpec, SpecialTokens

_MASK, _PAD, _ENDS = 151669, 151643, (151645, 151643)


def read_config(body: Mapping[str, Any]) -> ModelSpec:
    expect(body, {"attention_bias": False})
    special = SpecialTokens(
        mask=token_id(body, "mask_token_id", _MASK),
        ends=end_ids(body, _ENDS),
        pad=token_id(body, "pad_token_id", _PAD),
        bos=token_id(body, "bos_token_id", _PAD),
    )
    return ModelSpec(
        **read_geometry(body),
        special=special,
        family="sdar",
        qk_norm=True,
        mask_kind="block_causal",
        block=int(body.get("block_size") or 4),
    )


def write_config(spec: ModelSpec) -> dict[str, Any]:
    special = spec.special
    return {
        "model_type": "sdar",
        "architectures": ["SDARForCausalLM"],
        **write_geometry(spec),
        "attention_bias": False,
        "block_size": spec.block,
        "mask_token_id": special.mask,
        "eos_token_id": list(special.ends),
        "pad_token_id": special.pad,
        "bos_token_id": special.bos,
    }


FAMILY = Family(
    name="sdar",
    model_types=("sdar",),
    architectures=("SDARForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    tensors=qwen_tensors,
    build=Transformer,
    defaults=DecodeDefaults(rule="threshold", threshold=0.9),
)

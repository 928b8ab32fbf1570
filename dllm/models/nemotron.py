"""Nemotron-Labs-Diffusion: Ministral 3 whose finished text is causal and whose live block sees itself whole.

The same weights are a causal language model, so a block may be drafted by diffusion and verified causally; in that mode logits are the
next token's. The published adapter for drafting (`linear_spec_lora`) is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm.models.family import DecodeDefaults, Family, Slot
from dllm.models.layout import end_ids, expect, qwen_tensors, read_geometry, token_id, write_geometry
from dllm.models.transformer import Transformer
from dllm.spec import ModelSpec, SpecialTokens

_MASK, _END, _BOS = 100, 2, 1


def read_config(body: Mapping[str, Any]) -> ModelSpec:
    expect(body, {"attention_bias": False, "sliding_window": None})
    special = SpecialTokens(
        mask=token_id(body, "mask_token_id", _MASK),
        ends=end_ids(body, (_END,)),
        pad=token_id(body, "pad_token_id", _END),
        bos=token_id(body, "bos_token_id", _BOS),
    )
    return ModelSpec(
        **read_geometry(body),
        special=special,
        family="nemotron",
        mask_kind="causal_prefix_bidir_block",
        block=int(body.get("block_size") or 32),
        seeds_block=True,
        causal_verify=True,
    )


def write_config(spec: ModelSpec) -> dict[str, Any]:
    special = spec.special
    return {
        "model_type": "nemotron_labs_diffusion",
        "architectures": ["NemotronLabsDiffusionModel"],
        **write_geometry(spec),
        "attention_bias": False,
        "block_size": spec.block,
        "mask_token_id": special.mask,
        "eos_token_id": list(special.ends),
        "pad_token_id": special.pad,
        "bos_token_id": special.bos,
    }


def tensors(spec: ModelSpec) -> dict[str, Slot]:
    return qwen_tensors(spec, root="encoder", head="diffusion_head.weight")


FAMILY = Family(
    name="nemotron",
    model_types=("nemotron_labs_diffusion",),
    architectures=("NemotronLabsDiffusionModel",),
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    build=Transformer,
    defaults=DecodeDefaults(rule="threshold", threshold=0.9),
    landmarks=("encoder.embed_tokens.weight",),
    ignored=("linear_spec_lora",),
)

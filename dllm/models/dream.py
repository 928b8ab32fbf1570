"""Dream, Dream-Coder and DiffuCoder: Qwen2 that sees everything, the next token's logits at each position (arXiv:2508.15487)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm.models.family import DecodeDefaults, Family
from dllm.models.layout import end_ids, qwen_tensors, read_geometry, token_id, write_geometry
from dllm.models.transformer import Transformer
from dllm.spec import ModelSpec, SpecialTokens

_MASK, _PAD, _ENDS, _BOS = 151666, 151643, (151645, 151643), 151665


def read_config(body: Mapping[str, Any]) -> ModelSpec:
    special = SpecialTokens(
        mask=token_id(body, "mask_token_id", _MASK),
        ends=end_ids(body, _ENDS),
        pad=token_id(body, "pad_token_id", _PAD),
        bos=token_id(body, "bos_token_id", _BOS),
    )
    return ModelSpec(
        **read_geometry(body), special=special, family="dream", qkv_bias=True, mask_kind="full", logit_shift=1
    )


def write_config(spec: ModelSpec) -> dict[str, Any]:
    special = spec.special
    return {
        "model_type": "Dream",
        "architectures": ["DreamModel"],
        **write_geometry(spec),
        "mask_token_id": special.mask,
        "eos_token_id": list(special.ends),
        "pad_token_id": special.pad,
        "bos_token_id": special.bos,
    }


FAMILY = Family(
    name="dream",
    model_types=("Dream", "dream"),
    architectures=("DreamModel",),
    read_config=read_config,
    write_config=write_config,
    tensors=qwen_tensors,
    build=Transformer,
    defaults=DecodeDefaults(rule="threshold", threshold=0.9, block=32),
)

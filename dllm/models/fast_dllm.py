"""Fast-dLLM v2: Qwen2.5 made block-causal, the next token's logits at each position (arXiv:2509.26328)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm.models.family import DecodeDefaults, Family
from dllm.models.layout import end_ids, qwen_tensors, read_geometry, token_id, write_geometry
from dllm.models.transformer import Transformer
from dllm.spec import ModelSpec, SpecialTokens

_MASK, _END = 151665, 151645
_SUB_BLOCK = 8


def read_config(body: Mapping[str, Any]) -> ModelSpec:
    block = int(body.get("bd_size") or 32)
    special = SpecialTokens(
        mask=token_id(body, "mask_token_id", _MASK),
        ends=end_ids(body, (_END,)),
        pad=token_id(body, "pad_token_id", None),
        bos=token_id(body, "bos_token_id", None),
    )
    return ModelSpec(
        **read_geometry(body),
        special=special,
        family="fast_dllm",
        qkv_bias=True,
        mask_kind="block_causal",
        logit_shift=1,
        # The pass that stores a block also gives the first token of the next.
        seeds_block=True,
        block=block,
        # Not in the config: the published sampler's, when the block can be cut into it.
        sub_block=_SUB_BLOCK if block % _SUB_BLOCK == 0 else 0,
    )


def write_config(spec: ModelSpec) -> dict[str, Any]:
    special = spec.special
    return {
        "model_type": "Fast_dLLM_Qwen",
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        **write_geometry(spec),
        "bd_size": spec.block,
        "mask_token_id": special.mask,
        "eos_token_id": list(special.ends),
        "pad_token_id": special.pad,
        "bos_token_id": special.bos,
    }


FAMILY = Family(
    name="fast_dllm",
    model_types=("Fast_dLLM_Qwen", "fast_dllm_qwen"),
    architectures=("Fast_dLLM_QwenForCausalLM", "Fast_dLLM_V2_QwenForCausalLM"),
    read_config=read_config,
    write_config=write_config,
    tensors=qwen_tensors,
    build=Transformer,
    defaults=DecodeDefaults(rule="threshold", threshold=0.9),
)

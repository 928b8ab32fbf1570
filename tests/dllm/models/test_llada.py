"""LLaDA-8B, LLaDA-1.5 and iLLaDA against transformers' Llama without a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dllm.errors import ConfigError
from dllm.models import llada
from tests.dllm.models import parity
from tests.dllm.models.parity import DTYPES, LENGTHS
from tests.dllm.models.tiny_checkpoints import CONFIGS, from_disk, on_disk, random_network

LLADA_8B = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "vocab_size": 126464,
    "weight_tying": False,
}
ILLADA = CONFIGS["llada"] | {"n_kv_heads": 2, "weight_tying": True, "mask_token_id": None, "eos_token_id": 3}


def in_llama_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in weights.items():
        if name == "model.transformer.ff_out.weight":
            renamed["lm_head.weight"] = tensor
            continue
        for old, new in (
            ("model.transformer.wte", "model.embed_tokens"),
            ("model.transformer.ln_f", "model.norm"),
            ("model.transformer.blocks", "model.layers"),
            (".attn_norm", ".input_layernorm"),
            (".ff_norm", ".post_attention_layernorm"),
            (".attn_out", ".self_attn.o_proj"),
            (".q_proj", ".self_attn.q_proj"),
            (".k_proj", ".self_attn.k_proj"),
            (".v_proj", ".self_attn.v_proj"),
            (".ff_proj", ".mlp.gate_proj"),
            (".up_proj", ".mlp.up_proj"),
            (".ff_out", ".mlp.down_proj"),
        ):
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


@DTYPES
@LENGTHS
def test_logits_equal_llama_without_a_mask(dtype: torch.dtype, prompt: int, canvas: int) -> None:
    ours, weights = parity.reloaded("llada", dtype)
    theirs = parity.oracle("Llama", ours.spec, in_llama_names(weights), dtype)  # type: ignore[arg-type]
    parity.assert_logits_equal(ours, theirs, dtype, prompt, canvas)


@DTYPES
def test_illada_equals_a_tied_llama_with_shared_key_heads(dtype: torch.dtype) -> None:
    spec = llada.read_config(ILLADA)
    weights = on_disk(random_network(spec, seed=6))
    assert "model.transformer.ff_out.weight" not in weights
    theirs = parity.oracle("Llama", spec, in_llama_names(weights), dtype)
    parity.assert_logits_equal(from_disk(spec, weights).to(dtype), theirs, dtype, 7, 9)


@LENGTHS
def test_canvas_over_stored_text_equals_one_forward(prompt: int, canvas: int) -> None:
    parity.assert_pieces_equal_the_whole("llada", prompt, canvas)


def test_rows_with_starts_of_their_own_are_as_if_alone() -> None:
    parity.assert_rows_of_their_own("llada")


def test_published_config_survives_a_round_trip() -> None:
    spec = parity.assert_config_round_trip("llada", LLADA_8B)
    assert (spec.mask_kind, spec.logit_shift, spec.qkv_bias, spec.qk_norm) == ("full", 0, False, False)
    assert (spec.special.mask, spec.special.ends) == (126336, (126348, 126081))
    assert (spec.special.pad, spec.special.bos) == (126081, 126080)
    assert (spec.head_dim, spec.intermediate_size, spec.rope.theta) == (128, 12288, 5e5)


def test_mask_id_that_the_config_does_not_have_is_the_familys() -> None:
    without = {key: value for key, value in LLADA_8B.items() if key != "mask_token_id"}
    assert llada.read_config(without).special.mask == 126336
    assert llada.read_config(ILLADA).special.mask == 5


def test_illada_config_survives_a_round_trip() -> None:
    body = ILLADA | {"model_type": "llada", "architectures": ["LLaDAModelLM"]}
    spec = parity.assert_config_round_trip("llada", body)
    assert (spec.num_key_value_heads, spec.tie_word_embeddings, spec.special.ends) == (2, True, (3,))


def test_vocabulary_is_the_padded_one() -> None:
    assert llada.read_config(LLADA_8B | {"vocab_size": 126400}).vocab_size == 126464


@pytest.mark.parametrize("change", [{"block_type": "sequential"}, {"include_qkv_bias": True}, {"alibi": True}])
def test_what_the_network_cannot_do_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        llada.read_config(LLADA_8B | change)

"""SDAR and TraDo against transformers' Qwen3 under a block-causal mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dllm.errors import ConfigError
from dllm.models import sdar
from tests.dllm.models import parity
from tests.dllm.models.parity import DTYPES, LENGTHS

QWEN3 = {
    "model_type": "sdar",
    "architectures": ["SDARForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
SIZES = {
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
}


@DTYPES
@LENGTHS
def test_logits_equal_qwen3_under_a_block_causal_mask(dtype: torch.dtype, prompt: int, canvas: int) -> None:
    ours, weights = parity.reloaded("sdar", dtype)
    theirs = parity.oracle("Qwen3", ours.spec, weights, dtype)  # type: ignore[arg-type]
    parity.assert_logits_equal(ours, theirs, dtype, prompt, canvas)


@LENGTHS
def test_block_after_block_equals_one_forward(prompt: int, canvas: int) -> None:
    parity.assert_pieces_equal_the_whole("sdar", prompt, canvas)


def test_rows_with_starts_of_their_own_are_as_if_alone() -> None:
    parity.assert_rows_of_their_own("sdar")


@pytest.mark.parametrize("size", SIZES)
def test_published_configs_survive_a_round_trip(size: str) -> None:
    spec = parity.assert_config_round_trip("sdar", QWEN3 | SIZES[size])
    assert (spec.block, spec.mask_kind, spec.logit_shift) == (4, "block_causal", 0)
    assert (spec.special.mask, spec.special.ends, spec.special.pad) == (151669, (151645, 151643), 151643)
    assert (spec.qk_norm, spec.qkv_bias, spec.head_dim, spec.rope.theta) == (True, False, 128, 1e6)


def test_block_size_of_a_variant_is_the_configs() -> None:
    assert parity.assert_config_round_trip("sdar", QWEN3 | SIZES["4B"] | {"block_size": 32}).block == 32


@pytest.mark.parametrize(
    "change", [{"use_sliding_window": True}, {"attention_bias": True}, {"rope_scaling": {"rope_type": "dynamic"}}]
)
def test_what_the_network_cannot_do_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change)).replace("rope_scaling", "rope_type")):
        sdar.read_config(QWEN3 | SIZES["4B"] | change)

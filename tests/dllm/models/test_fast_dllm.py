"""Fast-dLLM v2 against transformers' Qwen2 under a block-causal mask, rows shifted by one, head tied."""

from __future__ import annotations

import pytest
import torch

from tests.dllm.models import parity
from tests.dllm.models.parity import DTYPES, LENGTHS

QWEN25 = {
    "model_type": "Fast_dLLM_Qwen",
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "bd_size": 32,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_hidden_layers": 28,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
}
SIZES = {
    "1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}


@DTYPES
@LENGTHS
def test_logits_equal_qwen2_under_a_block_causal_mask_read_one_row_earlier(
    dtype: torch.dtype, prompt: int, canvas: int
) -> None:
    ours, weights = parity.reloaded("fast_dllm", dtype)
    assert "lm_head.weight" not in weights
    theirs = parity.oracle("Qwen2", ours.spec, weights, dtype)  # type: ignore[arg-type]
    parity.assert_logits_equal(ours, theirs, dtype, prompt, canvas)


@LENGTHS
def test_block_after_block_equals_one_forward(prompt: int, canvas: int) -> None:
    parity.assert_pieces_equal_the_whole("fast_dllm", prompt, canvas)


def test_rows_with_starts_of_their_own_are_as_if_alone() -> None:
    parity.assert_rows_of_their_own("fast_dllm")


@pytest.mark.parametrize("size", SIZES)
def test_published_configs_survive_a_round_trip(size: str) -> None:
    spec = parity.assert_config_round_trip("fast_dllm", QWEN25 | SIZES[size])
    assert (spec.block, spec.sub_block, spec.mask_kind, spec.logit_shift) == (32, 8, "block_causal", 1)
    assert (spec.special.mask, spec.special.ends) == (151665, (151645,))
    assert spec.tie_word_embeddings == (size == "1.5B")
    assert spec.head_dim == 128


def test_a_block_that_eight_does_not_divide_is_decoded_whole() -> None:
    assert parity.assert_config_round_trip("fast_dllm", QWEN25 | SIZES["7B"] | {"bd_size": 12}).sub_block == 0

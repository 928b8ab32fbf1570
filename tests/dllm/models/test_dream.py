"""Dream, Dream-Coder and DiffuCoder against transformers' Qwen2 without a mask, rows shifted by one."""

from __future__ import annotations

import pytest
import torch

from tests.dllm.models import parity
from tests.dllm.models.parity import DTYPES, LENGTHS

DREAM_7B = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "mask_token_id": 151666,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 151643,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


@DTYPES
@LENGTHS
def test_logits_equal_qwen2_without_a_mask_read_one_row_earlier(dtype: torch.dtype, prompt: int, canvas: int) -> None:
    ours, weights = parity.reloaded("dream", dtype)
    theirs = parity.oracle("Qwen2", ours.spec, weights, dtype)  # type: ignore[arg-type]
    parity.assert_logits_equal(ours, theirs, dtype, prompt, canvas)


@LENGTHS
def test_canvas_over_stored_text_equals_one_forward(prompt: int, canvas: int) -> None:
    parity.assert_pieces_equal_the_whole("dream", prompt, canvas)


def test_rows_with_starts_of_their_own_are_as_if_alone() -> None:
    parity.assert_rows_of_their_own("dream")


@pytest.mark.parametrize("bos", [None, 151643])
def test_published_config_survives_a_round_trip(bos: int | None) -> None:
    spec = parity.assert_config_round_trip("dream", DREAM_7B | {"bos_token_id": bos})
    assert (spec.mask_kind, spec.logit_shift, spec.qkv_bias, spec.qk_norm) == ("full", 1, True, False)
    assert (spec.special.mask, spec.special.ends, spec.special.pad) == (151666, (151645, 151643), 151643)
    assert spec.special.bos == (bos or 151665)
    assert spec.head_dim == 128

"""Nemotron-Labs-Diffusion against transformers' Ministral 3: causal, and a canvas that sees itself behind causal text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dllm.layers.rotary import frequencies
from dllm.models import nemotron
from tests.dllm.models import parity
from tests.dllm.models.parity import DTYPES, LENGTHS
from tests.dllm.models.tiny_checkpoints import CONFIGS, tiny_spec

NEMOTRON_8B = {
    "model_type": "nemotron_labs_diffusion",
    "architectures": ["NemotronLabsDiffusionModel"],
    "attention_bias": False,
    "block_size": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "mask_token_id": 100,
    "max_position_embeddings": 262144,
    "num_attention_heads": 32,
    "num_hidden_layers": 34,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "rope_type": "yarn",
        "type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "max_position_embeddings": 262144,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 131072,
}


def ministral(ours: nn.Module, weights: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    renamed = {
        name.replace("encoder.", "model.", 1).replace("diffusion_head.", "lm_head."): tensor
        for name, tensor in weights.items()
    }
    rope: dict[str, Any] = CONFIGS["nemotron"]["rope_parameters"]
    return parity.oracle("Ministral3", ours.spec, renamed, dtype, rope_parameters=rope)  # type: ignore[arg-type]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "canvas behind causal text"])
@DTYPES
@LENGTHS
def test_logits_equal_ministral3(dtype: torch.dtype, prompt: int, canvas: int, causal: bool) -> None:
    ours, weights = parity.reloaded("nemotron", dtype)
    parity.assert_logits_equal(ours, ministral(ours, weights, dtype), dtype, prompt, canvas, causal)


@LENGTHS
def test_text_then_canvas_equals_one_forward(prompt: int, canvas: int) -> None:
    parity.assert_pieces_equal_the_whole("nemotron", prompt, canvas)


def test_rows_with_starts_of_their_own_are_as_if_alone() -> None:
    parity.assert_rows_of_their_own("nemotron")


def test_published_config_survives_a_round_trip() -> None:
    spec = parity.assert_config_round_trip("nemotron", NEMOTRON_8B)
    assert (spec.block, spec.mask_kind, spec.logit_shift) == (32, "causal_prefix_bidir_block", 0)
    assert spec.causal_verify
    assert (spec.special.mask, spec.special.ends, spec.special.bos, spec.special.pad) == (100, (2,), 1, 2)
    assert (spec.rope.yarn_factor, spec.rope.yarn_original, spec.rope.query_scale_beta) == (16.0, 16384, 0.1)


def test_frequencies_are_those_transformers_computes_for_the_published_config() -> None:
    from transformers import Ministral3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    spec = nemotron.read_config(NEMOTRON_8B)
    config = Ministral3Config(head_dim=128, rope_parameters=NEMOTRON_8B["rope_parameters"])
    expected, factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    actual, own_factor = frequencies(spec.rope, spec.head_dim)
    # transformers' are float32.
    torch.testing.assert_close(actual.float(), expected, atol=0, rtol=1e-6)
    assert own_factor == pytest.approx(factor)


def test_yarn_without_both_scales_multiplies_by_the_papers_factor() -> None:
    rope = dict(CONFIGS["nemotron"]["rope_parameters"], mscale=None)
    spec = nemotron.read_config(CONFIGS["nemotron"] | {"rope_parameters": rope})
    assert frequencies(spec.rope, 8)[1] == pytest.approx(0.1 * 2.772588722 + 1)
    assert frequencies(tiny_spec("nemotron").rope, 8)[1] == 1.0


def test_drafting_adapter_is_known_and_ignored() -> None:
    name = "linear_spec_lora.layers.0.self_attn.q_proj.lora_A.weight"
    assert name.startswith(nemotron.FAMILY.ignored)

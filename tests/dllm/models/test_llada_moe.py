"""LLaDA-MoE against a plain walk through the published tensors and against transformers' Qwen3-MoE, whose maths it shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dllm.errors import ConfigError
from dllm.models.llada_moe import FAMILY
from dllm.models.registry import family_of
from dllm.spec import ModelSpec
from tests.dllm.models import plain_moe
from tests.dllm.models.tiny_checkpoints import from_disk, on_disk, random_network

CLOSE = 1e-5
"""Our rotary tables are float32; everything else here is float64."""

CONFIG: dict[str, Any] = {
    "architectures": ["LLaDAMoEModelLM"],
    "model_type": "llada",
    "vocab_size": 96,
    "hidden_size": 32,
    "dense_intermediate_size": 40,
    "expert_intermediate_size": 12,
    "shared_expert_intermediate_size": None,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_layer_freq": [1, 1, 1],
    "qk_layernorm": True,
    "rope_theta": 50_000,
    "partial_rotary_factor": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "mask_token_id": 95,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VARIED = CONFIG | {
    "shared_expert_intermediate_size": 20,
    "moe_layer_freq": [0, 1, 1],
    "partial_rotary_factor": 0.5,
}
RELEASED = CONFIG | {
    "vocab_size": 157_184,
    "hidden_size": 2048,
    "dense_intermediate_size": 8192,
    "expert_intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_layer_freq": [1] * 16,
    "max_position_embeddings": 8192,
    "mask_token_id": None,
    "eos_token_id": 156_892,
    "pad_token_id": 156_892,
}


def plain_of(spec: ModelSpec) -> plain_moe.Plain:
    assert spec.moe is not None
    return plain_moe.Plain(
        layers=spec.num_hidden_layers,
        heads=spec.num_attention_heads,
        kv_heads=spec.num_key_value_heads,
        theta=spec.rope.theta,
        rotated=int(spec.head_dim * spec.rope.partial),
        eps=spec.rms_norm_eps,
        chosen=spec.moe.experts_per_token,
        is_sigmoid=False,
        dense_layers=spec.moe.first_dense,
    )


@pytest.mark.parametrize("config", [CONFIG, VARIED], ids=["released_shape", "shared_dense_partial"])
@pytest.mark.parametrize("length", [1, 7, 13])
def test_logits_equal_a_plain_walk(config: dict[str, Any], length: int) -> None:
    spec = FAMILY.read_config(config)
    network = random_network(spec).double()
    weights = {name: tensor.double().numpy() for name, tensor in on_disk(network).items()}
    ids = torch.randint(0, 96, (2, length), generator=torch.Generator().manual_seed(length))
    found = network.logits(network(ids, torch.arange(length).expand(2, -1), None))
    for row in range(2):
        everyone = np.ones((length, length), dtype=bool)
        expected = plain_moe.logits(plain_of(spec), weights, ids[row].tolist(), everyone)
        torch.testing.assert_close(found[row], torch.from_numpy(expected), atol=CLOSE, rtol=CLOSE)


def test_logits_equal_qwen3_moe_behind_a_full_mask() -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    spec = FAMILY.read_config(CONFIG)
    assert spec.moe is not None
    network = random_network(spec)
    oracle = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=96,
            hidden_size=32,
            moe_intermediate_size=12,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            num_experts=8,
            num_experts_per_tok=3,
            norm_topk_prob=False,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    ).eval()
    weights = on_disk(network)
    for layer in range(3):
        mlp = f"model.layers.{layer}.mlp"
        each = [
            [weights.pop(f"{mlp}.experts.{e}.{part}_proj.weight") for part in ("gate", "up", "down")] for e in range(8)
        ]
        weights[f"{mlp}.experts.gate_up_proj"] = torch.stack([torch.cat((gate, up)) for gate, up, _ in each])
        weights[f"{mlp}.experts.down_proj"] = torch.stack([down for _, _, down in each])
    oracle.load_state_dict(weights, strict=True)
    ids = torch.randint(0, 96, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = oracle(ids, attention_mask=torch.zeros(2, 1, 11, 11)).logits
    found = network.logits(network(ids, torch.arange(11).expand(2, -1), None))
    # float32 through three layers.
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_saved_and_reloaded_network_is_equal() -> None:
    spec = FAMILY.read_config(VARIED)
    network = random_network(spec)
    again = from_disk(spec, on_disk(network))
    ids, positions = torch.arange(9).unsqueeze(0), torch.arange(9).unsqueeze(0)
    assert torch.equal(again(ids, positions, None), network(ids, positions, None))


@pytest.mark.parametrize("config", [CONFIG, VARIED, RELEASED])
def test_configuration_survives_being_written(config: dict[str, Any]) -> None:
    spec = FAMILY.read_config(config)
    assert FAMILY.read_config(FAMILY.write_config(spec)) == spec


def test_released_configuration_gets_the_ids_that_it_does_not_hold() -> None:
    spec = FAMILY.read_config(RELEASED)
    assert spec.special.mask == 156_895 and spec.special.ends == (156_892,)
    assert spec.mask_kind == "full" and spec.logit_shift == 0 and not spec.edit_capable


def test_family_is_told_from_dense_llada_by_experts() -> None:
    bare = {"model_type": "llada"}
    assert family_of(CONFIG).name == "llada_moe"
    assert family_of(bare | {"num_experts": 64}).name == "llada_moe"
    assert family_of(bare, frozenset({"model.layers.0.mlp.experts.0.up_proj.weight"})).name == "llada_moe"
    assert family_of(bare).name == "llada"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"moe_layer_freq": [1, 0, 1]}, "moe_layer_freq"),
        ({"moe_layer_freq": [1, 1]}, "moe_layer_freq"),
        ({"attention_bias": True}, "attention_bias"),
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias"),
        ({"num_experts_per_tok": 9}, "moe.experts_per_token"),
    ],
)
def test_what_the_network_cannot_do_is_refused(change: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FAMILY.read_config(CONFIG | change)
    assert caught.value.key == key

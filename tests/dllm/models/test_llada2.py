"""LLaDA2 against a plain walk through the published tensors, behind a block-causal mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dllm.errors import ConfigError
from dllm.models.llada2 import EDITING, FAMILY
from dllm.models.registry import family_of
from dllm.spec import ModelSpec
from tests.dllm.models import plain_moe
from tests.dllm.models.tiny_checkpoints import from_disk, on_disk, random_network

CLOSE = 1e-5
"""Our rotary tables are float32; everything else here is float64."""

BLOCK = 4
CONFIG: dict[str, Any] = {
    "architectures": ["LLaDA2MoeModelLM"],
    "model_type": "llada2_moe",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 16,
    "num_experts_per_tok": 3,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "norm_topk_prob": True,
    "partial_rotary_factor": 0.5,
    "rope_theta": 600_000,
    "rms_norm_eps": 1e-6,
    "use_bias": False,
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "block_size": BLOCK,
    "mask_token_id": 95,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MINI = CONFIG | {
    "vocab_size": 157_184,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "max_position_embeddings": 32_768,
    "block_size": None,
    "mask_token_id": None,
    "eos_token_id": 156_892,
    "pad_token_id": 156_892,
}
CAPPED = CONFIG | {"expert_capacity": 4, "delete_token_id": 93, "split_token_id": 94}


def with_bias(network: nn.Module) -> nn.Module:
    """Biases about as large as the distance between neighbouring scores, so that they matter without deciding everything."""
    generator = torch.Generator().manual_seed(7)
    for name, buffer in network.named_buffers():
        if name.endswith("expert_bias"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
    return network


def tiny(config: dict[str, Any] = CONFIG) -> nn.Module:
    return with_bias(random_network(family_of(config).read_config(config)))


def plain_of(spec: ModelSpec) -> plain_moe.Plain:
    assert spec.moe is not None
    return plain_moe.Plain(
        layers=spec.num_hidden_layers,
        heads=spec.num_attention_heads,
        kv_heads=spec.num_key_value_heads,
        theta=spec.rope.theta,
        rotated=spec.head_dim // 2,
        eps=spec.rms_norm_eps,
        chosen=spec.moe.experts_per_token,
        is_sigmoid=True,
        groups=spec.moe.groups,
        groups_kept=spec.moe.groups_kept,
        scale=2.5,
        dense_layers=1,
    )


def block_causal(length: int) -> Tensor:
    block = torch.arange(length) // BLOCK
    return block[:, None] >= block[None, :]


@pytest.mark.parametrize("length", [1, 7, 14])
def test_logits_equal_a_plain_walk(length: int) -> None:
    network = tiny().double()
    weights = {name: tensor.double().numpy() for name, tensor in on_disk(network).items()}
    ids = torch.randint(0, 96, (2, length), generator=torch.Generator().manual_seed(length))
    mask = block_causal(length)
    found = network.logits(network(ids, torch.arange(length).expand(2, -1), mask[None, None]))
    for row in range(2):
        expected = plain_moe.logits(plain_of(network.spec), weights, ids[row].tolist(), mask.numpy())
        torch.testing.assert_close(found[row], torch.from_numpy(expected), atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("config", [CONFIG, CAPPED], ids=["groups", "capped"])
def test_block_by_block_with_stores_equals_one_forward(config: dict[str, Any]) -> None:
    network, length = tiny(config), 14
    ids = torch.randint(0, 96, (1, length), generator=torch.Generator().manual_seed(3))
    positions = torch.arange(length).unsqueeze(0)
    whole = network(ids, positions, block_causal(length)[None, None])
    stores, pieces = network.new_stores(1, length), []
    for first in range(0, length, BLOCK):
        part = slice(first, min(first + BLOCK, length))
        # A forward with other tokens first, as while denoising: the final one overwrites what it stored.
        network(torch.full_like(ids[:, part], 95), positions[:, part], None, stores, first)
        pieces.append(network(ids[:, part], positions[:, part], None, stores, first))
    # float32 sums in another order.
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_capped_block_touches_no_more_experts_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    from dllm.layers import moe

    chosen: list[Tensor] = []
    choose = moe.choose_experts

    def recorded(*given: Any) -> moe.Choice:
        choice = choose(*given)
        chosen.append(choice.experts)
        return choice

    monkeypatch.setattr(moe, "choose_experts", recorded)
    ids = torch.randint(0, 90, (2, 10), generator=torch.Generator().manual_seed(5))
    for config, most in ((CONFIG, 12), (CAPPED, 4)):
        chosen.clear()
        tiny(config)(ids, torch.arange(10).expand(2, -1), block_causal(10)[None, None])
        touched = [
            len(experts.view(2, 10, -1)[row, first : first + BLOCK].unique())
            for experts in chosen
            for row in range(2)
            for first in range(0, 10, BLOCK)
        ]
        assert max(touched) <= most and (max(touched) > 4) == (config is CONFIG)


def test_rows_are_independent_of_their_company() -> None:
    network = tiny(CAPPED)
    ids = torch.randint(0, 96, (5, 8), generator=torch.Generator().manual_seed(4))
    positions, mask = torch.arange(8).expand(5, -1), block_causal(8)[None, None]
    together = network(ids, positions, mask)
    alone = network(ids[3:4], positions[3:4], mask)
    torch.testing.assert_close(together[3:4], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [CONFIG, CAPPED], ids=["groups", "capped"])
def test_saved_and_reloaded_network_is_equal(config: dict[str, Any]) -> None:
    network = tiny(config)
    again = from_disk(network.spec, on_disk(network))
    ids = torch.arange(9).unsqueeze(0)
    assert torch.equal(again(ids, ids, None), network(ids, ids, None))


@pytest.mark.parametrize(
    "config", [CONFIG, MINI, CAPPED, MINI | {"expert_capacity": 48}, MINI | {"edit_capable": True}]
)
def test_configuration_survives_being_written(config: dict[str, Any]) -> None:
    family = family_of(config)
    spec = family.read_config(config)
    written = family.write_config(spec)
    assert family_of(written) is family and family.read_config(written) == spec


def test_released_configuration_gets_what_it_does_not_hold() -> None:
    spec = FAMILY.read_config(MINI)
    assert (spec.special.mask, spec.special.ends, spec.block) == (156_895, (156_892,), 32)
    assert spec.mask_kind == "block_causal" and spec.rope.partial == 0.5 and not spec.edit_capable
    assert spec.moe is not None and spec.moe.shared_size == 512 and spec.moe.per_block == 0


def test_editing_is_known_by_config_or_by_name() -> None:
    assert family_of(MINI).name == "llada2"
    assert family_of(MINI | {"model_type": "llada21_moe", "architectures": None}).name == "llada2_edit"
    assert family_of(MINI, override="llada2_edit").read_config(MINI).edit_capable
    assert EDITING.defaults.edit_threshold == 0.9 and FAMILY.defaults.edit_threshold is None


def test_capped_checkpoint_has_ids_that_edit() -> None:
    spec = EDITING.read_config(MINI | {"expert_capacity": 48})
    assert (spec.special.delete, spec.special.split) == (156_930, 156_931)
    assert EDITING.read_config(MINI | {"edit_capable": True}).special.delete is None


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"use_bias": None}, "use_bias"),
        ({"use_bias": True}, "use_bias"),
        ({"use_qkv_bias": True}, "use_qkv_bias"),
        ({"score_function": "softmax"}, "score_function"),
        ({"n_group": 3}, "moe.groups"),
        ({"topk_group": 5}, "moe.groups_kept"),
        ({"expert_capacity": 2}, "moe.per_block"),
    ],
)
def test_what_the_network_cannot_do_is_refused(change: dict[str, Any], key: str) -> None:
    body = {name: value for name, value in (CONFIG | change).items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        family_of(body).read_config(body)
    assert caught.value.key == key

"""What the shared network promises beside equal logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dllm.layers.norm import RMSNorm
from dllm.layers.rotary import rotary_table, rotate, turn_at
from dllm.models.transformer import Transformer
from dllm.spec import RopeSpec
from tests.dllm.models.parity import random_ids
from tests.dllm.models.tiny_checkpoints import random_network, tiny_spec


def test_norm_in_half_precision_is_rounded_before_the_weight() -> None:
    norm = RMSNorm(64, 1e-6).bfloat16()
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    norm.weight.data.copy_(torch.linspace(0.5, 2, 64))
    wide = x.float()
    normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).bfloat16()
    assert torch.equal(norm(x), normed * norm.weight)


def test_rotation_turns_the_first_dimensions_and_leaves_the_rest() -> None:
    rope = RopeSpec(theta=100.0, partial=0.5)
    cos, sin = rotary_table(rope, 8, 32)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 7, 31], [4, 4, 5, 0, 9]])
    turned = rotate(x, turn_at(cos, sin, positions, x.dtype))
    assert torch.equal(turned[..., 4:], x[..., 4:])
    # Pairs (i, i + 2) are complex numbers, turned by position times frequency. The tables are float32.
    angles = positions.double()[:, None, :, None] * 100.0 ** -torch.tensor([0.0, 0.5], dtype=torch.float64)
    expected = torch.complex(x[..., :2], x[..., 2:4]) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned[..., :2], expected.real, atol=1e-6, rtol=0)
    torch.testing.assert_close(turned[..., 2:4], expected.imag, atol=1e-6, rtol=0)


def test_heads_in_half_precision_are_turned_in_float32() -> None:
    cos, sin = rotary_table(RopeSpec(), 8, 300)
    x = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    positions = torch.tensor([[257, 258, 299]])
    turned = rotate(x, turn_at(cos, sin, positions, x.dtype))
    assert torch.equal(turned, rotate(x.float(), turn_at(cos, sin, positions, torch.float32)).bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rotary_tables_stay_float32_whatever_the_weights_are(dtype: torch.dtype) -> None:
    spec = tiny_spec("sdar")
    network = Transformer(spec)
    before = network.rotary.sin.clone()
    network.to(dtype)
    assert network.embed_tokens.weight.dtype == dtype
    assert torch.equal(network.rotary.sin, before)


def test_network_built_without_memory_gets_its_tables_back() -> None:
    spec = tiny_spec("nemotron")
    with torch.device("meta"):
        network = Transformer(spec)
    network = network.to_empty(device="cpu").to(torch.bfloat16)
    network.reset_buffers()
    built = Transformer(spec)
    assert torch.equal(network.rotary.cos, built.rotary.cos) and torch.equal(network.rotary.sin, built.rotary.sin)


def test_half_precision_stays_near_float32() -> None:
    network = random_network(tiny_spec("sdar"), seed=2, scale=4.0)
    ids, positions = random_ids(2, 9), torch.arange(9).expand(2, 9)
    wide = network.logits(network(ids, positions, None))  # type: ignore[operator]
    half = network.bfloat16()
    narrow = half.logits(half(ids, positions, None))  # type: ignore[operator]
    assert narrow.dtype == torch.bfloat16
    # bfloat16 keeps eight bits: two layers of it stay within a few hundredths of the logits' spread.
    assert (narrow.float() - wide).abs().max() < 0.1 * wide.std()


def test_additive_and_boolean_masks_are_the_same_mask() -> None:
    network = random_network(tiny_spec("sdar"))
    ids, positions = random_ids(1, 6), torch.arange(6).unsqueeze(0)
    mask = torch.ones(6, 6, dtype=torch.bool).tril().view(1, 1, 6, 6)
    added = torch.zeros(1, 1, 6, 6).masked_fill(~mask, float("-inf"))
    assert torch.equal(network(ids, positions, mask), network(ids, positions, added))


def test_a_mask_shorter_than_the_stores_reads_only_its_slots() -> None:
    network = random_network(tiny_spec("sdar"))
    ids, positions = random_ids(1, 3), torch.arange(3).unsqueeze(0)
    stores = network.new_stores(1, 9)  # type: ignore[operator]
    for store in stores:
        store.keys.fill_(float("nan"))
        store.values.fill_(float("nan"))
    written = network(ids, positions, torch.ones(1, 1, 1, 3, dtype=torch.bool), stores, 0)
    torch.testing.assert_close(written, network(ids, positions, None), atol=1e-6, rtol=1e-6)


def test_gradients_flow_through_masks_and_shared_heads() -> None:
    network = random_network(tiny_spec("fast_dllm")).requires_grad_(True)
    mask = torch.ones(7, 7, dtype=torch.bool).tril().view(1, 1, 7, 7)
    network(random_ids(2, 7), torch.arange(7).expand(2, 7), mask).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    assert network.layers[0].self_attn.qkv_proj.bias.grad.abs().sum() > 0  # type: ignore[index, union-attr]


def test_gelu_is_the_tanh_one() -> None:
    spec = replace(tiny_spec("sdar"), activation="gelu_tanh")
    feed_forward = random_network(spec).layers[0].mlp  # type: ignore[index, union-attr]
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    gate, up = feed_forward.gate_up_proj(x).chunk(2, -1)
    tanh = 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
    torch.testing.assert_close(feed_forward(x), feed_forward.down_proj(tanh * up), atol=1e-5, rtol=1e-5)


def test_fresh_biases_are_zero_and_norms_one() -> None:
    network = Transformer(tiny_spec("dream"))
    network.reset_parameters(torch.Generator().manual_seed(0))
    assert not network.layers[0].self_attn.qkv_proj.bias.any()  # type: ignore[index, union-attr]
    assert (network.norm.weight == 1).all()


def test_what_a_network_has_no_use_for_is_refused() -> None:
    network = random_network(tiny_spec("sdar"))
    with pytest.raises(TypeError, match="sdar takes no soft"):
        network(random_ids(1, 3), torch.arange(3).unsqueeze(0), None, soft=torch.zeros(1))

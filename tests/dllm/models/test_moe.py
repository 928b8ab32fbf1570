"""Routing and experts against a loop over tokens, in float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from dllm.errors import ConfigError
from dllm.layers.moe import MoeFeedForward, choose_experts
from dllm.spec import MoeSpec, dialogue_spec

SOFTMAX = MoeSpec(experts=8, experts_per_token=3, expert_size=10, normalise=False)
SIGMOID = MoeSpec(
    experts=12,
    experts_per_token=3,
    expert_size=10,
    shared_size=6,
    scoring="sigmoid",
    has_bias=True,
    groups=4,
    groups_kept=2,
    scale=2.5,
)
CAPPED = dataclasses.replace(SIGMOID, per_block=4)

EXACT = 1e-12
"""float64 sums of a few dozen terms of order one."""


def feed_forward(moe: MoeSpec, seed: int = 0) -> MoeFeedForward:
    spec = dataclasses.replace(dialogue_spec(hidden_size=16), moe=moe)
    module = MoeFeedForward(spec)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
        if module.expert_bias is not None:
            module.expert_bias.normal_(0.0, 0.5, generator=generator)
    return module.double()


def silu(value: Tensor) -> Tensor:
    return value / (1 + torch.exp(-value))


def one_token(module: MoeFeedForward, x: Tensor, allowed: set[int] | None) -> Tensor:
    """The layer's definition for one token, written out."""
    moe = module.moe
    z = [float(row @ x) for row in module.gate.double()]
    if moe.scoring == "softmax":
        total = sum(math.exp(v) for v in z)
        score = [math.exp(v) / total for v in z]
    else:
        score = [1 / (1 + math.exp(-v)) for v in z]
    bias = [0.0] * moe.experts if module.expert_bias is None else module.expert_bias.double().tolist()
    biased = [s + b for s, b in zip(score, bias, strict=True)]
    candidates = list(range(moe.experts))
    if allowed is not None:
        candidates = sorted(allowed)
    elif moe.groups > 1:
        width = moe.experts // moe.groups
        groups = [candidates[g * width : (g + 1) * width] for g in range(moe.groups)]
        ranked = sorted(groups, key=lambda g: -sum(sorted((biased[e] for e in g), reverse=True)[:2]))
        candidates = [e for g in ranked[: moe.groups_kept] for e in g]
    chosen = sorted(candidates, key=lambda e: -biased[e])[: moe.experts_per_token]
    total = sum(score[e] for e in chosen) if moe.normalise else 1.0
    out = torch.zeros_like(x)
    for expert in chosen:
        half = moe.expert_size
        gate_up, down = module.experts.gate_up_proj[expert], module.experts.down_proj[expert]
        inner = silu(gate_up[:half] @ x) * (gate_up[half:] @ x)
        out = out + (score[expert] / total * moe.scale) * (down @ inner)
    if module.shared is not None:
        gate_up = module.shared.gate_up_proj.weight
        inner = silu(gate_up[: moe.shared_size] @ x) * (gate_up[moe.shared_size :] @ x)
        out = out + module.shared.down_proj.weight @ inner
    return out


@pytest.mark.parametrize("moe", [SOFTMAX, dataclasses.replace(SOFTMAX, normalise=True), SIGMOID])
def test_layer_equals_its_definition_token_by_token(moe: MoeSpec) -> None:
    module = feed_forward(moe)
    x = torch.randn(2, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = module(x)
        expected = torch.stack([torch.stack([one_token(module, token, None) for token in row]) for row in x])
    torch.testing.assert_close(found, expected, atol=EXACT, rtol=EXACT)


def test_capped_block_uses_the_experts_its_tokens_prefer_most() -> None:
    module = feed_forward(CAPPED)
    x = torch.randn(2, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    # A grid of fours that the rows meet at different offsets: blocks of one to four tokens, the same numbers in both rows.
    blocks = torch.stack((torch.arange(3, 10) // 4, torch.arange(7) // 4))
    with torch.no_grad():
        found = module(x, blocks)
        score = (x @ module.gate.double().T).sigmoid() + module.expert_bias.double()
        for row in range(2):
            for block in blocks[row].unique().tolist():
                inside = [t for t in range(7) if blocks[row, t] == block]
                best = [max(float(score[row, t, e]) for t in inside) for e in range(12)]
                allowed = set(sorted(range(12), key=lambda e: -best[e])[:4])
                for t in inside:
                    expected = one_token(module, x[row, t], allowed)
                    torch.testing.assert_close(found[row, t], expected, atol=EXACT, rtol=EXACT)


def test_capped_routing_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the block of every token"):
        feed_forward(CAPPED)(torch.zeros(1, 3, 16, dtype=torch.float64))


def test_bias_changes_the_choice_and_not_the_weights() -> None:
    moe = MoeSpec(experts=3, experts_per_token=1, expert_size=4, scoring="sigmoid", has_bias=True, normalise=False)
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    plain = choose_experts(logits, moe)
    biased = choose_experts(logits, moe, torch.tensor([0.0, 0.0, 5.0]))
    assert plain.experts.item() == 0 and biased.experts.item() == 2
    assert biased.weights.item() == pytest.approx(0.5)


def test_groups_are_ranked_by_their_two_best_not_by_their_best() -> None:
    moe = MoeSpec(experts=6, experts_per_token=2, expert_size=4, scoring="sigmoid", groups=2, groups_kept=1)
    # The single best expert is alone in the first group; the second group has the better pair.
    logits = torch.tensor([[3.0, -9.0, -9.0, 2.0, 2.5, -9.0]])
    assert sorted(choose_experts(logits, moe).experts[0].tolist()) == [3, 4]


@pytest.mark.parametrize("moe", [SOFTMAX, SIGMOID, CAPPED])
def test_a_row_does_not_depend_on_its_company(moe: MoeSpec) -> None:
    module = feed_forward(moe).float()
    x = torch.randn(5, 6, 16, generator=torch.Generator().manual_seed(4))
    blocks = (torch.arange(6) // 4).expand(5, 6) if moe.per_block else None
    together = module(x, blocks)
    alone = module(x[2:3], None if blocks is None else blocks[2:3])
    # Matrix products of other shapes round differently, a few units in the last place.
    torch.testing.assert_close(together[2:3], alone, atol=1e-5, rtol=1e-5)


def test_gradient_reaches_router_and_experts() -> None:
    module = feed_forward(SIGMOID)
    module(torch.randn(2, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))).sum().backward()
    for parameter in module.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_router_bias_stays_float32_in_a_bf16_model() -> None:
    module = feed_forward(SIGMOID)
    before = module.expert_bias.clone()
    module = module.bfloat16()
    assert module.expert_bias.dtype == torch.float32 and torch.equal(module.expert_bias, before)
    assert module.gate.dtype == torch.bfloat16
    assert module(torch.zeros(1, 2, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"experts": 0}, "moe.experts"),
        ({"experts_per_token": 13}, "moe.experts_per_token"),
        ({"groups": 5}, "moe.groups"),
        ({"groups_kept": 5}, "moe.groups_kept"),
        ({"experts_per_token": 7}, "moe.groups_kept"),
        ({"per_block": 2}, "moe.per_block"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(SIGMOID, **change)
    assert caught.value.key == key


def test_router_bias_stays_float32_when_weights_arrive_later() -> None:
    """As a loader does it: nothing allocated, then room in the wanted type, then the weights."""
    with torch.device("meta"):
        module = MoeFeedForward(dataclasses.replace(dialogue_spec(hidden_size=16), moe=SIGMOID))
    module = module.bfloat16().to_empty(device="cpu")
    assert module.expert_bias is not None and module.expert_bias.dtype == torch.float32
    assert not module.expert_bias.is_meta and module.gate.dtype == torch.bfloat16

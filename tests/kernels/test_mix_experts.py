"""Experts: every way to run them against float64, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels import Choice, ExpertWeights, mix_experts, use
from dllm_kernels.choose import Kind
from dllm_kernels.four_bits import quantise_groups, unpack_groups
from dllm_kernels.mix_experts import reference
from dllm_kernels.mix_experts.reference import dense_experts, grouped_experts, looped_experts
from tests.kernels.both import DTYPES, KINDS, on, randn

both = pytest.mark.parametrize("kind", KINDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# Results of about one. What goes down is rounded to the dtype, in the reference also gate, up and each expert's result: a handful of
# roundings of half a unit, and dequantised weights rounded once each. In float32 sums of a few hundred terms in another order.
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 2**-5, torch.float16: 2**-8}

SHAPES = [(1, 1, 1, 1, 1), (3, 2, 5, 7, 9), (17, 3, 4, 70, 33), (40, 2, 3, 40, 130), (5, 8, 64, 136, 24), (33, 1, 2, 16, 16)]  # fmt: skip
"""(tokens, chosen, experts, hidden size, expert size); 40 tokens of 3 experts are several turns of an expert."""


def given(tokens: int, chosen: int, experts: int, hidden: int, size: int) -> tuple[Tensor, Choice, ExpertWeights]:
    generator = torch.Generator().manual_seed(tokens + experts)
    order = torch.rand(tokens, experts, generator=generator).argsort(-1)[:, :chosen].contiguous()
    shares = torch.rand(tokens, chosen, generator=generator) / chosen**0.5
    weights = ExpertWeights(
        randn(experts, 2 * size, hidden, scale=1.5 / hidden**0.5), randn(experts, hidden, size, scale=1.5 / size**0.5)
    )
    return randn(tokens, hidden), Choice(order, shares), weights


def plain(x: Tensor, choice: Choice, weights: ExpertWeights, activation: str = "silu") -> Tensor:
    """In float64, one token and one expert at a time."""
    gate_up, down = (part.double() for part in weights[:2])
    if weights.gate_up_scale is not None and weights.down_scale is not None:
        gate_up, down = gate_up * weights.gate_up_scale.unsqueeze(-1), down * weights.down_scale.unsqueeze(-1)
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for row, token in enumerate(x.double()):
        for expert, share in zip(choice.experts[row].tolist(), choice.weights[row].double(), strict=True):
            gate, up = (gate_up[expert] @ token).chunk(2)
            active = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
            out[row] += share * (down[expert] @ (active * up))
    return out


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def as_dtype(x: Tensor, weights: ExpertWeights, dtype: torch.dtype) -> tuple[Tensor, ExpertWeights]:
    return x.to(dtype), ExpertWeights(weights.gate_up.to(dtype), weights.down.to(dtype))


@both
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_sum_over_experts_equals_its_definition(
    kind: Kind, dtype: torch.dtype, shape: tuple[int, int, int, int, int]
) -> None:
    x, choice, weights = given(*shape)
    x, weights = as_dtype(x, weights, dtype)
    for activation in ("silu", "gelu_tanh"):
        got = on(kind, mix_experts, x, choice, weights, activation)
        assert_close(got, plain(x, choice, weights, activation), dtype)


@both
@each_dtype
@pytest.mark.parametrize("stored_as", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_weights_in_eight_bits_have_a_scale_per_output(kind: Kind, dtype: torch.dtype, stored_as: torch.dtype) -> None:
    x, choice, weights = given(9, 2, 4, 60, 37)
    scales = [part.abs().amax(-1) / (127 if stored_as == torch.int8 else 448) for part in weights[:2]]
    eight = [
        (part / scale.unsqueeze(-1)).round().to(stored_as) for part, scale in zip(weights[:2], scales, strict=True)
    ]
    packed = ExpertWeights(*eight, *scales)
    assert_close(on(kind, mix_experts, x.to(dtype), choice, packed), plain(x.to(dtype), choice, packed), dtype)


@both
@each_dtype
@pytest.mark.parametrize("group", [32, 128])
def test_weights_in_four_bits_have_a_scale_per_group(kind: Kind, dtype: torch.dtype, group: int) -> None:
    x, choice, weights = given(9, 2, 4, 160, 37)
    (gate_up, gate_up_scale), (down, down_scale) = (quantise_groups(part, group) for part in weights[:2])
    packed = ExpertWeights(gate_up, down, gate_up_scale, down_scale)
    held = ExpertWeights(unpack_groups(gate_up, gate_up_scale, 160), unpack_groups(down, down_scale, 37))
    assert_close(on(kind, mix_experts, x.to(dtype), choice, packed), plain(x.to(dtype), choice, held), dtype)


@both
def test_experts_that_nobody_chose_are_not_read_and_a_token_is_alone_in_its_company(kind: Kind) -> None:
    x, choice, weights = given(12, 2, 6, 24, 16)
    chosen = set(choice.experts[:5].flatten().tolist())
    few = Choice(choice.experts[:5].contiguous(), choice.weights[:5].contiguous())
    for expert in set(range(6)) - chosen:
        weights.gate_up[expert], weights.down[expert] = torch.nan, torch.nan
    alone = on(kind, mix_experts, x[:5], few, weights)
    assert_close(alone, plain(x[:5], few, weights), torch.float32)
    x, _, weights = given(12, 2, 6, 24, 16)
    x[7] = torch.nan
    together = on(kind, mix_experts, x, choice, weights)
    assert together[7].isnan().all() and together[[*range(7), *range(8, 12)]].isfinite().all()
    # The kernel adds a token's numbers in one order; PyTorch's products of other shapes round differently.
    torch.testing.assert_close(together[:5], alone, rtol=0.0 if kind == "triton" else 1e-5, atol=1e-5 * (kind != "triton"))  # fmt: skip


@both
def test_one_expert_for_all_no_tokens_and_weights_of_nothing(kind: Kind) -> None:
    x, choice, weights = given(70, 1, 3, 24, 16)
    choice.experts.fill_(2)
    assert_close(on(kind, mix_experts, x, choice, weights), plain(x, choice, weights), torch.float32)
    choice.weights.zero_()
    assert not on(kind, mix_experts, x, choice, weights).any()
    assert on(kind, mix_experts, x[:0], Choice(*(part[:0] for part in choice)), weights).shape == (0, 24)


@pytest.mark.parametrize("tokens", [1, 5, 33])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_all_plain_ways_to_run_the_experts_agree(tokens: int, activation: str) -> None:
    x, choice, weights = given(tokens, 2, 6, 8, 8)
    looped = looped_experts(x, choice, *weights[:2], activation)
    # float32 products of a few dozen terms of order one.
    for other in (grouped_experts, dense_experts):
        torch.testing.assert_close(other(x, choice, *weights[:2], activation), looped, atol=1e-5, rtol=1e-5)


def test_dense_experts_in_small_portions_equal_one_portion(monkeypatch: pytest.MonkeyPatch) -> None:
    x, choice, weights = given(9, 3, 8, 16, 10)
    whole = dense_experts(x, choice, *weights[:2], "silu")
    monkeypatch.setattr(reference, "DENSE_ELEMENTS", 2 * 8 * 20)
    torch.testing.assert_close(dense_experts(x, choice, *weights[:2], "silu"), whole, atol=1e-5, rtol=1e-5)


def test_gradients_reach_everything_where_kernels_are_wanted_too() -> None:
    x, choice, weights = given(5, 2, 3, 8, 6)
    parts = [x, choice.weights, *weights[:2]]
    for part in parts:
        part.requires_grad_()
    try:
        use("triton")
        mix_experts(x, choice, weights).sum().backward()
    finally:
        use("auto")
    assert all(part.grad is not None and part.grad.any() for part in parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 4, dtype=torch.int64)}, "x"),
        ({"x": torch.zeros(4, 2).T}, "x"),
        ({"activation": "relu"}, "activation"),
        ({"weights": ExpertWeights(torch.zeros(3, 9, 4), torch.zeros(3, 4, 5))}, "gate_up"),
        ({"weights": ExpertWeights(torch.zeros(3, 10, 4), torch.zeros(3, 5, 5))}, "down"),
        ({"weights": ExpertWeights(torch.zeros(3, 10, 4).half(), torch.zeros(3, 4, 5))}, "gate_up"),
        ({"weights": ExpertWeights(torch.zeros(3, 10, 4), torch.zeros(3, 4, 5), torch.ones(3, 10))}, "down_scale"),
        ({"weights": ExpertWeights(*torch.zeros(2, 3, 10, 16, dtype=torch.uint8))}, "gate_up.*none"),
        ({"weights": ExpertWeights(torch.zeros(3, 10, 16, dtype=torch.uint8), torch.zeros(3, 4, 32, dtype=torch.uint8), *torch.zeros(2, 3, 10, 1).bfloat16())}, "down"),
        ({"weights": ExpertWeights(torch.zeros(3, 10, 4), torch.zeros(3, 4, 5), torch.ones(3, 10), torch.ones(3, 4))}, "gate_up"),
        ({"choice": Choice(torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2))}, "experts"),
        ({"choice": Choice(torch.zeros(2, 2, dtype=torch.int32), torch.zeros(2, 2))}, "experts"),
        ({"choice": Choice(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 3))}, "weights"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    right = {
        "x": torch.zeros(2, 4),
        "choice": Choice(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2)),
        "weights": ExpertWeights(torch.zeros(3, 10, 4), torch.zeros(3, 4, 5)),
    }
    assert not mix_experts(**right).any()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        mix_experts(**(right | change))  # type: ignore[arg-type]


@pytest.mark.gpu
@each_dtype
@pytest.mark.parametrize("tokens", [1, 32, 300])
def test_on_the_gpu_at_a_published_size(dtype: torch.dtype, tokens: int) -> None:
    """LLaDA2-mini's layer; every run gives the same bits. Weights are made on the device: a core takes eight seconds for each of nine times."""
    x, choice, _ = given(tokens, 8, 256, 2048, 1)
    generator = torch.Generator("cuda").manual_seed(tokens)

    def made(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=generator, device="cuda")
        return numbers.mul_(1.5 / shape[-1] ** 0.5)

    x, choice = x.cuda(), Choice(*(part.cuda() for part in choice))
    x, weights = as_dtype(x, ExpertWeights(made(256, 1024, 2048), made(256, 2048, 512)), dtype)
    got = mix_experts(x, choice, weights)
    assert_close(got, plain(x, choice, weights), dtype)
    assert torch.equal(got, mix_experts(x, choice, weights))


@pytest.mark.gpu
def test_on_the_gpu_addresses_pass_two_to_the_31() -> None:
    gate_up = torch.zeros(257, 2 * 2048, 2048, dtype=torch.bfloat16, device="cuda")
    down = torch.zeros(257, 2048, 2048, dtype=torch.bfloat16, device="cuda")
    gate_up[-1], down[-1] = 2.0**-11, 2.0**-11
    choice = Choice(torch.full((2, 1), 256, device="cuda"), torch.ones(2, 1, device="cuda"))
    got = mix_experts(torch.ones(2, 2048, dtype=torch.bfloat16, device="cuda"), choice, ExpertWeights(gate_up, down))
    torch.testing.assert_close(got.float(), torch.full_like(got, 0.7310586).float(), rtol=2**-7, atol=0.0)

"""Routing: against its definition token by token, by every rule the families have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dllm_kernels import Choice, route_experts
from dllm_kernels.choose import Kind
from dllm_kernels.route_experts import Rules
from tests.kernels.both import KINDS, on, randn

both = pytest.mark.parametrize("kind", KINDS)

# Scores are a few float32 operations of numbers up to one, weights their sums over up to eight.
RTOL, ATOL = 1e-5, 1e-7

CASES = [
    (1, 1, Rules(1)),
    (5, 7, Rules(3, normalise=False)),
    (9, 64, Rules(8, normalise=False)),
    (4, 12, Rules(3, "sigmoid", groups=4, groups_kept=2, scale=2.5)),
    (3, 256, Rules(8, "sigmoid", groups=8, groups_kept=4, scale=2.5)),
    (3, 6, Rules(2, "sigmoid", groups=6, groups_kept=3)),
    (11, 40, Rules(4, "sigmoid", per_block=6)),
    (6, 33, Rules(2, "softmax", per_block=2)),
    (20, 9, Rules(9, "sigmoid", per_block=9)),
]
"""(tokens, experts, rules)."""


def by_definition(logits: Tensor, rules: Rules, bias: Tensor | None, blocks: Tensor | None) -> Choice:
    """Written out with lists, in float64."""
    scores = logits.double().softmax(-1) if rules.scoring == "softmax" else logits.double().sigmoid()
    biased = (scores if bias is None else scores + bias).tolist()
    count = logits.shape[1]
    chosen, weights = [], []
    for row, mine in enumerate(biased):
        candidates = list(range(count))
        if rules.per_block and blocks is not None:
            company = [theirs for other, theirs in enumerate(biased) if blocks[other] == blocks[row]]
            most = [max(theirs[expert] for theirs in company) for expert in range(count)]
            candidates = sorted(sorted(candidates, key=lambda expert: -most[expert])[: rules.per_block])
        elif rules.groups > 1:
            width = count // rules.groups
            groups = [candidates[first : first + width] for first in range(0, count, width)]
            groups.sort(key=lambda group: -sum(sorted((mine[expert] for expert in group), reverse=True)[:2]))
            candidates = sorted(expert for group in groups[: rules.groups_kept] for expert in group)
        best = sorted(candidates, key=lambda expert: -mine[expert])[: rules.chosen]
        share = scores[row, best]
        chosen.append(best)
        weights.append(share / (share.sum() if rules.normalise else 1.0) * rules.scale)
    return Choice(torch.tensor(chosen), torch.stack(weights))


def check(kind: Kind, logits: Tensor, rules: Rules, bias: Tensor | None = None, blocks: Tensor | None = None) -> None:
    got: Choice = on(kind, route_experts, logits, rules, bias=bias, blocks=blocks)
    expected = by_definition(logits, rules, bias, blocks)
    assert got.experts.tolist() == expected.experts.tolist()
    assert got.experts.dtype == torch.int64 and got.weights.dtype == logits.dtype
    torch.testing.assert_close(got.weights.double(), expected.weights, rtol=RTOL, atol=ATOL)


@both
@pytest.mark.parametrize(("tokens", "experts", "rules"), CASES, ids=str)
def test_experts_and_weights_equal_their_definition(kind: Kind, tokens: int, experts: int, rules: Rules) -> None:
    logits = randn(tokens, experts, scale=2.0)
    # Blocks of up to four tokens that begin in the middle of one, and come back.
    blocks = (torch.arange(tokens) + 1) // 4 % 4 if rules.per_block else None
    check(kind, logits, rules, blocks=blocks)
    check(kind, logits, rules, randn(experts, scale=0.3), blocks)


@both
def test_ties_go_to_the_lowest_expert_and_the_lowest_group(kind: Kind) -> None:
    logits = torch.zeros(2, 12)
    logits[1, [5, 7, 11]] = 1.0
    for rules in (Rules(3), Rules(3, "sigmoid"), Rules(3, "sigmoid", groups=4, groups_kept=2), Rules(2, per_block=3)):
        check(kind, logits, rules, blocks=torch.tensor([0, 1]))


# Triton's interpreter computes with NumPy, which warns where a GPU silently makes an infinity.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@both
def test_extreme_logits_give_finite_weights_and_every_number_gives_experts(kind: Kind) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0, 1e38], [-1e38, -1e38, -1e38, -20.0], [3e38, 3e38, -3e38, 0.0]])
    for rules in (Rules(2), Rules(2, "sigmoid"), Rules(2, "sigmoid", groups=2), Rules(2, per_block=2)):
        check(kind, logits, rules, blocks=torch.arange(3))
    logits[0, 1], logits[1] = torch.nan, torch.nan
    for rules in (Rules(2), Rules(2, "sigmoid", groups=2), Rules(2, per_block=2)):
        got = on(kind, route_experts, logits, rules, blocks=torch.zeros(3, dtype=torch.int64))
        assert ((got.experts >= 0) & (got.experts < 4)).all() and (got.experts[:, 0] != got.experts[:, 1]).all()


@both
def test_a_token_has_the_same_experts_alone_and_beside_other_blocks(kind: Kind) -> None:
    logits = randn(21, 30)
    blocks = torch.tensor([2**40] * 7 + [-3] * 7 + [0] * 7)
    rules = Rules(3, "sigmoid", per_block=5)
    together = on(kind, route_experts, logits, rules, blocks=blocks)
    alone = on(kind, route_experts, logits[7:14].contiguous(), rules, blocks=blocks[7:14].contiguous())
    assert torch.equal(together.experts[7:14], alone.experts) and torch.equal(together.weights[7:14], alone.weights)
    assert len(set(alone.experts.flatten().tolist())) <= 5
    none = on(kind, route_experts, logits[:0], Rules(3))
    assert none.experts.shape == none.weights.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3)}, "logits"),
        ({"logits": torch.zeros(3, 8, dtype=torch.bfloat16)}, "logits"),
        ({"logits": torch.zeros(8, 3).T}, "logits"),
        ({"bias": torch.zeros(7)}, "bias"),
        ({"bias": torch.zeros(8, dtype=torch.bfloat16)}, "bias"),
        ({"rules": Rules(2, per_block=4)}, "blocks.*None"),
        ({"rules": Rules(2, per_block=4), "blocks": torch.zeros(3)}, "blocks"),
        ({"rules": Rules(2, per_block=9)}, "per_block"),
        ({"rules": Rules(2, groups=3)}, "groups"),
        ({"rules": Rules(2, groups=4, groups_kept=5)}, "groups"),
        ({"rules": Rules(3, groups=4, groups_kept=1)}, "chosen"),
        ({"rules": Rules(5, per_block=4), "blocks": torch.zeros(3, dtype=torch.int64)}, "chosen"),
        ({"rules": Rules(0)}, "chosen"),
        ({"rules": Rules(2, "tanh")}, "scoring"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        route_experts(**({"logits": torch.zeros(3, 8), "rules": Rules(2)} | change))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 32, 300])
def test_on_the_gpu_at_published_sizes(tokens: int) -> None:
    logits, bias = randn(tokens, 256, scale=2.0), randn(256, scale=0.1)
    blocks = torch.arange(tokens) // 32
    for rules in (Rules(8), Rules(8, "sigmoid", groups=8, groups_kept=4, scale=2.5), Rules(8, "sigmoid", per_block=32)):
        check("triton", logits, rules, bias, blocks)

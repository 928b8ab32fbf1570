"""Which experts each token uses, and how much each counts.

Dimensions: N tokens, K chosen experts, X experts, G groups of experts.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from dllm_kernels.checks import check_tensor
from dllm_kernels.choose import choose

Scoring: TypeAlias = Literal["softmax", "sigmoid"]


class Choice(NamedTuple):
    """Which experts each token uses and how much each counts."""

    experts: Tensor
    """[N, K] int64, the most preferred first."""
    weights: Tensor
    """[N, K], at least float32."""


class Rules(NamedTuple):
    """What is chosen, beside the numbers."""

    chosen: int
    """K."""
    scoring: Scoring = "softmax"
    groups: int = 1
    """Of neighbouring experts, all of one size; with 1 there are none."""
    groups_kept: int = 1
    per_block: int = 0
    """Most distinct experts that one block may use; 0 is no cap. With a cap, groups are not looked at."""
    normalise: bool = True
    """Whether a token's weights are made to sum to one."""
    scale: float = 1.0
    """Multiplies the weights at the end."""


def route_experts(logits: Tensor, rules: Rules, *, bias: Tensor | None = None, blocks: Tensor | None = None) -> Choice:
    """Choose experts.

    Scores are the softmax or the sigmoid of the logits, and the preference is score plus bias. Candidates are the experts of the
    `groups_kept` groups whose two best preferences sum highest; or, with a cap, the `per_block` experts that some token of the
    block prefers most. The K best candidates are taken, ties to the lowest index; their weights are their scores without the bias.

    What a token chooses whose logits hold a NaN is not said; they are experts.

    Args:
        logits: [N, X], contiguous, float32 or float64.
        bias: [X], float32 or the dtype of the logits, contiguous; for the choice only.
        blocks: [N], int64, contiguous: equal for the tokens of a block. Needed exactly when experts are capped per block.

    Raises:
        ValueError: If a shape, dtype, device or number is not as above, or candidates may be fewer than K.

    Source: softmax over all, OLMoE (arXiv:2409.02060); biased sigmoid with groups, DeepSeek-V3 (arXiv:2412.19437), as in LLaDA2; the cap
    per block as LLaDA2.2's published code has it.
    """
    if logits.dim() != 2 or logits.shape[1] == 0 or logits.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"logits: expected [N, X] float32 or float64, got {list(logits.shape)} {logits.dtype}")
    if not logits.is_contiguous():
        raise ValueError("logits: expected them contiguous")
    _check_rules(logits.shape[1], rules)
    if bias is not None:
        dtype = bias.dtype if bias.dtype in (torch.float32, logits.dtype) else logits.dtype
        check_tensor("bias", bias, (logits.shape[1],), dtype, logits.device)
    if rules.per_block:
        if blocks is None:
            raise ValueError("blocks: routing is capped per block: expected the block of every token, got None")
        check_tensor("blocks", blocks, (len(logits),), torch.int64, logits.device)
    return Choice(
        *choose("route_experts", logits, bias).route_experts(logits, rules, bias, blocks if rules.per_block else None)
    )


def _check_rules(experts: int, rules: Rules) -> None:
    if rules.scoring not in get_args(Scoring):
        raise ValueError(f"scoring: expected one of {', '.join(get_args(Scoring))}, got {rules.scoring}")
    if rules.groups < 1 or experts % rules.groups or not 1 <= rules.groups_kept <= rules.groups:
        raise ValueError(
            f"groups: expected a divisor of {experts} experts and at most all kept, got {rules.groups}, {rules.groups_kept}"
        )
    if not 0 <= rules.per_block <= experts:
        raise ValueError(f"per_block: expected 0 to {experts}, got {rules.per_block}")
    candidates = rules.per_block or experts // rules.groups * rules.groups_kept
    if not 1 <= rules.chosen <= candidates:
        raise ValueError(f"chosen: expected 1 to {candidates} candidates, got {rules.chosen}")

"""The answer, in plain PyTorch. N tokens, K chosen experts, X experts, G groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dllm_kernels.route_experts import Rules


def route_experts(logits: Tensor, rules: Rules, bias: Tensor | None, blocks: Tensor | None) -> tuple[Tensor, Tensor]:
    scores = logits.softmax(-1) if rules.scoring == "softmax" else logits.sigmoid()
    preference = scores if bias is None else scores + bias
    if blocks is not None:
        preference = _within_block(preference, blocks, rules.per_block)
    elif rules.groups > 1:
        preference = _within_groups(preference, rules.groups, rules.groups_kept)
    experts = _best(preference, rules.chosen).contiguous()
    weights = scores.gather(-1, experts)
    if rules.normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return experts, weights * rules.scale


def _best(values: Tensor, count: int) -> Tensor:
    """Indices of the highest, the highest first, ties to the lowest index: `topk` leaves ties open."""
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _within_groups(preference: Tensor, groups: int, kept: int) -> Tensor:
    """Minus infinity outside the `kept` groups with the highest sum of their two best experts."""
    grouped = preference.view(*preference.shape[:-1], groups, -1)
    strength = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
    chosen = torch.zeros_like(strength, dtype=torch.bool).scatter_(-1, _best(strength, kept), True)
    kept_only: Tensor = grouped.masked_fill(~chosen.unsqueeze(-1), float("-inf")).flatten(-2)
    return kept_only


def _within_block(preference: Tensor, blocks: Tensor, kept: int) -> Tensor:
    """Minus infinity outside the `kept` experts that some token of the same block prefers most.

    Blocks are renumbered by first appearance through comparisons: the number of blocks stays unknown to the host.
    """
    first = (blocks[:, None] == blocks[None, :]).to(torch.int8).argmax(-1)
    strength = torch.full_like(preference, float("-inf"))
    strength.scatter_reduce_(0, first[:, None].expand_as(preference), preference, "amax")
    chosen = torch.zeros_like(preference, dtype=torch.bool).scatter_(-1, _best(strength[first], kept), True)
    return preference.masked_fill(~chosen, float("-inf"))

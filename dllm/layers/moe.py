"""Mixture of experts: a router chooses a few experts per token, whose weighted sum stands in for the dense feed-forward.

Dimensions: N tokens, K chosen experts, X experts, E hidden size, F expert size, G groups of experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.layers.feed_forward import FeedForward, activate
from dllm.spec import Activation, ModelSpec, MoeSpec

DENSE_ELEMENTS = 1 << 26
"""Most intermediate elements that `dense_experts` holds at once: 256 MB in float32."""


class Choice(NamedTuple):
    """Which experts each token uses and how much each counts."""

    experts: Tensor
    """[N, K] int64."""
    weights: Tensor
    """[N, K], at least float32."""


def choose_experts(
    router_logits: Tensor, moe: MoeSpec, bias: Tensor | None = None, blocks: Tensor | None = None
) -> Choice:
    """Route tokens.

    Softmax scoring takes the K most probable experts (OLMoE, arXiv:2409.02060). Sigmoid scoring adds `bias` for the choice only, keeps
    the `groups_kept` groups whose two best biased scores sum highest, and takes the K best experts inside them (LLaDA2). With
    `per_block` set, the `per_block` experts with the highest biased score anywhere in the token's block are kept instead of groups
    (LLaDA2.2). Weights are the unbiased scores.

    Args:
        router_logits: [N, X], float32 or float64.
        bias: [X] or None.
        blocks: [N] int64, equal for tokens of one block of one row; needed exactly when `per_block` is set.
    """
    scores = router_logits.softmax(-1) if moe.scoring == "softmax" else router_logits.sigmoid()
    preference = scores if bias is None else scores + bias
    if moe.per_block:
        if blocks is None:
            raise ValueError("routing is capped per block: expected the block of every token, got None")
        preference = _within_block(preference, blocks, moe.per_block)
    elif moe.groups > 1:
        preference = _within_groups(preference, moe.groups, moe.groups_kept)
    experts = preference.topk(moe.experts_per_token, dim=-1).indices
    weights = scores.gather(-1, experts)
    if moe.normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Choice(experts, weights * moe.scale)


def _within_groups(preference: Tensor, groups: int, kept: int) -> Tensor:
    """Minus infinity outside the `kept` groups with the highest sum of their two best experts."""
    grouped = preference.view(*preference.shape[:-1], groups, -1)
    strength = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
    chosen = torch.zeros_like(strength, dtype=torch.bool).scatter_(-1, strength.topk(kept, dim=-1).indices, True)
    kept_only: Tensor = grouped.masked_fill(~chosen.unsqueeze(-1), float("-inf")).flatten(-2)
    return kept_only


def _within_block(preference: Tensor, blocks: Tensor, kept: int) -> Tensor:
    """Minus infinity outside the `kept` experts that some token of the same block prefers most.

    Blocks are renumbered by first appearance through comparisons: the number of blocks stays unknown to the host.
    """
    first = (blocks[:, None] == blocks[None, :]).to(torch.int8).argmax(-1)
    strength = torch.full_like(preference, float("-inf"))
    strength.scatter_reduce_(0, first[:, None].expand_as(preference), preference, "amax")
    best = strength[first].topk(kept, dim=-1).indices
    chosen = torch.zeros_like(preference, dtype=torch.bool).scatter_(-1, best, True)
    return preference.masked_fill(~chosen, float("-inf"))


class ExpertWeights(Protocol):
    """One matrix per expert: a packed tensor, or weights that become floats as they are asked for."""

    @property
    def shape(self) -> torch.Size: ...

    def __getitem__(self, expert: int) -> Tensor: ...


class Experts(nn.Module):
    """Gated feed-forwards packed into two parameters, `gate_up_proj` [X, 2F, E] and `down_proj` [X, E, F]."""

    def __init__(self, experts: int, hidden_size: int, expert_size: int, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * expert_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden_size, expert_size))

    def forward(self, x: Tensor, choice: Choice) -> Tensor:
        """Weighted sum of the chosen experts, [N, E] to [N, E].

        On an accelerator nothing here waits for the device: bf16 goes through a grouped matrix product (whose rows are whole 16
        bytes), all else through all experts (at the 32 or so tokens of a canvas nearly all experts are touched anyway). On the CPU
        the touched experts are visited one by one.
        """
        if x.device.type == "cpu":
            return looped_experts(x, choice, self.gate_up_proj, self.down_proj, self.activation)
        if x.dtype == torch.bfloat16 and not x.shape[-1] % 8 and not self.down_proj.shape[-1] % 8:
            return grouped_experts(x, choice, self.gate_up_proj, self.down_proj, self.activation)
        return dense_experts(x, choice, self.gate_up_proj, self.down_proj, self.activation)


def _combine(products: Tensor, weights: Tensor) -> Tensor:
    """Sum [N, K, E] over K with weights [N, K], in the weights' precision."""
    return torch.einsum("nke,nk->ne", products.to(weights.dtype), weights).to(products.dtype)


def looped_experts(
    x: Tensor, choice: Choice, gate_up: ExpertWeights, down: ExpertWeights, activation: Activation
) -> Tensor:
    """Visit the touched experts, each with its own tokens. Reads the choice on the host."""
    per_token = choice.experts.shape[1]
    flat = choice.experts.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=gate_up.shape[0]).tolist()
    pieces = []
    for expert, tokens in enumerate(torch.split(x[order // per_token], counts)):
        if len(tokens):
            gate, up = F.linear(tokens, gate_up[expert]).chunk(2, dim=-1)
            pieces.append(F.linear(activate(gate, activation) * up, down[expert]))
    products = torch.cat(pieces)
    return _combine(products[order.argsort()].view(*choice.experts.shape, -1), choice.weights)


def grouped_experts(x: Tensor, choice: Choice, gate_up: Tensor, down: Tensor, activation: Activation) -> Tensor:
    """One grouped matrix product per projection over tokens sorted by expert; group borders stay on the device."""
    per_token = choice.experts.shape[1]
    flat = choice.experts.flatten()
    order = flat.argsort(stable=True)
    counts = torch.zeros(gate_up.shape[0], dtype=torch.int32, device=x.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))
    borders = counts.cumsum(0, dtype=torch.int32)
    gate, up = F.grouped_mm(x[order // per_token], gate_up.transpose(1, 2), offs=borders).chunk(2, dim=-1)
    products = F.grouped_mm(activate(gate, activation) * up, down.transpose(1, 2), offs=borders)
    return _combine(products[order.argsort()].view(*choice.experts.shape, -1), choice.weights)


def dense_experts(x: Tensor, choice: Choice, gate_up: Tensor, down: Tensor, activation: Activation) -> Tensor:
    """Every expert on every token, those not chosen with weight zero; a few tokens at a time to bound the memory."""
    shares = torch.zeros(x.shape[0], gate_up.shape[0], dtype=choice.weights.dtype, device=x.device)
    shares.scatter_(1, choice.experts, choice.weights)
    step = max(1, DENSE_ELEMENTS // (gate_up.shape[0] * max(gate_up.shape[1:])))
    parts = []
    for tokens, share in zip(torch.split(x, step), torch.split(shares, step), strict=True):
        gate, up = torch.einsum("ne,xfe->xnf", tokens, gate_up).chunk(2, dim=-1)
        inner = activate(gate, activation) * up * share.T.unsqueeze(-1).to(x.dtype)
        # Not one contraction over experts and inner size: that would copy all of `down` into another order.
        parts.append(torch.bmm(inner, down.transpose(1, 2)).sum(0))
    return torch.cat(parts)


class MoeFeedForward(nn.Module):
    """Router, experts and an optional shared expert that every token uses.

    The router runs in float32 (or the weights' type where that is wider); its bias stays float32 whatever the module is cast to, since
    rounding it to bf16 would change which experts are chosen.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        assert spec.moe is not None
        self.moe = spec.moe
        self.gate = nn.Parameter(torch.empty(self.moe.experts, spec.hidden_size))
        self.expert_bias: Tensor | None
        bias = torch.zeros(self.moe.experts, dtype=torch.float32) if self.moe.has_bias else None
        self.register_buffer("expert_bias", bias)
        self.experts = Experts(self.moe.experts, spec.hidden_size, self.moe.expert_size, spec.activation)
        self.shared = (
            FeedForward(spec.hidden_size, self.moe.shared_size, spec.activation) if self.moe.shared_size else None
        )

    def forward(self, x: Tensor, blocks: Tensor | None = None) -> Tensor:
        """[B, T, E] to [B, T, E].

        Args:
            blocks: [B, T] int64, the number of each token's block; needed exactly when the specification caps experts per block.
        """
        rows, length, size = x.shape
        tokens = x.reshape(-1, size)
        wide = torch.promote_types(x.dtype, torch.float32)
        if blocks is not None:
            # A block belongs to one row: rows never share a cap.
            row = torch.arange(rows, device=x.device).unsqueeze(-1)
            blocks = (blocks * rows + row).flatten()
        logits = F.linear(tokens.to(wide), self.gate.to(wide))
        out = self.experts(tokens, choose_experts(logits, self.moe, self.expert_bias, blocks))
        if self.shared is not None:
            out = out + self.shared(tokens)
        fed: Tensor = out.view(rows, length, size)
        return fed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MoeFeedForward:
        bias = self.expert_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if bias is not None and self.expert_bias is not None and self.expert_bias.dtype != bias.dtype:
            moved = torch.empty_like(bias, device=self.expert_bias.device)
            self.expert_bias = moved if bias.is_meta else moved.copy_(bias)
        return self

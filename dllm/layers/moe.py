"""Mixture of experts: a router chooses a few experts per token, whose weighted sum stands in for the dense feed-forward.

Dimensions: N tokens, X experts, E hidden size, F expert size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.layers.feed_forward import FeedForward
from dllm.spec import Activation, ModelSpec, MoeSpec
from dllm_kernels import Choice, ExpertWeights, mix_experts, route_experts
from dllm_kernels.route_experts import Rules


def choose_experts(
    router_logits: Tensor, moe: MoeSpec, bias: Tensor | None = None, blocks: Tensor | None = None
) -> Choice:
    """Route tokens as a family does: softmax over all experts (OLMoE, arXiv:2409.02060), biased sigmoid inside the best groups (LLaDA2) or
    inside the experts that the token's block prefers (LLaDA2.2). See `route_experts`.

    Args:
        router_logits: [N, X], float32 or float64.
        bias: [X] or None.
        blocks: [N] int64, equal for tokens of one block of one row; needed exactly when `per_block` is set.
    """
    rules = Rules(
        moe.experts_per_token,
        moe.scoring,
        moe.groups,
        moe.groups_kept,
        moe.per_block,
        moe.normalise,
        moe.scale,
    )
    return route_experts(router_logits.contiguous(), rules, bias=bias, blocks=blocks)


class Experts(nn.Module):
    """Gated feed-forwards packed into two parameters, `gate_up_proj` [X, 2F, E] and `down_proj` [X, E, F]."""

    def __init__(self, experts: int, hidden_size: int, expert_size: int, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * expert_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden_size, expert_size))

    def forward(self, x: Tensor, choice: Choice) -> Tensor:
        """Weighted sum of the chosen experts, [N, E] to [N, E]. On an accelerator nothing here waits for the device."""
        weights = ExpertWeights(self.gate_up_proj, self.down_proj)
        return mix_experts(x.contiguous(), choice, weights, self.activation)


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

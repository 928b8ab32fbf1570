"""The chosen experts' feed-forwards and their weighted sum.

Dimensions: N tokens, K chosen experts, X experts, E hidden size, F expert size.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor

from dllm_kernels.checks import check_floating, check_tensor
from dllm_kernels.choose import choose
from dllm_kernels.four_bits import check_packed
from dllm_kernels.route_experts import Choice
from dllm_kernels.swiglu import Activation

EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)


class ExpertWeights(NamedTuple):
    """All experts of a layer. Weights are of the dtype of what they multiply, or int8 or e4m3 with a scale per output:
    `values * scale`; or uint8, four bits packed by `quantise_groups`."""

    gate_up: Tensor
    """[X, 2F, E], contiguous: an expert's F gate rows, then up's."""
    down: Tensor
    """[X, E, F], contiguous."""
    gate_up_scale: Tensor | None = None
    """[X, 2F], float32; of four bits [X, 2F, C], bfloat16."""
    down_scale: Tensor | None = None
    """[X, E], float32; of four bits [X, E, C], bfloat16."""


def mix_experts(x: Tensor, choice: Choice, weights: ExpertWeights, activation: Activation = "silu") -> Tensor:
    """Sum over a token's experts of weight * down(activation(gate(x)) * up(x)).

    Sums are in float32 at least and in an order that does not depend on the other tokens. The kernel rounds to the dtype of x between
    the products and at the end; the reference also where PyTorch's products do.

    Args:
        x: [N, E], contiguous, floating point.
        choice: From `route_experts`. An expert that does not exist is the caller's mistake, which is not looked for.

    Returns:
        [N, E], in the dtype of x.

    Raises:
        ValueError: If a shape, dtype or device is not as above.

    Source: tokens sorted by expert and a grouped product, MegaBlocks (arXiv:2211.15841), without its padding in memory.
    """
    group = _check(x, choice, weights, activation)
    # One of them tells of gradients; integers need none.
    out: Tensor = choose("mix_experts", x, choice.weights, *weights).mix_experts(x, choice, weights, activation, group)
    return out


def _check(x: Tensor, choice: Choice, weights: ExpertWeights, activation: Activation) -> int:
    """The size of a group of weights in four bits, else 0."""
    check_floating("x", x)
    if x.dim() != 2 or x.shape[1] == 0 or not x.is_contiguous():
        raise ValueError(f"x: expected contiguous [N, E] with E above 0, got {list(x.shape)}")
    if activation not in get_args(Activation):
        raise ValueError(f"activation: expected one of {', '.join(get_args(Activation))}, got {activation}")
    gate_up, down, gate_up_scale, down_scale = weights
    if gate_up.dim() != 3 or gate_up.shape[0] == 0 or gate_up.shape[1] == 0 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up: expected [X, 2F, {x.shape[1]}], none of them 0, got {list(gate_up.shape)}")
    experts, hidden, size = gate_up.shape[0], x.shape[1], gate_up.shape[1] // 2
    if (gate_up_scale is None) != (down_scale is None):
        raise ValueError("down_scale: expected a scale for both weights or for neither")
    _check_choice(x, choice)
    if gate_up.dtype == torch.uint8:
        group = check_packed("gate_up", gate_up, gate_up_scale, (experts, 2 * size, hidden))
        if check_packed("down", down, down_scale, (experts, hidden, size)) != group:
            raise ValueError(f"down: expected groups of {group} inputs, as those of gate_up")
        if any(part is not None and part.device != x.device for part in weights):
            raise ValueError(f"gate_up: expected all weights on {x.device}, got {gate_up.device}")
        return group
    stored_as = x.dtype if gate_up_scale is None else gate_up.dtype
    if gate_up_scale is not None and stored_as not in EIGHT_BITS:
        raise ValueError(f"gate_up: expected int8, float8_e4m3fn or uint8 where there is a scale, got {stored_as}")
    check_tensor("gate_up", gate_up, (experts, 2 * size, hidden), stored_as, x.device)
    check_tensor("down", down, (experts, hidden, size), stored_as, x.device)
    if gate_up_scale is not None and down_scale is not None:
        check_tensor("gate_up_scale", gate_up_scale, (experts, 2 * size), torch.float32, x.device)
        check_tensor("down_scale", down_scale, (experts, hidden), torch.float32, x.device)
    return 0


def _check_choice(x: Tensor, choice: Choice) -> None:
    if choice.experts.dim() != 2 or choice.experts.shape[1] == 0:
        raise ValueError(f"experts: expected [{len(x)}, K] with K above 0, got {list(choice.experts.shape)}")
    shape = (len(x), choice.experts.shape[1])
    check_tensor("experts", choice.experts, shape, torch.int64, x.device)
    check_floating("weights", choice.weights)
    check_tensor("weights", choice.weights, shape, None, x.device)

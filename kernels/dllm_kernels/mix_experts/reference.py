"""The answer, in plain PyTorch, by the way that suits the device. N tokens, K chosen experts, X experts, E hidden size, F expert size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.four_bits import unpack_groups
from dllm_kernels.route_experts import Choice
from dllm_kernels.swiglu.reference import swiglu

if TYPE_CHECKING:
    from dllm_kernels.mix_experts import ExpertWeights

DENSE_ELEMENTS = 1 << 26
"""Most intermediate elements that `dense_experts` holds at once: 256 MB in float32."""


def mix_experts(x: Tensor, choice: Choice, weights: ExpertWeights, activation: str, group: int) -> Tensor:
    """On an accelerator nothing here waits for the device: bf16 goes through a grouped matrix product (whose rows are whole 16 bytes), all
    else through all experts (at the 32 or so tokens of a canvas nearly all experts are touched anyway). On the CPU the touched experts
    are visited one by one."""
    if x.device.type == "cpu":
        gate_up: Matrices = weights.gate_up
        down: Matrices = weights.down
        if weights.gate_up_scale is not None and weights.down_scale is not None:
            size = weights.gate_up.shape[1] // 2
            gate_up = PackedExperts(weights.gate_up, weights.gate_up_scale, x.shape[1], x.dtype)
            down = PackedExperts(weights.down, weights.down_scale, size, x.dtype)
        return looped_experts(x, choice, gate_up, down, activation)
    whole_gate_up = _whole(weights.gate_up, weights.gate_up_scale, x.shape[1], x.dtype)
    whole_down = _whole(weights.down, weights.down_scale, weights.gate_up.shape[1] // 2, x.dtype)
    if x.dtype == torch.bfloat16 and not x.shape[-1] % 8 and not whole_down.shape[-1] % 8:
        return grouped_experts(x, choice, whole_gate_up, whole_down, activation)
    return dense_experts(x, choice, whole_gate_up, whole_down, activation)


class Matrices(Protocol):
    """One matrix per expert: a packed tensor, or weights that become floats as they are asked for."""

    @property
    def shape(self) -> torch.Size: ...

    def __getitem__(self, expert: int) -> Tensor: ...


class PackedExperts:
    """Experts' weights that become floats as they are asked for, one expert at a time."""

    def __init__(self, values: Tensor, scale: Tensor, inputs: int, dtype: torch.dtype) -> None:
        self._values, self._scale, self._inputs, self._dtype = values, scale, inputs, dtype
        self.shape = values.shape

    def __getitem__(self, expert: int) -> Tensor:
        values, scale = self._values[expert], self._scale[expert]
        if values.dtype == torch.uint8:
            return unpack_groups(values, scale, self._inputs).to(self._dtype)
        return (values.float() * scale.unsqueeze(-1)).to(self._dtype)


def _whole(values: Tensor, scale: Tensor | None, inputs: int, dtype: torch.dtype) -> Tensor:
    """[X, ., inputs], all at once."""
    if scale is not None and values.dtype == torch.uint8:
        return unpack_groups(values, scale, inputs).to(dtype)
    return values if scale is None else values.to(dtype) * scale.unsqueeze(-1).to(dtype)


def _combine(products: Tensor, weights: Tensor) -> Tensor:
    """Sum [N, K, E] over K with weights [N, K], in the weights' precision."""
    return torch.einsum("nke,nk->ne", products.to(weights.dtype), weights).to(products.dtype)


def looped_experts(x: Tensor, choice: Choice, gate_up: Matrices, down: Matrices, activation: str) -> Tensor:
    """Visit the touched experts, each with its own tokens. Reads the choice on the host."""
    if not len(x):
        return x.clone()
    per_token = choice.experts.shape[1]
    flat = choice.experts.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=gate_up.shape[0]).tolist()
    pieces = []
    for expert, tokens in enumerate(torch.split(x[order // per_token], counts)):
        if len(tokens):
            pieces.append(F.linear(swiglu(F.linear(tokens, gate_up[expert]), activation), down[expert]))
    products = torch.cat(pieces)
    return _combine(products[order.argsort()].view(*choice.experts.shape, -1), choice.weights)


def grouped_experts(x: Tensor, choice: Choice, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """One grouped matrix product per projection over tokens sorted by expert; group borders stay on the device."""
    per_token = choice.experts.shape[1]
    flat = choice.experts.flatten()
    order = flat.argsort(stable=True)
    counts = torch.zeros(gate_up.shape[0], dtype=torch.int32, device=x.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))
    borders = counts.cumsum(0, dtype=torch.int32)
    inner = swiglu(F.grouped_mm(x[order // per_token], gate_up.transpose(1, 2), offs=borders), activation)
    products = F.grouped_mm(inner, down.transpose(1, 2), offs=borders)
    return _combine(products[order.argsort()].view(*choice.experts.shape, -1), choice.weights)


def dense_experts(x: Tensor, choice: Choice, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """Every expert on every token, those not chosen with weight zero; a few tokens at a time to bound the memory."""
    shares = torch.zeros(x.shape[0], gate_up.shape[0], dtype=choice.weights.dtype, device=x.device)
    shares.scatter_(1, choice.experts, choice.weights)
    step = max(1, DENSE_ELEMENTS // (gate_up.shape[0] * max(gate_up.shape[1:])))
    parts = []
    for tokens, share in zip(torch.split(x, step), torch.split(shares, step), strict=True):
        inner = swiglu(torch.einsum("ne,xfe->xnf", tokens, gate_up), activation) * share.T.unsqueeze(-1).to(x.dtype)
        # Not one contraction over experts and inner size: that would copy all of `down` into another order.
        parts.append(torch.bmm(inner, down.transpose(1, 2)).sum(0))
    return torch.cat(parts)

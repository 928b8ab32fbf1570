"""Linear layers and experts whose weights are stored in eight bits, one scale per output row, or in four, one scale per group of inputs.

Dimensions: M tokens, N outputs, K inputs, X experts, E hidden size, F expert size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.layers.moe import Experts
from dllm_kernels import Choice, ExpertWeights, mix_experts, skinny_linear
from dllm_kernels.choose import KERNEL_DTYPES
from dllm_kernels.four_bits import packed_size, quantise_groups, unpack_groups
from dllm_kernels.quantise_rows import quantise_rows

Mode: TypeAlias = Literal["int8", "int8-dynamic", "fp8", "int4"]
"""int8 and int4: weights alone. int8-dynamic: weights and activations, on the CPU. fp8: weights and activations in e4m3."""

STORED_AS: dict[Mode, torch.dtype] = {
    "int8": torch.int8,
    "int8-dynamic": torch.int8,
    "fp8": torch.float8_e4m3fn,
    "int4": torch.uint8,
}
GROUP = 64
"""Inputs of a group in int4: 4.25 bits for a weight."""
PIECE = 1 << 20
"""Weights turned to float at once on the CPU: 4 MB, which stay in its cache. Through [6144, 2048] on one core of a Zen 3, in
turns, 32 tokens took 24 ms so, 76 ms with the whole matrix turned at once and 27 ms from float32; one token 17, 62 and 6 ms: what is saved
is memory, not time."""
SKINNY_ROWS = 256
"""Up to so many tokens an accelerator reads weights as they are stored. Beyond, products take longer than reading."""
EXACT_INPUTS = 1024
"""Products of int8 values add up exactly in float32 over this many inputs: 1024 * 127 ** 2 is below 2 ** 24."""
QUANTISED_AT_ONCE = 1 << 24
"""Weights that `fill` holds in float32 at once: 64 MB."""


def fill(values: Tensor, scale: Tensor, weights: Tensor) -> None:
    """Quantise weights [..., N, K] of any float type into `values` and `scale`, of the shapes that `room_for` says, a few rows at a time."""
    if weights.dim() > 2:
        for place, factors, part in zip(values, scale, weights, strict=True):
            fill(place, factors, part)
        return
    step = max(1, QUANTISED_AT_ONCE // weights.shape[-1])
    for first in range(0, weights.shape[0], step):
        some = weights[first : first + step].to(values.device)
        if values.dtype == STORED_AS["int4"]:
            groups = quantise_groups(some, GROUP)
            values[first : first + step].copy_(groups.packed)
            scale[first : first + step].copy_(groups.scale)
            continue
        rows = quantise_rows(some, values.dtype)
        values[first : first + step].copy_(rows.values)
        scale[first : first + step].copy_(rows.scale.squeeze(-1))


def room_for(mode: Mode, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Values and scales for weights [..., N, K], unwritten: [..., N, K] and [..., N] float32; in int4 as `quantise_groups` packs them."""
    *outer, inputs = shape
    if mode != "int4":
        return torch.empty(*shape, dtype=STORED_AS[mode]), torch.empty(*outer, dtype=torch.float32)
    size, groups = packed_size(inputs, GROUP)
    return torch.empty(*outer, size, dtype=STORED_AS[mode]), torch.empty(*outer, groups, dtype=torch.bfloat16)


class QuantLinear(nn.Module):
    """A linear layer in one of the modes; takes and gives the type of its activations.

    Every mode computes `(x_q @ values.T) * x_scale * scale + bias`, where the activations x are quantised per token, so that a token's
    result does not depend on the tokens beside it; int8 and int4 leave x as it is. In int4 each group of inputs has its scale.

    Errors against the same layer in float, per output: int8 at most scale / 2 times the sum of |x|; the other eight-bit modes add the
    rounding of x times the sum of |values * scale|. int4: the sum over groups of the size of x there times that of the weights' errors. See
    `quantise_rows` and `quantise_groups` for the roundings.

    int8-dynamic gives the same bits whatever the batch. The others differ as float products of other shapes do, within 1e-4.
    """

    def __init__(self, mode: Mode, inputs: int, outputs: int, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.mode: Mode = mode
        self.bias = bias
        self.values: Tensor
        self.scale: Tensor
        values, scale = room_for(mode, (outputs, inputs))
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        tokens = x.reshape(-1, x.shape[-1])
        out = product(self.mode, tokens, self.values, self.scale).view(*x.shape[:-1], -1).to(x.dtype)
        return out if self.bias is None else out + self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        _move(self, ("values", "scale"), fn)
        return self


class QuantExperts(nn.Module):
    """`Experts` with weights in eight or four bits. In every mode the activations stay as they are: experts are chosen per token, so few tokens
    meet in one product, and its time is that of reading the weights."""

    def __init__(self, mode: Mode, experts: Experts) -> None:
        super().__init__()
        self.activation = experts.activation
        gate_up, gate_up_scale = room_for(mode, experts.gate_up_proj.shape)
        down, down_scale = room_for(mode, experts.down_proj.shape)
        self.gate_up_proj: Tensor
        self.gate_up_scale: Tensor
        self.down_proj: Tensor
        self.down_scale: Tensor
        self.register_buffer("gate_up_proj", gate_up)
        self.register_buffer("gate_up_scale", gate_up_scale)
        self.register_buffer("down_proj", down)
        self.register_buffer("down_scale", down_scale)

    def forward(self, x: Tensor, choice: Choice) -> Tensor:
        """Weighted sum of the chosen experts, [N, E] to [N, E]."""
        weights = ExpertWeights(self.gate_up_proj, self.down_proj, self.gate_up_scale, self.down_scale)
        return mix_experts(x.contiguous(), choice, weights, self.activation)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantExperts:
        _move(self, ("gate_up_proj", "gate_up_scale", "down_proj", "down_scale"), fn)
        return self


def product(mode: Mode, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """`x @ weights.T`, x [M, K] to [M, N], whose weights are `values` and `scale`: the one place where a mode and a device choose their kernel.

    PyTorch's own int8 products on the CPU are no choice: `_int_mm` and float32 `_weight_int8pack_mm` run plain loops there (15 to
    30 times slower than float32 on AVX2), and oneDNN's quantised linear saturates where the CPU has no VNNI (off by up to 18 % of the
    largest output).
    """
    if mode in ("int8", "int4"):
        if x.device.type != "cpu" and len(x) <= SKINNY_ROWS and x.dtype in KERNEL_DTYPES:
            # Elsewhere the weights become floats in memory first, which are written and read once more: five bytes for each of one.
            return skinny_linear(x.contiguous(), values, scale=scale)
        # Eight bits are exact in every float type. On the CPU half precision is slower than float32 where there is no unit for it.
        wide = x.to(torch.promote_types(x.dtype, torch.float32)) if x.device.type == "cpu" else x
        if mode == "int4":
            return _by_groups(wide, values, scale)
        return _in_pieces(wide, values, x.shape[-1]) * scale
    rows = quantise_rows(x, values.dtype)
    if mode == "int8-dynamic":
        return _in_pieces(rows.values.float(), values, EXACT_INPUTS) * rows.scale * scale
    if has_scaled_product(x.device, values.shape):
        return torch._scaled_mm(
            rows.values, values.t(), scale_a=rows.scale, scale_b=scale.unsqueeze(0), out_dtype=torch.bfloat16
        )
    if x.device.type != "cpu" and len(x) <= SKINNY_ROWS and x.dtype in KERNEL_DTYPES:
        return skinny_linear(rows.values, values, scale=scale, x_scale=rows.scale, dtype=x.dtype)
    return _in_pieces(rows.values.float(), values, x.shape[-1]) * rows.scale * scale


def _by_groups(x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """`x @ weights.T` in x's type, of weights in four bits; on the CPU some rows at a time."""
    inputs = x.shape[-1]
    step = max(1, PIECE // inputs) if x.device.type == "cpu" else len(values)
    parts = [
        F.linear(x, unpack_groups(values[first : first + step], scale[first : first + step], inputs).to(x.dtype))
        for first in range(0, len(values), step)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _in_pieces(x: Tensor, values: Tensor, inputs: int) -> Tensor:
    """`x @ values.T` in x's type, some rows of `values` and at most `inputs` inputs at a time, pieces added in order."""
    size = values.shape[-1]
    step = max(1, PIECE // size) if x.device.type == "cpu" else values.shape[0]
    parts = []
    for first in range(0, values.shape[0], step):
        rows = values[first : first + step].to(x.dtype)
        part = F.linear(x[:, :inputs], rows[:, :inputs])
        for start in range(inputs, size, inputs):
            part = part + F.linear(x[:, start : start + inputs], rows[:, start : start + inputs])
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


@lru_cache(maxsize=64)
def has_scaled_product(device: torch.device, shape: Sequence[int]) -> bool:
    """Whether the device multiplies e4m3 with a scale per row (compute capability 8.9), and takes this [N, K]: multiples of 16."""
    return (
        device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9) and not any(n % 16 for n in shape)
    )


def _move(module: nn.Module, names: Sequence[str], fn: Callable[[Tensor], Tensor]) -> None:
    """`_apply` that moves the named buffers and leaves their types alone: `to(dtype)` is for what is stored in floats."""
    kept = {name: getattr(module, name) for name in names}
    nn.Module._apply(module, fn)  # type: ignore[no-untyped-call]
    for name, before in kept.items():
        after = getattr(module, name)
        if after.dtype != before.dtype:
            moved = torch.empty_like(before, device=after.device) if before.is_meta else before.to(after.device)
            setattr(module, name, moved)

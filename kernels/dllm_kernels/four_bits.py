"""Weights in four bits, a scale for every group of inputs.

How they lie: of a group of H + H inputs, byte j holds input j in its lower four bits and input H + j in its upper four, each plus 8, so
that a tile of bytes is two tiles of neighbouring inputs. A row's last group is filled up with zeros.

Dimensions: N outputs, K inputs, C groups of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.checks import check_floating

GROUPS = (32, 64, 128)
"""Sizes of a group that kernels know."""
SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8)
"""How much of a group's largest weight its scale reaches to. Trying five leaves 9.2 % of the shipped model's weights' size as error at groups
of 64, where rounding to -7 ... 7 leaves 10.9 %."""


class Groups(NamedTuple):
    """Weights in four bits: `values * scale`, values from -8 to 7."""

    packed: Tensor
    """[..., N, C * group / 2] uint8."""
    scale: Tensor
    """[..., N, C] bfloat16, of either sign."""


def packed_size(inputs: int, group: int) -> tuple[int, int]:
    """Bytes and groups of a row."""
    groups = -(-inputs // group)
    return groups * group // 2, groups


def quantise_groups(weights: Tensor, group: int = 64) -> Groups:
    """Round weights to four bits, by the scale of a few that leaves the least squared error in its group.

    A group's errors have a root mean square of at most 1 / 14 of its largest weight (as half steps of -7 ... 7 would), and a 256th of that more
    for the scale's own rounding. A group's result depends on that group alone.

    Args:
        weights: [..., N, K], floating point; taken as float32.

    Raises:
        ValueError: If there are no inputs or the group is none of `GROUPS`.
    """
    check_floating("weights", weights)
    if weights.dim() < 1 or weights.shape[-1] == 0:
        raise ValueError(f"weights: expected [..., K] with K above 0, got {list(weights.shape)}")
    if group not in GROUPS:
        raise ValueError(f"group: expected one of {', '.join(map(str, GROUPS))}, got {group}")
    padded = F.pad(weights.float(), (0, -weights.shape[-1] % group))
    grouped = padded.view(*weights.shape[:-1], -1, group)
    largest = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
    best_error = torch.full_like(largest, torch.inf)
    values, scale = torch.zeros_like(grouped), torch.zeros_like(largest)
    # The largest becomes -8, whichever sign it has; or 7, which is what the bound stands on.
    for candidate in (largest / 7, *(largest / -8 * share for share in SHRUNK)):
        rounded_scale = candidate.bfloat16().float()
        rounded = (grouped / rounded_scale.masked_fill(rounded_scale == 0, 1.0)).round_().clamp_(-8, 7)
        error = (rounded * rounded_scale - grouped).square_().sum(-1, keepdim=True)
        is_better = error < best_error
        best_error = torch.where(is_better, error, best_error)
        values = torch.where(is_better, rounded, values)
        scale = torch.where(is_better, rounded_scale, scale)
    low, high = (values + 8).to(torch.uint8).chunk(2, dim=-1)
    return Groups((low | high << 4).flatten(-2), scale.squeeze(-1).bfloat16())


def unpack_groups(packed: Tensor, scale: Tensor, inputs: int) -> Tensor:
    """[..., N, K] float32."""
    bytes_of = packed.reshape(*scale.shape, -1)
    values = torch.cat((bytes_of & 15, bytes_of >> 4), dim=-1).float().sub_(8.0)
    return values.mul_(scale.float().unsqueeze(-1)).flatten(-2)[..., :inputs]


def check_packed(name: str, packed: Tensor, scale: Tensor | None, shape: tuple[int, ...]) -> int:
    """The size of a group of weights [..., N, K].

    Raises:
        ValueError: If they are not packed as this module does it.
    """
    *outer, inputs = shape
    for group in GROUPS:
        size, count = packed_size(inputs, group)
        if scale is None or packed.shape != (*outer, size) or scale.shape != (*outer, count):
            continue
        if packed.is_contiguous() and scale.is_contiguous() and scale.dtype == torch.bfloat16:
            return group
    raise ValueError(
        f"{name}: expected uint8 and bfloat16 scales as `quantise_groups` packs {list(shape)}, contiguous, got {list(packed.shape)} and "
        f"{'none' if scale is None else [*scale.shape, scale.dtype]}"
    )

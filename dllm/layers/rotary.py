"""Rotary positions in the rotate-half layout, whole or partial, plain or YaRN.

Dimensions: B rows, T tokens, D head size, R rotated dimensions of a head (its first), P positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.spec import RopeSpec
from dllm_kernels.rotary import reference


class Turn(NamedTuple):
    """How far each token's heads are turned: cosines, and sines whose first half is negated, each [B, 1, T, R]."""

    cos: Tensor
    signed_sin: Tensor


def rotated_dims(rope: RopeSpec, head_dim: int) -> int:
    return int(head_dim * rope.partial)


def frequencies(rope: RopeSpec, head_dim: int) -> tuple[Tensor, float]:
    """Radians per position of each rotated pair, [R / 2] float64, and what cosines and sines are multiplied by.

    With YaRN, pairs that turn fewer than `yarn_beta_slow` times over the original context are slowed down by the factor, those that
    turn more than `yarn_beta_fast` times stay, those between are mixed linearly (arXiv:2309.00071, sections 3.2 and 3.4).
    """
    size = rotated_dims(rope, head_dim)
    plain = rope.theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    if rope.yarn_factor <= 1.0:
        return plain, 1.0

    def pair_that_turns(times: float) -> float:
        return size * math.log(rope.yarn_original / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = max(math.floor(pair_that_turns(rope.yarn_beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(rope.yarn_beta_slow)), size - 1)
    # A range of no width would divide by zero; the published code widens it by this much.
    width = max(high - low, 0.001)
    slowed = ((torch.arange(size // 2, dtype=torch.float64) - low) / width).clamp(0, 1)
    mixed = plain / rope.yarn_factor * slowed + plain * (1 - slowed)
    return mixed, _attention_factor(rope)


def _attention_factor(rope: RopeSpec) -> float:
    def growth(scale: float) -> float:
        return 0.1 * scale * math.log(rope.yarn_factor) + 1.0

    if rope.yarn_mscale and rope.yarn_mscale_all_dim:
        return growth(rope.yarn_mscale) / growth(rope.yarn_mscale_all_dim)
    return growth(1.0)


def rotary_table(rope: RopeSpec, head_dim: int, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 to P - 1, each [P, R / 2] float32. Angles are float64: at position 16,000 a float32 angle is off
    by a thousandth."""
    per_position, factor = frequencies(rope, head_dim)
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), per_position)
    return (angles.cos() * factor).float(), (angles.sin() * factor).float()


class RotaryTable(nn.Module):
    """The table of a model's positions, which no checkpoint holds.

    `to(dtype)` is for weights and leaves it in float32: in bfloat16, positions beyond 256 would not be told apart.
    """

    def __init__(self, rope: RopeSpec, head_dim: int, positions: int) -> None:
        super().__init__()
        self._shape = rope, head_dim, positions
        self.cos: Tensor
        self.sin: Tensor
        cos, sin = rotary_table(*self._shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def reset(self) -> None:
        """Compute it anew where it lies: a network that was built without memory has none yet."""
        device = self.cos.device
        cos, sin = rotary_table(*self._shape)
        self.cos, self.sin = cos.to(device), sin.to(device)

    def at(self, positions: Tensor, dtype: torch.dtype) -> Turn:
        """See `turn_at`."""
        return turn_at(self.cos, self.sin, positions, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryTable:
        cos, sin = self.cos, self.sin
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.cos.dtype != cos.dtype:
            device = self.cos.device
            self.cos, self.sin = cos.to(device), sin.to(device)
        return self


def turn_at(cos: Tensor, sin: Tensor, positions: Tensor, dtype: torch.dtype) -> Turn:
    """Rows of the tables for `positions`, [B, T] int64, once per forward. Never below float32, which half-precision heads are turned in."""
    wide = torch.promote_types(dtype, torch.float32)
    cos, sin = cos[positions].to(wide), sin[positions].to(wide)
    return Turn(torch.cat((cos, cos), dim=-1).unsqueeze(1), torch.cat((-sin, sin), dim=-1).unsqueeze(1))


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """Turn the first R dimensions of heads [B, heads, T, D]; the dtype stays."""
    return reference.rotate(x, turn.cos, turn.signed_sin)


def query_scale(rope: RopeSpec, positions: Tensor) -> Tensor:
    """Llama 4's temperature on queries far from the start, [B, 1, T, 1] float32."""
    scale = 1 + rope.query_scale_beta * torch.log(1 + torch.floor(positions / rope.yarn_original))
    return scale[:, None, :, None]

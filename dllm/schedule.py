"""How many tokens by which step."""

from __future__ import annotations

import math

from torch import Tensor


def deadline_floor(masks_left: int, steps_left: int) -> int:
    """Fewest tokens this step must commit so that equal steps finish in exactly the steps left: ceil(masks / steps).

    With no step left everything is due at once.
    """
    return masks_left if steps_left <= 1 else math.ceil(masks_left / steps_left)


def deadline_floors(masks_left: Tensor, steps_left: Tensor) -> Tensor:
    """`deadline_floor` of many drafts at once: int64 tensors that broadcast against each other, on one device."""
    steps = steps_left.clamp_min(1)
    return (masks_left + steps - 1).div(steps, rounding_mode="floor")

"""How many tokens by which step."""

from __future__ import annotations

import math


def deadline_floor(masks_left: int, steps_left: int) -> int:
    """Fewest tokens this step must commit so that equal steps finish in exactly the steps left: ceil(masks / steps).

    With no step left everything is due at once.
    """
    return masks_left if steps_left <= 1 else math.ceil(masks_left / steps_left)

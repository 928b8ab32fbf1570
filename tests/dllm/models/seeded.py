"""Weights that a seed and a name determine, on any machine and with any library that has numpy: recordings need not hold them."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray


def seeded(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Matrices of variance one over their inputs (embeddings: one), norms around one, biases around zero.

    `RandomState`, since numpy promises that its stream never changes.
    """
    noise = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode())).standard_normal(shape)
    if len(shape) > 1:
        is_table = "embed" in name or "wte" in name
        return (noise if is_table else noise / shape[-1] ** 0.5).astype(np.float32)
    return (0.3 * noise + (0.0 if name.endswith("bias") else 1.0)).astype(np.float32)

"""Counter-based random numbers in plain PyTorch: the same words as Triton's generator, on any device.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011); Philox-4x32 with 10 rounds. A word depends only on key
and counter, so rows may be computed in any order, on any device, and alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
_MULTIPLIER_0, _MULTIPLIER_2 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four 32-bit words per counter.

    Args:
        counter: Four int64 tensors of values in [0, 2^32) that broadcast against each other.
        key: Two of the same kind.

    Returns:
        Four int64 tensors of values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The products need 64 bits and int64 wraps on overflow, which leaves the bits right; the mask drops the sign's copies.
        product_0, product_2 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_2
        c0, c1, c2, c3 = (
            ((product_2 >> 32) & _LOW) ^ c1 ^ k0,
            product_2 & _LOW,
            ((product_0 >> 32) & _LOW) ^ c3 ^ k1,
            product_0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


def gumbel_noise(seed: int | Tensor, rows: int, columns: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise, [rows, columns], float32.

    Column c of row r takes word c mod 4 of counter (c // 4, r, 0, 0) under the key `seed`; with a tensor of seeds [rows], r is 0.

    A float32 uniform cannot come closer to 1 than 2^-24, which would cut the upper tail at 17 and lower the effective temperature
    (arXiv:2409.02908). So each 32-bit word is read as a distance from its nearer end of (0, 1): both tails keep float32's full
    relative precision, and the noise lies within -3.2 and 22.9.
    """
    group = torch.arange((columns + 3) // 4, device=device)[None, :]
    if isinstance(seed, Tensor):
        row, key = torch.zeros(1, 1, dtype=torch.int64, device=device), seed[:, None]
    else:
        row = torch.arange(rows, device=device)[:, None]
        key = torch.tensor(seed, device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    words = philox_4x32((group, row, zero, zero), (key & _LOW, (key >> 32) & _LOW))
    word = torch.stack(torch.broadcast_tensors(*words), dim=-1).reshape(rows, -1)[:, :columns]
    is_low = word < 2**31
    distance = torch.where(is_low, word, _LOW - word).float().add_(0.5).mul_(2.0**-32)
    exponential = -torch.where(is_low, torch.log1p(-distance), torch.log(distance))
    return -torch.log(exponential)

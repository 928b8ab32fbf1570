"""Counter-based random numbers in plain PyTorch: the same words as Triton's generator, on any device.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011); Philox-4x32 with 10 rounds. A word depends only on key
and counter, so rows may be computed in any order, on any device, and alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
CHUNK = 2**15
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
    # Own, whole copies: the rounds then work in place, which halves their time on CPU.
    k0, k1 = key
    shape = torch.broadcast_shapes(*(word.shape for word in (*counter, *key)))  # type: ignore[no-untyped-call]
    c0, c1, c2, c3 = (word.expand(shape).clone() for word in counter)
    for _ in range(ROUNDS):
        # The products need 64 bits and int64 wraps on overflow, which leaves the bits right; the mask drops the sign's copies.
        product_0, product_2 = c0.mul_(_MULTIPLIER_0), c2.mul_(_MULTIPLIER_2)
        c0 = (product_2 >> 32).bitwise_and_(_LOW).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = (product_0 >> 32).bitwise_and_(_LOW).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = product_2.bitwise_and_(_LOW), product_0.bitwise_and_(_LOW)
        k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


def gumbel_noise(seed: int | Tensor, rows: int, columns: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise, [rows, columns], float32.

    Column c of row r takes word c mod 4 of counter (c // 4, r, 0, 0) under the key `seed`; with a tensor of seeds [rows], r is 0.

    A float32 uniform cannot come closer to 1 than 2^-24, which would cut the upper tail at 17 and lower the effective temperature
    (arXiv:2409.02908). So each 32-bit word is read as a distance from its nearer end of (0, 1): both tails keep float32's full
    relative precision, and the noise lies within -3.2 and 22.9.
    """
    seeds = seed[:, None] if isinstance(seed, Tensor) else torch.full((rows, 1), seed, device=device)
    counters = torch.arange(rows, device=device)[:, None] * (0 if isinstance(seed, Tensor) else 1)
    noise = torch.empty(rows, columns, device=device)
    # Temporaries of 128 KiB stay in a core's cache.
    step = max(CHUNK // columns, 1) if device.type == "cpu" else max(rows, 1)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        noise[part] = _gumbel(_words(counters[part], seeds[part], columns))
    return noise


def _words(row: Tensor, seed: Tensor, columns: int) -> Tensor:
    """[R, columns], int32: word c mod 4 of counter (c // 4, row, 0, 0) in column c. `row` and `seed` are [R, 1]."""
    group = torch.arange((columns + 3) // 4, device=row.device)[None, :]
    zero = torch.zeros((), dtype=torch.int64, device=row.device)
    words = torch.empty(len(row), group.shape[1], 4, dtype=torch.int32, device=row.device)
    quarters = philox_4x32((group, row, zero, zero), (seed & _LOW, (seed >> 32) & _LOW))
    for index, quarter in enumerate(quarters):
        words[:, :, index] = quarter
    return words.view(len(row), -1)[:, :columns]


def _gumbel(word: Tensor) -> Tensor:
    """-log(-log u) for the uniform that each 32-bit word names."""
    # As signed 32-bit: negative is the upper half, and flipping its bits counts from the other end.
    is_low = word >= 0
    distance = word.bitwise_xor(word >> 31).float().add_(0.5).mul_(2.0**-32)
    # The uniform is d or 1 - d. One log serves both: in log(1 - d), scaled by -d / ((1 - d) - 1), the rounding of 1 - d cancels
    # (Kahan's log1p), and where 1 - d rounds to 1 the logarithm is -d.
    uniform = torch.where(is_low, 1.0 - distance, distance)
    log_uniform = uniform.log()
    off_by = uniform.sub_(1.0)
    kahan = torch.where(off_by == 0.0, -distance, log_uniform * (-distance / off_by))
    return torch.where(is_low, kahan, log_uniform).neg_().log_().neg_()

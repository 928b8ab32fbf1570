"""Root mean square normalisation, alone and behind a residual sum.

Dimensions: E hidden size.
"""

from __future__ import annotations

from torch import Tensor

from dllm_kernels.checks import check_floating, check_tensor
from dllm_kernels.choose import choose


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide each row by its root mean square, then scale.

    In half precision the division is done in float32 and rounded before the weight multiplies, as the families of this project were
    trained (LLaDA, Qwen, Ministral).

    Args:
        x: [..., E], floating point.
        weight: [E], contiguous.
        eps: Added to the mean of squares.

    Returns:
        [..., E], contiguous, in the dtype that x and weight promote to.

    Raises:
        ValueError: If a shape or device is not as above.

    Source: arXiv:1910.07467.
    """
    _check(x, weight)
    out: Tensor = choose("rms_norm", x, weight).rms_norm(x, weight, eps)
    return out


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual stream takes up what a layer adds, and is normalised for the next one: one read and one write of it instead of two.

    Args:
        x: [..., E], the stream. Not changed.
        delta: [..., E], floating point.

    Returns:
        `x + delta`, rounded to the dtype that they promote to, and `rms_norm` of that.

    Raises:
        ValueError: As `rms_norm`, and if x and delta differ in shape or device.
    """
    _check(x, weight)
    check_floating("delta", delta)
    if delta.shape != x.shape or delta.device != x.device:
        raise ValueError(f"delta: expected {list(x.shape)} on {x.device}, got {list(delta.shape)} on {delta.device}")
    both: tuple[Tensor, Tensor] = choose("rms_norm", x, delta, weight).add_rms_norm(x, delta, weight, eps)
    return both


def _check(x: Tensor, weight: Tensor) -> None:
    check_floating("x", x)
    if x.dim() < 1 or x.shape[-1] == 0:
        raise ValueError(f"x: expected [..., E] with E above 0, got {list(x.shape)}")
    check_tensor("weight", weight, x.shape[-1:], None, x.device)

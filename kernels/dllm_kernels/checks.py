"""Arguments are checked by shape, dtype and device alone: nothing waits for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_tensor(
    name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype | None, device: torch.device
) -> None:
    """Raise `ValueError` unless `tensor` is contiguous and as described; any dtype will do where it is None."""
    is_right = tensor.shape == tuple(shape) and tensor.device == device and (dtype is None or tensor.dtype == dtype)
    if not is_right or not tensor.is_contiguous():
        wanted = f"contiguous {list(shape)} {dtype or 'of any dtype'} on {device}"
        raise ValueError(
            f"{name}: expected {wanted}, got {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
            + ("" if tensor.is_contiguous() else ", not contiguous")
        )


def check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: expected floating point numbers, got {tensor.dtype}")

"""Host values on their way to the device, without the host waiting for it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


def staged(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of (nested sequences of) host values on `device`, in the order of its other work.

    On a GPU through pinned memory: `torch.tensor(values, device="cuda")` copies from pageable memory, and for that the host waits until
    everything queued before is done, the forward included.
    """
    kind = device.type if isinstance(device, torch.device) else torch.device(device).type
    if kind == "cpu":
        return torch.tensor(values, dtype=dtype)
    if kind != "cuda":
        return torch.tensor(values, dtype=dtype).to(device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def counting(count: int, device: torch.device) -> Tensor:
    """[count] int64: 0, 1, 2, ... Never changed in place: on the CPU it is shared by all who ask. Half a dozen a step, each as dear there as
    three small operations. On a GPU it is made anew, since a graph that is being recorded keeps what is made then."""
    return _counting_on_cpu(count) if device.type == "cpu" else torch.arange(count, device=device)


@functools.lru_cache(maxsize=256)
def _counting_on_cpu(count: int) -> Tensor:
    # Not one of inference mode, whichever mode asks first: those cannot be used where gradients are kept.
    with torch.inference_mode(False):
        return torch.arange(count)

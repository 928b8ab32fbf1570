"""Host values on their way to the device, without the host waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def staged(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of (nested sequences of) host values on `device`, in the order of its other work.

    On a GPU through pinned memory: `torch.tensor(values, device="cuda")` copies from pageable memory, and for that the host waits until
    everything queued before is done, the forward included.
    """
    if torch.device(device).type != "cuda":
        return torch.tensor(values, dtype=dtype).to(device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)

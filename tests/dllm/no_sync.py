"""A guard for code that runs between two forwards: whatever would make the host wait for the device, or need it, raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "nonzero_numpy",
    "argwhere",
    "masked_select",
    "unique_dim",
    "_unique",
    "_unique2",
    "unique_consecutive",
    "unique_dim_consecutive",
    "bincount",
}
"""Operators whose result, or its shape, the host must learn from the device."""
_READING = {"tolist", "allclose", "numpy", "cpu", "item", "__array__", "__bool__", "__int__", "__float__", "__index__"}
"""Methods that read a tensor on the host; on CPU some of them call no operator at all."""


class HostSyncError(AssertionError):
    def __init__(self, name: str) -> None:
        super().__init__(f"{name} makes the host wait for the device")


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in _WAITING:
            raise HostSyncError(name)
        if (
            name.strip("_").startswith(("index", "_unsafe_index"))
            and len(args) > 1
            and isinstance(args[1], list | tuple)
        ):
            indices = [index for index in args[1] if isinstance(index, Tensor)]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                raise HostSyncError(f"{name} by a mask")
        if name == "repeat_interleave" and func._overloadname == "Tensor" and not (kwargs or {}).get("output_size"):
            raise HostSyncError("repeat_interleave without output_size")
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READING and args and isinstance(args[0], Tensor):
            raise HostSyncError(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Raise `HostSyncError` for anything inside that waits for the device or makes a shape out of data."""
    with _Operators(), _Methods():
        yield

"""Which implementation runs. The one place that decides: Triton on a GPU it supports, C on a CPU where somebody had it compiled
(`dllm_kernels.native`) and the op is written in it, the PyTorch reference everywhere else.

Triton's kernels have no backward pass and know three float types, so gradients and float64 go to the reference on any device. Counts that change
from step to step (tokens, slots, parts) are not specialised in them: a conversation must not wait for a compiler because it has grown to a
multiple of 16.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from dllm_kernels import native

Kind: TypeAlias = Literal["auto", "reference", "triton"]

OLDEST_CAPABILITY = (8, 0)
"""Compute capability from which bfloat16 products run in hardware."""
OLDEST_WITH_E4M3 = (8, 9)
"""Compute capability from which e4m3 is converted and multiplied in hardware; Triton knows it nowhere else."""
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NATIVE_OPS = frozenset({"commit_from_logits", "select", "stutters"})
"""Ops with an implementation in C."""
TRITONLESS_OPS = frozenset({"stutters"})
"""Ops that are no Triton kernel: on a GPU they are small beside what waits for the device."""

_LOG = logging.getLogger(__name__)
_forced: Kind = "auto"


def use(kind: Kind) -> None:
    """Force one implementation from now on, for comparisons; "auto" lets the device decide again.

    With "triton" and no GPU, kernels run where Triton's interpreter is on (TRITON_INTERPRET=1) and fail elsewhere. What Triton cannot do
    (gradients, float64) stays with the reference.
    """
    global _forced
    _forced = kind


def choose(op: str, *tensors: Tensor | None) -> Any:
    """The module that implements an op of this package (its folder's name) for these inputs, the first of which says the device."""
    first = tensors[0]
    assert first is not None
    if op in TRITONLESS_OPS or not runs_kernels(*tensors):
        is_native = op in NATIVE_OPS and first.device.type == "cpu" and runs_native() and not _needs_reference(tensors)
        return _module(op, "native" if is_native else "reference")
    if first.is_cuda and first.device.index != torch.cuda.current_device():
        # Triton launches on the current device, wherever the tensors are.
        torch.cuda.set_device(first.device)
    return _module(op, "triton")


def runs_native() -> bool:
    """Whether what was compiled for this CPU is used: wherever somebody had it compiled, whatever threads PyTorch has in this one."""
    return _forced == "auto" and native.library() is not None


def runs_kernels(*tensors: Tensor | None) -> bool:
    """Whether ops run in Triton for these inputs, for callers that arrange their work otherwise where they do."""
    first = tensors[0]
    assert first is not None
    kind = _kind_on(first.device) if _forced == "auto" else _forced
    return kind == "triton" and not _needs_reference(tensors)


def _needs_reference(tensors: tuple[Tensor | None, ...]) -> bool:
    present = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.is_floating_point() and not _has_kernels(tensor) for tensor in present):
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in present)


def _has_kernels(tensor: Tensor) -> bool:
    return tensor.dtype in KERNEL_DTYPES or (tensor.dtype == torch.float8_e4m3fn and _knows_e4m3(tensor.device))


@functools.cache
def _knows_e4m3(device: torch.device) -> bool:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= OLDEST_WITH_E4M3:
        return True
    _LOG.warning(
        "kernels with e4m3 numbers run as plain PyTorch: %s has capability %d.%d, they need %d.%d",
        torch.cuda.get_device_name(device),
        *torch.cuda.get_device_capability(device),
        *OLDEST_WITH_E4M3,
    )
    return False


@functools.cache
def _kind_on(device: torch.device) -> Kind:
    if device.type != "cuda":
        return "reference"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        _LOG.warning(
            "kernels run as plain PyTorch: %s has capability %d.%d, Triton's kernels need %d.%d",
            torch.cuda.get_device_name(device),
            *capability,
            *OLDEST_CAPABILITY,
        )
        return "reference"
    if importlib.util.find_spec("triton") is None:
        _LOG.warning("kernels run as plain PyTorch on %s: triton is not installed", device)
        return "reference"
    return "triton"


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU: how many programs should at least run. A few where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@functools.cache
def _module(op: str, name: str) -> Any:
    return importlib.import_module(f"dllm_kernels.{op}.{name}")

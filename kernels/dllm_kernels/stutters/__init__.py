"""Words that would stand twice in a row, and spans of three that would stand three times: what a small model says by mistake.

A repeated span is three pairs of equal tokens, three apart. What is decided is known; ends of the reply are no text.

Dimensions: B drafts, W canvas positions, n rows of logits, V vocabulary, E tokens that end a reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels.choose import choose
from dllm_kernels.stutters.reference import last_new as last_new


class Classes(NamedTuple):
    """Of tokens."""

    is_end: Tensor
    """[V] bool."""
    is_single: Tensor
    """[V] bool: words and marks that may not stand twice in a row."""
    ends: Tensor
    """[E] int64, at least one: those of `is_end`."""


def ban(
    logits: Tensor, canvas: Tensor, cell: Tensor, tokens: Tensor, decided: Tensor, strict: Tensor, classes: Classes
) -> None:
    """Make impossible (-inf) what would complete a stutter among the decided tokens around each row, and the reply's end where a stutter was
    likelier than it. Strides are free.

    Args:
        logits: [n, V] float32, changed in place.
        canvas: [n] int64, which draft each row is of.
        cell: [n] int64, canvas * W + the row's position.
        tokens, decided: [B, W] int64 and bool. Tokens are in [0, V) where decided.
        strict: [B] bool: drafts for which this is done.

    Raises:
        ValueError: If a shape, dtype or device is not as above.
    """
    rows, device = len(canvas), logits.device
    _check_one("logits", logits, (rows, len(classes.is_end)), torch.float32, device)
    _check_one("canvas", canvas, (rows,), torch.int64, device)
    _check_one("cell", cell, (rows,), torch.int64, device)
    _check(tokens, {"decided": decided}, strict, classes, device)
    choose("stutters", logits).ban(logits, canvas, cell, tokens, decided, strict, classes)


def joint(tokens: Tensor, decided: Tensor, chosen: Tensor, strict: Tensor, classes: Classes) -> Tensor:
    """[B, W] bool: which of a step's new tokens must wait, since together they would make a stutter: of each the rightmost new one, and never
    the leftmost of all.

    Args:
        tokens: [B, W] int64, with the new tokens in place. In [0, V) where decided or chosen.
        decided, chosen: [B, W] bool, before the step and by it.
        strict: [B] bool: drafts for which this is done.

    Raises:
        ValueError: If a shape, dtype or device is not as above.
    """
    _check(tokens, {"decided": decided, "chosen": chosen}, strict, classes, tokens.device)
    found: Tensor = choose("stutters", tokens).joint(tokens, decided, chosen, strict, classes)
    return found


def _check(tokens: Tensor, flags: dict[str, Tensor], strict: Tensor, classes: Classes, device: torch.device) -> None:
    if tokens.dim() != 2:
        raise ValueError(f"tokens: expected [B, W], got {list(tokens.shape)}")
    _check_one("tokens", tokens, tokens.shape, torch.int64, device)
    for name, tensor in flags.items():
        _check_one(name, tensor, tokens.shape, torch.bool, device)
    _check_one("strict", strict, tokens.shape[:1], torch.bool, device)
    _check_one("is_end", classes.is_end, classes.is_end.shape, torch.bool, device)
    _check_one("is_single", classes.is_single, classes.is_end.shape, torch.bool, device)
    _check_one("ends", classes.ends, (max(len(classes.ends), 1),), torch.int64, device)


def _check_one(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    if tensor.shape != tuple(shape) or tensor.dtype != dtype or tensor.device != device:
        got = f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"
        raise ValueError(f"{name}: expected {list(shape)} {dtype} on {device}, got {got}")

"""What stands between a layer's q, k, v product and its attention: norms of heads, rotary positions, and the write into the cache.

Dimensions: B rows, T new tokens, S slots, H query heads, G key/value heads, D head size, R rotated dimensions of a head (its first).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels.checks import check_floating, check_tensor
from dllm_kernels.choose import choose


class HeadNorms(NamedTuple):
    """RMSNorm over each head of the queries and of the keys, as `dllm_kernels.rms_norm`; weights [D] in the heads' dtype."""

    q_weight: Tensor
    k_weight: Tensor
    eps: float


class Target(NamedTuple):
    """Where rotated keys and values go. `first` is a slot for the first token of all rows; or `columns` names a slot per token."""

    keys: Tensor
    """[B, G, S, D] in the heads' dtype, or float8_e4m3fn with scales; changed in place. Heads' numbers contiguous, other strides free."""
    values: Tensor
    first: int = 0
    columns: Tensor | None = None
    """[B, T] int64, each in [0, S); slots of one row differ from each other."""
    key_scale: Tensor | None = None
    """[B, G, S] float32, changed in place: what a slot's numbers are multiplied by, as `dllm_kernels.quantise_rows` chooses it for the head of
    that one token. Strides free."""
    value_scale: Tensor | None = None


def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    signed_sin: Tensor,
    heads: tuple[int, int],
    norms: HeadNorms | None = None,
    q_scale: Tensor | None = None,
    target: Target | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise heads, turn queries and keys, and put keys and values where attention reads them.

    Heads in half precision are turned in float32 and rounded once. The rotate-half layout: dimension d below R / 2 turns with d + R / 2.
    A target in e4m3 gets what `quantise_rows` makes of these heads, one scale for each head of each token: a token's bytes then depend on that token
    alone, so it can be appended to others, copied and shared, and is the same however a text was cut up.

    Args:
        qkv: [B, T, H + 2G, D], contiguous: queries, keys, values.
        cos: [B or 1, 1, T, R], R even and at most D; contiguous, at least float32.
        signed_sin: The same, its first R / 2 columns negated.
        heads: H and G.
        q_scale: [B or 1, 1, T, 1], contiguous, rounded to the heads' dtype; multiplies the turned queries.

    Returns:
        q [B, H, T, D], then the target's keys and values, or without a target new ones [B, G, T, D]. Only q is sure to be
        new memory.

    Raises:
        ValueError: If a shape, dtype or device is not as above, or the first slot leaves no room.

    Source: rotary positions, arXiv:2104.09864; norms of heads as in Qwen3 (arXiv:2505.09388).
    """
    _check(qkv, cos, signed_sin, heads, norms, q_scale)
    if target is not None:
        _check_target(qkv, heads[1], target)
    weight = None if norms is None else norms.q_weight
    implementation = choose("rotary", qkv, cos, signed_sin, weight, None if target is None else target.keys)
    out: tuple[Tensor, Tensor, Tensor] = implementation.rotate_and_store(
        qkv, cos, signed_sin, heads, norms, q_scale, target
    )
    return out


def _check(
    qkv: Tensor,
    cos: Tensor,
    signed_sin: Tensor,
    heads: tuple[int, int],
    norms: HeadNorms | None,
    q_scale: Tensor | None,
) -> None:
    check_floating("qkv", qkv)
    queries, groups = heads
    if qkv.dim() != 4 or qkv.shape[2] != queries + 2 * groups or not qkv.is_contiguous():
        raise ValueError(f"qkv: expected contiguous [B, T, {queries} + 2 * {groups}, D], got {list(qkv.shape)}")
    rows, length, _, size = qkv.shape
    turned = cos.shape[-1]
    if turned % 2 or turned > size:
        raise ValueError(f"cos: expected an even number of columns, at most {size}, got {turned}")
    wide = torch.promote_types(qkv.dtype, torch.float32)
    for name, tensor in (("cos", cos), ("signed_sin", signed_sin)):
        check_tensor(name, tensor, (_rows_of(tensor, rows), 1, length, turned), wide, qkv.device)
    if norms is not None:
        check_tensor("q_weight", norms.q_weight, (size,), None, qkv.device)
        check_tensor("k_weight", norms.k_weight, (size,), None, qkv.device)
    if q_scale is not None:
        check_tensor("q_scale", q_scale, (_rows_of(q_scale, rows), 1, length, 1), None, qkv.device)


def _rows_of(tensor: Tensor, rows: int) -> int:
    return 1 if tensor.shape[:1] == (1,) else rows


def _check_target(qkv: Tensor, groups: int, target: Target) -> None:
    rows, length, _, size = qkv.shape
    if (target.key_scale is None) != (target.value_scale is None):
        raise ValueError("value_scale: expected scales for keys and values or for neither")
    stored_as = qkv.dtype if target.key_scale is None else torch.float8_e4m3fn
    for name, place in (("keys", target.keys), ("values", target.values)):
        is_right = place.dim() == 4 and (*place.shape[:2], place.shape[3]) == (rows, groups, size)
        if not is_right or place.dtype != stored_as or place.device != qkv.device or place.stride(3) != 1:
            raise ValueError(
                f"{name}: expected [{rows}, {groups}, S, {size}] {stored_as} on {qkv.device}, heads contiguous, "
                f"got {list(place.shape)} {place.dtype} on {place.device}"
            )
    if target.keys.shape != target.values.shape or target.keys.stride() != target.values.stride():
        raise ValueError("values: expected the shape and strides of keys")
    if target.key_scale is not None and target.value_scale is not None:
        for name, scale in (("key_scale", target.key_scale), ("value_scale", target.value_scale)):
            if scale.shape != target.keys.shape[:3] or scale.dtype != torch.float32 or scale.device != qkv.device:
                raise ValueError(
                    f"{name}: expected {list(target.keys.shape[:3])} float32 on {qkv.device}, "
                    f"got {list(scale.shape)} {scale.dtype} on {scale.device}"
                )
        if target.key_scale.stride() != target.value_scale.stride():
            raise ValueError("value_scale: expected the strides of key_scale")
    if target.columns is not None:
        check_tensor("columns", target.columns, (rows, length), torch.int64, qkv.device)
    elif not 0 <= target.first <= target.keys.shape[2] - length:
        raise ValueError(
            f"first: expected room for {length} tokens in {target.keys.shape[2]} slots, got {target.first}"
        )

"""The answer, in plain PyTorch. B rows, T tokens, H query heads, G key/value heads, D head size, R rotated dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dllm_kernels.rms_norm.reference import rms_norm

if TYPE_CHECKING:
    from dllm_kernels.rotary import HeadNorms, Target


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turn the first R dimensions of heads [B, heads, T, D]; the dtype stays."""
    size = cos.shape[-1]
    if size < x.shape[-1]:
        return torch.cat((rotate(x[..., :size], cos, signed_sin), x[..., size:]), dim=-1)
    first, second = x.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    return torch.addcmul(x * cos, swapped, signed_sin).to(x.dtype)


def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    signed_sin: Tensor,
    heads: tuple[int, int],
    norms: HeadNorms | None,
    q_scale: Tensor | None,
    target: Target | None,
) -> tuple[Tensor, Tensor, Tensor]:
    queries, groups = heads
    q, k, v = qkv[:, :, :queries], qkv[:, :, queries : queries + groups], qkv[:, :, queries + groups :]
    if norms is not None:
        q, k = rms_norm(q, norms.q_weight, norms.eps), rms_norm(k, norms.k_weight, norms.eps)
    q, k = rotate(q.transpose(1, 2), cos, signed_sin), rotate(k.transpose(1, 2), cos, signed_sin)
    if q_scale is not None:
        q = q * q_scale.to(q.dtype)
    if target is None:
        return q, k, v.transpose(1, 2)
    rows, length = qkv.shape[:2]
    if target.columns is None:
        here = slice(target.first, target.first + length)
        target.keys[:, :, here] = k
        target.values[:, :, here] = v.transpose(1, 2)
    else:
        row = torch.arange(rows, device=qkv.device).unsqueeze(1)
        target.keys[row, :, target.columns] = k.transpose(1, 2)
        target.values[row, :, target.columns] = v
    return q, target.keys, target.values

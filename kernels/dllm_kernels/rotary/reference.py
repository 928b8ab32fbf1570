"""The answer, in plain PyTorch. B rows, T tokens, H query heads, G key/value heads, D head size, R rotated dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dllm_kernels.quantise_rows.reference import quantise_rows
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
    put(k.transpose(1, 2), target.keys, target.key_scale, target.first, target.columns)
    put(v, target.values, target.value_scale, target.first, target.columns)
    return q, target.keys, target.values


def put(new: Tensor, place: Tensor, scale: Tensor | None, first: int, columns: Tensor | None) -> None:
    """Put heads of new tokens [B, T, G, D] into their slots, in e4m3 where there is a scale."""
    if scale is not None:
        found, found_scale = quantise_rows(new, torch.float8_e4m3fn)
        # Eight-bit floats are scattered as the bytes they are.
        _lay(found.view(torch.uint8), place.view(torch.uint8), first, columns)
        _lay(found_scale.squeeze(3), scale, first, columns)
    else:
        _lay(new, place, first, columns)


def _lay(new: Tensor, place: Tensor, first: int, columns: Tensor | None) -> None:
    """[B, T, G, ...] into [B, G, S, ...]."""
    if columns is None:
        place[:, :, first : first + new.shape[1]] = new.transpose(1, 2)
    else:
        row = torch.arange(len(new), device=new.device).unsqueeze(1)
        place[row, :, columns] = new

"""Grouped-query attention over new and stored tokens.

Dimensions: B rows, T new tokens, S visible slots, H query heads, G key/value heads, D head size, E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.layers.norm import RMSNorm
from dllm.layers.rotary import Turn
from dllm.models.family import LayerStore, Sight
from dllm.spec import ModelSpec
from dllm_kernels import Cache, HeadNorms, Target, canvas_attention, rotate_and_store
from dllm_kernels.quantise_rows import Rows, restore_rows
from dllm_kernels.rotary.reference import put


@dataclass(frozen=True, slots=True)
class Slots:
    """Where new keys and values go and how many slots are read. The same in every layer of a forward.

    `first` is a slot for all rows; or `columns` [B, T] names a slot for each token.
    """

    read: int
    first: int = 0
    columns: Tensor | None = None

    @classmethod
    def of(cls, start: int | Tensor, length: int, mask: Tensor | Sight | None) -> Slots:
        """
        Raises:
            ValueError: If each row has its own start and no mask tells how much of the stores is read.
        """
        read = None if mask is None else mask.longest if isinstance(mask, Sight) else mask.shape[-1]
        if isinstance(start, int):
            return cls(start + length if read is None else read, start)
        if read is None:
            raise ValueError("a start per row needs a mask: rows of different lengths cannot all be read whole")
        return cls(read, 0, start.unsqueeze(1) + torch.arange(length, device=start.device))

    def write(self, store: LayerStore, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put new tokens [B, T, G, D] into their slots; the slots to read, as `numbers` gives them."""
        put(keys, store.keys, store.key_scale, self.first, self.columns)
        put(values, store.values, store.value_scale, self.first, self.columns)
        return self.numbers(store, keys.dtype)

    def numbers(self, store: LayerStore, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of the slots to read, [B, G, S, D]: views, but of e4m3 new memory in `dtype`."""
        keys, values = store.keys[:, :, : self.read], store.values[:, :, : self.read]
        if store.key_scale is None or store.value_scale is None:
            return keys, values
        scales = store.key_scale[:, :, : self.read, None], store.value_scale[:, :, : self.read, None]
        return restore_rows(Rows(keys, scales[0]), dtype), restore_rows(Rows(values, scales[1]), dtype)


def fold_mask(mask: Tensor | None, shared: int, dtype: torch.dtype) -> Tensor | None:
    """A caller's mask as `Attention` reads it: additive, and repeated for the `shared` query heads of a key/value head.

    Done once per forward, not in every layer.
    """
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
    return mask if mask.shape[2] == 1 or shared == 1 else mask.repeat(1, 1, shared, 1)


class Attention(nn.Module):
    """Projections, q/k norm, rotary positions, stores and the softmax.

    Query heads that share a key/value head are laid out as further queries of it, so nothing is copied: on one core, 32 queries over 544
    keys, 16 heads on 8, take 2.5 ms; with keys and values repeated 9.7 ms, with PyTorch's `enable_gqa` 2.7 ms.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
        # q, k and v in one product instead of three: 10-15 % of the shipped model's step on CPU.
        self.qkv_proj = nn.Linear(
            spec.hidden_size, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=spec.qkv_bias
        )
        self.o_proj = nn.Linear(self.heads * self.head_dim, spec.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, spec.rms_norm_eps) if spec.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, spec.rms_norm_eps) if spec.qk_norm else None

    def forward(
        self,
        x: Tensor,
        turn: Turn,
        mask: Tensor | Sight | None,
        store: LayerStore | None,
        slots: Slots,
        q_scale: Tensor | None = None,
    ) -> Tensor:
        """[B, T, E] to [B, T, E].

        Args:
            mask: From `fold_mask`, [B or 1, 1, H / G * T or 1, S]; a `Sight` needs a store.
            q_scale: [B, 1, T, 1], multiplies the queries.
        """
        rows, length, _ = x.shape
        qkv = self.qkv_proj(x).view(rows, length, self.heads + 2 * self.kv_heads, self.head_dim)
        norms = None
        if self.q_norm is not None and self.k_norm is not None:
            norms = HeadNorms(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)
        target = None
        if store is not None:
            scales = store.key_scale, store.value_scale
            target = Target(store.keys, store.values, slots.first, slots.columns, *scales)
        q, k, v = rotate_and_store(qkv, turn.cos, turn.signed_sin, (self.heads, self.kv_heads), norms, q_scale, target)
        if isinstance(mask, Sight):
            scales = (None, None) if store is None else (store.key_scale, store.value_scale)
            out = canvas_attention(q.contiguous(), Cache(k, v, None, *scales), mask.visible, longest=mask.longest)
        else:
            if store is not None:
                k, v = slots.numbers(store, q.dtype)
            q = q.reshape(rows, self.kv_heads, self.heads // self.kv_heads * length, self.head_dim)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            out = out.reshape(rows, self.heads, length, self.head_dim)
        projected: Tensor = self.o_proj(out.transpose(1, 2).reshape(rows, length, self.heads * self.head_dim))
        return projected

"""The fast way: one program per token. N tokens, V vocabulary, E hidden size."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_E = 1024


@triton.jit
def _embed_kernel(
    ids_ptr,
    table_ptr,
    soft_ptr,
    share_ptr,
    out_ptr,
    V,
    E,
    HAS_SOFT: tl.constexpr,
    HAS_SHARE: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    in_row = column < E
    token = tl.load(ids_ptr + row)
    is_token = (token >= 0) & (token < V)
    # [BLOCK_E]. A NaN shows where a wrong id would read foreign memory.
    own = tl.load(table_ptr + token * E + column, mask=in_row & is_token, other=float("nan"))
    result = own.to(out_ptr.dtype.element_ty)
    if HAS_SOFT:
        if HAS_SHARE:
            share = tl.load(share_ptr + row)
            # [BLOCK_E]. What has no share is not read.
            soft = tl.load(soft_ptr + row * E + column, mask=in_row & (share > 0.0), other=0.0)
            mixed = (1.0 - share) * own.to(tl.float32) + share * soft.to(tl.float32)
            result = tl.where(share > 0.0, mixed.to(result.dtype), result)
        else:
            # [BLOCK_E]
            soft = tl.load(soft_ptr + row * E + column, mask=in_row, other=0.0)
            result = (own.to(tl.float32) + soft.to(tl.float32)).to(result.dtype)
    tl.store(out_ptr + row * E + column, result, mask=in_row)


def embed(ids: Tensor, table: Tensor, soft: Tensor | None, share: Tensor | None) -> Tensor:
    vocabulary, size = table.shape
    dtype = table.dtype if soft is None else torch.promote_types(table.dtype, soft.dtype)
    out = torch.empty(len(ids), size, dtype=dtype, device=table.device)
    block = min(triton.next_power_of_2(size), BLOCK_E)
    if len(ids):
        _embed_kernel[(len(ids), triton.cdiv(size, block))](
            ids.contiguous(),
            table,
            soft,
            share,
            out,
            vocabulary,
            size,
            HAS_SOFT=soft is not None,
            HAS_SHARE=share is not None,
            BLOCK_E=block,
            num_warps=4,
        )
    return out

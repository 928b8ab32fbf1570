"""Token embeddings, with what the last step believed mixed in.

Dimensions: N tokens, V vocabulary, E hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels.checks import check_floating, check_tensor
from dllm_kernels.choose import choose


def embed(ids: Tensor, table: Tensor, soft: Tensor | None = None, share: Tensor | None = None) -> Tensor:
    """Look tokens up, and add or mix in a soft embedding.

    Args:
        ids: [N], int64, in [0, V). On a GPU a number outside gives a row of NaN, on the CPU an `IndexError`.
        table: [V, E], contiguous, floating point.
        soft: [N, E], contiguous, floating point. Alone it is added (self-conditioning; zero where there is no guess yet).
        share: [N], float32, in [0, 1]: row n becomes `(1 - share) * table[id] + share * soft`, rounded once. Where it is 0 the row is
            the table's own, whatever stands in `soft`: decided tokens need no guess.

    Returns:
        [N, E], in the dtype that table and soft promote to.

    Raises:
        ValueError: If a shape, dtype or device is not as above, or there is a share of nothing.

    Source: self-conditioning as in Analog Bits (arXiv:2208.04202); soft masks as in arXiv:2510.17206.
    """
    check_floating("table", table)
    if table.dim() != 2 or not table.is_contiguous():
        raise ValueError(f"table: expected contiguous [V, E], got {list(table.shape)}")
    if ids.dim() != 1 or ids.dtype != torch.int64 or ids.device != table.device:
        raise ValueError(
            f"ids: expected [N] torch.int64 on {table.device}, got {list(ids.shape)} {ids.dtype} on {ids.device}"
        )
    if soft is not None:
        check_floating("soft", soft)
        check_tensor("soft", soft, (len(ids), table.shape[1]), None, table.device)
    if share is not None:
        if soft is None:
            raise ValueError("share: expected None where soft is None, got a tensor")
        check_tensor("share", share, (len(ids),), torch.float32, table.device)
    out: Tensor = choose("embed", table, soft).embed(ids, table, soft, share)
    return out

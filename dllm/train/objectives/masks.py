"""Who sees whom in packed rows, and which numbers documents and blocks have in a batch.

Dimensions: B rows, T positions of a row, N tokens that are learned.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from dllm.errors import ConfigError
from dllm.spec import MaskKind, ModelSpec
from dllm.train.objectives.base import Packed


def check_attention(spec: ModelSpec, objective: str) -> None:
    """
    Raises:
        ConfigError: If the family reads its prompt in a pass of its own, which packed rows have no room for.
    """
    if spec.mask_kind == "encoder_decoder":
        raise ConfigError("objective", objective, f"another one: {spec.family} encodes a prompt in a pass of its own")


def document_mask(batch: Packed, kind: MaskKind, block: int = 1) -> Tensor:
    """[B, 1, T, T] bool, true where a query may look; nobody sees another document.

    full: the whole document. causal: itself and what is before. block_causal: its block of `block` positions, counted from the
    document's first, and the blocks before. causal_prefix_bidir_block: learned tokens are a canvas and see the whole document, the
    others are causal, so a document ends with its answer.

    Raises:
        ConfigError: For encoder_decoder.
    """
    same = batch.same_document()
    query, key = batch.positions.unsqueeze(2), batch.positions.unsqueeze(1)
    match kind:
        case "full":
            seen = same
        case "causal":
            seen = same & (key <= query)
        case "block_causal":
            seen = same & (key // block <= query // block)
        case "causal_prefix_bidir_block":
            seen = same & ((key <= query) | batch.learned.unsqueeze(2))
        case "encoder_decoder":
            raise ConfigError("mask_kind", kind, "attention that one pass can have")
        case _:
            assert_never(kind)
    return seen.unsqueeze(1)


def two_stream_mask(batch: Packed, blocks: Tensor, is_clean_causal: bool = False) -> Tensor:
    """[B, 1, 2T, 2T] bool for rows laid out as [noisy | clean].

    A noisy token sees the noisy tokens of its block and the clean ones of the blocks before. A clean token sees clean ones: its block
    and the blocks before, or with `is_clean_causal` itself and what is before. None of the clean see the noisy.

    Args:
        blocks: [B, T] int64, each position's block within its document.

    Source: BD3-LM (arXiv:2503.09573).
    """
    same = batch.same_document()
    query, key = blocks.unsqueeze(2), blocks.unsqueeze(1)
    if is_clean_causal:
        clean = same & (batch.positions.unsqueeze(1) <= batch.positions.unsqueeze(2))
    else:
        clean = same & (key <= query)
    noisy_rows = torch.cat((same & (key == query), same & (key < query)), dim=2)
    clean_rows = torch.cat((torch.zeros_like(same), clean), dim=2)
    return torch.cat((noisy_rows, clean_rows), dim=1).unsqueeze(1)


def learned_places(batch: Packed, *, skip_first: bool = False) -> Tensor:
    """[N] int64 on the CPU: flat indices of the learned tokens, padding left out.

    Args:
        skip_first: Leave out first tokens of documents, which no output row before them could predict.
    """
    is_learned = batch.learned & (batch.document >= 0)
    if skip_first:
        is_learned = is_learned & (batch.positions > 0)
    return is_learned.flatten().nonzero().squeeze(1).cpu()


def groups_at(batch: Packed, places: Tensor, blocks: Tensor | None = None) -> tuple[Tensor, int]:
    """Which document, or which block of a document, each of the places belongs to: [N] int64 from 0 without gaps, and how many."""
    rows = torch.arange(batch.ids.shape[0], device=batch.ids.device).unsqueeze(1).expand_as(batch.ids)
    keys = [rows, batch.document] if blocks is None else [rows, batch.document, blocks]
    flat = torch.stack([key.flatten().cpu()[places] for key in keys])
    found, numbers = torch.unique(flat, dim=1, return_inverse=True)
    return numbers, found.shape[1]


def block_numbers(batch: Packed, block: int, from_learned: bool = False) -> Tensor:
    """[B, T] int64: each position's block within its document.

    Args:
        from_learned: Count from the document's first learned token instead of its first; what is before is in negative blocks.
    """
    if not from_learned:
        return batch.positions // block
    numbers = batch.document + 1
    far = torch.iinfo(torch.int64).max
    origin = torch.full((numbers.shape[0], int(numbers.max()) + 1), far, device=numbers.device)
    origin.scatter_reduce_(1, numbers, batch.positions.masked_fill(~batch.learned, far), "amin")
    origin = origin.masked_fill(origin == far, 0)
    return (batch.positions - origin.gather(1, numbers)).div(block, rounding_mode="floor")

"""The answer, in plain PyTorch. B drafts, W canvas positions, n rows of logits, V vocabulary."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from dllm_kernels.stutters import Classes

SPAN = 3
"""Tokens of a repeated span, as in `dllm.canvas.repeats_span`."""
UNDECIDED, OUTSIDE = -1, -2


def ban(
    logits: Tensor, canvas: Tensor, cell: Tensor, tokens: Tensor, decided: Tensor, strict: Tensor, classes: Classes
) -> None:
    # Canvases with room around them: cell p is at p + 2 * SPAN.
    width, edge = tokens.shape[1], 2 * SPAN
    cells = F.pad(torch.where(decided, tokens, UNDECIDED), (edge, edge), value=OUTSIDE)
    ids = cells.clamp_min(0)
    is_known = cells >= 0
    is_text = is_known & ~classes.is_end[ids]
    doubles = is_known & classes.is_single[ids]
    # A token is ruled out if it would complete the third pair: where two further pairs in a row with its own are equal.
    equal = (cells[:, :-SPAN] == cells[:, SPAN:]) & is_text[:, :-SPAN]
    size = width + SPAN
    before, after = equal[:, 2 : 2 + size], equal[:, 4 : 4 + size]
    # As pair p - SPAN, ..., width - 1.
    completes = (after & equal[:, 5 : 5 + size]) | (before & (after | equal[:, 1 : 1 + size]))

    def beside(offset: int) -> slice:
        return slice(edge + offset, edge + offset + width)

    places = [beside(offset) for offset in (-1, 1, -SPAN, SPAN)]
    # [n, 4] each.
    banned = torch.stack([ids[:, place] for place in places], dim=2).view(-1, 4)[cell]
    is_banned = torch.stack(
        [
            doubles[:, places[0]],
            doubles[:, places[1]],
            is_text[:, places[2]] & completes[:, :width],
            is_text[:, places[3]] & completes[:, SPAN:],
        ],
        dim=2,
    ).view(-1, 4)[cell]
    is_banned &= strict[canvas].unsqueeze(1)
    end = logits.index_select(1, classes.ends).amax(dim=1)
    stutter = logits.gather(1, banned).masked_fill_(~is_banned, -math.inf).amax(dim=1)
    logits.scatter_add_(1, banned, _impossible(is_banned))
    logits.index_add_(1, classes.ends, _impossible(stutter > end).unsqueeze(1).expand(-1, len(classes.ends)))


def joint(tokens: Tensor, decided: Tensor, chosen: Tensor, strict: Tensor, classes: Classes) -> Tensor:
    known, is_new = torch.where(decided | chosen, tokens, UNDECIDED), chosen & ~decided
    ids = known.clamp_min(0)
    is_known = known >= 0
    is_text = is_known & ~classes.is_end[ids]
    is_double = (known[:, :-1] == known[:, 1:]) & is_known[:, :-1] & classes.is_single[ids[:, :-1]]
    waits = F.pad(is_double & is_new[:, :-1] & is_new[:, 1:], (1, 0))
    equal = (known[:, :-SPAN] == known[:, SPAN:]) & is_text[:, :-SPAN]
    repeats = equal[:, :-2] & equal[:, 1:-1] & equal[:, 2:]
    repeats = F.pad(repeats, (0, known.shape[1] - repeats.shape[1]))
    return (waits | last_new(repeats, 2 * SPAN, is_new)) & strict.unsqueeze(1)


def last_new(found: Tensor, length: int | Tensor, is_new: Tensor) -> Tensor:
    """[..., W] bool: the last new position of each found span [start, start + length) with two of them.

    Args:
        found: [..., W] bool, by start; no found span reaches past the canvas.
        length: One for all, or [..., 1] int64.
        is_new: [..., W] bool, of as many dimensions as `found`.
    """
    width = found.shape[-1]
    at = torch.arange(width, device=found.device)
    count = is_new.cumsum(-1).expand(found.shape)
    end = (at + (length - 1)).clamp_max(width - 1).expand(found.shape)
    waits = found & (count.gather(-1, end) - count + is_new.long() >= 2)
    last = torch.where(is_new, at, -1).cummax(-1).values.expand(found.shape).gather(-1, end)
    marked = found.new_zeros(*found.shape[:-1], width + 1)
    return marked.scatter_(-1, torch.where(waits, last, width), True)[..., :width]


def _impossible(where: Tensor) -> Tensor:
    """-inf where true, to be added."""
    return torch.zeros(where.shape, device=where.device).masked_fill_(where, -math.inf)

"""Banned phrases: every way in which one more token completes one, and where tokens chosen together do.

Of each phrase and place where it may begin is counted how many of its tokens stand there, which takes time in proportion to its length. A token
completes the phrase where all the others are.

Dimensions: B drafts, W canvas positions, n rows of logits, P phrases of a draft, T tokens of all its phrases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dllm.staging import counting, staged
from dllm_kernels.stutters import last_new

UNDECIDED = -1
"""What a canvas of known tokens holds where nothing is decided."""
_NEVER = 2**30
"""Length of what stands nowhere."""

Phrase = tuple[int, ...]


class Phrases:
    """Several drafts' banned token sequences, padded to the draft that has most: shapes are powers of two, so that companies share them.

    Args:
        tokens: [B, T] int64, of all phrases one after another.
        offsets: [B, T] int64, where in its phrase each is.
        owners: [B, T] int64, which phrase it is of.
        lengths: [B, P] int64.
        together: [B, P] bool, phrases that the choices of one step are looked through for.
    """

    def __init__(self, tokens: Tensor, offsets: Tensor, owners: Tensor, lengths: Tensor, together: Tensor) -> None:
        self._tokens, self._offsets, self._owners = tokens, offsets, owners
        self._lengths, self._together = lengths, together

    @classmethod
    def of(cls, banned: Sequence[Sequence[Phrase]], has_grammar: Sequence[bool], device: torch.device | str) -> Phrases:
        """
        Args:
            banned: Of each draft.
            has_grammar: Drafts whose choices of one step are not looked through.
        """
        drafts = [sorted({tuple(phrase) for phrase in phrases}, key=lambda one: (len(one), one)) for phrases in banned]
        # The last phrase is never one: what fills the others' room belongs to it.
        count = _rounded(max(map(len, drafts)) + 1)
        most = _rounded(max(sum(map(len, phrases)) for phrases in drafts))
        nothing = (0, 0, count - 1)
        parts = [
            [(token, at, owner) for owner, phrase in enumerate(phrases) for at, token in enumerate(phrase)]
            for phrases in drafts
        ]
        tokens, offsets, owners = staged(
            [[*own, *[nothing] * (most - len(own))] for own in parts], device, torch.int64
        ).unbind(2)
        lengths = [[*map(len, phrases), *[_NEVER] * (count - len(phrases))] for phrases in drafts]
        together = [
            [length > 1 and not grammar for length in own] for own, grammar in zip(lengths, has_grammar, strict=True)
        ]
        return cls(tokens, offsets, owners, staged(lengths, device, torch.int64), staged(together, device, torch.bool))

    @property
    def columns(self) -> list[Tensor]:
        return [self._tokens, self._offsets, self._owners, self._lengths, self._together]

    def copy(self) -> Phrases:
        return Phrases(*(column.clone() for column in self.columns))

    def ban(self, logits: Tensor, canvas: Tensor, position: Tensor, known: Tensor) -> None:
        """Rule out what would complete a phrase.

        Args:
            logits: [n, V] float32, changed in place.
            canvas, position: [n] int64, of each row.
            known: [B, W] int64: decided tokens, `UNDECIDED` elsewhere.
        """
        stands, found = self._count(known)
        owners = self._owners[canvas]  # [n, T]
        start = position.unsqueeze(1) - self._offsets[canvas]
        others = found[canvas.unsqueeze(1), owners, start.clamp_min(0)] - stands[canvas, :, position].long()
        completes = (start >= 0) & (others == self._lengths[canvas].gather(1, owners) - 1)
        logits.scatter_add_(1, self._tokens[canvas], impossible(completes))

    def joint(self, known: Tensor, is_new: Tensor) -> Tensor:
        """[B, W] bool: of every phrase that stands there, the last new token of two or more."""
        _, count = self._count(known)
        lengths = self._lengths.unsqueeze(2)
        found = (count == lengths) & self._together.unsqueeze(2)
        return last_new(found, lengths, is_new.unsqueeze(1)).any(dim=1)

    def _count(self, known: Tensor) -> tuple[Tensor, Tensor]:
        """Where each token stands, [B, T, W] bool, and of each phrase how many are where they must be if it begins there, [B, P, W] int64."""
        drafts, width = known.shape
        stands = known.unsqueeze(1) == self._tokens.unsqueeze(2)
        places = counting(width, known.device) + self._offsets.unsqueeze(2)
        fits = stands.gather(2, places.clamp_max(width - 1)) & (places < width)
        count = fits.new_zeros(drafts, self._lengths.shape[1], width, dtype=torch.int64)
        return stands, count.scatter_add_(1, self._owners.unsqueeze(2).expand(-1, -1, width), fits.long())


def _rounded(count: int) -> int:
    """The next power of two."""
    return 1 << max(count - 1, 0).bit_length()


def impossible(where: Tensor) -> Tensor:
    """-inf where true, to be added."""
    return torch.zeros(where.shape, device=where.device).masked_fill_(where, -math.inf)

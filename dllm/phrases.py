"""Banned phrases: every way in which one more token completes one, and where tokens chosen together do.

Dimensions: B drafts, W canvas positions, n rows of logits, P phrases of a draft, L tokens of the longest, M ways to complete one.
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
OUTSIDE = -2
"""What stands beyond its ends."""
_NEVER = -3
"""What stands nowhere."""

Phrase = tuple[int, ...]


class Phrases:
    """Several drafts' banned token sequences, padded to the draft that has most: shapes are powers of two, so that companies share them."""

    def __init__(
        self, targets: Tensor, offsets: Tensor, wanted: Tensor, spans: Tensor, matters: Tensor, lengths: Tensor
    ) -> None:
        self._targets, self._offsets, self._wanted = targets, offsets, wanted
        self._spans, self._matters, self._lengths = spans, matters, lengths

    @classmethod
    def of(cls, banned: Sequence[Sequence[Phrase]], has_grammar: Sequence[bool], device: torch.device | str) -> Phrases:
        """
        Args:
            banned: Of each draft.
            has_grammar: Drafts whose choices of one step are not looked through.
        """
        drafts = [sorted({tuple(phrase) for phrase in phrases}, key=lambda one: (len(one), one)) for phrases in banned]
        longest = _rounded(max(2, *(len(phrase) for phrases in drafts for phrase in phrases)))
        ways = [
            [
                (token, [(index - at, other) for index, other in enumerate(phrase) if index != at])
                for phrase in phrases
                for at, token in enumerate(phrase)
            ]
            for phrases in drafts
        ]
        most = _rounded(max(map(len, ways)))
        padded = [[*own, *[(0, [(0, _NEVER)])] * (most - len(own))] for own in ways]
        # `OUTSIDE` as what is wanted means that nothing is.
        others = [[[*way, *[(0, OUTSIDE)] * (longest - 1 - len(way))] for _, way in own] for own in padded]
        spans = [
            [phrase for phrase in phrases if len(phrase) > 1 and not grammar]
            for phrases, grammar in zip(drafts, has_grammar, strict=True)
        ]
        count = _rounded(max(1, *map(len, spans)))
        filled = [[*own, *[(_NEVER, _NEVER)] * (count - len(own))] for own in spans]
        shape = (len(drafts), most, longest - 1)

        def whole(values: object) -> Tensor:
            return staged(values, device, torch.int64)

        return cls(
            whole([[token for token, _ in own] for own in padded]),
            whole([[[offset for offset, _ in way] for way in own] for own in others]).view(shape),
            whole([[[token for _, token in way] for way in own] for own in others]).view(shape),
            whole([[[*phrase, *[0] * (longest - len(phrase))] for phrase in own] for own in filled]),
            staged(
                [[[at < len(phrase) for at in range(longest)] for phrase in own] for own in filled], device, torch.bool
            ),
            whole([[len(phrase) for phrase in own] for own in filled]),
        )

    @property
    def columns(self) -> list[Tensor]:
        return [self._targets, self._offsets, self._wanted, self._spans, self._matters, self._lengths]

    def copy(self) -> Phrases:
        return Phrases(*(column.clone() for column in self.columns))

    def ban(self, logits: Tensor, canvas: Tensor, position: Tensor, known: Tensor) -> None:
        """Rule out what would complete a phrase.

        Args:
            logits: [n, V] float32, changed in place.
            canvas, position: [n] int64, of each row.
            known: [B, W] int64: decided tokens, `UNDECIDED` elsewhere.
        """
        wanted = self._wanted[canvas]
        places = position.view(-1, 1, 1) + self._offsets[canvas]
        completes = ((_at(known, canvas.view(-1, 1, 1), places) == wanted) | (wanted == OUTSIDE)).all(dim=2)
        logits.scatter_add_(1, self._targets[canvas], impossible(completes))

    def joint(self, known: Tensor, is_new: Tensor) -> Tensor:
        """[B, W] bool: of every phrase that stands there, the last new token of two or more."""
        drafts, width = known.shape
        row = counting(drafts, known.device).view(-1, 1, 1)
        length = self._spans.shape[2]
        places = counting(width, known.device).view(-1, 1) + counting(length, known.device)
        near = _at(known, row, places.expand(drafts, -1, -1)).unsqueeze(1)
        found = ((near == self._spans.unsqueeze(2)) | ~self._matters.unsqueeze(2)).all(dim=3)
        return last_new(found, self._lengths.unsqueeze(2), is_new.unsqueeze(1)).any(dim=1)


def _rounded(count: int) -> int:
    """The next power of two."""
    return 1 << max(count - 1, 0).bit_length()


def _at(known: Tensor, canvas: Tensor, places: Tensor) -> Tensor:
    """What stands at places [n, ...] of canvases [n, 1, ...], `OUTSIDE` beyond either end; `known` is [B, W]."""
    width = known.shape[1]
    inside = (places >= 0) & (places < width)
    return torch.where(inside, known.flatten()[canvas * width + places.clamp(0, width - 1)], OUTSIDE)


def impossible(where: Tensor) -> Tensor:
    """-inf where true, to be added."""
    return torch.zeros(where.shape, device=where.device).masked_fill_(where, -math.inf)

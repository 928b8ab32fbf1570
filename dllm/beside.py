"""What fixed pins rule out beside themselves: their own beginnings, what would continue their last word or figure, and an end before them.

Read off the canvases on the device, so that it is right after every step of a visit.

Dimensions: B drafts, W canvas positions, n rows of logits, V vocabulary, O openings of a draft's pins, K rows that stand behind a pin.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from dllm.drafts import DraftSpec
from dllm.extent import TokenClasses, continues_pin
from dllm.phrases import impossible
from dllm.pins import openings_of
from dllm.process import Rows
from dllm.staging import counting, staged

_REACH = 2
"""Cells on either side of a pin in which none may begin."""


class Beside:
    """The rules of a company's drafts, of which at least one has something fixed. Drafts with grammars are left alone."""

    def __init__(self, classes: TokenClasses, ends: Tensor, specs: Sequence[DraftSpec], device: torch.device) -> None:
        self._classes, self._ends = classes, ends
        openings = [sorted(openings_of(spec.pins, classes.table)) for spec in specs]
        most = -(-max(map(len, openings)) // 8) * 8
        # Padding repeats a draft's first, which is ruled out already; one without pins rules nothing out.
        padded = [[*own, *[own[0] if own else 0] * (most - len(own))] for own in openings]
        unpinned = [-1 if spec.unpinned is None else spec.unpinned for spec in specs]
        self._openings = staged(padded, device, torch.int64) if most else None
        self._unpinned = staged(unpinned, device, torch.int64) if most and max(unpinned) >= 0 else None
        self._is_free = staged([spec.constraint is None for spec in specs], device)
        self._has_pins = staged([bool(spec.pins) for spec in specs], device)
        self._most_behind = 2 * sum(len(spec.pins) + len(spec.given) for spec in specs if spec.pins)

    @classmethod
    def of(cls, classes: TokenClasses, ends: Tensor, specs: Sequence[DraftSpec], device: torch.device) -> Beside | None:
        """None where nothing can ever be fixed."""
        has_any = any((spec.pins or spec.given) and spec.constraint is None for spec in specs)
        return cls(classes, ends, specs, device) if has_any else None

    @property
    def columns(self) -> list[Tensor]:
        """All that differs between companies of the same `shape`."""
        parts = [self._openings, self._unpinned, self._is_free, self._has_pins]
        return [part for part in parts if part is not None]

    @property
    def shape(self) -> tuple[object, ...]:
        """What the host decides by."""
        most = 0 if self._openings is None else self._openings.shape[1]
        return most, self._unpinned is not None, self._most_behind

    def copy(self) -> Beside:
        """The same with columns of its own."""
        own = copy.copy(self)
        own._openings = None if self._openings is None else self._openings.clone()
        own._unpinned = None if self._unpinned is None else self._unpinned.clone()
        own._is_free, own._has_pins = self._is_free.clone(), self._has_pins.clone()
        return own

    def apply(self, logits: Tensor, rows: Rows, tokens: Tensor, decided: Tensor, pinned: Tensor) -> None:
        """Make tokens impossible, in place.

        Args:
            logits: [n, V] float32.
            tokens, decided: [B, W], the canvases; pinned: [B, W] bool, which of the decided cells are fixed.
        """
        last = torch.where(pinned, counting(tokens.shape[1], tokens.device), -1).amax(dim=1)
        is_early = (rows.position <= last[rows.canvas]) & self._is_free[rows.canvas]
        logits.index_add_(1, self._ends, impossible(is_early).unsqueeze(1).expand(-1, len(self._ends)))
        if self._openings is None:
            return
        own = pinned & self._has_pins.unsqueeze(1)
        near = torch.nn.functional.pad(own, (_REACH, _REACH)).unfold(1, 2 * _REACH + 1, 1).any(dim=2)
        is_near = impossible(near.flatten()[rows.cell]).unsqueeze(1)
        logits.scatter_add_(1, self._openings[rows.canvas], is_near.expand(-1, self._openings.shape[1]))
        if self._unpinned is not None:
            # What holds a pin is not what may hold none.
            is_held = (last >= 0) & self._has_pins & (self._unpinned >= 0)
            sign = self._unpinned.clamp_min(0)[rows.canvas].unsqueeze(1)
            logits.scatter_add_(1, sign, impossible(is_held[rows.canvas]).unsqueeze(1))
        kind = continues_pin(self._classes.of(tokens), decided, own).flatten()[rows.cell]
        if self._most_behind < len(kind):
            behind = kind.topk(self._most_behind).indices
            logits.index_add_(0, behind, self._classes.continuing[kind[behind]])
        else:
            logits += self._classes.continuing[kind]

"""All rules about tokens of the drafts of a company, together and on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.beside import Beside
from dllm.drafts import DraftSpec
from dllm.extent import TokenClasses
from dllm.process import Processor, Rows, Vocabulary


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What callers ask of tokens, and what pins ask of those beside them."""

    processor: Processor
    beside: Beside | None

    @classmethod
    def of(
        cls, specs: Sequence[DraftSpec], vocabulary: Vocabulary, classes: TokenClasses, device: torch.device
    ) -> TokenRules:
        has_grammar = [spec.constraint is not None for spec in specs]
        processor = Processor([spec.options for spec in specs], vocabulary, has_grammar)
        return cls(processor, Beside.of(classes, vocabulary.end_ids, specs, device))

    @property
    def shape(self) -> tuple[object, ...]:
        """What the host decides by."""
        return self.processor.shape, None if self.beside is None else self.beside.shape

    @property
    def columns(self) -> list[Tensor]:
        """All that differs between companies of the same `shape`."""
        return [*self.processor.columns, *(() if self.beside is None else self.beside.columns)]

    def copy(self) -> TokenRules:
        """The same with columns of its own."""
        return TokenRules(self.processor.copy(), None if self.beside is None else self.beside.copy())

    def apply(self, logits: Tensor, rows: Rows, tokens: Tensor, decided: Tensor, pinned: Tensor) -> None:
        """Change `logits` [n, V] float32 in place; the others are [B, W], the canvases as they stand."""
        self.processor.apply(logits, rows, tokens, decided)
        if self.beside is not None:
            self.beside.apply(logits, rows, tokens, decided, pinned)

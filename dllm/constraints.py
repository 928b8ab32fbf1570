"""Grammars that a canvas must obey, whatever the order in which its positions are decided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Constraint(Protocol):
    """A compiled grammar over one codec's tokens. Immutable; one serves many drafts."""

    def complete(
        self, prefix: Sequence[int], log_probabilities: Tensor, decided: Sequence[int | None], ahead: int
    ) -> tuple[list[int], list[float]]:
        """The most probable way to fill a window so that the whole reply can still obey.

        Args:
            prefix: Reply tokens before the window, all final.
            log_probabilities: [W, V] float32, of the window's positions.
            decided: W entries: a token that may not change, or None.
            ahead: How many free positions follow the window.

        Returns:
            W tokens (equal to `decided` where that is given; ends of reply behind the grammar's end), and the probability of each.

        Raises:
            ConstraintError: If nothing obeys.
        """
        ...

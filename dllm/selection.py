"""Which masked positions a step commits.

The rule is S2 with a deadline: everything strictly above the threshold, and at least the floor, taken by confidence. Source:
Fast-dLLM's confidence threshold (arXiv:2505.22618).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Selection:
    """Positions to commit, ascending. `forced` are those the floor asked for although their confidence was not enough."""

    positions: tuple[int, ...]
    forced: tuple[int, ...]


def select(
    confidence: Sequence[float], masked: Sequence[int], urgent: Sequence[int], threshold: float, floor: int
) -> Selection:
    """Choose positions.

    Args:
        confidence: Per canvas position, in [0, 1].
        masked: Positions that may be committed.
        urgent: Those of them that the floor counts (the first clause, or the rest of the reply).
        threshold: Positions strictly above it are committed.
        floor: At least this many of `urgent` are committed, the most confident first; ties go left. At least one while `urgent` is not
            empty.
    """
    confident = {position for position in masked if confidence[position] > threshold}
    due = min(len(urgent), max(floor, 1))
    missing = due - sum(position in confident for position in urgent)
    waiting = sorted((p for p in urgent if p not in confident), key=lambda p: (-confidence[p], p))
    forced = tuple(sorted(waiting[: max(0, missing)]))
    return Selection(tuple(sorted(confident.union(forced))), forced)

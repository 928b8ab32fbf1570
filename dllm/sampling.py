"""From logits to what a step needs of each masked position: its token and how sure the model is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.canvas import TokenTable
from dllm_kernels import commit_from_logits


@dataclass(frozen=True, slots=True)
class Guesses:
    """One entry per row of logits, on the host."""

    tokens: list[int]
    probabilities: list[float]


class Sampler:
    """Picks tokens; never a forbidden one. Temperature 0 is the arg max, otherwise Gumbel-max with noise from (seed, row)."""

    def __init__(self, table: TokenTable, vocab_size: int, device: torch.device) -> None:
        self._forbidden = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._forbidden[sorted(token for token in table.forbidden if token < vocab_size)] = True

    def guess(self, logits: Tensor, temperature: float = 0.0, seed: int = 0) -> Guesses:
        """logits: [N, V]."""
        stats = commit_from_logits(logits, temperature=temperature, seed=seed, forbidden=self._forbidden)
        packed = torch.stack((stats.token.double(), stats.probability.double())).tolist()
        return Guesses([int(token) for token in packed[0]], packed[1])


def ban(logits: Tensor, rows_and_tokens: Iterable[tuple[int, int]]) -> None:
    """Make single tokens impossible in single rows, in place."""
    pairs = list(rows_and_tokens)
    if pairs:
        rows, tokens = zip(*pairs, strict=True)
        logits[list(rows), list(tokens)] = float("-inf")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where spans would go. `confidence` is the geometric mean of their tokens' probabilities there, over the least likely span."""

    starts: tuple[int, ...]
    confidence: float


def place_spans(
    logits: Tensor, positions: Sequence[int], spans: Sequence[Sequence[int]], width: int
) -> Placement | None:
    """Where the model would write given spans.

    Each start position is scored by the sum of log-probabilities of the span's tokens; the best-scoring span takes its place first and
    the others find theirs around it. Ties go left. Spans of one length keep their order. The last position is never used: the reply must be able to end. Should the best
    places leave no room for another span, all go end to end as far right as they fit.

    Args:
        logits: [N, V], the rows of the masked positions.
        positions: Those N positions, ascending; only they may be used.
        width: Of the canvas.

    Returns:
        A start per span; None when they do not fit.
    """
    free = [position in set(positions) and position < width - 1 for position in range(width)]
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    row_of = {position: row for row, position in enumerate(positions)}
    scores = [_span_scores(log_probabilities, row_of, free, span) for span in spans]
    starts = [-1] * len(spans)
    waiting = set(range(len(spans)))
    while waiting:
        candidates = [
            (score, -start, -index)
            for index in waiting
            for start, score in scores[index].items()
            if all(free[start : start + len(spans[index])])
        ]
        if not candidates:
            return _end_to_end(scores, spans, positions, width)
        _, start, index = max(candidates)
        starts[-index] = -start
        free[-start : -start + len(spans[-index])] = [False] * len(spans[-index])
        waiting.remove(-index)
    for length in {len(span) for span in spans}:
        # Alike spans differ in their figures only, and models mix those up: they keep the order they were given in.
        alike = [index for index, span in enumerate(spans) if len(span) == length]
        for index, start in zip(alike, sorted(starts[index] for index in alike), strict=True):
            starts[index] = start
    return Placement(tuple(starts), _confidence(scores, spans, starts))


def _span_scores(
    log_probabilities: Tensor, row_of: dict[int, int], free: Sequence[bool], span: Sequence[int]
) -> dict[int, float]:
    """Sum of log-probabilities by start position."""
    size = len(span)
    starts = [start for start in range(len(free) - size + 1) if all(free[start : start + size])]
    if not starts:
        return {}
    rows = torch.tensor([[row_of[start + offset] for offset in range(size)] for start in starts])
    sums = log_probabilities[rows.to(log_probabilities.device), list(span)].sum(dim=1).tolist()
    return dict(zip(starts, sums, strict=True))


def _end_to_end(
    scores: Sequence[dict[int, float]], spans: Sequence[Sequence[int]], positions: Sequence[int], width: int
) -> Placement | None:
    free = {position for position in positions if position < width - 1}
    total = sum(len(span) for span in spans)
    for first in range(width - 1 - total, -1, -1):
        if all(first + offset in free for offset in range(total)):
            offsets = itertools.accumulate((len(span) for span in spans[:-1]), initial=first)
            starts = list(offsets)
            return Placement(tuple(starts), _confidence(scores, spans, starts))
    return None


def _confidence(scores: Sequence[dict[int, float]], spans: Sequence[Sequence[int]], starts: Sequence[int]) -> float:
    return min(math.exp(score[start] / len(span)) for score, span, start in zip(scores, spans, starts, strict=True))

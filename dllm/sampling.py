"""From logits to what a step needs of each masked position: its token and how sure the model is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from dllm_kernels import commit_from_logits
from torch import Tensor

from dllm.canvas import TokenTable


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


def place_spans(logits: Tensor, spans: Sequence[Sequence[int]]) -> list[int]:
    """Where the model would write given spans.

    Each start position is scored by the sum of log-probabilities of the span's tokens; the best-scoring span takes its place first and
    the others find theirs around it. Ties go left. The last position is never used: the reply must be able to end.

    Args:
        logits: [W, V] for the whole canvas, all masked.

    Returns:
        A start per span. Should the best places leave too little room for the last ones, all go to the end, in order.

    Raises:
        ValueError: If the spans and one more position do not fit.
    """
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    width = len(logits)
    total = sum(len(span) for span in spans)
    if total + 1 > width:
        raise ValueError(f"spans of {total} tokens do not fit a canvas of {width}")
    taken = [False] * (width - 1) + [True]
    starts = [-1] * len(spans)
    scores = []
    for span in spans:
        columns = log_probabilities[:, list(span)]
        scores.append(
            [
                float(columns[range(start, start + len(span)), range(len(span))].sum())
                for start in range(width - len(span) + 1)
            ]
        )
    waiting = set(range(len(spans)))
    while waiting:
        best: tuple[float, int, int] | None = None
        for index in sorted(waiting):
            for start, score in enumerate(scores[index]):
                if any(taken[start : start + len(spans[index])]):
                    continue
                if best is None or score > best[0]:
                    best = (score, index, start)
        if best is None:
            ends = list(itertools.accumulate(len(span) for span in spans))
            return [width - 1 - total + end - len(span) for end, span in zip(ends, spans, strict=True)]
        _, index, start = best
        starts[index] = start
        taken[start : start + len(spans[index])] = [True] * len(spans[index])
        waiting.remove(index)
    return starts

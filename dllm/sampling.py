"""From logits to what a step needs of each masked position: its token and how sure the model is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dllm.errors import NoTokenLeftError
from dllm.options import DecodeOptions
from dllm.process import Processor, Rows, draw_seeds, sample
from dllm.staging import staged
from dllm_kernels import commit_from_logits
from dllm_kernels.commit_from_logits import CommitStats

if TYPE_CHECKING:
    from dllm.draft import Draft


@dataclass(frozen=True, slots=True)
class Guesses:
    """One entry per row of logits, on the host."""

    tokens: list[int]
    probabilities: list[float]


class Picker:
    """One draft's way from logits to tokens: its processor, its noise, its grammar.

    The noise of a position depends on the draft's seed, the step and the position alone, so a draw is the same in any company.
    """

    def __init__(self, processor: Processor, options: DecodeOptions, device: torch.device) -> None:
        self._processor, self._options, self._device = processor, options, device

    def process(self, draft: Draft, logits: Tensor, positions: Sequence[int]) -> None:
        """Rule out and weigh tokens of rows [n, V], in place, by the canvas as it stands on the host."""
        canvas = draft.canvas
        tokens, decided = staged([canvas.tokens], self._device), staged([canvas.decided()], self._device)
        self._processor.apply(logits, Rows.of_one(staged(positions, self._device)), tokens, decided)

    def pick(self, draft: Draft, logits: Tensor, positions: Sequence[int]) -> Guesses:
        """Tokens for rows [n, V], drawn at the draft's temperature. Changes the logits; visits the host.

        Raises:
            NoTokenLeftError: If everything is ruled out at one of the positions.
        """
        self.process(draft, logits, positions)
        stats = self.sample(logits, staged(positions, self._device), draft.steps)
        packed = torch.stack((stats.token.double(), stats.probability.double())).tolist()
        tokens = [int(token) for token in packed[0]]
        if -1 in tokens:
            raise NoTokenLeftError(positions[tokens.index(-1)])
        return Guesses(tokens, packed[1])

    def sample(self, logits: Tensor, positions: Tensor, step: int) -> CommitStats:
        """Draw at the draft's temperature from processed logits [n, V]."""
        return sample(logits, self._options, draw_seeds(self._options.seed, step, positions))

    def draw(self, logits: Tensor, temperature: float, positions: Sequence[int], step: int) -> Tensor:
        """[n] tokens at another temperature."""
        seeds = draw_seeds(self._options.seed, step, staged(positions, self._device))
        return commit_from_logits(logits, temperature=temperature, seed=seeds).token

    def complete(self, draft: Draft, logits: Tensor, positions: Sequence[int]) -> tuple[list[int], list[float]]:
        """Tokens and probabilities of `positions` on the grammar's most probable way through the live part of the canvas.

        Raises:
            ConstraintError: If nothing obeys any more.
        """
        constraint, canvas = draft.spec.constraint, draft.canvas
        assert constraint is not None
        # The window reaches to the last decided position: what is free behind it is all that may be made up.
        lo = canvas.decided_prefix()
        hi = 1 + max(max(positions), *(at for at in range(canvas.width) if canvas.is_decided(at)), 0)
        scores = torch.zeros(hi - lo, logits.shape[1], device=logits.device)
        scores[[at - lo for at in positions]] = torch.log_softmax(logits, dim=-1)
        decided = [canvas.tokens[at] if canvas.is_decided(at) else None for at in range(lo, hi)]
        tokens, probabilities = constraint.complete(canvas.tokens[:lo], scores, decided, canvas.width - hi)
        return [tokens[at - lo] for at in positions], [probabilities[at - lo] for at in positions]


MOST_PERMUTED = 4


@dataclass(frozen=True, slots=True)
class Placement:
    """Where spans would go, and the geometric mean of the probabilities of each span's tokens there."""

    starts: tuple[int, ...]
    confidences: tuple[float, ...]


def place_spans(
    logits: Tensor,
    positions: Sequence[int],
    spans: Sequence[Sequence[int]],
    width: int,
    unseen: Sequence[int] = (),
) -> Placement | None:
    """Where the model would write given spans.

    Each start position is scored by the sum of log-probabilities of the span's tokens; the places with the best total win, over all
    orders of up to four spans (more keep the order they were given in). Spans of one length keep their order: they differ in their
    figures only, and models mix those up. Ties go left. The last position is never used: the reply must be able to end.

    Args:
        logits: [N, V], the rows of the masked positions.
        positions: Those N positions, ascending; only they may be used.
        width: Of the canvas.
        unseen: Further positions that may be used, of which the model has said nothing yet: any token there is one of V.

    Returns:
        A start per span; None when they do not fit.
    """
    masked = {*positions, *unseen}
    free = [position in masked and position < width - 1 for position in range(width)]
    vocab = logits.shape[1]
    even = logits.new_full((1, vocab), -math.log(vocab), dtype=torch.float32)
    log_probabilities = torch.cat((torch.log_softmax(logits.float(), dim=-1), even))
    row_of = dict.fromkeys(unseen, len(positions)) | {position: row for row, position in enumerate(positions)}
    scores = [_span_scores(log_probabilities, row_of, free, span) for span in spans]
    lengths = [len(span) for span in spans]
    best: tuple[float, tuple[int, ...]] | None = None
    for order in _orders(lengths):
        arranged = _arrange([scores[index] for index in order], [lengths[index] for index in order], width)
        if arranged is not None and (best is None or arranged[0] > best[0]):
            starts = dict(zip(order, arranged[1], strict=True))
            best = arranged[0], tuple(starts[index] for index in range(len(spans)))
    if best is None:
        return None
    confidences = (
        math.exp(score[start] / length) for score, start, length in zip(scores, best[1], lengths, strict=True)
    )
    return Placement(best[1], tuple(confidences))


def _orders(lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Orders in which spans may stand, left to right."""
    if len(lengths) > MOST_PERMUTED:
        return [tuple(range(len(lengths)))]
    return [
        order
        for order in itertools.permutations(range(len(lengths)))
        if all(
            order.index(one) < order.index(other)
            for one, other in itertools.combinations(range(len(lengths)), 2)
            if lengths[one] == lengths[other]
        )
    ]


def _arrange(
    scores: Sequence[dict[int, float]], lengths: Sequence[int], width: int
) -> tuple[float, tuple[int, ...]] | None:
    """Best total and starts of spans that stand in this order: dynamic programming over the end of the placed part."""
    best: list[tuple[float, tuple[int, ...]] | None] = [(0.0, ())] * (width + 1)
    for score, length in zip(scores, lengths, strict=True):
        following: list[tuple[float, tuple[int, ...]] | None] = [None] * (width + 1)
        for end in range(length, width + 1):
            following[end] = following[end - 1]
            before, start = best[end - length], end - length
            if before is None or start not in score:
                continue
            total, kept = before[0] + score[start], following[end]
            if kept is None or total > kept[0]:
                following[end] = total, (*before[1], start)
        best = following
    return best[width]


def _span_scores(
    log_probabilities: Tensor, row_of: dict[int, int], free: Sequence[bool], span: Sequence[int]
) -> dict[int, float]:
    """Sum of log-probabilities by start position."""
    size = len(span)
    starts = [start for start in range(len(free) - size + 1) if all(free[start : start + size])]
    if not starts:
        return {}
    rows = torch.tensor([[row_of[start + offset] for offset in range(size)] for start in starts])
    sums = log_probabilities[rows.to(log_probabilities.device), list(span)].double().sum(dim=1).tolist()
    return dict(zip(starts, sums, strict=True))

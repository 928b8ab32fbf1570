"""From a forward's output to what a step knows of each wanted position: token, probability, margin and entropy.

Logits stand in memory for drafts whose rules look at them. For the others head and commit are one launch where kernels run. A draft takes
the same way in any company.

Dimensions: B drafts, W canvas positions, N rows (wanted positions of all drafts), n those of one, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dllm.draft import Draft
from dllm.drafts import CellState
from dllm.pins import continuing, pin_openings
from dllm.process import draw_seeds
from dllm.sampling import ban
from dllm.staging import staged
from dllm_kernels import CommitStats, Held, commit_from_logits, head_commit
from dllm_kernels.choose import runs_kernels
from dllm_kernels.commit_from_logits.contract import empty_stats

if TYPE_CHECKING:
    from dllm.denoise import Denoiser


def reads_logits(draft: Draft) -> bool:
    """Whether any of the draft's rules looks at or changes logits, beside what is forbidden to all and ends that come too early."""
    options = draft.spec.options
    is_filtered = options.temperature > 0 and (options.top_k > 0 or options.top_p < 1.0)
    changes = options.repetition_penalty != 1.0 or options.logit_bias or options.target_tokens or options.banned
    has_rules = draft.spec.pins or draft.spec.constraint is not None or draft.reviser is not None
    return bool(is_filtered or changes or options.no_stutter or has_rules)


def is_fused(shared: Denoiser, draft: Draft) -> bool:
    """Whether head and commit are one launch for the draft."""
    head = shared.model.head()
    return head is not None and runs_kernels(shared.probe, head.weight) and not reads_logits(draft)


class Reading:
    """What is read of a company's canvases in the steps of one visit.

    Args:
        wanted: Canvas positions per draft whose logits the steps look at.
    """

    def __init__(self, shared: Denoiser, drafts: Sequence[Draft], wanted: Sequence[Sequence[int]]) -> None:
        self._shared, self._drafts, self.wanted = shared, drafts, wanted
        self._lengths = [len(positions) for positions in wanted]
        self.rows: Sequence[Tensor] = ()
        """The wanted positions on the device."""
        self.is_fused = [is_fused(shared, draft) for draft in drafts]
        """Per draft whether its logits are needed nowhere."""
        self.pieces: list[Tensor] = []
        """Per draft [n, V] float32 of its wanted positions, as its rules left them; none of those that are fused."""
        self.errors: dict[int, Exception] = {}
        """What a draft's own rules failed with, by row."""
        together: dict[float, list[int]] = {}
        for row, fused in enumerate(self.is_fused):
            if fused:
                together.setdefault(drafts[row].spec.options.temperature, []).append(row)
        columns = [self._columns(rows) for rows in together.values()]
        self.launches = tuple((temperature, len(part[0])) for temperature, part in zip(together, columns, strict=True))
        """Temperature and number of the fused rows that share a launch."""
        self._looked_at = [row for row, fused in enumerate(self.is_fused) if not fused]
        self.counted = [
            [at for positions in wanted for at in positions],
            [at for row in self._looked_at for at in self.places(row)] if together else [],
            *([number for column in part for number in column] for part in columns),
        ]
        """What `take` wants on the device."""
        self._together: list[_Together] = []
        self._looked_at_rows: Tensor | None = None

    def _columns(self, rows: Sequence[int]) -> list[tuple[int, ...]]:
        """[n] each: which of the N rows, their drafts' seeds and steps, their positions, and whether the reply's end comes too early there."""
        named = []
        for row in rows:
            draft = self._drafts[row]
            options = draft.spec.options
            first_end = max(options.min_tokens, draft.canvas.last_pin() + 1)
            named += [
                (place, options.seed, draft.steps, at, int(at < first_end))
                for place, at in zip(self.places(row), self.wanted[row], strict=True)
            ]
        return list(zip(*named, strict=True))

    def take(self, parts: Sequence[Tensor]) -> None:
        """`counted`, one int64 tensor each."""
        positions, looked_at, *columns = parts
        self.rows = torch.split(positions, self._lengths)
        self._looked_at_rows = looked_at if len(looked_at) else None
        self._together = [
            _Together(temperature, part.view(5, -1))
            for (temperature, _), part in zip(self.launches, columns, strict=True)
        ]

    def places(self, row: int) -> range:
        """Which of the N rows are those of a draft."""
        first = sum(self._lengths[:row])
        return range(first, first + self._lengths[row])

    def read(self, inputs: Tensor, tokens: Tensor, decided: Tensor, done: int) -> CommitStats:
        """
        Args:
            inputs: [N, E], hidden states of the wanted positions in order.
            tokens, decided: [B, W], the canvases as they stand.
            done: Steps of this visit before this one.
        """
        self.pieces = self._logits(inputs)
        for row, (draft, piece) in enumerate(zip(self._drafts, self.pieces, strict=True)):
            if not self.is_fused[row]:
                draft.picker.process_on(piece, self.rows[row], tokens[row], decided[row])
                self._rule_out(draft, self.wanted[row], piece)
        stats = self._stats(inputs, done)
        for row, (draft, piece) in enumerate(zip(self._drafts, self.pieces, strict=True)):
            if self.is_fused[row]:
                continue
            places = self.places(row)
            part = slice(places.start, places.stop)
            if draft.spec.constraint is not None:
                try:
                    found, probabilities = draft.picker.complete(draft, piece, self.wanted[row])
                except Exception as error:  # this draft's alone
                    self.errors[row] = error
                    continue
                stats.token[part] = staged(found, inputs.device)
                stats.probability[part] = staged(probabilities, inputs.device)
            elif draft.spec.options.temperature > 0:
                drawn = draft.picker.sample(piece, self.rows[row], draft.steps + done)
                for value, own in zip(stats, drawn, strict=True):
                    value[part] = own
        return stats

    def _logits(self, inputs: Tensor) -> list[Tensor]:
        if not self._together:
            return list(torch.split(self._shared.model.logits(inputs).float(), self._lengths))
        logits = inputs.new_empty(0, 0, dtype=torch.float32)
        if self._looked_at_rows is not None:
            logits = self._shared.model.logits(inputs[self._looked_at_rows]).float()
        parts = iter(torch.split(logits, [self._lengths[row] for row in self._looked_at]))
        return [logits[:0] if fused else next(parts) for fused in self.is_fused]

    def _stats(self, inputs: Tensor, done: int) -> CommitStats:
        """Of the rows as their logits stand, at temperature 0; where head and commit are one, as they are drawn."""
        if not self._together:
            return commit_from_logits(self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces))
        if len(self._together) == 1 and not self._looked_at:
            return self._together[0].commit(self._shared, inputs, done)
        stats = empty_stats(inputs)
        if self._looked_at_rows is not None:
            _put(
                stats, self._looked_at_rows, commit_from_logits(torch.cat([self.pieces[at] for at in self._looked_at]))
            )
        for part in self._together:
            _put(stats, part.at, part.commit(self._shared, inputs[part.at], done))
        return stats

    def _rule_out(self, draft: Draft, positions: Sequence[int], piece: Tensor) -> None:
        """A reply is not empty, does not end before its last pin, does not start a pin twice and does not continue its last word or figure."""
        if draft.spec.constraint is not None:
            return
        first_end = max(1 if draft.spec.options.min_tokens else 0, draft.canvas.last_pin() + 1)
        early = sum(position < first_end for position in positions)
        if early:
            piece[:early].index_fill_(1, self._shared.ends, float("-inf"))
        if draft.spec.pins:
            openings = pin_openings(draft)
            states, width = draft.canvas.states, draft.canvas.width
            beside = [
                row
                for row, at in enumerate(positions)
                if any(states[near] is CellState.PINNED for near in range(max(0, at - 2), min(width, at + 3)))
            ]
            ban(piece, [(row, token) for row in beside for token in openings])
            if draft.spec.unpinned is not None and draft.canvas.last_pin() >= 0:
                piece[:, draft.spec.unpinned] = float("-inf")  # What holds a pin is not what may hold none.
            for row, at in enumerate(positions):
                for tokens in continuing(draft.canvas, at, self._shared.classes):
                    piece[row].index_fill_(0, tokens, float("-inf"))


@dataclass(frozen=True, slots=True)
class _Together:
    """Fused rows of one temperature."""

    temperature: float
    columns: Tensor
    """[5, n], see `Reading._columns`."""

    @property
    def at(self) -> Tensor:
        return self.columns[0]

    def commit(self, shared: Denoiser, inputs: Tensor, done: int) -> CommitStats:
        head = shared.model.head()
        assert head is not None
        _, seeds, steps, positions, held = self.columns.unbind()
        seed: int | Tensor = draw_seeds(seeds, steps + done, positions) if self.temperature > 0 else 0
        vocabulary = shared.vocabulary
        return head_commit(
            inputs.contiguous(),
            head.weight,
            scale=head.scale,
            temperature=self.temperature,
            seed=seed,
            forbidden=vocabulary.is_forbidden,
            held=Held(vocabulary.is_end, held.bool()),
        )


def _put(stats: CommitStats, at: Tensor, found: CommitStats) -> None:
    for whole, part in zip(stats, found, strict=True):
        whole.index_copy_(0, at, part)

"""From a forward's output to what a step knows of each wanted position: token, probability, margin and entropy.

Logits stand in memory for drafts whose rules look at them, and the rules of all those drafts are applied together. For the others head and commit
are one launch where kernels run. A draft takes the same way in any company. Nothing here needs the host but grammars.

Dimensions: B drafts, W canvas positions, N rows (wanted positions of all drafts), M those of them whose logits stand in memory, n some of
them, E hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from dllm.draft import Draft, Live
from dllm.options import DecodeOptions
from dllm.placing import is_open
from dllm.process import Rows, draw_seeds, sample
from dllm.staging import staged
from dllm_kernels import CommitStats, Held, commit_from_logits, head_commit
from dllm_kernels.choose import runs_kernels
from dllm_kernels.commit_from_logits.contract import empty_stats

if TYPE_CHECKING:
    from dllm.denoise import Denoiser

_Draw: TypeAlias = tuple[float, int, float]
"""Temperature, top k and top p of rows that are drawn together; temperature 0 takes the best."""


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


def needs_host(draft: Draft, live: Live) -> bool:
    """Whether the draft's next step visits the host, or leaves something there: a grammar, revision of decided tokens, pins without a place where
    not all of the canvas is open."""
    return bool(draft.spec.constraint or draft.reviser or (draft.unplaced and not is_open(draft, live)))


class Reading:
    """What is read of a company's canvases in the steps of one visit.

    Args:
        wanted: Canvas positions per draft whose logits the steps look at.
        size: W.
    """

    def __init__(self, shared: Denoiser, drafts: Sequence[Draft], wanted: Sequence[Sequence[int]], size: int) -> None:
        self._shared, self._drafts, self.wanted, self._size = shared, drafts, wanted, size
        self._lengths = [len(positions) for positions in wanted]
        self.rows: Sequence[Tensor] = ()
        """The wanted positions on the device, per draft."""
        self.cells: Tensor
        """[N], which of the B * W cells each wanted position is."""
        self.is_fused = tuple(is_fused(shared, draft) for draft in drafts)
        """Per draft whether its logits are needed nowhere."""
        self.logits: Tensor | None = None
        """[M, V] float32, as the drafts' rules left them; None while nobody looks at any."""
        self.errors: dict[int, Exception] = {}
        """What a draft's own rules failed with, by row."""
        self._looked_at = [row for row, fused in enumerate(self.is_fused) if not fused]
        self._with_grammar = [row for row in self._looked_at if drafts[row].spec.constraint is not None]
        self.rules = shared.token_rules_of(drafts) if self._looked_at else None
        fused: dict[float, list[int]] = {}
        drawn: dict[_Draw, list[int]] = {}
        for row, draft in enumerate(drafts):
            options = draft.spec.options
            if self.is_fused[row]:
                fused.setdefault(options.temperature, []).append(row)
            elif options.temperature > 0 and draft.spec.constraint is None:
                drawn.setdefault((options.temperature, options.top_k, options.top_p), []).append(row)
            else:
                drawn.setdefault((0.0, 0, 1.0), []).append(row)
        fused_columns = [self._columns(rows, self._places) for rows in fused.values()]
        drawn_columns = [self._columns(rows, self._standing) for rows in drawn.values()]
        self.launches = (
            tuple((temperature, len(part[0])) for temperature, part in zip(fused, fused_columns, strict=True)),
            tuple((draw, len(part[0])) for draw, part in zip(drawn, drawn_columns, strict=True)),
        )
        """How the fused rows are drawn and how many share a launch; the same of those whose logits stand in memory."""
        self.counted = [
            [at for positions in wanted for at in positions],
            [row for row, positions in enumerate(wanted) for _ in positions],
            [at for row in self._looked_at for at in self._places(row)] if fused else [],
            *([number for column in part for number in column] for part in (*fused_columns, *drawn_columns)),
        ]
        """What `take` wants on the device."""
        self._fused: list[_Fused] = []
        self._drawn: list[_Drawn] = []
        self._looked_at_rows: Tensor | None = None
        self._standing_rows: Rows

    @property
    def shape(self) -> tuple[object, ...]:
        """All that is decided on the host: readings with equal ones do the same things to tensors of the same shapes."""
        own = tuple(self._lengths), self.is_fused, self.launches
        return own if self.rules is None else (*own, *self.rules.shape)

    @property
    def columns(self) -> list[Tensor]:
        """What differs between readings of one shape, beside `counted`."""
        return [] if self.rules is None else self.rules.columns

    def copy(self) -> Reading:
        """The same with columns of its own."""
        own = copy.copy(self)
        own.rules = None if self.rules is None else self.rules.copy()
        return own

    def _columns(self, rows: Sequence[int], places: Callable[[int], range]) -> list[tuple[int, ...]]:
        """[n] each: which of the rows, their drafts' seeds and steps, their positions, and whether the reply's end comes too early there."""
        named = []
        for row in rows:
            draft = self._drafts[row]
            options = draft.spec.options
            first_end = max(options.min_tokens, draft.canvas.last_pin() + 1)
            named += [
                (place, options.seed, draft.steps, at, int(at < first_end))
                for place, at in zip(places(row), self.wanted[row], strict=True)
            ]
        return list(zip(*named, strict=True))

    def take(self, parts: Sequence[Tensor]) -> None:
        """`counted`, one int64 tensor each."""
        positions, canvases, looked_at, *columns = parts
        self.cells = canvases * self._size + positions
        self.rows = torch.split(positions, self._lengths)
        standing = Rows(canvases, positions, self.cells)
        self._looked_at_rows = looked_at if len(looked_at) else None
        if self._looked_at_rows is not None:
            standing = Rows(canvases[looked_at], positions[looked_at], self.cells[looked_at])
        self._standing_rows = standing
        fused, drawn = self.launches
        self._fused = [
            _Fused(temperature, part.view(5, -1)) for (temperature, _), part in zip(fused, columns, strict=False)
        ]
        self._drawn = [
            _Drawn(draw, part.view(5, -1)) for (draw, _), part in zip(drawn, columns[len(fused) :], strict=True)
        ]

    @property
    def standing_cells(self) -> Tensor:
        """[M], which of the B * W cells the rows of `logits` are."""
        return self._standing_rows.cell

    def _places(self, row: int) -> range:
        """Which of the N rows are those of a draft."""
        first = sum(self._lengths[:row])
        return range(first, first + self._lengths[row])

    def _standing(self, row: int) -> range:
        """Which of the M rows are those of a draft."""
        first = sum(self._lengths[at] for at in self._looked_at if at < row)
        return range(first, first + self._lengths[row])

    def piece(self, row: int) -> Tensor:
        """[n, V] float32 of one draft's wanted positions."""
        assert self.logits is not None
        places = self._standing(row)
        return self.logits[places.start : places.stop]

    def read(self, inputs: Tensor, tokens: Tensor, decided: Tensor, pinned: Tensor, done: int) -> CommitStats:
        """
        Args:
            inputs: [N, E], hidden states of the wanted positions in order.
            tokens, decided, pinned: [B, W], the canvases as they stand.
            done: Steps of this visit before this one.
        """
        if self.rules is not None:
            standing = inputs if self._looked_at_rows is None else inputs[self._looked_at_rows]
            self.logits = self._shared.model.logits(standing).float()
            self.rules.apply(self.logits, self._standing_rows, tokens, decided, pinned)
        stats = self._stats(inputs, done)
        for row in self._with_grammar:
            draft, places = self._drafts[row], self._places(row)
            try:
                found, probabilities = draft.picker.complete(draft, self.piece(row), self.wanted[row])
            except Exception as error:  # this draft's alone
                self.errors[row] = error
                continue
            part = slice(places.start, places.stop)
            stats.token[part] = staged(found, inputs.device)
            stats.probability[part] = staged(probabilities, inputs.device)
        return stats

    def _stats(self, inputs: Tensor, done: int) -> CommitStats:
        if self.logits is None:
            if len(self._fused) == 1:
                return self._fused[0].commit(self._shared, inputs, done)
            stats = empty_stats(inputs)
        elif not self._fused:
            return self._standing_stats(self.logits, done)
        else:
            stats = empty_stats(inputs)
            assert self._looked_at_rows is not None
            _put(stats, self._looked_at_rows, self._standing_stats(self.logits, done))
        for part in self._fused:
            _put(stats, part.at, part.commit(self._shared, inputs[part.at], done))
        return stats

    def _standing_stats(self, logits: Tensor, done: int) -> CommitStats:
        if len(self._drawn) == 1:
            return self._drawn[0].commit(logits, done)
        stats = empty_stats(logits)
        for part in self._drawn:
            _put(stats, part.at, part.commit(logits[part.at], done))
        return stats


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Rows whose logits stand in memory and that are drawn alike."""

    draw: _Draw
    columns: Tensor
    """[5, n], see `Reading._columns`."""

    @property
    def at(self) -> Tensor:
        return self.columns[0]

    def commit(self, logits: Tensor, done: int) -> CommitStats:
        temperature, top_k, top_p = self.draw
        if not temperature:
            return commit_from_logits(logits)
        _, seeds, steps, positions, _ = self.columns.unbind()
        options = DecodeOptions(temperature=temperature, top_k=top_k, top_p=top_p)
        return sample(logits, options, draw_seeds(seeds, steps + done, positions))


@dataclass(frozen=True, slots=True)
class _Fused:
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

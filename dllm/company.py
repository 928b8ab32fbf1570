"""The windows of several drafts in one forward: who shares it, in which rows, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dllm.denoise import Repeat
from dllm.draft import Draft, Pass, Work
from dllm.graphs import Graphs
from dllm.models.family import LayerStore, Network
from dllm.stepping import Forward, Round
from dllm.strategy import FullMask
from dllm.texts import Texts, text_of

Works: TypeAlias = list[tuple[Draft, Work]]


@dataclass(frozen=True, slots=True)
class Ready:
    """Windows side by side."""

    works: Works
    """In the order of their rows."""
    forward: Forward
    ids: Tensor
    """[B, T], the windows' tokens."""
    recorded: Repeat | None
    """Recordings of steps, where there are any."""


class Company:
    """Brings the windows of drafts together.

    Args:
        forward: Runs the network, where that is not the network's own call.
    """

    def __init__(self, model: Network, texts: Texts, forward: Callable[..., Tensor] | None) -> None:
        self._model, self._texts, self._workspace, self._forward = model, texts, texts.workspace, forward

    def forwards(self, works: Works) -> list[Works]:
        """Who shares a forward: all, but for windows that look ahead (`cache="dual"`), which share with their like in length only."""
        if not any(work.window.looks_ahead for _, work in works):
            return [works] if works else []
        works = [(draft, self._refreshed(draft, work)) for draft, work in works]
        # Rows for all of them first: none may lose its own to another forward of this round.
        self._place(works)
        groups: dict[int, Works] = {}
        for draft, work in works:
            groups.setdefault(work.window.length if work.window.looks_ahead else 0, []).append((draft, work))
        return list(groups.values())

    def arranged(self, works: Works) -> Ready:
        """Give all of them rows and lay their windows side by side."""
        # A full-mask draft whose row went to somebody else has lost what it kept there.
        works = [(draft, self._refreshed(draft, work)) for draft, work in works]
        longest = max(work.window.length for _, work in works)
        works = [works[index] for index in self._place(works)]
        arranged = self._workspace.arrange([work.window for _, work in works])
        extra: dict[str, Any] = {}
        if self._model.spec.self_conditioning:
            extra["soft"] = self._soft([work for _, work in works], longest)

        def recorded(steps: Round, count: int) -> tuple[Tensor, Tensor] | None:
            assert isinstance(self._forward, Graphs)
            given = (arranged.ids, arranged.positions, arranged.mask, arranged.start)
            return self._forward.visit(steps, count, given, self._workspace.rows(len(works)))

        may_record = isinstance(self._forward, Graphs) and not extra
        return Ready(
            works,
            lambda ids: self._workspace.forward(arranged, ids, **extra),
            arranged.ids,
            recorded if may_record else None,
        )

    def _place(self, works: Sequence[tuple[Draft, Work]]) -> list[int]:
        """Give the drafts the first rows of the workspace, with room for their windows; which of them stands in each."""
        longest = max(work.window.length for _, work in works)
        slots = max(max(work.window.start + longest, *work.window.visible) for _, work in works)
        drafts = {draft.number: draft for draft, _ in works}

        def fill(key: Hashable, row: list[LayerStore]) -> None:
            draft = drafts[key]  # type: ignore[index]
            self._texts.cache.read(text_of(draft), row)

        return self._workspace.place([draft.number for draft, _ in works], slots, fill)

    def _refreshed(self, draft: Draft, work: Work) -> Work:
        strategy = draft.strategy
        if isinstance(strategy, FullMask) and work.window.start and not self._workspace.has(draft.number):
            strategy.lose_row()
            again = strategy.next(draft)
            assert again is not None
            return again
        return work

    def _soft(self, works: Sequence[Work], longest: int) -> Tensor | None:
        """[B, T, E] self-conditioning; None when all drafts are at their first step."""
        if all(not isinstance(work, Pass) or work.soft is None for work in works):
            return None
        soft = torch.zeros(
            len(works), longest, self._model.spec.hidden_size, device=self._workspace.stores[0].keys.device
        )
        for row, work in enumerate(works):
            if isinstance(work, Pass) and work.soft is not None:
                embedded = self._model.soft_embedding(work.soft.unsqueeze(0))  # type: ignore[attr-defined]
                soft[row, : len(work.soft)] = embedded[0]
        return soft

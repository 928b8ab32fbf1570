"""The drafts that are being written, and how one leaves: finished, failed or cancelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dllm.certain import conclude
from dllm.draft import Draft
from dllm.drafts import Event, Failed, Finished
from dllm.texts import Texts


class Register:
    """Unfinished drafts in order of submission. Who leaves lets go of the memory it had."""

    def __init__(self, texts: Texts, clock: Callable[[], float]) -> None:
        self._texts, self._clock = texts, clock
        self._drafts: list[Draft] = []

    def __contains__(self, draft: Draft) -> bool:
        return draft in self._drafts

    def __iter__(self) -> Iterator[Draft]:
        return iter(self._drafts)

    def __len__(self) -> int:
        return len(self._drafts)

    def add(self, draft: Draft) -> None:
        self._drafts.append(draft)

    def drop(self, draft: Draft, *, keep: bool) -> None:
        """Let a draft go; with `keep` its conversation goes on from what it stored."""
        self._drafts.remove(draft)
        self._texts.close(draft, keep=keep)

    def fail(self, draft: Draft, error: Exception, events: list[Event]) -> None:
        """Let a draft go that cannot go on, and say so; nothing happens when it is gone."""
        if draft in self._drafts:
            self.drop(draft, keep=False)
            events.append(Failed(draft, error))

    def conclude(self, draft: Draft) -> list[Event]:
        """Move a draft on after its commits, and let it go where it is over."""
        # In blocks the clause's end may still be out of sight when its steps are spent: what there is then has to do.
        is_spent = self._texts.spec.mask_kind == "block_causal" and draft.is_spent(self._clock())
        events = conclude(draft, is_spent=is_spent)
        if events and isinstance(events[-1], Finished):
            self.drop(draft, keep=True)
        return events

"""What drafts must have stored before they can step: their prompts, and the blocks that they have finished."""

from __future__ import annotations

from collections.abc import Callable

from dllm.cache import CachedText
from dllm.costs import StepCosts
from dllm.draft import Draft
from dllm.drafts import Event, Prefilled
from dllm.errors import CacheFullError
from dllm.picking import Entry
from dllm.register import Register
from dllm.texts import Texts, text_of


class Storing:
    """Takes pages for drafts and fills them."""

    def __init__(self, texts: Texts, register: Register, costs: StepCosts, clock: Callable[[], float]) -> None:
        self._texts, self._cache, self._register = texts, texts.cache, register
        self._costs, self._clock = costs, clock

    def enter(self, draft: Draft, events: list[Event]) -> Entry:
        """Take pages for all of a draft at once, so that two drafts never hold half each."""
        if not self._texts.is_cached:
            draft.text = CachedText([], [], [])
            draft.strategy.begin(draft)
            return "open"
        limit = len(draft.prompt) - 1 if draft.strategy.needs_carry else None
        text = self._cache.open(draft.prompt, limit)
        try:
            self._cache.reserve(text, len(draft.prompt) + draft.canvas.width)
        except CacheFullError as error:
            self._cache.close(text)
            return self._wait_for_room(draft, error, events)
        draft.text, draft.cached_tokens = text, text.length
        draft.strategy.begin(draft)
        if not draft.pending:
            self._prefilled(draft, events)
        return "open"

    def _wait_for_room(self, draft: Draft, error: CacheFullError, events: list[Event]) -> Entry:
        if any(other.text is not None for other in self._register):
            return "waits"
        self._register.fail(draft, error, events)
        return "failed"

    def store(self, drafts: list[Draft], events: list[Event]) -> None:
        """One forward that stores the pending tokens of as many drafts as fit a chunk, the most urgent first."""
        jobs: list[tuple[Draft, list[int]]] = []
        room = self._texts.chunk
        for draft in drafts:
            chunk = draft.pending[: max(room, self._cache.grid) // self._cache.grid * self._cache.grid]
            if jobs and len(chunk) > room:
                continue
            jobs.append((draft, chunk))
            room -= len(chunk)
            if room < self._cache.grid:
                break
        began = self._clock()
        try:
            hidden = self._texts.encode([(draft.number, text_of(draft), chunk) for draft, chunk in jobs])
        except Exception as error:
            if len(jobs) == 1:
                self._register.fail(jobs[0][0], error, events)
                return
            for draft, _ in jobs:
                self.store([draft], events)
            return
        seconds = self._clock() - began
        self._costs.observe_prefill(sum(len(chunk) for _, chunk in jobs), seconds)
        for row, (draft, chunk) in enumerate(jobs):
            draft.pending = draft.pending[len(chunk) :]
            draft.seconds_prefill += seconds
            if draft.is_prefilled:
                draft.forwards_commit += 1
            else:
                draft.forwards_prefill += 1
            if not draft.pending:
                carry = hidden[row, len(chunk) - 1].clone() if draft.strategy.needs_carry else None
                draft.strategy.stored(draft, carry)
                if not draft.is_prefilled:
                    self._prefilled(draft, events)

    def _prefilled(self, draft: Draft, events: list[Event]) -> None:
        """The prompt is stored: share it, and say so."""
        draft.is_prefilled = True
        text = text_of(draft)
        self._texts.share_system_turn(text)
        draft.created += self._cache.publish(text, draft.spec.conversation)
        events.append(Prefilled(draft, draft.cached_tokens, text.length - draft.cached_tokens, draft.seconds_prefill))

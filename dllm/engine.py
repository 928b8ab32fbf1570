"""The engine: pick the drafts whose deadlines are nearest, run one forward over their canvases, commit what the policy allows.

Synchronous and owned by one thread; tokens in, events out. Each reply is one canvas written in two phases. In phase *first* a step
commits every confident position and at least as many of the first clause's masks as it takes to finish that clause in the steps
left; then the clause is certain and can be spoken. In phase *rest* the same floor holds for everything up to the end of the reply.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dllm.cache import PrefixCache, PrefixEntry
from dllm.canvas import Canvas, TokenTable, repeats_span
from dllm.denoise import DenoiseBatch, prefill
from dllm.drafts import (
    Cell,
    CellState,
    Committed,
    DraftSpec,
    Event,
    Failed,
    Finished,
    FinishReason,
    Phase,
    Plan,
    Prefilled,
    Stepped,
    Usage,
)
from dllm.errors import ConfigError, PinsDoNotFitError, PromptTooLongError
from dllm.models.family import LayerStore
from dllm.models.llama import LlamaDiffusion
from dllm.sampling import Guesses, Sampler, ban, place_spans
from dllm.schedule import deadline_floor
from dllm.selection import select_listed as select

_BANS_PER_COMMIT = 4
"""How many stuttering tokens are refused at one position before the best remaining one is taken as it is."""

_PIN_CONFIDENCE = 0.5
"""A pin is fixed once its tokens' mean probability at the best place is above this."""


@dataclass(slots=True, eq=False)
class Draft:
    """A reply being written. Only the engine changes it."""

    spec: DraftSpec
    number: int
    canvas: Canvas
    plan: Plan
    phase: Phase = "first"
    prefix: tuple[LayerStore, ...] | None = None
    entry: PrefixEntry | None = None
    """What this draft's prefill added to the cache."""
    steps_first: int = 0
    steps_rest: int = 0
    phase_steps: int = 0
    """Steps in the present phase since its plan was set."""
    emitted: int = 0
    forced: int = 0
    unplaced: list[int] = field(default_factory=list)
    """Pins that have no place yet, by their index."""

    @property
    def deadline(self) -> float:
        deadline = self.plan.first_deadline if self.phase == "first" else self.plan.rest_deadline
        return float("inf") if deadline is None else deadline


class Engine:
    """Writes many replies at once with one model.

    Args:
        table: Token classes of the model's tokenizer.
        max_batch: Canvases per forward.
        cache_bytes: Limit of the prefix cache.
        clock: Reads the time that deadlines refer to, in seconds.
    """

    def __init__(
        self,
        model: LlamaDiffusion,
        table: TokenTable,
        *,
        max_batch: int = 8,
        cache_bytes: int = 128 * 2**20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.table, self.max_batch, self._clock = model, table, max_batch, clock
        self.cache = PrefixCache(cache_bytes)
        self._sampler = Sampler(table, model.spec.vocab_size, model.embed_tokens.weight.device)
        self._drafts: list[Draft] = []
        self._numbers = itertools.count(1)
        self._batch: tuple[tuple[int, ...], DenoiseBatch] | None = None

    @property
    def drafts(self) -> tuple[Draft, ...]:
        """Unfinished drafts in order of submission."""
        return tuple(self._drafts)

    def submit(self, spec: DraftSpec) -> Draft:
        """Queue a draft; its first events come from the next round it is picked for.

        Raises:
            ConfigError: If the width is not one the model was trained for.
            PromptTooLongError: If prompt and canvas exceed the model's positions.
            PinsDoNotFitError: If the canvas cannot hold the pins and an end-of-turn.
        """
        geometry = self.model.spec
        if not 0 < spec.width <= geometry.max_canvas or spec.width % geometry.canvas_multiple:
            expected = f"a multiple of {geometry.canvas_multiple} up to {geometry.max_canvas}"
            raise ConfigError("width", spec.width, expected)
        if not spec.prompt:
            raise ConfigError("prompt", (), "at least one token")
        if len(spec.prompt) + spec.width > geometry.max_position_embeddings:
            raise PromptTooLongError(len(spec.prompt) + spec.width, geometry.max_position_embeddings)
        pinned = sum(len(pin) for pin in spec.pins)
        if pinned + 1 > spec.width:
            raise PinsDoNotFitError(pinned, spec.width)
        canvas = Canvas(spec.width, self.table)
        draft = Draft(spec, next(self._numbers), canvas, spec.plan, unplaced=list(range(len(spec.pins))))
        self._drafts.append(draft)
        return draft

    def replan(self, draft: Draft, plan: Plan) -> None:
        """Give a draft new steps and deadlines; the steps count from now. Takes effect before the next forward."""
        draft.plan, draft.phase_steps = plan, 0

    def cancel(self, draft: Draft) -> None:
        """Stop a draft between two forwards. No event follows, and the cache is as if it had never been. Safe twice."""
        if draft in self._drafts:
            self._drop(draft)
            if draft.entry is not None:
                self.cache.remove(draft.entry)

    def warm(self, conversation: str, tokens: Sequence[int]) -> int:
        """Put the keys and values of a prompt's beginning into the cache; how many tokens that took."""
        if len(tokens) > self.model.spec.max_position_embeddings:
            raise PromptTooLongError(len(tokens), self.model.spec.max_position_embeddings)
        with torch.inference_mode():
            _, entry, cached = self._prefix_of(tuple(tokens), conversation)
        if entry is not None:
            self.cache.supersede(entry)
        return len(tokens) - cached

    def forget(self, conversation: str) -> None:
        """Drop what the cache holds for one conversation. The system turn it shares with others stays."""
        self.cache.forget(conversation)

    def run_round(self) -> list[Event]:
        """One round: prefill the picked drafts that need it, then one forward over all their canvases. Empty when idle."""
        picked = sorted(self._drafts, key=lambda draft: (draft.deadline, draft.number))[: self.max_batch]
        events: list[Event] = []
        with torch.inference_mode():
            ready = [draft for draft in picked if draft.prefix is not None or self._prefill(draft, events)]
            if ready:
                try:
                    events += self._step(ready)
                except Exception as error:
                    events += self._step_apart(ready, error)
        return events

    # --- prefill ------------------------------------------------------------------------------------------------------

    def _prefill(self, draft: Draft, events: list[Event]) -> bool:
        began = self._clock()
        try:
            draft.prefix, draft.entry, cached = self._prefix_of(draft.spec.prompt, draft.spec.conversation)
        except Exception as error:
            self._drop(draft)
            events.append(Failed(draft, error))
            return False
        events.append(Prefilled(draft, cached, len(draft.spec.prompt) - cached, self._clock() - began))
        return True

    def _prefix_of(
        self, tokens: tuple[int, ...], conversation: str
    ) -> tuple[tuple[LayerStore, ...], PrefixEntry | None, int]:
        """Keys and values of a prompt, the entry it added to the cache if any, and how many tokens were there already."""
        found, cached = self.cache.find(tokens)
        stores = prefill(self.model, tokens, found, cached)
        self._share_system_turn(tokens, stores)
        entry = PrefixEntry(tokens, stores, conversation)
        return stores, entry if self.cache.add(entry) else None, cached

    def _share_system_turn(self, tokens: tuple[int, ...], stores: tuple[LayerStore, ...]) -> None:
        dialogue = self.model.spec.dialogue
        if dialogue is not None and tokens[0] == dialogue.system and self.table.end in tokens:
            length = tokens.index(self.table.end) + 1
            shared = tuple(
                LayerStore(store.keys[:, :, :length].clone(), store.values[:, :, :length].clone()) for store in stores
            )
            self.cache.add(PrefixEntry(tokens[:length], shared, None))

    # --- one step -----------------------------------------------------------------------------------------------------

    def _step_apart(self, drafts: list[Draft], error: Exception) -> list[Event]:
        """A forward failed: find out whose fault it was by running each draft alone."""
        if len(drafts) == 1:
            self._drop(drafts[0])
            return [Failed(drafts[0], error)]
        events: list[Event] = []
        for draft in drafts:
            try:
                events += self._step([draft])
            except Exception as own_error:
                self._drop(draft)
                events.append(Failed(draft, own_error))
        return events

    def _step(self, drafts: list[Draft]) -> list[Event]:
        began = self._clock()
        batch = self._batch_for(drafts)
        wanted = [draft.canvas.masked() for draft in drafts]
        logits = batch.logits([draft.canvas.model_input() for draft in drafts], wanted)
        pieces = torch.split(logits, [len(positions) for positions in wanted])
        # Drafts at temperature 0 are read in one call; the rest need noise of their own.
        for positions, piece, draft in zip(wanted, pieces, drafts, strict=True):
            ban(piece, self._impossible(draft, positions))
        greedy = self._sampler.guess(logits)
        outcomes: list[tuple[int, int] | Exception] = []
        at = 0
        for draft, positions, piece in zip(drafts, wanted, pieces, strict=True):
            guesses = Guesses(greedy.tokens[at : at + len(positions)], greedy.probabilities[at : at + len(positions)])
            at += len(positions)
            try:
                outcomes.append(self._advance(draft, positions, piece, guesses, began))
            except Exception as error:  # this draft's alone: the others' canvases are untouched by it
                outcomes.append(error)
        seconds = self._clock() - began
        events: list[Event] = []
        for draft, outcome in zip(drafts, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._drop(draft)
                events.append(Failed(draft, outcome))
                continue
            committed, forced = outcome
            cells = tuple(map(Cell, draft.canvas.tokens, draft.canvas.states, draft.canvas.confidence))
            step = draft.steps_first + draft.steps_rest
            events.append(Stepped(draft, step, draft.phase, cells, committed, forced, seconds, len(drafts)))
            events += self._conclude(draft)
        return events

    def _batch_for(self, drafts: list[Draft]) -> DenoiseBatch:
        key = tuple(draft.number for draft in drafts)
        if self._batch is None or self._batch[0] != key:
            prefixes = [draft.prefix for draft in drafts if draft.prefix is not None]
            lengths = [len(draft.spec.prompt) for draft in drafts]
            widths = [draft.spec.width for draft in drafts]
            self._batch = (key, DenoiseBatch(self.model, prefixes, lengths, widths))
        return self._batch[1]

    def _impossible(self, draft: Draft, positions: list[int]) -> list[tuple[int, int]]:
        """(row, token) pairs to rule out: a reply is not empty, does not end before its last pin, and does not start a pin twice."""
        canvas = draft.canvas
        first_end = max(1, canvas.last_pin() + 1)
        pairs = [(row, self.table.end) for row, position in enumerate(positions) if position < first_end]
        variants = self.table.case_variants
        openings = {
            other for pin in draft.spec.pins for token in pin[:2] for other in (token, *variants.get(token, ()))
        }
        for row, position in enumerate(positions):
            near = range(max(0, position - 2), min(canvas.width, position + 3))
            if any(canvas.states[at] is CellState.PINNED for at in near):
                pairs += [(row, token) for token in openings]
        return pairs

    def _openings(self, draft: Draft) -> set[int]:
        """Tokens that begin a pin, in any case: beside a pin they would say it twice."""
        variants = self.table.case_variants
        return {other for pin in draft.spec.pins for token in pin[:2] for other in (token, *variants.get(token, ()))}

    def _advance(
        self, draft: Draft, positions: list[int], logits: Tensor, guesses: Guesses, now: float
    ) -> tuple[int, int]:
        """Commit what this step's logits allow; (positions decided, of those forced)."""
        canvas, plan = draft.canvas, draft.plan
        if draft.phase == "first":
            draft.steps_first += 1
        else:
            draft.steps_rest += 1
        draft.phase_steps += 1
        if draft.spec.options.temperature > 0:
            seed = draft.spec.options.seed * 1009 + draft.steps_first + draft.steps_rest
            guesses = self._sampler.guess(logits, draft.spec.options.temperature, seed)
        for position, token, probability in zip(positions, guesses.tokens, guesses.probabilities, strict=True):
            canvas.guess(position, token, probability)
        steps = plan.steps_first if draft.phase == "first" else plan.steps_rest
        if now >= draft.deadline:
            steps = min(steps, max(plan.floor, draft.phase_steps))
        steps_left = max(steps - draft.phase_steps + 1, 1)
        stop = canvas.first_clause_end() if draft.phase == "first" else canvas.reply_end()
        open_positions = positions
        pinned = 0
        if draft.unplaced:
            open_positions, pinned = self._consider_pins(draft, positions, logits, stop, steps_left)
        # Ends wait: one decided early on the right would fix the reply's length before its words are known.
        text_positions = [position for position in open_positions if canvas.tokens[position] != self.table.end]
        urgent = [position for position in text_positions if position < stop]
        chosen = select(
            canvas.confidence, text_positions, urgent, plan.threshold, deadline_floor(len(urgent), steps_left)
        )
        rows = {position: row for row, position in enumerate(positions)}
        for position in chosen.positions:
            token, probability = self._without_stutter(draft, position, logits[rows[position]])
            canvas.commit(position, token, probability)
        committed, forced = len(chosen.positions), len(chosen.forced)
        end = canvas.decided_prefix()
        if end in open_positions and canvas.tokens[end] == self.table.end:
            is_confident = canvas.confidence[end] > plan.threshold
            if is_confident or not urgent or steps_left <= 1:
                canvas.commit(end, self.table.end, canvas.confidence[end])
                committed, forced = committed + 1, forced + (not is_confident)
        draft.forced += forced
        return pinned + committed, forced

    def _consider_pins(
        self, draft: Draft, positions: list[int], logits: Tensor, stop: int, steps_left: int
    ) -> tuple[list[int], int]:
        """Fix pinned spans, left to right, once it is clear where they go.

        On an all-masked canvas every place is a little likely, and a wrong one forces words into a gap of the wrong size. So text is
        committed to the left of the leftmost span's likely place first, which makes it sharp; the span is fixed when the model is
        sure of it or surer than of any word before it, when no such word is left, or when the steps run out. The others are looked
        for again in the next step.

        Returns:
            Positions that may be committed in this step, and how many were pinned.
        """
        canvas, pins = draft.canvas, [draft.spec.pins[index] for index in draft.unplaced]
        placement = place_spans(logits, positions, pins, canvas.width)
        if placement is None:
            raise PinsDoNotFitError(sum(len(pin) for pin in pins), canvas.width)
        spans = sorted(zip(placement.starts, draft.unplaced, placement.confidences, strict=True))
        first = spans[0][0]
        openings = self._openings(draft) | {self.table.end}
        before = [at for at in positions if at < first and canvas.tokens[at] not in openings]
        surest = max((canvas.confidence[at] for at in before if at < stop), default=0.0)
        due = steps_left <= 2 and first < stop
        if spans[0][2] <= min(_PIN_CONFIDENCE, surest) and not due:
            return before, 0
        pinned = 0
        for start, index, _ in spans if due else spans[:1]:
            if start == first or start < stop:
                canvas.pin(start, draft.spec.pins[index])
                draft.unplaced.remove(index)
                pinned += len(draft.spec.pins[index])
        # What is beside the pins and right of them was guessed without them; it waits for a step, unless there is none.
        open_positions = [at for at in canvas.masked() if at < first - 1 or (steps_left <= 1 and not draft.unplaced)]
        return [at for at in open_positions if canvas.tokens[at] not in openings], pinned

    def _without_stutter(self, draft: Draft, position: int, row: Tensor) -> tuple[int, float]:
        """The guess at a position, or the best other token when it would repeat a span."""
        canvas = draft.canvas
        token, probability = canvas.tokens[position], canvas.confidence[position]
        for _ in range(_BANS_PER_COMMIT):
            if not repeats_span(canvas, position, token):
                break
            # Nor may the reply end here instead: what must be said may still be to come.
            row[[token, self.table.end]] = float("-inf")
            other = self._sampler.guess(row.unsqueeze(0))
            token, probability = other.tokens[0], other.probabilities[0]
        return token, probability

    def _conclude(self, draft: Draft) -> list[Event]:
        """Move a draft on after its commits: emit what became certain, change phase, finish."""
        canvas = draft.canvas
        decided = canvas.decided_prefix()
        if draft.phase == "first" and decided < canvas.first_clause_end():
            return []
        end = canvas.reply_end()
        if decided > end or decided == canvas.width:
            reason: FinishReason = "end_of_turn" if end < canvas.width else "canvas_full"
            if reason == "canvas_full":
                end = canvas.last_sentence_end(draft.emitted)
            reply = tuple(canvas.tokens[:end])
            events: list[Event] = []
            if end > draft.emitted:
                events.append(Committed(draft, draft.emitted, reply[draft.emitted :], draft.phase))
            usage = Usage(len(draft.spec.prompt), 0, len(reply), 1, draft.steps_first + draft.steps_rest)
            sure = tuple(canvas.confidence[:end])
            events.append(
                Finished(draft, reason, reply, sure, draft.steps_first, draft.steps_rest, draft.forced, usage)
            )
            self._drop(draft)
            if draft.entry is not None:
                self.cache.supersede(draft.entry)
            return events
        cut = canvas.speakable(draft.emitted, decided)
        events = []
        if cut > draft.emitted:
            events.append(Committed(draft, draft.emitted, tuple(canvas.tokens[draft.emitted : cut]), draft.phase))
            draft.emitted = cut
        if draft.phase == "first":
            draft.phase, draft.phase_steps = "rest", 0
        return events

    def _drop(self, draft: Draft) -> None:
        if draft in self._drafts:
            self._drafts.remove(draft)
        if self._batch is not None and draft.number in self._batch[0]:
            self._batch = None
        draft.prefix = None

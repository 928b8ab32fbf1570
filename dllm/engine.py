"""The engine: pick the drafts whose deadlines are nearest, run one forward over their windows, commit what the policy allows.

Synchronous and owned by one thread; tokens in, events out. A plan that speaks clauses (`by_clause`) has two phases. In phase *first* a
step commits every position the rule wants and at least as many of the first clause's masks as it takes to finish that clause in
the steps left; then the clause is certain and can be spoken. In phase *rest* the same floor holds up to the end of the reply.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dllm.cache import CachedText, PrefixCache
from dllm.canvas import Canvas, TokenTable
from dllm.costs import EngineLoad, StepCosts
from dllm.denoise import Denoiser, Repeat
from dllm.draft import Draft, Live, Pass, Work
from dllm.drafts import (
    Cell,
    CellState,
    Committed,
    DraftSpec,
    Event,
    Failed,
    Finished,
    FinishReason,
    Plan,
    Prefilled,
    Revised,
    Stepped,
    Usage,
)
from dllm.errors import CacheFullError, ConfigError, PinsDoNotFitError, PromptTooLongError
from dllm.extent import TokenClasses
from dllm.graphs import Graphs
from dllm.guard import History
from dllm.masks import visible
from dllm.models.family import LayerStore, Network
from dllm.options import DecodeOptions
from dllm.outcome import Outcome, Visit
from dllm.pins import has_room, keep_room
from dllm.process import Processor, Vocabulary
from dllm.revision import Rescore, Reviser, forget_kept, with_shadow
from dllm.sampling import Guesses, Picker
from dllm.stepping import Forward, Round
from dllm.strategy import FullMask, choose_strategy
from dllm.visits import goes_on_from, steps_before, steps_together
from dllm.window import Window, Workspace

PREFILL_CHUNK = 512
"""Prompt tokens per round: a long prompt stalls the drafts beside it for one such forward at most."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that the engine holds."""

    weights: int
    cache: int
    """The pool of the prefix cache, full or not."""
    workspace: int
    """Contiguous keys and values of the present company."""


class Engine:
    """Writes many replies at once with one model.

    Args:
        table: Token classes of the model's tokenizer.
        max_batch: Drafts per forward.
        cache_bytes: Size of the prefix cache.
        clock: Reads the time that deadlines refer to, in seconds.
        forward: Runs the network, where that is not the network's own call (`dllm.graphs.cuda_graphs`).
        steps_per_visit: Most denoising steps between two looks at their outcome. New plans, cancels, drafts and deadlines take effect at the
            next one, and events come for all of them together; what is written is the same.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(
        self,
        model: Network,
        table: TokenTable,
        *,
        max_batch: int = 8,
        cache_bytes: int = 128 * 2**20,
        clock: Callable[[], float] = time.monotonic,
        forward: Callable[..., Tensor] | None = None,
        steps_per_visit: int = 1,
    ) -> None:
        if steps_per_visit < 1:
            raise ConfigError("steps_per_visit", steps_per_visit, "at least 1")
        self.steps_per_visit = steps_per_visit
        self.model, self.table, self.max_batch, self._clock = model, table, max_batch, clock
        self.spec = model.spec
        self._device = next(iter(model.parameters())).device  # type: ignore[attr-defined]
        self._is_cached = self.spec.mask_kind != "full"
        grid = self.spec.block if self.spec.mask_kind == "block_causal" else 1
        page = max(16, grid)
        self.cache = PrefixCache(model, cache_bytes if self._is_cached else 0, page if page % grid == 0 else grid, grid)
        self.workspace, self._forward = Workspace(model, max_batch, forward), forward
        self.costs = StepCosts()
        self._classes = TokenClasses(table, self.spec.vocab_size, self._device)
        forbidden = {*table.forbidden, *self.spec.special.forbidden, table.mask}
        if self.spec.special.mask is not None:
            forbidden.add(self.spec.special.mask)
        marks = table.word | table.sentence_end | table.clause_end
        ends = self.spec.special.ends
        self._plain = Vocabulary.of(self.spec.vocab_size, ends, forbidden, self._device)
        self._strict = Vocabulary.of(self.spec.vocab_size, ends, forbidden, self._device, marks)
        self._denoiser = Denoiser(model, self.spec, self._classes, self._plain)
        self._drafts: list[Draft] = []
        self._numbers = itertools.count(1)

    @property
    def drafts(self) -> tuple[Draft, ...]:
        """Unfinished drafts in order of submission."""
        return tuple(self._drafts)

    def memory(self) -> Memory:
        weights = sum(part.numel() * part.element_size() for part in self.model.parameters())  # type: ignore[attr-defined]
        weights += sum(part.numel() * part.element_size() for part in self.model.buffers())  # type: ignore[attr-defined]
        decoder = getattr(self.model, "decoder", None)
        weights += 0 if decoder is None else decoder.held_bytes
        return Memory(weights, self.cache.limit_bytes, self.workspace.size_bytes)

    def load(self, width: int = 32) -> EngineLoad:
        """What a step of one more draft of that width would cost now, learned from the steps so far."""
        waiting = sum(len(draft.pending) if draft.text is not None else len(draft.prompt) for draft in self._drafts)
        return self.costs.load(len(self._drafts), min(len(self._drafts) + 1, self.max_batch), width, waiting)

    # --- what callers ask ---------------------------------------------------------------------------------------------

    def submit(self, spec: DraftSpec) -> Draft:
        """Queue a draft; its first events come from the next round it is picked for.

        Raises:
            ConfigError: If the width is not one the model was trained for, or the options ask for what the model cannot do.
            PromptTooLongError: If prompt and canvas exceed the model's positions.
            PinsDoNotFitError: If the canvas cannot hold the pins and an end-of-turn.
            CacheFullError: If the prompt is larger than the whole cache.
        """
        options = self._check(spec)
        canvas = Canvas(self._canvas_width(spec), self.table)
        processor = Processor(options, self._plain if not options.no_stutter else self._strict)
        draft = Draft(
            spec=replace(spec, options=options),
            number=next(self._numbers),
            canvas=canvas,
            plan=spec.plan,
            prompt=spec.prompt,
            strategy=choose_strategy(self.spec, options),
            picker=Picker(processor, options, self._device),
            unplaced=list(range(len(spec.pins))),
        )
        self._begin_steps(draft)
        for position, token in spec.given:
            canvas.pin(position if position >= 0 else spec.width + position, (token,))
        if spec.keep:
            self._keep(draft)
        self._drafts.append(draft)
        return draft

    def replan(self, draft: Draft, plan: Plan) -> None:
        """Give a draft new steps and deadlines; the steps count from now. Takes effect before the next forward."""
        draft.plan, draft.phase_steps = plan, 0

    def revise(self, draft: Draft, prompt: Sequence[int], plan: Plan | None = None) -> None:
        """Go on under a changed prompt: keep the canvas, mask again what the new prompt makes unlikely.

        What was emitted stays. Every other decided token is asked for twice over: two forwards, each with half of them masked, give its
        probability under the new prompt given the other half; those below `DecodeOptions.keep_above` are masked again. Nothing is
        asked when the draft has decided nothing yet. Where nothing can be asked (causal modes, uniform corruption) only what was
        emitted is kept.

        Raises:
            PromptTooLongError: If the new prompt and the canvas exceed the model's positions.
            CacheFullError: If they are larger than the whole cache.
            ConfigError: If the draft is finished, or the prompt is empty or holds what is no token.
        """
        if draft not in self._drafts:
            raise ConfigError("draft", draft.number, "one that is still being written")
        self._check_prompt(prompt)
        width = self._canvas_width(replace(draft.spec, prompt=tuple(prompt)))
        self._check_length(len(prompt) + width)
        self._close(draft, keep=False)
        draft.canvas.resize(width)
        draft.prompt, draft.is_prefilled = tuple(prompt), False
        draft.plan, draft.phase_steps = plan or draft.plan, 0
        draft.strategy = choose_strategy(self.spec, draft.spec.options)
        self._begin_steps(draft)
        draft.rescore = None
        if self._can_rate(draft.spec):
            draft.rescore = Rescore.of(draft)
            return
        for at in range(draft.emitted, width):
            if draft.canvas.states[at] is CellState.COMMITTED:
                draft.canvas.remask(at)

    def cancel(self, draft: Draft) -> None:
        """Stop a draft between two forwards. No event follows, and its conversation's cache is as if it had never been. Safe twice.

        A system turn that it stored belongs to everybody and stays.
        """
        if draft in self._drafts:
            self._drop(draft, keep=False)

    def warm(self, conversation: str, tokens: Sequence[int]) -> int:
        """Put the keys and values of a prompt's beginning into the cache; how many tokens that took.

        Nothing happens for full-mask models, or when there is no room.
        """
        if len(tokens) > self.spec.max_position_embeddings:
            raise PromptTooLongError(len(tokens), self.spec.max_position_embeddings)
        wanted = list(tokens[: len(tokens) // self.cache.grid * self.cache.grid])
        if not self._is_cached or not wanted:
            return 0
        text = self.cache.open(wanted)
        cached, key = text.length, object()
        try:
            self.cache.reserve(text, len(wanted))
            with torch.inference_mode():
                chunk = max(PREFILL_CHUNK // self.cache.grid, 1) * self.cache.grid
                while text.length < len(wanted):
                    self._encode([(key, text, wanted[text.length : text.length + chunk])])
            self._share_system_turn(text)
            self.cache.publish(text, conversation)
            self.cache.keep_only(conversation, text)
        except CacheFullError:
            return 0
        finally:
            self.workspace.drop(key)
            self.cache.close(text)
        return len(wanted) - cached

    def forget(self, conversation: str) -> None:
        """Drop what the cache holds for one conversation. The system turn it shares with others stays."""
        self.cache.forget(conversation)

    def run_round(self) -> list[Event]:
        """One round: store what the picked drafts must have stored, then one forward over all their windows. Empty when idle."""
        events: list[Event] = []
        with torch.inference_mode():
            picked = self._pick(events)
            waiting = [draft for draft in picked if draft.pending]
            if waiting:
                self._store_pending(waiting, events)
            works = [(draft, work) for draft in picked if (work := self._next(draft, events)) is not None]
            for together in self._forwards(works):
                try:
                    self._step(together, events)
                except Exception as error:
                    self._step_apart(together, error, events)
        return events

    def _pick(self, events: list[Event]) -> list[Draft]:
        """The drafts with the nearest deadlines that have room in the cache, at most `max_batch`; beside one that does not give way, only
        as many of those that do as its plan lets in.

        One that waits for room holds up nobody who has it, or it would wait for ever; and nobody who has not begun overtakes it. Speculative
        drafts are picked where nobody waits for another.
        """
        awaited = [draft for draft in self._drafts if not draft.plan.is_speculative]
        # A speculative draft may hold the very room that an awaited one waits for: then it has to come to its end.
        others = [draft for draft in self._drafts if draft.plan.is_speculative]
        return self._pick_from(awaited, events) or self._pick_from(others, events)

    def _pick_from(self, awaited: list[Draft], events: list[Event]) -> list[Draft]:
        picked: list[Draft] = []
        is_full = False
        now = self._clock() if any(draft.plan.rest_yields_until is not None for draft in awaited) else 0.0
        waits = {draft.number for draft in awaited if draft.gives_way(now)}
        guests = len(awaited)
        if len(waits) < len(awaited):
            guests = min(draft.guests for draft in awaited if draft.number not in waits)
        for draft in sorted(awaited, key=lambda draft: (draft.number in waits, draft.deadline, draft.number)):
            if len(picked) == self.max_batch:
                break
            if draft.number in waits:
                if guests == 0:
                    break
                guests -= 1
            if draft.text is not None or (not is_full and self._open(draft, events)):
                picked.append(draft)
            else:
                is_full = is_full or draft in self._drafts
        return picked

    # --- checks -------------------------------------------------------------------------------------------------------

    def _check(self, spec: DraftSpec) -> DecodeOptions:
        model, options = self.spec, spec.options
        if spec.width < 1 or spec.width % model.canvas_multiple or (model.max_canvas and spec.width > model.max_canvas):
            expected = f"a multiple of {model.canvas_multiple}" if model.canvas_multiple > 1 else "at least 1"
            raise ConfigError(
                "width", spec.width, expected + (f" up to {model.max_canvas}" if model.max_canvas else "")
            )
        self._check_prompt(spec.prompt)
        self._check_length(len(spec.prompt) + self._canvas_width(spec))
        pinned = sum(len(pin) for pin in spec.pins)
        if pinned and pinned + 1 > spec.width:
            raise PinsDoNotFitError(pinned, spec.width)
        if spec.pins and spec.constraint is not None:
            raise ConfigError("pins", len(spec.pins), "none beside a grammar, which decides where everything goes")
        if spec.pins and (options.mode != "diffusion" or model.corruption == "uniform"):
            raise ConfigError("pins", len(spec.pins), "none: their place can be chosen on a masked canvas only")
        if spec.constraint is not None and (
            options.mode != "diffusion" or options.revises or model.corruption == "uniform"
        ):
            raise ConfigError("constraint", "given", "none, or a masked canvas whose decided tokens stay")
        for position, token in spec.given:
            if not -spec.width <= position < spec.width or not 0 <= token < model.vocab_size:
                raise ConfigError(
                    "given", (position, token), f"a position of the canvas of {spec.width} and a token id"
                )
        if spec.given and options.mode != "diffusion":
            raise ConfigError("given", len(spec.given), "none: left-to-right writing knows nothing of what follows")
        for index, start in spec.keep_pins:
            if not (0 <= index < len(spec.pins) and 0 <= start <= spec.width - len(spec.pins[index])):
                raise ConfigError("keep_pins", (index, start), "an index into `pins` and a position that leaves room")
        if not 0 <= spec.keep_least <= 1:
            raise ConfigError("keep_least", spec.keep_least, "a share in [0, 1]")
        if spec.keep and not self._can_rate(spec):
            raise ConfigError("keep", len(spec.keep), "none: only a masked canvas can say what still fits")
        if any(not stop for stop in spec.stop):
            raise ConfigError("stop", spec.stop, "sequences of at least one token")
        # A grammar chooses whole ways through the canvas; what would change single tokens behind its back is off.
        return replace(options, no_stutter=False, hold_ends=False) if spec.constraint is not None else options

    def _check_prompt(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise ConfigError("prompt", (), "at least one token")
        outside = next((token for token in prompt if not 0 <= token < self.spec.vocab_size), None)
        if outside is not None:
            raise ConfigError("prompt", outside, f"token ids in [0, {self.spec.vocab_size})")

    def _can_rate(self, spec: DraftSpec) -> bool:
        """Whether decided tokens of the draft can be asked for behind masks."""
        return spec.options.mode == "diffusion" and self.spec.corruption == "absorbing"

    def _check_length(self, total: int) -> None:
        if total > self.spec.max_position_embeddings:
            raise PromptTooLongError(total, self.spec.max_position_embeddings)
        if self._is_cached and total > self.cache.capacity_pages * self.cache.page_size:
            raise CacheFullError(total, self.cache.capacity_pages * self.cache.page_size)

    def _canvas_width(self, spec: DraftSpec) -> int:
        """Whole blocks on the model's grid: the model was trained on blocks that are full of masks."""
        grid = self.spec.block if self.spec.mask_kind == "block_causal" else 1
        return -(-(len(spec.prompt) + spec.width) // grid) * grid - len(spec.prompt)

    # --- storing text -------------------------------------------------------------------------------------------------

    def _open(self, draft: Draft, events: list[Event]) -> bool:
        """Take pages for all of a draft at once, so that two drafts never hold half each; False while there is no room."""
        if not self._is_cached:
            draft.text = CachedText([], [], [])
            draft.strategy.begin(draft)
            return True
        limit = len(draft.prompt) - 1 if draft.strategy.needs_carry else None
        text = self.cache.open(draft.prompt, limit)
        try:
            self.cache.reserve(text, len(draft.prompt) + draft.canvas.width)
        except CacheFullError as error:
            self.cache.close(text)
            return self._wait_for_room(draft, error, events)
        draft.text, draft.cached_tokens = text, text.length
        draft.strategy.begin(draft)
        if not draft.pending:
            self._prefilled(draft, events)
        return True

    def _wait_for_room(self, draft: Draft, error: CacheFullError, events: list[Event]) -> bool:
        if not any(other.text is not None for other in self._drafts):
            self._fail(draft, error, events)
        return False

    def _store_pending(self, drafts: list[Draft], events: list[Event]) -> None:
        """One forward that stores the pending tokens of as many drafts as fit a chunk, the most urgent first."""
        jobs: list[tuple[Draft, list[int]]] = []
        room = PREFILL_CHUNK
        for draft in drafts:
            chunk = draft.pending[: max(room, self.cache.grid) // self.cache.grid * self.cache.grid]
            if jobs and len(chunk) > room:
                continue
            jobs.append((draft, chunk))
            room -= len(chunk)
            if room < self.cache.grid:
                break
        began = self._clock()
        try:
            hidden = self._encode([(draft.number, _text(draft), chunk) for draft, chunk in jobs])
        except Exception as error:
            if len(jobs) == 1:
                self._fail(jobs[0][0], error, events)
                return
            for draft, _ in jobs:
                self._store_pending([draft], events)
            return
        seconds = self._clock() - began
        self.costs.observe_prefill(sum(len(chunk) for _, chunk in jobs), seconds)
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
        text = _text(draft)
        self._share_system_turn(text)
        draft.created += self.cache.publish(text, draft.spec.conversation)
        events.append(Prefilled(draft, draft.cached_tokens, text.length - draft.cached_tokens, draft.seconds_prefill))

    def _encode(self, jobs: Sequence[tuple[Hashable, CachedText, Sequence[int]]]) -> Tensor:
        """Run finished tokens and append their keys and values to their texts; hidden states [B, T, E] in the order of jobs."""
        longest = max(len(tokens) for _, _, tokens in jobs)
        keys = [key for key, _, _ in jobs]
        texts = {key: text for key, text, _ in jobs}
        slots = max(text.length for text in texts.values()) + longest
        order = self.workspace.place(keys, slots, lambda key, row: self.cache.read(texts[key], row))
        windows = [
            Window(
                tokens,
                text.length,
                visible(self.spec, text.length, len(tokens), total=text.length + len(tokens)),
            )
            for _, text, tokens in (jobs[index] for index in order)
        ]
        extra: dict[str, Any] = {"causal": True} if self.spec.mask_kind == "encoder_decoder" else {}
        hidden = self.workspace.forward(self.workspace.arrange(windows), **extra)
        for key, text, tokens in jobs:
            self.cache.write(text, tokens, self.workspace.row(key), text.length)
        back = [order.index(index) for index in range(len(jobs))]
        return hidden if back == sorted(back) else hidden[back]

    def _share_system_turn(self, text: CachedText) -> None:
        """The system turn belongs to everybody."""
        dialogue = self.spec.dialogue
        if dialogue is not None and text.tokens and text.tokens[0] == dialogue.system and self.table.end in text.tokens:
            self.cache.publish(text, None, text.tokens.index(self.table.end) + 1)

    # --- one step -----------------------------------------------------------------------------------------------------

    def _next(self, draft: Draft, events: list[Event]) -> Work | None:
        """What a draft wants of this round's forward; None while it stores something, or when it has just finished."""
        if draft not in self._drafts or draft.pending:
            return None
        try:
            draft.steps_left_now = draft.steps_left(self._clock())
            if draft.rescore is not None:
                rating = draft.rescore.next(draft, self.spec)
                if rating is not None:
                    return rating
                done, draft.rescore = draft.rescore, None
                events.append(Revised(draft, done.kept, done.asked, done.forwards, _cells(draft)))
            self._seed(draft)
            events += self._conclude(draft)
            work = draft.strategy.next(draft) if draft in self._drafts else None
            if isinstance(work, Live) and draft.spec.options.wino_threshold is not None and not draft.finishes_now:
                assert self.spec.special.mask is not None
                return with_shadow(work, self.spec.special.mask)
            return work
        except Exception as error:
            self._fail(draft, error, events)
            return None

    def _seed(self, draft: Draft) -> None:
        """Decide the token that the causal pass before the canvas predicts."""
        position, carry = draft.strategy.seed_position(draft), draft.strategy.carry
        if position is None or carry is None:
            return
        if draft.unplaced and keep_room(draft, position):
            return
        logits = self.model.logits(carry.unsqueeze(0)).float()
        if draft.unplaced or draft.canvas.last_pin() > position:
            logits.index_fill_(1, self._denoiser.ends, float("-inf"))
        if draft.spec.constraint is None:
            guess = draft.picker.pick(draft, logits, [position])
        else:
            draft.picker.process(draft, logits, [position])
            guess = Guesses(*draft.picker.complete(draft, logits, [position]))
        draft.canvas.commit(position, guess.tokens[0], guess.probabilities[0])

    def _forwards(self, works: list[tuple[Draft, Work]]) -> list[list[tuple[Draft, Work]]]:
        """Who shares a forward: all, but for windows that look ahead (`cache="dual"`), which share with their like in length only."""
        if not any(work.window.looks_ahead for _, work in works):
            return [works] if works else []
        works = [(draft, self._refreshed(draft, work)) for draft, work in works]
        # Rows for all of them first: none may lose its own to another forward of this round.
        self._place(works)
        groups: dict[int, list[tuple[Draft, Work]]] = {}
        for draft, work in works:
            groups.setdefault(work.window.length if work.window.looks_ahead else 0, []).append((draft, work))
        return list(groups.values())

    def _step_apart(self, works: list[tuple[Draft, Work]], error: Exception, events: list[Event]) -> None:
        """A forward failed: find out whose fault it was by running each draft alone."""
        if len(works) == 1:
            self._fail(works[0][0], error, events)
            return
        for draft, work in works:
            try:
                self._step([(draft, work)], events)
            except Exception as own_error:
                self._fail(draft, own_error, events)

    def _step(self, works: list[tuple[Draft, Work]], events: list[Event]) -> None:
        began = self._clock()
        works, forward, ids, recorded = self._arranged(works)
        count = self._count(works, began)
        outcomes: dict[int, Outcome | Exception] = {}
        lives = [(row, draft, work) for row, (draft, work) in enumerate(works) if isinstance(work, Live)]
        drafts = [draft for _, draft, _ in lives]
        visit: Visit | None = None
        if len(lives) == len(works):
            visit = self._denoiser.visit(drafts, [live for _, _, live in lives], forward, ids, count, recorded)
        else:
            hidden = forward(None)
            if lives:
                own = hidden[[row for row, _, _ in lives]]
                visit = self._denoiser.visit(drafts, [live for _, _, live in lives], lambda _: own, None, 1)
            for row, (draft, work) in enumerate(works):
                if isinstance(work, Pass):
                    outcomes[row] = self._absorb(draft, work, hidden[row])
        if visit is not None:
            for index, (row, draft, live) in enumerate(lives):
                outcomes[row] = visit.put(draft, index, 0)
                if not isinstance(outcomes[row], Exception):
                    self._commit(draft, live.window, live.commits)
                    if isinstance(draft.strategy, FullMask):
                        draft.strategy.keep_carry(visit.hidden[index], live)
        seconds = (self._clock() - began) / count
        for _ in range(count):
            self.costs.observe_step(len(works), max(work.window.length for _, work in works), seconds)
        self._tell(works, outcomes, seconds, events)
        if visit is not None and count > 1:
            self._replay(visit, [(draft, live) for _, draft, live in lives], began, seconds, events)

    def _replay(
        self, visit: Visit, lives: list[tuple[Draft, Live]], began: float, seconds: float, events: list[Event]
    ) -> None:
        """The further steps of a visit, as if each had had one of its own. What a draft would have done otherwise by then is dropped."""
        going = list(enumerate(lives))
        for step in range(1, len(visit.steps)):
            going = [
                (row, (draft, live))
                for row, (draft, live) in going
                if visit.goes_on(row, step - 1) and self._wants(draft, live, step, began)
            ]
            outcomes = {index: visit.put(draft, row, step) for index, (row, (draft, _)) in enumerate(going)}
            self._tell([pair for _, pair in going], outcomes, seconds, events, batch=len(lives))

    def _wants(self, draft: Draft, live: Live, step: int, began: float) -> bool:
        """Whether a draft, as it stands after some steps of a visit, would take just the step that was taken for it."""
        if draft not in self._drafts:
            return False
        draft.steps_left_now = draft.steps_left(began)
        return goes_on_from(draft.strategy.next(draft), live, step)

    def _count(self, works: Sequence[tuple[Draft, Work]], now: float) -> int:
        """Steps until the next visit."""
        most = self.steps_per_visit
        if most == 1:
            return 1
        deadline = min(draft.deadline for draft, _ in works)
        length = max(work.window.length for _, work in works)
        step_s = self.costs.load(0, len(works), length, 0).step_p95_s
        return steps_together(works, most, steps_before(deadline, now, step_s, most))

    def _tell(
        self,
        works: Sequence[tuple[Draft, Work]],
        outcomes: dict[int, Outcome | Exception],
        seconds: float,
        events: list[Event],
        batch: int | None = None,
    ) -> None:
        """The events of one step."""
        for row, (draft, work) in sorted(enumerate(works), key=lambda entry: entry[1][0].number):
            outcome = outcomes[row]
            if isinstance(outcome, Exception):
                self._fail(draft, outcome, events)
                continue
            draft.seconds_denoise += seconds
            if isinstance(work, Pass) and not work.is_step:
                draft.forwards_other += 1
                continue
            draft.count_step()
            draft.forced += outcome.forced
            draft.forwards_wasted += outcome.committed == 0 and isinstance(work, Live)
            events.append(
                Stepped(
                    draft,
                    draft.steps,
                    draft.phase,
                    _cells(draft),
                    outcome.committed,
                    outcome.forced,
                    seconds,
                    batch or len(works),
                )
            )
            events += self._conclude(draft)

    def _arranged(
        self, works: list[tuple[Draft, Work]]
    ) -> tuple[list[tuple[Draft, Work]], Forward, Tensor, Repeat | None]:
        """All windows side by side: the works in the order of their rows, how to run them, their tokens [B, T], and recordings of steps."""
        # A full-mask draft whose row went to somebody else has lost what it kept there.
        works = [(draft, self._refreshed(draft, work)) for draft, work in works]
        longest = max(work.window.length for _, work in works)
        works = [works[index] for index in self._place(works)]
        arranged = self.workspace.arrange([work.window for _, work in works])
        extra: dict[str, Any] = {}
        if self.spec.self_conditioning:
            extra["soft"] = self._soft([work for _, work in works], longest)

        def recorded(steps: Round, count: int) -> tuple[Tensor, Tensor] | None:
            assert isinstance(self._forward, Graphs)
            given = (arranged.ids, arranged.positions, arranged.mask, arranged.start)
            return self._forward.visit(steps, count, given, self.workspace.rows(len(works)))

        may_record = isinstance(self._forward, Graphs) and not extra
        return (
            works,
            lambda ids: self.workspace.forward(arranged, ids, **extra),
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
            self.cache.read(_text(draft), row)

        return self.workspace.place([draft.number for draft, _ in works], slots, fill)

    def _refreshed(self, draft: Draft, work: Work) -> Work:
        strategy = draft.strategy
        if isinstance(strategy, FullMask) and work.window.start and not self.workspace.has(draft.number):
            strategy.lose_row()
            again = strategy.next(draft)
            assert again is not None
            return again
        return work

    def _soft(self, works: Sequence[Work], longest: int) -> Tensor | None:
        """[B, T, E] self-conditioning; None when all drafts are at their first step."""
        if all(not isinstance(work, Pass) or work.soft is None for work in works):
            return None
        soft = torch.zeros(len(works), longest, self.spec.hidden_size, device=self._device)
        for row, work in enumerate(works):
            if isinstance(work, Pass) and work.soft is not None:
                embedded = self.model.soft_embedding(work.soft.unsqueeze(0))  # type: ignore[attr-defined]
                soft[row, : len(work.soft)] = embedded[0]
        return soft

    def _absorb(self, draft: Draft, work: Pass, hidden: Tensor) -> Outcome | Exception:
        before = sum(draft.canvas.is_decided(at) for at in range(draft.canvas.width))
        forced = draft.forced
        try:
            wanted = hidden[list(work.wanted)]
            final = work.absorb(wanted, self.model.logits(wanted).float())
            self._commit(draft, work.window, final)
        except Exception as error:  # this draft's alone
            return error
        after = sum(draft.canvas.is_decided(at) for at in range(draft.canvas.width))
        forced, draft.forced = draft.forced - forced, forced
        return Outcome(after - before, forced)

    def _commit(self, draft: Draft, window: Window, count: int) -> None:
        """The first `count` tokens of a window are final: their keys and values go to the draft's pages."""
        if count:
            row = self.workspace.row(draft.number)
            self.cache.write(_text(draft), list(window.tokens[:count]), row, window.start)

    # --- what became certain ------------------------------------------------------------------------------------------

    def _conclude(self, draft: Draft) -> list[Event]:
        """Move a draft on after its commits: emit what became certain, change phase, finish."""
        canvas = draft.canvas
        final = draft.strategy.final_prefix(draft)
        # In blocks the clause's end may still be out of sight when its steps are spent: what there is then has to do.
        is_spent = self.spec.mask_kind == "block_causal" and draft.is_spent(self._clock())
        is_first = draft.plan.by_clause and draft.phase == "first"
        if is_first and final < canvas.first_clause_end() and not is_spent:
            return []
        end = min(canvas.reply_end(), draft.spec.width)
        stop = self._stop_cut(draft, min(final, end))
        if stop is not None:
            return self._finish(draft, "stop", stop)
        if final > end or final >= canvas.width or final >= draft.spec.width:
            reason: FinishReason = "end_of_turn" if canvas.reply_end() < draft.spec.width else "canvas_full"
            if reason == "canvas_full" and draft.spec.constraint is not None:
                reason = "end_of_turn"  # a grammar that fills the canvas exactly is at its end
            elif reason == "canvas_full" and draft.plan.by_clause:
                end = canvas.last_sentence_end(draft.emitted, draft.spec.width)
            return self._finish(draft, reason, end)
        events: list[Event] = []
        cut = self._held_for_stop(draft, canvas.speakable(draft.emitted, final))
        if cut > draft.emitted:
            events.append(Committed(draft, draft.emitted, tuple(canvas.tokens[draft.emitted : cut]), draft.phase))
            draft.emitted = cut
        if draft.plan.by_clause and draft.phase == "first":
            draft.phase, draft.phase_steps = "rest", 0
        return events

    @staticmethod
    def _stop_cut(draft: Draft, final: int) -> int | None:
        """Where the first stop sequence among final tokens begins: never in what was emitted, which held back every beginning of one."""
        tokens = tuple(draft.canvas.tokens[draft.emitted : final])
        found = [
            draft.emitted + at
            for stop in draft.spec.stop
            for at in range(len(tokens) - len(stop) + 1)
            if tokens[at : at + len(stop)] == stop
        ]
        return min(found, default=None)

    @staticmethod
    def _held_for_stop(draft: Draft, cut: int) -> int:
        """Never emit what may turn out to be the beginning of a stop sequence."""
        longest = max((len(stop) for stop in draft.spec.stop), default=1)
        tokens = draft.canvas.tokens
        for at in range(max(draft.emitted, cut - longest + 1), cut):
            if any(tuple(tokens[at:cut]) == stop[: cut - at] for stop in draft.spec.stop):
                return at
        return cut

    def _finish(self, draft: Draft, reason: FinishReason, end: int) -> list[Event]:
        canvas = draft.canvas
        end = max(end, draft.emitted)
        reply = tuple(canvas.tokens[:end])
        events: list[Event] = []
        if end > draft.emitted:
            events.append(Committed(draft, draft.emitted, reply[draft.emitted :], draft.phase))
        usage = Usage(
            prompt_tokens=len(draft.prompt),
            cached_tokens=draft.cached_tokens,
            visible_tokens=len(reply),
            forwards_prefill=draft.forwards_prefill,
            forwards_denoise=draft.steps + draft.forwards_other,
            forwards_commit=draft.forwards_commit,
            forwards_wasted=draft.forwards_wasted,
            seconds_prefill=draft.seconds_prefill,
            seconds_denoise=draft.seconds_denoise,
            forced=draft.forced,
            guards=draft.guards,
        )
        sure = tuple(canvas.confidence[:end])
        events.append(Finished(draft, reason, reply, sure, draft.steps_first, draft.steps_rest, draft.forced, usage))
        self._drop(draft, keep=True)
        return events

    def _begin_steps(self, draft: Draft) -> None:
        """What a draft remembers from step to step, empty."""
        options = draft.spec.options
        draft.finishes_now, draft.is_settled = False, True
        if options.revises or options.early_commit or options.rule == "stability":
            draft.reviser = Reviser(options, draft.canvas.width, self.spec.vocab_size, self._device)
        is_watched = options.revises or not (options.hold_ends and options.no_stutter)
        if options.guard and is_watched and draft.spec.constraint is None:
            draft.history = History.start(1, self._device)

    def _keep(self, draft: Draft) -> None:
        """Start from an earlier draft of the reply: its tokens stand until they are found unlikely."""
        canvas, spec = draft.canvas, draft.spec
        for index, start in spec.keep_pins:
            pin = spec.pins[index]
            if index in draft.unplaced and not any(canvas.is_decided(at) for at in range(start, start + len(pin))):
                canvas.pin(start, pin)
                draft.unplaced.remove(index)
        for at, token in enumerate(spec.keep[: spec.width]):
            if not canvas.is_decided(at) and 0 <= token < self.spec.vocab_size and token != canvas.table.mask:
                canvas.put(at, token, 1.0, is_decided=True)
        draft.rescore = Rescore.of(draft)
        if not has_room(draft) or (draft.rescore is None and spec.keep_pins):
            forget_kept(draft)
            draft.rescore = None

    def _fail(self, draft: Draft, error: Exception, events: list[Event]) -> None:
        if draft in self._drafts:
            self._drop(draft, keep=False)
            events.append(Failed(draft, error))

    def _drop(self, draft: Draft, *, keep: bool) -> None:
        self._drafts.remove(draft)
        self._close(draft, keep=keep)

    def _close(self, draft: Draft, *, keep: bool) -> None:
        """Let go of a draft's memory; with `keep` its conversation goes on from what is stored, else nothing of it stays."""
        self.workspace.drop(draft.number)
        text, draft.text = draft.text, None
        if text is None or not self._is_cached:
            return
        if keep:
            self.cache.publish(text, draft.spec.conversation)
            self.cache.keep_only(draft.spec.conversation, text)
        self.cache.close(text)
        if not keep:
            self.cache.withdraw(draft.created, draft.spec.conversation)
        draft.created = []


def _text(draft: Draft) -> CachedText:
    assert draft.text is not None
    return draft.text


def _cells(draft: Draft) -> tuple[Cell, ...]:
    return tuple(map(Cell, draft.canvas.tokens, draft.canvas.states, draft.canvas.confidence))

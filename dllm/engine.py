"""The engine: pick the drafts whose deadlines are nearest, run one forward over their windows, commit what the policy allows.

Synchronous and owned by one thread; tokens in, events out. A plan that speaks clauses (`by_clause`) has two phases. In phase *first* a
step commits every position the rule wants and at least as many of the first clause's masks as it takes to finish that clause in
the steps left; then the clause is certain and can be spoken. In phase *rest* the same floor holds up to the end of the reply.

This is the front door; who is next is `dllm.picking`, what they must have stored `dllm.storing`, what they do together `dllm.steps`, and
what they tell `dllm.certain`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm.canvas import Canvas, TokenTable
from dllm.company import Company
from dllm.costs import EngineLoad, StepCosts
from dllm.denoise import Denoiser
from dllm.draft import Draft
from dllm.drafts import CellState, DraftSpec, Event, Plan
from dllm.errors import ConfigError
from dllm.extent import TokenClasses
from dllm.guard import History
from dllm.limits import Limits
from dllm.models.family import Network
from dllm.picking import pick
from dllm.pins import has_room
from dllm.process import Processor, Vocabulary
from dllm.register import Register
from dllm.revision import Rescore, Reviser, forget_kept
from dllm.sampling import Picker
from dllm.steps import Steps
from dllm.storing import Storing
from dllm.strategy import choose_strategy
from dllm.texts import Texts
from dllm.window import Workspace


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
        cache_dtype: Of stored keys and values: None is the weights' type; float8_e4m3fn takes half or a quarter of its bytes, with a scale for each
            head of each token. Every key and value that attention reads is then one that was stored so, the canvas's own as well: what is
            written does not depend on how the prompt was cut up or on what was found stored.
        steps_per_visit: Most denoising steps between two looks at their outcome. New plans, cancels, drafts and deadlines take effect at the
            next one, and events come for all of them together; what is written is the same.

    Raises:
        ConfigError: If a number is out of range, or the model keeps no cache of the type asked for.
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
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        if steps_per_visit < 1:
            raise ConfigError("steps_per_visit", steps_per_visit, "at least 1")
        self.model, self.table, self.max_batch, self._clock = model, table, max_batch, clock
        self.spec = model.spec
        self._device = next(iter(model.parameters())).device  # type: ignore[attr-defined]
        self.cache_dtype = cache_dtype
        self.workspace = Workspace(model, max_batch, forward, cache_dtype)
        self._texts = Texts(model, table, self.workspace, cache_bytes)
        self.cache, self.costs = self._texts.cache, StepCosts()
        self._limits = Limits(self.spec, self._texts.room)
        forbidden = {*table.forbidden, *self.spec.special.forbidden, table.mask}
        if self.spec.special.mask is not None:
            forbidden.add(self.spec.special.mask)
        marks = table.word | table.sentence_end | table.clause_end
        ends = self.spec.special.ends
        self._vocabulary = Vocabulary.of(self.spec.vocab_size, ends, forbidden, self._device, marks)
        classes = TokenClasses(table, self.spec.vocab_size, self._device)
        denoiser = Denoiser(model, self.spec, classes, self._vocabulary)
        self._register = Register(self._texts, clock)
        self._storing = Storing(self._texts, self._register, self.costs, clock)
        company = Company(model, self._texts, forward)
        self._steps = Steps(denoiser, company, self._texts, self._register, self.costs, clock, steps_per_visit)
        self._numbers = itertools.count(1)

    @property
    def drafts(self) -> tuple[Draft, ...]:
        """Unfinished drafts in order of submission."""
        return tuple(self._register)

    def memory(self) -> Memory:
        weights = sum(part.numel() * part.element_size() for part in self.model.parameters())  # type: ignore[attr-defined]
        weights += sum(part.numel() * part.element_size() for part in self.model.buffers())  # type: ignore[attr-defined]
        decoder = getattr(self.model, "decoder", None)
        weights += 0 if decoder is None else decoder.held_bytes
        return Memory(weights, self.cache.limit_bytes, self.workspace.size_bytes)

    def load(self, width: int = 32) -> EngineLoad:
        """What a step of one more draft of that width would cost now, learned from the steps so far."""
        waiting = sum(len(draft.pending) if draft.text is not None else len(draft.prompt) for draft in self._register)
        return self.costs.load(len(self._register), min(len(self._register) + 1, self.max_batch), width, waiting)

    # --- what callers ask ---------------------------------------------------------------------------------------------

    def submit(self, spec: DraftSpec) -> Draft:
        """Queue a draft; its first events come from the next round it is picked for.

        Raises:
            ConfigError: If the width is not one the model was trained for, or the options ask for what the model cannot do.
            PromptTooLongError: If prompt and canvas exceed the model's positions.
            PinsDoNotFitError: If the canvas cannot hold the pins and an end-of-turn.
            CacheFullError: If the prompt is larger than the whole cache.
        """
        options = self._limits.check(spec)
        canvas = Canvas(self._limits.canvas_width(spec), self.table)
        processor = Processor([options], self._vocabulary)
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
        self._register.add(draft)
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
        if draft not in self._register:
            raise ConfigError("draft", draft.number, "one that is still being written")
        self._limits.check_prompt(prompt)
        width = self._limits.canvas_width(replace(draft.spec, prompt=tuple(prompt)))
        self._limits.check_length(len(prompt) + width)
        self._texts.close(draft, keep=False)
        draft.canvas.resize(width)
        draft.prompt, draft.is_prefilled = tuple(prompt), False
        draft.plan, draft.phase_steps = plan or draft.plan, 0
        draft.strategy = choose_strategy(self.spec, draft.spec.options)
        self._begin_steps(draft)
        draft.rescore = None
        if self._limits.can_rate(draft.spec):
            draft.rescore = Rescore.of(draft)
            return
        for at in range(draft.emitted, width):
            if draft.canvas.states[at] is CellState.COMMITTED:
                draft.canvas.remask(at)

    def cancel(self, draft: Draft) -> None:
        """Stop a draft between two forwards. No event follows, and its conversation's cache is as if it had never been. Safe twice.

        A system turn that it stored belongs to everybody and stays.
        """
        if draft in self._register:
            self._register.drop(draft, keep=False)

    def warm(self, conversation: str, tokens: Sequence[int]) -> int:
        """Put the keys and values of a prompt's beginning into the cache; how many tokens that took.

        Nothing happens for full-mask models, or when there is no room.

        Raises:
            PromptTooLongError: If it exceeds the model's positions.
        """
        return self._texts.warm(conversation, tokens)

    def forget(self, conversation: str) -> None:
        """Drop what the cache holds for one conversation. The system turn it shares with others stays."""
        self.cache.forget(conversation)

    def run_round(self) -> list[Event]:
        """One round: store what the picked drafts must have stored, then one forward over all their windows. Empty when idle."""
        events: list[Event] = []
        with torch.inference_mode():
            picked = pick(self.drafts, self.max_batch, self._clock, lambda draft: self._storing.enter(draft, events))
            waiting = [draft for draft in picked if draft.pending]
            if waiting:
                self._storing.store(waiting, events)
            self._steps.run(picked, events)
        return events

    # --- how a draft begins -----------------------------------------------------------------------------------------------

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

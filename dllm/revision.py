"""Taking decided tokens back: under a changed prompt, or while a canvas is being denoised."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dllm.correction import (
    Stability,
    count_extra_steps,
    early_commit,
    edits,
    remask_remdm,
    remdm_rate,
    top_gap,
    wino_doubts,
)
from dllm.draft import Draft, Live, Pass
from dllm.drafts import CellState
from dllm.keeping import pin_places
from dllm.masks import visible
from dllm.options import DecodeOptions
from dllm.spec import ModelSpec
from dllm.staging import staged
from dllm.window import Window


@dataclass(slots=True)
class Rescore:
    """How probable the kept tokens of a canvas are under its prompt, each given the others.

    A masked model says nothing of a token it can see, so two forwards mask one half each, every other kept position; undecided
    positions stay masked in both. Tokens that were emitted or pinned are not asked for.
    """

    halves: list[list[int]]
    doubted: list[int] = field(default_factory=list)
    asked: int = 0
    forwards: int = 0
    is_forgotten: bool = False

    @classmethod
    def of(cls, draft: Draft) -> Rescore | None:
        """What must be asked; None when nothing was decided that may change."""
        kept = [at for at in range(draft.emitted, draft.canvas.width) if draft.canvas.states[at] is CellState.COMMITTED]
        return cls([half for half in (kept[::2], kept[1::2]) if half]) if kept else None

    @property
    def kept(self) -> int:
        return 0 if self.is_forgotten else self.asked - len(self.doubted)

    def next(self, draft: Draft, spec: ModelSpec) -> Pass | None:
        """The next forward; None when all is known, and the doubted tokens have been masked again."""
        if self._is_hopeless(draft):
            self._forget(draft)
            return None
        if not self.halves:
            self._doubt_ends(draft)
            for at in self.doubted:
                draft.canvas.remask(at)
            return None
        asked, prompt = self.halves[0], len(draft.prompt)
        start = draft.text.length if draft.text is not None else 0
        reply = draft.canvas.model_input()
        assert spec.special.mask is not None, "uniform corruption has no mask to ask behind"
        for at in asked:
            reply[at] = spec.special.mask
        tokens = [*draft.prompt[start:], *reply]
        total = prompt + len(reply)
        window = Window(tokens, start, visible(spec, start, len(tokens), total=total, live=prompt))
        rows = {at: prompt + at - start - spec.logit_shift for at in asked}
        asked = [at for at in asked if rows[at] >= 0]
        return Pass(
            window,
            [rows[at] for at in asked],
            lambda hidden, logits: self._judge(draft, asked, logits),
            is_step=False,
        )

    def _is_hopeless(self, draft: Draft) -> bool:
        if not self.asked:
            return False
        clause_end = draft.canvas.first_clause_end() if draft.spec.keep_clause else 0
        return self.kept < draft.spec.keep_least * self.asked or any(at < clause_end for at in self.doubted)

    def _forget(self, draft: Draft) -> None:
        """Too little fits: what is left of it would only be in the way."""
        self.asked += sum(map(len, self.halves))
        self.is_forgotten = True
        self.halves.clear()
        forget_kept(draft)

    def _doubt_ends(self, draft: Draft) -> None:
        """An end was decided for the words before it: where one of them goes, the reply's length is open again."""
        canvas = draft.canvas
        first = min(self.doubted, default=canvas.width)
        ends = [at for at in range(first, canvas.width) if canvas.table.ends_reply(canvas.tokens[at])]
        known = set(self.doubted)
        self.doubted += [at for at in ends if at not in known and canvas.states[at] is CellState.COMMITTED]

    def _judge(self, draft: Draft, asked: list[int], logits: Tensor) -> int:
        del self.halves[0]
        self.asked += len(asked)
        self.forwards += 1
        tokens = staged([draft.canvas.tokens[at] for at in asked], logits.device)
        probabilities = torch.softmax(logits, dim=-1).gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()
        for at, probability in zip(asked, probabilities, strict=True):
            least = draft.spec.options.keep_above
            if draft.canvas.is_fact(at):
                least = max(least, draft.plan.fact_threshold)
            if probability < least:
                self.doubted.append(at)
            else:
                draft.canvas.confidence[at] = probability
        return 0


def forget_kept(draft: Draft) -> None:
    """Empty the canvas: kept tokens and the places of pins; what was emitted or given stays."""
    canvas, pins = draft.canvas, draft.spec.pins
    given = {at % draft.spec.width for at, _ in draft.spec.given}
    heard = {index for start, index in pin_places(canvas, pins).items() if start + len(pins[index]) <= draft.emitted}
    for at in range(draft.emitted, canvas.width):
        if canvas.is_decided(at) and at not in given:
            canvas.clear(at)
    draft.unplaced = [index for index in range(len(pins)) if index not in heard]


class Reviser:
    """What one draft's decided tokens go through beside the selection rule, with the state that takes.

    Tensors of one canvas on the model's device; nothing here visits the host.
    """

    def __init__(self, options: DecodeOptions, width: int, vocab_size: int, device: torch.device) -> None:
        self._options, self._device = options, device
        self._extra_steps = torch.zeros(1, dtype=torch.int64, device=device)
        self._revisions = torch.zeros(1, width, dtype=torch.int64, device=device)
        self._stability = Stability.start(width, vocab_size, device) if options.rule == "stability" else None
        self.edited = torch.zeros((), dtype=torch.int64, device=device)
        """Above 0 when the last step overwrote or masked again something, or could not yet judge the whole block: it is not finished."""

    def stable(self, logits: Tensor, positions: Tensor) -> Tensor | None:
        """[W] bool, where the distribution stayed put, for the stability rule; None for other rules."""
        if self._stability is None:
            return None
        found, self._stability = self._stability.update(
            torch.log_softmax(logits, dim=-1), positions, self._options.stability_kl
        )
        return found

    def decides_all(self, logits: Tensor, positions: Tensor, masked: Tensor, step: int, steps: int) -> Tensor:
        """Bool: everything masked may be decided now (Prophet). logits: [n, V] of `positions`; masked: [W]."""
        gap = torch.zeros(masked.shape, device=self._device).index_copy(0, positions, top_gap(logits))
        count = staged([step], self._device), staged([steps], self._device)
        return early_commit(gap.unsqueeze(0), masked.unsqueeze(0), *count)[0]

    def revise(self, seen: Seen, tokens: Tensor, decided: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Overwrite or mask again what was decided before this step; the new tokens, decided and confidence, [W] each."""
        options = self._options
        self.edited = torch.zeros_like(self.edited)
        if options.edit_threshold is not None:
            self._extra_steps = count_extra_steps(self._extra_steps, seen.was_masked.unsqueeze(0))
            threshold = staged([options.edit_threshold], self._device)
            change = edits(
                tokens.unsqueeze(0), seen.best.unsqueeze(0), seen.probability.unsqueeze(0), seen.revisable.unsqueeze(0),
                threshold, self._extra_steps,
            )[0]  # fmt: skip
            tokens = torch.where(change, seen.best, tokens)
            confidence = torch.where(change, seen.probability, confidence)
            # Finished only after a step that found everything decided and changed nothing.
            self.edited = change.sum() + seen.was_masked.any()
            return tokens, decided, confidence
        doubts = torch.zeros_like(decided)
        if options.remask_eta:
            step = staged([seen.step], self._device)
            rate = remdm_rate(
                step,
                staged([seen.step + seen.steps_left], self._device),
                staged([options.remask_eta], self._device),
            )
            seed = staged([options.seed], self._device)
            doubts = remask_remdm(seen.revisable.unsqueeze(0), rate, step, seed)[0]
        if seen.shadow is not None and options.wino_threshold is not None and seen.steps_left > 1:
            threshold = staged([options.wino_threshold], self._device)
            # A batch's canvases are as wide as its widest; what is behind this one's own width is never revised.
            missing = len(decided) - self._revisions.shape[1]
            revisions = torch.nn.functional.pad(self._revisions, (0, missing))
            found, revisions = wino_doubts(seen.revisable.unsqueeze(0), seen.shadow.unsqueeze(0), threshold, revisions)
            doubts, self._revisions = found[0], revisions[:, : self._revisions.shape[1]]
        self.edited = doubts.sum()
        return tokens, decided & ~doubts, confidence


@dataclass(frozen=True, slots=True)
class Seen:
    """What a step knows of one canvas before it revises. [W] each."""

    best: Tensor
    """int64: the model's best token where it was looked at, else -1."""
    probability: Tensor
    shadow: Tensor | None
    """Probability of the token that stands there given all others (WINO); 1 where it was not looked at."""
    was_masked: Tensor
    """Bool: open and undecided before the step."""
    revisable: Tensor
    """Bool: decided before the step, and neither given, pinned nor spoken."""
    step: int
    steps_left: int


def with_shadow(live: Live, mask: int) -> Live:
    """WINO's window: behind the live positions a mask for each, which sees what the live token at its own place sees, but not that."""
    window, count = live.window, live.hi - live.lo
    first = window.start + live.lead
    end = window.start + window.length
    logical = list(window.positions or range(window.start, end))
    return replace(
        live,
        window=Window(
            [*window.tokens, *[mask] * count],
            window.start,
            [*window.visible, *window.visible[live.lead : live.lead + count]],
            [*[-1] * window.length, *range(first, first + count)],
            [*logical, *logical[live.lead : live.lead + count]],
        ),
        shadow=window.length,
    )

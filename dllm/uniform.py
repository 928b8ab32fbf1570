"""Uniform corruption: a canvas of random tokens that is predicted, partly kept and partly drawn afresh until it stands still.

Source: DiffusionGemma's decode loop. There is no memory of earlier acceptances: every step judges every position anew, so nothing is
final before the canvas is, and a committed token is one of the last step's best tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dllm.draft import Draft, Pass
from dllm.errors import ConfigError
from dllm.options import DecodeOptions
from dllm.selection import RuleTable, Scores, select
from dllm.spec import ModelSpec
from dllm.window import Window


class UniformCanvas:
    """One canvas per `spec.block` positions; a finished one is encoded causally and the next begins.

    What the plan has left is shared out evenly over the canvases left. Pinned and given tokens are put back after every step.
    """

    needs_carry = False

    def __init__(self, spec: ModelSpec, options: DecodeOptions) -> None:
        for name in ("edit_threshold", "wino_threshold", "remask_eta", "early_commit", "hold_ends"):
            if getattr(options, name) not in (None, False):
                raise ConfigError(
                    name, getattr(options, name), "unset: a uniform canvas judges every position at every step"
                )
        self._spec, self._options = spec, options
        self.carry: Tensor | None = None
        self._generator = torch.Generator().manual_seed(options.seed)
        self._noisy: list[int] = []
        self._soft: Tensor | None = None
        self._best: list[list[int]] = []
        self._lo = 0
        self._step = self._total = 0

    def begin(self, draft: Draft) -> None:
        assert draft.text is not None
        draft.pending = list(draft.prompt[draft.text.length :])
        self._noisy, self._soft, self._best, self._step, self._lo = [], None, [], 0, 0

    def stored(self, draft: Draft, carry: Tensor | None) -> None:
        assert draft.text is not None
        self._lo = draft.text.length - len(draft.prompt)
        self._noisy, self._soft, self._best, self._step = [], None, [], 0

    def seed_position(self, draft: Draft) -> int | None:
        return None

    def final_prefix(self, draft: Draft) -> int:
        return draft.canvas.decided_prefix()

    def next(self, draft: Draft) -> Pass | None:
        assert draft.text is not None
        canvas, prompt = draft.canvas, len(draft.prompt)
        hi = min(self._lo + self._spec.block, canvas.width)
        if canvas.decided_prefix() >= hi:
            if hi < canvas.width:
                draft.pending = canvas.tokens[self._lo : hi]
            return None
        if not self._noisy:
            canvases = -(-(canvas.width - self._lo) // self._spec.block)
            self._total = max(1, draft.steps_left_now // canvases)
            self._noisy = self._fixed(draft, self._random(hi - self._lo))
        start = prompt + self._lo
        window = Window(self._noisy, start, [prompt + hi] * (hi - self._lo))
        return Pass(
            window, range(hi - self._lo), lambda hidden, logits: self._advance(draft, hi, logits), soft=self._soft
        )

    def _random(self, count: int) -> list[int]:
        return torch.randint(self._spec.vocab_size, (count,), generator=self._generator).tolist()

    def _fixed(self, draft: Draft, tokens: list[int]) -> list[int]:
        canvas = draft.canvas
        return [
            canvas.tokens[self._lo + at] if canvas.is_decided(self._lo + at) else token
            for at, token in enumerate(tokens)
        ]

    def _advance(self, draft: Draft, hi: int, logits: Tensor) -> int:
        """One step of the loop over the canvas's logits [W, V]."""
        self._step += 1
        left = min(self._total - self._step + 1, draft.steps_left_now)
        high, low = self._options.anneal
        temperature = low + (high - low) * left / self._total
        logits = logits.clone()
        draft.picker.process(draft, logits, range(self._lo, hi))
        scaled = logits / temperature
        probabilities = torch.softmax(scaled, dim=-1)
        log_probabilities = torch.log_softmax(scaled, dim=-1).clamp_min_(torch.finfo(torch.float32).min)
        entropy = -(probabilities * log_probabilities).sum(dim=-1)
        best_probability, best = torch.softmax(logits, dim=-1).max(dim=-1)
        drawn = draft.picker.draw(logits, temperature, range(self._lo, hi), draft.steps)
        every = torch.ones(1, len(best), dtype=torch.bool, device=logits.device)
        scores = Scores(
            drawn.unsqueeze(0), best_probability.unsqueeze(0), best_probability.unsqueeze(0), entropy.unsqueeze(0)
        )
        rules = RuleTable.of([replace(self._options, rule="entropy")], [1.0], logits.device)
        kept = select(scores, every, ~every, torch.zeros(1, dtype=torch.int64, device=logits.device), rules).chosen
        fresh = torch.tensor(self._random(hi - self._lo), device=logits.device)
        self._noisy = self._fixed(draft, torch.where(kept[0], drawn, fresh).tolist())
        self._soft = scaled
        guess = self._fixed(draft, best.tolist())
        sure = best_probability.tolist()
        is_stable = len(self._best) >= self._options.stable_steps and all(
            earlier == guess for earlier in self._best[-self._options.stable_steps :]
        )
        self._best.append(guess)
        canvas = draft.canvas
        is_over = left <= 1 or (is_stable and float(entropy.mean()) < self._options.stable_entropy)
        draft.forced += 0 if is_stable or not is_over else sum(not canvas.is_decided(at) for at in range(self._lo, hi))
        for at, token, probability in zip(range(self._lo, hi), guess, sure, strict=True):
            if canvas.is_decided(at):
                continue
            if is_over:
                canvas.commit(at, token, probability)
            else:
                canvas.guess(at, token, probability)
        return 0

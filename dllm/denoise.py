"""The front door of denoising: drafts that share a model take one step, or several between two visits of the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from dllm.draft import Draft, Live
from dllm.drafts import DraftSpec
from dllm.extent import TokenClasses
from dllm.models.family import Network
from dllm.options import DecodeOptions
from dllm.outcome import Visit
from dllm.process import Vocabulary
from dllm.reading import needs_host
from dllm.selection import RuleTable
from dllm.spec import ModelSpec
from dllm.staging import staged
from dllm.stepping import Forward, Round
from dllm.token_rules import TokenRules

Repeat: TypeAlias = Callable[[Round, int], tuple[Tensor, Tensor] | None]
"""A round's steps, so many of them, from a recording: what `Round.run` gives, and the last hidden states; None where there is none."""


class Denoiser:
    """Runs the denoising steps of drafts that share a model."""

    def __init__(self, model: Network, spec: ModelSpec, classes: TokenClasses, vocabulary: Vocabulary) -> None:
        self.model, self.classes, self.vocabulary = model, classes, vocabulary
        self.device = next(iter(model.parameters())).device  # type: ignore[attr-defined]
        self.mask = spec.special.mask if spec.special.mask is not None else 0
        self.shift = spec.logit_shift
        self.ends = staged(spec.special.ends, self.device)
        self.probe = torch.zeros(1, dtype=model.new_stores(1, 1)[0].keys.dtype, device=self.device)
        """Of the hidden states' dtype and device."""
        self._rules: tuple[list[DecodeOptions], list[float], RuleTable] | None = None
        self._token_rules: tuple[list[DraftSpec], TokenRules] | None = None

    def visit(
        self,
        drafts: Sequence[Draft],
        lives: Sequence[Live],
        forward: Forward,
        ids: Tensor | None,
        count: int,
        recorded: Repeat | None = None,
    ) -> Visit:
        """Several steps, each with a forward of its own, and one look at what they left. Changes no draft.

        Args:
            forward: Gives hidden states in the order of the drafts.
            ids: [B, T] the windows' tokens; needed for more than one step.
            count: Steps; for more than one each draft's `Live.alike` must be as large.
            recorded: Asked first where no step of any draft needs the host.
        """
        is_whole = recorded is not None and not any(map(needs_host, drafts, lives))
        steps = Round(self, drafts, lives, count, is_whole=is_whole)
        if recorded is not None and is_whole and (found := recorded(steps, count)) is not None:
            results, steps.hidden = found
            return steps.look(results)
        return steps.look(steps.run(forward, ids))

    def rules_of(self, drafts: Sequence[Draft]) -> RuleTable:
        """The drafts' rules on the device; made anew when the company or a plan changes."""
        options, thresholds = [draft.spec.options for draft in drafts], [draft.plan.threshold for draft in drafts]
        if self._rules is None or self._rules[:2] != (options, thresholds):
            self._rules = (options, thresholds, RuleTable.of(options, thresholds, self.device))
        return self._rules[2]

    def token_rules_of(self, drafts: Sequence[Draft]) -> TokenRules:
        """The drafts' rules about tokens on the device; made anew when the company changes."""
        specs = [draft.spec for draft in drafts]
        known = self._token_rules
        if (
            known is None
            or len(known[0]) != len(specs)
            or any(a is not b for a, b in zip(known[0], specs, strict=True))
        ):
            known = self._token_rules = (specs, TokenRules.of(specs, self.vocabulary, self.classes, self.device))
        return known[1]

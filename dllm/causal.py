"""Left to right with the same weights: plain autoregression, and self-speculation, which gives the same text in fewer forwards.

For models whose finished text is causal (`causal_verify`). Source of the speculation: Nemotron-Labs-Diffusion's linear form
(arXiv:2607.05722): one bidirectional forward drafts a block, one causal forward checks it.
"""

from __future__ import annotations

from torch import Tensor

from dllm.draft import Draft, Pass
from dllm.errors import ConfigError
from dllm.options import DecodeOptions
from dllm.spec import ModelSpec
from dllm.window import Window

_MAX_DRAFT = 32


class Causal:
    """One token per forward. Ignores the plan's steps: a reply of n tokens takes n forwards."""

    needs_carry = True

    def __init__(self) -> None:
        self.carry: Tensor | None = None

    def begin(self, draft: Draft) -> None:
        assert draft.text is not None
        draft.pending = list(draft.prompt[draft.text.length :])

    def stored(self, draft: Draft, carry: Tensor | None) -> None:
        self.carry = carry

    def seed_position(self, draft: Draft) -> int | None:
        assert draft.text is not None
        at = draft.canvas.decided_prefix()
        is_next = draft.text.length == len(draft.prompt) + at
        return at if self.carry is not None and is_next and at < draft.canvas.width else None

    def final_prefix(self, draft: Draft) -> int:
        return draft.canvas.decided_prefix()

    def next(self, draft: Draft) -> Pass | None:
        if draft.text is None or self.carry is None:
            return None
        start = draft.text.length
        stop = len(draft.prompt) + draft.canvas.decided_prefix()
        tokens = draft.canvas.tokens[start - len(draft.prompt) : stop - len(draft.prompt)]

        def absorb(hidden: Tensor, logits: Tensor) -> int:
            self.carry = hidden[0].clone()
            return len(tokens)

        return Pass(Window(tokens, start, range(start + 1, stop + 1)), [len(tokens) - 1], absorb)


class SelfSpeculative(Causal):
    """Draft a block at once, keep what causal decoding would have written.

    Raises:
        ConfigError: With options under which a token's logits depend on more than the tokens before it; greedy decoding only.
    """

    def __init__(self, spec: ModelSpec, options: DecodeOptions) -> None:
        super().__init__()
        if options.temperature != 0:
            raise ConfigError(
                "temperature", options.temperature, "0 in self-speculation, which checks equality of best tokens"
            )
        for name in ("repetition_penalty", "banned", "no_stutter"):
            value = getattr(options, name)
            if value != getattr(DecodeOptions(), name):
                raise ConfigError(name, value, "its default in self-speculation")
        assert spec.special.mask is not None
        self._mask = spec.special.mask
        self._draft_tokens = options.draft_tokens or min(spec.block, _MAX_DRAFT)
        self._drafted: list[int] | None = None

    def next(self, draft: Draft) -> Pass | None:
        if draft.text is None or self.carry is None:
            return None
        start, at = draft.text.length, draft.text.length - len(draft.prompt)
        if draft.canvas.decided_prefix() > at + 1:
            return super().next(draft)  # spoken before the draft was revised: nothing to guess
        count = min(self._draft_tokens, draft.canvas.width - at) - 1
        seed = draft.canvas.tokens[at]
        if self._drafted is None and count > 0:
            window = Window([seed, *[self._mask] * count], start, [start + 1 + count] * (1 + count))
            return Pass(window, range(1, 1 + count), lambda hidden, logits: self._keep(draft, at + 1, logits))
        drafted = self._drafted or []
        window = Window([seed, *drafted], start, range(start + 1, start + 2 + len(drafted)))
        return Pass(
            window,
            range(1 + len(drafted)),
            lambda hidden, logits: self._verify(draft, at, drafted, hidden, logits),
        )

    def _keep(self, draft: Draft, first: int, logits: Tensor) -> int:
        self._drafted = draft.picker.pick(draft, logits, range(first, first + len(logits))).tokens
        return 0

    def _verify(self, draft: Draft, at: int, drafted: list[int], hidden: Tensor, logits: Tensor) -> int:
        """Commit the drafted tokens that causal decoding agrees with; the token after them is seeded from the last agreed row."""
        canvas = draft.canvas
        rows = min(len(logits), canvas.width - at - 1)
        wanted = draft.picker.pick(draft, logits[:rows], range(at + 1, at + 1 + rows))
        accepted = 0
        for token, best, probability in zip(drafted, wanted.tokens, wanted.probabilities, strict=False):
            if token != best:
                break
            accepted += 1
            canvas.commit(at + accepted, token, probability)
            if canvas.table.ends_reply(token):
                break
        if drafted and not accepted:
            draft.forwards_wasted += 1
        self._drafted, self.carry = None, hidden[accepted].clone()
        return 1 + accepted

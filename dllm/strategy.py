"""How each kind of model writes a reply: which window of which tokens goes through the network next.

A strategy belongs to one draft. It decides no token (that is `dllm.denoise`), runs nothing and owns no memory: it says what the next
forward is, as a pure function of the canvas and of what is stored.

BlockWise covers every model whose finished text is exact in the cache: block-causal ones on an absolute grid (SDAR, LLaDA2,
Fast-dLLM v2) and causal-prefix ones whose blocks start where the prompt ends (the built-in family with one block as wide as the
canvas, Nemotron). FullMask covers models in which everything sees everything (LLaDA, Dream).
"""

from __future__ import annotations

from torch import Tensor

from dllm.draft import Draft, Live, Stop, Strategy, Work
from dllm.errors import ConfigError
from dllm.options import DecodeOptions
from dllm.spec import ModelSpec
from dllm.window import Window

CLAUSE_HINT = 12
"""Tokens that a first clause is taken to need while its end is not in sight: about eight words."""

PIPELINE_GROW = 0.1
"""A further block goes live once so much of the last one is decided (D2F, arXiv:2508.09192)."""
PIPELINE_AGGRESSIVE = 0.95
"""The floor counts a block once so much of the one before it is decided; until then only its confident positions are (D2F)."""


def choose_strategy(spec: ModelSpec, options: DecodeOptions) -> Strategy:
    """The strategy for one draft.

    Raises:
        ConfigError: If the model cannot be decoded as the options ask.
    """
    from dllm import causal, uniform

    if options.mode != "diffusion":
        if not spec.causal_verify:
            raise ConfigError("mode", options.mode, f"'diffusion': {spec.family} has no causal mode")
        if options.revises:
            raise ConfigError("mode", options.mode, "'diffusion' where decided tokens may be taken back")
        return causal.SelfSpeculative(spec, options) if options.mode == "self_speculative" else causal.Causal()
    if options.edit_threshold is not None and not spec.edit_capable:
        raise ConfigError("edit_threshold", options.edit_threshold, f"None: {spec.family} was not trained to edit")
    if options.wino_threshold is not None and (spec.logit_shift or spec.special.mask is None):
        raise ConfigError(
            "wino_threshold", options.wino_threshold, f"None: {spec.family} has no masks to shadow a canvas with"
        )
    is_blocked = spec.mask_kind in ("block_causal", "causal_prefix_bidir_block")
    if options.pipeline > 1 and (spec.mask_kind != "block_causal" or spec.logit_shift):
        raise ConfigError("pipeline", options.pipeline, f"1: {spec.family} cannot keep several blocks live")
    if options.block != -1 and spec.mask_kind != "full":
        raise ConfigError("block", options.block, f"-1: the block of {spec.family} is fixed at {spec.block}")
    if options.cache in ("prefix", "dual") and spec.mask_kind != "full":
        raise ConfigError("cache", options.cache, f"'auto': the cache of {spec.family} is exact")
    if spec.corruption == "uniform":
        return uniform.UniformCanvas(spec, options)
    if is_blocked:
        return BlockWise(spec, options)
    if spec.mask_kind == "full":
        return FullMask(spec, options)
    raise ConfigError("mask_kind", spec.mask_kind, "a kind that can be denoised")


def stop_of(draft: Draft) -> Stop:
    """Where decided tokens are revised, whole blocks become final: a floor that stopped at a clause would leave one open for ever."""
    if draft.plan.by_clause and not draft.spec.options.revises:
        return "clause" if draft.phase == "first" else "reply"
    return "region"


def undecided(draft: Draft, lo: int, hi: int) -> int:
    """How many canvas positions in [lo, hi) are not decided."""
    return draft.canvas.decided()[lo:hi].count(False)


def reach(draft: Draft, lo: int) -> int:
    """Canvas position up to which a step that begins at `lo` must leave steps for: the likely end of the clause, or the whole canvas."""
    in_clause = draft.plan.by_clause and draft.phase == "first"
    return min(draft.canvas.width, lo + CLAUSE_HINT) if in_clause else draft.canvas.width


def is_whole(draft: Draft, prefix: int) -> bool:
    """Whether the reply is decided up to its end, or the canvas's, and the last step took nothing back."""
    return draft.is_settled and (prefix == draft.canvas.width or prefix > draft.canvas.reply_end())


class BlockWise:
    """Finished text in the cache, then one or more live blocks.

    With `fused_commit` the block that was finished last is run once more, in its final form, together with the block after it; its rows do
    not see the new block, so their keys and values are what a pass of their own would give (a test compares them). Models that
    take the first token of a block from the pass before it (`seeds_block`) need that pass first.
    """

    def __init__(self, spec: ModelSpec, options: DecodeOptions) -> None:
        self._spec, self._pipeline = spec, options.pipeline
        self._size, self._sub = spec.block, spec.sub_block or spec.block
        self._is_grid = spec.mask_kind == "block_causal"
        self._is_fused = options.fused_commit and self._is_grid and not spec.seeds_block and not spec.logit_shift
        self.needs_carry = spec.seeds_block or bool(spec.logit_shift)
        self._revises = options.revises
        self.carry: Tensor | None = None

    def begin(self, draft: Draft) -> None:
        stored = self._stored_prompt(draft)
        assert draft.text is not None
        draft.pending = list(draft.prompt[draft.text.length : stored])
        self.carry = None

    def stored(self, draft: Draft, carry: Tensor | None) -> None:
        self.carry = carry

    def final_prefix(self, draft: Draft) -> int:
        """Everything decided, or only finished blocks and whole replies where decided tokens may still be revised."""
        prefix = draft.canvas.decided_prefix()
        if not self._revises or is_whole(draft, prefix):
            return prefix
        assert draft.text is not None
        settled = draft.text.length + self._finished_block(draft) - len(draft.prompt)
        return max(min(prefix, settled), 0)

    def next(self, draft: Draft) -> Work | None:
        canvas, prompt = draft.canvas, len(draft.prompt)
        assert draft.text is not None
        start = draft.text.length
        done = self._finished_block(draft)
        if done and not self._is_fused:
            draft.pending = self._tokens(draft, start, start + done)
            return None
        first = start + done  # where the undecided blocks begin
        lo = max(first - prompt, 0)
        if lo >= canvas.width:
            return None
        left = draft.steps_left_now
        until = reach(draft, lo)
        blocks_left = -(-(prompt + until - first) // self._size)
        live = max(self._live_count(draft, first), -(-blocks_left // left)) if self._is_grid else 1
        stop_at = self._block_end(draft, first, live)
        hi = stop_at - prompt
        open_lo, open_hi, due_hi = self._open(draft, first, hi)
        beyond = undecided(draft, open_hi, until) if self._is_grid or self._size < canvas.width else 0
        tokens = self._tokens(draft, start, stop_at)
        window = Window(tokens, start, self._visible(start, first, stop_at))
        return Live(
            window,
            lead=prompt + lo - start,
            lo=lo,
            hi=hi,
            open_lo=open_lo,
            open_hi=open_hi,
            due_hi=due_hi,
            beyond=beyond,
            stop=stop_of(draft),
            steps_left=left,
            carry=self.carry if prompt + lo == start and self._spec.logit_shift else None,
            commits=done,
            # A finished block in front goes once it is stored; another block joins when there are more of them than steps.
            alike=1 if done or live > 1 or self._pipeline > 1 else left - blocks_left + 1 if self._is_grid else left,
        )

    def seed_position(self, draft: Draft) -> int | None:
        """The canvas position that takes the next token of the stored text, when it is not decided yet."""
        if not self._spec.seeds_block or self.carry is None or draft.text is None:
            return None
        at = draft.text.length - len(draft.prompt)
        return at if 0 <= at < draft.canvas.width and not draft.canvas.is_decided(at) else None

    # --- geometry, in absolute positions --------------------------------------------------------------------------------

    def _stored_prompt(self, draft: Draft) -> int:
        prompt = len(draft.prompt)
        return prompt // self._size * self._size if self._is_grid else prompt

    def _block_end(self, draft: Draft, first: int, blocks: int) -> int:
        return min(first + blocks * self._size, len(draft.prompt) + draft.canvas.width)

    def _finished_block(self, draft: Draft) -> int:
        """Tokens of the live block when all of it is decided and settled, else 0."""
        if not draft.is_settled:
            return 0
        assert draft.text is not None
        start, prompt = draft.text.length, len(draft.prompt)
        stop = self._block_end(draft, start, 1)
        canvas = range(max(start - prompt, 0), stop - prompt)
        return stop - start if stop > prompt and all(draft.canvas.is_decided(at) for at in canvas) else 0

    def _tokens(self, draft: Draft, start: int, stop: int) -> list[int]:
        prompt = len(draft.prompt)
        reply = draft.canvas.model_input()
        return [*draft.prompt[start:prompt], *reply[max(start - prompt, 0) : stop - prompt]]

    def _visible(self, start: int, first: int, stop: int) -> list[int]:
        if not self._is_grid:
            return [stop] * (stop - start)
        return [min(position // self._size * self._size + self._size, stop) for position in range(start, stop)]

    def _live_count(self, draft: Draft, first: int) -> int:
        """Blocks that are live under the pipelining rule."""
        if self._pipeline == 1:
            return 1
        prompt, count = len(draft.prompt), 1
        while count < self._pipeline:
            block = range(first + (count - 1) * self._size, first + count * self._size)
            if self._decided_share(draft, block) < PIPELINE_GROW or block.stop >= prompt + draft.canvas.width:
                break
            count += 1
        return count

    def _decided_share(self, draft: Draft, block: range) -> float:
        cells = [at - len(draft.prompt) for at in block if 0 <= at - len(draft.prompt) < draft.canvas.width]
        return sum(draft.canvas.is_decided(at) for at in cells) / len(cells) if cells else 1.0

    def _open(self, draft: Draft, first: int, hi: int) -> tuple[int, int, int]:
        """Canvas positions [open_lo, open_hi) that may be decided, and where those that the floor counts end."""
        prompt, lo = len(draft.prompt), max(first - len(draft.prompt), 0)
        if self._sub < self._size:
            # Sub-blocks left to right, on the block's own grid.
            at = next((at for at in range(lo, hi) if not draft.canvas.is_decided(at)), lo)
            inside = (prompt + at - first) // self._sub
            sub_lo = max(first + inside * self._sub - prompt, lo)
            sub_hi = min(first + (inside + 1) * self._sub - prompt, hi)
            return sub_lo, sub_hi, sub_hi
        due = hi
        if self._pipeline > 1:
            block = first
            while block + self._size < prompt + hi:
                if self._decided_share(draft, range(block, block + self._size)) < PIPELINE_AGGRESSIVE:
                    due = block + self._size - prompt
                    break
                block += self._size
        return lo, hi, due


class FullMask:
    """Prompt and canvas in every forward, blocks decided left to right (LLaDA's semi-autoregressive remasking).

    cache="prefix": after a full forward at a block's start, the block and what is right of it are recomputed over the stored rest.
    cache="dual": only the block is, and sees the stored rest on both sides (Fast-dLLM, arXiv:2505.22618). Both are approximations; a
    full forward refreshes them at every block and after `refresh_every` steps.
    """

    needs_carry = False

    def __init__(self, spec: ModelSpec, options: DecodeOptions) -> None:
        self._spec, self._options = spec, options
        self._size = 32 if options.block == -1 else options.block
        self._fresh_block = -1
        self._since_refresh = 0
        self.carry: Tensor | None = None
        """Here the hidden state left of the block at the last full forward, for shifted models."""
        self._revises = options.revises
        self._unsettled = 0
        """Where the block began that was denoised last."""

    def begin(self, draft: Draft) -> None:
        draft.pending = []
        self.lose_row()

    def lose_row(self) -> None:
        """What was stored for this draft is gone."""
        self._fresh_block = -1

    def stored(self, draft: Draft, carry: Tensor | None) -> None:
        raise AssertionError("nothing is stored for a full-mask model")

    def final_prefix(self, draft: Draft) -> int:
        prefix = draft.canvas.decided_prefix()
        if not self._revises or is_whole(draft, prefix):
            return prefix
        prefix -= prefix == draft.canvas.width
        size = self._size or draft.canvas.width
        return prefix // size * size

    def seed_position(self, draft: Draft) -> int | None:
        return None

    def next(self, draft: Draft) -> Work | None:
        canvas, prompt = draft.canvas, len(draft.prompt)
        first = canvas.decided_prefix()
        if not draft.is_settled:
            first = self._unsettled
        if first == canvas.width:
            return None
        size = self._size or canvas.width
        block = first // size
        lo = block * size
        # With fewer steps than blocks, several are decided together.
        blocks_left = -(-(reach(draft, lo) - lo) // size)
        live = -(-blocks_left // draft.steps_left_now)
        hi = min(lo + live * size, canvas.width)
        self._unsettled = lo
        total = prompt + canvas.width
        reply = canvas.model_input()
        is_cached = self._options.cache in ("prefix", "dual")
        is_due = bool(self._options.refresh_every) and self._since_refresh >= self._options.refresh_every
        if not is_cached or self._fresh_block != block or is_due:
            self._fresh_block, self._since_refresh = block, 0
            window = Window([*draft.prompt, *reply], 0, [total] * total)
            lead, window_lo, window_hi = prompt, 0, canvas.width
            carry = None
        else:
            self._since_refresh += 1
            window_hi = hi if self._options.cache == "dual" else canvas.width
            window = Window(reply[lo:window_hi], prompt + lo, [total] * (window_hi - lo))
            lead, window_lo, carry = 0, lo, self.carry
        return Live(
            window,
            lead=lead,
            lo=window_lo,
            hi=window_hi,
            open_lo=lo,
            open_hi=hi,
            due_hi=hi,
            beyond=undecided(draft, hi, reach(draft, lo)),
            stop=stop_of(draft),
            steps_left=draft.steps_left_now,
            carry=carry if self._spec.logit_shift else None,
            alike=1 if is_cached or live > 1 else draft.steps_left_now - blocks_left + 1,
        )

    def keep_carry(self, hidden: Tensor, live: Live) -> None:
        """After a full forward of a shifted model: remember the row left of the block; `hidden` is [T, E] of this draft."""
        if live.window.start == 0 and self._spec.logit_shift and self._options.cache in ("prefix", "dual"):
            self.carry = hidden[live.lead + live.open_lo - 1].clone()

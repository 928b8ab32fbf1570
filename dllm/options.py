"""How a draft is decoded: everything a caller may choose, checked when it is made.

Pure values. The names are those of the literature; `dllm.selection`, `dllm.process` and `dllm.correction` say what they do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from dllm.errors import ConfigError

Rule: TypeAlias = Literal["threshold", "count", "factor", "profile", "entropy", "margin", "left", "random", "stability"]
"""Which masked positions a step commits, beside the deadline floor:

threshold  confidence above `threshold` (Fast-dLLM, arXiv:2505.22618)
count      the floor alone: the most confident, evenly over the steps (LLaDA low-confidence remasking, arXiv:2502.09992)
factor     the largest n with (n + 1)(1 - c_n) < `factor` (Fast-dLLM)
profile    the largest n with sum of (1 - c_k) + (1 - c_n) < `factor`: the Frechet bound over the whole profile (arXiv:2606.02955)
entropy    ascending entropies while their sum less the last is at most `entropy_bound` (EB-sampler, arXiv:2505.24857)
margin     as threshold, with p1 - p2 as the confidence (Dream's `topk_margin`)
left       the floor alone, left to right
random     the floor alone, in random order (the any-order process a masked model is trained on)
stability  as threshold, where the distribution also stayed put for two steps (KLASS, arXiv:2511.05664)
"""

Cache: TypeAlias = Literal["auto", "none", "prefix", "dual"]
"""For full-mask models: recompute everything, keep what is left of the live block, or also what is right of it. `auto` is exact:
nothing is approximated. Causal and block-causal models ignore it, their cache is exact."""

Mode: TypeAlias = Literal["diffusion", "causal", "self_speculative"]


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """One draft's decoding.

    Raises:
        ConfigError: If a value is out of range or two of them contradict each other.
    """

    rule: Rule = "threshold"
    factor: float = 1.0
    entropy_bound: float = 0.1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0 is no limit."""
    repetition_penalty: float = 1.0
    """Divides positive logits (multiplies negative ones) of tokens that stand in the reply already (CTRL, arXiv:1909.05858)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    banned: tuple[tuple[int, ...], ...] = ()
    """Token sequences that may not appear in the reply."""
    min_tokens: int = 1
    """The reply does not end before so many tokens."""
    target_tokens: int = 0
    """Preferred length: end-of-turn is discouraged before it and encouraged after. 0 is none."""
    seed: int = 0
    block: int = -1
    """Positions decoded together on a full-mask canvas, left to right; 0 is all, -1 the family's habit. Must be -1 elsewhere."""
    pipeline: int = 1
    """Live blocks at once (D2F, arXiv:2508.09192); block-causal models only."""
    cache: Cache = "auto"
    refresh_every: int = 0
    """Steps between two full forwards of an approximate cache, beside the one at each block's start. 0 is at block starts only."""
    edit_threshold: float | None = None
    """Overwrite decided tokens where another is more probable than this (LLaDA2.1, arXiv:2602.08676). Edit-capable models only."""
    remask_eta: float = 0.0
    """ReMDM's cap on the share of decided tokens masked again per step (arXiv:2503.00307)."""
    wino_threshold: float | None = None
    """Mask decided tokens again whose probability given the rest falls below it (WINO, arXiv:2507.18578)."""
    keep_above: float = 0.2
    """A kept token (`DraftSpec.keep`, `Engine.revise`) whose probability under the new prompt is below this is masked again."""
    early_commit: bool = False
    """Fill everything once the mean gap of the two best logits passes a falling bound (Prophet, arXiv:2508.19982)."""
    stability_kl: float = 0.01
    mode: Mode = "diffusion"
    draft_tokens: int = 0
    """Self-speculation: tokens drafted per cycle, the first of which is certain; 0 is the model's block, at most 32."""
    guard: bool = True
    """Finish greedily what goes in circles or repeats itself, and put off ends that are decided before any text."""
    hold_ends: bool = False
    """Decide an end-of-turn only where everything before it is decided. Otherwise a confident one on the right fixes the reply's
    length before its words are known (models trained with padding flood the tail with them)."""
    no_stutter: bool = False
    """Never the same word or mark twice in a row, nor the same three tokens: what parallel commits of small models produce."""
    fused_commit: bool = True
    """Block-causal models: store a finished block in the forward that starts the next one instead of one of its own."""
    anneal: tuple[float, float] = (0.8, 0.4)
    """Uniform corruption: sampling temperature at the first and at the last step (DiffusionGemma's defaults)."""
    stable_steps: int = 1
    """Uniform corruption: stop once the best tokens stay the same for so many steps and are certain."""
    stable_entropy: float = 0.005
    """Uniform corruption: mean entropy in nats below which a canvas counts as certain."""

    def __post_init__(self) -> None:
        _choice("rule", self.rule, get_args(Rule))
        _choice("cache", self.cache, get_args(Cache))
        _choice("mode", self.mode, get_args(Mode))
        _range("factor", self.factor, 0.0, float("inf"), "above 0", is_open=True)
        _range("entropy_bound", self.entropy_bound, 0.0, float("inf"), "at least 0")
        _range("top_p", self.top_p, 0.0, 1.0, "in (0, 1]", is_open=True)
        _range("repetition_penalty", self.repetition_penalty, 0.0, float("inf"), "above 0", is_open=True)
        _range("remask_eta", self.remask_eta, 0.0, 1.0, "in [0, 1]")
        _range("keep_above", self.keep_above, 0.0, 1.0, "a probability")
        if self.temperature != 0.0 and not 0.001 <= self.temperature <= 100:
            raise ConfigError("temperature", self.temperature, "0, or between 0.001 and 100")
        for name in ("top_k", "target_tokens", "refresh_every", "min_tokens", "draft_tokens"):
            _range(name, getattr(self, name), 0, 2**31, "at least 0")
        _range("pipeline", self.pipeline, 1, 64, "from 1 to 64")
        _range("block", self.block, -1, 2**31, "-1, 0 or a number of positions")
        _range("seed", self.seed, 0, 2**62, "in [0, 2^62)")
        for name in ("edit_threshold", "wino_threshold"):
            value = getattr(self, name)
            if value is not None:
                _range(name, value, 0.0, 1.0, "a probability")
        if self.edit_threshold is not None and self.wino_threshold is not None:
            raise ConfigError(
                "wino_threshold", self.wino_threshold, "none beside edit_threshold: both revise decided tokens"
            )
        if self.wino_threshold is not None and self.cache == "dual":
            raise ConfigError(
                "cache",
                self.cache,
                "another beside wino_threshold: shadow rows take the slots of what is stored on the right",
            )
        if self.remask_eta and self.wino_threshold is not None:
            raise ConfigError("remask_eta", self.remask_eta, "0 beside wino_threshold: both mask decided tokens again")
        _range("stable_entropy", self.stable_entropy, 0.0, float("inf"), "at least 0")
        _range("stable_steps", self.stable_steps, 1, 2**31, "at least 1")
        if not 0 < self.anneal[1] <= self.anneal[0] <= 100:
            raise ConfigError("anneal", self.anneal, "two temperatures above 0, falling")
        if any(not phrase for phrase in self.banned):
            raise ConfigError("banned", self.banned, "phrases of at least one token")

    @property
    def revises(self) -> bool:
        """Whether a decided token may still change before its block is finished."""
        return self.edit_threshold is not None or self.remask_eta > 0 or self.wino_threshold is not None


def _choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(name, value, f"one of {', '.join(known)}")


def _range(name: str, value: float, low: float, high: float, expected: str, *, is_open: bool = False) -> None:
    if not (low < value if is_open else low <= value) or not value <= high:
        raise ConfigError(name, value, expected)

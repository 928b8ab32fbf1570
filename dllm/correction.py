"""How decided tokens are revised, and when a step may decide everything: pure functions over tensors on one device.

Each states why decoding still ends. What changes from step to step is a small tensor that the caller keeps.

Dimensions: B drafts, W canvas positions, V vocabulary, N rows of which state is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_kernels.philox import philox_4x32

EDIT_STEPS = 16
"""Steps that may follow the last mask for edits alone (LLaDA2.1's default)."""
WINO_REVISIONS = 2
"""How often one position may be masked again."""
PROPHET_GAPS = (7.5, 5.0, 2.5)
"""Mean gap of the two best logits above which everything is decided, in each third of the steps."""
KLASS_STEPS = 2
"""Steps for which a distribution must have stayed put."""

_REMASK_STREAM = 0x72656D61


# --- overwriting ------------------------------------------------------------------------------------------------------


def edits(
    tokens: Tensor, best: Tensor, probability: Tensor, editable: Tensor, threshold: Tensor, extra_steps: Tensor
) -> Tensor:
    """Decided tokens to overwrite with the model's best, [B, W] bool.

    Where another token is the best with a probability above the threshold. Ends: while there are masks, every step decides one and
    none comes back; after the last, `EDIT_STEPS` steps at most.

    Args:
        tokens, best: [B, W] int64; a best of -1 edits nothing.
        probability: [B, W] float32, of `best`.
        editable: [B, W] bool: decided, and neither given, pinned nor spoken.
        threshold: [B] float32, `DecodeOptions.edit_threshold`; 1 edits nothing.
        extra_steps: [B] int64, from `count_extra_steps`.

    Source: LLaDA2.1, joint-threshold decoding (arXiv:2602.08676).
    """
    may_edit = (extra_steps < EDIT_STEPS).unsqueeze(1) & editable
    return may_edit & (probability > threshold.unsqueeze(1)) & (best != tokens) & (best >= 0)


def count_extra_steps(extra_steps: Tensor, is_masked: Tensor) -> Tensor:
    """Steps since the last mask was decided, [B] int64. is_masked: [B, W], before the step."""
    return torch.where(is_masked.any(dim=1), 0, extra_steps + 1)


# --- masking again ----------------------------------------------------------------------------------------------------


def remdm_rate(step: Tensor, steps: Tensor, eta: Tensor) -> Tensor:
    """ReMDM's probability of masking a decided token again, under the cap schedule and an even clean fraction. [B] float32.

    sigma = min(eta, 1, (1 - alpha_s) / alpha_t), where the step takes the clean fraction from alpha_t = step / steps to
    alpha_s = (step + 1) / steps. It is exactly 0 in the last step and after, so that a deadline floor still ends in `steps` steps.

    Args:
        step: [B] int64, steps made before this one.
        steps: [B] int64, steps planned.
        eta: [B] float32, `DecodeOptions.remask_eta`.

    Source: ReMDM (arXiv:2503.00307), equation of sigma's upper bound.
    """
    planned = steps.clamp_min(1)
    # The bound is (steps - step - 1) / step in whole numbers: no rounding of either alpha.
    bound = (planned - step - 1).clamp_min(0) / step.clamp_min(1)
    return torch.minimum(eta, bound.clamp(max=1.0).to(eta.dtype))


def remdm_unmask_rate(step: Tensor, steps: Tensor, rate: Tensor) -> Tensor:
    """ReMDM's probability of deciding a masked token, (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). [B] float32.

    1 in the last step and after. Times the masks left it is the number of tokens that keeps the schedule in the mean.
    """
    planned = steps.clamp_min(1)
    left = (planned - step).clamp_min(1)
    return ((1.0 + rate * step) / left).clamp(max=1.0).to(rate.dtype)


def remask_remdm(revisable: Tensor, rate: Tensor, step: Tensor, seed: Tensor) -> Tensor:
    """Decided tokens to mask again, each with probability `rate`, [B, W] bool.

    The choice at a position depends on the draft's seed, the step and the position only. Ends because the rate does: see `remdm_rate`.

    Args:
        revisable: [B, W] bool: decided before this step, and neither given, pinned nor spoken.
        rate: [B] float32. The noise resolves it to 2^-32.
        step: [B] int64 in [0, 2^32).
        seed: [B] int64 in [0, 2^62).
    """
    position = torch.arange(revisable.shape[1], device=revisable.device)
    zero = torch.zeros_like(position)
    key = seed.unsqueeze(1)
    counter = (position, step.unsqueeze(1), zero, zero + _REMASK_STREAM)
    word = philox_4x32(counter, (key & 0xFFFFFFFF, key >> 32))[0]
    limit = rate.mul(2.0**32).ceil().to(torch.int64)
    return revisable & (word < limit.unsqueeze(1))


def wino_doubts(
    revisable: Tensor, shadow_probability: Tensor, threshold: Tensor, revisions: Tensor
) -> tuple[Tensor, Tensor]:
    """Decided tokens to mask again, since the rest of the canvas does not support them.

    Ends: a position is masked again `WINO_REVISIONS` times at most, and every step decides a mask where there is one, so W times
    (1 + `WINO_REVISIONS`) steps are the most. A caller with a deadline makes nothing revisable in the last step.

    Args:
        revisable: [B, W] bool: decided before this step, and neither given, pinned nor spoken.
        shadow_probability: [B, W] float32, of the decided token in a row that sees everything but that token.
        threshold: [B] float32, `DecodeOptions.wino_threshold`; 0 doubts nothing.
        revisions: [B, W] int64: how often each position was masked again.

    Returns:
        Doubts, [B, W] bool, and the new `revisions`.

    Source: WINO (arXiv:2507.18578); the bound per position is ours.
    """
    doubts = revisable & (shadow_probability < threshold.unsqueeze(1)) & (revisions < WINO_REVISIONS)
    return doubts, revisions + doubts


# --- deciding everything ----------------------------------------------------------------------------------------------


def top_gap(logits: Tensor) -> Tensor:
    """Best logit less the second best, [...] float32, of [..., V]. Infinite where one token alone is allowed."""
    best = logits.topk(2, dim=-1).values
    return torch.where(best[..., 0] == -torch.inf, 0.0, best[..., 0] - best[..., 1])


def early_commit(gap: Tensor, is_masked: Tensor, step: Tensor, steps: Tensor) -> Tensor:
    """Which drafts may decide all their masks now: the mean gap of their best two logits passes the bound of this third. [B] bool.

    False for a draft without masks. Can only make decoding shorter.

    Args:
        gap: [B, W] float32, from `top_gap`; read at masked positions.
        is_masked: [B, W] bool.
        step, steps: [B] int64, steps made before this one, and planned.

    Source: Prophet (arXiv:2508.19982).
    """
    third = (3 * step).div(steps.clamp_min(1), rounding_mode="floor").clamp(0, len(PROPHET_GAPS) - 1)
    bound = torch.full_like(gap[:, 0], PROPHET_GAPS[-1])
    for index, value in enumerate(PROPHET_GAPS[:-1]):
        bound = torch.where(third == index, value, bound)
    count = is_masked.sum(dim=1)
    # Sum against count * bound: no division by an empty row's 0, and a gap may be infinite.
    return (count > 0) & (torch.where(is_masked, gap, 0.0).sum(dim=1) > bound * count)


@dataclass(frozen=True, slots=True)
class Stability:
    """How long each row's distribution has stayed put. Rows are a draft's canvas positions, or those of a batch.

    Only delays what a threshold would decide; the deadline floor ends decoding all the same.

    Source: KLASS (arXiv:2511.05664).
    """

    previous: Tensor
    """[N, V] float32: log-probabilities when the row was last measured."""
    is_measured: Tensor
    """[N] bool: in the last step."""
    quiet_steps: Tensor
    """[N] int64: steps in a row in which it moved less than the bound."""

    @classmethod
    def start(cls, rows: int, vocab_size: int, device: torch.device | str) -> Stability:
        return cls(
            torch.zeros(rows, vocab_size, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
            torch.zeros(rows, dtype=torch.int64, device=device),
        )

    def update(self, log_probabilities: Tensor, rows: Tensor, bound: float | Tensor) -> tuple[Tensor, Stability]:
        """One step.

        Args:
            log_probabilities: [n, V] float32, log-softmax of the rows measured now; -inf is an impossible token.
            rows: [n] int64, which those are, each once. A row left out begins anew.
            bound: Nats that KL(p_t || p_{t-1}) must stay below: one number, or [n].

        Returns:
            Which of all rows stayed put for `KLASS_STEPS` steps, [N] bool; the new state, which shares no memory with this one.
        """
        moved = divergence(log_probabilities, self.previous.index_select(0, rows))
        is_quiet = self.is_measured.index_select(0, rows) & (moved < bound)
        quiet = torch.where(is_quiet, self.quiet_steps.index_select(0, rows) + 1, 0)
        following = Stability(
            self.previous.index_copy(0, rows, log_probabilities),
            torch.zeros_like(self.is_measured).index_fill_(0, rows, True),
            torch.zeros_like(self.quiet_steps).index_copy_(0, rows, quiet),
        )
        return following.quiet_steps >= KLASS_STEPS, following


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats, [...], of log-probabilities [..., V]: infinite where q excludes what p allows."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=-1)

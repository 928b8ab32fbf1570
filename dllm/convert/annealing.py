"""From a causal attention mask to a family's own while a converted model is trained (DiffuLLaMA, arXiv:2410.17891).

A model that was trained causally meets what is ahead of a token little by little instead of all at once.

Dimensions: Q queries, K keys.
"""

from __future__ import annotations

import torch
from torch import Tensor


def annealed_mask(
    target: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    progress: float,
    generator: torch.Generator,
    until: float = 1.0,
) -> Tensor:
    """The part of a mask that is open at one point of the run.

    What a query may look back at is open from the start. Of what lies ahead of it, each pair is open with probability
    `progress / until`, drawn anew at each call. Draws do not depend on the progress: with equal generators, what is open stays open.

    Args:
        target: [..., Q, K] bool, the mask that training arrives at: full, block-causal, two-stream, one document at a time.
        query_positions, key_positions: [..., Q] and [..., K] int64, logical positions. A noisy copy has those of its clean tokens.
        progress: Share of the run that is done, in [0, 1].
        generator: On the CPU.
        until: Share of the run at which the mask is `target`, in (0, 1].

    Returns:
        [..., Q, K] bool on the target's device: `target` and causal at progress 0, `target` from `until` on.

    Raises:
        ValueError: If `progress` or `until` is out of range.

    Source: attention mask annealing, DiffuLLaMA (arXiv:2410.17891), section 3.3, whose target is the full mask.
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress is a share of the run, in [0, 1], not {progress}")
    if not 0.0 < until <= 1.0:
        raise ValueError(f"until is a share of the run, in (0, 1], not {until}")
    if progress >= until:
        return target
    is_open = torch.rand(target.shape, generator=generator).to(target.device) < progress / until
    is_behind = key_positions.unsqueeze(-2) <= query_positions.unsqueeze(-1)
    return target & (is_behind | is_open)

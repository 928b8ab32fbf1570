"""The answer, in plain PyTorch. N rows, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_kernels.commit_from_logits.contract import CommitStats, Given
from dllm_kernels.philox import gumbel_noise

LARGEST = torch.finfo(torch.float32).max
EXPONENT_FLOOR = -1e4
"""exp of it is exactly 0, and 0 times it is 0: a finite stand-in for -inf that needs no special case in the entropy."""


def commit_from_logits(
    logits: Tensor,
    temperature: float,
    seed: int | Tensor,
    forbidden: Tensor | None,
    given: Given | None,
    out: CommitStats,
) -> None:
    """Write the statistics of `logits` [N, V] to `out`; see the package for the contract."""
    z = torch.nan_to_num(logits.float(), nan=-torch.inf, posinf=LARGEST, neginf=-torch.inf)
    if forbidden is not None:
        z.masked_fill_(forbidden, -torch.inf)
    best, token = z.max(dim=-1, keepdim=True)
    # Set the best aside to find the second, then put it back: cheaper than sorting or a copy.
    second = z.scatter_(1, token, -torch.inf).amax(dim=-1, keepdim=True)
    z.scatter_(1, token, best)
    is_empty = best == -torch.inf
    top = best.masked_fill(is_empty, 0.0)

    if temperature != 0.0:
        noise = gumbel_noise(seed, z.shape[0], z.shape[1], z.device)
        # A finite logit over a small temperature may overflow; it must not fall among the forbidden.
        score = (z / temperature).clamp_(-LARGEST, LARGEST).masked_fill_(z == -torch.inf, -torch.inf)
        token = score.add_(noise).argmax(dim=-1, keepdim=True)

    exponent = (z - top).clamp_min_(EXPONENT_FLOOR)
    picked = exponent.gather(1, token).exp_()
    weight = exponent.exp()
    total = weight.sum(dim=-1, keepdim=True)
    # H = log(sum w) - sum(w * x) / sum(w), with w = exp(x) and x = z - max z. Rounding may take it a hair below 0.
    entropy = (total.log() - weight.mul_(exponent).sum(dim=-1, keepdim=True) / total).clamp_min_(0.0)
    # p1 - p2 = (1 - exp(z2 - z1)) / sum(w): expm1 keeps the digits of a near tie.
    margin = -torch.expm1(second - top) / total

    if given is not None:
        place = given.token.unsqueeze(1)
        logit = z.gather(1, place.clamp(0, z.shape[1] - 1)).masked_fill_(
            (place < 0) | (place >= z.shape[1]), -torch.inf
        )
        # An empty row's total is 0, whose logarithm would make a NaN of -inf.
        value = logit - top - total.masked_fill(is_empty, 1.0).log()
        given.log_probability.copy_(value.squeeze(1))
    out.token.copy_(token.masked_fill_(is_empty, -1).squeeze(1))
    for statistic, value in ((out.probability, picked / total), (out.margin, margin), (out.entropy, entropy)):
        statistic.copy_(value.masked_fill_(is_empty, 0.0).squeeze(1))

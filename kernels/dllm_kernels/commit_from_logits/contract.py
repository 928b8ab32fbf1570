"""What every implementation takes and gives. N rows, V vocabulary."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels.checks import check_tensor

LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MIN_TEMPERATURE = 1e-3
"""Below it, float32 scores of neighbouring logits run together, and the best token is what is meant anyway."""


class CommitStats(NamedTuple):
    """One entry per row of logits, on their device."""

    token: Tensor
    """[N], int64: the token picked, or -1 where none is allowed."""
    probability: Tensor
    """[N], float32: softmax probability of that token, at temperature 1."""
    margin: Tensor
    """[N], float32: best probability minus second best, whichever token was picked."""
    entropy: Tensor
    """[N], float32: of the softmax, in nats."""


class Given(NamedTuple):
    """Tokens whose log-probability is wanted, whatever is picked."""

    token: Tensor
    """[N], int64; of one that is not allowed, or no token at all (-1), it is -inf."""
    log_probability: Tensor
    """[N], float32: of that token, in nats. Written."""

    @classmethod
    def of(cls, token: Tensor) -> Given:
        """With room for the answer."""
        return cls(token, torch.empty(token.shape, dtype=torch.float32, device=token.device))


def empty_stats(logits: Tensor) -> CommitStats:
    rows = len(logits)
    token = torch.empty(rows, dtype=torch.int64, device=logits.device)
    probability, margin, entropy = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(3))
    return CommitStats(token, probability, margin, entropy)


def check_arguments(
    logits: Tensor,
    temperature: float,
    seed: int | Tensor,
    forbidden: Tensor | None,
    given: Given | None,
    out: CommitStats | None,
) -> None:
    """Raise `ValueError` for what no implementation takes. Looks at shapes only: nothing waits for the device."""
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits: expected [N, V] with V above 0, got {list(logits.shape)}")
    if logits.dtype not in LOGIT_DTYPES:
        raise ValueError(f"logits: expected float32, bfloat16 or float16, got {logits.dtype}")
    check_commit((logits.shape[0], logits.shape[1]), logits.device, temperature, seed, forbidden, given, out)


def check_commit(
    shape: tuple[int, int],
    device: torch.device,
    temperature: float,
    seed: int | Tensor,
    forbidden: Tensor | None,
    given: Given | None,
    out: CommitStats | None,
) -> None:
    """Raise `ValueError` for what cannot be done with logits of that shape, wherever they are."""
    rows, vocabulary = shape
    if vocabulary >= 2**31:
        raise ValueError(f"logits: expected a vocabulary below 2^31, got {vocabulary}")
    if temperature != 0.0 and not MIN_TEMPERATURE <= temperature < math.inf:
        raise ValueError(f"temperature: expected 0, or at least {MIN_TEMPERATURE} and finite, got {temperature}")
    if isinstance(seed, Tensor):
        check_tensor("seed", seed, (rows,), torch.int64, device)
    elif not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected an integer in [0, 2^63), got {seed}")
    if forbidden is not None:
        check_tensor("forbidden", forbidden, (vocabulary,), torch.bool, device)
    if given is not None:
        check_tensor("given token", given.token, (rows,), torch.int64, device)
        check_tensor("log_probability", given.log_probability, (rows,), torch.float32, device)
    if out is not None:
        for name, tensor in out._asdict().items():
            check_tensor(name, tensor, (rows,), torch.int64 if name == "token" else torch.float32, device)

"""Held-back likelihood of replies, in nats per token (their end-of-turn included).

`diffusion` is the any-order bound given the least canvas that holds the reply, `causal` the next-token loss of the same tokens; each where
the network has such a mode (`dllm.score` says what they are).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dllm.evaluate.prompts import Prompt
from dllm.masks import prefix_mask, visible_counts
from dllm.models.family import Network
from dllm.score import causal_likelihood, likelihood_bound
from dllm.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Nats of one reply with `tokens` tokens; None where the network has no such mode."""

    diffusion: float | None
    causal: float | None
    tokens: int


def has_bound(spec: ModelSpec) -> bool:
    """Whether the any-order bound is defined: there is a mask to ask behind."""
    return spec.special.mask is not None and spec.mask_kind != "causal"


def has_causal_mode(spec: ModelSpec) -> bool:
    return spec.causal_verify or spec.mask_kind == "causal"


def held_back_likelihood(network: Network, prompt: Prompt, draws: int = 4, seed: int = 0) -> Likelihood:
    """Loss of one reference reply.

    Args:
        draws: Mask patterns of the bound.
    """
    spec = network.spec
    reply = (*prompt.reference, spec.special.end)
    diffusion = causal = None
    if has_bound(spec):
        diffusion = -likelihood_bound(network, prompt.tokens, reply, draws=draws, seed=seed).log_probability
    if has_causal_mode(spec):
        causal = -causal_likelihood(network, prompt.tokens, reply).log_probability
    return Likelihood(diffusion, causal, len(reply))


@torch.inference_mode()
def causal_log_likelihoods(network: Network, prompt: Sequence[int], replies: Sequence[Sequence[int]]) -> list[float]:
    """Log-probability in nats of each reply and its end-of-turn under the causal mode. The prompt is encoded once for all of them."""
    end, device = network.spec.special.end, next(iter(network.parameters())).device  # type: ignore[attr-defined]
    known = len(prompt) - 1
    longest = max(len(reply) for reply in replies) + 1
    total = known + longest
    stores = network.new_stores(len(replies), total)
    if known:
        first = network.new_stores(1, known)
        counts = visible_counts("causal", 1, 0, known, total=known)
        network(
            torch.tensor([prompt[:-1]], device=device),
            torch.arange(known, device=device).unsqueeze(0),
            prefix_mask(counts, known, device),
            first,
            0,
        )
        for one, many in zip(first, stores, strict=True):
            many.keys[:, :, :known], many.values[:, :, :known] = one.keys, one.values
    rows = [[prompt[-1], *reply, *[end] * (longest - 1 - len(reply))] for reply in replies]
    counts = visible_counts("causal", 1, known, longest, total=total)
    hidden = network(
        torch.tensor(rows, device=device),
        torch.arange(known, total, device=device).expand(len(rows), longest),
        prefix_mask(counts, total, device),
        stores,
        known,
    )
    totals = []
    for row, reply in enumerate(replies):
        chances = torch.log_softmax(network.logits(hidden[row, : len(reply) + 1]).float(), dim=-1)
        wanted = torch.tensor([*reply, end], device=device).unsqueeze(1)
        totals.append(float(chances.gather(1, wanted).sum()))
    return totals

"""Uniform-state diffusion: UDLM (arXiv:2412.10193) and Duo (arXiv:2506.10892), with self-conditioning (arXiv:2208.04202).

A corrupted token is a random one of the whole vocabulary, so nothing says which tokens are wrong and every one is judged at every step:
what was chosen early can still change. That is why these models fall off less at few steps.

Self-conditioning: half of the time the network is run once without gradients, and its guess, as an expected embedding, is added to the
input of the run that learns. Decoding gives it the guess of the step before.

Dimensions: B rows, T positions of a row, N learned tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.errors import ConfigError
from dllm.models.family import Network
from dllm.spec import MaskKind, ModelSpec
from dllm.train.objectives.base import Packed, Terms
from dllm.train.objectives.corruption import spread
from dllm.train.objectives.masks import check_attention, document_mask, groups_at, learned_places
from dllm.train.objectives.options import check_band, check_choice, read_options

NAME = "uniform"

UniformLoss: TypeAlias = Literal["bound", "cross_entropy"]
Given: TypeAlias = Literal["others", "all"]


class SelfConditioned(Network, Protocol):
    """What `ModelSpec.self_conditioning` promises of a network, beside the keyword `soft` of its forward."""

    def soft_embedding(self, logits: Tensor) -> Tensor:
        """[B, T, V] to [B, T, E]."""
        ...


@dataclass(frozen=True, slots=True)
class UniformOptions:
    low: float = 1e-3
    high: float = 0.999
    """Times lie in (low, high]; a token is still right with probability 1 - t at least."""
    loss: UniformLoss = "bound"
    """bound: the negative evidence bound in continuous time. cross_entropy: of every learned token, right or wrong, unweighted."""
    given: Given = "others"
    """What the bound takes an output to be: a token's distribution given the other tokens, or given all, the one held included, which is
    what cross-entropy teaches and what decoding reads."""
    self_conditioning: float = 0.5
    """Probability of a first run whose guess is the input of the second. Only of models that have `self_conditioning`."""
    antithetic: bool = True
    """Spread the times evenly over the documents of a batch."""

    def __post_init__(self) -> None:
        check_choice(f"{NAME}.loss", self.loss, get_args(UniformLoss))
        check_choice(f"{NAME}.given", self.given, get_args(Given))
        check_band(NAME, self.low, self.high, "above 0")
        if self.low == 0:
            raise ConfigError(f"{NAME}.low", self.low, "above 0")
        if self.high == 1:
            raise ConfigError(f"{NAME}.high", self.high, "below 1: without any signal the weight has no bound")
        if not 0 <= self.self_conditioning <= 1:
            raise ConfigError(f"{NAME}.self_conditioning", self.self_conditioning, "a probability")


class Uniform:
    """
    Raises:
        ConfigError: If the model is of another corruption, sees a noise level, or cannot read packed rows in one pass.
    """

    def __init__(self, spec: ModelSpec, options: UniformOptions) -> None:
        check_attention(spec, NAME)
        if spec.corruption != "uniform":
            raise ConfigError("objective", NAME, f"masked or causal: {spec.family} decodes canvases of mask tokens")
        if spec.sees_noise:
            raise ConfigError("objective", NAME, f"score_entropy: {spec.family} wants the noise of a row")
        self.shift, self.vocab_size, self.options = spec.logit_shift, spec.vocab_size, options
        self.twice = options.self_conditioning if spec.self_conditioning else 0.0
        self.kind: MaskKind = "full" if spec.mask_kind == "block_causal" else spec.mask_kind

    def __call__(self, network: Network, batch: Packed, generator: torch.Generator) -> Terms:
        options, device = self.options, batch.ids.device
        places = learned_places(batch, skip_first=self.shift == 1)
        group, groups = groups_at(batch, places)
        times = options.low + (options.high - options.low) * spread(groups, generator, options.antithetic)
        time = times[group]
        changed = torch.rand(len(places), dtype=torch.float64, generator=generator) < time
        drawn = torch.randint(self.vocab_size, (int(changed.sum()),), generator=generator)
        is_twice = bool(torch.rand((), generator=generator) < self.twice)
        flat = batch.ids.flatten()
        shown = flat.clone()
        shown[places[changed].to(device)] = drawn.to(device)
        at, ids, seen = places.to(device), shown.view_as(batch.ids), document_mask(batch, self.kind)
        extra: dict[str, Any] = {}
        if is_twice:
            with torch.no_grad():
                guess = network(ids, batch.positions, seen).flatten(0, 1)[at - self.shift]
                extra["soft"] = self._soft(cast(SelfConditioned, network), network.logits(guess), at, batch)
        hidden = network(ids, batch.positions, seen, **extra).flatten(0, 1)
        output = network.logits(hidden[at - self.shift]).float()
        if options.loss == "bound":
            if options.given == "all":
                output = given_others(output, shown[at], time.to(device))
            losses = uniform_bound(output, shown[at], flat[at], time.to(device))
        else:
            losses = F.cross_entropy(output, flat[at], reduction="none")
        return Terms(losses.sum(), float(len(places)))

    def _soft(self, network: SelfConditioned, logits: Tensor, at: Tensor, batch: Packed) -> Tensor:
        """[B, T, E]: expected embeddings of the guesses, zero where nothing is learned."""
        embedded = network.soft_embedding(logits.unsqueeze(0)).squeeze(0)
        soft = embedded.new_zeros(batch.ids.numel(), embedded.shape[-1]).index_copy(0, at, embedded)
        return soft.view(*batch.ids.shape, -1)


def given_others(output: Tensor, held: Tensor, time: Tensor) -> Tensor:
    """Logits given the other tokens, from logits given all: a guess is divided by how likely it makes the token held (Bayes).

    Args:
        output: [N, V] float32.
        held: [N] int64.
        time: [N] float64, above 0 and below 1.
    """
    log_ratio = torch.log1p(output.shape[1] * (1 - time) / time).float()
    return output.scatter_add(1, held.unsqueeze(1), -log_ratio.unsqueeze(1))


def uniform_bound(output: Tensor, held: Tensor, clean: Tensor, time: Tensor) -> Tensor:
    """The integrand of the bound at one time with alpha = 1 - t: [N] float32, 0 where the softmax is sure of the clean token.

    With q(j) = V alpha [j is clean] + 1 - alpha, V times the probability that a token is j now, and p the same under the softmax, it is

        (V / p(held) - V / q(held) + sum over j of q(j) / q(held) log((q(j) / q(held)) / (p(j) / p(held)))) / (V alpha).

    Args:
        output: [N, V] float32.
        held, clean: [N] int64.
        time: [N] float64, above 0 and below 1.
    """
    size = output.shape[1]
    alpha = 1 - time
    log_p = torch.logaddexp(
        F.log_softmax(output, dim=-1) + (size * alpha).log().float().unsqueeze(1), time.log().float().unsqueeze(1)
    )
    # Sums over the vocabulary in float32, the rest in float64: large terms cancel where the network is right.
    log_held = log_p.gather(1, held.unsqueeze(1)).squeeze(1).double()
    log_clean = log_p.gather(1, clean.unsqueeze(1)).squeeze(1).double()
    log_all = log_p.sum(1).double()
    is_right = held == clean
    q_clean = size * alpha + time
    q_held = torch.where(is_right, q_clean, time)
    cross = (time * (log_all - size * log_held) + size * alpha * (log_clean - log_held)) / q_held
    log_other, log_of_clean = (time / q_held).log(), (q_clean / q_held).log()
    known = ((size - 1) * time * log_other + q_clean * log_of_clean) / q_held
    bracket = size * torch.exp(-log_held) - size / q_held + known - cross
    return (bracket / (size * alpha)).float()


def make(spec: ModelSpec, body: Mapping[str, Any]) -> Uniform:
    return Uniform(spec, read_options(UniformOptions, NAME, body))

"""Denoising score entropy: SEDD (arXiv:2310.16834), under absorbing and under uniform corruption.

A token holds its value for total noise sigma with probability exp(-sigma); otherwise it is the mask, or a token drawn from the whole
vocabulary. The network's output is the logarithm of a ratio: how much more probable the sequence would be with y in a place than with what
stands there. Of a model that sees the noise (`dllm.models.dit`) all documents of a row have one time, since a row has one noise level.

Dimensions: B rows, T positions of a row, N learned tokens that have a loss, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from dllm.errors import ConfigError
from dllm.models.family import Network
from dllm.spec import MaskKind, ModelSpec
from dllm.train.objectives.base import Packed, Terms
from dllm.train.objectives.corruption import spread
from dllm.train.objectives.masks import check_attention, document_mask, learned_places
from dllm.train.objectives.options import check_band, check_choice, read_options

NAME = "score_entropy"

Schedule: TypeAlias = Literal["loglinear", "geometric"]


class NoiseLevel(NamedTuple):
    total: Tensor
    """[B] float64: sigma."""
    rate: Tensor
    """[B] float64: its derivative by time."""


@dataclass(frozen=True, slots=True)
class ScoreEntropyOptions:
    schedule: Schedule = "loglinear"
    """loglinear: sigma = -log(1 - (1 - floor) t). geometric: sigma from `sigma_min` to `sigma_max`, by equal factors."""
    floor: float = 1e-3
    """Share of tokens that the log-linear schedule leaves alone at its end."""
    sigma_min: float = 1e-4
    sigma_max: float = 20.0
    low: float = 1e-3
    high: float = 1.0
    """Times lie in (low, high]."""
    antithetic: bool = True

    def __post_init__(self) -> None:
        check_choice(f"{NAME}.schedule", self.schedule, get_args(Schedule))
        check_band(NAME, self.low, self.high)
        if not 0 < self.floor < 1:
            raise ConfigError(f"{NAME}.floor", self.floor, "a share above 0 and below 1")
        if not 0 < self.sigma_min:
            raise ConfigError(f"{NAME}.sigma_min", self.sigma_min, "above 0")
        if not self.sigma_min < self.sigma_max:
            raise ConfigError(f"{NAME}.sigma_max", self.sigma_max, f"above sigma_min, {self.sigma_min}")
        if self.schedule == "loglinear" and self.low == 0:
            raise ConfigError(f"{NAME}.low", self.low, "above 0: without noise the ratios have no bound")

    def noise(self, times: Tensor) -> NoiseLevel:
        """[B] float64 times to noise levels."""
        if self.schedule == "loglinear":
            kept = 1 - (1 - self.floor) * times
            return NoiseLevel(-kept.log(), (1 - self.floor) / kept)
        total = self.sigma_min ** (1 - times) * self.sigma_max**times
        return NoiseLevel(total, total * math.log(self.sigma_max / self.sigma_min))


class ScoreEntropy:
    """The noise of the model's own `corruption`. The loss bounds the negative log-likelihood of the learned tokens, per token.

    Raises:
        ConfigError: If the model cannot read packed rows in one pass, or is absorbing without a mask token.
    """

    def __init__(self, spec: ModelSpec, options: ScoreEntropyOptions) -> None:
        check_attention(spec, NAME)
        if spec.corruption == "absorbing" and spec.special.mask is None:
            raise ConfigError("objective", NAME, f"another one: {spec.family} has no mask token")
        self.mask = spec.special.mask if spec.corruption == "absorbing" else None
        self.shift, self.vocab_size, self.options = spec.logit_shift, spec.vocab_size, options
        self.sees_noise = spec.sees_noise
        self.kind: MaskKind = "full" if spec.mask_kind == "block_causal" else spec.mask_kind

    def __call__(self, network: Network, batch: Packed, generator: torch.Generator) -> Terms:
        options, device = self.options, batch.ids.device
        rows, length = batch.ids.shape
        times = options.low + (options.high - options.low) * spread(rows, generator, options.antithetic)
        level = options.noise(times)
        places = learned_places(batch, skip_first=self.shift == 1)
        total, rate = level.total[places // length], level.rate[places // length]
        changed = torch.rand(len(places), dtype=torch.float64, generator=generator) < -torch.expm1(-total)
        flat = batch.ids.flatten()
        shown = flat.clone()
        if self.mask is not None:
            places, total, rate = places[changed], total[changed], rate[changed]
            shown[places.to(device)] = self.mask
        else:
            drawn = torch.randint(self.vocab_size, (int(changed.sum()),), generator=generator)
            shown[places[changed].to(device)] = drawn.to(device)
        extra: dict[str, Any] = {"noise": level.total.float().to(device)} if self.sees_noise else {}
        hidden = network(shown.view_as(batch.ids), batch.positions, document_mask(batch, self.kind), **extra)
        at = places.to(device)
        output = network.logits(hidden.flatten(0, 1)[at - self.shift]).float()
        total, rate = total.float().to(device), rate.float().to(device)
        if self.mask is not None:
            losses = absorbing_entropy(output, flat[at], total, self.mask)
        else:
            losses = uniform_entropy(output, shown[at], flat[at], total)
        learned = len(learned_places(batch, skip_first=self.shift == 1))
        return Terms((losses * rate).sum(), float(learned))


def absorbing_entropy(output: Tensor, clean: Tensor, total: Tensor, mask: int) -> Tensor:
    """Score entropy of masked tokens, [N] float32, at least 0.

    The reverse process leaves the mask for y at a rate whose true value, given the clean token, is 1 / (exp(sigma) - 1) for it and 0 for
    the others. As in SEDD's checkpoints the log ratio is the output less log(exp(sigma) - 1) and log(V - 1), so that the softmax over all
    tokens but the mask is the guess at the clean one.

    Args:
        output: [N, V] float32.
        clean: [N] int64.
        total: [N] float32, sigma.
    """
    log_odds = torch.expm1(total).log()
    log_score = output - log_odds.unsqueeze(1) - math.log(output.shape[1] - 1)
    log_score = log_score.index_fill(1, torch.tensor([mask], device=output.device), float("-inf"))
    ratio = torch.exp(-log_odds)
    of_clean = log_score.gather(1, clean.unsqueeze(1)).squeeze(1)
    return log_score.exp().sum(1) - ratio * of_clean + ratio * (-log_odds - 1)


def uniform_entropy(output: Tensor, held: Tensor, clean: Tensor, total: Tensor) -> Tensor:
    """Score entropy of tokens under uniform corruption, [N] float32, at least 0.

    The rate to every other token is 1 / V. The log ratio is the output itself, and 0 for the token that is held. The true ratio, given the
    clean token, is p(y | clean) / p(held | clean) with p(y | clean) = (1 - exp(-sigma)) / V, and exp(-sigma) more for y = clean.

    Args:
        output: [N, V] float32.
        held, clean: [N] int64.
        total: [N] float32, sigma.
    """
    size = output.shape[1]
    stays = torch.exp(-total)
    other = -torch.expm1(-total) / size
    of_held = torch.where(held == clean, other + stays, other)
    ratio_other, ratio_clean = other / of_held, (other + stays) / of_held
    log_score = output.scatter(1, held.unsqueeze(1), 0.0)
    of_clean = log_score.gather(1, clean.unsqueeze(1)).squeeze(1)
    is_right = held == clean
    # Sums over all tokens but the one held, whose log ratio is 0.
    scores = log_score.exp().sum(1) - 1
    logs = ratio_other * log_score.sum(1) + torch.where(is_right, 0.0, (ratio_clean - ratio_other) * of_clean)
    known = torch.where(
        is_right,
        (size - 1) * _negative_entropy(ratio_other),
        (size - 2) * _negative_entropy(ratio_other) + _negative_entropy(ratio_clean),
    )
    return (scores - logs + known) / size


def _negative_entropy(ratio: Tensor) -> Tensor:
    return ratio * (ratio.log() - 1)


def make(spec: ModelSpec, body: Mapping[str, Any]) -> ScoreEntropy:
    return ScoreEntropy(spec, read_options(ScoreEntropyOptions, NAME, body))

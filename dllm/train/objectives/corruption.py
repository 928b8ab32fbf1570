"""Times, which tokens are corrupted at them, and what their losses weigh.

Everything here is made on the CPU, from the caller's generator.

Dimensions: N tokens that may be corrupted, G groups of them with a time each (documents, blocks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from dllm.errors import ConfigError
from dllm.spec import ModelSpec
from dllm.train.objectives.options import check_band, check_choice

CountRule: TypeAlias = Literal["fixed", "independent"]
Weighting: TypeAlias = Literal["bound", "equal"]


@dataclass(frozen=True, slots=True)
class Noise:
    """How times are drawn and what they do: options that objectives which mask have in common."""

    low: float = 0.0
    high: float = 1.0
    """Times lie in (low, high]: LLaDA2.0's band of mask ratios (arXiv:2512.15745). Outside [0, 1] the loss is no bound."""
    counts: CountRule = "fixed"
    """fixed: exactly ceil(t N) of N tokens are masked. independent: each with probability t (MDLM, LLaDA), at `low` of 1e-3."""
    weighting: Weighting = "bound"
    """bound: one over the share that is masked. equal: every masked token counts once."""
    weight_cap: float = 0.0
    """Largest weight; 0 for none."""
    antithetic: bool = True
    """Spread the times evenly over the groups of a batch: documents, or blocks."""
    complementary: bool = False
    """Use each row twice, with a mask and with its complement: every token is learned once (Fast-dLLM v2, arXiv:2509.26328; LLaDA2)."""

    def check(self, name: str) -> None:
        """
        Raises:
            ConfigError: Naming the key in the objective's table.
        """
        check_choice(f"{name}.counts", self.counts, get_args(CountRule))
        check_choice(f"{name}.weighting", self.weighting, get_args(Weighting))
        check_band(name, self.low, self.high)
        if self.counts == "independent" and self.low == 0 and self.weighting == "bound" and self.weight_cap == 0:
            raise ConfigError(f"{name}.low", self.low, "above 0 with independent masks: the weight 1/t has no bound")
        if self.weight_cap != 0 and not self.weight_cap >= 1:
            raise ConfigError(f"{name}.weight_cap", self.weight_cap, "at least 1, or 0 for none")
        if self.complementary and abs(self.low + self.high - 1) > 1e-9:
            raise ConfigError(
                f"{name}.high", self.high, f"{1 - self.low:g} with complementary masks: t and 1 - t share one band"
            )


@dataclass(frozen=True, slots=True)
class View:
    """One corruption of the same tokens."""

    masked: Tensor
    """[N] bool."""
    weight: Tensor
    """[N] float32, of each token's loss if it is masked."""


def spread(count: int, generator: torch.Generator, antithetic: bool = True) -> Tensor:
    """[count] float64 in (0, 1]: uniform draws, or antithetic ones, evenly spread with one common offset and in random order.

    Source: the low-discrepancy sampler of VDM (arXiv:2107.00630).
    """
    if not antithetic:
        return 1 - torch.rand(count, dtype=torch.float64, generator=generator)
    offset = torch.rand((), dtype=torch.float64, generator=generator)
    order = torch.randperm(count, generator=generator)
    return 1 - ((offset + order) / max(1, count)) % 1.0


def views(group: Tensor, groups: int, noise: Noise, generator: torch.Generator) -> list[View]:
    """Masks of all tokens at one time per group: one view, or two that mask every token exactly once between them.

    fixed: exactly ceil(t n) of a group's n tokens; independent: each with probability t. A loss weighs n / masked, or 1 / t, which
    makes the sum an estimate of the any-order bound whose expectation is the same for both. A view that masks its whole group leaves
    its partner nothing, so under complementary masks it counts twice: the mean of the two views then has that expectation too.

    Args:
        group: [N] int64, below `groups`.
    """
    times = noise.low + (noise.high - noise.low) * spread(groups, generator, noise.antithetic)
    draws = torch.rand(len(group), dtype=torch.float64, generator=generator)
    sizes = torch.bincount(group, minlength=groups)
    if noise.counts == "independent":
        share = times
        masked = draws < times[group]
    else:
        order = (group + draws).argsort(stable=True)
        rank = torch.empty_like(group)
        rank[order] = torch.arange(len(group)) - (sizes.cumsum(0) - sizes)[group[order]]
        count = (times * sizes).ceil().clamp(min=1).minimum(sizes)
        share = count / sizes.clamp_min(1)
        masked = rank < count[group]
    whole = 2.0 if noise.complementary and noise.counts == "fixed" else 1.0
    found = [View(masked, _weights(share, whole, noise)[group])]
    if noise.complementary:
        found.append(View(~masked, _weights(1 - share, whole, noise)[group]))
    return found


def _weights(share: Tensor, whole: float, noise: Noise) -> Tensor:
    """[G] float32. Where nothing is masked the weight is never used, but it must be a number."""
    if noise.weighting == "equal":
        return torch.ones(len(share))
    weights = 1 / share.clamp_min(1e-9)
    weights = torch.where(share == 1, whole * weights, weights)
    return (weights.clamp_max(noise.weight_cap) if noise.weight_cap else weights).float()


def text_tokens(spec: ModelSpec) -> Tensor:
    """Ids that a reply may hold, ends included: what a wrong token is drawn from."""
    special = spec.special
    excluded = {special.mask, special.pad, special.bos, special.delete, special.split, *special.forbidden} - {
        *special.ends
    }
    return torch.tensor([token for token in range(spec.vocab_size) if token not in excluded])

"""Masked diffusion: MDLM (arXiv:2406.07524), LLaDA (arXiv:2502.09992) and Dream (arXiv:2508.15487).

Each document has a time t; a share t of its learned tokens becomes the mask token, and the network guesses them back. Weighted by 1/t
the loss is a bound on the negative log-likelihood of the learned tokens given the rest. A prompt is never corrupted and has no loss.

Dimensions: B rows, T positions of a row, N learned tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.errors import ConfigError
from dllm.models.family import Network
from dllm.spec import MaskKind, ModelSpec
from dllm.train.objectives.base import Packed, Terms
from dllm.train.objectives.corruption import Noise, text_tokens, views
from dllm.train.objectives.masks import check_attention, document_mask, groups_at, learned_places
from dllm.train.objectives.options import check_choice, read_options

NAME = "masked"

Normaliser: TypeAlias = Literal["tokens", "answers", "masked"]


@dataclass(frozen=True, slots=True)
class MaskedOptions(Noise):
    normaliser: Normaliser = "tokens"
    """What the loss is divided by. tokens: learned tokens (MDLM, LLaDA's pre-training). answers: every document's sum by its own learned
    tokens, then by documents (LLaDA's fine-tuning). masked: masked tokens (Dream)."""
    replaced: float = 0.0
    """Share of the learned tokens that stay visible which become random text tokens; all visible ones then have a loss as well, which
    teaches to keep or to correct them (LLaDA2.1, arXiv:2602.08676)."""
    replaced_weight: float = 1.0
    """Of a visible token's loss, where a masked token's weighs 1 on average over times."""

    def __post_init__(self) -> None:
        self.check(NAME)
        check_choice(f"{NAME}.normaliser", self.normaliser, get_args(Normaliser))
        if not 0 <= self.replaced < 1:
            raise ConfigError(f"{NAME}.replaced", self.replaced, "a share from 0 to below 1")
        if not self.replaced_weight > 0:
            raise ConfigError(f"{NAME}.replaced_weight", self.replaced_weight, "above 0")


class Masked:
    """One stream: masked tokens see the other masks of their document. Of a block-causal family the whole document is one block, as in the
    middle of LLaDA2.0's training; `block` is what such a family decodes with.

    Raises:
        ConfigError: If the model has no mask token, or cannot read packed rows in one pass.
    """

    def __init__(self, spec: ModelSpec, options: MaskedOptions) -> None:
        self.mask, self.shift, self.options = mask_token(spec, NAME), spec.logit_shift, options
        check_attention(spec, NAME)
        self.kind: MaskKind = "full" if spec.mask_kind == "block_causal" else spec.mask_kind
        self.text = text_tokens(spec)

    def __call__(self, network: Network, batch: Packed, generator: torch.Generator) -> Terms:
        options, device = self.options, batch.ids.device
        places = learned_places(batch, skip_first=self.shift == 1)
        group, groups = groups_at(batch, places)
        sizes = torch.bincount(group, minlength=groups)
        each = 1 / sizes[group].float() if options.normaliser == "answers" else torch.ones(len(places))
        ids, at, weights, is_masked = [], [], [], []
        for number, view in enumerate(views(group, groups, options, generator)):
            shown = batch.ids.flatten().clone()
            shown[places[view.masked].to(device)] = self.mask
            has_loss, weight = view.masked, view.weight
            if options.replaced:
                wrong = ~view.masked & (torch.rand(len(places), generator=generator) < options.replaced)
                drawn = torch.randint(len(self.text), (int(wrong.sum()),), generator=generator)
                shown[places[wrong].to(device)] = self.text[drawn].to(device)
                has_loss = torch.ones_like(view.masked)
                weight = torch.where(view.masked, view.weight, torch.tensor(options.replaced_weight))
            ids.append(shown.view_as(batch.ids))
            at.append(places[has_loss] + number * shown.numel())
            weights.append((weight * each)[has_loss])
            is_masked.append(view.masked[has_loss])
        count = len(ids)
        hidden = network(torch.cat(ids), repeated(batch.positions, count), repeated(self._seen(batch), count))
        flat_at = torch.cat(at).to(device)
        losses = losses_at(
            network, hidden.flatten(0, 1), flat_at - self.shift, batch.ids.flatten().repeat(count)[flat_at]
        )
        weighted = losses * torch.cat(weights).to(device)
        masked = torch.cat(is_masked)
        divisors = {"tokens": len(places) * count, "answers": groups * count, "masked": int(masked.sum())}
        parts = {}
        if options.replaced:
            parts["masked"] = float(weighted.detach()[masked.to(device)].sum())
            parts["visible"] = float(weighted.detach()[~masked.to(device)].sum())
        return Terms(weighted.sum(), float(divisors[options.normaliser]), parts)

    def _seen(self, batch: Packed) -> Tensor:
        return document_mask(batch, self.kind)


def mask_token(spec: ModelSpec, name: str) -> int:
    """
    Raises:
        ConfigError: If the model has none.
    """
    if spec.special.mask is None or spec.corruption != "absorbing":
        raise ConfigError("objective", name, f"uniform or causal: {spec.family} has no mask token")
    return spec.special.mask


def repeated(tensor: Tensor, count: int) -> Tensor:
    """The rows, `count` times."""
    return tensor if count == 1 else tensor.repeat(count, *[1] * (tensor.dim() - 1))


def losses_at(network: Network, flat: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropies of some output rows, float32; logits are computed nowhere else."""
    return F.cross_entropy(network.logits(flat[rows]).float(), targets, reduction="none")


def make(spec: ModelSpec, body: Mapping[str, Any]) -> Masked:
    return Masked(spec, read_options(MaskedOptions, NAME, body))

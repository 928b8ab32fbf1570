"""Block diffusion: blocks one after the other, tokens of a block by masked diffusion (BD3-LM, arXiv:2503.09573).

A row is read as [noisy | clean]: each noisy block sees itself and the clean blocks before it, so one forward trains all blocks, each with
a time of its own. With blocks of one token it is the chain rule; with `logit_shift` it is then exactly next-token prediction.

Dimensions: B rows, T positions of a row, N learned tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dllm.errors import ConfigError
from dllm.models.family import Network
from dllm.spec import ModelSpec
from dllm.train.objectives.base import Packed, Terms
from dllm.train.objectives.corruption import Noise, View, views
from dllm.train.objectives.masked import losses_at, mask_token, repeated
from dllm.train.objectives.masks import block_numbers, check_attention, groups_at, learned_places, two_stream_mask
from dllm.train.objectives.options import read_options

NAME = "block"


@dataclass(frozen=True, slots=True)
class BlockOptions(Noise):
    """`best_band` finds the band of times whose losses vary least."""

    block: int = 0
    """Positions of a block; 0 is the model's own."""

    def __post_init__(self) -> None:
        if self.block < 0:
            raise ConfigError(f"{NAME}.block", self.block, "at least 1, or 0 for the model's own")
        self.check(NAME)


@dataclass(frozen=True, slots=True)
class BlockLosses:
    """Losses of every masked token, in all views."""

    weighted: Tensor
    """[M] float32."""
    block: Tensor
    """[M] int64 on the CPU: its block, views apart."""
    share: Tensor
    """[M] float32 on the CPU: share of its block that is masked."""
    tokens: int
    """Learned tokens, in all views."""


class Block:
    """Blocks are counted from a document's first position, prompt included, so that the end of a prompt stands unmasked in the first block.
    Families with a causal prefix count from the answer, where their canvas begins, and read finished text causally.

    With `logit_shift` a block's first token is read off the last clean row before it, as decoding does.

    Raises:
        ConfigError: If the model has no mask token, or cannot read packed rows in one pass.
    """

    def __init__(self, spec: ModelSpec, options: BlockOptions) -> None:
        self.mask, self.shift, self.options = mask_token(spec, NAME), spec.logit_shift, options
        check_attention(spec, NAME)
        self.block = options.block or spec.block
        self._from_answer = spec.mask_kind == "causal_prefix_bidir_block"
        self._is_clean_causal = spec.mask_kind in ("causal_prefix_bidir_block", "causal")

    def __call__(self, network: Network, batch: Packed, generator: torch.Generator) -> Terms:
        losses = self.losses(network, batch, generator)
        return Terms(losses.weighted.sum(), float(losses.tokens))

    def losses(self, network: Network, batch: Packed, generator: torch.Generator) -> BlockLosses:
        """The losses before they are summed."""
        device, rows, length = batch.ids.device, *batch.ids.shape
        places = learned_places(batch, skip_first=self.shift == 1)
        blocks = block_numbers(batch, self.block, self._from_answer)
        group, groups = groups_at(batch, places, blocks)
        found = views(group, groups, self.options, generator)
        noisy = []
        for view in found:
            shown = batch.ids.flatten().clone()
            shown[places[view.masked].to(device)] = self.mask
            noisy.append(shown.view_as(batch.ids))
        count = len(found)
        hidden = network(
            torch.cat((torch.cat(noisy), repeated(batch.ids, count)), dim=1),
            repeated(batch.positions, count).repeat(1, 2),
            repeated(two_stream_mask(batch, blocks, self._is_clean_causal), count),
        )
        source = self._output_rows(places, blocks, length)
        at = torch.cat([source[view.masked] + number * rows * 2 * length for number, view in enumerate(found)])
        targets = torch.cat([batch.ids.flatten()[places[view.masked].to(device)] for view in found])
        weight = torch.cat([view.weight[view.masked] for view in found]).to(device)
        return BlockLosses(
            losses_at(network, hidden.flatten(0, 1), at.to(device), targets) * weight,
            torch.cat([group[view.masked] + number * groups for number, view in enumerate(found)]),
            torch.cat([_shares(view, group, groups)[view.masked] for view in found]),
            len(places) * count,
        )

    def _output_rows(self, places: Tensor, blocks: Tensor, length: int) -> Tensor:
        """[N]: index into the flat [B, 2T] outputs of the row that predicts each place."""
        row, column = places // length, places % length
        noisy = row * 2 * length + column
        if not self.shift:
            return noisy
        flat = blocks.flatten().cpu()
        return torch.where(flat[places] == flat[places - 1], noisy - 1, noisy - 1 + length)


def _shares(view: View, group: Tensor, groups: int) -> Tensor:
    sizes = torch.bincount(group, minlength=groups)
    return (torch.bincount(group, view.masked.double(), groups) / sizes.clamp_min(1))[group].float()


def best_band(
    losses: Sequence[BlockLosses], bands: Sequence[tuple[float, float]], fewest: int = 8
) -> tuple[float, float]:
    """Of the candidate bands of times, the one within which a block's weighted loss varies least. BD3-LM searches so at every validation.

    Args:
        losses: Of some batches without a band of their own.
        fewest: Candidates with fewer blocks than that are passed over.

    Raises:
        ConfigError: If all are.
    """
    sums, shares = [], []
    for batch in losses:
        if len(batch.block):
            blocks, inverse = torch.unique(batch.block, return_inverse=True)
            size = len(blocks)
            sums.append(torch.zeros(size).scatter_add_(0, inverse, batch.weighted.detach().float().cpu()))
            shares.append(torch.zeros(size).scatter_(0, inverse, batch.share))
    total = torch.cat(sums) if sums else torch.zeros(0)
    share = torch.cat(shares) if shares else torch.zeros(0)
    variances = {}
    for low, high in bands:
        inside = total[(share > low) & (share <= high)]
        if len(inside) >= max(2, fewest):
            variances[low, high] = float(inside.var())
    if not variances:
        raise ConfigError("bands", list(bands), f"one with at least {fewest} blocks in it")
    return min(variances, key=lambda band: variances[band])


def make(spec: ModelSpec, body: Mapping[str, Any]) -> Block:
    return Block(spec, read_options(BlockOptions, NAME, body))

"""Plain next-token prediction, the baseline: whatever the family's own attention, here it is causal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import torch

from dllm.errors import ConfigError
from dllm.models.family import Network
from dllm.spec import ModelSpec
from dllm.train.objectives.base import Packed, Terms
from dllm.train.objectives.masked import losses_at
from dllm.train.objectives.masks import check_attention, document_mask, learned_places
from dllm.train.objectives.options import check_choice, read_options

NAME = "causal"

Counted: TypeAlias = Literal["learned", "all"]


@dataclass(frozen=True, slots=True)
class CausalOptions:
    counted: Counted = "learned"
    """learned: answers only. all: prompts as well. A document's first token follows nothing and never counts."""

    def __post_init__(self) -> None:
        check_choice(f"{NAME}.counted", self.counted, get_args(Counted))


class Causal:
    """
    Raises:
        ConfigError: If the model cannot read packed rows in one pass, or sees a noise level.
    """

    def __init__(self, spec: ModelSpec, options: CausalOptions) -> None:
        check_attention(spec, NAME)
        if spec.sees_noise:
            raise ConfigError("objective", NAME, f"another one: {spec.family} wants a noise level, text has none")
        self.options = options

    def __call__(self, network: Network, batch: Packed, generator: torch.Generator) -> Terms:
        if self.options.counted == "all":
            batch = replace(batch, learned=torch.ones_like(batch.learned))
        places = learned_places(batch, skip_first=True).to(batch.ids.device)
        hidden = network(batch.ids, batch.positions, document_mask(batch, "causal")).flatten(0, 1)
        losses = losses_at(network, hidden, places - 1, batch.ids.flatten()[places])
        return Terms(losses.sum(), float(len(places)))


def make(spec: ModelSpec, body: Mapping[str, Any]) -> Causal:
    return Causal(spec, read_options(CausalOptions, NAME, body))

"""Training objectives on packed sequences: what every family can be trained with. The dialogue layout has its own, `dllm.train.objective`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from dllm.spec import ModelSpec
from dllm.train.objectives import block, causal, masked, score_entropy, uniform
from dllm.train.objectives.base import Objective

Make: TypeAlias = Callable[[ModelSpec, Mapping[str, Any]], Objective]
"""An objective for a model, from the configuration's table. Raises `ConfigError` naming key, value and what was expected."""

OBJECTIVES: Mapping[str, Make] = MappingProxyType(
    {
        masked.NAME: masked.make,
        block.NAME: block.make,
        score_entropy.NAME: score_entropy.make,
        uniform.NAME: uniform.make,
        causal.NAME: causal.make,
    }
)

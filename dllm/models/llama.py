"""The former name of the network."""

from __future__ import annotations

from dllm.models.transformer import Transformer as LlamaDiffusion

__all__ = ["LlamaDiffusion"]

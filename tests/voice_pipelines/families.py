"""Tiny checkpoints of several families, each with a tokenizer and a chat template, on disk in its published layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dllm import loader
from dllm.hub_codec import HubCodec
from dllm.loader import Checkpoint
from dllm.models import diffusion_gemma
from dllm.models.registry import family_named
from dllm.spec import ModelSpec
from tests.dllm.models import test_diffusion_gemma
from tests.dllm.models.tiny_checkpoints import random_network, tiny_spec
from tests.dllm.models.tiny_tokenizer import write_tokenizer


def spec_of(family: str) -> ModelSpec:
    """Prompts are spelled letter by letter, so there are more positions than elsewhere."""
    if family == "diffusion_gemma":
        config = {"text_config": dict(test_diffusion_gemma.TEXT), "canvas_length": 16, "model_type": "diffusion_gemma"}
        spec = diffusion_gemma.FAMILY.read_config(config)
    else:
        spec = tiny_spec(family)
    return replace(spec, max_position_embeddings=1024)


def checkpoint(family: str, folder: Path) -> Checkpoint:
    """Saved and loaded again."""
    spec = spec_of(family)
    network = random_network(spec, scale=8.0)
    codec = HubCodec.load(write_tokenizer(folder / "tokenizer", spec), spec)
    loader.save(folder / family, spec, network.state_dict(), codec, dtype=None)
    assert family_named(family).name == family
    return loader.load(folder / family)

"""Tiny checkpoints on disk: the built-in family's layout and published ones'."""

from __future__ import annotations

from pathlib import Path

import pytest

from dllm import loader
from dllm.hub_codec import HubCodec
from tests.dllm import tiny
from tests.dllm.models.tiny_checkpoints import random_network, tiny_spec
from tests.dllm.models.tiny_tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `dllm_llama`, `sdar`, `dream` and `nemotron` in it."""
    root = tmp_path_factory.mktemp("checkpoints")
    loader.save(root / "dllm_llama", tiny.spec(), tiny.model().state_dict(), tiny.codec(), dtype=None)
    for family in ("sdar", "dream", "nemotron"):
        folder, spec = root / family, tiny_spec(family)
        write_tokenizer(folder, spec)
        loader.save(folder, spec, random_network(spec).state_dict(), HubCodec.load(folder, spec), dtype=None)
    return root

"""Logits of every family against those recorded from its published modelling code (`recorded/README.md`)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dllm.models.registry import family_of
from tests.dllm.models.seeded import seeded
from tests.dllm.models.tiny_checkpoints import from_disk, on_disk

RECORDINGS = sorted((Path(__file__).parent / "recorded").glob("*.json"))

CLOSE = 1e-4
"""float32 on both sides, logits of order one written with five decimals."""


def test_recordings_are_there() -> None:
    recorded = {path.stem for path in RECORDINGS}
    assert recorded == {"dream", "llada", "llada2", "llada2_edit", "llada_moe", "mdlm", "sdar", "sedd"}


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_logits_equal_the_recording(path: Path) -> None:
    body: dict[str, Any] = json.loads(path.read_text("utf-8"))
    family = family_of(body["config"], frozenset({"sigma_map.mlp.0.weight", "vocab_embed.embedding"}))
    assert family.name == path.stem
    spec = family.read_config(body["config"])
    shapes = {name: tuple(tensor.shape) for name, tensor in on_disk(family.build(spec)).items()}
    weights = {name: torch.from_numpy(seeded(name, shape, body["seed"])) for name, shape in shapes.items()}
    network = from_disk(spec, weights)
    for case in body["cases"]:
        length = len(case["ids"])
        block = torch.arange(length) // spec.block
        mask = (block[:, None] >= block[None, :])[None, None] if spec.mask_kind == "block_causal" else None
        extra = {"noise": torch.tensor([case["noise"]])} if "noise" in case else {}
        ids, positions = torch.tensor([case["ids"]]), torch.arange(length).unsqueeze(0)
        found = network.logits(network(ids, positions, mask, **extra))[0]
        if "noise" in case:
            # SEDD's class gives logarithms of its score: see `Dit.logits`.
            found = found - math.log(math.expm1(case["noise"])) - math.log(spec.vocab_size - 1)
            found = found.scatter(-1, ids[0].unsqueeze(-1), 0.0)
        torch.testing.assert_close(found, torch.tensor(case["logits"]), atol=CLOSE, rtol=CLOSE)
        assert found.std() > 0.3, "a recording in which all tokens are alike would prove nothing"

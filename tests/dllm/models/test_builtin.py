"""The built-in family against transformers' Qwen3, causal and with a canvas that sees itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import dllm
from dllm.errors import ConfigError
from dllm.models import builtin
from dllm.spec import dialogue_spec
from tests.dllm.models import parity
from tests.dllm.models.parity import DTYPES, LENGTHS


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "canvas behind causal text"])
@DTYPES
@LENGTHS
def test_logits_equal_qwen3(dtype: torch.dtype, prompt: int, canvas: int, causal: bool) -> None:
    ours, weights = parity.reloaded("dllm_llama", dtype)
    theirs = parity.oracle("Qwen3", ours.spec, weights, dtype)  # type: ignore[arg-type]
    parity.assert_logits_equal(ours, theirs, dtype, prompt, canvas, causal)


@LENGTHS
def test_text_then_canvas_equals_one_forward(prompt: int, canvas: int) -> None:
    parity.assert_pieces_equal_the_whole("dllm_llama", prompt, canvas)


def test_rows_with_starts_of_their_own_are_as_if_alone() -> None:
    parity.assert_rows_of_their_own("dllm_llama")


def test_shipped_config_survives_a_round_trip() -> None:
    path = Path(dllm.__file__).parent / "builtin" / "config.json"
    spec = parity.assert_config_round_trip("dllm_llama", json.loads(path.read_text("utf-8")))
    assert spec == dialogue_spec(num_hidden_layers=5)


def test_mask_ids_that_disagree_are_refused() -> None:
    with pytest.raises(ConfigError, match="mask_token_id = 7"):
        builtin.read_config(builtin.write_config(dialogue_spec()) | {"mask_token_id": 7})

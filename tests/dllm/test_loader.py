"""Checkpoints: what is written comes back, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dllm import loader
from dllm.errors import (
    CheckpointError,
    ConfigError,
    MissingTensorError,
    SpecialTokenError,
    TensorShapeError,
    UnknownFamilyError,
)
from dllm.spec import ModelSpec
from tests.dllm import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    loader.save(tmp_path, tiny.spec(), dict(tiny.model().named_parameters()), tiny.codec())
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_saved_weights_come_back_as_bfloat16_values(folder: Path) -> None:
    loaded = loader.load(folder)
    for name, parameter in tiny.model().named_parameters():
        torch.testing.assert_close(loaded.model.get_parameter(name), parameter.bfloat16().float(), atol=0, rtol=0)
    assert loaded.spec == tiny.spec()


def test_layout_is_the_one_other_tools_read(folder: Path) -> None:
    names = set(load_file(folder / "model.safetensors"))
    assert {"model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"} <= names
    config = json.loads((folder / "config.json").read_text())
    assert config["mask_token_id"] == tiny.spec().special.mask
    assert config["model_type"] == "dllm_llama"


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        loader.load(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        loader.load(folder)


def test_missing_tensor_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path)
    with pytest.raises(MissingTensorError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        loader.load(folder)


def test_wrong_shape_is_named_with_both_shapes(folder: Path) -> None:
    edit(folder, intermediate_size=40)
    with pytest.raises(
        TensorShapeError, match=r"gate_proj\.weight has shape \[48, 32\], the configuration asks for \[40, 32\]"
    ):
        loader.load(folder)


def test_unknown_family_is_refused(folder: Path) -> None:
    edit(folder, model_type="dream")
    with pytest.raises(UnknownFamilyError, match="'dream' is not supported; known: dllm_llama"):
        loader.load(folder)


def test_mask_token_disagreement_is_refused(folder: Path) -> None:
    edit(folder, mask_token_id=5)
    with pytest.raises(CheckpointError, match="mask_token_id = 5: expected 1"):
        loader.load(folder)
    special = json.loads((folder / "config.json").read_text())["special_tokens"]
    edit(folder, mask_token_id=1, special_tokens=special | {"reserved": 12})
    with pytest.raises(SpecialTokenError, match="<reserved9>"):
        loader.load(folder)


def test_tokenizer_larger_than_the_model_is_refused(folder: Path) -> None:
    edit(folder, vocab_size=tiny.spec().vocab_size - 1)
    with pytest.raises(CheckpointError, match="the tokenizer has"):
        loader.load(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "dllm_llama", "head_dim": "x"}'])
def test_broken_config_is_a_checkpoint_error(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError):
        loader.load(folder)


def test_file_that_is_not_safetensors_is_a_checkpoint_error(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="not safetensors"):
        loader.load(folder)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"vocab_size": 0}, "vocab_size"),
    ],
)
def test_impossible_geometry_names_the_key(changes: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        ModelSpec(**changes)  # type: ignore[arg-type]

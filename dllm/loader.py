"""Checkpoints on disk: config.json, model.safetensors, tokenizer.json, as Hugging Face lays them out.

Tensor names are Qwen3's (`model.layers.0.self_attn.q_proj.weight`, ...). In memory q|k|v and gate|up are fused, so loading writes
slices of one tensor as they stream from the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dllm.errors import CheckpointError, ConfigError, MissingTensorError, TensorShapeError, UnknownFamilyError
from dllm.models import builtin
from dllm.models.llama import LlamaDiffusion
from dllm.spec import ModelSpec
from dllm.text import DialogueCodec

FAMILIES: dict[str, Callable[[ModelSpec], LlamaDiffusion]] = {"dllm_llama": LlamaDiffusion}
BUILTIN = Path(__file__).parent / "builtin"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model ready to run, and the tokenizer it was trained with."""

    spec: ModelSpec
    model: LlamaDiffusion
    codec: DialogueCodec
    path: Path


def load(path: Path | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Read a checkpoint folder; None is the built-in model.

    Raises:
        CheckpointError: If a file is missing or unreadable, a tensor is missing or has the wrong shape, the family is unknown, or the
            tokenizer's special tokens are not the configuration's.
    """
    path = path or BUILTIN
    spec = read_spec(path)
    codec = DialogueCodec.load(path / "tokenizer.json", spec.dialogue)
    if codec.vocab_size > spec.vocab_size:
        raise CheckpointError(f"{path}: the tokenizer has {codec.vocab_size} tokens, the model {spec.vocab_size}")
    with torch.device("meta"):
        model = FAMILIES[spec.family](spec)
    model = model.to_empty(device=device).to(dtype)
    model.reset_buffers()
    _fill(model, path / "model.safetensors")
    return Checkpoint(spec, model.eval().requires_grad_(False), codec, path)


def read_spec(path: Path) -> ModelSpec:
    """config.json as a record."""
    config_path = path / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"{config_path}: no such file")
    try:
        body: dict[str, Any] = dict(json.loads(config_path.read_text("utf-8")))
        family = str(body.get("model_type", ""))
        if family not in FAMILIES:
            raise UnknownFamilyError(config_path, family, tuple(FAMILIES))
        return builtin.read_config(body)
    except (json.JSONDecodeError, UnicodeDecodeError, ConfigError, TypeError) as error:
        raise CheckpointError(f"{config_path}: {error}") from error


def disk_tensors(spec: ModelSpec) -> dict[str, tuple[str, int, int]]:
    """Every tensor on disk: name to (parameter in memory, first row, rows). A vector is a column of rows."""
    heads, groups = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
    hidden, ffn = spec.hidden_size, spec.intermediate_size
    names = {"model.embed_tokens.weight": ("embed_tokens.weight", 0, spec.vocab_size)}
    for index in range(spec.num_hidden_layers):
        disk, memory = f"model.layers.{index}", f"layers.{index}"
        names |= {
            f"{disk}.input_layernorm.weight": (f"{memory}.input_layernorm.weight", 0, hidden),
            f"{disk}.self_attn.q_proj.weight": (f"{memory}.self_attn.qkv_proj.weight", 0, heads),
            f"{disk}.self_attn.k_proj.weight": (f"{memory}.self_attn.qkv_proj.weight", heads, groups),
            f"{disk}.self_attn.v_proj.weight": (f"{memory}.self_attn.qkv_proj.weight", heads + groups, groups),
            f"{disk}.self_attn.o_proj.weight": (f"{memory}.self_attn.o_proj.weight", 0, hidden),
            f"{disk}.self_attn.q_norm.weight": (f"{memory}.self_attn.q_norm.weight", 0, spec.head_dim),
            f"{disk}.self_attn.k_norm.weight": (f"{memory}.self_attn.k_norm.weight", 0, spec.head_dim),
            f"{disk}.post_attention_layernorm.weight": (f"{memory}.post_attention_layernorm.weight", 0, hidden),
            f"{disk}.mlp.gate_proj.weight": (f"{memory}.mlp.gate_up_proj.weight", 0, ffn),
            f"{disk}.mlp.up_proj.weight": (f"{memory}.mlp.gate_up_proj.weight", ffn, ffn),
            f"{disk}.mlp.down_proj.weight": (f"{memory}.mlp.down_proj.weight", 0, hidden),
        }
    names["model.norm.weight"] = ("norm.weight", 0, hidden)
    if not spec.tie_word_embeddings:
        names["lm_head.weight"] = ("lm_head.weight", 0, spec.vocab_size)
    return names


def _fill(model: LlamaDiffusion, path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    parameters = dict(model.named_parameters())
    wanted = disk_tensors(model.spec)
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            missing = sorted(set(wanted) - set(file.keys()))
            if missing:
                raise MissingTensorError(path, missing)
            for name, (target, first, rows) in wanted.items():
                place = parameters[target][first : first + rows]
                shape = tuple(file.get_slice(name).get_shape())
                if shape != tuple(place.shape):
                    raise TensorShapeError(path, name, tuple(place.shape), shape)
                place.copy_(file.get_tensor(name))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not safetensors: {error}") from error


def save(
    path: Path, spec: ModelSpec, weights: dict[str, Tensor], codec: DialogueCodec, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write a checkpoint folder. `weights` are the parameters by their names in memory."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: weights[source][first : first + rows].detach().to("cpu", dtype).contiguous().clone()
        for name, (source, first, rows) in disk_tensors(spec).items()
    }
    weights_path = path / "model.safetensors"
    save_file(tensors, weights_path, metadata={"format": "pt"})
    weights_path.chmod(0o644)  # safetensors writes for the owner alone
    (path / "config.json").write_text(json.dumps(builtin.write_config(spec), indent=2) + "\n", "utf-8")
    codec.tokenizer.save(str(path / "tokenizer.json"))

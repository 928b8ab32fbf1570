"""Checkpoints on disk, as Hugging Face lays them out: config.json, safetensors in one file or several, tokenizer files.

A family (`dllm.models`) says what the configuration means and where each tensor on disk lives in memory, so loading copies mapped
pages of the files straight into slices of the parameters, on their device. Nothing from a checkpoint is ever run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from dllm.codec import Codec
from dllm.errors import (
    CheckpointError,
    ConfigError,
    MissingTensorError,
    TensorShapeError,
    TiedHeadError,
    TokenizerError,
    UnexpectedTensorError,
)
from dllm.hub import find_checkpoint
from dllm.hub_codec import HubCodec
from dllm.models import builtin
from dllm.models.family import DecodeDefaults, Family, Network, Slot
from dllm.models.registry import family_named, family_of
from dllm.packing import compile_layers, pack
from dllm.parallel import Cut, Team, connect, divide
from dllm.quantize import Quantisation, copy_tied_head, places, swap_layers
from dllm.shards import Stored, check_types, list_tensors, main_dtype, read_tensors, write_tensors
from dllm.spec import ModelSpec
from dllm.text import DialogueCodec

BUILTIN = Path(__file__).parent / "builtin"
MAX_SHARD_BYTES = 5_000_000_000
"""Largest weight file that `save` writes, as transformers does."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far loading is: bytes of weights on disk."""

    done_bytes: int
    total_bytes: int
    file: str
    """The file that is being read."""


class LoadedNetwork(Network, Protocol):
    """A family's network with what every `nn.Module` has."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...

    def state_dict(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model ready to run, and the tokenizer it was trained with."""

    spec: ModelSpec
    model: LoadedNetwork
    codec: Codec
    path: Path
    family: Family = builtin.FAMILY
    defaults: DecodeDefaults = builtin.FAMILY.defaults
    """How the family is decoded unless the caller says otherwise."""
    seconds: float = 0.0
    """What loading took, fetching left out."""
    bytes: int = 0
    """Weights read from disk."""
    compiled: str = ""
    """What `dllm.packing.compile_layers` tells, where it was asked for."""

    @property
    def dialogue_codec(self) -> DialogueCodec:
        """The codec, for parts that need the built-in family's role tokens.

        Raises:
            ConfigError: If the checkpoint is of another family.
        """
        if not isinstance(self.codec, DialogueCodec):
            raise ConfigError("model", self.family.name, "a checkpoint of the built-in family, with role tokens")
        return self.codec


def load(
    source: Path | str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    family: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    progress: Callable[[LoadProgress], None] | None = None,
    quantize: Quantisation | None = None,
    team: Team | None = None,
    packed: bool = False,
    compiled: bool = False,
) -> Checkpoint:
    """Read a checkpoint.

    Args:
        source: A folder; the hub's "ORG/NAME" (a str), fetched when it is not in the local cache; None is the built-in model.
        dtype: Of the weights; None is float32 on CPU and what most weights are stored in elsewhere. What a network keeps in float32
            stays so.
        family: Name of a family, whatever the configuration says.
        template_options: Variables for the chat template, such as Qwen3's `enable_thinking`.
        progress: Called after every tensor.
        quantize: Store weights in eight bits. Each tensor is quantised as it is read: the model never exists in full precision.
        team: Keep this rank's part of every tensor alone (`dllm.parallel`). `Checkpoint.spec` tells of the whole model, the network's own
            `spec` of the part.
        packed: Lay weights out for the products of this CPU (`dllm.packing`). For networks that write: such a one cannot be trained, copied
            or saved. Nothing happens where it would not help, or beside a team.
        compiled: Beyond that, compile all layers of a small network into one call for one thread (`dllm.packing.compile_layers`). Takes a C
            compiler, and seconds the first time.

    Raises:
        ConfigError: If the device cannot do the quantisation, or the model cannot be divided so.
        CheckpointError: If a file is missing or unreadable, tensors are missing, unexpected, of another shape or of a type that cannot
            be read, the family is unknown, or the tokenizer does not fit. Its subclasses and their texts say which.
    """
    path = BUILTIN if source is None else find_checkpoint(source)
    start = time.perf_counter()
    config = read_config(path)
    stored = list_tensors(path)
    chosen = family_of(config, frozenset(stored), family)
    spec = _read_spec(chosen, config, path)
    wanted = _match(chosen, spec, stored, path)
    codec = _read_codec(path, spec, template_options)
    if dtype is None:
        dtype = torch.float32 if torch.device(device).type == "cpu" else main_dtype(stored)
    if quantize is not None:
        quantize.check(torch.device(device))
    with torch.device("meta"):
        model = chosen.build(spec)
    _check_shapes(model, wanted, stored)
    cut: Cut | None = None
    if team is not None:
        model, cut = divide(chosen, spec, team.rank, team.ranks)
        wanted = dict(cut.slots)
    # Types are set before there is memory, so that there is never a second copy in another type.
    model = model.to(dtype)
    if quantize is not None:
        swap_layers(model, quantize)
    model = model.to_empty(device=device)
    model.reset_buffers()  # type: ignore[operator]
    _fill(model, wanted, stored, progress, cut)
    if quantize is not None and quantize.head and spec.tie_word_embeddings:
        copy_tied_head(model)
    told = ""
    if team is not None and cut is not None:
        connect(model, team, cut)
    elif packed or compiled:
        told = compile_layers(model) if compiled else ""
        pack(model)
    size = sum(stored[name].bytes for name in wanted if name in stored)
    seconds = time.perf_counter() - start
    network = cast(LoadedNetwork, model.eval().requires_grad_(False))
    return Checkpoint(spec, network, codec, path, chosen, chosen.defaults, round(seconds, 3), size, told)


def read_config(path: Path) -> dict[str, Any]:
    """A checkpoint's config.json.

    Raises:
        CheckpointError: If it is missing, is no JSON object, or tells of quantised weights.
    """
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    try:
        body = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not JSON: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}") from error
    if not isinstance(body, dict):
        raise CheckpointError(f"{file}: expected an object, found {type(body).__name__}")
    if quantised := body.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
        raise CheckpointError(
            f"{file}: the weights are quantised ({method}); load the unquantised checkpoint and quantise it here"
        )
    return body


def _read_spec(family: Family, config: Mapping[str, Any], path: Path) -> ModelSpec:
    file = path / "config.json"
    try:
        return family.read_config(config)
    except KeyError as error:
        raise CheckpointError(f"{file}: {error.args[0]} is missing, which {family.name} needs") from error
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def _read_codec(path: Path, spec: ModelSpec, template_options: Mapping[str, Any] | None) -> Codec:
    if spec.dialogue is None:
        return HubCodec.load(path, spec, template_options)
    codec = DialogueCodec.load(path / "tokenizer.json", spec.dialogue)
    if codec.vocab_size > spec.vocab_size:
        raise TokenizerError(path, f"the tokenizer has {codec.vocab_size} tokens, the model {spec.vocab_size}")
    return codec


def _match(family: Family, spec: ModelSpec, stored: Mapping[str, Stored], path: Path) -> dict[str, Slot]:
    """Where each tensor goes, once it is certain that the files hold what the family needs and nothing else.

    A tied checkpoint may bring a head if it equals the embedding.
    """
    wanted = family.tensors(spec)
    heads = set(family.tensors(replace(spec, tie_word_embeddings=not spec.tie_word_embeddings))) ^ set(wanted)
    missing = sorted(name for name, slot in wanted.items() if name not in stored and not slot.is_optional)
    if missing and set(missing) == heads:
        raise TiedHeadError(path, missing[0], is_tied=False)
    if missing:
        raise MissingTensorError(path, missing)
    if spec.tie_word_embeddings:
        embedding = next(name for name, slot in wanted.items() if slot.parameter == "embed_tokens.weight")
        for head in sorted(heads & set(stored)):
            if not _are_equal(stored, head, embedding):
                raise TiedHeadError(path, head, is_tied=True)
    extra = sorted(name for name in stored if name not in wanted and name not in heads)
    if unknown := [name for name in extra if not name.startswith(family.ignored)]:
        raise UnexpectedTensorError(path, family.name, unknown)
    check_types({name: stored[name] for name in wanted if name in stored})
    return wanted


def _are_equal(stored: Mapping[str, Stored], one: str, other: str) -> bool:
    if (stored[one].shape, stored[one].kind) != (stored[other].shape, stored[other].kind):
        return False
    check_types({one: stored[one]})
    pair = [tensor for name in (one, other) for _, tensor in read_tensors({name: stored[name]})]
    return torch.equal(*pair)


def _targets(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _check_shapes(model: nn.Module, wanted: Mapping[str, Slot], stored: Mapping[str, Stored]) -> None:
    targets = _targets(model)
    for name, slot in wanted.items():
        shape = tuple(slot.of(targets[slot.parameter]).shape)
        if name in stored and stored[name].shape != shape:
            raise TensorShapeError(stored[name].file, name, shape, stored[name].shape)


def _fill(
    model: nn.Module,
    wanted: Mapping[str, Slot],
    stored: Mapping[str, Stored],
    progress: Callable[[LoadProgress], None] | None,
    cut: Cut | None,
) -> None:
    """Copy every tensor to its place. Optional factors that the files lack become one."""
    targets, quantised = _targets(model), places(model)
    present = {name: stored[name] for name in stored if name in wanted}
    total, done = sum(tensor.bytes for tensor in present.values()), 0
    with torch.no_grad():
        for name, slot in wanted.items():
            if name not in present:
                slot.of(targets[slot.parameter]).fill_(1.0)
        for name, values in read_tensors(present):
            slot = wanted[name]
            part = values if cut is None else cut.of(name, values)
            if (place := quantised.get(slot.parameter)) is not None:
                place.put(slot, part)
            else:
                slot.of(targets[slot.parameter]).copy_(part)
            done += present[name].bytes
            if progress is not None:
                progress(LoadProgress(done, total, present[name].file.name))


def save(
    path: Path,
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    codec: Codec,
    dtype: torch.dtype | None = torch.bfloat16,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a checkpoint folder in its family's published layout.

    Args:
        weights: Parameters, and buffers where the family stores some, by their names in memory (a `state_dict`).
        dtype: None keeps every tensor's own, so that loading gives the same bits again.
        max_shard_bytes: More than this becomes several files and an index.

    Raises:
        MissingTensorError: If `weights` lacks some.
    """
    family = family_named(spec.family)
    slots = family.tensors(spec)
    missing = sorted(name for name, slot in slots.items() if slot.parameter not in weights and not slot.is_optional)
    if missing:
        raise MissingTensorError(path, missing)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {name: slot.of(weights[slot.parameter]) for name, slot in slots.items() if slot.parameter in weights}
    write_tensors(path, tensors, dtype, max_shard_bytes)
    stored_as = dtype or next(iter(tensors.values())).dtype
    config = family.write_config(spec) | {"torch_dtype": str(stored_as).removeprefix("torch.")}
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    codec.save(path)

"""The copy on disk: every tensor under its name in the other family's layout, the embedding with a row for the mask token.

Dimensions: V rows of the embedding, E hidden size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dllm.convert.backbone import TARGETS, check_source, converted_spec
from dllm.convert.tokens import MaskedTokenizer, save_tokenizer, with_mask_token
from dllm.errors import (
    ConfigError,
    ConversionError,
    MissingTensorError,
    TensorShapeError,
    TiedHeadError,
    UnexpectedTensorError,
)
from dllm.hub import find_checkpoint
from dllm.hub_codec import HubCodec
from dllm.loader import MAX_SHARD_BYTES, read_config
from dllm.models.layout import qwen_tensors
from dllm.models.registry import family_named
from dllm.shards import Stored, check_types, list_tensors, main_dtype, read_tensors, write_tensors
from dllm.spec import ModelSpec

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROW_MULTIPLE = 64
"""A vocabulary that must grow grows to a multiple of this: whole tiles of a matrix unit, and it divides among ranks."""
_COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""What older checkpoints store although it follows from the config."""
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was made."""

    spec: ModelSpec
    mask_text: str
    rows_before: int
    """Rows of the embedding as it was; `spec.vocab_size` says how many there are now."""
    tensors: int
    bytes: int


def convert(
    source: Path | str,
    out: Path,
    to: str,
    *,
    block: int | None = None,
    mask_text: str | None = None,
    noise: float = 0.0,
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Conversion:
    """Write an autoregressive Llama, Qwen2 or Qwen3 checkpoint as a checkpoint of a diffusion family.

    Weights are copied bit for bit, one shard in memory at a time. The mask token takes the first id that no token has: a row that the
    embedding keeps spare, or a new one. Its embedding is the mean of all tokens' (where training starts it matters little, but no single
    token's meaning should stand behind every mask). The result must be trained before it writes sense: it has never seen a mask.

    Args:
        source: A folder, or the hub's "ORG/NAME".
        out: Must hold no checkpoint.
        to: A name in `dllm.convert.backbone.TARGETS`.
        block: For families with blocks; None is the published size.
        mask_text: Text of the mask token; None is `dllm.convert.tokens.MASK_TEXT`.
        noise: Spread of the mask's embedding around the mean, as a share of the spread of the tokens' embeddings.
        seed: Of the noise.

    Raises:
        ConfigError: If an argument makes no sense.
        CheckpointError: If the checkpoint is of another architecture, damaged, quantised or without safetensors, or the family cannot
            hold it. Its subclasses and their texts say which. Nothing has been written then.
    """
    if (out / "config.json").exists() or any(out.glob("*.safetensors")):
        raise ConfigError("--out", str(out), "a folder without a checkpoint")
    if noise < 0:
        raise ConfigError("--noise", noise, "a share of 0 or more")
    folder = find_checkpoint(source)
    body = read_config(folder)
    check_source(body, to, folder / "config.json")
    stored = list_tensors(folder)
    tokens = with_mask_token(folder, body, mask_text)
    before = embedding_rows(stored, folder)
    if tokens.known > before:
        raise ConversionError(folder, f"the tokenizer has {tokens.known} tokens, the embedding {before} rows")
    rows = max(before, -(-(tokens.mask + 1) // ROW_MULTIPLE) * ROW_MULTIPLE if tokens.mask >= before else 0)
    spec = converted_spec(body, to, tokens.special, rows, block, folder / "config.json")
    names = _names(spec, before, stored, folder)
    weights = _Weights(names, stored, spec, tokens, noise, seed)

    out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokens, folder, out)
    HubCodec.load(out, spec)
    write_tensors(out, weights, None, max_shard_bytes)
    dtype = str(main_dtype({name: stored[name] for name in names.values()})).removeprefix("torch.")
    config = family_named(to).write_config(spec) | {"torch_dtype": dtype}
    # The config comes last: a copy that was broken off is no checkpoint.
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    size = sum(stored[name].bytes for name in names.values())
    return Conversion(spec, tokens.mask_text, before, len(names), size)


def embedding_rows(stored: Mapping[str, Stored], folder: Path) -> int:
    """Rows of the embedding on disk.

    Raises:
        MissingTensorError: If there is none.
    """
    if EMBEDDING not in stored:
        raise MissingTensorError(folder, [EMBEDDING])
    return stored[EMBEDDING].shape[0]


def _names(spec: ModelSpec, rows: int, stored: Mapping[str, Stored], folder: Path) -> dict[str, str]:
    """Names in the new layout to names on disk, once it is certain that the files hold what the config says and nothing else.

    Raises:
        CheckpointError: See `convert`.
    """
    source = qwen_tensors(spec)
    missing = sorted(name for name in source if name not in stored)
    if missing == [HEAD]:
        raise TiedHeadError(folder, HEAD, is_tied=False)
    if missing:
        raise MissingTensorError(folder, missing)
    extra = [name for name in stored if name not in source and not _COMPUTED.fullmatch(name)]
    if spec.tie_word_embeddings and HEAD in extra:
        if not _are_equal(stored[HEAD], stored[EMBEDDING]):
            raise TiedHeadError(folder, HEAD, is_tied=True)
        extra.remove(HEAD)
    if extra:
        raise UnexpectedTensorError(folder, TARGETS[spec.family].source, sorted(extra))
    check_types({name: stored[name] for name in source})
    with torch.device("meta"):
        places = dict(family_named(spec.family).build(spec).named_parameters())
    for name, slot in source.items():
        shape = tuple(slot.of(places[slot.parameter]).shape)
        if name in (EMBEDDING, HEAD):
            shape = (rows, spec.hidden_size)
        if stored[name].shape != shape:
            raise TensorShapeError(stored[name].file, name, shape, stored[name].shape)
    by_slot = {slot: name for name, slot in source.items()}
    return {name: by_slot[slot] for name, slot in family_named(spec.family).tensors(spec).items()}


def _are_equal(one: Stored, other: Stored) -> bool:
    pair = [tensor for stored, name in ((one, HEAD), (other, EMBEDDING)) for _, tensor in read_tensors({name: stored})]
    return pair[0].dtype == pair[1].dtype and torch.equal(*pair)


class _Weights(Mapping[str, Tensor]):
    """The converted weights by their new names, each read from the mapped files when it is asked for."""

    def __init__(
        self,
        names: Mapping[str, str],
        stored: Mapping[str, Stored],
        spec: ModelSpec,
        tokens: MaskedTokenizer,
        noise: float,
        seed: int,
    ) -> None:
        self._names, self._stored, self._spec, self._tokens = names, stored, spec, tokens
        self._noise, self._seed = noise, seed

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Tensor:
        on_disk = self._names[name]
        _, tensor = next(read_tensors({on_disk: self._stored[on_disk]}))
        if on_disk not in (EMBEDDING, HEAD):
            return tensor
        noise = self._noise if on_disk == EMBEDDING else 0.0
        generator = torch.Generator().manual_seed(self._seed)
        return with_mask_row(tensor, self._spec.vocab_size, self._tokens.mask, self._tokens.known, noise, generator)


def with_mask_row(table: Tensor, rows: int, mask: int, known: int, noise: float, generator: torch.Generator) -> Tensor:
    """An embedding or head with a row for the mask token.

    Args:
        table: [V, E].
        rows: Rows that are wanted, at least V; new ones are the mean.
        mask: The mask token's row: the mean of the first `known` rows, itself left out, with `noise` times their spread added.

    Returns:
        [rows, E], a tensor of its own in the same type; all other rows are as they were.
    """
    total = torch.zeros(table.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    others = [at for at in range(known) if at != mask] if mask < known else None
    chosen = table[:known] if others is None else table[others]
    for first in range(0, len(chosen), _ROWS_AT_ONCE):
        part = chosen[first : first + _ROWS_AT_ONCE].double()
        total += part.sum(dim=0)
        squares += part.square().sum(dim=0)
    mean = total / len(chosen)
    grown = torch.empty((rows, table.shape[1]), dtype=table.dtype)
    grown[: len(table)] = table
    grown[len(table) :] = mean.to(table.dtype)
    spread = (squares / len(chosen) - mean.square()).clamp(min=0).sqrt()
    drawn = torch.randn(mean.shape, dtype=mean.dtype, generator=generator)
    grown[mask] = (mean + noise * spread * drawn).to(table.dtype)
    return grown

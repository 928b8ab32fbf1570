"""What a run begins with: a network, its tokenizer, and the task made of them and the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from dllm import loader
from dllm.codec import Codec
from dllm.errors import ConfigError
from dllm.models.transformer import Transformer
from dllm.spec import ModelSpec
from dllm.spoken import spoken_form
from dllm.text import DialogueCodec, train_tokenizer
from dllm.train.config import TrainConfig
from dllm.train.corpus import Corpus, Item, find_files, read_items
from dllm.train.data import Mixture, Split, source_weights
from dllm.train.tasks import DialogueTask, PackedTask, Task, build_objective

TOKENIZER_WORDS = 400_000
"""Words of the mixture that a tokenizer is trained on."""


@dataclass(frozen=True, slots=True)
class Start:
    """Before the first step, or before a saved state is put into it."""

    spec: ModelSpec
    network: nn.Module
    """On the CPU, float32; in bfloat16 where only adapters beside it learn in that type."""
    codec: Codec


def begin(
    config: TrainConfig, folders: Sequence[Path], *, tokenizer: Path | None = None, resumed: Path | None = None
) -> Start:
    """The checkpoint that the configuration names, or random weights of its geometry.

    Args:
        tokenizer: tokenizer.json for random weights; None trains one on the data.
        resumed: A run folder to continue: its export has geometry and tokenizer, so that `init` need not be there any more, unless
            adapters learn beside its weights.

    Raises:
        ConfigError: If the tokenizer has more tokens than the model.
        CheckpointError: If a checkpoint cannot be loaded.
    """
    if config.init:
        try:
            folder = Path(config.init).expanduser()
            source: Path | str = folder if folder.exists() else config.init
        except (OSError, RuntimeError) as error:
            raise ConfigError("init", config.init, f"a checkpoint's folder, or ORG/NAME ({error})") from error
        if resumed is not None and not config.lora_rank:
            source = resumed / "export"
        dtype = torch.bfloat16 if config.lora_rank and config.dtype == "bfloat16" else torch.float32
        checkpoint = loader.load(source, dtype=dtype)
        network = cast(nn.Module, checkpoint.model).train().requires_grad_(True)
        return Start(checkpoint.spec, network, checkpoint.codec)
    if resumed is not None:
        tokenizer = resumed / "tokenizer.json"
    spec = config.model_spec()
    codec = make_codec(folders, config) if tokenizer is None else DialogueCodec.load(tokenizer, spec.dialogue)
    if codec.vocab_size > spec.vocab_size:
        raise ConfigError("vocab_size", spec.vocab_size, f"at least the tokenizer's {codec.vocab_size}")
    network = Transformer(spec)
    network.reset_parameters(torch.Generator().manual_seed(config.seed))
    return Start(spec, network, codec)


def make_task(start: Start, folders: Sequence[Path], config: TrainConfig, split: Split = "train") -> Task:
    """
    Raises:
        ConfigError: If the objective cannot train this model, or the mixture is empty.
        DataError: If a data file is bad.
    """
    if config.objective == "dialogue":
        if not isinstance(start.codec, DialogueCodec):
            raise ConfigError("objective", "dialogue", f"another one: {start.spec.family} has no role tokens")
        return DialogueTask(Mixture(folders, start.codec, config, split), start.spec, config)
    if config.row_tokens > start.spec.max_position_embeddings:
        raise ConfigError("row_tokens", config.row_tokens, f"at most the model's {start.spec.max_position_embeddings}")
    objective = build_objective(config.objective, start.spec, config.options.get(config.objective, {}))
    return PackedTask(Corpus(folders, start.codec, start.spec, config, split), objective, config)


def make_codec(folders: Sequence[Path], config: TrainConfig, extra: Sequence[Path] = ()) -> DialogueCodec:
    """Train the tokenizer on a sample of the mixture, user turns in both spellings.

    Args:
        extra: Plain text files that count as one more source.
    """
    paths = find_files(folders, "train")
    sources = source_weights(folders, list(paths), config)
    total = sum(source.weight for source in sources.values())

    def texts() -> Iterator[str]:
        for path in extra:
            yield from path.read_text("utf-8").splitlines()
        for name, source in sources.items():
            wanted = max(1, int(TOKENIZER_WORDS * source.weight / total))
            for item in read_items(paths[name]):
                for role, text in _texts_of(item):
                    yield text
                    if role == "user":
                        yield spoken_form(text)
                    wanted -= len(text.split())
                if wanted <= 0:
                    break

    spec = config.model_spec()
    return DialogueCodec(train_tokenizer(texts(), config.vocab_size, spec.dialogue), spec.dialogue)


def _texts_of(item: Item) -> list[tuple[str, str]]:
    if isinstance(item, str):
        return [("text", line) for line in item.splitlines()]
    return [(turn.role, turn.text) for turn in item.turns]

"""Small models of several kinds and packed rows for the tests of objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from dllm.models.dit import Dit
from dllm.models.transformer import Transformer
from dllm.spec import ModelSpec, SpecialTokens
from dllm.train.objectives.base import Packed

PAD, MASK, END = 0, 1, 2
VOCAB = 12
FIRST_TEXT = 3


def plain_spec(**changes: Any) -> ModelSpec:
    spec = ModelSpec(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        special=SpecialTokens(MASK, (END,), PAD),
        family="test",
        max_position_embeddings=64,
        qk_norm=True,
    )
    return replace(spec, **changes)


UNIFORM = {"corruption": "uniform", "special": SpecialTokens(None, (END,), PAD), "self_conditioning": True}


def network_of(spec: ModelSpec, seed: int = 0, scale: float = 10.0) -> Transformer:
    """Random weights, large enough for opinions."""
    network = Transformer(spec)
    network.reset_parameters(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 2:
                parameter.mul_(scale)
    return network


def dit_of(spec: ModelSpec, seed: int = 0) -> Dit:
    """With open gates: at its published start every layer is the identity."""
    network = Dit(spec)
    generator = torch.Generator().manual_seed(seed)
    network.reset_parameters(generator)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 0.2, generator=generator)
    return network


def packed(rows: Sequence[Sequence[tuple[int, int]]], seed: int = 0) -> Packed:
    """Rows of documents, each (tokens of its prompt, tokens of its answer), of random text."""
    generator = torch.Generator().manual_seed(seed)
    length = max(sum(prompt + answer for prompt, answer in row) for row in rows)
    ids = torch.full((len(rows), length), PAD)
    document, positions = torch.full_like(ids, -1), torch.zeros_like(ids)
    learned = torch.zeros_like(ids, dtype=torch.bool)
    for at, row in enumerate(rows):
        start = 0
        for number, (prompt, answer) in enumerate(row):
            end = start + prompt + answer
            ids[at, start:end] = torch.randint(FIRST_TEXT, VOCAB, (prompt + answer,), generator=generator)
            document[at, start:end] = number
            positions[at, start:end] = torch.arange(prompt + answer)
            learned[at, start + prompt : end] = True
            start = end
    return Packed(ids, document, positions, learned)


def apart(batch: Packed) -> list[Packed]:
    """The documents of a batch, each in a row of its own."""
    found = []
    for row in range(batch.ids.shape[0]):
        for number in range(int(batch.document[row].max()) + 1):
            at = batch.document[row] == number
            found.append(
                Packed(
                    batch.ids[row, at].unsqueeze(0),
                    torch.zeros_like(batch.ids[row, at]).unsqueeze(0),
                    batch.positions[row, at].unsqueeze(0),
                    batch.learned[row, at].unsqueeze(0),
                )
            )
    return found


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def detached(loss: torch.Tensor) -> float:
    return float(loss.detach())

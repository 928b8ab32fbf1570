"""A tokenizer and models that cost nothing: a few hundred tokens, two layers, random weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch

from dllm.models.transformer import Transformer
from dllm.spec import ModelSpec, dialogue_spec
from dllm.text import DialogueCodec, train_tokenizer

LINES = (
    "I'd like a large mocha with almond milk, please.",
    "A large mocha with almond milk, that's $5.10. Anything else?",
    "What size would you like? Small, medium or large.",
    "Goodbye, see you soon at the Café!",
    "i would like a small tea and a muffin for seven p m",
)


@cache
def codec() -> DialogueCodec:
    return DialogueCodec(train_tokenizer(LINES, 400))


@cache
def spec() -> ModelSpec:
    return dialogue_spec(
        vocab_size=codec().vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
    )


def model(seed: int = 0, scale: float = 8.0) -> Transformer:
    """Random weights, large enough for opinions: at the usual .02 every token would be equally likely."""
    network = Transformer(spec())
    network.reset_parameters(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 2:
                parameter.mul_(scale)
    return network.eval().requires_grad_(False)


def write_dialogues(folder: Path, name: str = "tea", split: str = "train", count: int = 12) -> Path:
    """A small source in the documented format."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{split}.jsonl"
    drinks = ("mocha", "tea", "muffin", "large tea")
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            drink, price = drinks[index % len(drinks)], f"${index % 5 + 1}.{index % 10}0"
            turns = [
                {"role": "system", "text": "You answer the phone of a small Café."},
                {"role": "user", "text": f"I'd like a {drink}, please."},
                {"role": "note", "text": f"total: {price}"},
                {"role": "agent", "text": f"A {drink}, that's {price}. Anything else?", "pins": [price]},
                {"role": "user", "text": "No, thanks."},
                {"role": "agent", "text": "Goodbye, see you soon!"},
            ]
            file.write(json.dumps({"id": f"{name}-{index}", "domain": "cafe", "turns": turns}) + "\n")
    return path

"""What a step costs in floating-point operations, and how fast this device multiplies matrices of the model's own shapes.

Dimensions: T positions of a row, E hidden size, V vocabulary, L layers, H query heads of size D.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch

from dllm.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Cost:
    """Operations of a forward and a backward; a multiplication and an addition are two.

    A matrix costs two per weight in the forward, two for the gradient of its input, and two for its own where it learns: the usual
    6N. Norms, activations, softmax and rotary positions are left out, as is what an objective computes beside one forward of its rows.
    """

    position: float
    """Matrices of all layers, of one position."""
    target: float
    """The output head, of one position whose token is predicted."""
    pair: float
    """Attention of all layers, of one query and one key. All pairs of a row count, masked ones too: they are computed."""

    def of(self, positions: int, targets: int, row_length: float) -> float:
        return positions * (self.position + self.pair * row_length) + targets * self.target


def cost_of(spec: ModelSpec, shapes: Mapping[str, torch.Size], learned: Collection[str]) -> Cost:
    """
    Args:
        shapes: Of all parameters of the whole model, by name.
        learned: Names of those that learn.
    """
    per_position = 0.0
    for name, shape in shapes.items():
        # What modulates a layer (DiT) is computed once a row, not once a position.
        if not name.startswith("layers.") or len(shape) < 2 or "modulation" in name:
            continue
        share = 1.0
        if len(shape) == 3 and spec.moe is not None:
            share = spec.moe.experts_per_token / spec.moe.experts
        per_position += (6 if name in learned else 4) * shape.numel() * share
    head = "embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
    per_target = (6.0 if head in learned else 4.0) * spec.hidden_size * spec.vocab_size
    pair = 12.0 * spec.num_attention_heads * spec.head_dim * spec.num_hidden_layers
    return Cost(per_position, per_target, pair)


def matrix_rate(
    spec: ModelSpec, positions: int, device: torch.device, dtype: torch.dtype, seconds: float = 0.3
) -> float:
    """Operations per second of plain products with the model's own shapes, each as often as a layer has it.

    Args:
        positions: Rows of the left factor: the positions of a forward.
        seconds: How long to measure; a warm-up comes before.
    """
    size, heads = spec.hidden_size, spec.num_attention_heads * spec.head_dim
    keys = 2 * spec.num_key_value_heads * spec.head_dim
    inner = spec.intermediate_size
    shapes = [(size, heads + keys), (heads, size), (size, 2 * inner), (inner, size)]
    pairs = [
        (torch.randn(positions, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype))
        for k, n in shapes
    ]
    work = sum(2.0 * positions * k * n for k, n in shapes)

    def multiply() -> None:
        for left, right in pairs:
            left @ right

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):
        multiply()
    wait()
    rounds, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(4):
            multiply()
        wait()
        rounds += 4
    return rounds * work / (time.perf_counter() - began)


def mean_row(shapes: Iterable[tuple[int, int]]) -> float:
    """Positions of a row, averaged over positions."""
    pairs = list(shapes)
    return sum(rows * length**2 for rows, length in pairs) / max(1, sum(rows * length for rows, length in pairs))

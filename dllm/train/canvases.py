"""Logits at chosen positions of canvases behind prompts, with gradients: what distillation, preferences and rewards are computed from.

A network sees here exactly what it sees while it writes: the prompt, then one state of a canvas. Where the finished text is causal
(the built-in family) the prompt never looks at a canvas, so several states of it share one row and the prompt is computed once;
elsewhere each state is a row of its own. Any family with a mask token will do.

Dimensions: B rows, T positions of a row, N positions asked for, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from dllm.errors import ConfigError, PromptTooLongError
from dllm.masks import visible
from dllm.models.family import Network
from dllm.spec import ModelSpec

_NEVER = -1e9
"""Logit of what no text holds. Finite, so that probability times its logarithm is zero and not NaN."""


@dataclass(frozen=True, slots=True)
class State:
    """A canvas at one moment."""

    shown: tuple[int, ...]
    """Tokens, and the mask token where nothing is decided."""
    wanted: tuple[int, ...]
    """Canvas positions whose logits are asked for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """States of the canvas behind one prompt."""

    prompt: tuple[int, ...]
    states: tuple[State, ...]


def check_spec(spec: ModelSpec) -> int:
    """The mask token.

    Raises:
        ConfigError: If the family has no masked canvas, or a pass of its own for it.
    """
    if spec.special.mask is None or spec.mask_kind in ("causal", "encoder_decoder"):
        raise ConfigError("model", spec.family, "a family that fills masked canvases")
    return spec.special.mask


def canvas_width(spec: ModelSpec, prompt: int, tokens: int) -> int:
    """Positions of the narrowest canvas that holds so many tokens behind a prompt of `prompt`: whole multiples, whole blocks.

    Raises:
        ConfigError: If the family's canvases are narrower.
        PromptTooLongError: If prompt and canvas exceed the model's positions.
    """
    width = -(-tokens // spec.canvas_multiple) * spec.canvas_multiple
    if spec.max_canvas and width > spec.max_canvas:
        raise ConfigError("reply", tokens, f"at most the {spec.max_canvas} positions of a canvas")
    if spec.mask_kind == "block_causal":
        width = -(-(prompt + width) // spec.block) * spec.block - prompt
    if prompt + width > spec.max_position_embeddings:
        raise PromptTooLongError(prompt + width, spec.max_position_embeddings)
    return width


def logits_at(network: Network, asked: Sequence[Asked]) -> Tensor:
    """[N, V] float32 logits at the wanted positions, in the order of prompts, states and positions; the mask token has none to speak of.

    One forward, on the network's device. Gradients flow where the network's parameters want them.
    """
    spec = network.spec
    mask = check_spec(spec)
    device = next(iter(network.parameters())).device  # type: ignore[attr-defined]
    rows = list(_rows(spec, asked))
    length = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [row.ids[0]] * (length - len(row.ids)) for row in rows], device=device)
    positions = torch.tensor([row.positions + [0] * (length - len(row.ids)) for row in rows], device=device)
    seen = torch.zeros(len(rows), length, length, dtype=torch.bool)
    seen[:, :, 0] = True  # padding, which nobody reads, must see something
    for row, laid in zip(seen, rows, strict=True):
        laid.see(row, spec)
    hidden: Tensor = network(ids, positions, seen.unsqueeze(1).to(device))
    at = torch.tensor([number * length + place for number, row in enumerate(rows) for place in row.wanted])
    logits = network.logits(hidden.flatten(0, 1)[at.to(device)]).float()
    return logits.index_fill(1, torch.tensor([mask], device=device), _NEVER)


@dataclass(frozen=True, slots=True)
class _Row:
    ids: list[int]
    positions: list[int]
    prompt: int
    widths: list[int]
    wanted: list[int]

    def see(self, seen: Tensor, spec: ModelSpec) -> None:
        """Fill [T, T] bool: whom each position looks at."""
        if spec.mask_kind != "causal_prefix_bidir_block":
            total = len(self.ids)
            counts = torch.tensor(visible(spec, 0, total, total=total, live=self.prompt))
            seen[:total, :total] = torch.arange(total) < counts.unsqueeze(1)
            return
        end = self.prompt
        seen[:end, :end] = torch.ones(end, end, dtype=torch.bool).tril()
        for width in self.widths:
            seen[end : end + width, : self.prompt] = True
            seen[end : end + width, end : end + width] = True
            end += width


def _rows(spec: ModelSpec, asked: Sequence[Asked]) -> Iterator[_Row]:
    shares = spec.mask_kind == "causal_prefix_bidir_block"
    for one in asked:
        groups = [one.states] if shares else [(state,) for state in one.states]
        for states in groups:
            row = _Row(list(one.prompt), list(range(len(one.prompt))), len(one.prompt), [], [])
            for state in states:
                start = len(row.ids) - spec.logit_shift
                row.wanted.extend(start + at for at in state.wanted)
                row.ids.extend(state.shown)
                row.positions.extend(range(row.prompt, row.prompt + len(state.shown)))
                row.widths.append(len(state.shown))
            yield row


def frozen_copy(network: Network) -> Network:
    """The network as it is now, for comparison with what it becomes: same values, no gradients."""
    import copy

    twin = copy.deepcopy(cast(torch.nn.Module, network)).requires_grad_(False).eval()
    return cast(Network, twin)

"""The training objective: masked diffusion over canvases plus next-token loss over the finished text, in one forward.

A training row is laid out as [clean tokens | canvas of answer 1 | canvas of answer 2 | ... | padding]. Clean tokens attend
causally to clean tokens; a canvas attends to the clean tokens strictly before its answer and to all of itself, at the positions
its answer has in the clean text. That is the two-stream mask of block diffusion (BD3-LM, arXiv:2503.09573) with a causal prefix.

Masking: t ~ U(0, 1), antithetic over the canvases of a step; exactly k = ceil(t N) of the N maskable tokens are masked and the loss
is weighted by N / k, the discrete form of 1/t. It has the same expectation as independent masking with weight 1/t (both are the
any-order bound; MDLM, arXiv:2406.07524, LLaDA, arXiv:2502.09992) and no unbounded weights. What is trained is no bound, though: a share
of the canvases is masked as a suffix, where the same N / k counts late tokens more than early ones; closing and copied tokens have
weights of their own; and each answer's weights are divided by their sum, so that a long answer counts as much as a short one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.models.family import Network
from dllm.spec import ModelSpec
from dllm.train.config import TrainConfig
from dllm.train.data import Answer, Row

MaskStyle = Literal["random", "suffix"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded to one length, ready for a forward. B rows, T positions."""

    ids: Tensor
    """[B, T] int64, canvases with masks."""
    positions: Tensor
    visible: Tensor
    """[B, T] int64: how many clean tokens a position sees (itself included where it is clean)."""
    group: Tensor
    """[B, T] int64: 0 clean, 1.. canvas number, -1 padding."""
    canvas_at: Tensor
    """[M] flat positions with a diffusion loss, their targets and weights."""
    canvas_target: Tensor
    canvas_weight: Tensor
    causal_at: Tensor
    """[N] flat positions whose next token is predicted, and those tokens."""
    causal_target: Tensor
    answers: int
    tokens: int
    """Positions that are not padding."""

    def attention_mask(self) -> Tensor:
        """[B, 1, T, T] float32, 0 where a position may look and -inf elsewhere: made once, not once per layer."""
        key = torch.arange(self.ids.shape[1], device=self.ids.device)
        clean_key = (self.group == 0).unsqueeze(1)
        sees_clean = clean_key & (key.view(1, 1, -1) < self.visible.unsqueeze(2))
        same_canvas = (self.group.unsqueeze(2) == self.group.unsqueeze(1)) & ~clean_key
        seen = sees_clean | same_canvas
        return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, float("-inf")).unsqueeze(1)


@dataclass(frozen=True, slots=True)
class Losses:
    """Sums, so that the parts of a step can be added: divide by `answers` and `causal_tokens`."""

    diffusion: Tensor
    causal: Tensor
    answers: int
    causal_tokens: int


def canvas_width(length: int, draw: float, spec: ModelSpec) -> int:
    """A width for an answer of `length` tokens: a multiple of `canvas_multiple`, at most `max_canvas`.

    Mostly the smallest that fits or one or two groups more, at times anything: whoever sets the width at inference does not know how
    long the reply will be.

    Args:
        draw: Uniform in [0, 1).
    """
    smallest = math.ceil(length / spec.canvas_multiple)
    largest = spec.max_canvas // spec.canvas_multiple
    if draw < 0.75:
        groups = smallest + (0 if draw < 0.35 else 1 if draw < 0.6 else 2)
    else:
        groups = smallest + int((draw - 0.75) * 4 * (largest - smallest + 1))
    return min(groups, largest) * spec.canvas_multiple


def choose_masked(maskable: Tensor, t: float, style: MaskStyle, generator: torch.Generator) -> Tensor:
    """Indices of the ceil(t N) masked ones among `maskable` ([N] indices): a random subset, or the last ones."""
    count = max(1, math.ceil(t * len(maskable)))
    if style == "suffix":
        return maskable[len(maskable) - count :]
    return maskable[torch.randperm(len(maskable), generator=generator)[:count]]


def collate(
    rows: Sequence[Row], times: Sequence[float], spec: ModelSpec, config: TrainConfig, generator: torch.Generator
) -> Batch:
    """Mask every answer at its own time and lay the rows out.

    Args:
        times: One t in (0, 1] per answer, in the order of rows and answers.
    """
    end = spec.special.end
    laid: list[tuple[list[int], list[int], list[int], list[int]]] = []
    canvas: list[tuple[int, int, int, float]] = []
    causal: list[tuple[int, int, int]] = []
    number = 0
    for index, row in enumerate(rows):
        size = len(row.clean)
        ids, positions = list(row.clean), list(range(size))
        jump = 0
        # Rows are short, calls are not: a gap after the system turn teaches positions that no row reaches (PoSE, arXiv:2309.10400).
        if config.max_jump and float(torch.rand((), generator=generator)) < 0.4:
            jump = int(torch.randint(config.max_jump, (), generator=generator))
            positions[row.head :] = range(row.head + jump, size + jump)
        visible, group = list(range(1, size + 1)), [0] * size
        causal += [(index, at - 1, row.clean[at]) for at in range(1, size) if row.predicted[at]]
        for order, answer in enumerate(row.answers, start=1):
            noisy = noisy_canvas(answer, times[number], spec, config, generator)
            number += 1
            width = len(noisy.shown)
            canvas += [(index, len(ids) + at, noisy.targets[at], weight) for at, weight in noisy.losses]
            ids += noisy.shown
            positions += range(answer.start + jump, answer.start + jump + width)
            visible += [answer.start] * width
            group += [order] * width
        laid.append((ids, positions, visible, group))
    length = max(len(ids) for ids, *_ in laid)
    used = sum(len(ids) for ids, *_ in laid)

    def padded(column: int, fill: int) -> Tensor:
        return torch.tensor([entry[column] + [fill] * (length - len(entry[column])) for entry in laid])

    return Batch(
        ids=padded(0, end),
        positions=padded(1, 0),
        visible=padded(2, 0),
        group=padded(3, -1),
        canvas_at=torch.tensor([row * length + at for row, at, _, _ in canvas], dtype=torch.int64),
        canvas_target=torch.tensor([token for _, _, token, _ in canvas], dtype=torch.int64),
        canvas_weight=torch.tensor([weight for *_, weight in canvas]),
        causal_at=torch.tensor([row * length + at for row, at, _ in causal], dtype=torch.int64),
        causal_target=torch.tensor([token for *_, token in causal], dtype=torch.int64),
        answers=number,
        tokens=used,
    )


@dataclass(frozen=True, slots=True)
class NoisyCanvas:
    """One answer's canvas: what it shows, what is true, and the loss weight of the positions that have a loss."""

    shown: list[int]
    targets: list[int]
    losses: list[tuple[int, float]]


def noisy_canvas(
    answer: Answer, t: float, spec: ModelSpec, config: TrainConfig, generator: torch.Generator
) -> NoisyCanvas:
    """A canvas for one answer, masked at time `t`; a question's canvas is always the same."""
    if answer.kind == "rest":
        return rest_canvas(answer, spec, config)
    if answer.kind == "transcript":
        return transcript_canvas(answer, spec, config)
    end, mask = spec.special.end, spec.special.mask
    assert mask is not None, "masked diffusion needs a mask token"
    draw = torch.rand(4, generator=generator).tolist()
    width = canvas_width(len(answer.tokens), draw[0], spec)
    closing = width - len(answer.tokens)
    tokens = list(answer.tokens) + [end] * closing
    pinned = answer.pinned if draw[1] < config.pinned_share else (False,) * len(answer.tokens)
    copied = answer.copied or (False,) * len(answer.tokens)
    weights = [
        0.0 if fixed else config.copied_weight if told else 1.0 for fixed, told in zip(pinned, copied, strict=True)
    ]
    weights += [config.closing_weight] * closing
    style: MaskStyle = "suffix" if draw[2] < config.prefix_share else "random"
    tail_masked = style == "suffix" or draw[3] < config.masked_tail_share
    text = torch.tensor([at for at in range(len(answer.tokens)) if not pinned[at]])
    tail = list(range(len(answer.tokens), width))
    if tail_masked:
        chosen = choose_masked(text, t, style, generator)
        share = len(text) / len(chosen)
        masked = [(int(at), share) for at in chosen] + [(at, 1.0) for at in tail]
    else:
        maskable = torch.cat((text, torch.tensor(tail, dtype=torch.int64)))
        chosen = choose_masked(maskable, t, style, generator)
        share = len(maskable) / len(chosen)
        masked = [(int(at), share) for at in chosen]
    shown = list(tokens)
    for at, _ in masked:
        shown[at] = mask
    scale = sum(weights)
    return NoisyCanvas(shown, tokens, [(at, weights[at] * share / scale) for at, share in masked])


def rest_canvas(answer: Answer, spec: ModelSpec, config: TrainConfig) -> NoisyCanvas:
    """The narrowest canvas, all masks: its first position says whether the turn ends here, the others how it might go on."""
    mask, width = spec.special.mask, spec.canvas_multiple
    assert mask is not None, "masked diffusion needs a mask token"
    targets = [*answer.tokens, *[spec.special.end] * width][:width]
    weights = [1.0] + [config.closing_weight] * (width - 1)
    scale = config.question_weight / sum(weights)
    return NoisyCanvas([mask] * width, targets, [(at, weight * scale) for at, weight in enumerate(weights)])


def transcript_canvas(answer: Answer, spec: ModelSpec, config: TrainConfig) -> NoisyCanvas:
    """The words as they were heard, no mask among them; every position is asked what was meant (token to token, LLaDA 2.1)."""
    width = math.ceil(len(answer.tokens) / spec.canvas_multiple) * spec.canvas_multiple
    closing = [spec.special.end] * (width - len(answer.tokens))
    weights = [1.0] * len(answer.tokens) + [config.closing_weight] * len(closing)
    scale = config.question_weight / sum(weights)
    losses = [(at, weight * scale) for at, weight in enumerate(weights)]
    return NoisyCanvas([*answer.heard, *closing], [*answer.tokens, *closing], losses)


def antithetic_times(count: int, generator: torch.Generator) -> list[float]:
    """`count` times in (0, 1], evenly spread with one common offset and in random order."""
    offset = float(torch.rand((), generator=generator))
    order = torch.randperm(count, generator=generator).tolist()
    return [1.0 - ((offset + index) / count) % 1.0 for index in order]


def losses(model: Network, batch: Batch) -> Losses:
    """Both losses of one batch; logits are computed only where a loss is."""
    hidden: Tensor = model(batch.ids, batch.positions, batch.attention_mask())
    flat = hidden.flatten(0, 1)
    rows = flat[torch.cat((batch.canvas_at, batch.causal_at))]
    entropies = F.cross_entropy(
        model.logits(rows).float(), torch.cat((batch.canvas_target, batch.causal_target)), reduction="none"
    )
    split = len(batch.canvas_at)
    return Losses(
        diffusion=(entropies[:split] * batch.canvas_weight).sum(),
        causal=entropies[split:].sum(),
        answers=batch.answers,
        causal_tokens=len(batch.causal_at),
    )

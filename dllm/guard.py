"""The convergence guard: notices decoding that goes in circles, overstays its plan, repeats itself or ends before it begins.

Tensors on the device, not lists on the host: a batch of canvases is watched in a few dozen small operators, and the actions travel to
the host with everything else a round sends.

Dimensions: B drafts, W canvas positions, R remembered canvases.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from dllm_kernels.philox import philox_4x32

MEMORY = 16
"""Canvases remembered per draft: circles of up to so many steps are seen."""
REPEATS = 3
LEAST_REPEATED = 6
"""Tokens in a row that a repetition covers before it counts: "no, no, no" and "555" are speech."""
LONGEST_SPAN = 8
"""Tokens of the longest span whose repetition is looked for."""

_HASH_STREAM = 0x68617368


class Action(IntEnum):
    """What to do with a draft. A larger one outweighs a smaller."""

    GO_ON = 0
    HOLD_ENDS = 1
    """Decide no end-of-turn in this step."""
    FINISH_GREEDILY = 2
    """Stop revising and decide every mask with its best token."""


@dataclass(frozen=True, slots=True)
class History:
    """Hashes of a batch's latest canvases."""

    hashes: Tensor
    """[B, R] int64, the latest first."""
    known: Tensor
    """[B] int64: how many of them there are."""

    @classmethod
    def start(cls, rows: int, device: torch.device | str) -> History:
        zeros = torch.zeros(rows, MEMORY, dtype=torch.int64, device=device)
        return cls(zeros, zeros[:, 0].clone())

    def add(self, tokens: Tensor, decided: Tensor) -> tuple[Tensor, History]:
        """Whether each canvas was there before ([B] bool), and the history with it."""
        now = canvas_hash(tokens, decided)
        age = torch.arange(MEMORY, device=tokens.device)
        is_seen = ((self.hashes == now.unsqueeze(1)) & (age < self.known.unsqueeze(1))).any(dim=1)
        hashes = torch.cat((now.unsqueeze(1), self.hashes[:, :-1]), dim=1)
        return is_seen, History(hashes, (self.known + 1).clamp(max=MEMORY))


def watch(
    history: History, tokens: Tensor, decided: Tensor, is_end: Tensor, steps_left: Tensor, revises: Tensor
) -> tuple[Tensor, History]:
    """Judge each draft after a step.

    FINISH_GREEDILY where a canvas that revises has been there before, masks are left when the plan has no steps left, or the decided
    text repeats itself (`repeats`). HOLD_ENDS where an end is decided (or about to be) right of a position that is not, before any text is.

    Args:
        tokens: [B, W] int64, read where decided.
        decided: [B, W] bool: with what this step would decide. Columns of padding count as decided, and as ends.
        is_end: [B, W] bool: whether the token there ends a reply.
        steps_left: [B] int64, after this step.
        revises: [B] bool: the canvas may change back, by a rule without noise: editing or WINO, not ReMDM, for which coming by a canvas
            twice is no circle.

    Returns:
        [B] int64 of `Action`, and the history with this canvas.
    """
    is_seen, history = history.add(tokens, decided)
    overdue = (steps_left <= 0) & ~decided.all(dim=1)
    finish = (revises & is_seen) | overdue | repeats(tokens, decided & ~is_end)
    open_before = (~decided).cumsum(dim=1) > 0
    flood = (decided & is_end & open_before).any(dim=1) & ~(decided & ~is_end).any(dim=1)
    actions = torch.where(
        finish, int(Action.FINISH_GREEDILY), torch.where(flood, int(Action.HOLD_ENDS), int(Action.GO_ON))
    )
    return actions, history


def repeats(tokens: Tensor, is_text: Tensor) -> Tensor:
    """Whether decided text holds one span `REPEATS` times in a row or more, over at least `LEAST_REPEATED` tokens. [B] bool.

    Args:
        tokens: [B, W] int64.
        is_text: [B, W] bool: decided, and no end.
    """
    width = tokens.shape[1]
    found = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
    for span in range(1, LONGEST_SPAN + 1):
        # n tokens repeat a span of s when n - s of them in a row equal the one s before.
        run = max(REPEATS * span, LEAST_REPEATED) - span
        if run + span > width:
            continue
        same = (tokens[:, span:] == tokens[:, :-span]) & is_text[:, span:] & is_text[:, :-span]
        total = torch.nn.functional.pad(same.cumsum(dim=1), (1, 0))
        found |= (total[:, run:] - total[:, :-run] == run).any(dim=1)
    return found


def canvas_hash(tokens: Tensor, decided: Tensor) -> Tensor:
    """[B] int64: equal for equal canvases, else almost surely not. What an undecided position holds does not matter."""
    place = torch.arange(tokens.shape[1], device=tokens.device)
    zero = torch.zeros_like(place)
    words = philox_4x32((torch.where(decided, tokens, -1) + 1, place, zero, zero + _HASH_STREAM), (zero, zero))
    # The sum wraps, in any order to the same value.
    return ((words[0] << 32) | words[1]).sum(dim=1)

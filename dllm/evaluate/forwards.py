"""Tokens per forward: how many visible tokens a model writes with each denoising forward when its own certainty decides.

The convention is TPF_denoise: visible tokens, the end-of-turn and what is behind it left out, by denoising forwards. Forwards that only
store a prompt or a finished block are not counted. Each reply's own forwards count, whoever shared them, so that the number is that
of one reply written alone. One model is faster than another only at equal quality: the replies are there to be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from dllm.canvas import TokenTable
from dllm.drafts import DraftSpec, Failed, Finished, Plan
from dllm.engine import Engine
from dllm.evaluate.likelihood import causal_log_likelihoods
from dllm.evaluate.prompts import Prompt
from dllm.models.family import Network
from dllm.options import DecodeOptions

_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Forwards:
    """What some replies took."""

    threshold: float
    replies: tuple[tuple[int, ...], ...]
    """Visible tokens of each prompt's reply."""
    forwards: tuple[int, ...]
    """Denoising forwards of each."""
    is_finished: tuple[bool, ...]
    """Whether the model ended it before the canvas did."""

    @property
    def tokens_per_forward(self) -> float:
        """All visible tokens by all denoising forwards."""
        return sum(map(len, self.replies)) / max(1, sum(self.forwards))

    @property
    def forwards_per_reply(self) -> float:
        return fmean(self.forwards) if self.forwards else 0.0

    @property
    def finished(self) -> float:
        """Share of replies that the model ended."""
        return fmean(self.is_finished) if self.is_finished else 0.0

    def agreement(self, other: Forwards) -> float:
        """Share of prompts with the same reply in both."""
        pairs = zip(self.replies, other.replies, strict=True)
        return fmean(one == two for one, two in pairs) if self.replies else 0.0


def tokens_per_forward(
    network: Network,
    table: TokenTable,
    prompts: Sequence[Prompt],
    threshold: float,
    *,
    width: int,
    options: DecodeOptions,
    is_pinned: bool = False,
    batch: int = 16,
) -> Forwards:
    """Write a reply to every prompt as a call would, with no ceiling on steps: `threshold` alone decides how many tokens a forward gives.

    At threshold 1 that is one token each, the setting that others are compared with.

    Args:
        width: Canvas positions, the same for all.
        options: The family's habits (`dllm.habits.family_options`).
        is_pinned: Whether the prompts' facts are pinned.
        batch: Replies written together, which changes nothing but the time it takes.

    Raises:
        DllmError: What a draft failed with.
    """
    engine = Engine(network, table, max_batch=batch, cache_bytes=_CACHE_BYTES)
    plan = Plan(width, width, threshold, by_clause=network.spec.dialogue is not None)
    numbers = {
        engine.submit(
            DraftSpec(one.tokens, str(number), width, plan, one.pins if is_pinned else (), options)
        ).number: number
        for number, one in enumerate(prompts)
    }
    found: dict[int, Finished] = {}
    while engine.drafts:
        for event in engine.run_round():
            match event:
                case Finished(draft=draft):
                    found[numbers[draft.number]] = event
                case Failed(error=error):
                    raise error
                case _:
                    pass
    done = [found[number] for number in range(len(prompts))]
    return Forwards(
        threshold,
        tuple(one.tokens for one in done),
        tuple(one.usage.forwards_denoise for one in done),
        tuple(one.reason == "end_of_turn" for one in done),
    )


def quality(judge: Network, prompts: Sequence[Prompt], replies: Sequence[Sequence[int]]) -> float:
    """Mean log-likelihood of the replies and their ends in nats per token, under the causal mode of one judge for all that are compared."""
    total = sum(
        causal_log_likelihoods(judge, one.tokens, [reply])[0] for one, reply in zip(prompts, replies, strict=True)
    )
    return total / max(1, sum(len(reply) + 1 for reply in replies))

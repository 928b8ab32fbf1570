"""What decoding tests share: a table for models without a tokenizer, and an engine run to its end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dllm.canvas import TokenTable
from dllm.draft import Draft
from dllm.drafts import DraftSpec, Event, Failed, Finished, Plan
from dllm.engine import Engine
from dllm.options import DecodeOptions
from dllm.spec import ModelSpec

STEPS = Plan(steps_first=200, steps_rest=200, threshold=0.9, by_clause=False)
"""Enough steps for the rule alone to decide."""


def table_of(spec: ModelSpec) -> TokenTable:
    """Every token is a word of its own."""
    nothing: frozenset[int] = frozenset()
    mask = spec.special.mask
    return TokenTable(
        end=spec.special.end,
        mask=-1 if mask is None else mask,
        forbidden=frozenset(spec.special.forbidden),
        sentence_end=nothing,
        clause_end=nothing,
        digit=nothing,
        word_start=frozenset(range(spec.vocab_size)),
        case_variants={},
        word=nothing,
        other_ends=frozenset(spec.special.ends[1:]),
    )


def engine_of(
    network: nn.Module, max_batch: int = 8, cache_bytes: int = 2**18, cache_dtype: torch.dtype | None = None
) -> Engine:
    return Engine(
        network,  # type: ignore[arg-type]
        table_of(network.spec),  # type: ignore[arg-type]
        max_batch=max_batch,
        cache_bytes=cache_bytes,
        clock=lambda: 0.0,
        cache_dtype=cache_dtype,
    )


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    drawn = torch.randint(4, 90, (length,), generator=torch.Generator().manual_seed(seed * 1000 + length))
    return tuple(int(token) for token in drawn)


def draft_spec(
    prompt: Sequence[int], width: int, options: DecodeOptions | None = None, plan: Plan = STEPS, conversation: str = "a"
) -> DraftSpec:
    return DraftSpec(tuple(prompt), conversation, width, plan, options=options or DecodeOptions())


def run(engine: Engine, limit: int = 10_000) -> list[Event]:
    """All events until nothing is left to do."""
    events: list[Event] = []
    for _ in range(limit):
        if not engine.drafts:
            return events
        events += engine.run_round()
    raise AssertionError("the engine does not come to an end")


def finished(events: Sequence[Event], draft: Draft) -> Finished:
    for event in events:
        if event.draft is draft and isinstance(event, Failed):
            raise event.error
    return next(event for event in events if isinstance(event, Finished) and event.draft is draft)


def write(network: nn.Module, spec: DraftSpec, cache_dtype: torch.dtype | None = None) -> Finished:
    """The reply of an engine of its own."""
    engine = engine_of(network, cache_dtype=cache_dtype)
    draft = engine.submit(spec)
    return finished(run(engine), draft)

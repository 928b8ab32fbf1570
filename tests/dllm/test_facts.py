"""Figures, names and what a tool is called with wait until they are surer than other words are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dllm.canvas import CellState
from dllm.drafts import DraftSpec, Plan, Stepped
from dllm.engine import Engine
from dllm.options import DecodeOptions
from tests.dllm import tiny

WIDTH, SURE = 8, 0.93
PLAN = Plan(steps_first=WIDTH, steps_rest=WIDTH, threshold=0.9, by_clause=False)
TABLE = tiny.codec().token_table
FIGURE, WORD, CALL = min(TABLE.digit), min(TABLE.word - TABLE.capital), tiny.codec().special.call


def decided_at_once(tokens: list[int], fact_threshold: float) -> list[bool]:
    """Which positions the first step decides, of a network that wants `tokens`, the sign of a call all but surely and the others at `SURE`."""
    network = tiny.model()

    def logits(hidden: Tensor) -> Tensor:
        assert len(hidden) == WIDTH
        found = torch.zeros(WIDTH, network.spec.vocab_size)
        for at, token in enumerate(tokens):
            chance = 0.999 if token == CALL else SURE
            found[at, token] = torch.logit(torch.tensor(chance)) + torch.log(torch.tensor(found.shape[1] - 1.0))
        return found

    network.logits = logits  # type: ignore[method-assign]
    engine = Engine(network, TABLE, cache_bytes=2**18, clock=lambda: 0.0)
    plan = replace(PLAN, fact_threshold=fact_threshold)
    engine.submit(DraftSpec((20, 21, 22), "a", WIDTH, plan, options=DecodeOptions(guard=False)))
    stepped = next(event for _ in range(9) for event in engine.run_round() if isinstance(event, Stepped))
    return [cell.state is CellState.COMMITTED for cell in stepped.canvas]


@pytest.mark.parametrize(
    ("tokens", "waiting"),
    [
        ([WORD] * WIDTH, []),
        ([WORD, FIGURE, WORD, WORD, FIGURE, WORD, WORD, WORD], [1, 4]),
        ([CALL, *[WORD] * 7], [1, 2, 3, 4, 5, 6, 7]),
        ([WORD, CALL, WORD, *[TABLE.end] * 5], [2]),
    ],
)
def test_a_fact_waits_where_another_word_is_sure_enough(tokens: list[int], waiting: list[int]) -> None:
    assert decided_at_once(tokens, fact_threshold=0.9) == [True] * WIDTH
    decided = decided_at_once(tokens, fact_threshold=0.97)
    assert [at for at in range(WIDTH) if not decided[at]] == waiting

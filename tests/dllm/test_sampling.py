"""Tokens from logits, and places for pinned spans."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import torch

from dllm.canvas import Canvas
from dllm.draft import Draft
from dllm.options import DecodeOptions
from dllm.process import Processor, Vocabulary
from dllm.sampling import Picker, place_spans
from tests.dllm import tiny


def peaked(width: int, wishes: dict[int, int], vocab: int = 50, height: float = 9.0) -> torch.Tensor:
    logits = torch.zeros(width, vocab)
    for position, token in wishes.items():
        logits[position, token] = height
    return logits


def picker(options: DecodeOptions) -> Picker:
    table = tiny.codec().token_table
    vocabulary = Vocabulary.of(50, (table.end,), {*table.forbidden, table.mask}, "cpu")
    return Picker(Processor([options], vocabulary), options, torch.device("cpu"))


def draft_of(width: int) -> Draft:
    """As much of a draft as a picker looks at."""
    draft = SimpleNamespace(canvas=Canvas(width, tiny.codec().token_table), steps=0)
    return cast("Draft", draft)


def test_forbidden_tokens_are_never_picked() -> None:
    table = tiny.codec().token_table
    logits = peaked(3, {0: table.mask, 1: 20, 2: table.end})
    guesses = picker(DecodeOptions(min_tokens=0)).pick(draft_of(3), logits, range(3))
    assert guesses.tokens[0] not in table.forbidden
    assert guesses.tokens[1:] == [20, table.end]
    assert guesses.probabilities[1] > 0.9


def test_a_position_draws_the_same_whoever_is_drawn_beside_it() -> None:
    one = picker(DecodeOptions(temperature=1.0, seed=4, min_tokens=0))
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    together = one.pick(draft_of(6), logits.clone(), range(6)).tokens
    alone = [one.pick(draft_of(6), logits[at : at + 1].clone(), [at]).tokens[0] for at in range(6)]
    assert together == alone
    other = picker(DecodeOptions(temperature=1.0, seed=5, min_tokens=0))
    assert other.pick(draft_of(6), logits.clone(), range(6)).tokens != together


def test_span_goes_where_all_its_tokens_are_likely() -> None:
    placement = place_spans(peaked(10, {4: 30, 5: 31, 7: 30}), range(10), [(30, 31)], 10)
    assert placement is not None
    assert placement.starts == (4,)
    assert placement.confidences[0] > 0.9


def test_spans_do_not_overlap_and_the_best_total_wins() -> None:
    logits = peaked(10, {3: 30, 4: 31, 5: 32}) + peaked(10, {3: 40, 4: 41}, height=8.0)
    placement = place_spans(logits, range(10), [(40, 41), (30, 31, 32)], 10)
    assert placement is not None
    assert placement.starts[1] == 3
    assert set(range(placement.starts[0], placement.starts[0] + 2)).isdisjoint({3, 4, 5})


def test_a_short_span_does_not_take_the_place_of_a_long_one() -> None:
    """ "comes to | $9.75 | ready in | 10 minutes": the short one is likelier at the first place, but has another."""
    logits = peaked(12, {1: 30, 2: 31, 3: 32, 4: 33}, height=6.0) + peaked(12, {1: 40, 2: 41, 8: 40, 9: 41}, height=6.1)
    placement = place_spans(logits, range(12), [(40, 41), (30, 31, 32, 33)], 12)
    assert placement is not None and placement.starts == (8, 1)


def test_spans_of_one_length_keep_the_order_they_were_given_in() -> None:
    logits = peaked(10, {1: 40, 2: 41, 5: 30, 6: 31})
    placement = place_spans(logits, range(10), [(30, 31), (40, 41)], 10)
    assert placement is not None and placement.starts[0] < placement.starts[1]


def test_ties_go_left_and_the_last_position_stays_free() -> None:
    placement = place_spans(torch.zeros(6, 50), range(6), [(30, 31)], 6)
    assert placement is not None and placement.starts == (0,)
    placement = place_spans(peaked(6, {4: 30, 5: 31}), range(6), [(30, 31)], 6)
    assert placement is not None and placement.starts[0] < 4


def test_only_masked_positions_are_used() -> None:
    positions = [0, 3, 4, 5]
    placement = place_spans(torch.zeros(4, 50), positions, [(30, 31)], 6)
    assert placement is not None and placement.starts == (3,)
    assert place_spans(torch.zeros(2, 50), [0, 2], [(30, 31)], 6) is None


def test_spans_that_fit_in_one_way_only_are_placed_that_way() -> None:
    placement = place_spans(peaked(6, {1: 40}), range(6), [(40,), (30, 31), (32, 33)], 6)
    assert placement is not None
    assert sorted(placement.starts) in ([0, 1, 3], [0, 2, 3], [0, 2, 4])
    assert place_spans(torch.zeros(5, 50), range(5), [(40,), (30, 31), (32, 33)], 5) is None


def test_many_spans_keep_their_order() -> None:
    placement = place_spans(torch.zeros(16, 50), range(16), [(20,), (21, 22), (23,), (24, 25), (26,)], 16)
    assert placement is not None
    assert list(placement.starts) == sorted(placement.starts)

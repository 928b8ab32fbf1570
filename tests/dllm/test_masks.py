"""Masks as counts, against the definitions written out."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.masks import prefix_mask, visible, visible_counts
from dllm.spec import MaskKind
from tests.dllm.models.parity import seen
from tests.dllm.models.tiny_checkpoints import CONFIGS, tiny_spec

KINDS = get_args(MaskKind)
lengths = st.integers(1, 40)


@given(st.sampled_from(list(CONFIGS)), st.integers(0, 20), st.integers(1, 20), st.data())
def test_counts_are_the_definitions(family: str, prompt: int, canvas: int, data: st.DataObject) -> None:
    spec = tiny_spec(family)
    total = prompt + canvas
    start = data.draw(st.integers(0, total - 1))
    length = data.draw(st.integers(1, total - start))
    mask = prefix_mask(visible(spec, start, length, total=total, live=prompt), total)
    expected = seen(spec, prompt, total)[start : start + length]
    assert torch.equal(mask[0, 0].expand(length, total), expected)


@given(lengths)
def test_blocks_of_one_are_causal_and_one_block_is_full(length: int) -> None:
    causal = visible_counts("causal", 1, 0, length, total=length)
    assert visible_counts("block_causal", 1, 0, length, total=length) == causal
    full = visible_counts("full", 1, 0, length, total=length)
    for block in (length, length + 3):
        assert visible_counts("block_causal", block, 0, length, total=length) == full


@given(st.sampled_from(KINDS), st.integers(1, 9), lengths, st.data())
def test_counts_do_not_depend_on_how_the_queries_are_cut(
    kind: MaskKind, block: int, total: int, data: st.DataObject
) -> None:
    cut, live = data.draw(st.integers(0, total)), data.draw(st.none() | st.integers(0, total))
    left = visible_counts(kind, block, 0, cut, total=total, live=live)
    right = visible_counts(kind, block, cut, total - cut, total=total, live=live)
    whole = visible_counts(kind, block, 0, total, total=total, live=live)
    assert left + right == whole
    assert all(at < count <= total for at, count in enumerate(whole)), "everyone sees itself, nobody what is not there"


def test_block_grid_starts_at_position_zero() -> None:
    assert visible_counts("block_causal", 4, 6, 4, total=10) == [8, 8, 10, 10]


def test_finished_text_of_a_causal_prefix_is_causal() -> None:
    assert visible_counts("causal_prefix_bidir_block", 4, 0, 3, total=9) == [1, 2, 3]
    assert visible_counts("causal_prefix_bidir_block", 4, 1, 4, total=9, live=3) == [2, 3, 9, 9]


def test_queries_need_keys_of_their_own() -> None:
    with pytest.raises(ValueError, match="queries 5 to 8 need keys of their own, there are 8"):
        visible_counts("full", 1, 5, 4, total=8)


def test_mask_has_one_row_where_one_is_enough() -> None:
    assert prefix_mask([3, 3], 5).shape == (1, 1, 1, 5)
    assert prefix_mask([3, 4], 5).tolist() == [[[[True, True, True, False, False], [True, True, True, True, False]]]]

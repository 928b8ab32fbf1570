"""Block diffusion and the causal baseline: the two-stream mask, the chain rule at blocks of one, and the choice of a band."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dllm.errors import ConfigError
from dllm.train.objectives.block import Block, BlockLosses, BlockOptions, best_band
from dllm.train.objectives.causal import Causal, CausalOptions
from dllm.train.objectives.masked import Masked, MaskedOptions
from dllm.train.objectives.masks import block_numbers, document_mask, two_stream_mask
from tests.dllm.train.objective_batches import MASK, detached, generator, network_of, packed, plain_spec

SUM_TOLERANCE = 1e-4
"""Relative; sums of a few dozen float32 losses in another order."""


def test_blocks_of_one_are_the_chain_rule():
    spec = plain_spec()
    batch, network = packed([[(2, 4)]]), network_of(spec)
    terms = Block(spec, BlockOptions(block=1))(network, batch, generator())
    expected = 0.0
    for at in range(2, 6):
        # Clean tokens are causal, so one that sees the mask behind it cannot be used: the mask comes last.
        ids = torch.cat((batch.ids[:, :at], torch.tensor([[MASK]])), dim=1)
        causal = document_mask(packed([[(at + 1, 0)]]), "causal")
        logits = network.logits(network(ids, torch.arange(at + 1).unsqueeze(0), causal))
        expected += detached(F.cross_entropy(logits[0, -1:], batch.ids[0, at : at + 1]))
    assert terms.count == 4
    assert terms.loss.item() == pytest.approx(expected, rel=SUM_TOLERANCE)


@pytest.mark.parametrize("kind", ["block_causal", "causal_prefix_bidir_block", "full"])
def test_blocks_of_one_with_a_shift_are_next_token_prediction_with_its_gradients(kind):
    spec = plain_spec(mask_kind=kind, logit_shift=1)
    batch = packed([[(2, 6), (0, 5)], [(1, 4)]])
    ours, theirs = network_of(spec), network_of(spec)
    block = Block(spec, BlockOptions(block=1))(ours, batch, generator())
    causal = Causal(spec, CausalOptions())(theirs, batch, generator())
    assert block.count == causal.count
    torch.testing.assert_close(block.loss, causal.loss, rtol=1e-5, atol=0)
    block.loss.backward()
    causal.loss.backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)


def test_a_block_as_long_as_the_document_is_masked_diffusion():
    spec = plain_spec(mask_kind="block_causal", block=16)
    batch, network = packed([[(2, 6), (0, 5)]]), network_of(spec)
    block = Block(spec, BlockOptions())(network, batch, generator(5))
    masked = Masked(spec, MaskedOptions())(network, batch, generator(5))
    torch.testing.assert_close(block.loss, masked.loss, rtol=SUM_TOLERANCE, atol=0)


@pytest.mark.parametrize("kind", ["block_causal", "causal_prefix_bidir_block"])
@pytest.mark.parametrize("shift", [0, 1])
def test_each_block_loses_what_decoding_it_behind_finished_text_would(kind, shift):
    spec = plain_spec(mask_kind=kind, logit_shift=shift, block=4)
    batch, network = packed([[(3, 9)]]), network_of(spec)
    terms = Block(spec, BlockOptions(low=0.999))(network, batch, generator())
    expected = 0.0
    first = 3 if kind == "causal_prefix_bidir_block" else 0
    for start in range(first, 12, 4):
        end = min(start + 4, 12)
        learned = list(range(max(start, 3), end))
        ids = batch.ids[:, :end].clone()
        ids[0, learned] = MASK
        key, query = torch.arange(end), torch.arange(end).unsqueeze(1)
        in_block = query >= start
        clean = key <= query if kind == "causal_prefix_bidir_block" else key // 4 <= query // 4
        logits = network.logits(network(ids, batch.positions[:, :end], (clean | in_block).view(1, 1, end, end)))
        expected += detached(
            F.cross_entropy(logits[0, [at - shift for at in learned]], batch.ids[0, learned], reduction="sum")
        )
    assert terms.loss.item() == pytest.approx(expected, rel=SUM_TOLERANCE)


def test_noisy_tokens_see_their_block_and_clean_ones_before_it():
    batch = packed([[(0, 4), (0, 2)]])
    seen = two_stream_mask(batch, batch.positions // 2)[0, 0]
    rows = {row: seen[row].nonzero().flatten().tolist() for row in range(12)}
    assert rows[2] == [2, 3, 6, 7]
    assert rows[0] == [0, 1]
    assert rows[4] == [4, 5]
    assert rows[6] == [6, 7]
    assert rows[8] == [6, 7, 8, 9]
    assert rows[10] == [10, 11]


def test_padding_sees_something_and_nobody_sees_padding():
    batch = packed([[(1, 2)], [(2, 4)]])
    for mask in (
        document_mask(batch, "full"),
        document_mask(batch, "causal"),
        two_stream_mask(batch, batch.positions // 2),
    ):
        assert mask.any(-1).all()
        assert not mask[0, 0, :3, 3:6].any()


def test_blocks_are_counted_from_the_answer_where_the_prefix_is_causal():
    batch = packed([[(3, 4), (1, 3)], [(2, 0), (0, 1)]])
    assert block_numbers(batch, 2, from_learned=True)[0].tolist() == [-2, -1, -1, 0, 0, 1, 1, -1, 0, 0, 1]
    assert block_numbers(batch, 2)[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 0, 0, 1, 1]


def test_complementary_blocks_learn_every_token_once():
    spec = plain_spec(mask_kind="block_causal", block=4)
    losses = Block(spec, BlockOptions(complementary=True, weighting="equal")).losses(
        network_of(spec), packed([[(3, 9)]]), generator()
    )
    assert len(losses.weighted) == 9 and losses.tokens == 18


def test_the_band_whose_losses_vary_least_is_found():
    share = torch.linspace(0.05, 1, 20)
    # Weighted losses swing around 5: widely at low shares, hardly at high ones, and again at the very top.
    swing = torch.where(share < 0.4, 4.0, torch.where(share > 0.9, 2.0, 0.1))
    weighted = 5 + swing * torch.tensor([1.0, -1.0]).repeat(10)
    measured = BlockLosses(weighted, torch.arange(20), share, 20)
    bands = [(0.0, 1.0), (0.0, 0.5), (0.4, 0.9), (0.4, 1.0)]
    assert best_band([measured, measured], bands) == (0.4, 0.9)


def test_no_band_is_chosen_from_too_few_blocks():
    measured = BlockLosses(torch.ones(3), torch.arange(3), torch.ones(3), 3)
    with pytest.raises(ConfigError, match="at least 8 blocks"):
        best_band([measured], [(0.0, 1.0)])


def test_real_losses_of_all_views_can_be_measured():
    spec = plain_spec(mask_kind="block_causal", block=4)
    objective, network = Block(spec, BlockOptions(complementary=True)), network_of(spec)
    measured = [objective.losses(network, packed([[(3, 9)] * 2] * 2, seed), generator(seed)) for seed in range(4)]
    assert best_band(measured, [(0.0, 1.0), (0.2, 0.8)]) in [(0.0, 1.0), (0.2, 0.8)]


def test_causal_loss_is_the_chain_rule_within_documents():
    spec = plain_spec()
    batch, network = packed([[(2, 4), (0, 3)]]), network_of(spec)
    answers = Causal(spec, CausalOptions())(network, batch, generator())
    everything = Causal(spec, CausalOptions(counted="all"))(network, batch, generator())
    assert (answers.count, everything.count) == (6, 7)
    expected = 0.0
    for start, end, learned in ((0, 6, 2), (6, 9, 1)):
        for at in range(start + learned, end):
            context = batch.ids[:, start:at]
            mask = document_mask(packed([[(at - start, 0)]]), "causal")
            logits = network.logits(network(context, torch.arange(at - start).unsqueeze(0), mask))
            expected += detached(F.cross_entropy(logits[0, -1:], batch.ids[0, at : at + 1]))
    assert answers.loss.item() == pytest.approx(expected, rel=SUM_TOLERANCE)


def test_padding_is_not_counted_when_everything_is():
    spec = plain_spec()
    terms = Causal(spec, CausalOptions(counted="all"))(network_of(spec), packed([[(1, 2)], [(2, 4)]]), generator())
    assert terms.count == 2 + 5

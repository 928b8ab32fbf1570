"""Every family's replies equal those of a plain sampler without caches or batches, token for token."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
from torch import nn

from dllm.drafts import Plan
from dllm.models.registry import family_named
from dllm.options import DecodeOptions
from tests.dllm import plain_samplers
from tests.dllm.decoding import STEPS, draft_spec, prompt_of, write
from tests.dllm.models import test_llada2, test_llada_moe, tiny_checkpoints

BLOCKED = ("sdar", "llada2")
plain = functools.partial(DecodeOptions, guard=False, min_tokens=0)
"""Random weights repeat themselves, which the convergence guard would cut short."""


@functools.cache
def network(family: str, seed: int = 0) -> nn.Module:
    # Random weights at this scale are sure of some tokens and unsure of others, so thresholds decide.
    configs = {"llada2": test_llada2.CONFIG, "llada_moe": test_llada_moe.CONFIG}
    config = configs.get(family) or tiny_checkpoints.CONFIGS[family]
    return tiny_checkpoints.random_network(family_named(family).read_config(config), seed, scale=5.0)


def whole_blocks(prompt: int, width: int, block: int) -> int:
    return -(-(prompt + width) // block) * block - prompt


@pytest.mark.parametrize("family", BLOCKED)
@pytest.mark.parametrize("length", [1, 7, 8, 13])
@pytest.mark.parametrize("threshold", [0.3, 0.9])
@pytest.mark.parametrize("is_fused", [True, False])
def test_block_causal_replies_equal_the_plain_sampler(
    family: str, length: int, threshold: float, is_fused: bool
) -> None:
    for seed in range(3):
        model = network(family, seed)
        prompt, block = prompt_of(length, seed), model.spec.block
        width = whole_blocks(length, 21, block)
        expected, forwards = plain_samplers.blocks(model, prompt, width, "threshold", threshold, 200, block, 0)
        plan = Plan(200, 200, threshold, by_clause=False)
        reply = write(model, draft_spec(prompt, width, plain(fused_commit=is_fused), plan))
        assert list(reply.tokens) == expected
        assert reply.usage.forwards_denoise == forwards
        assert (reply.usage.forwards_commit == 0) is (is_fused or forwards < 2 or len(expected) < block)


@pytest.mark.parametrize("family", BLOCKED)
@pytest.mark.parametrize("steps", [6, 12, 20])
def test_fixed_counts_spread_evenly_over_blocks(family: str, steps: int) -> None:
    for seed in range(3):
        model = network(family, seed)
        prompt, block = prompt_of(9, seed), model.spec.block
        width = whole_blocks(9, 20, block)
        steps_needed = max(steps, -(-(9 + width) // block))
        expected, _ = plain_samplers.blocks(model, prompt, width, "count", 1.0, steps_needed, block, 0)
        plan = Plan(steps_needed, 1, 1.0, by_clause=False)
        reply = write(model, draft_spec(prompt, width, plain(rule="count"), plan))
        assert list(reply.tokens) == expected
        assert reply.usage.forwards_denoise <= steps_needed


@pytest.mark.parametrize("family", ["llada", "dream", "llada_moe"])
@pytest.mark.parametrize("length", [1, 6, 11])
@pytest.mark.parametrize("block", [0, 5, 8])
def test_full_mask_replies_equal_the_plain_sampler(family: str, length: int, block: int) -> None:
    for seed in range(3):
        model = network(family, seed)
        prompt, width = prompt_of(length, seed), 17
        expected, forwards = plain_samplers.blocks(
            model, prompt, width, "threshold", 0.6, 200, block or width, len(prompt)
        )
        plan = Plan(200, 200, 0.6, by_clause=False)
        reply = write(model, draft_spec(prompt, width, plain(block=block), plan))
        assert list(reply.tokens) == expected
        assert reply.usage.forwards_denoise <= forwards, "an end with everything before it decided needs no more steps"


@pytest.mark.parametrize("length", [1, 7, 10])
def test_a_whole_canvas_over_causal_text_equals_the_plain_sampler(length: int) -> None:
    for seed in range(4):
        model, width = network("dllm_llama", seed), 16
        prompt = prompt_of(length, seed)
        expected, forwards = plain_samplers.blocks(model, prompt, width, "threshold", 0.6, 200, width, length)
        reply = write(model, draft_spec(prompt, width, plain(), Plan(200, 200, 0.6, by_clause=False)))
        assert list(reply.tokens) == expected
        assert reply.usage.forwards_denoise <= forwards


@pytest.mark.parametrize("length", [1, 7, 10])
@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_causal_prefix_replies_start_each_block_from_the_causal_pass(length: int, threshold: float) -> None:
    for seed in range(4):
        model = network("nemotron", seed)
        prompt, width = prompt_of(length, seed), 22
        expected, _ = plain_samplers.seeded_blocks(model, prompt, width, threshold, model.spec.block)
        plan = Plan(200, 200, threshold, by_clause=False)
        assert list(write(model, draft_spec(prompt, width, plain(), plan)).tokens) == expected


@pytest.mark.parametrize("length", [1, 7, 8, 16])
@pytest.mark.parametrize("sub_block", [0, 4])
@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_shifted_blocks_equal_the_plain_sampler(length: int, sub_block: int, threshold: float) -> None:
    for seed in range(4):
        spec = replace(tiny_checkpoints.tiny_spec("fast_dllm"), sub_block=sub_block)
        model = tiny_checkpoints.random_network(spec, seed, scale=5.0)
        prompt, width = prompt_of(length, seed), whole_blocks(length, 18, spec.block)
        expected = plain_samplers.shifted_blocks(model, prompt, width, threshold)
        plan = Plan(200, 200, threshold, by_clause=False)
        assert list(write(model, draft_spec(prompt, width, plain(), plan)).tokens) == expected


@pytest.mark.parametrize("length", [1, 6, 8])
@pytest.mark.parametrize("edit_threshold", [0.15, 0.4])
def test_edited_blocks_equal_the_plain_sampler(length: int, edit_threshold: float) -> None:
    changed = 0
    for seed in range(4):
        spec = family_named("llada2_edit").read_config(test_llada2.CONFIG)
        model = tiny_checkpoints.random_network(spec, seed, scale=14.0)
        prompt, width = prompt_of(length, seed), whole_blocks(length, 18, spec.block)
        expected, forwards = plain_samplers.edited_blocks(model, prompt, width, 0.1, edit_threshold)
        plan = Plan(200, 200, 0.1, by_clause=False)
        reply = write(model, draft_spec(prompt, width, plain(edit_threshold=edit_threshold), plan))
        assert list(reply.tokens) == expected
        assert reply.usage.forwards_denoise == forwards
        without = write(model, draft_spec(prompt, width, plain(), plan))
        changed += reply.tokens != without.tokens
    assert changed, "edits matter here"


@pytest.mark.parametrize("family", ["nemotron", "dllm_llama"])
@pytest.mark.parametrize("draft_tokens", [0, 2, 5])
def test_self_speculation_writes_what_causal_decoding_writes(family: str, draft_tokens: int) -> None:
    for seed in range(4):
        model = network(family, seed)
        prompt = prompt_of(5, seed)
        width = 16
        expected = plain_samplers.causal_reply(model, prompt, width)
        causal = write(model, draft_spec(prompt, width, plain(mode="causal")))
        options = plain(mode="self_speculative", draft_tokens=draft_tokens)
        speculative = write(model, draft_spec(prompt, width, options))
        assert list(causal.tokens) == expected
        assert list(speculative.tokens) == expected
        assert speculative.reason == causal.reason


def test_self_speculation_takes_two_forwards_where_the_draft_is_right() -> None:
    """A model whose causal and bidirectional passes agree: every position predicts the same token, whatever it sees."""
    model = tiny_checkpoints.random_network(tiny_checkpoints.tiny_spec("nemotron"), 0, scale=0.0)
    reply = write(model, draft_spec(prompt_of(5), 16, plain(mode="self_speculative", draft_tokens=8)))
    assert reply.usage.visible_tokens == 16
    assert reply.usage.forwards_denoise == 4, "two cycles of a draft and a check"


def test_steps_are_honoured_by_every_family() -> None:
    for family in ("sdar", "llada2", "llada", "dream", "dllm_llama"):
        model = network(family, 1)
        width = whole_blocks(6, 16, model.spec.block) if family in BLOCKED else 16
        for steps in (1, 2, 3, 5, 9):
            reply = write(model, draft_spec(prompt_of(6), width, plain(), Plan(steps, 1, 1.0, by_clause=False)))
            assert reply.steps_first <= steps, (family, steps)


def test_the_same_draft_without_enough_steps_is_still_complete() -> None:
    for family in ("sdar", "fast_dllm", "nemotron", "llada"):
        model = network(family, 2)
        reply = write(model, draft_spec(prompt_of(7), 24, plain(), Plan(1, 1, 1.0, by_clause=False)))
        mask = model.spec.special.mask
        assert mask not in reply.tokens
        assert STEPS.threshold == 0.9

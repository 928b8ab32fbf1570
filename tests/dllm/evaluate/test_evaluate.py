"""Likelihood and quality by steps, on models whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dllm.errors import ConfigError
from dllm.evaluate.likelihood import causal_log_likelihoods, held_back_likelihood
from dllm.evaluate.prompts import Prompt, prompts_from_row
from dllm.evaluate.replies import Judge
from dllm.evaluate.steps import QualityReport, measure
from dllm.evaluate.writing import Writer
from dllm.models.transformer import Transformer
from dllm.train.data import Answer, Row
from tests.dllm import tiny

SPEC, CODEC = tiny.spec(), tiny.codec()
END, AGENT = SPEC.special.end, CODEC.special.agent
CLEAN = (CODEC.special.user, 20, END, AGENT, 30, 31, 32, END)
PROMPT = Prompt("tea", "1", CLEAN[:4], (30, 31, 32), "")


def uniform() -> Transformer:
    model = Transformer(SPEC).eval().requires_grad_(False)
    model.embed_tokens.weight.zero_()
    return model


def of_length(tokens: int) -> Prompt:
    return Prompt("tea", "1", CLEAN[:4], (30,) * tokens, "")


def quality(prompt: Prompt, widths: tuple[int, ...], steps: tuple[int, ...]) -> QualityReport:
    model = tiny.model(1)
    return measure(Writer(model, CODEC.token_table), CODEC, Judge(model), [prompt], widths, steps)


def test_uniform_model_has_the_likelihood_of_the_vocabulary() -> None:
    result = held_back_likelihood(uniform(), PROMPT)
    # The bound knows that no text holds the mask, so it is over one token less; so is the causal mode's.
    nats = math.log(SPEC.vocab_size - 1)
    assert result.tokens == 4
    assert result.diffusion == pytest.approx(4 * nats, rel=1e-5)
    assert result.causal == pytest.approx(4 * nats, rel=1e-5)


def test_likelihood_is_repeatable() -> None:
    model = tiny.model(1, scale=2.0)
    assert held_back_likelihood(model, PROMPT) == held_back_likelihood(model, PROMPT)


def test_causal_likelihood_equals_the_sum_of_next_tokens_whatever_stands_beside_it() -> None:
    model = tiny.model(1, scale=2.0)
    ids = torch.tensor([CLEAN])
    mask = torch.ones(8, 8, dtype=torch.bool).tril().view(1, 1, 8, 8)
    logits = model.logits(model(ids, torch.arange(8).unsqueeze(0), mask))[0]
    by_hand = -torch.nn.functional.cross_entropy(logits[3:7], ids[0, 4:], reduction="sum")
    first, second = causal_log_likelihoods(model, CLEAN[:4], [(30, 31, 32), (40,) * 9])
    # Float32 sums in another order.
    assert first == pytest.approx(float(by_hand), rel=1e-5)
    assert second == pytest.approx(causal_log_likelihoods(model, CLEAN[:4], [(40,) * 9])[0], rel=1e-5)


def test_prompts_end_before_the_answer_and_carry_the_facts_of_their_notes() -> None:
    clean, reply = CODEC.encode_turn("note", "total: $5.10"), CODEC.encode_text("that's $5.10.")
    tokens = (*clean, AGENT)
    answer = Answer(len(tokens), (*reply, END), (False,) * (len(reply) + 1))
    row = Row((*tokens, *reply, END), (True,) * (len(tokens) + len(reply) + 1), (answer,))
    (prompt,) = prompts_from_row(row, CODEC, "tea", "1")
    assert (prompt.tokens, prompt.text, prompt.known) == (tokens, "that's $5.10.", "total: $5.10")
    assert [fact.text for fact in prompt.facts] == ["$5.10"]
    assert prompt.pins == (CODEC.encode_pin("$5.10"),)
    assert prompt.call is None


def test_quality_is_one_at_the_best_step_count_and_agreement_at_the_most() -> None:
    report = quality(of_length(6), (8, 16), (1, 2, 4))
    assert report.prompts == (1, 1)
    for values, agreement in zip(report.quality, report.agreement, strict=True):
        assert max(values) == 1.0
        assert all(0 < value <= 1 for value in values)
        assert agreement[-1] == 1.0
    assert set(report.curve()) == {"widths", "steps", "quality", "log_likelihood", "agreement", "prompts"}


def test_prompts_whose_answer_is_wider_than_the_canvas_are_left_out() -> None:
    report = quality(of_length(12), (8, 16), (1, 2))
    assert (report.widths, report.prompts) == ((16,), (1,))
    assert len(report.quality) == len(report.agreement) == len(report.log_likelihood) == 1


def test_a_judge_must_have_learned_to_look_back_only() -> None:
    model = Transformer(replace(SPEC, causal_verify=False))
    with pytest.raises(ConfigError, match="a checkpoint with a causal mode"):
        Judge(model)

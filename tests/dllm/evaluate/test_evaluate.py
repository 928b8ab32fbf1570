"""Likelihood and quality by steps, on models whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from dllm.evaluate.likelihood import causal_log_likelihood, held_back_likelihood
from dllm.evaluate.steps import EvalPrompt, measure, prompts_from_rows
from dllm.models.transformer import Transformer
from dllm.train.config import TrainConfig
from dllm.train.data import Answer, Row
from tests.dllm import tiny

SPEC = tiny.spec()
END, AGENT = SPEC.special.end, SPEC.dialogue.agent
CLEAN = (SPEC.dialogue.user, 20, END, AGENT, 30, 31, 32, END)
ROW = Row(CLEAN, (True,) * 8, (Answer(4, (30, 31, 32, END), (False, True, True, False)),))


def uniform() -> Transformer:
    model = Transformer(SPEC).eval().requires_grad_(False)
    model.embed_tokens.weight.zero_()
    return model


def test_uniform_model_has_the_likelihood_of_the_vocabulary() -> None:
    result = held_back_likelihood(uniform(), [ROW, ROW], TrainConfig(), draws=3)
    assert result.diffusion == pytest.approx(math.log(SPEC.vocab_size), rel=1e-5)
    assert result.causal == pytest.approx(math.log(SPEC.vocab_size), rel=1e-5)
    assert (result.answers, result.tokens) == (2, 8)


def test_likelihood_is_repeatable() -> None:
    model = tiny.model(1, scale=2.0)
    assert held_back_likelihood(model, [ROW], TrainConfig()) == held_back_likelihood(model, [ROW], TrainConfig())


def test_causal_likelihood_equals_the_sum_of_next_tokens() -> None:
    model = tiny.model(1, scale=2.0)
    ids = torch.tensor([CLEAN])
    mask = torch.ones(8, 8, dtype=torch.bool).tril().view(1, 1, 8, 8)
    logits = model.logits(model(ids, torch.arange(8).unsqueeze(0), mask))[0]
    by_hand = -torch.nn.functional.cross_entropy(logits[3:7], ids[0, 4:])
    assert causal_log_likelihood(model, CLEAN[:4], (30, 31, 32)) == pytest.approx(float(by_hand), rel=1e-5)


def test_prompts_end_before_the_last_answer_and_carry_its_pins() -> None:
    (prompt,) = prompts_from_rows([ROW])
    assert prompt == EvalPrompt(CLEAN[:4], ((31, 32),), 3)


def test_quality_is_one_at_the_best_step_count_and_agreement_at_the_most() -> None:
    report = measure(
        tiny.model(1), tiny.codec().token_table, [EvalPrompt(CLEAN[:4], (), 6)], widths=(8, 16), steps=(1, 2, 4)
    )
    assert report.prompts == (1, 1)
    for quality, agreement in zip(report.quality, report.agreement, strict=True):
        assert max(quality) == 1.0
        assert all(0 < value <= 1 for value in quality)
        assert agreement[-1] == 1.0
    assert report.to_json()["widths"] == (8, 16)


def test_prompts_whose_answer_is_wider_than_the_canvas_are_left_out() -> None:
    report = measure(
        tiny.model(1), tiny.codec().token_table, [EvalPrompt(CLEAN[:4], (), 12)], widths=(8, 16), steps=(1, 2)
    )
    assert report.prompts == (0, 1)

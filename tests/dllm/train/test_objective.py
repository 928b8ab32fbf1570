"""The objective: its mask, its weights, and what it must be at the ends."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.masks import prefix_mask, visible
from dllm.models.transformer import Transformer
from dllm.train import objective
from dllm.train.config import TrainConfig
from dllm.train.data import Answer, Row
from tests.dllm import tiny

SPEC = tiny.spec()
END, MASK, AGENT = SPEC.special.end, SPEC.special.mask, SPEC.dialogue.agent
RANDOM_ONLY = TrainConfig(prefix_share=0.0, masked_tail_share=1.0, pinned_share=1.0, max_jump=0, closing_weight=0.0)


def answer(tokens: tuple[int, ...], start: int = 3, pinned: tuple[int, ...] = ()) -> Answer:
    return Answer(start, (*tokens, END), tuple(at in pinned for at in range(len(tokens) + 1)))


def row(*answers: tuple[int, ...]) -> Row:
    clean: list[int] = [SPEC.dialogue.user, 20, END]
    made = []
    for tokens in answers:
        clean.append(AGENT)
        made.append(answer(tokens, len(clean)))
        clean += [*tokens, END]
    return Row(tuple(clean), (True,) * len(clean), tuple(made))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform_model() -> Transformer:
    """Every token equally likely: the embedding, and with it every logit, is zero."""
    model = Transformer(SPEC).requires_grad_(False)
    with torch.no_grad():
        model.embed_tokens.weight.zero_()
    return model


@given(st.floats(0.001, 1), st.integers(1, 60))
def test_number_of_masks_is_t_rounded_up(t: float, count: int) -> None:
    chosen = objective.choose_masked(torch.arange(count), t, "random", generator())
    assert len(set(chosen.tolist())) == len(chosen) == max(1, math.ceil(t * count))


def test_suffix_style_masks_the_last_ones() -> None:
    assert objective.choose_masked(torch.arange(10), 0.3, "suffix", generator()).tolist() == [7, 8, 9]


@given(st.integers(1, 40), st.integers(0, 100))
def test_antithetic_times_are_spread_evenly(count: int, seed: int) -> None:
    times = sorted(objective.antithetic_times(count, generator(seed)))
    assert all(0 < time <= 1 for time in times)
    assert all(index / count - 1e-6 <= time <= (index + 1) / count + 1e-6 for index, time in enumerate(times))


@given(st.integers(1, 64), st.floats(0, 1, exclude_max=True))
def test_canvas_width_holds_the_answer_and_fits_the_model(length: int, draw: float) -> None:
    width = objective.canvas_width(length, draw, SPEC)
    assert length <= width <= SPEC.max_canvas
    assert width % SPEC.canvas_multiple == 0


def test_weights_by_hand() -> None:
    """Four text tokens and the end at t = .5: ceil(2.5) = 3 of 5 masked, each weighted (5 / 3) / 5 = 1 / 3."""
    batch = objective.collate([row((30, 31, 32, 33))], [0.5], SPEC, RANDOM_ONLY, generator())
    weights = batch.canvas_weight[batch.canvas_weight > 0]
    torch.testing.assert_close(weights, torch.full((3,), 1 / 3))
    uniform = objective.losses(uniform_model(), batch)
    assert float(uniform.diffusion) == pytest.approx(math.log(SPEC.vocab_size), rel=1e-5)


def test_all_masked_uniform_model_loses_the_entropy_of_the_vocabulary() -> None:
    rows = [row((30, 31, 32), (33,)), row((34, 35))]
    losses = objective.losses(uniform_model(), objective.collate(rows, [1.0, 1.0, 1.0], SPEC, RANDOM_ONLY, generator()))
    assert float(losses.diffusion) / losses.answers == pytest.approx(math.log(SPEC.vocab_size), rel=1e-5)
    assert float(losses.causal) / losses.causal_tokens == pytest.approx(math.log(SPEC.vocab_size), rel=1e-5)


def test_unigram_model_at_t_one_loses_the_unigram_entropy() -> None:
    """A model that knows only frequencies, and an answer that has exactly them: the loss at t = 1 is their entropy."""
    spec = replace(SPEC, tie_word_embeddings=False)
    model = Transformer(spec).requires_grad_(False)
    assert model.lm_head is not None
    model.layers.apply(lambda module: [parameter.zero_() for parameter in module.parameters()] and None)
    model.embed_tokens.weight.fill_(1.0)  # with silent layers every hidden state is all ones
    tokens = (30, 30, 31, END)
    frequencies = {30: 0.5, 31: 0.25, END: 0.25}
    model.lm_head.weight.fill_(-100.0)
    for token, share in frequencies.items():
        model.lm_head.weight[token] = math.log(share) / spec.hidden_size
    clean = (spec.dialogue.user, END, AGENT, *tokens)
    one = Row(clean, (False,) * len(clean), (Answer(3, tokens, (False,) * 4),))
    losses = objective.losses(model, objective.collate([one], [1.0], spec, RANDOM_ONLY, generator()))
    entropy = -sum(share * math.log(share) for share in frequencies.values())
    assert float(losses.diffusion) == pytest.approx(entropy, rel=1e-5)


def test_pins_are_left_alone_and_not_counted() -> None:
    made = Answer(3, (30, 31, 32, END), (False, True, True, False))
    noisy = objective.noisy_canvas(made, 1.0, SPEC, RANDOM_ONLY, generator())
    assert noisy.targets[:4] == [30, 31, 32, END]
    assert noisy.shown[:4] == [MASK, 31, 32, MASK]
    assert {at: weight for at, weight in noisy.losses if at < 4} == {0: 0.5, 3: 0.5}


def test_what_is_copied_weighs_more_and_a_pin_still_nothing() -> None:
    made = Answer(3, (30, 31, 32, END), (False, True, False, False), copied=(True, True, False, False))
    config = replace(RANDOM_ONLY, copied_weight=3.0)
    noisy = objective.noisy_canvas(made, 1.0, SPEC, config, generator())
    assert {at: weight for at, weight in noisy.losses if at < 4} == {0: 3 / 5, 2: 1 / 5, 3: 1 / 5}


def test_the_rest_of_a_turn_is_asked_for_on_a_canvas_of_masks() -> None:
    whole = objective.noisy_canvas(Answer(3, (END,), (False,), "rest"), 0.1, SPEC, RANDOM_ONLY, generator())
    assert whole.shown == [MASK] * SPEC.canvas_multiple
    assert whole.targets == [END] * SPEC.canvas_multiple
    long = Answer(3, tuple(range(20, 20 + 2 * SPEC.canvas_multiple)), (False,) * (2 * SPEC.canvas_multiple), "rest")
    cut = objective.noisy_canvas(long, 0.1, SPEC, RANDOM_ONLY, generator())
    assert cut.targets == list(long.tokens[: SPEC.canvas_multiple]), "what is not asked for is left out"
    weights = [weight for _, weight in cut.losses]
    assert sum(weights) == pytest.approx(RANDOM_ONLY.question_weight)
    assert all(weight == pytest.approx(RANDOM_ONLY.closing_weight * weights[0]) for weight in weights[1:])


def test_a_transcript_is_shown_as_it_was_heard_and_asked_for_as_it_was_meant() -> None:
    asked = Answer(3, (30, 31, END), (False,) * 3, "transcript", (30, 45, END))
    noisy = objective.noisy_canvas(asked, 1.0, SPEC, RANDOM_ONLY, generator())
    assert noisy.shown[:3] == [30, 45, END]
    assert noisy.targets[:3] == [30, 31, END]
    assert MASK not in noisy.shown
    assert [at for at, _ in noisy.losses] == list(range(len(noisy.shown)))


def test_attention_is_causal_over_text_and_bidirectional_inside_a_canvas_only() -> None:
    two = row((30, 31), (32,))
    batch = objective.collate([two], [1.0, 1.0], SPEC, RANDOM_ONLY, generator())
    seen = batch.attention_mask()[0, 0] == 0
    group = batch.group[0]
    size = len(two.clean)
    assert torch.equal(seen[:size, :size], torch.ones(size, size, dtype=torch.bool).tril())
    assert not seen[:size, size:].any(), "text never looks at canvases"
    for number, made in enumerate(two.answers, start=1):
        canvas = group == number
        assert seen[canvas][:, canvas].all()
        assert seen[canvas][:, : made.start].all()
        assert not seen[canvas][:, made.start : size].any(), "a canvas never sees its own answer or later text"
        assert not seen[canvas][:, (group > 0) & ~canvas].any()
        assert batch.positions[0, canvas][0] == made.start


def test_a_canvas_sees_in_training_what_it_sees_in_generation() -> None:
    model = tiny.model(2)
    one = row((30, 31, 32))
    batch = objective.collate([one], [1.0], SPEC, RANDOM_ONLY, generator())
    trained = model.logits(model(batch.ids, batch.positions, batch.attention_mask())[0, batch.group[0] == 1])
    prompt = one.clean[: one.answers[0].start]
    start, total = len(prompt), len(prompt) + len(trained)
    stores = model.new_stores(1, total)
    for first, ids in ((0, list(prompt)), (start, [MASK] * len(trained))):
        last = first + len(ids)
        mask = prefix_mask(visible(SPEC, first, len(ids), total=last, live=start), last)
        hidden = model(torch.tensor([ids]), torch.arange(first, last).unsqueeze(0), mask, stores, first)
    torch.testing.assert_close(trained, model.logits(hidden[0]), atol=1e-4, rtol=1e-4)


def test_padding_changes_nothing() -> None:
    model = tiny.model(3, scale=2.0)
    short, long = row((30,)), row((31, 32, 33), (34, 35))
    together = objective.losses(model, objective.collate([short, long], [1.0] * 3, SPEC, RANDOM_ONLY, generator()))
    apart = [
        objective.losses(model, objective.collate([one], [1.0] * len(one.answers), SPEC, RANDOM_ONLY, generator()))
        for one in (short, long)
    ]
    assert float(together.causal) == pytest.approx(sum(float(losses.causal) for losses in apart), rel=1e-4)


def test_a_gap_after_the_system_turn_moves_text_and_canvas_together() -> None:
    config = TrainConfig(max_jump=100, prefix_share=0.0)
    jumped = 0
    for seed in range(20):
        one = row((30, 31))
        batch = objective.collate([one], [1.0], SPEC, config, generator(seed))
        size = len(one.clean)
        gap = int(batch.positions[0, 0])
        jumped += gap > 0
        assert batch.positions[0, :size].tolist() == list(range(gap, gap + size))
        assert int(batch.positions[0, size]) == gap + one.answers[0].start
    assert 0 < jumped < 20

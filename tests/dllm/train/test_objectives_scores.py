"""Score entropy and the uniform-state bound against closed forms on a vocabulary that can be enumerated."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dllm.models.dit import total_noise
from dllm.train.objectives import OBJECTIVES
from dllm.train.objectives.score_entropy import (
    ScoreEntropy,
    ScoreEntropyOptions,
    absorbing_entropy,
    uniform_entropy,
)
from dllm.train.objectives.uniform import Uniform, UniformOptions, given_others, uniform_bound
from tests.dllm.train.objective_batches import (
    MASK,
    UNIFORM,
    VOCAB,
    detached,
    dit_of,
    generator,
    network_of,
    packed,
    plain_spec,
)

PRIOR = torch.tensor([0.5, 0.2, 0.3])
"""Of the clean token; the absorbing vocabulary has the mask as its fourth."""

DIT = {
    "mask_kind": "full",
    "condition_size": 8,
    "sees_noise": True,
    "qk_norm": False,
    "num_key_value_heads": 2,
    "activation": "gelu_tanh",
}


def transition(sigma: float, size: int) -> torch.Tensor:
    """[clean, held] probabilities under uniform corruption."""
    return math.exp(-sigma) * torch.eye(size) + (1 - math.exp(-sigma)) / size


def test_the_absorbing_loss_is_least_at_the_true_ratios():
    sigma = torch.full((3,), 0.7)
    output = (PRIOR.log() + math.log(3)).tolist()
    logits = torch.tensor([*output, 0.0]).repeat(3, 1).requires_grad_()
    losses = absorbing_entropy(logits, torch.arange(3), sigma, mask=3)
    (PRIOR * losses).sum().backward()
    # The optimum is stationary in every output; rounding of float32 leaves 1e-7.
    assert logits.grad.sum(0).abs().max() < 1e-6
    best = detached((PRIOR * losses).sum())
    for at in range(3):
        other = logits.detach().clone()
        other[:, at] += 0.3
        assert float((PRIOR * absorbing_entropy(other, torch.arange(3), sigma, mask=3)).sum()) > best


def test_the_uniform_loss_is_least_at_the_true_ratios():
    size, sigma = 3, 0.7
    moves = transition(sigma, size)
    marginal = PRIOR @ moves
    clean, held = (grid.flatten() for grid in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    table = (marginal.log().unsqueeze(0) - marginal.log().unsqueeze(1)).clone().requires_grad_()  # [held, y]
    weights = (PRIOR.unsqueeze(1) * moves)[clean, held]
    losses = uniform_entropy(table[held], held, clean, torch.full((9,), sigma))
    total = (weights * losses).sum()
    total.backward()
    assert table.grad.abs().max() < 1e-6
    for at in range(size):
        other = table.detach().clone()
        other[:, at] += 0.3 * (torch.arange(size) != at)
        assert (weights * uniform_entropy(other[held], held, clean, torch.full((9,), sigma))).sum() > total


def test_the_uniform_loss_equals_its_definition_summed_by_hand():
    size, sigma = 4, 1.1
    moves = transition(sigma, size)
    output = torch.randn(1, size, generator=generator())
    for held in range(size):
        for clean in range(size):
            expected = 0.0
            for other in range(size):
                if other != held:
                    ratio, score = float(moves[clean, other] / moves[clean, held]), float(output[0, other])
                    expected += (math.exp(score) - ratio * score + ratio * (math.log(ratio) - 1)) / size
            found = uniform_entropy(output, torch.tensor([held]), torch.tensor([clean]), torch.tensor([sigma]))
            assert float(found) == pytest.approx(expected, rel=1e-5)


def test_absorbing_score_entropy_of_a_softmax_is_cross_entropy_over_time():
    size = 6
    guess = torch.randn(5, size - 1, generator=generator()).log_softmax(-1)
    output = torch.cat((guess + math.log(size - 1), torch.zeros(5, 1)), dim=1)
    clean, time = (
        torch.randint(size - 1, (5,), generator=generator()),
        torch.rand(5, generator=generator()) * 0.9 + 0.05,
    )
    losses = absorbing_entropy(output, clean, -torch.log1p(-time), mask=size - 1) / (1 - time)
    expected = F.nll_loss(guess, clean, reduction="none") / time
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)


def test_the_uniform_bound_is_score_entropy_of_the_ratios_its_guess_implies():
    size = 7
    output = torch.randn(40, size, generator=generator())
    held, clean = torch.randint(size, (2, 40), generator=generator())
    time = torch.rand(40, dtype=torch.float64, generator=generator()) * 0.9 + 0.05
    alpha = (1 - time).float().unsqueeze(1)
    mixed = size * alpha * output.softmax(-1) + 1 - alpha
    log_ratio = mixed.log() - mixed.log().gather(1, held.unsqueeze(1))
    rate = (1 / (1 - time)).float()
    expected = rate * uniform_entropy(log_ratio, held, clean, -torch.log1p(-time).float())
    torch.testing.assert_close(uniform_bound(output, held, clean, time), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("time", [1e-3, 0.3, 0.999])
def test_the_uniform_bound_is_zero_for_a_sure_and_right_guess(time):
    clean = torch.arange(5)
    sure = 50 * torch.eye(5)
    for held in range(5):
        bound = uniform_bound(sure, torch.full((5,), held), clean, torch.full((5,), time, dtype=torch.float64))
        # 1 / t times the rounding of float32 logarithms.
        assert bound.abs().max() < 1e-3


def test_the_uniform_bound_of_a_single_token_integrates_to_its_entropy():
    """With one token the bound is tight. The guess is at a token given the others, so here it is the prior, whatever is held."""
    size, steps = 3, 4000
    times = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    held, clean = (grid.flatten() for grid in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    time = times.repeat_interleave(9)
    moves = (1 - times).view(-1, 1, 1) * torch.eye(size) + times.view(-1, 1, 1) / size
    joint = PRIOR.unsqueeze(1) * moves  # [time, clean, held]
    output = PRIOR.log().repeat(9 * steps, 1)
    bound = uniform_bound(output, held.repeat(steps), clean.repeat(steps), time)
    total = float((joint[:, clean, held].flatten() * bound).sum()) / steps
    entropy = -float((PRIOR * PRIOR.log()).sum())
    # The midpoint rule over 4,000 times leaves less than 1 %.
    assert total == pytest.approx(entropy, rel=0.01)


def test_outputs_given_all_tokens_are_led_back_to_those_given_the_others():
    size = 3
    held = torch.arange(size).repeat(2)
    time = torch.tensor([0.2] * size + [0.9] * size, dtype=torch.float64)
    likelihood = ((1 - time).view(-1, 1) * torch.eye(size, dtype=torch.float64)[held] + time.view(-1, 1) / size).float()
    given_all = (PRIOR * likelihood).log() + 0.7
    torch.testing.assert_close(
        given_others(given_all, held, time).softmax(-1), PRIOR.expand(2 * size, -1), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("loss", ["bound", "cross_entropy"])
def test_how_outputs_are_read_matters_to_the_bound_alone(loss):
    spec = plain_spec(**UNIFORM)
    network, batch = network_of(spec), packed([[(2, 6), (1, 3)]])
    others, every = (
        detached(Uniform(spec, UniformOptions(loss=loss, given=given))(network, batch, generator()).loss)
        for given in ("others", "all")
    )
    assert (others == every) == (loss == "cross_entropy")


@pytest.mark.parametrize("schedule", ["loglinear", "geometric"])
@pytest.mark.parametrize("corruption", ["absorbing", "uniform"])
def test_the_dit_family_learns_with_every_schedule_and_corruption(schedule, corruption):
    changes = DIT | (UNIFORM | {"self_conditioning": False} if corruption == "uniform" else {})
    spec = replace(plain_spec(**changes), intermediate_size=32)
    network = dit_of(spec)
    objective = OBJECTIVES["score_entropy"](spec, {"schedule": schedule})
    terms = objective(network, packed([[(2, 5), (0, 3)]] * 8), generator())
    assert torch.isfinite(terms.loss) and terms.loss.item() > 0 and terms.count == 64
    terms.loss.backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), label
        assert parameter.grad.abs().sum() > 0, label


def test_the_network_is_given_the_noise_of_its_row():
    spec = replace(plain_spec(**DIT), intermediate_size=32)
    network, given = dit_of(spec), []
    forward = network.forward
    network.forward = lambda *args, **extra: given.append((args[0], extra["noise"])) or forward(*args, **extra)
    ScoreEntropy(spec, ScoreEntropyOptions(low=0.5))(network, packed([[(0, 60)]] * 4), generator())
    ((ids, noise),) = given
    assert noise.shape == (4,)
    shares = (ids == MASK).float().mean(1)
    # 60 tokens masked independently: a standard deviation of 0.065.
    torch.testing.assert_close(1 - torch.exp(-noise), shares, rtol=0, atol=0.25)


def test_the_log_linear_schedule_is_the_one_that_decoding_assumes():
    times = torch.linspace(0.01, 1, 7, dtype=torch.float64)
    total, rate = ScoreEntropyOptions().noise(times)
    torch.testing.assert_close(total, total_noise(times))
    step = 1e-6
    torch.testing.assert_close(
        rate, (ScoreEntropyOptions().noise(times + step).total - total) / step, rtol=1e-2, atol=0
    )


def test_the_geometric_schedule_goes_from_its_least_to_its_most_noise():
    options = ScoreEntropyOptions(schedule="geometric", sigma_min=0.01, sigma_max=10.0)
    total, rate = options.noise(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert total.tolist() == pytest.approx([0.01, 0.1**0.5, 10.0])
    assert rate.tolist() == pytest.approx([value * math.log(1000) for value in total.tolist()])


def test_wrong_tokens_of_a_uniform_state_are_drawn_from_the_whole_vocabulary():
    spec = plain_spec(**UNIFORM)
    network, shown = network_of(spec), []
    forward = network.forward
    network.forward = lambda ids, *args, **extra: shown.append(ids) or forward(ids, *args, **extra)
    Uniform(spec, UniformOptions(low=0.99, self_conditioning=0.0))(network, packed([[(4, 56)]] * 20), generator())
    assert set(shown[0][:, 4:].flatten().tolist()) == set(range(VOCAB))


def test_the_second_run_of_self_conditioning_is_given_the_first_ones_guess():
    spec = plain_spec(**UNIFORM)
    network, batch, given = network_of(spec), packed([[(4, 6)]]), []
    forward = network.forward
    network.forward = lambda *args, **extra: given.append(extra.get("soft")) or forward(*args, **extra)
    Uniform(spec, UniformOptions(self_conditioning=1.0))(network, batch, generator())
    first, second = given
    assert first is None and not second.requires_grad
    assert second[0, :4].abs().sum() == 0 and (second[0, 4:].abs().sum(-1) > 0).all()
    given.clear()
    Uniform(spec, UniformOptions(self_conditioning=0.0))(network, batch, generator())
    assert given == [None]


def test_no_guess_and_a_guess_of_zero_are_the_same_input():
    network, batch = network_of(plain_spec(**UNIFORM)), packed([[(4, 6)]])
    zero = torch.zeros(1, 10, 16)
    assert torch.equal(network(batch.ids, batch.positions, None), network(batch.ids, batch.positions, None, soft=zero))
    with pytest.raises(TypeError, match="takes no soft"):
        network_of(plain_spec())(batch.ids, batch.positions, None, soft=zero)


def test_a_model_without_self_conditioning_is_run_once():
    spec = plain_spec(**(UNIFORM | {"self_conditioning": False}))
    terms = Uniform(spec, UniformOptions(self_conditioning=1.0))(network_of(spec), packed([[(1, 4)]]), generator())
    assert torch.isfinite(terms.loss)

"""Masked diffusion on packed rows: its expectation, its views, its limits, and what it must leave alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.errors import ConfigError
from dllm.train.objectives import OBJECTIVES
from dllm.train.objectives.corruption import Noise, spread, views
from dllm.train.objectives.masked import Masked, MaskedOptions
from dllm.train.objectives.masks import document_mask
from tests.dllm.train.objective_batches import (
    MASK,
    PAD,
    UNIFORM,
    VOCAB,
    apart,
    detached,
    generator,
    network_of,
    packed,
    plain_spec,
)

SUM_TOLERANCE = 1e-4
"""Relative; sums of a few dozen float32 losses in another order."""


def noise(**changes: object) -> Noise:
    plain: dict[str, object] = {
        "low": 0.0,
        "high": 1.0,
        "counts": "fixed",
        "weighting": "bound",
        "weight_cap": 0.0,
        "antithetic": True,
        "complementary": False,
    }
    return Noise(**(plain | changes))  # type: ignore[arg-type]


def any_order_bound(network, batch, places) -> float:
    """The bound by enumeration: every set of masks, weighted 1 / (k C(N, k)) for its size k. A token's mean."""
    size, total = len(places), 0.0
    mask = document_mask(batch, "full")
    for count in range(1, size + 1):
        for chosen in itertools.combinations(places, count):
            ids = batch.ids.clone()
            ids[0, list(chosen)] = MASK
            with torch.no_grad():
                logits = network.logits(network(ids, batch.positions, mask))[0]
            losses = F.cross_entropy(logits[list(chosen)], batch.ids[0, list(chosen)], reduction="sum")
            total += detached(losses) / (count * math.comb(size, count))
    return total / size


@pytest.mark.parametrize(
    "options",
    [
        MaskedOptions(),
        MaskedOptions(counts="independent", low=1e-3),
        MaskedOptions(complementary=True),
        MaskedOptions(normaliser="answers"),
    ],
    ids=["fixed", "independent", "complementary", "answers"],
)
def test_the_mean_loss_is_the_any_order_bound(options):
    batch, network = packed([[(2, 3)]]), network_of(plain_spec())
    expected = any_order_bound(network, batch, [2, 3, 4])
    many = packed([[(2, 3)]] * 1)
    many = type(many)(*(getattr(many, name).repeat(4000, 1) for name in ("ids", "document", "positions", "learned")))
    with torch.no_grad():
        terms = Masked(plain_spec(), options)(network, many, generator())
    # 4,000 antithetic draws: the rest of the variance, of which tokens are masked, leaves a standard error below 1 %.
    assert terms.loss.item() / terms.count == pytest.approx(expected, rel=0.03)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    counts=st.sampled_from(["fixed", "independent"]),
)
@settings(max_examples=60, deadline=None)
def test_complementary_masks_learn_every_token_once(sizes, seed, counts):
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    first, second = views(group, len(sizes), noise(complementary=True, counts=counts), generator(seed))
    assert torch.equal(first.masked, ~second.masked)
    assert torch.isfinite(first.weight).all() and torch.isfinite(second.weight).all()


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_fixed_counts_make_the_weights_of_a_group_sum_to_its_size(sizes, seed):
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    (view,) = views(group, len(sizes), noise(), generator(seed))
    sums = torch.bincount(group, view.weight.double() * view.masked, len(sizes))
    assert sums.tolist() == pytest.approx(sizes)


def test_a_band_keeps_the_share_of_masks_inside_it():
    group = torch.arange(50).repeat_interleave(20)
    (view,) = views(group, 50, noise(low=0.3, high=0.8), generator())
    shares = torch.bincount(group, view.masked.double(), 50) / 20
    assert shares.min() > 0.3 and shares.max() <= 0.8


def test_antithetic_times_are_spread_evenly_and_lie_above_zero():
    times = spread(100, generator())
    assert torch.bincount((times * 100).ceil().long() - 1, minlength=100).tolist() == [1] * 100
    assert times.min() > 0 and times.max() <= 1


def test_antithetic_times_reduce_the_variance_of_the_loss():
    batch, network = packed([[(1, 6)] * 3] * 4), network_of(plain_spec())

    def variance(antithetic: bool) -> float:
        objective = Masked(plain_spec(), MaskedOptions(antithetic=antithetic, weighting="equal"))
        with torch.no_grad():
            losses = [detached(objective(network, batch, generator(seed)).loss) for seed in range(60)]
        return float(torch.tensor(losses).var())

    assert variance(True) < 0.5 * variance(False)


def test_no_weight_exceeds_the_cap():
    group = torch.zeros(50, dtype=torch.int64)
    (view,) = views(group, 1, noise(weight_cap=4.0, high=0.05), generator())
    assert view.weight.tolist() == [4.0] * 50


def test_with_everything_masked_the_loss_is_that_of_guessing_blind():
    spec = plain_spec()
    batch, network = packed([[(0, 6)]]), network_of(spec)
    terms = Masked(spec, MaskedOptions(low=0.999))(network, batch, generator())
    blind = network.logits(network(torch.full_like(batch.ids, MASK), batch.positions, None))
    assert terms.loss.item() == pytest.approx(
        detached(F.cross_entropy(blind[0], batch.ids[0], reduction="sum")), rel=SUM_TOLERANCE
    )


def test_with_hardly_any_noise_one_token_is_guessed_from_all_others():
    spec = plain_spec()
    batch, network = packed([[(0, 6)]]), network_of(spec)
    terms = Masked(spec, MaskedOptions(high=1e-6))(network, batch, generator())
    alone = []
    for at in range(6):
        ids = batch.ids.clone()
        ids[0, at] = MASK
        logits = network.logits(network(ids, batch.positions, None))
        alone.append(6 * detached(F.cross_entropy(logits[0, at : at + 1], batch.ids[0, at : at + 1])))
    assert any(terms.loss.item() == pytest.approx(loss, rel=SUM_TOLERANCE) for loss in alone)


@pytest.mark.parametrize("kind", ["full", "causal_prefix_bidir_block", "causal", "block_causal"])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("name", ["masked", "causal", "block"])
def test_packed_documents_lose_what_they_lose_in_rows_of_their_own(name, kind, shift):
    spec = plain_spec(mask_kind=kind, logit_shift=shift, block=4)
    # Everything is masked, so that packing does not change what is drawn.
    options = {} if name == "causal" else {"low": 0.999}
    objective = OBJECTIVES[name](spec, options)
    batch = packed([[(3, 5), (0, 7), (2, 1)], [(4, 4)]])
    together, single = network_of(spec), network_of(spec)
    terms = objective(together, batch, generator())
    terms.loss.backward()
    count = 0.0
    total = torch.zeros(())
    for document in apart(batch):
        own = objective(single, document, generator())
        own.loss.backward()
        total, count = total + own.loss.detach(), count + own.count
    assert terms.count == count
    torch.testing.assert_close(terms.loss.detach(), total, rtol=SUM_TOLERANCE, atol=0)
    for (label, ours), theirs in zip(together.named_parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-3, atol=1e-3, msg=lambda text, at=label: f"{at}: {text}"
        )


@pytest.mark.parametrize(
    ("name", "options", "changes"),
    [
        ("masked", {}, {}),
        ("masked", {"replaced": 0.2, "complementary": True}, {"logit_shift": 1}),
        ("block", {"block": 4}, {"mask_kind": "block_causal"}),
        ("causal", {}, {}),
        ("uniform", {"self_conditioning": 1.0}, UNIFORM),
        ("uniform", {"self_conditioning": 1.0, "loss": "cross_entropy"}, UNIFORM),
    ],
)
def test_gradients_reach_every_parameter_and_are_numbers(name, options, changes):
    spec = plain_spec(**changes)
    network = network_of(spec)
    terms = OBJECTIVES[name](spec, options)(network, packed([[(3, 5), (0, 7)], [(1, 4)]]), generator())
    terms.loss.backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), label
        assert parameter.grad.abs().sum() > 0, label


@pytest.mark.parametrize("name", ["masked", "block", "causal", "uniform"])
def test_a_batch_with_nothing_to_learn_loses_nothing_and_counts_nothing(name):
    spec = plain_spec(**(UNIFORM if name == "uniform" else {}))
    terms = OBJECTIVES[name](spec, {})(network_of(spec), packed([[(5, 0)], [(3, 0)]]), generator())
    assert terms.loss.item() == 0 and terms.count == 0
    terms.loss.backward()


@pytest.mark.parametrize("name", ["masked", "block", "uniform"])
def test_a_prompt_is_shown_as_it_is_and_never_guessed(name):
    spec = plain_spec(**(UNIFORM if name == "uniform" else {}))
    network, batch = network_of(spec), packed([[(5, 4)]])
    shown, guessed = [], []
    forward, logits = network.forward, network.logits
    network.forward = lambda ids, *args, **extra: shown.append(ids) or forward(ids, *args, **extra)
    network.logits = lambda hidden: guessed.append(len(hidden)) or logits(hidden)
    for seed in range(5):
        OBJECTIVES[name](spec, {"low": 0.5})(network, batch, generator(seed))
    assert all(torch.equal(ids[0, :5], batch.ids[0, :5]) for ids in shown)
    assert max(guessed) <= 4


def test_replaced_tokens_are_text_and_every_visible_token_has_a_loss():
    spec = plain_spec()
    network, batch = network_of(spec), packed([[(4, 40)]])
    shown = []
    forward = network.forward
    network.forward = lambda ids, *args, **extra: shown.append(ids) or forward(ids, *args, **extra)
    terms = Masked(spec, MaskedOptions(replaced=0.5, high=0.5))(network, batch, generator())
    (ids,) = shown
    wrong = (ids != batch.ids) & (ids != MASK)
    assert wrong[0, 4:].sum() > 5 and not wrong[0, :4].any()
    assert PAD not in ids[wrong].tolist() and ids[wrong].min() >= 2 and ids[wrong].max() < VOCAB
    assert terms.parts["visible"] > 0
    assert terms.parts["masked"] + terms.parts["visible"] == pytest.approx(terms.loss.item(), rel=SUM_TOLERANCE)


def test_normalisers_count_tokens_answers_and_masks():
    spec, batch = plain_spec(), packed([[(2, 6), (1, 2)], [(1, 4)]])
    network = network_of(spec)

    def count(normaliser):
        return Masked(spec, MaskedOptions(normaliser=normaliser, low=0.999))(network, batch, generator()).count

    assert [count("tokens"), count("answers"), count("masked")] == [12, 3, 12]


def test_answers_count_alike_however_long_they_are():
    spec, batch = plain_spec(), packed([[(2, 6), (1, 2)]])
    network = network_of(spec)
    whole = Masked(spec, MaskedOptions(normaliser="answers", low=0.999))(network, batch, generator())
    singles = [Masked(spec, MaskedOptions(low=0.999))(network, one, generator()) for one in apart(batch)]
    assert whole.loss.item() == pytest.approx(sum(one.loss.item() / one.count for one in singles), rel=SUM_TOLERANCE)


def test_with_a_shift_the_first_token_of_a_document_is_never_masked():
    spec = plain_spec(logit_shift=1)
    terms = Masked(spec, MaskedOptions(low=0.999))(network_of(spec), packed([[(0, 5), (0, 3)]]), generator())
    assert terms.count == 6


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("masked", {"lwo": 0.1}, r"masked\.lwo = 0.1: expected one of"),
        ("masked", {"low": "a"}, r"masked\.low = 'a': expected a value of type float"),
        ("masked", {"antithetic": 1}, r"masked\.antithetic = 1: expected a value of type bool"),
        ("masked", {"low": 0.5, "high": 0.4}, r"masked\.high = 0.4: expected a time above low"),
        ("masked", {"counts": "independent"}, r"masked\.low = 0.0: expected above 0 with independent masks"),
        ("masked", {"complementary": True, "low": 0.2}, r"masked\.high = 1.0: expected 0.8"),
        ("masked", {"normaliser": "words"}, r"masked\.normaliser = 'words': expected one of tokens, answers, masked"),
        ("masked", {"weight_cap": 0.5}, r"masked\.weight_cap = 0.5: expected at least 1"),
        ("block", {"block": -1}, r"block\.block = -1: expected at least 1"),
        ("uniform", {"high": 1.0}, r"uniform\.high = 1.0: expected below 1"),
        ("causal", {"counted": "some"}, r"causal\.counted = 'some': expected one of learned, all"),
        ("score_entropy", {"schedule": "cosine"}, r"score_entropy\.schedule = 'cosine': expected one of loglinear"),
    ],
)
def test_a_bad_option_is_named_with_its_value(name, body, message):
    with pytest.raises(ConfigError, match=message):
        OBJECTIVES[name](plain_spec(), body)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("masked", UNIFORM), ("block", UNIFORM), ("uniform", {}), ("masked", {"mask_kind": "encoder_decoder"})],
)
def test_an_objective_refuses_a_model_it_cannot_train(name, changes):
    with pytest.raises(ConfigError, match=f"objective = '{name}'"):
        OBJECTIVES[name](plain_spec(**changes), {})


def test_the_same_generator_gives_the_same_loss():
    spec, batch = plain_spec(), packed([[(2, 6)], [(1, 4)]])
    objective, network = Masked(spec, MaskedOptions()), network_of(spec)
    assert objective(network, batch, generator(3)).loss == objective(network, batch, generator(3)).loss
    assert objective(network, batch, generator(3)).loss != objective(network, batch, generator(4)).loss

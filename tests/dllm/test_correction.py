"""Revision rules against their formulas, and the bounds that make decoding end."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dllm.correction import (
    EDIT_STEPS,
    PROPHET_GAPS,
    WINO_REVISIONS,
    Stability,
    count_extra_steps,
    divergence,
    early_commit,
    edits,
    remask_remdm,
    remdm_rate,
    remdm_unmask_rate,
    top_gap,
    wino_doubts,
)
from dllm.schedule import deadline_floor
from tests.dllm.no_sync import no_host_sync


def whole(*values: int) -> Tensor:
    return torch.tensor(values)


# --- overwriting ------------------------------------------------------------------------------------------------------


def test_a_decided_token_is_overwritten_where_another_is_probable_enough() -> None:
    tokens, best = torch.tensor([[5, 5, 5, 5, 5]]), torch.tensor([[6, 6, 5, 6, -1]])
    probability = torch.tensor([[0.95, 0.9, 0.99, 0.99, 0.99]])
    editable = torch.tensor([[True, True, True, False, True]])
    with no_host_sync():
        changed = edits(tokens, best, probability, editable, torch.tensor([0.9]), whole(0))
    assert changed.tolist() == [[True, False, False, False, False]]


def test_editing_ends_even_when_the_model_never_agrees_with_itself() -> None:
    tokens, extra, steps = torch.zeros(1, 4, dtype=torch.int64), whole(0), 0
    is_masked = torch.tensor([[True, True, False, False]])
    ones, every = torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool)
    while True:
        extra = count_extra_steps(extra, is_masked)
        changed = edits(tokens, 1 - tokens, ones, every & ~is_masked, torch.tensor([0.5]), extra - 1)
        if not is_masked.any() and not changed.any():
            break
        tokens = torch.where(changed, 1 - tokens, tokens)
        is_masked = is_masked & (is_masked.cumsum(1) > 1)  # every step decides one
        steps += 1
    assert steps == 2 + EDIT_STEPS


# --- ReMDM ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 70), st.integers(1, 64), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_remdm_rates_are_the_formula_of_the_schedule(step: int, steps: int, eta: float) -> None:
    with no_host_sync():
        sigma = remdm_rate(whole(step), whole(steps), torch.tensor([eta]))
        unmask = remdm_unmask_rate(whole(step), whole(steps), sigma)
    alpha_t, alpha_s = (min(Fraction(1), Fraction(at, steps)) for at in (step, step + 1))
    bound = min(Fraction(1), (1 - alpha_s) / alpha_t) if alpha_t else Fraction(1)
    if steps > 1:
        # float32 rounds eta and the quotient.
        assert sigma.item() == pytest.approx(min(eta, float(bound)), rel=1e-6)
    if alpha_t < 1 and steps > 1:
        exact = (alpha_s - (1 - Fraction(sigma.item())) * alpha_t) / (1 - alpha_t)
        assert unmask.item() == pytest.approx(min(1.0, float(exact)), rel=1e-5)
    if step + 1 >= steps:
        assert sigma.item() == 0.0 and unmask.item() == 1.0


@given(st.integers(1, 30), st.integers(1, 20), st.sampled_from([0.1, 0.5, 1.0]), st.integers(0, 2**62))
def test_remdm_under_the_deadline_floor_ends_in_the_budget(width: int, steps: int, eta: float, seed: int) -> None:
    decided = torch.zeros(1, width, dtype=torch.bool)
    for step in range(steps):
        rate = remdm_rate(whole(step), whole(steps), torch.tensor([eta]))
        again = remask_remdm(decided, rate, whole(step), whole(seed))
        due = deadline_floor(int((~decided).sum()), steps - step)
        fresh = ~decided & ((~decided).cumsum(1) <= due)
        decided = (decided & ~again) | fresh
    assert decided.all()


def test_remasking_hits_the_share_asked_for_and_only_what_is_revisable() -> None:
    revisable = torch.ones(3, 100_000, dtype=torch.bool)
    revisable[:, ::2] = False
    with no_host_sync():
        again = remask_remdm(revisable, torch.tensor([0.0, 0.05, 1.0]), whole(3, 3, 3), whole(1, 2, 3))
    assert not (again & ~revisable).any()
    counts = again.sum(1).tolist()
    assert counts[0] == 0 and counts[2] == 50_000
    # Five standard deviations of a binomial with 50,000 trials; the seed is fixed.
    assert abs(counts[1] - 2500) < 5 * math.sqrt(50_000 * 0.05 * 0.95)


def test_remasking_depends_on_seed_and_step_and_not_on_the_batch() -> None:
    revisable = torch.ones(4, 64, dtype=torch.bool)
    rate, step, seed = torch.full((4,), 0.5), whole(0, 1, 0, 0), whole(9, 9, 2**61, 9)
    together = remask_remdm(revisable, rate, step, seed)
    assert torch.equal(together[0], together[3])
    assert not torch.equal(together[0], together[1]) and not torch.equal(together[0], together[2])
    alone = remask_remdm(revisable[1:2, :40], rate[1:2], step[1:2], seed[1:2])
    assert torch.equal(alone[0], together[1, :40])


# --- WINO -------------------------------------------------------------------------------------------------------------


def test_doubted_tokens_are_masked_again_and_counted() -> None:
    revisable = torch.tensor([[True, True, False, True]])
    shadow = torch.tensor([[0.2, 0.9, 0.1, 0.1]])
    with no_host_sync():
        doubts, revisions = wino_doubts(revisable, shadow, torch.tensor([0.9]), whole(0, 0, 0, WINO_REVISIONS)[None])
    assert doubts.tolist() == [[True, False, False, False]]
    assert revisions.tolist() == [[1, 0, 0, WINO_REVISIONS]]


@given(st.integers(1, 12))
def test_doubting_everything_every_time_still_ends(width: int) -> None:
    decided = torch.zeros(1, width, dtype=torch.bool)
    revisions = torch.zeros(1, width, dtype=torch.int64)
    steps = 0
    while not decided.all():
        doubts, revisions = wino_doubts(decided, torch.zeros(1, width), torch.tensor([0.5]), revisions)
        fresh = ~decided & ((~decided).cumsum(1) <= 1)
        decided = (decided & ~doubts) | fresh
        steps += 1
        assert steps <= width * (1 + WINO_REVISIONS)


# --- deciding everything ----------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 80).map(lambda n: n / 8), st.booleans()), min_size=1, max_size=8),
    st.integers(0, 12),
    st.integers(1, 9),
)
def test_everything_is_decided_once_the_mean_gap_passes_the_thirds_bound(
    cells: list[tuple[float, bool]], step: int, steps: int
) -> None:
    gap = torch.tensor([[value if is_masked else math.nan for value, is_masked in cells]])
    with no_host_sync():
        result = early_commit(gap, torch.tensor([[on for _, on in cells]]), whole(step), whole(steps))
    masked = [value for value, is_masked in cells if is_masked]
    bound = PROPHET_GAPS[0 if 3 * step < steps else 1 if 3 * step < 2 * steps else 2]
    assert result.tolist() == [bool(masked) and Fraction(sum(masked)) > Fraction(bound) * len(masked)]


def test_the_gap_is_of_the_best_two_logits() -> None:
    logits = torch.tensor([[1.0, 4.5, 2.0], [-math.inf, 3.0, -math.inf], [-math.inf] * 3, [2.0, 2.0, 0.0]])
    assert top_gap(logits).tolist() == [2.5, math.inf, 0.0, 0.0]


# --- KLASS ------------------------------------------------------------------------------------------------------------


def test_divergence_is_that_of_the_library_and_bears_impossible_tokens() -> None:
    log_p, log_q = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1)).log_softmax(-1).unbind(0)
    expected = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    # The same sum in float32; terms of size 1 in another order.
    torch.testing.assert_close(divergence(log_p, log_q), expected, rtol=1e-5, atol=1e-6)
    sure, other = torch.tensor([0.0, -math.inf]), torch.tensor([-math.inf, 0.0])
    assert divergence(sure, sure).item() == 0.0
    assert divergence(sure, other).item() == math.inf


def test_a_row_is_stable_after_two_quiet_steps_in_a_row() -> None:
    quiet = torch.tensor([[0.0, 0.0]]).log_softmax(-1)
    other = torch.tensor([[3.0, 0.0]]).log_softmax(-1)
    state, seen = Stability.start(3, 2, "cpu"), []
    for log_p in (quiet, quiet, quiet, other, other, other):
        with no_host_sync():
            stable, state = state.update(log_p, whole(1), 0.01)
        assert not stable[0] and not stable[2]
        seen.append(bool(stable[1]))
    # The first step has nothing to compare with; the fourth moved.
    assert seen == [False, False, True, False, False, True]


def test_a_row_left_out_begins_anew_and_states_share_no_memory() -> None:
    log_p = torch.zeros(1, 4).log_softmax(-1)
    state = Stability.start(2, 4, "cpu")
    for _ in range(3):
        stable, state = state.update(log_p, whole(0), 0.01)
    assert stable[0]
    before = state
    stable, state = state.update(log_p, whole(1), 0.01)
    assert not stable.any()
    assert before.quiet_steps.tolist() == [2, 0]
    seen = []
    for _ in range(3):
        stable, state = state.update(log_p, whole(0), 0.01)
        seen.append(bool(stable[0]))
    assert seen == [False, False, True]

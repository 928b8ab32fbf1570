from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceagent.backends import QualityCurve, StepPlan
from voiceagent.budget import BudgetController, BudgetSettings, Cost, CostModel, Stage, TurnRequest

EXACT = {
    Stage.ASR: Cost(0.0, 0.0),
    Stage.PREFILL: Cost(0.02, 0.02),
    Stage.STEP: Cost(0.01, 0.01),
    Stage.TTS: Cost(0.03, 0.03),
    Stage.TRANSPORT: Cost(0.0, 0.0),
}


def controller(**settings: float) -> BudgetController:
    return BudgetController(BudgetSettings(**settings), CostModel(EXACT))  # type: ignore[arg-type]


def request(now: float = 0.4, target_s: float = 0.5, **changes: float) -> TurnRequest:
    values = {"now": now, "speech_end": 0.0, "target_s": target_s, "prompt_tokens": 20.0, "canvas_width": 32}
    return TurnRequest(**{**values, **changes})  # type: ignore[arg-type]


def test_the_first_clause_gets_the_steps_that_fit_before_its_deadline_at_p95() -> None:
    grant = controller().plan_turn(request(now=0.35))
    # 0.5 target - 0.35 gone - 0.02 prefill - 0.03 speech = 0.10 s: ten steps of 10 ms, less one rounding of the float.
    assert grant.plan.steps_first in (9, 10)
    assert grant.plan.first_deadline == pytest.approx(0.47)
    assert grant.is_on_time


def test_a_deadline_that_is_gone_still_gets_the_floor_and_says_so() -> None:
    grant = controller(min_steps=3).plan_turn(request(now=2.0))
    assert grant.plan.steps_first == 3
    assert not grant.is_on_time
    assert "floor" in grant.reason
    assert grant.plan.first_deadline == pytest.approx(2.0 + 0.02 + 3 * 0.01), (
        "time for the floor, not a deadline in the past"
    )
    assert controller(min_steps=3).replan_first(grant.plan, now=9.0, step=1) is None, "a late step does not undercut it"


def test_never_more_steps_than_the_curve_says_still_help() -> None:
    planner = controller()
    planner.curve = QualityCurve((32,), (1, 2, 4, 8, 16), ((0.5, 0.8, 0.95, 0.96, 0.9601),))
    assert planner.useful_steps(32) == 8
    assert planner.plan_turn(request(target_s=5.0)).plan.steps_first == 8


def test_a_curve_that_dips_does_not_hide_a_later_gain() -> None:
    planner = controller()
    planner.curve = QualityCurve((32,), (1, 2, 4, 8), ((0.5, 0.8, 0.79, 0.95),))
    assert planner.useful_steps(32) == 8


def test_the_rest_has_until_the_queue_runs_dry() -> None:
    planner = controller(max_steps=50)
    plan = planner.plan_turn(request()).plan
    rest = planner.plan_rest(plan, now=0.5, dry_at=0.735)
    assert rest.steps_rest == 20
    assert rest.rest_deadline == pytest.approx(0.705)
    assert planner.plan_rest(plan, now=0.5, dry_at=0.5).steps_rest == planner.settings.min_steps


def test_a_late_step_shortens_the_plan_but_always_leaves_one_that_commits() -> None:
    planner = controller()
    plan = StepPlan(32, 10, 10, 0.9, first_deadline=1.0)
    assert planner.replan_first(plan, now=0.85, step=2) is None
    shorter = planner.replan_first(plan, now=0.965, step=2)
    assert shorter is not None and shorter.steps_first == 5
    late = planner.replan_first(plan, now=3.0, step=2)
    assert late is not None and late.steps_first == 3
    assert planner.replan_first(plan, now=3.0, step=10) is None


def test_costs_are_learned_as_quantiles_of_recent_times() -> None:
    costs = CostModel(window=100)
    for value in range(1, 101):
        costs.observe(Stage.STEP, value / 1000, size=32)
    assert costs.predict(Stage.STEP, 32) == Cost(0.050, 0.095)
    for _ in range(100):
        costs.observe(Stage.STEP, 0.2, size=32)
    assert costs.predict(Stage.STEP, 32) == Cost(0.2, 0.2), "a machine that became slow is believed"


def test_an_unseen_size_borrows_from_its_neighbour_on_the_slow_side() -> None:
    costs = CostModel()
    costs.observe(Stage.STEP, 0.01, size=32)
    assert costs.predict(Stage.STEP, 128).p95 == pytest.approx(0.04)
    assert costs.predict(Stage.STEP, 8).p95 == pytest.approx(0.01)


@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf])
def test_an_impossible_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        CostModel().observe(Stage.TTS, seconds)


@pytest.mark.parametrize("bad", [{"min_steps": 0}, {"min_steps": 9, "max_steps": 8}, {"threshold": 0.0}])
def test_settings_that_cannot_work_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        BudgetSettings(**bad)  # type: ignore[arg-type]


@given(
    now=st.floats(0.0, 10.0),
    target=st.floats(0.05, 30.0),
    step=st.floats(0.0, 2.0),
    tokens=st.floats(0, 4000),
    drafts=st.integers(1, 64),
)
def test_a_plan_is_always_between_the_floor_and_the_ceiling(
    now: float, target: float, step: float, tokens: float, drafts: int
) -> None:
    planner = controller()
    planner.costs.observe(Stage.STEP, step, size=32)
    grant = planner.plan_turn(request(now, target, prompt_tokens=tokens, active_drafts=drafts))
    assert planner.settings.min_steps <= grant.plan.steps_first <= planner.settings.max_steps
    assert grant.plan.steps_rest >= 1


def test_replayed_turns_meet_their_deadlines_at_least_as_often_as_p95_promises() -> None:
    """The controller against log-normal step times: it may only spend what fits at p95."""
    rng = random.Random(5)
    planner = BudgetController(BudgetSettings(max_steps=64), CostModel(EXACT))
    met = granted = 0
    turns = 400
    for index in range(turns):
        plan = planner.plan_turn(request(now=0.35)).plan
        assert plan.first_deadline is not None
        now, step = 0.35 + 0.02, 0
        while step < plan.steps_first:
            cost = 0.008 * math.exp(rng.gauss(0.0, 0.25))
            planner.costs.observe(Stage.STEP, cost, size=32)
            now, step = now + cost, step + 1
            plan = planner.replan_first(plan, now=now, step=step) or plan
        if index >= 50:
            met += now <= plan.first_deadline + 1e-9
            granted += step
    assert met / (turns - 50) >= 0.95
    assert granted / (turns - 50) >= 4, "and it does not buy punctuality by doing nothing"

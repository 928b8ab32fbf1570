from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voiceagent.backends import QualityCurve, StepPlan
from voiceagent.budget import YIELD_MARGIN_S, BudgetController
from voiceagent.budget_load import MEMORY_S, Admission
from voiceagent.budget_margin import MAY_MISS, MOST_S, Margin
from voiceagent.budget_terms import BudgetSettings, TurnRequest, WhenLate, Written
from voiceagent.costs import Cost, CostModel, Stage
from voiceagent.foresight import Foresight, Need

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


# --- policies ---------------------------------------------------------------------------------------------------------

CURVE = QualityCurve((16, 32), (1, 2, 4, 8, 16), ((0.3, 0.6, 0.9, 0.97, 1.0), (0.2, 0.4, 0.7, 0.9, 1.0)))


def late_request(when_late: WhenLate, now: float = 0.42, **changes: object) -> TurnRequest:
    return replace(request(now=now), when_late=when_late, **changes)  # type: ignore[arg-type]


def test_what_happens_when_the_target_cannot_be_met_is_the_agents_choice() -> None:
    planner = controller(min_steps=2, wanted_quality=0.97)
    planner.curve = CURVE
    # 0.5 - 0.42 gone - 0.02 prefill - 0.03 speech: three steps fit, and 0.97 of the quality wants eight.
    fewer = planner.plan_turn(late_request(WhenLate.FEWER_STEPS))
    assert (fewer.plan.steps_first, fewer.is_on_time, fewer.late) == (3, True, None)
    later = planner.plan_turn(late_request(WhenLate.ANSWER_LATER))
    assert (later.plan.steps_first, later.is_on_time, later.late) == (8, False, WhenLate.ANSWER_LATER)
    assert later.plan.first_deadline == pytest.approx(2.0 - 0.03), "the caller's patience, less the voice"
    assert later.quality == pytest.approx(0.97) and fewer.quality < 0.8


def test_a_later_answer_is_given_while_patience_lasts_and_not_below_the_floor() -> None:
    planner = controller(min_steps=2, wanted_quality=0.97, patience_s=0.52)
    planner.curve = CURVE
    assert planner.plan_turn(late_request(WhenLate.ANSWER_LATER)).plan.steps_first == 5
    assert planner.plan_turn(late_request(WhenLate.ANSWER_LATER, now=3.0)).plan.steps_first == 2


def test_a_later_answer_keeps_its_steps_whatever_was_slow_until_patience_ends() -> None:
    planner = controller(min_steps=2, wanted_quality=0.97, patience_s=2.0)
    planner.curve = CURVE
    plan = planner.plan_turn(late_request(WhenLate.ANSWER_LATER)).plan
    for now, what in ((0.45, "as expected"), (0.6, "a slow step"), (1.5, "a late prefill"), (1.9, "seven just fit")):
        assert planner.replan_first(plan, now=now, step=1) is None, what
    shorter = planner.replan_first(plan, now=1.94, step=1)
    assert shorter is not None and shorter.steps_first == 1 + 3, "three fit in what patience has left"
    last = planner.replan_first(plan, now=9.0, step=1)
    assert last is not None and last.steps_first == 2


def test_an_acknowledgement_is_the_shortest_that_lasts_until_the_answer() -> None:
    planner = controller(min_steps=2, wanted_quality=0.97)
    planner.curve = CURVE
    planner.costs = CostModel({**EXACT, Stage.STEP: Cost(0.1, 0.1)})
    texts = ("Let me have a look, one moment please.", "Sure.", "One moment please.")
    grant = planner.plan_turn(late_request(WhenLate.ACKNOWLEDGE, acknowledgements=texts))
    assert grant.acknowledgement == "One moment please.", "0.85 s of answer to come, and 'Sure.' lasts 0.3 s"
    assert grant.is_on_time, "something is heard before the target"
    assert grant.plan.steps_first >= 8
    assert grant.plan.first_deadline == pytest.approx(0.42 + 0.03 + 18 * 0.06 - 0.03), (
        "the answer follows what is said first"
    )
    one = planner.plan_turn(late_request(WhenLate.ACKNOWLEDGE, acknowledgements=("Sure.",)))
    assert one.acknowledgement == "Sure.", "the longest there is"


def test_nothing_is_acknowledged_when_the_answer_is_hardly_late_or_not_spoken() -> None:
    planner = controller(min_steps=2, wanted_quality=0.97)
    planner.curve = CURVE
    assert planner.plan_turn(late_request(WhenLate.ACKNOWLEDGE, acknowledgements=("Sure.",))).acknowledgement is None
    typed = late_request(WhenLate.ACKNOWLEDGE, now=9.0, acknowledgements=("Sure.",), needs_audio=False)
    assert planner.plan_turn(typed).acknowledgement is None
    assert planner.plan_turn(late_request(WhenLate.ACKNOWLEDGE, now=9.0)).acknowledgement is None, (
        "there is nothing to say"
    )


# --- again while it runs ----------------------------------------------------------------------------------------------


def test_quick_steps_are_given_back_unless_the_plan_is_late_already() -> None:
    planner = controller()
    plan = StepPlan(32, 6, 10, 0.9, first_deadline=1.0)
    grown = planner.replan_first(plan, now=0.9, step=2, may_grow=True)
    assert grown is not None and grown.steps_first == 12
    assert planner.replan_first(plan, now=0.9, step=2) is None


def test_another_caller_shortens_the_plan_at_the_next_step() -> None:
    planner = controller()
    for _ in range(10):
        planner.costs.observe(Stage.STEP, 0.01, 32, company=1)
        planner.costs.observe(Stage.STEP, 0.02, 32, company=2)
    plan = StepPlan(32, 10, 10, 0.9, first_deadline=1.0)
    assert planner.replan_first(plan, now=0.9, step=0, active_drafts=1) is None
    beside = planner.replan_first(plan, now=0.9, step=0, active_drafts=2)
    assert beside is not None and beside.steps_first == 5


def test_a_first_clause_behind_something_spoken_is_due_when_that_ends() -> None:
    planner = controller(max_steps=50)
    plan = StepPlan(32, 6, 10, 0.9, first_deadline=1.0)
    behind = planner.replan_first(plan, now=0.9, step=2, may_grow=True, dry_at=1.23)
    assert behind is not None and behind.first_deadline == pytest.approx(1.2) and behind.steps_first == 32


def test_the_rest_is_planned_again_after_each_step() -> None:
    planner = controller(max_steps=50)
    plan = planner.plan_rest(planner.plan_turn(request()).plan, now=0.5, dry_at=0.735)
    assert planner.replan_rest(plan, now=0.51, steps_done=1) is None, "a step as expected changes nothing"
    late = planner.replan_rest(plan, now=0.6, steps_done=1)
    assert late is not None and late.steps_rest == 11
    over = planner.replan_rest(plan, now=2.0, steps_done=5)
    assert over is not None and over.steps_rest == 6, "one step is always left: it commits everything"
    assert planner.replan_rest(planner.plan_turn(request()).plan, now=0.5, steps_done=1) is None, "nothing plays yet"


# --- company and load -------------------------------------------------------------------------------------------------


def test_where_company_is_dear_the_rest_gives_way_until_its_floor_needs_the_engine() -> None:
    planner = controller(max_steps=20)
    for _ in range(10):
        planner.costs.observe(Stage.STEP, 0.01, 32, company=1)
        planner.costs.observe(Stage.STEP, 0.016, 32, company=2)
    planner.first_drafts, planner.running_drafts = 1, 3
    assert planner.company(32, is_first=True) == 1 and planner.company(32, is_first=False) == 3
    plan = planner.plan_rest(StepPlan(32, 6, 10, 0.9), now=0.0, dry_at=2.03)
    assert plan.yields_until == pytest.approx(2.0 - 3 * 0.01 - YIELD_MARGIN_S)
    cheap = controller()
    for _ in range(10):
        cheap.costs.observe(Stage.STEP, 0.01, 32, company=1)
        cheap.costs.observe(Stage.STEP, 0.0105, 32, company=2)
    cheap.first_drafts, cheap.running_drafts = 1, 3
    assert cheap.company(32, is_first=True) == 3
    assert cheap.plan_rest(StepPlan(32, 6, 10, 0.9), now=0.0, dry_at=2.03).yields_until is None


def test_a_first_clause_with_room_lets_the_rest_of_another_reply_share_its_forwards() -> None:
    planner = controller(max_steps=10)
    for _ in range(10):
        planner.costs.observe(Stage.STEP, 0.01, 32, company=1)
        planner.costs.observe(Stage.STEP, 0.016, 32, company=2)
    roomy = planner.plan_turn(request(target_s=2.0)).plan
    assert (roomy.steps_first, roomy.first_guests) == (10, 1)
    late = planner.replan_first(roomy, now=roomy.first_deadline - 0.1, step=2)
    assert late is not None and (late.steps_first, late.first_guests) == (10, 0), (
        "eight steps fit alone, not beside another"
    )
    again = planner.replan_first(late, now=roomy.first_deadline - 0.1, step=6)
    assert again is not None and again.first_guests == 1, "four fit either way"
    cheap = controller(max_steps=10).plan_turn(request(target_s=2.0)).plan
    assert cheap.first_guests == 0, "where company is cheap nobody gives way"


def test_a_first_clause_that_is_written_already_needs_no_steps_to_be_on_time() -> None:
    planner = controller(min_steps=6)
    late = planner.plan_turn(request(now=0.45))
    assert not late.is_on_time and late.late is WhenLate.FEWER_STEPS
    written = planner.plan_turn(request(now=0.45, prompt_tokens=0.0, written=Written(4, 4)))
    assert written.is_on_time and written.late is None and written.acknowledgement is None
    assert written.plan.steps_first == 4 and "written already, in 4 steps" in written.reason
    assert not planner.plan_turn(request(now=0.48, prompt_tokens=0.0, written=Written(4, 4))).is_on_time, (
        "speech takes 30 ms"
    )
    for _ in range(40):
        planner.plan_turn(request(now=0.48, active_drafts=9, written=Written(4, 4)))
    assert planner.room.admission.refusal(0.48) is None, "what needs no engine is no reason to refuse callers"
    for _ in range(40):
        planner.plan_turn(request(now=0.7, written=Written(4, 4), recognition_wait_s=0.1))
    assert planner.room.admission.refusal(0.7) is None, "alone it had been late as well"
    for _ in range(40):
        planner.plan_turn(request(now=0.7, written=Written(4, 4), recognition_wait_s=0.4))
    assert planner.room.admission.refusal(0.7) is not None, "others kept the recogniser from it"


def test_steps_that_a_draft_had_before_the_turn_was_over_count_and_take_no_time() -> None:
    planner = controller(min_steps=4)
    nothing, begun = planner.plan_turn(request(now=0.43)), planner.plan_turn(request(now=0.43, steps_had=2))
    assert not nothing.is_on_time and nothing.plan.steps_first == 4
    assert begun.is_on_time and begun.plan.steps_first == 4, "two fit, two were there"
    assert begun.reason.startswith("2 more steps fit") and begun.prediction.steps_had == 2
    late = planner.plan_turn(request(now=2.0, steps_had=3))
    assert late.plan.steps_first == 4 and late.plan.first_deadline == pytest.approx(2.0 + 0.02 + 0.01)
    beyond = planner.plan_turn(request(now=2.0, steps_had=9))
    assert beyond.plan.steps_first == 10, "its clause is not there: it needs one step more at least"
    for _ in range(40):
        planner.plan_turn(request(now=0.43, active_drafts=9, steps_had=3))
    assert planner.room.admission.refusal(0.43) is None, "one more step fits in any company"


def test_the_quality_of_a_clause_that_is_written_already_is_that_of_the_steps_it_took() -> None:
    planner = controller(min_steps=2)
    planner.curve = CURVE
    kept = planner.plan_turn(request(now=0.45, prompt_tokens=0.0, written=Written(0, 16)))
    assert kept.plan.steps_first == 1 and kept.quality == 1.0 and "in 16 steps" in kept.reason and kept.is_written
    assert planner.plan_turn(request(written=Written(2, 2))).quality == pytest.approx(0.6)
    assert planner.plan_turn(request(written=Written(3, 3, is_sure=True))).quality is None, (
        "sure before its steps were over"
    )
    assert planner.plan_turn(request(written=Written(0, 0))).quality is None, "words of a reply that was not heard"
    assert planner.plan_turn(request(written=Written(1, 1))).reason.endswith("in 1 step")


def test_the_margin_takes_steps_but_none_of_those_that_are_wanted() -> None:
    planner = controller(min_steps=4, max_steps=50)
    free = planner.plan_turn(request(now=0.2))
    planner.margin.seconds = 0.05
    careful = planner.plan_turn(request(now=0.2))
    assert free.plan.first_deadline is not None and careful.plan.first_deadline is not None
    assert careful.plan.first_deadline == pytest.approx(free.plan.first_deadline - 0.05)
    assert 4 < careful.plan.steps_first < free.plan.steps_first and careful.is_on_time
    costs = planner.predict(request())
    tight = 0.4 + costs.prefill.p95 + costs.tts.p95 + costs.transport.p95 + 4.5 * costs.step.p95
    floor = planner.plan_turn(request(target_s=tight))
    assert floor.plan.steps_first == 4 and floor.is_on_time, (
        "what fits without a margin is not called late because of it"
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.02), st.floats(0.005, 0.05))
def test_the_margin_grows_until_few_promises_are_broken(seed: int, shift_s: float, scale_s: float) -> None:
    rng, margin = random.Random(seed), Margin()
    late = []
    for _ in range(6000):
        is_late = rng.gauss(shift_s - 0.02, scale_s / 2) > margin.seconds
        margin.answered(late=is_late)
        late.append(is_late)
    assert 0.0 <= margin.seconds <= MOST_S
    assert sum(late[1000:]) / 5000 < 2 * MAY_MISS


def test_the_margin_of_a_machine_that_is_always_late_is_bounded_and_goes_again() -> None:
    margin = Margin()
    for _ in range(100):
        margin.answered(late=True)
    assert margin.seconds == MOST_S
    for _ in range(1200):
        margin.answered(late=False)
    assert margin.seconds == 0.0


def test_under_load_steps_shrink_to_the_floor_and_come_back() -> None:
    planner = controller(min_steps=4, max_steps=20)
    steps = []
    for second in range(60):
        busy_s = 0.3 if second < 20 else 0.95 if second < 40 else 0.1
        planner.room.load.worked(float(second), busy_s)
        steps.append(planner.plan_turn(request(now=float(second), target_s=100.0)).plan.steps_first)
    assert steps[19] == 20 and steps[39] == 4 and steps[59] == 20


def test_callers_are_refused_while_company_leaves_no_room_for_the_floor() -> None:
    planner = controller(min_steps=4)
    for _ in range(10):
        planner.costs.observe(Stage.STEP, 0.01, 32, company=1)
        planner.costs.observe(Stage.STEP, 0.08, 32, company=8)
    for _ in range(10):
        planner.plan_turn(request(now=0.38, active_drafts=1))
    assert planner.room.admission.refusal(1.0) is None
    for _ in range(10):
        planner.plan_turn(request(now=0.38, active_drafts=8))
    reason = planner.room.admission.refusal(1.0)
    assert reason is not None and "10 of the last 20" in reason
    assert planner.room.admission.refusal(40.0) is None, "what was half a minute ago says nothing about now"


def test_a_slow_recogniser_is_no_reason_to_refuse_callers() -> None:
    planner = controller(min_steps=4)
    for _ in range(20):
        planner.plan_turn(request(now=3.0))
    assert planner.room.admission.refusal(3.0) is None


def test_waiting_for_a_recogniser_that_others_keep_busy_is_company_too() -> None:
    planner = controller(min_steps=4)
    for _ in range(10):
        assert planner.recognised(0.02, company=1) == 0.0
    waits = [planner.recognised(0.9, company=6) for _ in range(10)]
    assert waits == [pytest.approx(0.88)] * 10, "alone it would have taken 20 ms"
    for _ in range(10):
        planner.plan_turn(request(now=1.2, recognition_wait_s=waits[-1]))
    reason = planner.room.admission.refusal(1.2)
    assert reason is not None and "10 of the last 10" in reason


def test_a_recogniser_that_is_slow_alone_is_nobody_elses_fault() -> None:
    planner = controller(min_steps=4)
    for _ in range(10):
        planner.recognised(0.9, company=1)
    assert planner.recognised(1.0, company=6) == pytest.approx(0.1)
    assert controller().recognised(0.9, company=6) == 0.0, "nobody knows what it takes alone"


def test_turns_that_waited_while_the_event_loop_was_held_turn_nobody_away() -> None:
    planner = controller(min_steps=4)
    for _ in range(10):
        planner.recognised(0.05, company=1)

    def answered(held_s: float) -> None:
        """A turn that ended beside two others', whose words were known 2 s later."""
        waited_s = planner.recognised(2.0, company=3, held_s=held_s)
        planner.plan_turn(request(now=2.0, recognition_wait_s=waited_s))

    for _ in range(10):
        answered(held_s=1.95)
    assert planner.room.refusal(2.0) is None
    for _ in range(10):
        answered(held_s=0.0)
    refusal = planner.room.refusal(2.0)
    assert refusal is not None and refusal.code == "engine_full", "the others kept the recogniser from it"


def with_processors(callers: int, **settings: float) -> BudgetController:
    planner = controller(**settings)
    planner.room.foresight = Foresight(cores=2.0, guess=Need(0.1, 0.0), callers=callers)
    return planner


def test_the_door_closes_before_processors_are_full_whoever_is_on_time() -> None:
    assert with_processors(14).room.refusal(0.0) is None
    refusal = with_processors(16).room.refusal(0.0)
    assert refusal is not None and refusal.code == "processors_full" and "17 callers" in refusal.reason


def test_an_engine_that_is_full_all_the_same_is_the_reason() -> None:
    planner = with_processors(4)
    for _ in range(20):
        planner.room.admission.count(1.0, is_crowded=True)
    refusal = planner.room.refusal(1.0)
    assert refusal is not None and refusal.code == "engine_full"


def test_full_processors_take_steps_from_everybody_before_anybody_is_refused() -> None:
    steps = [with_processors(callers, min_steps=2).affordable_steps(32, 0.0) for callers in (1, 9, 11, 13, 16)]
    assert steps == sorted(steps, reverse=True)
    assert steps[:2] == [24, 24] and 2 < steps[3] < steps[2] < 24 and steps[4] == 2
    assert with_processors(9).room.busy(0.0) == ""
    assert with_processors(11).room.busy(0.0) == ", with the processors 69% full"
    assert with_processors(16).may_speculate(0.0), "what is written early is not waited for later"


def test_what_fewer_steps_would_have_saved_is_told_apart() -> None:
    planner = controller(min_steps=2)
    for done in range(5):
        planner.stepped(0.0, 0.02, 0.02, 32, batch=2, steps_done=done)
    assert planner.spare_s == pytest.approx(3 * 0.01)
    planner.speculated(0.0, 0.5)
    assert planner.spare_s == pytest.approx(0.53), "nobody had waited for an early draft"


def test_asking_again_for_what_was_written_is_work_of_the_engine() -> None:
    planner = controller()
    planner.rated(0.0, 2, 32, is_early=False)
    step_s = planner.costs.predict(Stage.STEP, 32).p50
    assert planner.room.load.share(0.0) == pytest.approx(2 * step_s / MEMORY_S)
    planner.rated(0.0, 2, 32, is_early=True)
    assert planner.speculation.share(0.0) == pytest.approx(2 * step_s / MEMORY_S)


def test_the_door_does_not_flap() -> None:
    admission = Admission()
    for at in range(8):
        admission.count(float(at), is_crowded=at < 2)
    assert admission.refusal(8.0) is not None
    for at in range(8, 12):
        admission.count(float(at), is_crowded=False)
    assert admission.refusal(12.0) is not None, "two of twelve would not have closed it, and do not open it"
    for at in range(12, 24):
        admission.count(float(at), is_crowded=False)
    assert admission.refusal(24.0) is None


@given(
    step_s=st.floats(0.001, 0.3),
    room_s=st.floats(-1.0, 2.0),
    floor=st.integers(1, 8),
    when_late=st.sampled_from(list(WhenLate)),
)
def test_a_plan_that_says_it_is_on_time_fits_at_p95(
    step_s: float, room_s: float, floor: int, when_late: WhenLate
) -> None:
    planner = BudgetController(BudgetSettings(min_steps=floor), CostModel({**EXACT, Stage.STEP: Cost(step_s, step_s)}))
    planner.curve = CURVE
    asked = replace(request(now=0.0), target_s=room_s + 0.05, when_late=when_late, acknowledgements=())
    grant = planner.plan_turn(asked)
    assert floor <= grant.plan.steps_first <= 24
    assert grant.plan.first_deadline is not None
    ends = 0.02 + grant.plan.steps_first * step_s
    assert ends <= grant.plan.first_deadline + 1e-6, "no deadline takes away what was granted"
    if grant.is_on_time:
        assert ends <= room_s + 0.02 + 1e-6

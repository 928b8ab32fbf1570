"""When a reply is drafted before its turn is over, and how what came of it is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from voiceagent.backends import DraftRequest, PromptTurn, StepPlan
from voiceagent.budget import BudgetController
from voiceagent.budget_load import MEMORY_S
from voiceagent.budget_terms import BudgetSettings
from voiceagent.speculation import (
    LATE_S,
    LONG_PAUSE_S,
    SETTLE_S,
    UNLIKELY,
    Outcome,
    Pause,
    Speculation,
    asks_alike,
    heard_alike,
    wants_draft,
)
from voiceagent.tools import ToolSpec

PAUSE = Pause("a mocha please", silence_s=0.1, stable_s=0.1)
PLAN = StepPlan(32, 4, 4, 0.9)


# --- when ---------------------------------------------------------------------------------------------------------------


def test_words_that_stand_in_a_pause_are_drafted_on() -> None:
    assert wants_draft(PAUSE, None)


def test_nothing_is_drafted_on_no_words_or_while_they_change() -> None:
    assert not wants_draft(replace(PAUSE, words=" "), None)
    assert not wants_draft(replace(PAUSE, stable_s=SETTLE_S / 2), None)


def test_a_draft_is_revised_when_the_words_change_and_left_alone_while_they_do_not() -> None:
    assert not wants_draft(PAUSE, "A mocha, please.")
    assert wants_draft(PAUSE, "a mocha")


def test_a_judge_of_the_words_is_waited_for_but_not_for_long() -> None:
    asking = replace(PAUSE, is_judged=True)
    assert not wants_draft(asking, None)
    assert wants_draft(replace(asking, silence_s=LATE_S), None)


def test_words_that_will_go_on_are_drafted_on_in_a_long_pause_only() -> None:
    unfinished = replace(PAUSE, words="i'd like a", completeness=UNLIKELY / 2)
    assert not wants_draft(unfinished, None)
    assert wants_draft(replace(unfinished, silence_s=LONG_PAUSE_S), None)
    assert wants_draft(replace(unfinished, completeness=UNLIKELY), None)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("i'd like a latte", "I'd like a latte.", True),
        ("a latte , please", "A latte, please!", True),
        ("a latte", "a latte please", False),
        ("that is 4.50", "that is 4 50", False),
        ("call 555-1234", "call 5551234", False),
        ("take off 20", "take off 20%", False),
        ("it has 5", "it has -5", False),
        ("10-", "10", True),
        ("I have $5", "I have 5", False),
        ("C", "C++", False),
        ("co-op", "Co op.", True),
        ("", "  ", True),
    ],
)
def test_transcripts_are_compared_by_their_words(one: str, other: str, alike: bool) -> None:
    assert heard_alike(one, other) is alike


def request(words: str = "a mocha please", **changes: object) -> DraftRequest:
    turns = (PromptTurn("system", "You take orders."), PromptTurn("user", words), PromptTurn("note", "order: mocha"))
    return replace(DraftRequest("call", turns, PLAN, must_say=("mocha",)), **changes)  # type: ignore[arg-type]


def test_requests_are_alike_when_the_model_is_told_the_same_whatever_the_plan() -> None:
    assert asks_alike(request(), request("A mocha, please.", plan=replace(PLAN, steps_first=9, is_speculative=True)))
    for other in (
        request("a mocha"),
        request(must_say=("large mocha",)),
        request(tools=(ToolSpec("book", "books"),)),
        request(temperature=0.5),
        request(plan=replace(PLAN, canvas_width=16)),
        replace(request(), turns=(*request().turns[:2], PromptTurn("note", "Order: mocha"))),
    ):
        assert not asks_alike(request(), other)


# --- whether there is time ------------------------------------------------------------------------------------------------


def test_nothing_is_drafted_early_while_somebody_waits_for_a_first_clause() -> None:
    budget = BudgetController()
    assert budget.may_speculate(0.0)
    budget.first_drafts = 1
    assert not budget.may_speculate(0.0)


def test_early_drafts_have_a_share_of_the_engine_and_get_it_back_with_time() -> None:
    budget = BudgetController(BudgetSettings(speculation_share=0.2))
    budget.speculated(0.0, 0.21 * MEMORY_S)
    assert not budget.may_speculate(0.0)
    assert budget.may_speculate(1.0)
    assert budget.room.load.share(0.0) == 0.0, "what nobody waits for takes no steps from those who do"


def test_nothing_is_drafted_early_on_an_engine_that_is_busy() -> None:
    budget = BudgetController()
    budget.room.load.worked(0.0, 0.7 * MEMORY_S)
    assert not budget.may_speculate(0.0)


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="speculation_share = 0"):
        BudgetSettings(speculation_share=0.0)


# --- what came of it ------------------------------------------------------------------------------------------------------


def drafted(steps: int, clause_at: int) -> Speculation:
    told = Speculation()
    told.began()
    for step in range(1, steps + 1):
        told.stepped(has_clause=step >= clause_at)
    return told


def test_a_draft_that_is_released_as_it_stands_is_a_hit_that_costs_no_step_more() -> None:
    told = drafted(8, 3)
    told.release(is_hit=True)
    told.stepped(has_clause=True)
    assert (told.outcome, told.early_steps, told.late_steps, told.wasted_steps) == (Outcome.HIT, 8, 0, 0)
    assert told.cold_steps == told.saved_steps == 3


def test_a_hit_that_has_no_clause_yet_waits_for_the_steps_that_are_left() -> None:
    told = drafted(2, 9)
    told.release(is_hit=True)
    told.stepped(has_clause=False)
    told.stepped(has_clause=True)
    told.stepped(has_clause=True)
    assert told.late_steps == 2 and told.cold_steps is None


def test_a_draft_that_is_revised_at_the_end_is_repaired_and_asking_for_its_words_is_late() -> None:
    told = drafted(8, 5)
    told.release(is_hit=False)
    told.revised(6, 2)
    told.stepped(has_clause=True)
    assert (told.outcome, told.late_steps, told.wasted_steps, told.saved_steps) == (Outcome.REPAIRED, 3, 0, 2)


def test_a_draft_of_which_nothing_fits_is_wasted_with_all_its_steps() -> None:
    told = drafted(8, 5)
    told.release(is_hit=False)
    told.revised(0, 1)
    for step in range(1, 6):
        told.stepped(has_clause=step == 5)
    assert (told.outcome, told.late_steps, told.wasted_steps, told.saved_steps) == (Outcome.WASTED, 6, 8, 0)


def test_a_drafter_that_says_nothing_of_what_it_kept_kept_nothing() -> None:
    told = drafted(4, 3)
    told.release(is_hit=False)
    told.stepped(has_clause=True)
    assert (told.outcome, told.wasted_steps) == (Outcome.WASTED, 4)


def test_revisions_before_the_end_keep_what_the_steps_before_were_worth() -> None:
    told = drafted(4, 3)
    told.revising()
    told.revised(5, 2)
    told.stepped(has_clause=True)
    told.release(is_hit=True)
    assert (told.outcome, told.drafts, told.early_steps, told.wasted_steps) == (Outcome.HIT, 2, 7, 0)
    told = drafted(4, 3)
    told.revising()
    told.revised(0, 1)
    told.stepped(has_clause=True)
    told.release(is_hit=True)
    assert (told.outcome, told.early_steps, told.wasted_steps) == (Outcome.HIT, 6, 5)


def test_a_draft_that_is_dropped_is_wasted_and_the_next_begins_anew() -> None:
    told = drafted(4, 3)
    told.drop()
    told.began()
    told.stepped(has_clause=True)
    told.release(is_hit=True)
    assert (told.outcome, told.drafts, told.early_steps, told.wasted_steps) == (Outcome.HIT, 2, 5, 4)
    assert told.as_json() == {
        "outcome": "hit",
        "drafts": 2,
        "early_steps": 5,
        "wasted_steps": 4,
        "late_steps": 0,
        "cold_steps": 1,
        "saved_steps": 1,
    }


def test_a_turn_whose_draft_was_lost_waits_for_all_its_steps() -> None:
    told = drafted(4, 3)
    told.forgo()
    for step in range(1, 7):
        told.stepped(has_clause=step >= 5)
    assert (told.outcome, told.early_steps, told.wasted_steps, told.late_steps) == (Outcome.WASTED, 4, 4, 5)
    assert told.cold_steps is told.saved_steps is None


def test_a_wasted_draft_saved_nothing_however_short_the_reply_that_followed() -> None:
    told = drafted(8, 5)
    told.release(is_hit=False)
    told.revised(0, 1)
    told.stepped(has_clause=True)
    assert (told.outcome, told.late_steps, told.saved_steps) == (Outcome.WASTED, 2, 0)

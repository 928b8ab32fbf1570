"""Drafts before the end of the turn, in a whole conversation on the manual clock: never heard, never acted on, released or repaired in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.voiceagent.early_line import OTHER, REPLY, SPOKEN, Line, Orders, one_turn, talk
from tests.voiceagent.standins import ScriptedDraft, ScriptedDrafter, ScriptedScorer, silence, tone
from voiceagent.backends import DraftEvent, DraftRequest, DraftStepped
from voiceagent.budget_load import MEMORY_S
from voiceagent.clock import Clock, ManualClock
from voiceagent.costs import CostModel, Stage
from voiceagent.early import SHOWN
from voiceagent.events import (
    ResponseAudio,
    ResponseFinished,
    ResponsePlanned,
    ResponseStepped,
    ResponseText,
    TurnTraced,
)
from voiceagent.explain import explain
from voiceagent.session import SessionSettings, TurnDetection
from voiceagent.tools import ServerTool, ToolCall, ToolSpec


def test_a_reply_drafted_in_the_pause_is_spoken_at_the_endpoint_without_another_step() -> None:
    async def scenario(line: Line) -> None:
        await line.play(tone(0.8), silence(0.3))
        assert line.llm.drafts and line.llm.drafts[-1].is_over
        assert not line.of(ResponseText) and not line.of(ResponseAudio), "nothing is heard before the turn is over"
        await line.play(silence(0.3))
        await line.clock.advance(10.0)

    line = talk(scenario, SPOKEN)
    assert line.said == REPLY
    assert line.speculation["outcome"] == "hit"
    assert line.speculation["late_steps"] == 0 and line.speculation["early_steps"] > 0
    timeline = line.of(TurnTraced)[0].timeline
    assert timeline["steps"] == [] and timeline["missed_deadline"] is None
    shown = [event.step for event in line.of(ResponseStepped)]
    assert shown == list(range(1, line.speculation["early_steps"] + 1)), "how it was written can be seen afterwards"
    assert timeline["plan"]["acknowledgement"] is None  # type: ignore[index]


def test_a_clause_that_was_written_early_is_told_with_the_steps_it_took_and_no_deadline() -> None:
    line = talk(one_turn, SPOKEN)
    timeline = line.of(TurnTraced)[0].timeline
    plan: Any = timeline["plan"]
    assert plan["written_already"] and plan["quality"] is None, "sure after fewer steps than it might have had"
    assert plan["first_deadline_ms"] is None
    assert line.of(ResponsePlanned)[0].plan.first_deadline is None
    (told,) = [sentence for sentence in explain(timeline) if "written already" in sentence]
    assert told == "The first clause is written already, in 1 step: nobody waited for a step of it."
    assert not any("granted" in sentence for sentence in explain(timeline))
    stages: Any = {stage["name"]: stage for stage in timeline["stages"]}  # type: ignore[attr-defined]
    assert stages["denoise_first"]["predicted_p95_ms"] == 0.0, "nothing of it was left to do"
    assert [line.endswith("(it was done already)") for line in explain(timeline) if "writing the first" in line] == [
        True
    ]


class KeepsNothing(ScriptedDrafter):
    def __init__(self, clock: Clock, *texts: str | Exception | ToolCall) -> None:
        super().__init__(clock, *texts)
        self.kept = 0


def test_words_kept_from_an_earlier_draft_count_the_steps_that_wrote_them() -> None:
    heard = ((0.5, "a mocha"), (1.0, "a mocha please"), (9.9, "a mocha please"))
    plan: Any = talk(one_turn, heard, written=(REPLY, OTHER)).of(TurnTraced)[0].timeline["plan"]
    assert "written already, in 2 steps" in plan["reasons"][0], "one of each draft, and eight of ten words were kept"
    nothing: Any = talk(one_turn, heard, written=(REPLY, OTHER), llm=KeepsNothing).of(TurnTraced)[0].timeline["plan"]
    assert "written already, in 1 step" in nothing["reasons"][0]


def test_the_request_that_was_imagined_is_the_one_that_is_asked_at_the_end_and_the_notes_are_heard_once() -> None:
    line = talk(one_turn, SPOKEN)
    assert isinstance(line.notes, Orders) and line.notes.heard == ["A mocha, please."]
    assert line.llm.drafts[-1].request.must_say == ("item 1",)
    assert [turn.text for turn in line.llm.drafts[-1].request.turns if turn.role == "note"] == ["order: 1"]
    assert all(draft.request.plan.is_speculative for draft in line.llm.drafts)
    assert not line.llm.drafts[-1].plans[-1].is_speculative, "the turn's own plan at the end"


def test_words_that_change_in_the_pause_revise_the_draft() -> None:
    line = talk(one_turn, ((0.5, "a mocha"), (1.0, "a mocha please"), (9.9, "a mocha please")))
    assert [draft.request.turns[1].text for draft in line.llm.drafts] == ["a mocha", "a mocha please"]
    assert line.llm.revised == [(line.llm.drafts[0], None)]
    assert line.speculation["outcome"] == "hit" and line.speculation["drafts"] == 2


def test_other_words_at_the_end_repair_the_draft_under_the_turns_own_plan() -> None:
    line = talk(one_turn, ((0.5, "a mocha"), (9.9, "two teas")), written=(REPLY, OTHER))
    assert line.said == OTHER
    assert line.speculation["outcome"] == "repaired"
    assert line.speculation["late_steps"] >= 3, "two forwards ask for the words, and a step follows"
    assert not line.llm.drafts[-1].request.plan.is_speculative
    assert line.of(TurnTraced)[0].timeline["revised"] == {"kept_tokens": 8, "asked_tokens": 10, "forwards": 2}
    shown = line.of(ResponseStepped)
    (stands,) = [event for event in shown if event.step == 0]
    assert stands.kept == (8, 10) and len(stands.canvas) == 8, "what stands is seen, also where no step follows"
    at = shown.index(stands)
    early, late = shown[:at], shown[at:]
    assert [event.step for event in early] == [1, 2, 3, 4], "and how it was written"
    before = [event.early_s or 0.0 for event in early]
    assert before == sorted(before, reverse=True) and before[-1] > 0.1, "the turn went on for a while"
    assert [event.step for event in late] == [0, 1, 2, 3, 4] and all(event.early_s is None for event in late)


def test_a_draft_that_was_kept_whole_shows_how_it_was_written_before_the_words_changed() -> None:
    heard = ((0.5, "a mocha"), (1.0, "a mocha please"), (9.9, "a mocha please"))
    shown = talk(one_turn, heard, written=(REPLY, OTHER)).of(ResponseStepped)
    assert [(event.step, event.kept) for event in shown][4] == (0, (8, 10))
    before = [event.early_s for event in shown]
    assert None not in before and before == sorted(before, key=lambda s: -(s or 0.0))


def test_only_so_many_canvases_of_a_caller_who_thinks_aloud_are_shown() -> None:
    words = [(0.3 + 0.1 * n, "a mocha" + " and" * n) for n in range(12)]

    async def scenario(line: Line) -> None:
        await line.play(
            tone(0.4), silence(0.15), tone(0.2), silence(0.15), tone(0.2), silence(0.15), tone(0.2), silence(0.6)
        )
        await line.clock.advance(20.0)

    line = talk(
        scenario, [*words, (9.9, "two teas")], settings=SessionSettings(turn_detection=TurnDetection(silence_s=0.5))
    )
    assert line.speculation["drafts"] > 4
    shown = [event for event in line.of(ResponseStepped) if event.early_s is not None]
    assert len(shown) == SHOWN


def test_a_draft_of_which_nothing_fits_is_wasted_and_the_reply_is_written_all_the_same() -> None:
    class Nothing(ScriptedDrafter):
        kept = 0

        def __init__(self, clock: ManualClock, *texts: str | Exception | ToolCall) -> None:
            super().__init__(clock, *texts)
            self.kept = 0

    line = talk(one_turn, ((0.5, "a mocha"), (9.9, "two teas")), written=(REPLY, OTHER), llm=Nothing)
    assert line.said == OTHER
    assert line.speculation["outcome"] == "wasted"
    assert line.speculation["wasted_steps"] == line.speculation["early_steps"] > 0
    assert all(event.early_s is None for event in line.of(ResponseStepped)), "how that was written is nothing to see"


def test_a_draft_that_is_not_finished_at_the_end_goes_on_where_it_is() -> None:
    class Slow(ScriptedDrafter):
        def __init__(self, clock: ManualClock, *texts: str | Exception | ToolCall) -> None:
            super().__init__(clock, *texts, steps=8, step_s=0.06)

    line = talk(one_turn, SPOKEN, llm=Slow)
    assert line.said == REPLY and len(line.llm.drafts) == 1
    assert line.speculation["outcome"] == "hit"
    timeline: Any = line.of(TurnTraced)[0].timeline
    numbers = [step["step"] for step in timeline["steps"]]
    assert numbers and numbers[0] > 1 and numbers[-1] == 8, "the steps before the end were not the turn's"


def test_of_a_clause_that_was_begun_early_the_steps_that_are_left_are_planned_and_predicted() -> None:
    class ByClause(ScriptedDrafter):
        def __init__(self, clock: ManualClock, *texts: str | Exception | ToolCall) -> None:
            super().__init__(clock, *texts, steps=8, step_s=0.15)

        def start(self, request: DraftRequest, on_event: Callable[[DraftEvent], None]) -> ScriptedDraft:
            def tell(event: DraftEvent) -> None:
                is_open = isinstance(event, DraftStepped) and event.phase == "first"
                on_event(replace(event, committed_text="") if is_open else event)  # type: ignore[call-arg]

            return super().start(request, tell)

    timeline: Any = talk(one_turn, SPOKEN, llm=ByClause).of(TurnTraced)[0].timeline
    had, granted = timeline["steps"][0]["step"] - 1, timeline["plan"]["granted_first"]
    assert had > 0 and timeline["plan"]["reasons"][0].count("more steps fit") == 1
    (stage,) = [stage for stage in timeline["stages"] if stage["name"] == "denoise_first"]
    step_s = CostModel().predict(Stage.STEP, timeline["plan"]["canvas_width"]).p50
    assert granted > had and stage["predicted_p50_ms"] == pytest.approx((granted - had) * step_s * 1000, abs=0.01)


def test_a_draft_beyond_the_share_of_all_stops_and_the_reply_starts_from_it() -> None:
    class Long(ScriptedDrafter):
        def __init__(self, clock: ManualClock, *texts: str | Exception | ToolCall) -> None:
            super().__init__(clock, *texts, steps=8, step_s=0.05)

    async def scenario(line: Line) -> None:
        # Others have had nearly all of it.
        share_s = line.budget.settings.speculation_share * MEMORY_S
        line.budget.speculation.worked(line.clock.now() + 1.0, share_s - 0.12)
        await line.play(tone(0.8), silence(0.3))
        (draft,) = line.llm.drafts
        assert draft.is_cancelled, "within a step"
        await line.play(silence(0.3))
        await line.clock.advance(10.0)

    line = talk(scenario, SPOKEN, llm=Long)
    assert line.said == REPLY
    assert line.llm.revised == [(line.llm.drafts[0], None)]
    assert line.speculation["outcome"] == "repaired" and 0 < line.speculation["early_steps"] < 8


def test_a_call_that_was_drafted_is_made_once_the_turn_is_over_and_not_before() -> None:
    calls: list[float] = []

    async def book(arguments: object) -> object:
        calls.append(1.0)
        return "table 12"

    async def scenario(line: Line) -> None:
        await line.play(tone(0.8), silence(0.3))
        assert line.llm.drafts[-1].is_over and not calls
        await line.play(silence(0.3))
        await line.clock.advance(10.0)
        assert len(calls) == 1

    tool = ServerTool(ToolSpec("book_table", "books a table"), book)
    line = talk(scenario, SPOKEN, written=(ToolCall("book_table"), "Table 12 is yours."), tools=(tool,))
    assert line.said == "Table 12 is yours."
    assert line.speculation["outcome"] == "hit"


def test_a_call_that_was_drafted_on_other_words_is_never_made() -> None:
    calls: list[float] = []

    async def book(arguments: object) -> object:
        calls.append(1.0)
        return "table 12"

    tool = ServerTool(ToolSpec("book_table", "books a table"), book)
    heard = ((0.5, "a table"), (9.9, "a table is not what i want"))
    line = talk(one_turn, heard, written=(ToolCall("book_table"), OTHER), tools=(tool,))
    assert line.said == OTHER and not calls


def test_a_caller_who_goes_on_hears_nothing_and_the_draft_follows_their_words() -> None:
    heard = ((0.5, "a mocha"), (1.6, "a mocha and two teas"), (9.9, "a mocha and two teas"))

    async def scenario(line: Line) -> None:
        await line.play(tone(0.8), silence(0.25), tone(0.8), silence(0.6))
        await line.clock.advance(10.0)

    line = talk(scenario, heard, written=(REPLY, OTHER))
    assert line.said == OTHER and len(line.of(ResponseFinished)) == 1
    assert line.speculation["outcome"] == "hit" and line.speculation["drafts"] == 2


def test_words_that_will_go_on_are_not_drafted_on_and_those_that_may_not_are_once_they_are_judged() -> None:
    weighing = SessionSettings(turn_detection=TurnDetection(weighs_words=True))

    async def pause(line: Line) -> None:
        await line.play(tone(0.8), silence(0.25))

    assert not talk(pause, SPOKEN, scorer=ScriptedScorer(0.02), settings=weighing).llm.drafts
    assert talk(pause, SPOKEN, scorer=ScriptedScorer(0.6), settings=weighing).llm.drafts


def test_what_was_not_heard_of_a_reply_is_offered_to_the_next_one() -> None:
    for speculates in (True, False):

        async def scenario(line: Line) -> None:
            await line.play(tone(0.8), silence(0.6))
            await line.clock.advance(0.6)
            await line.play(tone(0.8), silence(0.6))
            await line.clock.advance(10.0)

        heard = (SPOKEN, ((0.5, "with oat milk"), (9.9, "with oat milk")))
        at_once = SessionSettings(turn_detection=TurnDetection(barge_in="immediate"), speculate=speculates)
        line = talk(scenario, *heard, written=(REPLY, OTHER), settings=at_once)
        tails = [unheard for _, unheard in line.llm.revised if unheard is not None]
        heard_part = [turn.text for turn in line.llm.drafts[-1].request.turns if turn.role == "agent"]
        assert len(tails) == len(heard_part) == 1 and f"{heard_part[0]} {tails[0]}" == REPLY
        assert line.of(ResponseFinished)[1].status == "completed"
        revised: Any = line.of(TurnTraced)[-1].timeline["revised"]
        assert revised["kept_tokens"] == 8


def test_a_reply_that_was_heard_to_its_end_leaves_nothing_for_the_next() -> None:
    async def scenario(line: Line) -> None:
        await one_turn(line)
        await one_turn(line)

    line = talk(scenario, SPOKEN, SPOKEN)
    assert all(unheard is None for _, unheard in line.llm.revised)


def test_replies_of_early_drafts_keep_the_account_of_running_drafts() -> None:
    line = talk(one_turn, SPOKEN)
    assert line.budget.running_drafts == line.budget.first_drafts == 0
    assert line.budget.speculation.share(line.clock.now()) > 0
    assert replace(line.llm.drafts[0].request).conversation_id == line.conversation.id

"""Early drafts that are dropped, that fail, and that are never begun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.voiceagent.early_line import OTHER, REPLY, SPOKEN, Line, Slow, one_turn, talk
from tests.voiceagent.standins import ScriptedDraft, ScriptedDrafter, silence, tone
from voiceagent.agent import Note
from voiceagent.backends import BackendInfo, Draft, DraftEvent, DraftRequest
from voiceagent.budget import BudgetController
from voiceagent.budget_terms import Grant, TurnRequest
from voiceagent.errors import BackendError
from voiceagent.events import ResponseFinished
from voiceagent.session import SessionSettings, TurnDetection


class Forgetful:
    """One that cannot."""

    def hear(self, text: str) -> Note | None:
        return None


def test_cleared_audio_and_a_closed_conversation_cancel_the_draft() -> None:
    async def clear(line: Line) -> None:
        await line.play(tone(0.8), silence(0.2))
        assert not line.llm.drafts[0].is_over
        line.conversation.clear_audio()
        await line.clock.settle()
        assert line.llm.drafts[0].is_cancelled

    async def leave(line: Line) -> None:
        await line.play(tone(0.8), silence(0.2))

    for scenario in (clear, leave):
        line = talk(scenario, SPOKEN, llm=Slow)
        assert line.llm.drafts[0].is_cancelled and not line.said


def test_switching_it_off_in_the_conversation_cancels_the_draft_and_begins_no_other() -> None:
    async def scenario(line: Line) -> None:
        await line.play(tone(0.8), silence(0.2))
        assert not line.llm.drafts[0].is_over
        line.conversation.update(replace(line.conversation.settings, speculate=False))
        await line.play(silence(0.1))
        assert line.llm.drafts[0].is_cancelled and len(line.llm.drafts) == 1
        await line.play(silence(0.3))
        assert not line.llm.drafts[1].request.plan.is_speculative, "the turn is answered all the same"
        await line.clock.advance(20.0)
        line.conversation.update(replace(line.conversation.settings, speculate=True))
        await line.play(tone(0.8), silence(0.2))
        assert line.llm.drafts[2].request.plan.is_speculative

    talk(scenario, SPOKEN, SPOKEN, llm=Slow)


def test_what_a_dropped_draft_took_is_told_with_the_next_turn() -> None:
    async def scenario(line: Line) -> None:
        await line.play(tone(0.8), silence(0.3))
        line.conversation.clear_audio()
        await line.clock.settle()
        await line.play(tone(0.8), silence(0.6))
        await line.clock.advance(10.0)

    line = talk(scenario, SPOKEN, SPOKEN)
    assert line.speculation["outcome"] == "hit" and line.speculation["drafts"] == 2
    assert line.speculation["wasted_steps"] > 0


def test_a_turn_whose_draft_was_dropped_counts_its_own_steps_as_late() -> None:
    async def scenario(line: Line) -> None:
        await line.play(tone(0.8), silence(0.3))
        line.conversation.clear_audio()
        await line.clock.settle()
        line.conversation.hear_text("two teas")
        await line.clock.advance(10.0)

    line = talk(scenario, SPOKEN, written=(REPLY, OTHER))
    assert line.said == OTHER and line.speculation["outcome"] == "wasted"
    assert line.speculation["early_steps"] == line.speculation["wasted_steps"] > 0
    assert line.speculation["late_steps"] > 0 and line.speculation["saved_steps"] is None


def test_a_draft_that_fails_early_is_begun_again_when_its_reply_is_wanted() -> None:
    line = talk(one_turn, SPOKEN, written=(BackendError("llm", "out of memory"), REPLY))
    assert line.said == REPLY and len(line.llm.drafts) == 2, "not with every window of the same pause"
    assert line.speculation["late_steps"] == 1 and line.speculation["saved_steps"] is None
    line = talk(one_turn, SPOKEN, written=(BackendError("llm", "out of memory"), BackendError("llm", "again")))
    assert line.of(ResponseFinished)[0].status == "failed" and not line.said
    line = talk(
        one_turn, ((0.9, "a mocha please"), (9.9, "a mocha please")), written=(BackendError("llm", "once"), REPLY)
    )
    assert line.said == REPLY


@pytest.mark.parametrize("words", [1, 2], ids=["when it is begun", "when it is revised"])
def test_a_drafter_that_breaks_on_an_early_draft_does_not_make_the_agent_deaf(
    words: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(ScriptedDrafter):
        def start(self, request: DraftRequest, on_event: Callable[[DraftEvent], None]) -> ScriptedDraft:
            if request.plan.is_speculative and words == 1:
                raise RuntimeError("a bug")
            return super().start(request, on_event)

        def revise(self, draft: Draft, request: DraftRequest, *rest: Any, **named: Any) -> ScriptedDraft:
            if request.plan.is_speculative:
                raise RuntimeError("a bug")
            return super().revise(draft, request, *rest, **named)

    async def scenario(line: Line) -> None:
        for _ in range(2):
            await one_turn(line)

    heard = ((0.5, "a mocha"), (1.0, "a mocha please"), (9.9, "a mocha please"))
    line = talk(scenario, heard, llm=Broken)
    assert [event.status for event in line.of(ResponseFinished)] == ["completed", "completed"]
    assert 1 <= caplog.text.count("no reply can be drafted early") <= 4, "once for each wording of each turn, at most"
    assert line.budget.running_drafts == line.budget.first_drafts == 0
    assert all(draft.is_over or draft.is_cancelled for draft in line.llm.drafts)


@pytest.mark.parametrize(
    "why", ["switched off", "notes", "remote", "cannot revise", "client asks", "crash", "others wait"]
)
def test_nothing_is_drafted_early_where_it_may_not_be(why: str, caplog: pytest.LogCaptureFixture) -> None:
    class Remote(ScriptedDrafter):
        info = BackendInfo("llm", "remote", "stand-in", is_remote=True)

    class Rigid(ScriptedDrafter):
        can_revise = False

    manual = SessionSettings(turn_detection=TurnDetection(create_response=False))
    options: dict[str, dict[str, Any]] = {
        "switched off": {"settings": SessionSettings(speculate=False)},
        "notes": {"notes": Forgetful},
        "remote": {"llm": Remote},
        "cannot revise": {"llm": Rigid},
        "client asks": {"settings": manual},
    }

    async def scenario(line: Line) -> None:
        if why == "others wait":
            line.budget.first_drafts = 1
        await line.play(tone(0.8), silence(0.3))
        assert not line.llm.drafts
        await line.play(silence(0.3))
        if why == "client asks":
            line.conversation.create_response()
        await line.clock.advance(10.0)

    heard = ((0.5, "crash"), (9.9, "a mocha")) if why == "crash" else SPOKEN
    line = talk(scenario, heard, **options.get(why, {}))
    assert line.said == REPLY and line.speculation is None
    if why == "crash":
        assert caplog.text.count("failed to imagine") == 1, "once in a pause, not with every window of it"


def test_a_reply_that_fails_before_it_takes_its_draft_up_ends_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(controller: BudgetController, request: TurnRequest) -> Grant:
        raise ArithmeticError("no plan")

    monkeypatch.setattr(BudgetController, "plan_turn", broken)
    line = talk(one_turn, SPOKEN, llm=Slow)
    assert [event.status for event in line.of(ResponseFinished)] == ["failed"]
    assert [draft.is_cancelled for draft in line.llm.drafts] == [True]

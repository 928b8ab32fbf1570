"""One reply by itself, on the manual clock: its plan follows what happens while it runs, and the budget learns from how it went."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.conftest import run_async
from tests.voiceagent.standins import ScriptedDraft, ScriptedDrafter, ToneSynthesizer
from voiceagent.backends import DraftRequest, PromptTurn, QualityCurve, Samples, StepPlan
from voiceagent.budget import BudgetController
from voiceagent.budget_margin import GAIN_S, MAY_MISS, Margin
from voiceagent.budget_terms import BudgetSettings, WhenLate
from voiceagent.clock import ManualClock
from voiceagent.costs import Cost, CostModel, Stage
from voiceagent.events import ConversationEvent, ResponseAudio, ResponsePlanned
from voiceagent.explain import explain
from voiceagent.history import History
from voiceagent.reply import Reply, ReplyRequest
from voiceagent.tool_runner import ToolDesk
from voiceagent.tool_turn import ToolTurn
from voiceagent.trace import TurnTrace

COSTS = {
    Stage.ASR: Cost(0.0, 0.0),
    Stage.PREFILL: Cost(0.0, 0.0),
    Stage.STEP: Cost(0.01, 0.01),
    Stage.TTS: Cost(0.03, 0.03),
    Stage.TRANSPORT: Cost(0.0, 0.0),
}
LONG = " ".join(["word"] * 32) + "."
"""One clause, a word for each step."""


@dataclass
class House:
    """Replies that share a clock and a budget: 10 ms a step alone, 30 ms beside another."""

    clock: ManualClock = field(default_factory=lambda: ManualClock(100.0))
    budget: BudgetController = field(
        default_factory=lambda: BudgetController(BudgetSettings(max_steps=50), CostModel(COSTS))
    )
    events: list[ConversationEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        for _ in range(40):
            self.budget.costs.observe(Stage.STEP, 0.01, 32, company=1)
            self.budget.costs.observe(Stage.STEP, 0.03, 32, company=2)

    def reply(self, name: str, target_s: float = 0.53) -> tuple[Reply, ScriptedDrafter]:
        llm = ScriptedDrafter(self.clock, LONG, steps=32)
        trace = TurnTrace(turn=1, origin=self.clock.now(), target_s=target_s, is_spoken=False)
        desk = ToolDesk((), clock=self.clock, history=History(), emit=self.events.append, spawn=never)
        draft = DraftRequest(name, (PromptTurn("user", "hello"),), StepPlan(32, 1, 1, 0.9))
        reply = Reply(
            request=ReplyRequest(name, f"item_{name}", "audio", target_s, draft, prompt_tokens=0.0),
            llm=llm,
            tts=ToneSynthesizer(0.001),
            budget=self.budget,
            clock=self.clock,
            emit=self.events.append,
            trace=trace,
            on_audio=lambda: None,
            plays=None,
            tools=ToolTurn(desk, trace, name, self.events.append),
        )
        return reply, llm

    def reasons(self, name: str) -> list[str]:
        planned = [event for event in self.events if isinstance(event, ResponsePlanned)]
        return [event.reason for event in planned if event.response_id == name]


class TricklingVoice(ToneSynthesizer):
    """Makes 100 ms of sound in 60 ms, piece by piece."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(0.01)
        self._clock = clock

    async def speak(self, clause: str) -> AsyncGenerator[Samples, None]:
        async with contextlib.aclosing(super().speak(clause)) as audio:
            async for samples in audio:
                await self._clock.sleep_until(self._clock.now() + 0.06)
                yield samples


def never(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
    raise AssertionError("no tool is run here")


def living(scenario: Callable[[House], Coroutine[Any, Any, None]]) -> House:
    async def main() -> House:
        house = House()
        await scenario(house)
        return house

    return run_async(main())


def drafted(llm: ScriptedDrafter) -> ScriptedDraft:
    (draft,) = llm.drafts
    return draft


def test_a_slow_step_shortens_the_plan_while_the_reply_runs() -> None:
    async def scenario(house: House) -> None:
        reply, llm = house.reply("a")
        making = asyncio.create_task(reply.run())
        await house.clock.advance(0.045)
        assert drafted(llm).plans[-1].steps_first == 50, "0.53 s less 0.03 s for the voice"
        llm.step_s = 0.25  # the sixth step
        await house.clock.advance(0.2)
        llm.step_s = 0.01
        await house.clock.advance(0.056)
        # 0.5 - 0.3 s leave twenty more steps.
        assert drafted(llm).plans[-1].steps_first == 26
        assert "after step 6: 26 steps for the first clause" in house.reasons("a")
        await house.clock.advance(5.0)
        await making

    living(scenario)


def test_a_second_draft_shortens_the_plan_of_the_one_that_runs() -> None:
    async def scenario(house: House) -> None:
        reply, llm = house.reply("a")
        other, _ = house.reply("b")
        making = asyncio.create_task(reply.run())
        await house.clock.advance(0.095)
        joining = asyncio.create_task(other.run())
        await house.clock.advance(0.01)
        # 0.5 - 0.1 s leave 13 steps of 30 ms behind the ten there were.
        assert drafted(llm).plans[-1].steps_first == 23
        assert "after step 10 beside 1 others: 23 steps for the first clause" in house.reasons("a")
        await house.clock.advance(9.0)
        await asyncio.gather(making, joining)

    living(scenario)


@pytest.mark.parametrize(("slow_s", "is_late"), [(0.01, False), (0.6, True)])
def test_promises_that_are_kept_or_broken_move_the_margin(slow_s: float, is_late: bool) -> None:
    async def scenario(house: House) -> None:
        house.budget.margin.seconds = 0.01
        reply, llm = house.reply("a")
        llm.steps, llm.step_s = 2, slow_s
        making = asyncio.create_task(reply.run())
        await house.clock.advance(5.0)
        await making
        assert (reply.trace.missed_deadline() is not None) is is_late

    margin = living(scenario).budget.margin.seconds
    assert margin == pytest.approx(0.01 + GAIN_S * (is_late - MAY_MISS))


def test_a_later_answer_has_its_steps_although_prefill_and_a_step_were_slow() -> None:
    async def scenario(house: House) -> None:
        house.budget.curve = QualityCurve((32,), (2, 8, 32), ((0.3, 0.96, 1.0),))
        reply, llm = house.reply("a", target_s=0.02)
        reply.request = replace(reply.request, when_late=WhenLate.ANSWER_LATER)
        llm.step_s = 0.4  # the first step, and what went before it
        making = asyncio.create_task(reply.run())
        await house.clock.advance(0.3)
        llm.step_s = 0.01
        await house.clock.advance(0.3)
        wanted = drafted(llm).plans[0].steps_first
        assert wanted > house.budget.settings.min_steps
        assert {plan.steps_first for plan in drafted(llm).plans} == {wanted}
        await house.clock.advance(5.0)
        await making

    living(scenario)


def test_a_draft_that_did_not_converge_is_told_in_the_turns_timeline_and_in_words() -> None:
    async def scenario(house: House) -> None:
        for guards in (0, 3):
            reply, llm = house.reply(f"a{guards}")
            llm.steps, llm.guards = 2, guards
            making = asyncio.create_task(reply.run())
            await house.clock.advance(5.0)
            await making
            timeline = reply.trace.as_json()
            assert timeline["guarded_drafts"] == (guards > 0)
            assert any("Its draft did not converge" in line for line in explain(timeline)) is (guards > 0)

    living(scenario)


def test_an_answer_that_was_not_promised_in_time_moves_no_margin() -> None:
    async def scenario(house: House) -> None:
        reply, _ = house.reply("a", target_s=0.02)
        making = asyncio.create_task(reply.run())
        await house.clock.advance(5.0)
        await making
        assert reply.trace.planned_on_time is False and reply.trace.missed_deadline() is not None

    assert living(scenario).budget.margin.seconds == 0.0


def test_what_the_voice_is_planned_with_is_the_wait_for_the_sound_that_is_sent() -> None:
    async def scenario(house: House) -> None:
        reply, llm = house.reply("a")
        reply.tts, llm.steps = TricklingVoice(house.clock), 1
        making = asyncio.create_task(reply.run())
        await house.clock.advance(5.0)
        await making
        first = next(event for event in house.events if isinstance(event, ResponseAudio))
        assert first.samples.size == 2 * 1600, "0.2 s are gathered before anything is heard"
        assert house.budget.costs.predict(Stage.TTS, len(LONG)).p50 == pytest.approx(0.12)
        assert reply.trace.marks["tts_audio"] == reply.trace.marks["first_audio"]

    living(scenario)


@pytest.mark.parametrize("cut_after", [0, 3], ids=["before its first piece", "behind its third"])
def test_pieces_that_leave_behind_a_cut_answer_nobody_and_are_heard_by_no_microphone(
    cut_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(house: House) -> None:
        reply, llm = house.reply("a")
        reply.tts, llm.steps = TricklingVoice(house.clock), 1
        answers: list[bool] = []
        begun: list[float] = []
        played: list[tuple[float, float]] = []
        reply.on_audio = lambda: begun.append(house.clock.now())
        reply.plays = lambda samples, rate, at: played.append((at, at + samples.size / rate))
        monkeypatch.setattr(Margin, "answered", lambda margin, *, late: answers.append(late))

        def tell(event: ConversationEvent) -> None:
            house.events.append(event)
            if len([event for event in house.events if isinstance(event, ResponseAudio)]) == max(cut_after, 1):
                reply.playout.cut(0.0, house.clock.now())

        reply.emit = tell
        if not cut_after:
            reply.playout.cut(0.0, house.clock.now())
        making = asyncio.create_task(reply.run())
        await house.clock.advance(5.0)
        await making
        sent = [event for event in house.events if isinstance(event, ResponseAudio)]
        assert len(sent) > 5 and sent[1].samples.size == 1600, "only the first piece is gathered"
        wanted = 0 if cut_after == 0 else cut_after - 1
        assert len(played) == wanted, "the piece at which it is cut is not played either"
        assert len(answers) == len(begun) == min(wanted, 1)
        assert all(end <= start + 1e-6 for (_, end), (start, _) in itertools.pairwise(played))

    living(scenario)

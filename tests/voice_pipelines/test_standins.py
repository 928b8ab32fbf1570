"""Stand-ins for the models: they take the time that they are told to take, and obey plans as a model would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest

from tests.conftest import run_async
from voice_pipelines import settings, standins
from voice_pipelines.standins import (
    HEARD,
    REPLY,
    Delays,
    LevelDetector,
    StandInDrafter,
    StandInTranscriber,
    ToneSynthesizer,
)
from voiceagent.backends import (
    DraftEvent,
    DraftFinished,
    DraftPrefilled,
    DraftRequest,
    DraftStepped,
    Partial,
    PromptTurn,
    StepPlan,
)
from voiceagent.clock import ManualClock
from voiceagent.errors import ConfigError

PLAN = StepPlan(32, 8, 8, 0.9)
REQUEST = DraftRequest("c", (PromptTurn("user", "a mocha"),), PLAN)
T = TypeVar("T")


def write(
    delays: Delays, plan: StepPlan, replanned: Callable[[int], StepPlan | None] = lambda step: None
) -> list[DraftEvent]:
    """Everything that a draft tells, on a clock that jumps to whatever is waited for."""

    async def main() -> list[DraftEvent]:
        clock = ManualClock()
        events: list[DraftEvent] = []

        def hear(event: DraftEvent) -> None:
            events.append(event)
            if isinstance(event, DraftStepped) and (again := replanned(event.step)) is not None:
                draft.replan(again)

        draft = StandInDrafter(clock, delays).start(replace(REQUEST, plan=plan), hear)
        while not events or not isinstance(events[-1], DraftFinished):
            await clock.advance(0.01)
        return events

    return run_async(main())


def steps(events: list[DraftEvent], phase: str) -> list[DraftStepped]:
    return [event for event in events if isinstance(event, DraftStepped) and event.phase == phase]


def test_a_reply_takes_its_steps_and_commits_the_first_sentence_before_the_rest() -> None:
    events = write(Delays(steps=4), PLAN)
    assert isinstance(events[0], DraftPrefilled)
    first, rest = steps(events, "first"), steps(events, "rest")
    assert [step.committed_text for step in first] == ["", "Sure, a large coffee."]
    assert [step.committed_text for step in rest] == ["Sure, a large coffee.", REPLY]
    assert [step.step for step in (*first, *rest)] == [1, 2, 3, 4]
    end = events[-1]
    assert isinstance(end, DraftFinished) and (end.text, end.steps_first, end.steps_rest) == (REPLY, 2, 2)


def test_a_plan_may_grant_less_but_never_nothing() -> None:
    events = write(Delays(steps=8), replace(PLAN, steps_first=1, steps_rest=0))
    assert (len(steps(events, "first")), len(steps(events, "rest"))) == (1, 0)
    assert isinstance(events[-1], DraftFinished) and events[-1].text == REPLY


def test_a_plan_that_changes_holds_from_the_next_step_on() -> None:
    events = write(Delays(steps=8), PLAN, lambda step: replace(PLAN, steps_first=2) if step == 1 else None)
    assert len(steps(events, "first")) == 2


def test_every_stage_takes_the_time_that_it_is_told_to() -> None:
    events = write(Delays(prefill_s=0.1, step_s=0.2, steps=2), PLAN)
    times = [event.at for event in events]
    assert times == pytest.approx([0.1, 0.3, 0.5, 0.5])
    assert all(step.compute_s == 0.2 for step in steps(events, "first"))


def test_a_cancelled_draft_says_nothing_more() -> None:
    async def main() -> list[DraftEvent]:
        clock, events = ManualClock(), list[DraftEvent]()
        draft = StandInDrafter(clock, Delays(step_s=1.0)).start(REQUEST, events.append)
        await clock.advance(1.5)
        draft.cancel()
        count = len(events)
        await clock.advance(10.0)
        return events[count:]

    assert run_async(main()) == []


def test_a_revised_draft_is_another_one_and_the_first_says_nothing_more() -> None:
    async def main() -> tuple[list[DraftEvent], list[DraftEvent]]:
        clock, before, after = ManualClock(), list[DraftEvent](), list[DraftEvent]()
        drafter = StandInDrafter(clock, Delays(step_s=1.0))
        draft = drafter.start(REQUEST, before.append)
        await clock.advance(0.5)
        drafter.revise(draft, REQUEST, after.append)
        await clock.advance(10.0)
        return before, after

    before, after = run_async(main())
    assert [type(event) for event in before] == [DraftPrefilled]
    assert isinstance(after[-1], DraftFinished)


def test_words_are_heard_as_they_come_and_all_of_them_at_the_end() -> None:
    async def main() -> tuple[list[Partial], str, float]:
        clock, partials = ManualClock(), list[Partial]()
        utterance = await StandInTranscriber(clock, Delays(asr_s=0.3)).open(partials.append)
        for _ in range(10):
            utterance.feed(np.zeros(1600, np.float32))
        finishing = asyncio.ensure_future(utterance.finish())
        while not finishing.done():
            await clock.advance(0.01)
        return partials, finishing.result().text, clock.now()

    partials, text, now = run_async(main())
    assert [partial.text for partial in partials] == ["can", "can i", "can i get"]
    assert text == HEARD and now == pytest.approx(0.3, abs=0.011)


def test_a_clause_is_a_tone_of_its_length_in_pieces() -> None:
    async def main() -> list[int]:
        clock = ManualClock()
        voice = ToneSynthesizer(clock, Delays())
        assert voice.duration_s(" ten chars ") == pytest.approx(9 * 0.06)
        pieces = [piece async for piece in voice.speak(" ten chars ")]
        assert all(float(np.abs(piece).max()) > 0.2 for piece in pieces)
        return [piece.size for piece in pieces]

    sizes = run_async(main())
    assert sum(sizes) == 4320 and max(sizes) == 800


def test_loud_is_speech() -> None:
    async def main() -> list[float]:
        detector = LevelDetector().open()
        rng = np.random.default_rng(1)
        return [
            await detector.probability((level * rng.standard_normal(512)).astype(np.float32))
            for level in (0.0, 0.003, 0.03)
        ]

    assert run_async(main()) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("how", "message"),
    [({"asr_s": -1.0}, "asr_s = -1.0: expected 0 to 60"), ({"steps": 0}, "steps = 0: expected at least 1")],
)
def test_times_that_make_no_sense_are_named(how: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Delays(**how)  # type: ignore[arg-type]


def test_a_server_of_stand_ins_says_that_it_is_one() -> None:
    config = settings.load(assignments=["preset=open"])
    runtime = standins.build(config, Delays(), LevelDetector())
    assert [info.name for info in runtime.infos[:4]] == ["level", "stand-in", "stand-in", "tone"]
    assert runtime.ready
    run_async(runtime.aclose())


def test_a_wrong_time_ends_the_command_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert standins.main(["--asr-s", "-1"]) == 2
    assert "asr_s" in capsys.readouterr().err

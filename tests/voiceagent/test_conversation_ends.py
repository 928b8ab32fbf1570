"""Conversations whose parts fail, that are closed or drained, and that go on for long."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import run_async
from tests.voiceagent.conversing import REPLY, Line, talk
from tests.voiceagent.standins import (
    LevelDetector,
    ScriptedDrafter,
    ScriptedTranscriber,
    ToneSynthesizer,
    silence,
    tone,
)
from voiceagent.agent import AgentProfile
from voiceagent.backends import Backends, Samples
from voiceagent.budget import BudgetController
from voiceagent.clock import ManualClock
from voiceagent.conversation import Conversation
from voiceagent.errors import BackendError
from voiceagent.events import ResponseAudio, ResponseFinished, ResponseStepped, TranscriptFailed, TurnTraced
from voiceagent.session import SessionSettings
from voiceagent.turn import Phase


def test_a_failing_note_function_does_not_cost_the_reply() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)

    assert talk(scenario, heard=("crash",)).of(ResponseFinished)[0].status == "completed"


def test_a_failed_recogniser_is_reported_and_the_next_turn_works() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(1.0)
        await line.speak_turn()
        await line.clock.advance(10.0)

    line = talk(scenario, heard=(BackendError("asr", "worker died"), "a mocha"))
    assert "worker died" in line.of(TranscriptFailed)[0].message
    assert [event.status for event in line.of(ResponseFinished)] == ["completed"]


@pytest.mark.parametrize("part", ["llm", "tts"])
def test_a_failed_model_fails_its_response_and_the_next_turn_works(part: str) -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)
        await line.speak_turn()
        await line.clock.advance(10.0)

    written = (BackendError("llm", "out of memory"), REPLY) if part == "llm" else ("Broken words here.", REPLY)
    line = talk(scenario, written=written, tts=ToneSynthesizer(fail_on="Broken"))
    first, second = line.of(ResponseFinished)
    assert first.status == "failed" and first.reason
    assert second.status == "completed"


@pytest.mark.parametrize(
    ("text", "has_audio"),
    [("One mocha coming right up for you now.", False), ("Sure. What size would you like it then?", True)],
)
def test_closing_mid_denoise_or_mid_audio_leaves_nothing_running(text: str, has_audio: bool) -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(1.5)
        assert line.of(ResponseStepped)
        assert bool(line.of(ResponseAudio)) == has_audio

    line = talk(scenario, written=(text,), step_s=1.0)
    assert line.of(ResponseFinished)[-1].reason == "shutdown"
    assert line.llm.drafts[0].is_cancelled
    assert line.llm.forgotten == [line.conversation.id]


def test_speech_that_is_noticed_while_closing_opens_no_recogniser(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        gate, look = asyncio.Event(), LevelDetector.probability

        async def slow(detector: LevelDetector, window: Samples) -> float:
            await gate.wait()
            return await look(detector, window)

        monkeypatch.setattr(LevelDetector, "probability", slow)
        clock, asr = ManualClock(), ScriptedTranscriber()
        conversation = Conversation(
            backends=Backends(LevelDetector(), asr, ScriptedDrafter(clock), ToneSynthesizer()),
            agent=AgentProfile("café"),
            settings=SessionSettings(),
            clock=clock,
            emit=lambda event: None,
            budget=BudgetController(),
        )
        talking = asyncio.create_task(conversation.run())
        conversation.push_audio(tone(0.8))
        await clock.settle()
        await conversation.aclose()
        gate.set()
        await clock.settle()
        assert talking.done() and not asr.utterances

    run_async(main())


def test_draining_lets_the_reply_be_said_to_its_end() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        closing = asyncio.create_task(line.conversation.aclose(drain_s=30.0))
        await line.clock.advance(20.0)
        await closing

    line = talk(scenario)
    assert line.of(ResponseFinished)[0].status == "completed"
    assert "playout_end" in {mark["name"] for mark in line.of(TurnTraced)[0].timeline["marks"]}  # type: ignore[index, attr-defined]


def test_draining_has_an_end() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        closing = asyncio.create_task(line.conversation.aclose(drain_s=0.1))
        await line.clock.advance(0.2)
        assert closing.done()

    assert talk(scenario, step_s=5.0).of(ResponseFinished)[0].reason == "shutdown"


def test_a_hundred_turns_leave_tasks_memory_and_latency_as_they_were() -> None:
    tasks: list[int] = []

    async def scenario(line: Line) -> None:
        for _ in range(100):
            await line.speak_turn()
            await line.clock.advance(8.0)
            tasks.append(len(asyncio.all_tasks()))

    line = talk(scenario)
    assert len(set(tasks)) == 1
    latencies = [event.timeline["server_latency_ms"] for event in line.of(TurnTraced)]
    assert len(latencies) == 100
    assert max(latencies[50:]) <= max(latencies[:50]) * 1.1  # type: ignore[type-var, operator]
    assert len(line.conversation._replying._playouts) <= 64


def test_a_reply_that_fails_after_its_first_clause_keeps_what_was_heard_and_is_traced() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(20.0)
        await line.speak_turn()
        await line.clock.advance(20.0)

    line = talk(scenario, written=("One mocha. Broken words.", REPLY), tts=ToneSynthesizer(fail_on="Broken"))
    assert line.of(ResponseFinished)[0].status == "failed"
    assert len(line.of(TurnTraced)) == 2
    said = [turn.text for turn in line.llm.drafts[-1].request.turns if turn.role == "agent"]
    assert said == ["One mocha."], "what had left played on"


# --- the end of a turn ------------------------------------------------------------------------------------------------


def test_who_hangs_up_while_the_answer_plays_leaves_its_timeline() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.play(silence(0.3))
        assert line.conversation.phase is Phase.SPEAKING and line.of(ResponseFinished) and not line.of(TurnTraced)

    line = talk(scenario, step_s=0.0)
    (traced,) = line.of(TurnTraced)
    assert traced.timeline["status"] == "completed"

"""A call in the same process, on the manual clock."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable

import numpy as np

from tests.conftest import run_async
from tests.voiceagent.standins import (
    LevelDetector,
    ScriptedDrafter,
    ScriptedTranscriber,
    ToneSynthesizer,
    silence,
    tone,
)
from voice_pipelines.loopback import Call, call, find_speech_end_s, latency_s
from voice_pipelines.say import print_summary, summary
from voiceagent.agent import AgentProfile
from voiceagent.backends import Backends, Samples
from voiceagent.budget import BudgetController
from voiceagent.clock import ManualClock
from voiceagent.config import Config
from voiceagent.conversation import Conversation
from voiceagent.events import ConversationEvent
from voiceagent.session import SessionSettings


def place_call(audio: Samples, *texts: str, written: tuple[str, ...] = ("Sure. What size?",)) -> Call:
    async def main() -> Call:
        clock = ManualClock(50.0)

        def open_conversation(emit: Callable[[ConversationEvent], None]) -> Conversation:
            return Conversation(
                backends=Backends(
                    LevelDetector(), ScriptedTranscriber(*texts), ScriptedDrafter(clock, *written), ToneSynthesizer()
                ),
                agent=AgentProfile("test"),
                settings=SessionSettings(),
                clock=clock,
                emit=emit,
                budget=BudgetController(),
            )

        calling = asyncio.create_task(call(open_conversation, audio, clock))
        while not calling.done():
            await clock.advance(0.02)
        return await calling

    return run_async(main())


AUDIO = np.concatenate([silence(0.5), tone(1.0), silence(1.0)])


def test_a_call_measures_from_the_end_of_speech_to_the_first_audible_sample() -> None:
    result = place_call(AUDIO, "a mocha")
    assert result.transcripts == ["a mocha"]
    assert [finished.status for finished in result.finished] == ["completed"]
    measured = latency_s(result, 1.5)
    # The hangover of 0.35 s, a VAD window and a frame of rounding, one step of 10 ms for the first clause.
    assert measured is not None and 0.35 <= measured <= 0.45
    assert result.track is not None and result.track.underruns_s == []
    assert result.duration_s > 2.5, "the line stays open until the reply has been played"


def test_a_reply_that_began_before_the_end_of_speech_has_no_latency() -> None:
    result = place_call(AUDIO, "a mocha")
    (began_s,) = result.answers_at_s
    assert latency_s(result, began_s - 0.02) is not None
    assert latency_s(result, began_s) is None and latency_s(result, began_s + 0.1) is None
    report = summary(result, began_s + 0.1, Config())
    assert report["voice_to_voice_ms"] is None and report["answered_before_speech_end"] is True
    screen = io.StringIO()
    print_summary(report, screen)
    assert screen.getvalue().splitlines()[-1].startswith("voice to voice    not measured: the last reply began before")
    assert summary(result, 1.5, Config())["answered_before_speech_end"] is False


def test_a_recording_without_speech_ends_by_itself() -> None:
    result = place_call(silence(1.0), "never")
    assert result.track is None
    assert result.transcripts == []
    assert latency_s(result, 0.5) is None


def test_speaking_over_the_reply_cuts_the_track() -> None:
    audio = np.concatenate([tone(1.0), silence(0.7), tone(1.0), silence(1.0)])
    result = place_call(
        audio, "a mocha", "no a latte", written=("Sure. One mocha is coming right up for you.", "A latte.")
    )
    assert result.transcripts == ["a mocha", "no a latte"]
    assert [timeline["reply"] for timeline in result.timelines][-1] == "A latte."


def test_the_end_of_speech_is_found_in_a_recording() -> None:
    found = asyncio.run(find_speech_end_s(LevelDetector(), AUDIO))
    assert found is not None and abs(found - 1.5) <= 0.033
    assert asyncio.run(find_speech_end_s(LevelDetector(), silence(1.0))) is None

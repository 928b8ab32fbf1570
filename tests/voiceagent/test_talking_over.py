"""Talking over the agent in whole conversations on the manual clock: ducks, stops, restores, and what stays in the history."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from tests.voiceagent.conversing import Line, talk
from tests.voiceagent.over_the_agent import LONG, agents_words, answered, over
from tests.voiceagent.standins import ScriptedTranscriber, hum, silence, tone
from voiceagent.barge_in import Dismissed
from voiceagent.echo import EchoGate
from voiceagent.errors import BackendError, OverloadedError
from voiceagent.events import (
    ItemAdded,
    PlaybackDucked,
    PlaybackRestored,
    ResponseFinished,
    SpeechStarted,
    TranscriptPartial,
)
from voiceagent.session import SessionSettings, TurnDetection
from voiceagent.turn import Phase


def test_a_backchannel_ducks_and_restores_and_leaves_no_trace() -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        before = len(line.of(ItemAdded)), len(line.of(TranscriptPartial))
        await line.play(np.concatenate([tone(0.3), silence(0.8)]))
        assert over(line) == ["PlaybackDucked", "PlaybackRestored"]
        assert line.of(PlaybackRestored)[0].reason is Dismissed.BACKCHANNEL
        assert (len(line.of(ItemAdded)), len(line.of(TranscriptPartial))) == before
        assert line.conversation.phase is Phase.SPEAKING
        await line.play(silence(12.0))
        assert agents_words(line) == [LONG.strip()], "heard to its end"
        assert len(line.llm.drafts) == 1

    line = talk(scenario, heard=("a mocha please", "uh-huh"), written=(LONG,), step_s=0.0)
    assert [event.status for event in line.of(ResponseFinished)] == ["completed"]


def test_the_duck_comes_within_a_tenth_of_a_second_and_the_stop_within_six_tenths() -> None:
    times: list[float] = []

    async def scenario(line: Line) -> None:
        await answered(line)
        began = line.clock.now()
        for kind in (PlaybackDucked, SpeechStarted):
            count = len(line.of(kind))
            while len(line.of(kind)) == count:
                await line.play(tone(0.02))
            times.append(line.clock.now() - began)

    talk(scenario, written=(LONG,), step_s=0.0)
    assert times[0] <= 0.1
    assert times[1] <= 0.56


def test_a_short_word_that_is_no_backchannel_becomes_a_turn_with_all_its_audio() -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(np.concatenate([tone(0.3), silence(0.8)]))
        assert over(line) == ["PlaybackDucked", "SpeechStarted"]
        await line.play(silence(1.0))

    line = talk(scenario, heard=("a mocha please", "so", "stop", "stop"), written=(LONG, "Yes?"), step_s=0.0)
    so_far, asked, turn = line.asr.utterances[1:]
    assert so_far.fed < asked.fed
    assert asked.fed / 16_000 == pytest.approx(0.3 + 0.3 + 0.1, abs=0.07), "padding, voice and the gap"
    assert turn.fed > asked.fed
    first, second = agents_words(line)
    assert LONG.startswith(first) and first != LONG.strip() and second == "Yes?"
    assert [turn.text for turn in line.llm.drafts[1].request.turns if turn.role == "user"] == ["a mocha please", "stop"]


def test_what_plays_ducked_is_not_heard_when_it_is_stopped() -> None:
    lengths: list[int] = []
    for mode in ("two_stage", "immediate"):

        async def scenario(line: Line) -> None:
            await answered(line)
            await line.play(tone(0.8))
            lengths.append(len(agents_words(line)[0].split()))

        detection = TurnDetection(barge_in=mode)  # type: ignore[arg-type]
        settings = SessionSettings(turn_detection=detection)
        talk(scenario, written=(LONG,), step_s=0.0, settings=settings)
    assert lengths[0] <= lengths[1], "the stop came later, but not a word later"


def test_an_agent_in_doubt_is_turned_up_again_when_the_client_switches_interruption_off() -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(tone(0.2))
        assert over(line) == ["PlaybackDucked"]
        line.conversation.update(SessionSettings(turn_detection=TurnDetection(interrupt_response=False)))
        await line.play(np.concatenate([tone(0.5), silence(0.2)]))
        assert over(line) == ["PlaybackDucked", "PlaybackRestored", "SpeechStarted"]
        assert not line.of(ResponseFinished) or line.of(ResponseFinished)[-1].status == "completed"

    talk(scenario, written=(LONG,), step_s=0.0)


@pytest.mark.parametrize(
    ("said", "hums", "expected"),
    [
        ("with ham", True, ["PlaybackDucked", "PlaybackRestored"]),
        ("with ham", False, ["PlaybackDucked", "SpeechStarted"]),
        ("stop", True, ["PlaybackDucked", "SpeechStarted"]),
    ],
)
def test_words_that_a_recogniser_makes_of_a_hum_bring_the_agent_back_but_not_those_that_stop(
    said: str, hums: bool, expected: list[str]
) -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(np.concatenate([hum(0.3), silence(0.8)]))
        assert over(line) == expected

    settings = SessionSettings(turn_detection=TurnDetection(hums=hums))
    talk(scenario, heard=("a mocha please", "", said, said), written=(LONG, "Yes?"), step_s=0.0, settings=settings)


def test_who_says_again_what_was_taken_for_a_hum_stops_the_agent() -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(np.concatenate([hum(0.3), silence(0.8), hum(0.3), silence(0.5)]))
        assert over(line) == ["PlaybackDucked", "PlaybackRestored", "PlaybackDucked", "SpeechStarted"]

    talk(scenario, heard=("a mocha please", *["", "small tea"] * 3), written=(LONG, "Yes?"), step_s=0.0)


def test_immediate_and_no_interruption_never_duck() -> None:
    for detection in (TurnDetection(barge_in="immediate"), TurnDetection(interrupt_response=False)):

        async def scenario(line: Line) -> None:
            await answered(line)
            await line.play(np.concatenate([tone(0.3), silence(0.2)]))
            assert over(line) == ["SpeechStarted"]

        talk(scenario, written=(LONG,), step_s=0.0, settings=SessionSettings(turn_detection=detection))


def test_a_doubt_that_became_a_turn_when_the_client_wanted_it_immediately_is_no_second_turn_later() -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(tone(0.3))
        assert over(line) == ["PlaybackDucked"]
        before = line.conversation.settings
        line.conversation.update(replace(before, turn_detection=TurnDetection(barge_in="immediate")))
        await line.play(np.concatenate([tone(0.3), silence(3.0)]))
        assert over(line) == ["PlaybackDucked", "SpeechStarted"]
        line.conversation.update(before)
        await line.play(silence(20.0))
        assert over(line) == ["PlaybackDucked", "SpeechStarted"], "nobody spoke"

    talk(scenario, heard=("a mocha please", "so"), written=(LONG, "Yes?"), step_s=0.0)


@pytest.mark.parametrize("error", [BackendError("asr", "gone"), OverloadedError(64, 64)], ids=["fails", "is full"])
def test_a_recogniser_that_fails_on_a_short_voice_or_is_full_brings_the_agent_back(error: Exception) -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(np.concatenate([tone(0.3), silence(0.8)]))
        assert over(line) == ["PlaybackDucked", "PlaybackRestored"]
        assert line.of(PlaybackRestored)[0].reason is Dismissed.NO_WORDS

    talk(scenario, heard=("a mocha please", error), written=(LONG,), step_s=0.0)


def test_words_that_come_late_stop_an_agent_that_is_back_already() -> None:
    gate = asyncio.Event()

    async def scenario(line: Line) -> None:
        gate.set()
        await answered(line)
        gate.clear()
        await line.play(np.concatenate([tone(0.3), silence(0.7)]))
        assert over(line) == ["PlaybackDucked", "PlaybackRestored"]
        assert line.of(PlaybackRestored)[0].reason is Dismissed.UNANSWERED
        gate.set()
        await line.play(silence(0.1))
        assert over(line)[2:] == ["SpeechStarted"]

    talk(scenario, heard=("a mocha please", "wait"), written=(LONG,), step_s=0.0, gate=gate)


def test_audio_that_stops_coming_does_not_leave_the_agent_ducked() -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(tone(0.2))
        assert over(line) == ["PlaybackDucked"]
        await line.clock.advance(2.0)
        assert over(line) == ["PlaybackDucked", "PlaybackRestored"]
        await line.play(tone(0.7))
        assert over(line)[2:] == ["PlaybackDucked", "SpeechStarted"], "the next voice is judged as ever"

    talk(scenario, written=(LONG,), step_s=0.0)


def test_a_short_yes_at_the_end_of_a_question_is_its_answer() -> None:
    async def scenario(line: Line) -> None:
        await line.speak_turn()
        while (dry_at := line.conversation._replying._running.reply.playout.dry_at()) is None:  # type: ignore[union-attr]
            await line.play(silence(0.02))
        await line.play(silence(dry_at - line.clock.now() - 0.5))
        await line.play(np.concatenate([tone(0.2), silence(1.0)]))

    line = talk(scenario, heard=("a mocha please", "yes"), written=("Is a large one fine?", "Good."), step_s=0.0)
    assert over(line)[0] == "PlaybackDucked" and over(line)[-1] == "SpeechStarted"
    assert agents_words(line) == ["Is a large one fine?", "Good."]


@pytest.mark.parametrize("act", ["cancel", "clear", "manual"])
def test_cancelling_or_clearing_in_doubt_leaves_nothing_ducked(act: str) -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(tone(0.2))
        match act:
            case "cancel":
                line.conversation.interrupt()
            case "clear":
                line.conversation.clear_audio()
            case _:
                line.conversation.update(replace(line.conversation.settings, turn_detection=None))
        await line.play(silence(0.6))
        assert not line.conversation._state.is_ducked
        if act != "cancel":
            assert over(line)[:2] == ["PlaybackDucked", "PlaybackRestored"] and over(line)[-1] == "PlaybackRestored"

    talk(scenario, heard=("a mocha please", ""), written=(LONG,), step_s=0.0)


def test_two_doubts_need_two_decoders_at_most_one_at_a_time() -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        for _ in range(3):
            await line.play(np.concatenate([tone(0.3), silence(0.7)]))
        assert over(line) == ["PlaybackDucked", "PlaybackRestored"] * 3
        assert isinstance(line.asr, ScriptedTranscriber)
        assert all(utterance.is_cancelled for utterance in line.asr.utterances[1:]), "each was freed"

    talk(scenario, heard=("a mocha please", "mhm"), written=(LONG * 2,), step_s=0.0)


@pytest.mark.parametrize("backchannel_s", [0.1, 1.0, 1.6, 2.0])
def test_who_goes_on_speaking_stops_the_agent_however_long_a_backchannel_may_be(backchannel_s: float) -> None:
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(tone(backchannel_s + 0.5))
        assert over(line) == ["PlaybackDucked", "SpeechStarted"]

    settings = SessionSettings(turn_detection=TurnDetection(backchannel_s=backchannel_s))
    talk(scenario, written=(LONG * 2,), step_s=0.0, settings=settings)


def test_a_slow_recogniser_is_asked_one_question_and_none_once_the_caller_speaks() -> None:
    gate = asyncio.Event()

    async def scenario(line: Line) -> None:
        gate.set()
        await answered(line)
        gate.clear()
        for _ in range(4):
            await line.play(np.concatenate([tone(0.3), silence(0.7)]))
        asked = line.asr.utterances[1:]
        assert len(asked) >= 4
        assert [utterance.is_cancelled for utterance in asked] == [*[True] * (len(asked) - 1), False]
        await line.play(tone(0.8))
        assert over(line)[-1] == "SpeechStarted"
        assert all(utterance.is_cancelled for utterance in asked)
        gate.set()

    talk(scenario, heard=("a mocha please", "mhm"), written=(LONG * 2,), step_s=0.0, gate=gate)


@pytest.mark.parametrize("echo_gate", [True, False])
def test_what_is_played_is_looked_at_only_where_echo_matters(echo_gate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    monkeypatch.setattr(EchoGate, "played", lambda gate, samples, rate_hz, at: looked_at.append(samples.size))
    settings = SessionSettings(turn_detection=TurnDetection(echo_gate=echo_gate))
    talk(answered, written=(LONG,), step_s=0.0, settings=settings)
    assert bool(looked_at) == echo_gate


def test_a_stopping_word_stops_the_agent_while_it_is_still_spoken() -> None:
    for words, expected in (("stop", ["PlaybackDucked", "SpeechStarted"]), ("so", ["PlaybackDucked"])):

        async def scenario(line: Line, expected: list[str] = expected) -> None:
            await answered(line)
            await line.play(tone(0.38))
            assert over(line) == expected

        talk(scenario, heard=("a mocha please", words), written=(LONG, "Yes?"), step_s=0.0)

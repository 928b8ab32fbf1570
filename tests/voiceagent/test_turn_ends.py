"""Turns that end by their words, in whole conversations."""

from __future__ import annotations

from typing import Any

import pytest

from tests.voiceagent.conversing import Line, talk
from tests.voiceagent.standins import ScriptedScorer, ScriptedUtterance, silence, tone
from voiceagent import endpoint_sound
from voiceagent.backends import Samples
from voiceagent.errors import BackendError
from voiceagent.events import SpeechStarted, SpeechStopped, TurnTraced
from voiceagent.session import SessionSettings, TurnDetection

BY_WORDS = SessionSettings(
    instructions="You take orders.",
    turn_detection=TurnDetection(weighs_words=True, silence_s=0.6, min_silence_s=0.2, max_silence_s=1.0),
)


def end_of_turn_s(scorer: ScriptedScorer) -> float:
    """Silence from the end of a caller's words to the moment when their turn was over."""
    times: list[float] = []

    async def scenario(line: Line) -> None:
        await line.play(tone(0.8))
        began = line.clock.now()
        while not line.of(SpeechStopped):
            await line.play(silence(0.02))
        times.append(line.clock.now() - began)

    line = talk(scenario, heard=("mocha",), settings=BY_WORDS, scorer=scorer)
    assert line.of(SpeechStarted)
    return times[0]


def test_words_that_are_complete_end_the_turn_and_others_keep_it_open() -> None:
    assert end_of_turn_s(ScriptedScorer(0.99)) == pytest.approx(0.2, abs=0.07)
    assert end_of_turn_s(ScriptedScorer(0.01)) == pytest.approx(1.0, abs=0.07)


def test_a_scorer_that_fails_or_never_answers_leaves_silence_alone() -> None:
    for scorer in (ScriptedScorer(BackendError("endpoint", "no such model")), ScriptedScorer(None)):
        assert end_of_turn_s(scorer) == pytest.approx(0.6, abs=0.07)


def test_the_scorer_is_told_the_conversation_and_asked_once_for_the_same_words() -> None:
    scorer = ScriptedScorer(0.99)

    async def scenario(line: Line) -> None:
        line.conversation.greet()
        await line.clock.advance(10.0)
        await line.speak_turn()
        await line.clock.advance(10.0)

    talk(scenario, heard=("mocha",), settings=BY_WORDS, scorer=scorer)
    assert [[(turn.role, turn.text) for turn in asked.turns] for asked in scorer.asked] == [
        [("system", "You take orders."), ("agent", "Welcome to the café."), ("user", "mocha")]
    ]


def test_who_weighs_the_sound_is_told_what_the_voice_before_the_pause_sounded_like(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[int] = []

    def completeness(voice: Samples) -> float:
        heard.append(voice.size)
        return 0.7

    monkeypatch.setattr(endpoint_sound, "completeness", completeness)
    deaf = ScriptedScorer(0.99)
    deaf.weighs_sound = False
    for scorer, expected in ((ScriptedScorer(0.99), 0.7), (deaf, None)):
        end_of_turn_s(scorer)
        assert [turn.sound for turn in scorer.asked] == [expected]
    assert heard == [pytest.approx(0.8 * 16_000, abs=1024)], "once, and by one of them"


@pytest.mark.parametrize("confidence", [0.7, None])
def test_the_scorer_is_told_how_sure_the_recogniser_is_of_the_words(
    monkeypatch: pytest.MonkeyPatch, confidence: float | None
) -> None:
    monkeypatch.setattr(ScriptedUtterance, "confidence", confidence)
    scorer = ScriptedScorer(0.99)
    end_of_turn_s(scorer)
    assert [turn.confidence for turn in scorer.asked] == [confidence]


@pytest.mark.parametrize("is_misheard", [True, False])
def test_the_timeline_tells_what_the_recogniser_and_the_scorer_made_of_the_words(
    monkeypatch: pytest.MonkeyPatch, is_misheard: bool
) -> None:
    monkeypatch.setattr(ScriptedUtterance, "confidence", 0.7)
    scorer = ScriptedScorer(0.99)
    scorer.is_misheard = is_misheard

    async def scenario(line: Line) -> None:
        await line.speak_turn()
        await line.clock.advance(10.0)

    line = talk(scenario, heard=("mocha",), settings=BY_WORDS, scorer=scorer)
    ended_by: Any = line.of(TurnTraced)[-1].timeline["ended_by"]
    assert (ended_by["completeness"], ended_by["misheard"], ended_by["confidence"]) == (0.99, is_misheard, 0.7)


def test_words_after_an_unanswered_turn_are_judged_together_with_it() -> None:
    scorer = ScriptedScorer(0.99)
    settings = SessionSettings(
        turn_detection=TurnDetection(weighs_words=True, min_silence_s=0.2, create_response=False)
    )

    async def scenario(line: Line) -> None:
        for _ in range(2):
            await line.speak_turn()

    talk(scenario, heard=("tea", "please"), settings=settings, scorer=scorer)
    assert [[(turn.role, turn.text) for turn in asked.turns] for asked in scorer.asked] == [
        [("user", "tea")],
        [("user", "tea please")],
    ]

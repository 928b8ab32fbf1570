"""How long callers of the café are waited for, by the turn-end model's word and the decision that the server takes with it."""

from __future__ import annotations

import pytest

from voice_pipelines.adapters.turn_words import alone
from voice_pipelines.turn_end.model import TurnEndModel
from voiceagent.backends import INPUT_RATE_HZ
from voiceagent.endpoint import PAUSE_MEDIAN_S, EndedBy, EndpointSettings, decide
from voiceagent.endpoint_words import PauseWords
from voiceagent.vad import WINDOW_SAMPLES, VoicedUtterance

SETTINGS = EndpointSettings()
WINDOW_S = WINDOW_SAMPLES / INPUT_RATE_HZ
GREETING = "Hi, welcome to the Diffusion Café. What can I get you?"


@pytest.fixture(scope="module")
def model() -> TurnEndModel:
    return TurnEndModel.load()


def end_of_turn(model: TurnEndModel, asked: str, heard: str) -> EndedBy:
    """Silence after the words, window by window, an answer one window after its question as in calls."""
    words = PauseWords()
    words.begin(asked)
    spoken = 2 * INPUT_RATE_HZ
    if heard:
        words.hear(heard, spoken)
    question = None
    for number in range(1, 400):
        at = spoken + number * WINDOW_SAMPLES
        if question is not None:
            words.answer(question, alone(model.completeness(question.text, asked), question.text, asked))
        question = words.question(at, is_paused=True)
        decision = decide(VoicedUtterance(0, spoken, at, True, False), SETTINGS, words.evidence(at))
        if decision is not None:
            return decision.ended_by
    raise AssertionError("the turn never ends")


def silence_s(model: TurnEndModel, asked: str, heard: str) -> float:
    ended_by = end_of_turn(model, asked, heard)
    assert ended_by.silence_s is not None
    return ended_by.silence_s


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("Anything else?", "nope"),
        ("Have you got any injuries?", "no"),
        ("What size would you like?", "large"),
        ("Sure, a latte. Small, medium or large?", "medium"),
        ("That's a large latte, $4.50. Anything else?", "no"),
        ("Would you like a muffin with that?", "yes"),
        ("Is that correct?", "yeah"),
        ("How many would you like?", "two"),
        ("What name should I put on the order?", "tom"),
        ("Anything else?", "no thanks"),
        ("What size would you like?", "a large one"),
        ("Anything else?", "that is all"),
        ("Will you pay by card?", "yes i will"),
        ("Is there a gate?", "yes"),
        ("Is there a gate?", "no"),
        ("Pickup or delivery?", "delivery"),
        ("What's your name?", "zbigniew"),
        ("Where do you live?", "tbilisi"),
    ],
)
def test_an_answer_of_a_word_is_waited_for_no_longer_than_silence_alone_would(
    model: TurnEndModel, asked: str, answer: str
) -> None:
    assert silence_s(model, asked, answer) < SETTINGS.silence_s + WINDOW_S


@pytest.mark.parametrize(
    ("asked", "beginning"),
    [
        ("What size would you like?", "a"),
        ("What size would you like?", "i'd like a"),
        ("What size would you like?", "large with"),
        ("Anything else?", "yes and"),
        ("Would you like a muffin with that?", "yes but can i"),
        ("How many would you like?", "two and a"),
        ("How many would you like?", "two of the"),
        ("What name should I put on the order?", "it's"),
    ],
)
def test_answers_that_plainly_go_on_are_given_the_pause_of_most_speakers(
    model: TurnEndModel, asked: str, beginning: str
) -> None:
    assert silence_s(model, asked, beginning) > PAUSE_MEDIAN_S


def test_a_whole_order_is_answered_at_once_and_one_that_is_not_is_waited_for(model: TurnEndModel) -> None:
    assert silence_s(model, GREETING, "can i get a large latte with oat milk please") == pytest.approx(0.2, abs=0.05)
    for begun in ("can i get a", "can i get a large", "i'd like a large latte and", "i'd like a coffee with"):
        assert silence_s(model, GREETING, begun) > PAUSE_MEDIAN_S, begun


@pytest.mark.parametrize("digits", ["five five five", "five five five one two three"])
def test_dictated_digits_wait_for_the_next_group(model: TurnEndModel, digits: str) -> None:
    for asked in ("What's your phone number?", "Anything else?"):
        assert silence_s(model, asked, digits) >= SETTINGS.dictation_silence_s


def test_what_nobody_understands_is_over_after_a_while_and_no_sooner_than_silence_alone_would_be(
    model: TurnEndModel,
) -> None:
    for heard in ("", "the of", "zzyzx qwrt the", "and the with"):
        assert SETTINGS.silence_s <= silence_s(model, GREETING, heard) < SETTINGS.max_silence_s + WINDOW_S, heard

"""What the words of an utterance tell about its pauses, and whether they are dictated."""

from __future__ import annotations

import time

import pytest

from voiceagent.endpoint import Evidence
from voiceagent.endpoint_dictation import asks_for_dictation, ends_in_dictation, is_dictation, last_sentence
from voiceagent.endpoint_words import LATE_S, NO_WORDS, PauseWords, Question, is_answer, is_yes_or_no

SECOND = 16_000


def asked(words: PauseWords, at: int) -> Question:
    question = words.question(at, is_paused=True)
    assert question is not None
    return question


def test_each_text_is_asked_about_once_and_only_in_a_pause() -> None:
    words = PauseWords()
    assert words.question(0, is_paused=True) is None, "there are no words yet"
    words.hear("i'd like", 100)
    assert words.question(200, is_paused=False) is None
    assert asked(words, 300).text == "i'd like"
    words.hear("i'd like", 400)
    assert words.question(500, is_paused=True) is None
    words.hear("i'd like a", 600)
    assert asked(words, 700).text == "i'd like a"


@pytest.mark.parametrize(
    ("said", "before", "is_one"),
    [
        ("large", "Sure. What size?", True),
        ("No, thanks.", "Anything else? ", True),
        ("a large one", "What size?", True),
        ("a large one please", "What size?", False),
        ("large with", "What size?", False),
        ("it's", "What's your name?", False),
        ("large", "Hi, this is Corner Café. What can I get you?", False),
        ("large", "What can I get you? And what size?", True),
        ("a latte", "What would you like?", False),
        ("a latte", "What would you like to drink today?", False),
        ("by card", "How would you like to pay?", True),
        ("two hundred", "What would you like to spend?", True),
        ("the bottom near", "At the top or the bottom?", False),
        ("large", "That's a latte, $4.50.", False),
        ("large", "", False),
        ("?!", "What size?", False),
    ],
)
def test_up_to_three_words_behind_a_question_are_an_answer_unless_they_lead_on_or_were_invited_to_tell(
    said: str, before: str, is_one: bool
) -> None:
    assert is_answer(said, before) is is_one
    words = PauseWords()
    words.begin(before)
    words.hear(said, 0)
    words.answer(asked(words, 0), 0.9)
    evidence = words.evidence(SECOND)
    assert evidence is not None and evidence.is_answer is is_one


@pytest.mark.parametrize(
    ("said", "last"),
    [
        ("", ""),
        (" ?! ", "?!"),
        ("Sure. What size?", "What size?"),
        ("What size?? ", "What size??"),
        ("That's $4.50", "50"),
        ("no mark", "no mark"),
        ("a. " + "b" * 1000, "b" * 400),
    ],
)
def test_the_last_sentence_is_what_follows_the_last_mark_but_those_at_the_end(said: str, last: str) -> None:
    assert last_sentence(said) == last


def test_a_text_that_a_client_wrote_without_end_costs_no_more_than_another() -> None:
    def cost(asked: str) -> float:
        began = time.thread_time()
        for _ in range(20):
            is_answer("yes", asked)
            is_dictation("yes", asked)
        return time.thread_time() - began

    short = min(cost("word " * 100) for _ in range(3))
    assert cost("word " * 13_000) < 50 * short, "a search for its end took ten thousand times as long"


@pytest.mark.parametrize(
    ("said", "is_one"),
    [
        ("it's tom@", True),
        ("it's tom@example.com", True),
        ("tom at example.com", True),
        ("tom at example dot com", True),
        ("my number is 617-555-0123", True),
        ("6, 0, 7, 5,", True),
        ("S-M-I", True),
        ("s m i t", True),
        ("I, I", False),
        ("can i get a", False),
        ("Around 7 p.m.", False),
        ("That's $5.50.", False),
        ("Make it 12:30.", False),
        ("617.555.0123", True),
        ("it's 617.555.01", True),
        ("it's 617-555.01", True),
        ("it's 617.555.01-2", True),
        ("It's 5.50.", False),
        ("That makes 1,205.50.", False),
        ("I looked at it.", False),
        ("I saw it on example.com", False),
    ],
)
def test_what_is_dictated_is_seen_in_a_recognisers_marks_and_figures_too(said: str, is_one: bool) -> None:
    assert is_dictation(said) is is_one


def test_a_comma_or_a_capital_that_comes_or_goes_is_no_other_word() -> None:
    words = PauseWords()
    words.hear("a mocha", 0)
    words.answer(asked(words, 0), 0.9)
    words.hear("A mocha,", SECOND)
    words.hear("A mocha.", 2 * SECOND)
    evidence = words.evidence(3 * SECOND)
    assert (evidence.completeness, evidence.stable_s) == (0.9, 3.0)
    assert words.question(3 * SECOND, is_paused=True) is None
    words.hear("A mocha. No,", 3 * SECOND)
    assert words.evidence(3 * SECOND).stable_s == 0.0


def test_a_recogniser_that_becomes_surer_of_the_same_words_raises_no_question_and_the_next_one_knows() -> None:
    words = PauseWords()
    words.hear("a mocha", 0, 0.4)
    first = asked(words, 0)
    assert first.confidence == 0.4
    words.answer(first, 0.9)
    words.hear("a mocha", SECOND, 0.8)
    assert words.question(SECOND, is_paused=True) is None
    evidence = words.evidence(SECOND)
    assert (evidence.completeness, evidence.stable_s) == (0.9, 1.0), "and its answer stands"
    words.hear("a mocha please", SECOND, 0.7)
    assert asked(words, SECOND).confidence == words.confidence == 0.7
    words.begin()
    assert words.confidence is None
    words.hear("a tea", 2 * SECOND)
    assert asked(words, 2 * SECOND).confidence is None, "this one does not tell"


def test_an_answer_is_worth_something_until_the_words_change() -> None:
    words = PauseWords()
    words.hear("a mocha", 0)
    words.answer(asked(words, 0), 0.9)
    evidence = words.evidence(SECOND)
    assert (evidence.completeness, evidence.stable_s) == (0.9, 1.0)
    words.hear("a mocha with", SECOND)
    evidence = words.evidence(SECOND)
    assert evidence.completeness is None and evidence.stable_s == 0.0


def test_an_answer_that_other_words_have_overtaken_is_dropped() -> None:
    words = PauseWords()
    words.hear("a mocha", 0)
    first = asked(words, 0)
    words.hear("a mocha with", 10)
    second = asked(words, 20)
    words.answer(first, 0.9)
    pending = words.evidence(30)
    assert pending.completeness is None and pending.is_awaited
    words.answer(second, 0.1)
    evidence = words.evidence(40)
    assert evidence.completeness == 0.1
    words.begin()
    words.hear("yes", 50)
    third = asked(words, 60)
    words.answer(second, 0.1)
    pending = words.evidence(70)
    assert pending.completeness is None and pending.is_awaited and third.number > second.number


def test_a_late_answer_leaves_silence_alone_until_it_comes() -> None:
    words = PauseWords()
    words.hear("a mocha", 0)
    question = asked(words, 0)
    assert words.evidence(round(LATE_S * SECOND)).is_awaited
    assert words.evidence(round(LATE_S * SECOND) + 512) == Evidence(None, pytest.approx(LATE_S, abs=0.04))
    words.answer(question, 0.9)
    assert words.evidence(SECOND).completeness == 0.9


def test_a_failed_answer_leaves_silence_alone_until_the_words_change() -> None:
    words = PauseWords()
    words.hear("a mocha", 0)
    words.answer(asked(words, 0), None)
    assert words.evidence(100) == Evidence(None, 100 / SECOND)
    words.hear("a mocha please", 200)
    words.answer(asked(words, 300), 0.8)
    assert words.evidence(400).completeness == 0.8


@pytest.mark.parametrize("is_failed", [True, False])
def test_digits_are_dictation_whether_or_not_a_model_has_answered(is_failed: bool) -> None:
    words = PauseWords()
    words.begin("What is your phone number?")
    words.hear("five five five one two", 0)
    question = asked(words, 0)
    if is_failed:
        words.answer(question, None)
    evidence = words.evidence(SECOND)
    assert evidence.is_dictation and evidence.completeness is None and not evidence.is_awaited


def test_whoever_hears_the_voice_is_asked_again_in_another_pause_with_the_same_words() -> None:
    words = PauseWords()
    words.hear("a mocha", 0)
    words.pause_began(None, 4000)
    first = asked(words, 4800)
    words.answer(first, 0.3)
    words.pause_began(None, 4000)
    assert words.question(8000, is_paused=True) is None, "the same pause, however long"
    words.pause_began(None, 9000)
    assert words.question(9800, is_paused=False) is None
    second = asked(words, 9900)
    assert (second.text, second.heard_until) == ("a mocha", 9000) and second.number > first.number
    assert words.evidence(9950).completeness == 0.3, "the last answer stands until the next comes"
    words.answer(second, 0.9)
    assert words.evidence(9999).completeness == 0.9


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("my email is tom", "my email is tom@"),
        ("my email is tom at example com", "my email is tom at example.com"),
        ("code is 3 30", "code is 3:30"),
        ("give me 3 50", "give me 3.50"),
        ("i want 20 off", "i want 20% off"),
        ("it costs 5", "it costs $5"),
    ],
)
def test_marks_that_are_said_or_make_an_address_or_a_price_are_other_words(before: str, after: str) -> None:
    words = PauseWords()
    words.hear(before, 0)
    words.answer(asked(words, 0), 0.3)
    words.hear(after, SECOND)
    assert asked(words, SECOND).text == after
    assert words.is_dictation == is_dictation(after)


def test_an_utterance_without_words_may_still_get_some() -> None:
    words = PauseWords()
    evidence = words.evidence(100)
    assert evidence.completeness == NO_WORDS and not evidence.is_dictation
    assert not words.wants_sound
    words.pause_began(0.8)
    evidence = words.evidence(100)
    assert (evidence.completeness, evidence.sound) == (NO_WORDS, None), "what it sounded like had no part in it"


def test_the_same_words_are_asked_about_again_where_the_voice_stopped_a_second_time() -> None:
    words = PauseWords()
    words.hear("a tea", 0)
    words.pause_began(0.3)
    first = asked(words, 100)
    assert (first.text, first.sound) == ("a tea", 0.3) and words.question(200, is_paused=True) is None
    words.answer(first, 0.2)
    words.pause_began(0.8)
    second = asked(words, 300)
    evidence = words.evidence(300)
    assert (evidence.completeness, evidence.sound) == (0.2, 0.3), (
        "of how they had sounded first, until there is a newer one"
    )
    words.answer(first, 0.1)
    assert words.evidence(300).completeness == 0.2, "overtaken"
    words.answer(second, 0.9)
    assert (words.evidence(400).completeness, words.evidence(400).sound) == (0.9, 0.8)
    words.begin()
    words.hear("no", 500)
    assert asked(words, 500).sound is None, "another utterance"


@pytest.mark.parametrize("is_failed", [True, False])
def test_an_answer_stands_where_the_next_about_the_same_words_is_late_or_fails(is_failed: bool) -> None:
    words = PauseWords()
    words.hear("i'd like a", 0)
    words.pause_began(0.3)
    words.answer(asked(words, 0), 0.05)
    words.pause_began(0.8)
    second = asked(words, SECOND)
    if is_failed:
        words.answer(second, None)
    evidence = words.evidence(2 * SECOND)
    assert (evidence.completeness, evidence.sound, evidence.is_awaited) == (0.05, 0.3, False)
    pause = words.pause(1.0, 2 * SECOND, is_judged=True)
    assert (pause.completeness, pause.is_judged) == (0.05, False)
    words.hear("i'd like a tea", 3 * SECOND)
    assert words.evidence(3 * SECOND).completeness is None
    words.answer(asked(words, 3 * SECOND), None)
    evidence = words.evidence(4 * SECOND)
    assert (evidence.completeness, evidence.sound) == (None, None), "an answer about other words is gone for good"


def test_a_late_answer_to_the_first_question_about_the_same_words_counts_until_the_second_comes() -> None:
    words = PauseWords()
    words.hear("i'd like a", 0)
    words.pause_began(0.3)
    first = asked(words, 0)
    words.pause_began(0.8)
    second = asked(words, SECOND)
    words.answer(first, None)
    assert words.evidence(SECOND).is_awaited, "the second may still come"
    words.answer(first, 0.05)
    evidence = words.evidence(2 * SECOND)
    assert (evidence.completeness, evidence.sound) == (0.05, 0.3)
    words.answer(second, 0.1)
    assert (words.evidence(2 * SECOND).completeness, words.evidence(2 * SECOND).sound) == (0.1, 0.8)
    words.begin()
    words.hear("i'd like a", 3 * SECOND)
    asked(words, 3 * SECOND)
    words.answer(second, 0.1)
    assert words.evidence(3 * SECOND).completeness is None, "of another utterance"


def test_whether_words_were_misheard_is_told_as_the_answer_that_stands_has_it() -> None:
    words = PauseWords()
    words.hear("a tea", 0)
    assert words.evidence(0).is_misheard is None
    words.pause_began(0.3)
    words.answer(asked(words, 100), 0.2, is_misheard=True)
    assert words.evidence(100).is_misheard is True
    words.pause_began(0.8)
    second = asked(words, 300)
    assert words.evidence(300).is_misheard is True, "until there is a newer one"
    words.answer(second, 0.2)
    assert words.evidence(300).is_misheard is False
    words.hear("a tea please", 400)
    assert words.evidence(400).is_misheard is None
    words.answer(asked(words, 400), None)
    assert words.evidence(500).is_misheard is None, "nobody could say"


def test_a_sound_is_told_only_where_an_answer_weighed_it() -> None:
    words = PauseWords()
    words.begin("What size?")
    words.hear("large", 0)
    assert not words.wants_sound
    words.pause_began(0.9)
    words.answer(asked(words, 0), 0.8)
    assert words.evidence(0).sound is None, "short answers are judged by their words"
    words.hear("large with some milk", 0)
    assert words.wants_sound
    question = asked(words, 0)
    assert words.evidence(0).sound is None, "nobody has weighed it yet"
    words.answer(question, 0.8)
    assert words.evidence(0).sound == 0.9


def test_what_dictated_words_sound_like_counts_for_nothing() -> None:
    words = PauseWords()
    words.expect("What's your phone number?")
    words.hear("five five", 0)
    words.pause_began(0.9)
    assert asked(words, 0).sound is None and words.sound is None and words.evidence(0).sound is None
    assert not words.wants_sound
    words.expect("What can I get you?")
    assert words.sound == 0.9


def test_what_the_agent_asked_for_makes_the_words_dictation() -> None:
    words = PauseWords()
    words.expect("What's your phone number?")
    words.hear("five five five", 0)
    words.answer(asked(words, 0), 0.99)
    evidence = words.evidence(SECOND)
    assert evidence.is_dictation


@pytest.mark.parametrize(
    "words",
    [
        "my number is five five five",
        "it's oh two oh",
        "call me at 5551234",
        "that's spelled k o w",
        "jane dot doe at mail dot",
        "jane at mail dot com",
        "twelve mill street",
        "send it to 12 Mill Street,",
    ],
)
def test_dictated_words_are_noticed(words: str) -> None:
    assert ends_in_dictation(words)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "a large mocha",
        "two sixteen ounce coffees",
        "make that two",
        "one two three coffees please",
        "at two thirty p m",
        "can i have a",
        "is the cafe on mill street",
        "my number is five five five and i'd like a tea",
    ],
)
def test_other_words_are_not_dictation(words: str) -> None:
    assert not ends_in_dictation(words)


@pytest.mark.parametrize(
    "said",
    [
        "Sure. What's your phone number?",
        "Could you spell that for me?",
        "What is your e-mail address?",
        "Thanks! Please give me your zip code.",
        "And the account number, please? Take your time. What's the account number?",
    ],
)
def test_questions_for_dictation_are_noticed(said: str) -> None:
    assert asks_for_dictation(said) and is_dictation("sure", said)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "What size would you like?",
        "Our address is 12 Mill Street.",
        "What's your phone number? Never mind.",
        "How many?",
    ],
)
def test_other_sentences_are_not_questions_for_dictation(said: str) -> None:
    assert not asks_for_dictation(said)


@pytest.mark.parametrize(
    ("said", "before", "is_one"),
    [
        ("no", "That's $4.50. Anything else?", True),
        ("Yes.", "Have you been here before?", True),
        ("nope", "So, would you like one?", True),
        ("no", "Is it hot or iced?", False),
        ("no", "What size?", False),
        ("no", "Is that so.", False),
        ("no i", "Shall I book it?", False),
        ("", "Shall I book it?", False),
        ("yes", "Can you tell me your address?", False),
        ("yes", "Do you have a name for the booking?", False),
    ],
)
def test_a_yes_or_no_alone_is_one_where_it_was_asked_for(said: str, before: str, is_one: bool) -> None:
    assert is_yes_or_no(said, before) is is_one

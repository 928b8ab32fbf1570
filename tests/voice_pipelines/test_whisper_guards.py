"""Text that Whisper makes up is dropped, and text that people say is kept."""

from __future__ import annotations

import pytest

from voice_pipelines.adapters.whisper_guards import Segment, believable, doubt, repeats_itself
from voiceagent.backends import Word

SPEECH_DBFS = -20.0


def segment(
    text: str, *, logprob: float = -0.3, no_speech: float = 0.05, compression: float = 1.0, probability: float = 0.9
) -> Segment:
    words = tuple(Word(word, i * 0.3, i * 0.3 + 0.3, probability) for i, word in enumerate(text.split()))
    return Segment(text, words, logprob, no_speech, compression)


def heard(text: str, level_dbfs: float = SPEECH_DBFS, **measures: float) -> str:
    kept = believable([segment(text, **measures)], level_dbfs)
    return " ".join(word.text for part in kept for word in part.words)


@pytest.mark.parametrize(
    "text",
    [
        "Could I get a large flat white, please?",
        "no no no I said oat milk",
        "five five five five two one",
        "five five six, five five six, five five six",
        "a latte and a latte and a latte",
        "Thank you.",
        "bye bye",
    ],
)
def test_what_people_say_is_kept_word_for_word(text: str) -> None:
    assert heard(text) == text


def test_thanks_for_watching_is_believed_from_a_loud_speaker_and_not_from_hiss() -> None:
    assert heard("Thanks for watching!", -25.0) == "Thanks for watching!"
    assert heard("Thanks for watching!", -45.0) == ""


def test_an_order_spoken_softly_is_kept_unless_it_is_unlikely_too() -> None:
    assert heard("a small latte", -45.0) == "a small latte"
    assert heard("and it", -50.0, logprob=-1.59) == ""
    assert heard("and it", logprob=-1.59) == "and it"


def test_silence_says_nothing_whatever_the_text() -> None:
    assert heard("a small latte", -70.0) == ""


@pytest.mark.parametrize(("no_speech", "logprob", "kept"), [(0.7, -1.2, False), (0.7, -0.5, True), (0.5, -1.2, True)])
def test_no_speech_needs_unlikely_text_beside_it(no_speech: float, logprob: float, kept: bool) -> None:
    assert bool(heard("a small latte", no_speech=no_speech, logprob=logprob)) is kept


def test_text_that_repeats_itself_needs_to_be_unlikely_too() -> None:
    assert doubt(segment("la la la", compression=3.0, logprob=-1.5), SPEECH_DBFS) is not None
    assert doubt(segment("la la la", compression=3.0, logprob=-0.2), SPEECH_DBFS) is None


def test_a_loop_is_cut_to_one_round() -> None:
    assert heard("one flat white " + "with oat milk " * 8) == "one flat white with oat milk"
    assert heard("I I I I I I I I I would like tea") == "I would like tea"
    assert heard("Yes. yes, YES yes! yes yes yes yes") == "Yes."


def test_a_loop_that_is_cut_off_keeps_what_follows() -> None:
    assert heard("so a tea so a tea so a tea so a tea and a cake") == "so a tea and a cake"


def test_every_doubt_gives_its_reason() -> None:
    assert "silent" in (doubt(segment("hello"), -80.0) or "")
    assert "no speech" in (doubt(segment("hello", no_speech=0.9, logprob=-1.5), SPEECH_DBFS) or "")
    assert "nobody says" in (doubt(segment("hello", logprob=-2.5), SPEECH_DBFS) or "")
    assert "writes for noise" in (doubt(segment("Thank you."), -50.0) or "")
    assert doubt(segment(""), SPEECH_DBFS) == "no words"


@pytest.mark.parametrize("text", [".", "...", "- .", "\u266a"])
def test_marks_alone_are_no_words(text: str) -> None:
    assert doubt(segment(text), SPEECH_DBFS) == "no words"


def test_a_phrase_written_for_noise_needs_no_unlikely_text_beside_it_when_nobody_seems_to_speak() -> None:
    assert heard("you", no_speech=0.91, logprob=-0.5) == ""
    assert heard("you", no_speech=0.2, logprob=-0.5) == "you"
    assert heard("five", no_speech=0.91, logprob=-0.5) == "five"


def test_a_hot_word_written_for_a_room_is_too_unlikely_and_one_said_in_a_word_is_not() -> None:
    assert heard("coffee,", no_speech=0.5, logprob=-2.01) == ""
    assert heard("two,", no_speech=0.1, logprob=-1.3) == "two,"


@pytest.mark.parametrize(
    ("text", "compression", "again"),
    [
        ("Can I have a small latte with soy milk? Can I have a small latte with soy milk?", 1.5, True),
        ("may have a single shot mocha, may have a single shot mocha, may", 1.5, True),
        ("5 5 5 5 5 5 5 5", 1.2, True),
        ("6, 0, 7, 5, 6, 0, 7, 5, 6, 0, 7, 5, 6, 0", 1.7, True),
        ("G'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn", 3.0, True),
        ("no no no I said oat milk", 1.0, False),
        ("a latte and a mocha and a tea and a cake", 1.2, False),
        ("five five six, five five six", 1.2, False),
        ("Could I get a large flat white, please?", 0.9, False),
        ("", 0.0, False),
    ],
)
def test_what_may_be_a_loop_is_listened_to_again(text: str, compression: float, again: bool) -> None:
    assert repeats_itself(segment(text, compression=compression)) is again

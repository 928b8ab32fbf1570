"""What of a caller's words may stand as an argument."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.said import Heard, Value, kind_of, values_of, words_of_number

STRING: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "integer"}
SIZES: dict[str, Any] = {"enum": ["small", "large", "blocked drain"]}


def said(key: str, schema: dict[str, Any], text: str, asked: str = "") -> list[Value]:
    return values_of(key, schema, [Heard.of(text, asked)])


def texts(key: str, schema: dict[str, Any], text: str, asked: str = "") -> list[str]:
    return [value.text for value in said(key, schema, text, asked)]


@pytest.mark.parametrize(
    ("key", "schema", "kind"),
    [
        ("day", STRING, "day"),
        ("pickupTime", STRING, "time"),
        ("card_number", STRING, "digits"),
        ("card_number", NUMBER, "number"),
        ("film", STRING, "words"),
        ("size", SIZES, "choice"),
        ("gift", {"type": "boolean"}, "flag"),
    ],
)
def test_an_argument_is_of_a_kind_by_its_type_and_its_name(key: str, schema: dict[str, Any], kind: str) -> None:
    assert kind_of(key, schema) == kind


def test_a_day_and_a_time_are_found_whole() -> None:
    text = "from the third of may at half past eight or next tuesday at seven thirty p m"
    assert texts("day", STRING, text) == ["the third of may", "next tuesday"]
    assert texts("time", STRING, text) == ["half past eight", "seven thirty p m"]


def test_a_number_is_what_counts_something_and_no_time_and_no_pronoun() -> None:
    assert texts("people", NUMBER, "a table for twenty five at seven") == ["twenty five"]
    assert texts("people", NUMBER, "the small one") == []
    assert texts("people", NUMBER, "there will be one") == ["one"]
    [nights] = said("nights", NUMBER, "for five nights")
    assert nights.text == "five" and nights.is_sure


def test_what_counts_something_is_no_time() -> None:
    assert texts("time", STRING, "three people for seven at eight") == ["eight"]


def test_what_is_corrected_in_the_same_breath_was_not_said() -> None:
    assert texts("day", STRING, "on monday no sorry on tuesday") == ["tuesday"]
    assert texts("day", STRING, "on monday or on tuesday") == ["monday", "tuesday"]


def test_an_alternative_is_found_in_other_forms_and_words_between() -> None:
    assert texts("size", SIZES, "a large one") == ["large"]
    assert texts("size", SIZES, "my drain is blocked") == ["blocked drain"]
    assert texts("size", SIZES, "the drain is fine but the road to it is blocked") == []
    assert texts("count", {"enum": [2, 4]}, "make it four") == ["four"], "which the schema makes 4"


def test_yes_and_no_are_said_by_the_thing_itself_or_in_answer_to_a_question_about_it() -> None:
    flag = {"type": "boolean"}
    assert texts("delivery", flag, "please deliver it") == ["yes"]
    assert texts("parking", flag, "a room with no parking") == ["no"]
    assert texts("parking", flag, "yes please", "do you need parking") == ["yes"]
    assert texts("parking", flag, "yes please", "is that all") == []


def test_words_before_a_value_tell_whose_it_is() -> None:
    found = {value.text: value for value in said("destination", STRING, "from the station to the zoo")}
    assert found["zoo"].is_told and not found["zoo"].is_other
    assert found["station"].is_other and not found["station"].is_told
    assert {value.text: value.is_told for value in said("name", STRING, "my name is susan brown")}["susan brown"]


def test_an_answer_to_a_question_that_names_the_argument_is_told() -> None:
    values = values_of("title", STRING, [Heard.of("i want a book"), Heard.of("war and peace please", "which title")])
    assert [value.text for value in values if value.is_told] == ["war and peace"]


def test_a_run_of_words_is_cut_neither_at_and_nor_within_a_day() -> None:
    assert texts("film", STRING, "war and peace") == ["war and peace"]
    assert texts("film", STRING, "night train tomorrow") == ["night", "night train", "train", "tomorrow"]


def test_an_address_is_a_figure_words_and_a_street() -> None:
    [found] = said("address", STRING, "bring them to twenty two park lane please")
    assert found.text == "twenty two park lane" and found.is_sure


def test_figures_are_dictated_with_letters_among_them() -> None:
    assert texts("plate", STRING, "the plate is k l four two seven") == ["k l four two seven"]
    assert texts("phone", STRING, "call me back") == []


def test_what_a_call_has_spent_is_said_no_more() -> None:
    properties = {"people": NUMBER, "day": STRING, "fault": {"enum": ["blocked drain", "leaking tap"]}}
    turn = Heard.of("a table for two on friday").without({"people": "two", "day": "friday"}, properties)
    assert turn.words == tuple("a table for - on -".split())
    turn = Heard.of("my drain is blocked").without({"fault": "blocked drain"}, properties)
    assert turn.words == tuple("my - - -".split()), "an alternative is spent in whatever words it was said"
    turn = Heard.of("a large coffee and a large tea").without({"size": "large"}, {})
    assert turn.words == tuple("a - coffee and a large tea".split()), "once"


@pytest.mark.parametrize(
    ("text", "asked", "told"),
    [
        ("a pizza with delivery", "", ["yes"]),
        ("a pizza no delivery please", "", ["no"]),
        ("i don't want any delivery", "", ["no"]),
        ("a pizza no salad and delivery please", "", []),
        ("no i want delivery of the pizza", "will you pick it up", []),
        ("no delivery wait i do want delivery", "", ["yes"]),
        ("of course not", "would you like delivery", ["no"]),
        ("yeah no thanks", "would you like delivery", ["no"]),
        ("yes please", "would you like delivery", ["yes"]),
        ("yes no sugar", "would you like delivery", []),
    ],
)
def test_yes_and_no_belong_to_what_they_stand_beside(text: str, asked: str, told: list[str]) -> None:
    found = values_of("delivery", {"type": "boolean"}, [Heard.of(text, asked)])
    assert [value.text for value in found] == told and all(value.is_sure for value in found)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("not the soup a pizza please", ["pizza"]),
        ("anything but soup please", []),
        ("but soup please", ["soup"]),
        ("everything except the soup", []),
        ("no we want soup", ["soup"]),
    ],
)
def test_an_alternative_that_is_not_wanted_is_none(text: str, wanted: list[str]) -> None:
    assert texts("dish", {"enum": ["pizza", "pasta", "soup"]}, text) == wanted


def test_no_one_is_nobody() -> None:
    assert texts("people", NUMBER, "no one has called me back for two tables") == ["two"]
    assert texts("people", NUMBER, "one please") == ["one"]


def test_a_value_named_by_what_it_is_is_not_taken_back_for_another_thing() -> None:
    assert "two" in texts("nights", NUMBER, "two nights actually for three people")
    assert texts("day", STRING, "may i come on friday wait is saturday free") == ["friday", "saturday"]


CORRECTIONS = (
    "no sorry",
    "no wait",
    "sorry",
    "i mean",
    "actually",
    "make it",
    "make that",
    "instead",
    "wait",
    "rather",
)


@given(st.lists(st.sampled_from([*CORRECTIONS, "no", "make", "monday", "friday", "lamp", "sofa", "the"]), max_size=12))
def test_a_value_is_taken_back_where_another_follows_a_correction(parts: list[str]) -> None:
    words = tuple(" ".join(parts).split())
    days = [(at, word) for at, word in enumerate(words) if word in ("monday", "friday")]

    any_correction = rf"(?:{'|'.join(CORRECTIONS)})\b"

    def is_back(at: int, day: str) -> bool:
        behind = " ".join(words[at + 1 :])
        first = re.search(rf"\b{any_correction}", behind)
        follows = first and re.match(rf"(?:{any_correction} ?)+(?:the )*(monday|friday)\b", behind[first.start() :])
        return bool(follows and follows[1] != day)

    kept = [(at, day) for at, day in days if not is_back(at, day)]
    assert [(value.first, value.text) for value in values_of("day", STRING, [Heard(words)])] == kept


def test_a_number_out_of_bounds_is_none() -> None:
    assert texts("people", {"type": "integer", "minimum": 1, "maximum": 8}, "not zero or twelve but four") == ["four"]


def test_a_number_is_found_in_the_words_that_said_it_last() -> None:
    text = "the card is three three two one for a dozen of them or twenty one"
    assert words_of_number(3321, text) == "three three two one"
    assert words_of_number(12, text) == "a dozen" or words_of_number(12, text) == "dozen"
    assert words_of_number(21, text) == "twenty one" and words_of_number(5, text) is None

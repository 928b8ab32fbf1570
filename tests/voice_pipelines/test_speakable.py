"""Written English as words that can be said."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voice_pipelines.speakable import speakable, split_for_speech


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        # money
        ("Your total is $13.75.", "Your total is thirteen dollars and seventy five cents."),
        ("$1", "one dollar"),
        ("$0.50", "fifty cents"),
        ("$0.01", "one cent"),
        ("$4.5", "four dollars and fifty cents"),
        ("That's $4.", "That's four dollars."),
        ("$5 million", "five million dollars"),
        ("$1,299.99!", "one thousand two hundred and ninety nine dollars and ninety nine cents!"),
        ("£2.01", "two pounds and one penny"),
        ("US$5", "US five dollars"),
        # times
        ("7:30 pm", "seven thirty PM"),
        ("From 7:00 to 9:05 p.m. today.", "From seven o'clock to nine oh five PM today."),
        ("at 7 a.m.", "at seven AM."),
        ("7-9 pm", "seven to nine PM"),
        ("7am-9pm", "seven AM to nine PM"),
        ("19:30", "nineteen thirty"),
        # figures
        ("2 lattes, 1 mocha", "two lattes, one mocha"),
        ("1,234.5", "one thousand two hundred and thirty four point five"),
        ("-5 degrees", "minus five degrees"),
        ("1st, 22nd, 103rd", "first, twenty second, one hundred and third"),
        ("5% off, 3.5%", "five percent off, three point five percent"),
        ("10–12 people", "ten to twelve people"),
        ("1/2 cup, ½ cup", "one half cup, one half cup"),
        ("in 1998", "in nineteen ninety eight"),
        ("We are open until 8:.", "We are open until eight."),
        ("12/25", "December twenty fifth"),
        ("Nov 3rd", "November third"),
        ("24/7", "twenty four seven"),
        # digits one by one
        ("Call 555-0123", "Call five five five, zero one two three"),
        ("(415) 555-0199.", "four one five, five five five, zero one nine nine."),
        ("4155550199", "four one five five five five zero one nine nine"),
        ("Order #1234", "Order number one two three four"),
        ("007", "zero zero seven"),
        # units and abbreviations
        ("16oz, 1 oz", "sixteen ounces, one ounce"),
        ("72°F", "seventy two degrees Fahrenheit"),
        ("~5 min", "about five minutes"),
        ("Dr. Lee of St. James", "Doctor Lee of Saint James"),
        ("at 5 Main St. in town", "at five Main Street in town"),
        ("On 12 Oak Dr.", "On twelve Oak Drive."),
        ("Mr. Smith vs. Mrs. Jones", "Mister Smith versus Missus Jones"),
        ("No. 5 it is. No.", "number five it is. No."),
        ("e.g. milk, i.e. cream", "for example milk, that is cream"),
        ("tea & coffee w/ milk", "tea and coffee with milk"),
        # markup and addresses
        ("**Bold** _it_ `code` [menu](http://x.com/a)", "Bold it code menu"),
        ("# Title\n- Latte\n- Mocha", "Title, Latte, Mocha"),
        ("<speak>hello <break time='3s'/></speak>", "hello"),
        ("Visit www.example.com/menu!", "Visit example dot com!"),
        ("a.b@cafe.org", "a dot b at cafe dot org"),
        ("Sure — one latte", "Sure, one latte"),
        ("Great 😀!", "Great!"),
        ("It's $5 - cheap", "It's five dollars, cheap"),
        # nothing to do
        ("Hello there, what can I get you?", "Hello there, what can I get you?"),
        ("😀", ""),
        ("", ""),
        ("<speak>", "speak"),
    ],
)
def test_text_is_said_as_a_person_would(text: str, spoken: str) -> None:
    assert speakable(text) == spoken


WRITTEN = st.text(max_size=80) | st.text(alphabet="0123456789$€.,:;-–/%°#@&()+ apmStDr.<>*_`[]\n", max_size=60)


@given(WRITTEN)
def test_any_text_is_spoken_without_figures_and_keeps_letters_if_it_had_any(text: str) -> None:
    spoken = speakable(text)
    assert not re.search("[0-9]", spoken)
    if re.search("[A-Za-z0-9]", text):
        assert any(map(str.isalpha, spoken))


@given(WRITTEN)
def test_what_is_speakable_stays_as_it_is(text: str) -> None:
    once = speakable("one latte " + re.sub(r"[^a-z ]", "", text.lower()))
    assert speakable(once) == once


def test_long_text_is_split_between_words() -> None:
    pieces = split_for_speech("two words " * 200, 100)
    assert all(len(piece) <= 100 for piece in pieces)
    assert " ".join(pieces).split() == ["two", "words"] * 200


def test_nothing_to_say_is_no_piece() -> None:
    assert split_for_speech("😀 ... !", 100) == []
    assert split_for_speech("", 100) == []

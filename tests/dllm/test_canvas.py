"""What can be read off a canvas: clauses, speakable prefixes, stutters."""

from __future__ import annotations

import pytest

from dllm.canvas import Canvas, CellState, repeats_span
from tests.dllm import tiny

CODEC = tiny.codec()
TABLE = CODEC.token_table


def canvas_with(text: str, width: int = 40, decided: int | None = None) -> Canvas:
    """A canvas that guesses `text` and an end-of-turn, of which the first positions are committed."""
    canvas = Canvas(width, TABLE)
    ids = CODEC.encode_text(text)
    tokens = ids + [TABLE.end] * (width - len(ids))
    for position, token in enumerate(tokens):
        canvas.guess(position, token, 0.5)
    for position in range(width if decided is None else decided):
        canvas.commit(position, tokens[position], 0.9)
    return canvas


def clause_of(text: str, width: int = 40) -> str:
    canvas = canvas_with(text, width)
    return CODEC.decode(canvas.tokens[: canvas.first_clause_end()]).strip()


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("Sure. What size would you like?", "Sure."),
        ("Sure, what size would you like?", "Sure, what size would you like?"),
        ("A large mocha with almond milk, that's all.", "A large mocha with almond milk,"),
        ("What size?", "What size?"),
        ("Goodbye", "Goodbye"),
    ],
)
def test_first_clause_ends_at_a_sentence_or_a_comma_after_four_words(text: str, clause: str) -> None:
    assert clause_of(text) == clause


def test_point_inside_a_price_does_not_end_the_clause() -> None:
    assert clause_of("That's $5.10 please. Goodbye") == "That's $5.10 please."


def test_point_after_a_figure_waits_for_the_next_token() -> None:
    canvas = canvas_with("That's $5.10. Goodbye")
    text = CODEC.encode_text("That's $5.10.")
    assert canvas.first_clause_end() == len(text) + 1


def test_empty_guess_means_the_whole_canvas_is_the_clause() -> None:
    assert Canvas(16, TABLE).first_clause_end() == 16


@pytest.mark.parametrize("decided", range(1, 24))
def test_only_whole_words_are_speakable_however_much_is_decided(decided: int) -> None:
    text = "A large mocha, that's $5.10. Anything else?"
    canvas = canvas_with(text, 40, decided)
    said = CODEC.decode(canvas.tokens[: canvas.speakable(0, decided)]).strip()
    assert text.startswith(said)
    rest = text[len(said) :]
    assert not rest or rest.startswith(" ") or not said, f"cut inside a word: {said!r} | {rest!r}"


def test_decided_prefix_stops_at_the_first_gap() -> None:
    canvas = Canvas(8, TABLE)
    canvas.commit(0, 20, 0.9)
    canvas.commit(2, 20, 0.9)
    assert canvas.decided_prefix() == 1
    assert canvas.masked() == [1, 3, 4, 5, 6, 7]
    assert canvas.model_input()[1] == TABLE.mask


def test_pins_are_decided_and_known() -> None:
    canvas = Canvas(8, TABLE)
    canvas.pin(3, (30, 31))
    assert canvas.states[3:5] == [CellState.PINNED] * 2
    assert canvas.last_pin() == 4
    assert canvas.masked() == [0, 1, 2, 5, 6, 7]


def test_stutters_are_recognised_among_decided_tokens_only() -> None:
    word = next(iter(sorted(TABLE.word)))
    other, third = sorted(TABLE.word)[1:3]
    canvas = Canvas(12, TABLE)
    canvas.commit(0, word, 0.9)
    assert repeats_span(canvas, 1, word)
    assert not repeats_span(canvas, 2, word)
    assert not repeats_span(canvas, 1, TABLE.end)
    for position, token in enumerate((other, third, word, other), start=1):
        canvas.commit(position, token, 0.9)
    assert repeats_span(canvas, 5, third), "word other third word other third"
    assert not repeats_span(canvas, 6, third)


def test_digits_may_repeat() -> None:
    digit = CODEC.tokenizer.token_to_id("5")
    canvas = Canvas(8, TABLE)
    canvas.commit(0, digit, 0.9)
    canvas.commit(1, digit, 0.9)
    assert not repeats_span(canvas, 2, digit)


def test_a_reply_that_fills_the_canvas_is_cut_after_its_last_sentence_or_pin() -> None:
    text = "What size? Small, medium or large. Goodbye, see"
    ids = CODEC.encode_text(text)
    canvas = canvas_with(text, len(ids))
    whole = CODEC.encode_text("What size? Small, medium or large.")
    assert canvas.last_sentence_end(0) == len(whole)
    assert canvas.last_sentence_end(len(whole)) == len(whole), "the rest is left unsaid"
    assert canvas.last_sentence_end(len(whole) + 1) == len(ids), "but never a sentence that has begun"
    price = CODEC.encode_pin("$5.10")
    canvas = Canvas(len(price) + 2, TABLE)
    canvas.pin(0, price)
    assert canvas.last_sentence_end(0) == len(price)

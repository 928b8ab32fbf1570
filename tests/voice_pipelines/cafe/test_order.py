"""The order book: conversations as callers have them, exact totals, and any text at all."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voice_pipelines.cafe.dialogues import PRESET
from voice_pipelines.cafe.hearing import Ear
from voice_pipelines.cafe.menu import Menu, MenuError, money, read_menu
from voice_pipelines.cafe.order import MOST_WORDS, OrderBook, cafe_notes, note_of

CONVERSATIONS: dict[str, list[tuple[str, str]]] = {
    "an order in one breath": [
        (
            "can i get a single shot light roast house coffee with a lot of skim milk",
            "order: single shot light roast house coffee with a lot of skim milk; size missing: house coffee",
        ),
        (
            "twelve ounce",
            "order: twelve ounce single shot light roast house coffee with a lot of skim milk; total: $3.00",
        ),
        ("and a croissant", "add: croissant; total: $6.25"),
        ("that's all", "done; total: $6.25; ready in: 10 minutes"),
        ("thanks bye", ""),
    ],
    "several at once, one without a size": [
        ("two flat whites and a large mocha", "order: two flat whites, large mocha; size missing: flat white"),
        ("small", "add: two small flat whites; total: $12.50"),
        ("what's my total", "repeat: two small flat whites, large mocha; total: $12.50"),
    ],
    "corrections": [
        ("a small latte", "order: small latte; total: $3.50"),
        ("no i said large", "change: large latte; total: $4.50"),
        ("make that a medium", "change: medium latte; total: $4.00"),
        ("no oat milk instead", "change: medium latte with oat milk; total: $4.50"),
        ("actually soy milk", "change: medium latte with soy milk; total: $4.50"),
        ("no milk", "change: medium latte; total: $4.00"),
        ("with two sugars", "change: medium latte with two sugars; total: $4.00"),
        ("without sugar", "change: medium latte; total: $4.00"),
        ("make it a double shot", "change: medium double shot latte; total: $4.75"),
        ("actually two of them", "change: two medium double shot lattes; total: $9.50"),
        ("just one", "change: medium double shot latte; total: $4.75"),
        ("change the latte to a mocha", "change: medium double shot mocha; total: $5.25"),
        ("no a cappuccino", "change: medium double shot cappuccino; total: $4.75"),
    ],
    "a count survives a new size": [
        ("three lattes", "order: three lattes; size missing: latte"),
        ("make it a large", "order: three large lattes; total: $13.50"),
    ],
    "the size is answered in full": [
        ("a latte with soy", "order: latte with soy milk; size missing: latte"),
        ("a large latte", "order: large latte with soy milk; total: $5.00"),
        ("and a mocha", "add: mocha; size missing: mocha"),
        ("medium sized mocha please", "add: medium mocha; total: $9.50"),
        ("another mocha small", "add: small mocha; total: $13.50"),
    ],
    "all of them": [
        ("a large latte and a large mocha", "order: large latte, large mocha; total: $9.50"),
        ("actually make both of them small", "change: small latte, small mocha; total: $7.50"),
    ],
    "what is taken off is taken off where it is": [
        ("a small latte with sugar and a small mocha", "order: small latte with sugar, small mocha; total: $7.50"),
        ("forget the sugar", "change: small latte; total: $7.50"),
    ],
    "a change that was made already is confirmed": [
        ("a small latte", "order: small latte; total: $3.50"),
        ("no i said small", "change: small latte; total: $3.50"),
        ("can i have that with dark roast please", "change: small dark roast latte; total: $3.50"),
    ],
    "removing": [
        ("a large latte and a croissant", "order: large latte, croissant; total: $7.75"),
        ("remove the latte", "remove: large latte; total: $3.25"),
        ("i don't want anything else", "done; total: $3.25; ready in: 10 minutes"),
        ("oh and a cookie", "add: cookie; total: $5.50"),
        ("cancel that", "remove: cookie; total: $3.25"),
        ("cancel everything", "remove: everything; order empty"),
        ("no", "done; order empty"),
    ],
    "the named item changes": [
        ("a small latte and a small mocha", "order: small latte, small mocha; total: $7.50"),
        ("make the latte a large", "change: large latte; total: $8.50"),
        ("no latte", "remove: large latte; total: $4.00"),
    ],
    "prices and offers": [
        ("how much is a latte", "price: latte small $3.50, medium $4.00, large $4.50"),
        ("yes please", "order: latte; size missing: latte"),
        ("large", "order: large latte; total: $4.50"),
        ("how much is a twenty ounce mocha with oat milk", "price: twenty ounce mocha with oat milk $6.00"),
        ("no thanks", "not added: mocha"),
        ("do you have croissants", "on the menu: croissants"),
        ("sure", "add: croissant; total: $7.75"),
        ("how much is that", "repeat: large latte, croissant; total: $7.75"),
        ("no", "done; total: $7.75; ready in: 10 minutes"),
    ],
    "questions order nothing": [
        (
            "what kinds of milk do you have",
            "milks: whole milk, skim milk, two percent milk, soy milk, almond milk, oat milk",
        ),
        ("do you have oat milk", "on the menu: oat milk"),
        ("is there gluten in the muffin", "allergens unknown"),
        ("do you guys have gluten free muffins", "allergens unknown"),
        ("what is a cortado", ""),
        ("how long will it take", "ready in: 10 minutes"),
        ("do you sell tacos", "not on the menu: tacos"),
        ("what time do you close", ""),
        ("what's my total", "order empty"),
        ("what about a cortado", "order: cortado; total: $3.50"),
    ],
    "not sold beside sold": [
        ("a small latte and a pizza", "order: small latte; total: $3.50; not on the menu: pizza"),
        ("can i get a burger", "not on the menu: burgers"),
    ],
    "said again": [
        ("a small latte", "order: small latte; total: $3.50"),
        ("sorry what", "order: small latte; total: $3.50"),
        ("could you repeat that", "order: small latte; total: $3.50"),
    ],
    "closing needs every size": [
        ("a latte and that's all", "order: latte; size missing: latte"),
        ("that's it", "size missing: latte"),
        ("small", "order: small latte; total: $3.50"),
        ("that's it", "done; total: $3.50; ready in: 10 minutes"),
    ],
    "ordered and closed at once": [
        ("an espresso and that's all", "order: espresso; done; total: $2.50; ready in: 10 minutes"),
    ],
    "a sentence cut by a pause": [
        ("can i get a large", ""),
        ("mocha", "order: large mocha; total: $5.00"),
        ("and can i get a small", ""),
        ("latte", "add: small latte; total: $8.50"),
    ],
    "equal things are counted when read back": [
        ("a cookie", "order: cookie; total: $2.25"),
        ("another cookie", "add: cookie; total: $4.50"),
        ("what did i order", "repeat: two cookies; total: $4.50"),
    ],
    "an answer to anything else": [
        ("a small latte", "order: small latte; total: $3.50"),
        ("no just a croissant", "add: croissant; total: $6.75"),
        ("no i'd also like a cookie", "add: cookie; total: $9.00"),
        ("no that's everything thanks", "done; total: $9.00; ready in: 10 minutes"),
    ],
}


@pytest.mark.parametrize("title", CONVERSATIONS)
def test_conversation_gives_these_notes(preset: dict[str, Any], title: str) -> None:
    notes = cafe_notes(preset["menu"])
    for said, note in CONVERSATIONS[title]:
        assert (said, notes.hear(said).text) == (said, note)


@pytest.mark.parametrize(
    "text", ["", "uh", "um hmm", "the weather is fine", "mm of the and", "12", "can i place an order"]
)
def test_words_that_order_nothing_give_an_empty_note(preset: dict[str, Any], text: str) -> None:
    note = cafe_notes(preset["menu"]).hear(text)
    assert (note.text, note.must_say) == ("", ())


def test_names_and_prices_of_a_note_must_be_said(preset: dict[str, Any]) -> None:
    notes = cafe_notes(preset["menu"])
    assert notes.hear("a large latte").must_say == ("large latte", "$4.50")
    assert notes.hear("how much is a tea").must_say == ("$2.25", "$2.75", "$3.25")
    assert notes.hear("how much is a large tea").must_say == ("large tea", "$3.25")
    assert notes.hear("do you have tacos").must_say == ("tacos",)
    assert notes.hear("two teas and an eight ounce latte").must_say[0] == "two teas and an eight ounce latte"
    milks = notes.hear("what milks do you have").must_say
    assert len(milks) == 1 and " and " in milks[0]


def test_a_read_back_too_long_for_a_spoken_reply_must_only_say_its_price(preset: dict[str, Any]) -> None:
    notes = cafe_notes(preset["menu"])
    said = notes.hear(
        "a large double shot dark roast mocha with a little bit of almond milk and a lot of brown sugar and a large double shot "
        "dark roast latte with a little bit of oat milk and a lot of brown sugar"
    ).must_say
    assert len(said) == 1 and said[0].startswith("$")


def test_a_book_is_a_value_that_hearing_does_not_change(menu: Menu) -> None:
    empty = OrderBook(menu, Ear(menu))
    first, _ = empty.hear("a large latte")
    second, _ = first.hear("make it a small")
    again, _ = first.hear("make it a small")
    assert (empty.total, first.total, second.total) == (0, 450, 350)
    assert second == again


def test_of_an_endless_text_the_newest_words_are_heard(menu: Menu) -> None:
    book = OrderBook(menu, Ear(menu))
    said = "well " * (MOST_WORDS - 3) + "a large latte"
    assert book.hear("a croissant and " * 20_000 + said) == book.hear(said)
    assert book.hear(said)[0].total == 450


def test_conversations_do_not_share_an_order(preset: dict[str, Any]) -> None:
    one, other = cafe_notes(preset["menu"]), cafe_notes(preset["menu"])
    one.hear("a large latte")
    assert other.hear("what's my total").text == "order empty"


def test_total_is_exact_in_cents(menu: Menu) -> None:
    book, _ = OrderBook(menu, Ear(menu)).hear(
        "three large triple shot oat milk lattes with vanilla and honey and twelve almond croissants"
    )
    assert book.total == 3 * (450 + 150 + 50 + 50 + 25) + 12 * 395


def test_a_bad_menu_is_refused_by_the_factory() -> None:
    with pytest.raises(MenuError, match=r"menu\.sizes"):
        cafe_notes({"sizes": "small"})


# --- any text at all ------------------------------------------------------------------------------------------------------

MENU = read_menu(tomllib.loads(PRESET.read_text(encoding="utf-8"))["menu"])
EAR = Ear(MENU)
WORDS = sorted(
    {
        word
        for name in (*MENU.products, *MENU.milks, *MENU.extras, *MENU.said_sizes, *MENU.sizes)
        for word in name.split()
    }
    | {word for turns in CONVERSATIONS.values() for said, _ in turns for word in said.split()}
)
SPOKEN = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)
FACT = re.compile(
    r"(order|add|change|remove|size missing|repeat|price|not added|on the menu|not on the menu|milks|teas|syrups|sizes|roasts"
    r"|pastries|sandwiches|food|drinks|ready in): .+|total: \$\d+\.\d\d|done|order empty|allergens unknown"
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(SPOKEN, st.text(max_size=40)), max_size=6))
def test_any_words_keep_the_book_sound_and_the_note_in_its_grammar(texts: list[str]) -> None:
    book = OrderBook(MENU, EAR)
    for text in texts:
        book, facts = book.hear(text)
        note = note_of(facts)
        assert book.total >= 0
        assert book.total == sum(book.cost(item) for item in book.items if not book.lacks_size(item))
        assert all(FACT.fullmatch(str(fact)) for fact in facts), note.text
        said = " ".join(note.must_say).replace(",", "").split()
        assert set(said) - {"a", "an", "and"} <= set(note.text.replace(",", "").replace(";", "").split()) | {
            "a",
            "an",
            "and",
        }
        assert all(0 <= item.count <= 12 for item in book.items)
        totals = [fact.value for fact in facts if fact.key == "total"]
        assert totals in ([], [money(book.total)])


@settings(max_examples=200, deadline=None)
@given(SPOKEN)
def test_what_is_heard_again_is_heard_the_same(text: str) -> None:
    book = OrderBook(MENU, EAR)
    assert book.hear(text) == book.hear(text)


def test_what_would_be_noted_can_be_asked_without_ordering_it(preset: dict[str, Any]) -> None:
    notes = cafe_notes(preset["menu"])
    asked = notes.imagine("a large mocha please")
    assert "large mocha" in asked.text and not notes.book.items
    assert notes.imagine("a large mocha please") == asked == notes.hear("a large mocha please")
    assert notes.imagine("and a tea").text.startswith("add")
    assert [item.name for item in notes.book.items] == ["mocha"]

"""From spoken forms to items."""

from __future__ import annotations

import time

import pytest

from voice_pipelines.cafe.hearing import Addition, Ear, Item, normalise, plural
from voice_pipelines.cafe.menu import Menu


@pytest.fixture(scope="module")
def ear(menu: Menu) -> Ear:
    return Ear(menu)


@pytest.mark.parametrize(
    ("said", "items"),
    [
        # Size, shots and roast in any order, before the drink or after it.
        ("get me a large single shot dark roast drip coffee", ["large single shot dark roast drip coffee"]),
        ("i want a dark roast large single shot drip coffee", ["large single shot dark roast drip coffee"]),
        ("single shot dark roast drip coffee large please", ["large single shot dark roast drip coffee"]),
        ("a latte large", ["large latte"]),
        ("a latte in a large", ["large latte"]),
        ("a medium light roast coffee", ["medium light roast coffee"]),
        ("a medium roast coffee", ["medium roast coffee"]),
        ("extra large medium roast house coffee", ["extra large medium roast house coffee"]),
        ("sixteen ounce americano with two shots", ["sixteen ounce double shot americano"]),
        ("a 16 ounce americano", ["sixteen ounce americano"]),
        ("a twelve oz mocha", ["twelve ounce mocha"]),
        ("A 12-ounce, mocha.", ["twelve ounce mocha"]),
        ("a 12 oz. mocha", ["twelve ounce mocha"]),
        ("a 12oz Mocha", ["twelve ounce mocha"]),
        # Milk and sugar, with amounts.
        ("a small tea with a little bit of honey", ["small tea with a little bit of honey"]),
        ("a small tea with little bit of honey", ["small tea with a little bit of honey"]),
        ("a large oat milk latte", ["large latte with oat milk"]),
        ("a large oat latte", ["large latte with oat milk"]),
        ("large latte with oat", ["large latte with oat milk"]),
        ("large coffee with cream and two sugars", ["large coffee with cream and two sugars"]),
        ("large coffee with two pumps of vanilla", ["large coffee with two pumps of vanilla syrup"]),
        ("large mocha with no whip", ["large mocha with no whipped cream"]),
        ("large mocha without foam", ["large mocha with no foam"]),
        ("small latte with lots of foam and some cinnamon", ["small latte with lots of foam and some cinnamon"]),
        ("small coffee with soy milk instead of whole milk", ["small coffee with soy milk"]),
        # Iced and decaf.
        ("a decaf latte small", ["small decaf latte"]),
        ("small iced decaf americano", ["small iced decaf americano"]),
        ("a large iced latte", ["large iced latte"]),
        ("a large ice coffee", ["large iced coffee"]),
        ("a hot tea large", ["large tea"]),
        # Several things.
        ("two large mochas and a croissant", ["two large mochas", "croissant"]),
        ("a couple of small teas", ["two small teas"]),
        ("a latte large and a mocha medium", ["large latte", "medium mocha"]),
        ("a large latte with oat milk and a small espresso", ["large latte with oat milk", "small espresso"]),
        ("a large latte a croissant and three cookies", ["large latte", "croissant", "three cookies"]),
        ("a latte large a croissant", ["large latte", "croissant"]),
        ("bagel with cream cheese", ["bagel with cream cheese"]),
        ("three blueberry muffins and a", ["three blueberry muffins"]),
        ("large coffee coffee", ["large coffee"]),
        # Repairs within one breath.
        ("a latte no wait a mocha", ["mocha"]),
        ("a small no a large latte", ["large latte"]),
        ("a large not a small latte", ["large latte"]),
        ("a large latte no a mocha with soy", ["large mocha with soy milk"]),
        # Words that mean nothing here are skipped.
        ("so like um could i maybe get uh a large you know latte thing", ["large latte"]),
        ("the weather is fine", []),
        ("", []),
    ],
)
def test_spoken_forms_become_items(ear: Ear, said: str, items: list[str]) -> None:
    assert [str(item) for item in ear.hear(said).items] == items


@pytest.mark.parametrize(
    ("said", "loose"),
    [
        ("large", Item(size="large")),
        ("a large please", Item(count=1, size="large")),
        ("with oat milk", Item(additions=(Addition("oat milk"),))),
        ("two of them", Item(count=2)),
        ("double shot dark roast", Item(shots="double", roast="dark")),
    ],
)
def test_details_without_a_product_stay_loose(ear: Ear, said: str, loose: Item) -> None:
    heard = ear.hear(said)
    assert (heard.items, heard.loose) == ((), loose)


def test_what_is_not_sold_is_named_in_the_plural(ear: Ear) -> None:
    assert ear.hear("can i get a taco and a pizza").not_sold == ("tacos", "pizza")


def test_case_and_punctuation_do_not_matter(ear: Ear) -> None:
    assert ear.hear("I'd like a Large Latte, please!") == ear.hear("i'd like a large latte please")
    assert normalise("Can I get  a LATTE—thanks?") == "can i get a latte thanks"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("latte", "lattes"),
        ("egg sandwich", "egg sandwiches"),
        ("bagel with cream cheese", "bagels with cream cheese"),
        ("banana bread", "banana bread"),
    ],
)
def test_plurals_are_speakable(name: str, expected: str) -> None:
    assert plural(name) == expected


def test_a_long_text_takes_as_much_longer_as_it_is(ear: Ear) -> None:
    def taken_s(times: int) -> float:
        text, begun = "with large " * times, time.thread_time()
        ear.hear(text)
        return time.thread_time() - begun

    short_s, long_s = (min(taken_s(times) for _ in range(3)) for times in (150, 2_400))
    assert long_s < 64 * short_s, (
        "sixteen times as long a text; if every word looked at all that follow it would take 256 times as long"
    )

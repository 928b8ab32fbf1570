"""The menu table: what is accepted, and errors that name key, value and expectation."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from voice_pipelines.cafe.menu import Menu, MenuError, money, read_menu


@pytest.mark.parametrize(
    ("cents", "text"), [(0, "$0.00"), (5, "$0.05"), (450, "$4.50"), (100, "$1.00"), (123456, "$1234.56")]
)
def test_money_has_always_two_decimals(cents: int, text: str) -> None:
    assert money(cents) == text


def test_a_size_in_ounces_costs_what_its_size_costs(menu: Menu) -> None:
    assert menu.price("latte", "twelve ounce") == menu.price("latte", "medium") == 400


def test_food_has_one_price_whatever_size_is_asked(menu: Menu) -> None:
    assert menu.price("croissant", None) == menu.price("croissant", "large") == 325


def test_a_sized_drink_without_a_size_has_no_price(menu: Menu) -> None:
    with pytest.raises(ValueError, match="latte comes in sizes small, medium, large, extra large"):
        menu.price("latte", None)


def test_espresso_without_a_size_costs_its_smallest_price(menu: Menu) -> None:
    assert menu.price("espresso", None) == 250


@pytest.mark.parametrize(
    ("path", "value", "key", "expected"),
    [
        (("drinks", "latte", "prices"), ["3.50"], "menu.drinks.latte.prices", "4 prices"),
        (("drinks", "latte", "prices"), [3.5, 4.0, 4.5, 5.0], "menu.drinks.latte.prices", "such as '4.50'"),
        (("drinks", "latte", "price"), "3.50", "menu.drinks.latte", "either `price` or `prices`"),
        (("drinks", "latte", "cost"), "3.50", "menu.drinks.latte.cost", "one of the keys"),
        (("drinks", "latte", "needs_size"), "no", "menu.drinks.latte.needs_size", "true or false"),
        (("drinks", "Latte"), {"price": "1.00"}, "menu.drinks.Latte", "lower case"),
        (("drinks",), {}, "menu.drinks", "at least one drink"),
        (("drinks",), "coffee", "menu.drinks", "a table"),
        (("food", "croissant", "price"), "-3.25", "menu.food.croissant.price", "such as '4.50'"),
        (("milks", "oat milk"), "free", "menu.milks.oat milk", "such as '4.50'"),
        (("said_sizes", "ten ounce"), "tiny", "menu.said_sizes.ten ounce", "one of menu.sizes"),
        (("said_additions", "hemp"), "hemp milk", "menu.said_additions.hemp", "one of menu.milks or menu.extras"),
        (("sizes",), "small", "menu.sizes", "a list of words"),
        (("roasts",), ["light", 2], "menu.roasts", "a list of words"),
        (("not_sold",), ["7up"], "menu.not_sold", "words in lower case"),
        (("ready_in",), 10, "menu.ready_in", "10 minutes"),
        (("drink",), {}, "menu.drink", "one of the keys"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(
    preset: dict[str, Any], path: tuple[str, ...], value: object, key: str, expected: str
) -> None:
    table = copy.deepcopy(preset["menu"])
    place = table
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(MenuError) as caught:
        read_menu(table)
    assert caught.value.key == key
    assert expected in caught.value.expected
    assert str(caught.value).startswith(key)
    assert repr(caught.value.value) in str(caught.value)

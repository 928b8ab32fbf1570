"""The two presets: what a café's phone line and an open assistant are made of."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from typing import Any

import pytest

from voice_pipelines.cafe.dialogues import PRESET
from voice_pipelines.cafe.hearing import plural
from voice_pipelines.cafe.menu import Menu, money

SLOT = re.compile(r"\{(\w+)\}")


def test_the_note_function_is_found_by_its_name_and_keeps_an_order(preset: dict[str, Any]) -> None:
    module, _, name = preset["notes"]["function"].partition(":")
    notes = getattr(import_module(module), name)(preset["menu"])
    assert notes.hear("a large latte").text == "order: large latte; total: $4.50"


def test_prices_in_the_prompt_are_those_of_the_menu(preset: dict[str, Any], menu: Menu) -> None:
    told = re.findall(r"([a-z ]+) from (\$\d+\.\d\d)", preset["agent"]["instructions"])
    assert len(told) >= 5
    for name, price in told:
        assert price == money(menu.products[name.strip()].prices[0])


def test_the_prompt_is_short_and_has_no_markup(preset: dict[str, Any]) -> None:
    assert 60 <= len(preset["agent"]["instructions"].split()) <= 110
    assert not set(preset["agent"]["instructions"]) & set("*#_`<>[]")
    assert "\n" not in preset["agent"]["instructions"].strip()


def test_slots_that_are_used_are_the_slots_that_are_defined(preset: dict[str, Any]) -> None:
    vocabulary = preset["vocabulary"]
    used = {name for phrase in vocabulary["phrases"] for name in SLOT.findall(phrase)}
    used |= {name for entries in vocabulary["slots"].values() for entry in entries for name in SLOT.findall(entry)}
    assert used == set(vocabulary["slots"])


def test_slots_do_not_contain_themselves(preset: dict[str, Any]) -> None:
    slots = preset["vocabulary"]["slots"]

    def depth(name: str, above: tuple[str, ...] = ()) -> int:
        assert name not in above, (*above, name)
        inner = {inner for entry in slots[name] for inner in SLOT.findall(entry)}
        return 1 + max((depth(each, (*above, name)) for each in inner), default=0)

    assert max(map(depth, slots)) <= 4


@pytest.mark.parametrize("kind", ["phrases", "slots"])
def test_vocabulary_is_written_as_it_is_spoken(preset: dict[str, Any], kind: str) -> None:
    vocabulary = preset["vocabulary"]
    lines = (
        vocabulary["phrases"] if kind == "phrases" else [e for entries in vocabulary["slots"].values() for e in entries]
    )
    for line in lines:
        plain = SLOT.sub("", re.sub(r"^/[0-9]+/ ", "", line))
        assert re.fullmatch(r"[a-z' \[\]()|]*" if kind == "phrases" else r"[a-z' ]*", plain), line
        assert re.fullmatch(r"([^\[\]()|]|\[[^\[\]()|]*\]|\([^\[\]()]*\))*", line), line


def test_the_vocabulary_knows_the_whole_menu(preset: dict[str, Any], menu: Menu) -> None:
    slots = {name: set(entries) for name, entries in preset["vocabulary"]["slots"].items()}
    drinks = {product.name for product in menu.products.values() if product.is_drink}
    assert drinks <= slots["drink"]
    assert {plural(name) for name in drinks} <= slots["drinks"]
    assert set(menu.products) - drinks <= slots["food"]
    assert {*menu.sizes, *menu.said_sizes} == slots["size"]
    assert {f"{roast} roast" for roast in menu.roasts} <= slots["roast"]
    assert {f"{shots} shot" for shots in menu.shots} <= slots["shots"]
    assert set(menu.milks) <= slots["milk"]
    assert set(menu.extras) <= slots["extra"]
    assert set(menu.not_sold) <= slots["not_sold"]


def test_the_open_preset_has_a_prompt_and_nothing_of_a_cafe() -> None:
    table = tomllib.loads((PRESET.parent / "open.toml").read_text(encoding="utf-8"))
    assert set(table) == {"agent"}
    assert set(table["agent"]) == {"name", "greeting", "instructions"}
    assert len(table["agent"]["instructions"].split()) > 40

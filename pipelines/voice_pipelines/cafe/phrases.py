"""The phrase book that training dialogues are written from (`phrases.toml`, beside this module)."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Lines = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Exchange:
    """What callers may say, and what the agent may answer to any of it."""

    said: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HouseFact:
    """A fact that some cafés have: its possible values, how a system prompt tells it, how callers ask and agents answer."""

    values: tuple[str, ...]
    told: tuple[str, ...]
    asked: Exchange


@dataclass(frozen=True, slots=True)
class PhraseBook:
    replies: Lines
    caller: Lines
    agent: Lines
    cafe: Lines
    farewell: Exchange
    talk: tuple[Exchange, ...]
    facts: Mapping[str, Exchange]
    house_facts: Mapping[str, HouseFact]
    steps: Mapping[str, int]
    split_words: Mapping[str, str]
    small_words: Mapping[str, str]


@cache
def phrase_book() -> PhraseBook:
    """Read the phrase book once."""
    table = tomllib.loads((Path(__file__).parent / "phrases.toml").read_text(encoding="utf-8"))
    return PhraseBook(
        replies=_lines(table["replies"]),
        caller=_lines(table["caller"]),
        agent=_lines(table["agent"]),
        cafe=_lines(table["cafe"]),
        farewell=_exchange(table["farewell"]),
        talk=tuple(map(_exchange, table["talk"])),
        facts={key: _exchange(fact) for key, fact in table["facts"].items()},
        house_facts={
            key: HouseFact(tuple(fact["values"]), tuple(fact["told"]), _exchange(fact))
            for key, fact in table["house_facts"].items()
        },
        steps=table["steps"],
        split_words=table["split_words"],
        small_words=table["small_words"],
    )


def _lines(table: Mapping[str, list[str]]) -> Lines:
    return {key: tuple(lines) for key, lines in table.items()}


def _exchange(table: Mapping[str, Any]) -> Exchange:
    return Exchange(tuple(table["said"]), tuple(table["answers"]))

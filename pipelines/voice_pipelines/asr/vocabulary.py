"""What an agent expects to hear, from its configuration: phrases with slots."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from voice_pipelines.asr.grammar import Grammar, GrammarError
from voiceagent.errors import ConfigError


@dataclass(frozen=True)
class Vocabulary:
    """Phrases such as "can i get [a] {drink}" and the phrases each slot stands for; the notation is in `asr/grammar.py`.

    Raises:
        ConfigError: If a phrase or slot cannot be read.
    """

    phrases: tuple[str, ...]
    slots: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self.grammar

    @cached_property
    def grammar(self) -> Grammar:
        try:
            return Grammar(self.phrases, self.slots)
        except GrammarError as error:
            raise ConfigError("vocabulary", str(error), "phrases with {slots}, (a|b) and [optional parts]") from error

    @staticmethod
    def from_table(table: Mapping[str, Any]) -> Vocabulary:
        """Read the `[vocabulary]` table of a preset: `phrases`, a list of strings, and `slots`, a table of lists of strings.

        Raises:
            ConfigError: If it has other keys or other types, or a phrase cannot be read.
        """
        if unknown := sorted(table.keys() - {"phrases", "slots"}):
            raise ConfigError(f"vocabulary.{unknown[0]}", table[unknown[0]], "only `phrases` and `slots` in this table")
        slots = table.get("slots", {})
        if not isinstance(slots, Mapping):
            raise ConfigError("vocabulary.slots", slots, "a table of lists of strings")
        return Vocabulary(
            _strings("vocabulary.phrases", table.get("phrases", [])),
            {name: _strings(f"vocabulary.slots.{name}", options) for name, options in slots.items()},
        )

    @cached_property
    def digest(self) -> str:
        """Name of the content, the same for equal vocabularies."""
        content = json.dumps([self.phrases, sorted(self.slots.items())], ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8")).hexdigest()

    def hot_words(self) -> tuple[str, ...]:
        """Words of the slots in the order of the configuration, each once and no plural of one before it: the names a recogniser should be told
        about, as many as possible in little room. Words that come together first stay together ("flat white")."""
        told: set[str] = set()
        kept = []
        for option in (
            option for options in self.slots.values() for option in options if not set(option) & set("{}[]()|/")
        ):
            if new := [word for word in option.split() if not {word, word.removesuffix("s")} & told]:
                kept.append(" ".join(new))
                told.update(new)
        return tuple(kept)


def _strings(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str) for item in value):
        raise ConfigError(key, value, "a list of strings, at least one")
    return tuple(value)

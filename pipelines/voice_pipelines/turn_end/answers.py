"""Made answers to agents' questions: a few words that are the whole turn, and longer ones that begin alike.

People who type to an assistant write "yes, that sounds good, thank you"; people asked on the telephone say "yes". What is asked, what is said and how often is in
`answers.toml`. Questions and words that training never meets make those that the model is measured on.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

PHRASES = Path(__file__).parent / "answers.toml"
LEFT_OUT = 4
"""Every fourth question and word is kept from training."""

Part: TypeAlias = Literal["train", "dev"]


@dataclass(frozen=True, slots=True)
class Answer:
    """Agent's question and caller's answer, as a recogniser writes it."""

    kind: str
    asked: str
    said: str
    is_bare: bool
    """The word alone, nothing around it."""


def made_answers(count: int, seed: int, part: Part) -> Iterator[Answer]:
    """So many answers; the same seed makes the same ones."""
    with PHRASES.open("rb") as file:
        table: dict[str, Any] = tomllib.load(file)
    fill: dict[str, list[str]] = table.pop("fill")
    kinds = sorted(table)
    shares = [table[kind]["share"] for kind in kinds]
    rng = random.Random(f"{seed}-{part}")
    for _ in range(count):
        kind = rng.choices(kinds, shares)[0]
        known = table[kind]
        frame = rng.choices(list(known["answers"]), list(known["answers"].values()))[0]
        words = _of_part(known["words"], part, known.get("repeated", 0))
        slots = {name: rng.choice(values) for name, values in fill.items()}
        said = [rng.choice(words).format(**slots) for _ in range(2)]
        questions = _of_part(known["questions"], part, 0)
        if like := known.get("asked_like"):
            questions += [
                text for text in _of_part(table[like]["questions"], part, 0) if text not in known["questions"]
            ]
        asked = rng.choice(questions).format(**slots)
        text = frame.format(**slots, x=said[0], y=said[1])
        yield Answer(kind, asked, text, frame == "{x}")


def _of_part(texts: Sequence[str], part: Part, shared: int) -> list[str]:
    """Those of one side; the first `shared` are on both, being said too often for a model not to know them."""
    return [text for at, text in enumerate(texts) if at < shared or (at % LEFT_OUT == LEFT_OUT - 1) == (part == "dev")]

"""Made answers to agents' questions: a few words that are the whole turn, and longer ones that begin alike.

People who type to an assistant write "yes, that sounds good, thank you"; people asked on the telephone say "yes". What is asked, what is said and how often is in
`answers.toml`. Two in five answer questions that agents of dialogues ask (`kind_of` says which fit), for nobody thinks up as many. They are measured by others that somebody thought up
who had not seen these (`benchmarks/short_answers.py`).
"""

from __future__ import annotations

import random
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm.spoken import spoken_form
from voiceagent.endpoint_dictation import last_sentence
from voiceagent.endpoint_words import ASKS_FOR_MORE

PHRASES = Path(__file__).parent / "answers.toml"

ASKED_IN_DIALOGUES = 0.4
"""Share of the answers, of kinds that are asked for there."""
LEAST_ASKED = 10
"""Questions of a kind, or they would be asked too often."""
_KINDS = {
    "choice": r"\bor\b",
    "else": r"(?:.*\b(?:anything|something)|what) else\b",
    "size": r"(?:what|which) size\b|how (?:big|large)\b",
    "number": r"how many\b|how old\b",
    "amount": r"how (?:much|far|tall|heavy|expensive)\b|what(?: is|'s) (?:the|your) (?:budget|price|total|amount)\b",
    "time": r"when\b|(?:what|which|at what|for what|on what|on which) (?:time|day|date|month|year)\b|how (?:long|often|soon)\b",
    "payment": r"how (?:will|would|are|do|did) you .*\bpay|which (?:card|account)\b|what .*\bpayment",
    "name": r"(?:what|under what|which|whose|may|can|could) .*\bname\b",
    "place": r"where\b|(?:what|which|in what|in which|from which|to which) (?:city|town|country|state|area|location|airport|station|place|street|branch)\b|what(?:'s| is) your destination",
    "person": r"who(?:'s|se)?\b|with whom\b",
    "colour": r"(?:what|which) (?:is the |is your )?(?:favou?rite )?colou?r\b",
    "trouble": r"why\b|what(?:'s| is| was| seems| happened| went| made| brings).*\b(?:wrong|problem|matter|trouble|issue|reason|happened|about)\b|what happened\b",
    "item": r"(?:what|which)\b(?! (?:can|could|may|would|will|do|did|else) (?:i|we|you)\b)(?! about\b)",
    "yes": r"(?:do|does|did|is|are|was|were|will|would|can|could|shall|should|have|has|had|may|am|isn't|aren't|don't|doesn't|won't)\b"
    rf"(?!.*\b{ASKS_FOR_MORE}\b)",
}  # fmt: skip
"""What the last sentence of an agent's turn begins with, or has in it; the first that fits says which answers do."""
_BEFORE = re.compile(
    r"^(?:and|so|or|okay|ok|well|great|sure|alright|all right|cool|nice|oh|um|now|also|yes|but|then)\b[, ]*"
)
_CHOICE = re.compile(
    r"(?:\b(?:a|an|the|in|by|for|at|on) )?([\w']+),? or (?:(?:a|an|the|in|by|for|at|on) )?([\w']+(?: [\w']+)?)\?$"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Agent's question and caller's answer, as a recogniser writes it."""

    kind: str
    asked: str
    said: str


def made_answers(count: int, seed: int, turns: Iterable[str] = ()) -> Iterator[Answer]:
    """So many answers; the same seed and turns make the same ones.

    Args:
        turns: What agents say in dialogues; those that end with a question of a kind that is answered here are asked as well.
    """
    with PHRASES.open("rb") as file:
        kinds: dict[str, Any] = tomllib.load(file)
    fill: dict[str, list[str]] = kinds.pop("fill")
    asked_there: dict[str, list[str]] = defaultdict(list)
    for question, turn in {last_sentence(turn).lower(): turn for turn in turns}.items():
        if asked := kind_of(question):
            asked_there[asked].append(turn)
    names = sorted(kinds)
    shares = [kinds[name]["share"] for name in names]
    rng = random.Random(seed)
    for _ in range(count):
        name = rng.choices(names, shares)[0]
        kind = kinds[name]
        like = kind.get("asked_like", name)
        filled = _fill(fill, rng)
        if len(asked_there[like]) >= LEAST_ASKED and rng.random() < ASKED_IN_DIALOGUES:
            asked = rng.choice(asked_there[like])
        else:
            asked = rng.choice([*kind["questions"], *(kinds[like]["questions"] if like != name else ())]).format(
                **filled
            )
        chosen = {"a": filled["a"], "b": filled["b"]}
        if offered := _CHOICE.search(last_sentence(asked).lower()):
            chosen = {"a": spoken_form(offered[1]), "b": spoken_form(offered[2])}
        frame = rng.choices(list(kind["answers"]), list(kind["answers"].values()))[0]
        # Two numbers in one answer are two; what is chosen between is what was asked.
        word, other = (rng.choice(kind["words"]).format(**{**_fill(fill, rng), **chosen}) for _ in range(2))
        yield Answer(name, asked, frame.format(**filled, x=word, y=other))


def kind_of(turn: str) -> str | None:
    """The kind of answers that fit the question which an agent's turn ends with; None where it asks nothing, or for more than a few words."""
    question = last_sentence(turn).strip().lower()
    if not question.endswith("?"):
        return None
    question = _BEFORE.sub("", question)
    for kind, pattern in _KINDS.items():
        if kind == "choice":
            if re.search(pattern, question):
                return kind if _CHOICE.search(question) else None
        elif re.match(pattern, question):
            return kind
    return None


def _fill(texts: Mapping[str, Sequence[str]], rng: random.Random) -> dict[str, str]:
    """One of each slot's texts, whose own slots are filled."""
    drawn = {slot: rng.choice(some) for slot, some in texts.items()}
    return {slot: text.format(**drawn) for slot, text in drawn.items()}

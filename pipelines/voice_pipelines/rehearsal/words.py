"""Random names, times, prices and figures, and templates with alternatives: what every dialogue here is made of."""

import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_SENTENCE_START = re.compile(r"(^|[.?!] )([a-z])")
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen "
    "twenty"
).split()


@cache
def table(name: str) -> dict[str, Any]:
    """A TOML file beside this module, read once."""
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def words(key: str) -> tuple[str, ...]:
    """A word list of words.toml."""
    found = table("words")[key]
    return tuple(found.split() if isinstance(found, str) else found)


def fill(template: str, rng: random.Random, slots: Mapping[str, str] | None = None) -> str:
    """One wording of a template: `[so|well|]` becomes one of its alternatives (innermost first), `{x}` the slot x.

    Raises:
        KeyError: If a slot has no value.
    """
    while "[" in template:
        template = _ALTERNATIVES.sub(lambda found: rng.choice(found[1].split("|")), template)
    if slots is not None:
        template = _SLOT.sub(lambda found: slots[found[1]], template)
    return " ".join(template.split()).replace(" ,", ",").replace(" .", ".").replace(" ?", "?")


def one_of(templates: Sequence[str], rng: random.Random, slots: Mapping[str, str] | None = None) -> str:
    """One wording of one of the templates."""
    return fill(rng.choice(templates), rng, slots)


def sentence(text: str) -> str:
    """With a capital at the start of each sentence, where a letter stands there."""
    text = _SENTENCE_START.sub(lambda found: found[1] + found[2].upper(), text)
    # A title's dot ends no sentence, and neither does that of "a.m."; neither is followed by a small letter here.
    return text


def with_article(noun: str) -> str:
    """ "a kettle", "an owl"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def bare(noun: str) -> str:
    """Without its article."""
    return re.sub(r"^(?:an?|the) ", "", noun)


def invented(rng: random.Random) -> str:
    """A word that no list holds, in lower case: "brimolt"."""
    parts = [rng.choice(words("onsets")) + rng.choice(words("vowels")) for _ in range(rng.choice((1, 2, 2)))]
    return "".join(parts) + rng.choice(words("codas"))


def first_name(rng: random.Random) -> str:
    return invented(rng).capitalize() if rng.random() < 0.12 else rng.choice(words("first_names"))


def last_name(rng: random.Random) -> str:
    return invented(rng).capitalize() if rng.random() < 0.2 else rng.choice(words("last_names"))


def full_name(rng: random.Random) -> str:
    return f"{first_name(rng)} {last_name(rng)}"


def thing(rng: random.Random) -> str:
    """Two words that seldom met: "velvet kettle"."""
    noun = invented(rng) if rng.random() < 0.2 else rng.choice(words("nouns"))
    return f"{rng.choice(words('adjectives'))} {noun}" if rng.random() < 0.7 else noun


def clock(rng: random.Random, first: int, last: int) -> str:
    """A time between two hours of the day, as prompts write it: "8:30 am"."""
    hour = rng.randint(first, last)
    minute = rng.choice(("", "", "", ":30", ":30", ":15", ":45"))
    return f"{(hour - 1) % 12 + 1}{minute} {'am' if hour < 12 else 'pm'}"


def money(rng: random.Random, low: int = 3, high: int = 120) -> str:
    """A price: "$24", "$7.50"."""
    dollars = rng.randint(low, high)
    cents = f".{rng.choice((25, 40, 50, 50, 60, 75, 80, 90, 95))}" if dollars < 40 and rng.random() < 0.4 else ""
    return f"${dollars}{cents}"


def digits(rng: random.Random, count: int) -> str:
    return "".join(str(rng.randint(0, 9)) for _ in range(count))


def phone(rng: random.Random) -> str:
    return (
        f"{rng.randint(200, 999)} {digits(rng, 4)}"
        if rng.random() < 0.7
        else f"{rng.randint(20, 99)} {digits(rng, 3)} {digits(rng, 2)}"
    )


def address(rng: random.Random) -> str:
    return f"{rng.randint(1, 399)} {rng.choice(words('streets'))} {rng.choice(words('street_ends'))}"


def code(rng: random.Random) -> str:
    """A confirmation code: "K72", "BR 418"."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(rng.choice((1, 1, 2))))
    return f"{letters}{rng.choice(('', '', ' ', '-'))}{rng.randint(2, 999)}"


def date(rng: random.Random) -> str:
    return f"{rng.choice(words('months'))} {rng.randint(1, 28)}"


def join(items: Sequence[str], last: str = "and") -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"

"""Words a note as an agent might, for training dialogues only: at run time replies come from the model."""

import random
import re

from voice_pipelines.cafe.hearing import COUNT_WORDS
from voice_pipelines.cafe.order import Facts
from voice_pipelines.cafe.phrases import phrase_book


def reply_to(facts: Facts, rng: random.Random) -> str:
    """Word one reply that says exactly what the facts state."""
    said = {fact.key: fact.value for fact in facts}
    absent = said.pop("not on the menu", "")
    sorry = _pick("off_menu", rng).format(n=_join(absent.split(", "), "or")) if absent else ""
    if not said:
        return _sentences(sorry, _pick("something_else", rng))
    if "price" in said:
        return _sentences(_prices([fact.value for fact in facts if fact.key == "price"], rng), sorry)
    return _sentences(sorry, _capital(_reply(said, rng)))


def _pick(key: str, rng: random.Random, *, first: int | None = None) -> str:
    return rng.choice(phrase_book().replies[key][:first])


def _reply(facts: dict[str, str], rng: random.Random) -> str:
    """Word facts other than prices of products: what the caller did comes first, what is still open comes last."""
    for key, lead, how_many, frames, open_frames in (
        ("order", "openers", None, "heard", "first_for_size"),
        ("add", "openers", None, "added", "first_for_size"),
        ("change", "changed", None, "changes", "first_for_size"),
        ("repeat", "openers", 4, "repeats", "repeats_no_size"),
    ):
        if key not in facts:
            continue
        is_settled = "total" in facts and "done" not in facts
        frame = _pick(frames if is_settled else open_frames if "size missing" in facts else "named", rng)
        items = _join([_with_article(item, rng, may_be_bare=frame.startswith("{i}")) for item in _split(facts[key])])
        said = frame.format(i=items, p=facts.get("total", ""))
        if not is_settled:
            return _sentences(said, _open_end(facts, rng))
        return _sentences(
            _led(_pick(lead, rng, first=how_many) if rng.random() < 0.5 else "", said, rng), _pick("anything_else", rng)
        )
    if "remove" in facts:
        return _reply_to_removal(facts, rng)
    return _reply_to_question(facts, rng)


def _reply_to_removal(facts: dict[str, str], rng: random.Random) -> str:
    items = _join([item if item == "everything" else f"the {item}" for item in _split(facts["remove"])])
    if "order empty" in facts:
        return _pick("cleared", rng).format(i=items)
    if "size missing" in facts or "done" in facts:
        return _sentences(_pick("taken_off", rng).format(i=items), _open_end(facts, rng))
    said = _pick("removed", rng).format(i=items, p=facts["total"]).replace("No the", "No")
    lead = _pick("changed", rng, first=6) if rng.random() < 0.4 else ""
    return _sentences(_led(lead, said, rng), _pick("anything_else", rng))


def _reply_to_question(facts: dict[str, str], rng: random.Random) -> str:
    if "done" in facts and "order empty" in facts:
        return _pick("done_empty", rng)
    if "done" in facts:
        return _sentences(_pick("closed", rng) if rng.random() < 0.6 else "", _open_end(facts, rng))
    if "size missing" in facts:
        return _sentences(_pick("before_size", rng), _open_end(facts, rng))
    if "order empty" in facts:
        return _pick("empty", rng)
    if "not added" in facts:
        return _sentences(_pick("not_added", rng).format(n=facts["not added"]), _pick("anything_else", rng))
    if "allergens unknown" in facts:
        return _pick("allergy", rng)
    if "ready in" in facts:
        said = _pick("ready", rng).format(t=facts["ready in"])
        return _sentences(said, _pick("anything_else", rng) if rng.random() < 0.5 else "")
    if "on the menu" in facts:
        names = _split(facts["on the menu"])
        is_countable = len(names) == 1 and names[0].endswith("s")
        said = _pick("on_menu", rng).format(n=_join(names))
        return _sentences(said, _pick("want_one" if is_countable else "anything_else", rng))
    ((key, value),) = facts.items()
    return _sentences(_pick("lists", rng).format(l=_join(_split(value)), k=key), _pick("which", rng))


def _open_end(facts: dict[str, str], rng: random.Random) -> str:
    """Ask for the sizes that are missing, or close the order."""
    if "size missing" in facts:
        return _pick("sizes", rng).format(n=_join(_split(facts["size missing"])))
    return _sentences(_pick("done", rng).format(p=facts["total"], t=facts["ready in"]), _pick("byes", rng))


def _prices(values: list[str], rng: random.Random) -> str:
    sentences = []
    for value in values:
        prices = re.findall(r"\$\d+\.\d\d", value)
        if len(prices) == 3:
            name = value.partition(" small $")[0]
            frame = _pick("prices_all", rng)
            name = name if "small {n}" in frame else _with_article(name, rng)
            sentences.append(frame.format(n=name, a=prices[0], b=prices[1], c=prices[2]))
        else:
            name = value.rpartition(" ")[0]
            sentences.append(_pick("prices_one", rng).format(n=_with_article(name, rng), p=prices[0]))
    return _sentences(*sentences, _pick("want_one", rng) if len(values) == 1 else "")


def _split(value: str) -> list[str]:
    return value.split(", ")


def _join(names: list[str], word: str = "and") -> str:
    """Return "a, b and c"."""
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + f" {word} " + names[-1]


def _with_article(item: str, rng: random.Random, *, may_be_bare: bool = False) -> str:
    """Return an item as it is spoken: with "a" or "one" unless it starts with a count; bare only where it starts a sentence."""
    first = item.split()[0]
    if first in COUNT_WORDS or item == "everything" or item.startswith("banana bread"):
        return item
    choice = rng.random()
    if may_be_bare and choice < 0.3:
        return item
    article = "an" if first[0] in "aeio" else "a"
    return f"one {item}" if choice > 0.75 else f"{article} {item}"


def _led(lead: str, sentence: str, rng: random.Random) -> str:
    """Put a short first clause before a sentence, sometimes joined to it by a comma."""
    if lead and rng.random() < 0.4 and len(lead) < 12 and not sentence.startswith(("I ", "I'")):
        return f"{lead[:-1]}, {sentence[0].lower()}{sentence[1:]}"
    return _sentences(lead, sentence)


def _capital(text: str) -> str:
    """Return the text with a capital at the beginning of each sentence."""
    out, starts = [], True
    for letter in text:
        out.append(letter.upper() if starts and letter.isalpha() else letter)
        if letter.isalnum() or letter == "$":
            starts = False
        elif letter in ".?!":
            starts = True
    return "".join(out)


def _sentences(*parts: str) -> str:
    return _capital(" ".join(part.strip() for part in parts if part.strip()))

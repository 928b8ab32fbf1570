"""What tools give back: the note, and the sentences in which an agent tells it."""

import random
from dataclasses import dataclass

from voice_pipelines.rehearsal.schemas import Tool
from voice_pipelines.rehearsal.script import MOST_WORDS
from voice_pipelines.rehearsal.words import (
    clock,
    code,
    date,
    full_name,
    join,
    money,
    one_of,
    sentence,
    table,
    thing,
    with_article,
    words,
)


@dataclass(frozen=True)
class Told:
    """A tool's result: the note's text, the sentences that tell it, and the pieces that must be said."""

    note: str
    text: str
    brief: str
    """`text` without what comes before the result itself."""
    must_say: tuple[str, ...]


def draw_result(tool: Tool, done: str, rng: random.Random, *, most: int, tells_when: bool) -> Told:
    """A result of up to `most` fields; `done` comes before them in the agent's sentences."""
    book = table("tools")
    entry = book["action"][tool.action]
    if entry.get("effect") and rng.random() < 0.2:
        return Told(f"{tool.name}: {rng.choice(('ok', 'done', 'success', 'yes'))}", done, done, ())
    if "options" in entry["results"] and rng.random() < 0.1:
        note = rng.choice(("none", "nothing found", "no results", "0 found", "empty"))
        nothing = one_of(book["frame"]["nothing"], rng)
        return Told(f"{tool.name}: {note}", nothing, nothing, ())
    possible = [field for field in entry["results"] if tells_when or field != "when"]
    fields = rng.sample(possible, rng.randint(1, min(most, len(possible))))
    if "options" in fields:
        fields = ["options"]
    parts: dict[str, str] = {}
    sentences: list[str] = []
    pieces: list[str] = []
    for field in fields:
        key = rng.choice(book["result"][field]["keys"]).replace("_", " ")
        if key in parts:
            continue
        values = _options(rng) if field == "options" else [_value(field, tool.action, rng)]
        parts[key] = ", ".join(values)
        pieces += values
        sentences.append(sentence(one_of(book["result"][field]["told"], rng, {"x": join(values), "k": key})))
    told = " ".join(sentences)
    note = "; ".join(f"{key}: {value}" for key, value in parts.items())
    if len(parts) == 1 and fields[0] in ("status", "when", "place", "price") and rng.random() < 0.3:
        note = parts.popitem()[1]
    elif rng.random() < 0.1:
        note = told
    text = f"{done} {told}".strip()
    return Told(f"{tool.name}: {note}", text if len(text.split()) <= MOST_WORDS else told, told, tuple(pieces))


def _options(rng: random.Random) -> list[str]:
    """Two or three things, times or people to choose from."""
    kind = rng.choice(("slot", "time", "thing", "title", "name"))
    found = []
    for _ in range(rng.choice((2, 2, 3))):
        match kind:
            case "slot":
                found.append(f"{rng.choice(words('days'))} at {clock(rng, 7, 21)}")
            case "time":
                found.append(clock(rng, 7, 21))
            case "thing":
                found.append(with_article(thing(rng)))
            case "title":
                found.append(f"the {thing(rng).title()}")
            case "name":
                found.append(full_name(rng))
    return list(dict.fromkeys(found))


def _value(field: str, action: str, rng: random.Random) -> str:
    match field:
        case "code":
            return code(rng)
        case "price" | "refund":
            return money(rng, 3, 400)
        case "balance":
            return rng.choice((money(rng, 3, 900), f"{rng.randint(3, 900)} points"))
        case "when":
            day = rng.choice(words("days"))
            return rng.choice((f"{day} at {clock(rng, 7, 21)}", clock(rng, 7, 21), date(rng), day))
        case "days":
            return f"{rng.randint(2, 30)} {rng.choice(('days', 'days', 'hours', 'weeks'))}"
        case "minutes":
            return f"{rng.randint(2, 55)} minutes"
        case "count" | "number":
            return str(rng.randint(2, 300))
        case "name" if action == "find":
            return rng.choice((full_name(rng), with_article(thing(rng)), f"the {thing(rng).title()}"))
        case "name":
            return full_name(rng)
        case "status" | "place":
            slots = {
                "noun": rng.choice(words("nouns")),
                "adjective": rng.choice(words("adjectives")),
                "street": rng.choice(words("streets")),
                "city": rng.choice(words("cities")),
                "name": full_name(rng),
                "n": str(rng.randint(2, 99)),
                "letter": rng.choice("ABCDEFGHK"),
            }
            return one_of(table("tools")["lists"][field], rng, slots)
    raise AssertionError(f"no values for {field!r}")

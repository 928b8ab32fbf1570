"""Tools made by a program: names, parameters and descriptions of many wordings; some are held back from training."""

import random
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dllm.numerals import cardinal
from dllm.spoken import spoken_form
from voice_pipelines.rehearsal.words import (
    address,
    bare,
    clock,
    date,
    digits,
    fill,
    full_name,
    invented,
    last_name,
    one_of,
    table,
    thing,
    with_article,
    words,
)


@dataclass(frozen=True)
class Parameter:
    kind: str
    """What sort of detail it is: a table `param` of tools.toml."""
    name: str
    is_required: bool
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tool:
    action: str
    noun: str
    """With its article."""
    name: str
    description: str
    parameters: tuple[Parameter, ...]

    def described(self) -> dict[str, Any]:
        """As OpenAI's API describes functions."""
        properties: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.options:
                properties[parameter.name] = {"type": "string", "enum": list(parameter.options)}
            else:
                properties[parameter.name] = {"type": table("tools")["param"][parameter.kind].get("type", "string")}
        required = [parameter.name for parameter in self.parameters if parameter.is_required]
        schema = {"type": "object", "properties": properties, "required": required}
        return {"name": self.name, "description": self.description, "parameters": schema}


@dataclass(frozen=True)
class Value:
    """A detail that a caller gives."""

    said: str
    """As a recogniser writes it: this is the argument."""
    shown: str
    """As the agent repeats it: the same words, with capitals."""


def is_held_back(name: str, parameters: Collection[str]) -> tuple[bool, bool]:
    """Whether a name, and whether a set of parameter names, is kept for development. No parameters are never held back."""
    names = "|".join(sorted(parameters))
    return zlib.crc32(name.encode()) % 5 == 0, bool(names) and zlib.crc32(names.encode()) % 4 == 0


def make_tool(rng: random.Random, *, held_back: bool, action: str = "", noun: str = "") -> Tool:
    """A tool of either side: its name and its parameter set are both held back, or neither is."""
    while True:
        tool = _draw(rng, action, noun)
        if is_held_back(tool.name, [parameter.name for parameter in tool.parameters]) == (held_back, held_back):
            return tool


def _draw(rng: random.Random, action: str, noun: str) -> Tool:
    book = table("tools")
    action = action or rng.choice(tuple(book["action"]))
    entry = book["action"][action]
    noun = noun or (with_article(thing(rng)) if rng.random() < 0.15 else rng.choice(entry["nouns"]))
    stem = bare(noun).replace(" ", "_").replace("-", "_")
    name = f"{rng.choice(entry['verbs'])}_{stem}"
    style = rng.random()
    if style < 0.12:
        name = f"{rng.choice(words('adjectives'))}_{rng.choice(words('nouns'))}"
    elif style < 0.2:
        head, *rest = name.split("_")
        name = head + "".join(part.capitalize() for part in rest)
    elif style < 0.27:
        name = f"{stem}_{rng.choice(entry['verbs'])}"
    kinds = [kind for kind in entry["likely"] if rng.random() < 0.75]
    kinds = kinds[: rng.choice((0, 1, 1, 2, 2, 2, 3, 3, 4))]
    rng.shuffle(kinds)
    share_required = rng.choice((0.5, 0.75, 0.75, 1.0))
    # With one parameter there is no doubt where a detail belongs, whatever its name.
    has_odd_names = len(kinds) == 1 and rng.random() < 0.2
    parameters: list[Parameter] = []
    for kind in kinds:
        own = rng.choice(words("nouns")) if has_odd_names else rng.choice(book["param"][kind]["names"])
        if own in [parameter.name for parameter in parameters]:
            continue
        options = tuple(rng.choice(book["choices"]["sets"]).split("|")) if kind == "choice" else ()
        if options and rng.random() < 0.3:
            options = tuple(rng.sample(words("adjectives"), rng.choice((2, 3))))
        parameters.append(Parameter(kind, own, kind == "flag" or rng.random() < share_required, options))
    description = one_of(entry["describes"], rng, {"n": noun})
    return Tool(action, noun, name, description, tuple(parameters))


# --- details that callers give -------------------------------------------------------------------------------------------


def draw_value(parameter: Parameter, rng: random.Random) -> Value:
    """A value for a parameter, in the caller's words."""
    if parameter.options:
        return _as_said(rng.choice(parameter.options))
    lists = table("tools")["lists"]
    match parameter.kind:
        case "people" | "count":
            return _as_said(cardinal(rng.randint(1, 14) if rng.random() < 0.85 else rng.randint(15, 60)))
        case "day":
            return _as_said(_day(rng))
        case "time":
            return _time(rng)
        case "name":
            return _as_said(full_name(rng) if rng.random() < 0.75 else last_name(rng))
        case "person":
            return _as_said(
                rng.choice(
                    (full_name(rng), f"Doctor {last_name(rng)}", f"{rng.choice(('Mister', 'Miss'))} {last_name(rng)}")
                )
            )
        case "number":
            return _number(rng)
        case "phone":
            return _as_said(_dictated(digits(rng, rng.choice((6, 7)))))
        case "city" | "origin":
            return _as_said(
                rng.choice(
                    (
                        rng.choice(words("cities")),
                        rng.choice(words("cities")),
                        rng.choice(words("towns")),
                        invented(rng).capitalize(),
                    )
                )
            )
        case "address":
            number, rest = address(rng).split(" ", 1)
            return _as_said(f"{spoken_form(number)} {rest}")
        case "item":
            return _as_said(thing(rng))
        case "money":
            return _as_said(spoken_form(str(rng.choice((rng.randint(5, 99), rng.randint(2, 40) * 25)))))
        case "note":
            slots = {
                "adjective": rng.choice(words("adjectives")),
                "noun": rng.choice(words("nouns")),
                "a_thing": with_article(thing(rng)),
                "city": rng.choice(words("cities")),
            }
            return _as_said(one_of(lists["notes"], rng, slots))
        case "flag":
            return _as_said(rng.choice(("yes", "yes", "no")))
    raise AssertionError(f"no values for {parameter.kind!r}")


def _as_said(shown: str) -> Value:
    said = spoken_form(shown)
    assert said == shown.lower().replace("-", " "), f"{shown!r} is heard as {said!r}"
    return Value(said, shown)


def _day(rng: random.Random) -> str:
    day = rng.choice(words("days"))
    month, number = date(rng).split()
    choices = (
        day,
        day,
        day,
        f"next {day}",
        "tomorrow",
        "today",
        f"{month} {spoken_form(number + 'th')}",
        f"{day} morning",
        "next week",
        f"the {spoken_form(number + 'th')}",
    )
    return rng.choice(choices)


def _time(rng: random.Random) -> Value:
    written = clock(rng, 7, 21)
    hour = spoken_form(str(rng.randint(1, 12)))
    other = rng.choice(
        (
            "noon",
            f"half past {hour}",
            f"quarter to {hour}",
            f"quarter past {hour}",
            f"{hour} o'clock",
            f"{hour} thirty",
            hour,
        )
    )
    said = spoken_form(written if rng.random() < 0.6 else other)
    return Value(said, said.replace(" a m", " am").replace(" p m", " pm"))


def _number(rng: random.Random) -> Value:
    figures = digits(rng, rng.choice((3, 4, 4, 5, 6)))
    if rng.random() < 0.3 and "0" not in figures[:-1] and len(figures) == 4:
        return _as_said(f"{spoken_form(figures[:2])} {spoken_form(figures[2:].lstrip('0') or '0')}")
    letter = f"{rng.choice('ABCDEFGHJKLMNPRSTUVWXYZ')} " if rng.random() < 0.25 else ""
    return _as_said(letter + _dictated(figures))


def _dictated(figures: str) -> str:
    return " ".join(spoken_form(figure) for figure in figures)


def ask_for(parameter: Parameter, rng: random.Random) -> str:
    """How the agent asks for a parameter: in the words of its kind, or by its name."""
    book = table("tools")
    entry, labels = book["param"][parameter.kind], book["labels"]
    is_fit = parameter.name in entry["names"] and parameter.name not in labels["unfit"].split()
    if (
        is_fit
        and parameter.kind not in ("flag", "choice")
        and rng.random() < (0.6 if parameter.kind == "note" else 0.3)
    ):
        return one_of(labels["ask"], rng, {"k": parameter.name.replace("_", " ")})
    return fill_detail(entry["ask"], rng, parameter)


def fill_detail(templates: list[str], rng: random.Random, parameter: Parameter, value: str = "") -> str:
    """One wording about a parameter: a request for it, or its value said."""
    options = list(parameter.options)
    flag = parameter.name.replace("_", " ")
    slots: Mapping[str, str] = {"x": value, "flag": flag}
    if options:
        offered = f"{', '.join(options[:-1])} or {options[-1]}"
        slots = {**slots, "options": offered, "Options": offered}
    return fill(rng.choice(templates), rng, slots)

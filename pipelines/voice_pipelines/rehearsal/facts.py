"""Dialogues whose answers stand in the system prompt: opening hours, prices, names, rules, or nothing at all.

An imagined business has a random name and random facts; the prompt tells some of them. What it does not tell, the agent does not know.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voice_pipelines.rehearsal.script import MOST_WORDS, Script
from voice_pipelines.rehearsal.words import (
    NUMBER_WORDS,
    address,
    bare,
    clock,
    date,
    digits,
    fill,
    first_name,
    full_name,
    invented,
    join,
    last_name,
    money,
    one_of,
    phone,
    sentence,
    table,
    thing,
    with_article,
    words,
)


@dataclass(frozen=True)
class Question:
    """Something callers ask about a business. Templates; `slots` fill them."""

    family: str
    said: Sequence[str]
    answers: Sequence[str]
    slots: Mapping[str, str]
    follow: Sequence[str] = ()
    """How it is asked after another question of its family."""
    topic: str = "that"


@dataclass(frozen=True)
class Business:
    """One imagined business, its system prompt, what that tells and what it does not."""

    name: str
    agent: str
    """The agent's own name, where the prompt gives one."""
    prompt: str
    told: tuple[Question, ...]
    untold: tuple[Question, ...]


def imagine_business(rng: random.Random, fewest: int = 2, most: int = 6) -> Business:
    """Vary kind, name and facts; between `fewest` and `most` facts are told."""
    book = table("facts")
    key = rng.choice(tuple(book["business"]))
    kind = book["business"][key]
    name = _name(kind["names"], rng)
    told: list[Question] = []
    untold: list[Question] = []
    shown: list[str] = []
    count = rng.randint(fewest, most)
    if rng.random() < 0.75 and count:
        _tell_hours(rng, shown, told)
        count -= 1
    else:
        untold += _unknown_hours()
    _tell_prices(kind, count > 0 and rng.random() < 0.75, rng, shown, told, untold)
    count -= len(shown) > 1
    _tell_staff(kind, count > 0 and rng.random() < 0.45, rng, shown, told, untold)
    _tell_others(key, kind, max(0, count - (rng.random() < 0.3)), rng, shown, told, untold)
    rng.shuffle(shown)
    slots = {"n": name, "t": rng.choice(kind["is"]), "g": first_name(rng)}
    intro_template = rng.choice(book["intros"])
    intro = fill(intro_template, rng, slots)
    rules = " ".join(rng.sample(book["rules"], rng.choice((1, 1, 2))))
    parts = [intro, *shown, rules] if rng.random() < 0.65 else [intro, rules, *shown]
    prompt = sentence(" ".join(" ".join(parts).split()))
    return Business(name, slots["g"] if "{g}" in intro_template else "", prompt, tuple(told), tuple(untold))


def _name(patterns: Sequence[str], rng: random.Random) -> str:
    def word() -> str:
        key = rng.choice(("adjectives", "nouns", "nouns"))
        return (invented(rng) if rng.random() < 0.15 else rng.choice(words(key))).capitalize()

    slots = {"f": first_name(rng), "f2": first_name(rng), "l": last_name(rng), "l2": last_name(rng), "w": word()}
    slots |= {"w2": word(), "s": rng.choice(words("streets")), "t": rng.choice(words("towns"))}
    return one_of(patterns, rng, slots)


# --- what a prompt tells -------------------------------------------------------------------------------------------------


def _pick_from(key: str) -> Callable[[random.Random], str]:
    def pick(rng: random.Random) -> str:
        slots = {
            "street": rng.choice(words("streets")),
            "noun": rng.choice(words("nouns")),
            "adjective": rng.choice(words("adjectives")),
            "a_thing": with_article(thing(rng)),
            "town": rng.choice(words("towns")),
            "n": str(rng.randint(4, 99)),
            "m": str(rng.randint(100, 199)),
            "money": money(rng, 2, 15),
            "day": rng.choice(words("days")),
        }
        return one_of(table("facts")["lists"][key], rng, slots)

    return pick


def _title(rng: random.Random) -> str:
    return rng.choice(
        (
            f"{thing(rng)} and {thing(rng)}".title(),
            f"The {thing(rng)}".title(),
            thing(rng).title(),
            f"{first_name(rng)} and the {thing(rng).title()}",
        )
    )


def _languages(rng: random.Random) -> str:
    return join(rng.sample(table("facts")["lists"]["language_names"].split(), rng.choice((2, 2, 3))))


_MAKERS: Mapping[str, Callable[[random.Random], str]] = {
    "early": lambda rng: clock(rng, 5, 8),
    "morning": lambda rng: clock(rng, 6, 10),
    "afternoon": lambda rng: clock(rng, 13, 16),
    "evening": lambda rng: clock(rng, 16, 21),
    "night": lambda rng: clock(rng, 21, 23),
    "slot": lambda rng: clock(rng, 8, 18),
    "day": lambda rng: rng.choice(words("days")),
    "weekday": lambda rng: rng.choice(words("weekdays")),
    "address": address,
    "phone": phone,
    "landmark": lambda rng: rng.choice(words("landmarks")),
    "town": lambda rng: rng.choice(words("towns")),
    "ordinal": lambda rng: rng.choice(
        ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "ground", "top")
    ),
    "small_money": lambda rng: money(rng, 1, 6),
    "money": lambda rng: money(rng, 2, 40),
    "big_money": lambda rng: f"${rng.randint(15, 400)}",
    "miles": lambda rng: f"{rng.randint(2, 30)} miles",
    "hours": lambda rng: rng.choice(
        (f"{rng.choice((2, 3, 4, 6, 8, 12, 24, 36, 48, 72))} hours", f"{rng.randint(2, 9)} days")
    ),
    "minutes": lambda rng: f"{rng.choice((10, 12, 15, 20, 25, 30, 35, 40, 45, 50, 55, 70, 75, 80, 90))} minutes",
    "age": lambda rng: str(rng.choice((4, 5, 6, 7, 8, 10, 12, 14, 15, 16, 18, 21, 23, 25))),
    "percent": lambda rng: str(rng.choice((5, 7, 8, 10, 12, 15, 18, 20, 25, 30, 33, 40))),
    "password": lambda rng: rng.choice(
        (
            f"{thing(rng)}".replace(" ", ""),
            f"{rng.choice(words('nouns'))}{digits(rng, 2)}",
            invented(rng),
            f"{thing(rng)}",
        )
    ),
    "codeword": lambda rng: (
        f"{rng.choice((rng.choice(words('nouns')), invented(rng))).upper()}{rng.choice(('', digits(rng, 2)))}"
    ),
    "name": full_name,
    "capacity": lambda rng: str(rng.randint(4, 90)),
    "warranty": lambda rng: rng.choice(
        (f"{rng.randint(2, 36)} months", f"{rng.randint(2, 10)} years", f"{rng.randint(10, 99)} days")
    ),
    "special": lambda rng: with_article(thing(rng)),
    "workdays": lambda rng: rng.choice((f"{rng.randint(2, 14)} days", f"{rng.randint(2, 8)} weeks")),
    "date": date,
    "year": lambda rng: str(rng.randint(1890, 2022)),
    "languages": _languages,
    "title": _title,
} | {key: _pick_from(key) for key in ("parking", "payment", "dogs", "access", "group", "bring", "entrance", "line")}


def _tell_hours(rng: random.Random, shown: list[str], told: list[Question]) -> None:
    book = table("facts")
    schedule = rng.choice(book["hours"])
    slots = {key: _MAKERS[maker](rng) for key, maker in schedule["slots"].items()}
    shown.append(one_of(schedule["told"], rng, slots))
    for key in schedule["about"]:
        entry = book["hour"][key]
        own = dict(slots)
        match entry.get("on"):
            case "day":
                own["d"] = rng.choice(words("days"))
            case "weekday":
                own["d"] = rng.choice(words("weekdays"))
            case "other":
                own["e"] = rng.choice([day for day in words("days") if day != own["d"]])
        told.append(Question("hours", entry["said"], entry["answers"], own, entry["follow"]))


def _unknown_hours() -> list[Question]:
    hours = table("facts")["hour"]
    return [
        Question("hours", hours[key]["said"], (), {}, (), "the opening hours") for key in ("open", "close", "hours")
    ]


def _tell_prices(
    kind: Mapping[str, Any],
    is_told: bool,
    rng: random.Random,
    shown: list[str],
    told: list[Question],
    untold: list[Question],
) -> None:
    book = table("facts")["prices"]
    services = [with_article(thing(rng)) if rng.random() < 0.25 else service for service in kind["services"]]
    services = list(dict.fromkeys(rng.sample(services, len(services))))
    count = rng.choice((1, 2, 2, 3, 3, 4)) if is_told else 0
    items = []
    for service in services[:count]:
        wrong = f"{rng.choice(('twenty', 'thirty', 'forty', 'fifty', 'sixty'))} {rng.choice(NUMBER_WORDS[1:10])}"
        slots = {"a": service, "b": bare(service), "p": money(rng), "v": wrong}
        items.append(slots)
        told.append(
            Question("price", (*book["said"], *book["said"], *book["guess"]), book["answers"], slots, book["follow"])
        )
    strangers = [*services[count:], with_article(thing(rng)), with_article(thing(rng))]
    for service in strangers:
        if any(bare(service) in item["b"] or item["b"] in bare(service) for item in items):
            continue
        slots = {"a": service, "b": bare(service)}
        untold.append(Question("price", book["said"], book["unknown"], slots, book["follow"]))
    if not items:
        return
    how = rng.choice(book["told"])
    if how == "{each}":
        shown += [one_of(book["each"], rng, slots) for slots in items]
        return
    item = rng.choice(book["item"])
    listed = ", ".join(fill(item, rng, slots) for slots in items)
    shown.append(fill(how, rng, {"list": listed, "List": listed}))
    if len(items) <= 3:
        spoken = join([f"{slots['a']} for {slots['p']}" for slots in items])
        told.append(Question("prices", book["known_said"], book["known_answers"], {"list": spoken}))


def _tell_staff(
    kind: Mapping[str, Any],
    is_told: bool,
    rng: random.Random,
    shown: list[str],
    told: list[Question],
    untold: list[Question],
) -> None:
    book = table("facts")["staff"]
    roles = rng.sample(kind["staff"], len(kind["staff"]))
    count = rng.choice((1, 2, 2)) if is_told else 0
    for number, role in enumerate(roles):
        slots = {"d": role}
        if number >= count:
            untold.append(Question("staff", book["said"], (), slots, book["follow"], "that"))
            continue
        is_doctor = kind.get("doctor", False) and role != "runs the front desk" and rng.random() < 0.6
        slots["x"] = f"Dr. {last_name(rng)}" if is_doctor else rng.choice((first_name, full_name))(rng)
        shown.append(one_of(book["told"], rng, slots))
        told.append(Question("staff", book["said"], book["answers"], slots, book["follow"]))
        told.append(Question("who", book["reverse_said"], book["reverse_answers"], slots))


def _tell_others(
    key: str,
    kind: Mapping[str, Any],
    count: int,
    rng: random.Random,
    shown: list[str],
    told: list[Question],
    untold: list[Question],
) -> None:
    book = table("facts")
    lists = book["lists"]
    special = {fact for other in book["business"].values() for fact in other.get("facts", ())}
    special |= set(lists["appointment_facts"])
    own = [*kind.get("facts", ()), *(lists["appointment_facts"] if key in lists["appointment_kinds"] else ())]
    pool = [fact for fact in book["fact"] if fact not in special or fact in own]
    # What belongs to this kind of business is told more often than what any may tell.
    pool = sorted(pool, key=lambda fact: rng.random() * (0.4 if fact in own else 1.0))
    for fact in pool[:count]:
        entry = book["fact"][fact]
        slots = {slot: _MAKERS[maker](rng) for slot, maker in entry["slots"].items()}
        shown.append(one_of(entry["told"], rng, slots))
        told.append(Question(fact, entry["said"], entry["answers"], slots, entry.get("follow", ())))
    close = {other for group in lists["related"] if set(group.split()) & set(pool[:count]) for other in group.split()}
    for fact in pool[count:]:
        if fact not in close:
            entry = book["fact"][fact]
            slots = {slot: _MAKERS[maker](rng) for slot, maker in entry["slots"].items()}
            untold.append(Question(fact, entry["said"], (), slots, entry.get("follow", ()), entry["topic"]))
    stray = rng.choice(book["stray"])
    slots = {"city": rng.choice(words("cities")), "things": thing(rng) + "s"}
    untold += [Question("stray", stray["said"], (), slots)] * 6


# --- a dialogue ----------------------------------------------------------------------------------------------------------


class Conversation:
    """Exchanges about one business, on a script."""

    def __init__(self, business: Business, script: Script) -> None:
        self.business, self.script, self.rng = business, script, script.rng
        self.book = table("facts")
        self.asked: Question | None = None
        self.core = ""
        """The last answer without small words around it."""

    def greet(self) -> None:
        """Let the agent speak first, or let the caller say hello, or neither."""
        slots = {"n": self.business.name}
        if self.rng.random() < 0.5:
            self.script.say(one_of(self.book["greetings"], self.rng, slots))
        if self.rng.random() < 0.15:
            self.script.hear(one_of(self.book["hellos"], self.rng, slots))
            self.script.say(one_of(self.book["hello_answers"], self.rng, slots))

    def step(self) -> None:
        """Write one exchange that fits what was asked before."""
        before = len(self.script.turns)
        while len(self.script.turns) == before:
            self._try_step()

    def _try_step(self) -> None:
        """Write one exchange of a random kind, or nothing where that kind does not fit."""
        rng, told = self.rng, self.business.told
        kind = rng.choices(("ask", "follow", "again", "correct", "both", "unknown"), (42, 16, 8, 8, 9, 19))[0]
        siblings = [
            other
            for other in told
            if self.asked and other.family == self.asked.family and other.follow and other is not self.asked
        ]
        if kind == "follow" and siblings:
            self._answer(rng.choice(siblings), is_follow_up=True)
        elif kind == "again" and self.core and self.asked:
            self._repeat()
        elif kind == "correct" and siblings and self.asked and self.asked.family == "price":
            question = rng.choice(siblings)
            self.script.hear(one_of(self.book["prices"]["correction"], rng, question.slots))
            self._reply(question, rng.choice(("Sorry.", "Oh, sorry.", "My mistake.", "Ah, okay.", "")))
        elif kind == "correct" and (days := [other for other in siblings if _day(other)]):
            question = rng.choice(days)
            self.script.hear(fill(f"[no|sorry|no no|no wait|oh], [i meant|on|i mean|] {_day(question)}", rng))
            self._reply(question, rng.choice(("Sorry.", "Oh, sorry.", "My mistake.", "Ah, okay.", "")))
        elif kind == "both" and len(told) > 1:
            self._two_at_once()
        elif (kind == "unknown" or not told) and self.business.untold:
            self._answer(rng.choice(self.business.untold), is_follow_up=False)
        elif told:
            families = sorted({question.family for question in told})
            family = rng.choice(families)
            self._answer(rng.choice([question for question in told if question.family == family]), is_follow_up=False)

    def close(self) -> None:
        """Let the caller thank or say goodbye."""
        self.script.hear(one_of(self.book["thanks"], self.rng))
        self.script.say(one_of(self.book["thanks_answers"], self.rng, {"n": self.business.name}))

    def _answer(self, question: Question, *, is_follow_up: bool) -> None:
        rng = self.rng
        if is_follow_up:
            said = one_of(question.follow, rng, question.slots)
        else:
            said = one_of(question.said, rng, question.slots)
            is_open = (
                said.startswith(("when", "where", "how ", "what ", "who ", "which", "until")) and " about " not in said
            )
            frame = rng.choice(self.book["wrappers" if is_open else "direct"])
            said = f"{rng.choice(self.book['openers'])} {fill(frame, rng, {'q': said})}"
        self.script.hear(said)
        self._reply(question, rng.choice(self.book["leads"]))

    def _reply(self, question: Question, lead: str) -> None:
        is_known = bool(question.answers) and (question.family != "price" or "p" in question.slots)
        core = self.core = self.worded(question)
        tail = self.rng.choice(self.book["tails"]) if is_known else ""
        parts = f"{lead} {core} {tail}" if is_known and not core.endswith("?") else core
        self.script.say(parts if len(parts.split()) <= MOST_WORDS else core)
        self.asked = question if is_known else None

    def worded(self, question: Question, *, whole: bool = False) -> str:
        """The answer; `whole`: in a wording that stands without its question, if there is one."""
        alternative = one_of(self.book["alternatives"], self.rng)
        answers = question.answers or self.book["unknown"]
        if whole:
            answers = [answer for answer in answers if len(answer.split()) > 3] or answers
        return sentence(
            one_of(answers, self.rng, {"k": question.topic, "a": alternative, "alt": alternative, **question.slots})
        )

    def _repeat(self) -> None:
        rng, question = self.rng, self.asked
        assert question is not None
        said = self.book["say_again"]
        if question.family == "price" and rng.random() < 0.6:
            said = self.book["prices"]["again"]
        self.script.hear(one_of(said, rng))
        core = self.core if rng.random() < 0.5 else self.worded(question)
        self.script.say(f"{rng.choice(self.book['again_leads'])} {core}")

    def _two_at_once(self) -> None:
        rng = self.rng
        first, second = rng.sample(self.business.told, 2)
        if first.family in (second.family, "prices") or second.family == "prices":
            return
        is_known = rng.random() < 0.8 or not self.business.untold
        if not is_known:
            second = rng.choice(self.business.untold)
        both = [one_of(question.said, rng, question.slots) for question in (first, second)]
        self.script.hear(
            f"{rng.choice(self.book['openers'])} {both[0]} {rng.choice(('and', 'and', 'and also', 'and then'))} {both[1]}"
        )
        answer = f"{self.worded(first, whole=True)} {self.worded(second, whole=True)}"
        if len(answer.split()) > MOST_WORDS:
            answer = self.worded(first)
        self.core, self.asked = answer, None
        self.script.say(answer)


def _day(question: Question) -> str:
    """The day that an answer about opening hours is about, or nothing."""
    said = question.follow[0] if question.follow else ""
    for key in ("d", "e"):
        if question.family == "hours" and f"{{{key}}}" in said:
            return question.slots[key].lower()
    for day in ("saturday", "sunday"):
        if question.family == "hours" and said.endswith(day) and "when" not in said:
            return day
    return ""


def write_dialogue(rng: random.Random) -> Script:
    """Write one dialogue about an imagined business."""
    business = imagine_business(rng)
    script = Script("facts", business.prompt, rng)
    conversation = Conversation(business, script)
    conversation.greet()
    for _ in range(rng.choice((1, 1, 2, 2, 3, 3, 4, 5))):
        conversation.step()
    if rng.random() < 0.35:
        conversation.close()
    return script

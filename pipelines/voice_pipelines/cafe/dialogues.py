"""Training dialogues for a café's phone line, made by a program.

The caller's side is written from templates, the notes come from the real order book, and the agent's side words each note: what the
model learns and what it meets at run time agree by construction.

    python -m voice_pipelines.cafe.dialogues --out FOLDER --count N --seed S
"""

import argparse
import json
import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from voice_pipelines.cafe import callers, replies
from voice_pipelines.cafe.hearing import Ear, plural
from voice_pipelines.cafe.menu import Menu, Product, money, read_menu
from voice_pipelines.cafe.order import Note, OrderBook

PRESET = Path(__file__).parent.parent / "presets" / "cafe.toml"


@dataclass(frozen=True)
class Cafe:
    """One imagined café: its facts, its menu and the system prompt that tells the agent about them."""

    name: str
    opens: str
    closes: str
    weekend: str
    address: str
    wifi: str
    menu: Menu
    prompt: str
    told: frozenset[str]
    extras: dict[str, str]


def imagine_cafe(base: Menu, rng: random.Random) -> Cafe:
    """Vary name, hours, address, prices and what is sold."""
    menu = _vary(base, rng)
    name = rng.choice(callers.CAFE_NAMES)
    if rng.random() < 0.5:
        name = f"{rng.choice(callers.FIRST_NAMES)} {rng.choice(callers.LAST_NAMES)}"
    opens, closes = f"{rng.choice((6, 7, 8, 9))} am", f"{rng.choice((3, 4, 5, 6, 7, 8, 9, 10))} pm"
    if rng.random() < 0.25:
        opens = opens.replace(" am", ":30 am")
    weekend = f"{rng.choice((8, 9, 10))} am to {rng.choice((2, 3, 4, 5, 6))} pm"
    address = f"{rng.randint(1, 399)} {rng.choice(callers.STREETS)} {rng.choice(('Street', 'Road', 'Avenue', 'Lane'))}"
    wifi = f"{rng.choice(callers.WIFI)}{rng.choice(callers.WIFI_TAILS)}"
    drinks = [p for p in menu.products.values() if p.is_drink]
    food = [p.name for p in menu.products.values() if not p.is_drink]
    some = rng.sample(drinks, min(len(drinks), rng.randint(3, 6)))
    listed = ", ".join(f"{p.name} from {money(p.prices[0])}" for p in some)
    parts = {
        "hours": rng.choice(("Open {o} to {c} on weekdays, {w} on weekends.", "Hours: {o} to {c}, weekends {w}.",
                             "We open at {o} and close at {c}; on weekends {w}.")).format(o=opens, c=closes, w=weekend),
        "address": rng.choice(("Address: {a}.", "The café is at {a}.", "You find us at {a}.")).format(a=address),
        "wifi": rng.choice(("The wifi is free, the password is {p}.", "Wifi password: {p}.", "Free wifi, password {p}.")).format(p=wifi),
        "menu": rng.choice(("Drinks: {d}. Food: {f}.", "We sell {d}; to eat there is {f}.", "Menu: {d}; food: {f}.")).format(
            d=listed, f=", ".join(rng.sample(food, min(len(food), 3)))),
    }  # fmt: skip
    extras = {key: rng.choice(values) for key, (_, values, _, _) in callers.EXTRA_FACTS.items() if rng.random() < 0.4}
    told = frozenset(key for key in parts if rng.random() < 0.85)
    shown = [parts[key] for key in parts if key in told]
    shown += [rng.choice(callers.EXTRA_FACTS[key][2]).format(x=value) for key, value in extras.items()]
    rng.shuffle(shown)
    intro = rng.choice(callers.INTROS).format(n=name)
    rules = rng.choice(callers.RULES)
    prompt = " ".join([intro, *shown, rules] if rng.random() < 0.7 else [intro, rules, *shown])
    return Cafe(name, opens, closes, weekend, address, wifi, menu, prompt, told, extras)


def _vary(base: Menu, rng: random.Random) -> Menu:
    products: dict[str, Product] = {}
    gone: list[str] = []
    keep = rng.choice((1.0, 1.0, 0.85, 0.7))
    for product in base.products.values():
        if rng.random() > keep and product.name not in ("coffee", "latte", "tea"):
            gone += [plural(name) for name in (product.name, *product.also)]
            continue
        shift = rng.randint(-3, 6) * 25 + rng.choice((0, 0, 0, -5, 5, 10, 20))
        products[product.name] = replace(product, prices=tuple(max(100, p + shift) for p in product.prices))
    extra = rng.choice((0, 25, 50, 60, 75))
    milks = {name: (extra if cost else 0) for name, cost in base.milks.items()}
    ready = f"{rng.choice((5, 8, 10, 10, 12, 15, 20, 25))} minutes"
    return replace(base, products=products, milks=milks, not_sold=(*base.not_sold, *gone), ready_in=ready)


class Writer:
    """Writes one dialogue: holds the order book and the turns so far."""

    def __init__(self, cafe: Cafe, rng: random.Random) -> None:
        self.cafe, self.rng = cafe, rng
        self.caller = callers.Caller(cafe.menu, rng)
        self.book = OrderBook(cafe.menu, Ear(cafe.menu))
        self.turns: list[dict[str, object]] = [{"role": "system", "text": cafe.prompt}]
        self.last_reply = ""

    def say(self, text: str, pins: tuple[str, ...] = ()) -> None:
        turn: dict[str, object] = {"role": "agent", "text": text}
        if pins:
            turn["pins"] = list(pins)
        self.turns.append(turn)
        self.last_reply = text

    def hear(self, text: str, otherwise: str) -> Note:
        """Add a caller's turn, the book's note if there is one, and the reply: to the note, else `otherwise`."""
        text = callers.misrecognise(text, self.rng) if self.rng.random() < 0.15 else text
        self.turns.append({"role": "user", "text": text})
        self.book, note = self.book.hear(text)
        if note.text:
            self.turns.append({"role": "note", "text": note.text})
            self.say(replies.reply_to(note, self.rng), note.must_say)
        else:
            self.say(otherwise)
        return note

    def step(self) -> None:
        """Write one exchange of a kind that fits the state of the order."""
        rng, caller, book = self.rng, self.caller, self.book
        pardon = rng.choice(callers.PARDON)
        kind = rng.choices(*zip(*callers.STEPS.items(), strict=True))[0]
        if book.offered is not None and self.last_reply.endswith("?") and rng.random() < 0.6:
            self.hear(rng.choice(callers.YES if rng.random() < 0.6 else callers.NO), pardon)
        elif book.missing() and rng.random() < 0.8:
            self.hear(caller.size(), pardon)
        elif kind == "order" or (not book.items and rng.random() < 0.3) or (kind in ("change", "remove") and not book.items):
            self.hear(caller.order(bool(book.items)), pardon)
        elif kind == "change":
            self.hear(caller.change(book.items), pardon)
        elif kind == "remove":
            self.hear(caller.remove(book.items), pardon)
        elif kind == "fact":
            self.ask_fact()
        elif kind == "repeat":
            again = pardon if "$" in self.last_reply else self.last_reply or rng.choice(callers.HOW_CAN_I_HELP)
            self.hear(rng.choice(callers.SAY_AGAIN), again)
        elif kind == "talk" and not book.missing():
            said, answers = rng.choice(callers.TALK)
            self.hear(rng.choice(said), rng.choice(answers))
        elif kind == "noise" or kind == "talk":
            self.hear(rng.choice(callers.GARBLED), pardon)
        else:
            self.hear(caller.question(kind), pardon)

    def ask_fact(self) -> None:
        """Write a question about the café, answered from the system prompt or not at all."""
        cafe, rng = self.cafe, self.rng
        kind = rng.choice(("hours", "hours", "address", "address", "wifi", "wifi", "name", *callers.EXTRA_FACTS))
        if kind in callers.EXTRA_FACTS:
            said, _, _, answers = callers.EXTRA_FACTS[kind]
            answer = rng.choice(answers).format(x=cafe.extras.get(kind, ""))
            is_told = kind in cafe.extras
        else:
            said, answers = callers.FACTS[kind]
            answer = rng.choice(answers).format(
                o=cafe.opens, c=cafe.closes, w=cafe.weekend, a=cafe.address, p=cafe.wifi, n=cafe.name
            )
            is_told = kind == "name" or kind in cafe.told
        self.hear(rng.choice(said), answer if is_told else rng.choice(callers.UNKNOWN_FACT))

    def close(self) -> None:
        rng = self.rng
        missing = bool(self.book.missing())
        if missing:
            self.hear(self.caller.size(), rng.choice(callers.PARDON))
        note = self.hear(rng.choice(callers.CLOSINGS), rng.choice(callers.GOODBYES))
        if rng.random() < 0.4 and note.text:
            said, answers = callers.FAREWELL
            self.hear(rng.choice(said), rng.choice(answers))


def write_dialogue(base: Menu, seed: str) -> dict[str, object]:
    """Return one dialogue; the same seed gives the same dialogue."""
    rng = random.Random(seed)
    cafe = imagine_cafe(base, rng)
    writer = Writer(cafe, rng)
    if rng.random() < 0.6:
        writer.say(rng.choice(callers.GREETINGS).format(n=cafe.name))
    if rng.random() < 0.15:
        writer.hear(rng.choice(callers.HELLO), rng.choice(callers.HOW_CAN_I_HELP))
    for _ in range(rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6))):
        writer.step()
    if rng.random() < 0.7 and (writer.book.items or rng.random() < 0.3):
        writer.close()
    return {"id": f"cafe-{seed}", "domain": "cafe", "turns": writer.turns}


def dialogues(count: int, seed: str) -> Iterator[dict[str, object]]:
    """Yield `count` dialogues of one seed."""
    base = read_menu(tomllib.loads(PRESET.read_text(encoding="utf-8"))["menu"])
    for number in range(count):
        yield write_dialogue(base, f"{seed}-{number}")


def main() -> None:
    """Write cafe.train.jsonl and cafe.dev.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for cafe.train.jsonl and cafe.dev.jsonl")
    parser.add_argument("--count", type=int, default=30_000, help="dialogues for training")
    parser.add_argument("--dev", type=int, default=500, help="dialogues for development, from a seed of their own")
    parser.add_argument("--seed", default="0")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", options.count), ("dev", options.dev)):
        with (options.out / f"cafe.{part}.jsonl").open("w", encoding="utf-8") as file:
            for dialogue in dialogues(count, f"{part}-{options.seed}"):
                file.write(json.dumps(dialogue, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

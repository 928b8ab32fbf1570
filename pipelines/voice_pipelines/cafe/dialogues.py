"""Training dialogues for a café's phone line, made by a program.

The caller's side is written from templates, the notes come from the real order book, and the agent's side words each note: what the
model learns and what it meets at run time agree by construction. One line a dialogue, as `dllm train --data` reads them:

    {"id": "...", "domain": "cafe", "turns": [{"role": "system" | "user" | "note" | "agent", "text": "...", "pins": ["$4.50"]}]}

`pins` are the parts of an agent's text that come from the note and are pinned into the reply at run time.

    python -m voice_pipelines.cafe.dialogues --out FOLDER --count N --seed S
"""

import argparse
import json
import random
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from voice_pipelines.cafe.callers import Caller, misheard
from voice_pipelines.cafe.hearing import Ear, plural
from voice_pipelines.cafe.menu import Menu, Product, money, read_menu
from voice_pipelines.cafe.order import Facts, OrderBook, note_of
from voice_pipelines.cafe.phrases import Exchange, phrase_book
from voice_pipelines.cafe.replies import reply_to

PRESET = Path(__file__).parent.parent / "presets" / "cafe.toml"


@dataclass(frozen=True)
class Cafe:
    """One imagined café: its menu, the system prompt, and what of its facts the prompt tells.

    `facts` fill the slots of answers; `house_facts` are those that only some cafés have.
    """

    name: str
    menu: Menu
    prompt: str
    facts: Mapping[str, str]
    told: frozenset[str]
    house_facts: Mapping[str, str]


def imagine_cafe(base: Menu, rng: random.Random) -> Cafe:
    """Vary name, hours, address, prices and what is sold."""
    book = phrase_book()
    lines = book.cafe
    menu = _vary(base, rng)
    name = rng.choice(lines["cafe_names"])
    if rng.random() < 0.5:
        name = f"{rng.choice(lines['first_names'])} {rng.choice(lines['last_names'])}"
    opens, closes = f"{rng.choice((6, 7, 8, 9))} am", f"{rng.choice((3, 4, 5, 6, 7, 8, 9, 10))} pm"
    if rng.random() < 0.25:
        opens = opens.replace(" am", ":30 am")
    weekend = f"{rng.choice((8, 9, 10))} am to {rng.choice((2, 3, 4, 5, 6))} pm"
    address = f"{rng.randint(1, 399)} {rng.choice(lines['streets'])} {rng.choice(lines['streets_end'])}"
    wifi = f"{rng.choice(lines['wifi'])}{rng.choice(lines['wifi_tails'])}"
    facts = {"o": opens, "c": closes, "w": weekend, "a": address, "p": wifi, "n": name}
    drinks = [product for product in menu.products.values() if product.is_drink]
    food = [product.name for product in menu.products.values() if not product.is_drink]
    some = rng.sample(drinks, min(len(drinks), rng.randint(3, 6)))
    listed = ", ".join(f"{product.name} from {money(product.prices[0])}" for product in some)
    parts = {key: rng.choice(lines[line]).format(**facts) for key, line in _TOLD.items()}
    parts["menu"] = rng.choice(lines["menu"]).format(d=listed, f=", ".join(rng.sample(food, min(len(food), 3))))
    house = {key: rng.choice(fact.values) for key, fact in book.house_facts.items() if rng.random() < 0.4}
    told = frozenset(key for key in parts if rng.random() < 0.85)
    shown = [parts[key] for key in parts if key in told]
    shown += [rng.choice(book.house_facts[key].told).format(x=value) for key, value in house.items()]
    rng.shuffle(shown)
    intro = rng.choice(lines["intros"]).format(n=name)
    rules = rng.choice(lines["rules"])
    prompt = " ".join([intro, *shown, rules] if rng.random() < 0.7 else [intro, rules, *shown])
    return Cafe(name, menu, prompt, facts, told, house)


_TOLD = {"hours": "hours", "address": "address", "wifi": "wifi_told"}


def _vary(base: Menu, rng: random.Random) -> Menu:
    """Shift prices and drop some products, which then are known as not sold."""
    products: dict[str, Product] = {}
    gone: list[str] = []
    keep = rng.choice((1.0, 1.0, 0.85, 0.7))
    for product in base.products.values():
        if rng.random() > keep and product.name not in ("coffee", "latte", "tea"):
            gone += [plural(name) for name in (product.name, *product.also)]
            continue
        shift = rng.randint(-3, 6) * 25 + rng.choice((0, 0, 0, -5, 5, 10, 20))
        products[product.name] = replace(product, prices=tuple(max(100, price + shift) for price in product.prices))
    extra = rng.choice((0, 25, 50, 60, 75))
    milks = {name: (extra if cost else 0) for name, cost in base.milks.items()}
    ready = f"{rng.choice((5, 8, 10, 10, 12, 15, 20, 25))} minutes"
    return replace(base, products=products, milks=milks, not_sold=(*base.not_sold, *gone), ready_in=ready)


class Writer:
    """Writes one dialogue: holds the order book and the turns so far."""

    def __init__(self, cafe: Cafe, rng: random.Random) -> None:
        self.cafe, self.rng = cafe, rng
        self.caller = Caller(cafe.menu, rng)
        self.order = OrderBook(cafe.menu, Ear(cafe.menu))
        self.turns: list[dict[str, object]] = [{"role": "system", "text": cafe.prompt}]
        self.last_reply = ""
        self._book = phrase_book()

    def say(self, text: str, pins: tuple[str, ...] = ()) -> None:
        """Add an agent's turn."""
        turn: dict[str, object] = {"role": "agent", "text": text}
        if pins:
            turn["pins"] = list(pins)
        self.turns.append(turn)
        self.last_reply = text

    def hear(self, text: str, otherwise: str) -> Facts:
        """Add a caller's turn, the note if there is one, and the reply: to the note, else `otherwise`."""
        text = misheard(text, self.rng)
        self.turns.append({"role": "user", "text": text})
        self.order, facts = self.order.hear(text)
        if facts:
            note = note_of(facts)
            self.turns.append({"role": "note", "text": note.text})
            reply = reply_to(facts, self.rng)
            # A name at the start of a sentence is written with a capital there: those few are learnt without a pin.
            self.say(reply, tuple(pin for pin in note.must_say if f" {pin}" in f" {reply}"))
        else:
            self.say(otherwise)
        return facts

    def greet(self) -> None:
        """Let the agent speak first, or let the caller say hello, or neither."""
        rng = self.rng
        if rng.random() < 0.6:
            self.say(self._agent("greetings").format(n=self.cafe.name))
        if rng.random() < 0.15:
            self.hear(self.caller.line("hello"), self._agent("how_can_i_help"))

    def step(self) -> None:
        """Write one exchange of a kind that fits the state of the order."""
        rng, caller, order = self.rng, self.caller, self.order
        pardon = self._agent("pardon")
        kind = rng.choices(*zip(*self._book.steps.items(), strict=True))[0]
        if order.offered is not None and self.last_reply.endswith("?") and rng.random() < 0.6:
            self.hear(caller.line("yes" if rng.random() < 0.6 else "no"), pardon)
        elif order.missing and rng.random() < 0.8:
            self.hear(caller.size(), pardon)
        elif (
            kind == "order"
            or (not order.items and rng.random() < 0.3)
            or (kind in ("change", "remove") and not order.items)
        ):
            self.hear(caller.order(bool(order.items)), pardon)
        elif kind == "change":
            self.hear(caller.change(order.items), pardon)
        elif kind == "remove":
            self.hear(caller.remove(order.items), pardon)
        elif kind == "fact":
            self.ask_fact()
        elif kind == "repeat":
            # A reply with a price is repeated from its note; without a note the price would not be pinned.
            again = pardon if "$" in self.last_reply else self.last_reply or self._agent("how_can_i_help")
            self.hear(caller.line("say_again"), again)
        elif kind == "talk" and not order.missing:
            self._exchange(rng.choice(self._book.talk))
        elif kind in ("noise", "talk"):
            self.hear(caller.line("garbled"), pardon)
        else:
            self.hear(caller.question(kind), pardon)

    def ask_fact(self) -> None:
        """Write a question about the café, answered from the system prompt or not at all."""
        cafe, rng, book = self.cafe, self.rng, self._book
        kind = rng.choice(("hours", "hours", "address", "address", "wifi", "wifi", "name", *book.house_facts))
        house = book.house_facts.get(kind)
        asked = house.asked if house else book.facts[kind]
        answer = rng.choice(asked.answers).format(x=cafe.house_facts.get(kind, ""), **cafe.facts)
        is_told = kind == "name" or kind in cafe.told or kind in cafe.house_facts
        self.hear(rng.choice(asked.said), answer if is_told else self._agent("unknown_fact"))

    def close(self) -> None:
        """Let the caller finish, sometimes with a goodbye after the agent's."""
        if self.order.missing:
            self.hear(self.caller.size(), self._agent("pardon"))
        facts = self.hear(self.caller.line("closings"), self._agent("goodbyes"))
        if self.rng.random() < 0.4 and facts:
            self._exchange(self._book.farewell)

    def _agent(self, key: str) -> str:
        return self.rng.choice(self._book.agent[key])

    def _exchange(self, exchange: Exchange) -> None:
        self.hear(self.rng.choice(exchange.said), self.rng.choice(exchange.answers))


def write_dialogue(base: Menu, seed: str) -> dict[str, object]:
    """Return one dialogue; the same menu and seed give the same dialogue."""
    rng = random.Random(seed)
    writer = Writer(imagine_cafe(base, rng), rng)
    writer.greet()
    for _ in range(rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6))):
        writer.step()
    if rng.random() < 0.7 and (writer.order.items or rng.random() < 0.3):
        writer.close()
    return {"id": f"cafe-{seed}", "domain": "cafe", "turns": writer.turns}


def dialogues(count: int, seed: str) -> Iterator[dict[str, object]]:
    """Yield `count` dialogues of one seed, written from the café preset's menu."""
    base = read_menu(tomllib.loads(PRESET.read_text(encoding="utf-8"))["menu"])
    for number in range(count):
        yield write_dialogue(base, f"{seed}-{number}")


def main() -> None:
    """Write cafe.train.jsonl and cafe.dev.jsonl, from seeds that differ."""
    parser = argparse.ArgumentParser(description="Write training dialogues for a café's phone line.")
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

"""The café's order book: what the caller said so far, as facts and exact totals.

`cafe_notes` is the note function that a preset names. Each transcript gives one note, which the language model reads before it
writes its reply. The grammar of a note:

    note    = [ fact *( "; " fact ) ]
    fact    = key [ ": " value ]

    order: ITEMS          the first items of the order     change: ITEM     an item as it is after a change
    add: ITEMS            items on top of earlier ones     remove: ITEMS    items taken off ("everything" for all)
    size missing: NAMES   ask for the size of these        total: $D.CC     of the whole order
    repeat: ITEMS         the whole order, read back       order empty      nothing is ordered
    done                  the caller is finished           ready in: TIME   when it can be picked up
    price: ITEM $D.CC     one price, or "ITEM small $D.CC, medium $D.CC, large $D.CC"
    not added: NAME       an offer was refused             allergens unknown    only the staff can say
    on the menu: NAMES    answer to "do you have"          not on the menu: NAMES
    milks: NAMES          and teas, syrups, sizes, roasts, pastries, sandwiches, food, drinks: what there is to choose from

ITEMS and NAMES are joined by ", "; an item is spelled by `hearing.Item`. After order, add, change and remove comes exactly one of
total, size missing and order empty; `done` is followed by total and ready in, or by order empty. Asking to hear something again
gives the note before once more. An empty note says that nothing about the order was heard.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from voice_pipelines.cafe import intents
from voice_pipelines.cafe.hearing import (
    COUNT_WORDS,
    MAX_COUNT,
    NOTHING,
    Addition,
    Ear,
    Heard,
    Item,
    merge_items,
    normalise,
    plural,
)
from voice_pipelines.cafe.menu import Menu, money, read_menu
from voiceagent.agent import Note

MOST_WORDS = 500
"""Words of one transcript that are heard, the newest: nobody says as many in the minute that a turn lasts at most, but a client may type them."""
_MAX_LISTED = 6  # Names in one answer: as many as a listener keeps in mind.


@dataclass(frozen=True, slots=True)
class Fact:
    """One entry of a note."""

    key: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.value}" if self.value else self.key


Facts = tuple[Fact, ...]


def note_of(facts: Facts) -> Note:
    """Write facts as a note. Every price in it must be said, and what was ordered, changed or asked for by name."""
    text = "; ".join(map(str, facts))
    prices = re.findall(r"\$\d+\.\d\d", text)
    names = [name for fact in facts for name in _names_to_say(fact)]
    if sum(len(name.split()) for name in names) > _MAX_NAMED_WORDS:
        names = []
    return Note(text, tuple(dict.fromkeys((*names, *prices))))


_MAX_NAMED_WORDS = 20
"""A read-back longer than this does not fit a spoken reply word for word: then only its price must be said."""
_SAID_AS_ORDER = frozenset({"order", "add", "change", "remove", "repeat"})
_SAID_BY_NAME = frozenset({"not added", "on the menu", "not on the menu", "ready in"})
_SAID_AS_LIST = frozenset({"milks", "teas", "syrups", "sizes", "roasts", "pastries", "sandwiches", "food", "drinks"})


def _names_to_say(fact: Fact) -> list[str]:
    if fact.key == "price":
        return [fact.value.partition(" $")[0]] if fact.value.count("$") == 1 else []
    names = fact.value.split(", ")
    if fact.key in _SAID_AS_ORDER and fact.value != "everything":
        # One span, so that two drinks cannot change places; the word before the first is the model's own.
        return [_listed([names[0], *map(_with_article, names[1:])])]
    if fact.key in _SAID_AS_LIST:
        return [_listed(names)]
    return names if fact.key in _SAID_BY_NAME else []


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _with_article(item: str) -> str:
    first, *rest = item.split()
    if first in COUNT_WORDS and rest[:1] != ["ounce"]:
        return item
    return f"{'an' if item[0] in 'aeiou' else 'a'} {item}"


@dataclass(frozen=True)
class OrderBook:
    """The order so far. Every method returns a new book.

    Attributes:
        items: What was ordered; an item may still lack its size.
        is_done: Whether the caller has closed the order.
        offered: What a plain "yes" would order, since its price or availability was just told.
        unfinished: Details said without a product, such as "can i get a large"; they belong to a product named in the next words.
        last: The facts given last, for callers who did not hear the reply.
    """

    menu: Menu
    ear: Ear
    items: tuple[Item, ...] = ()
    is_done: bool = False
    offered: Item | None = None
    unfinished: Item = NOTHING
    last: Facts = ()

    @property
    def total(self) -> int:
        """Cents of all items whose price is known; an item whose size is missing counts nothing yet."""
        return sum(self.cost(item) for item in self.items if not self.lacks_size(item))

    @property
    def missing(self) -> list[str]:
        """Names of the items whose size must still be said."""
        return [item.name for item in self.items if self.lacks_size(item)]

    def lacks_size(self, item: Item) -> bool:
        product = self.menu.products[item.name]
        return product.is_sized and product.needs_size and not item.size

    def cost(self, item: Item) -> int:
        """Return the cents of an item with its count, shots and additions.

        Raises:
            ValueError: If its size is missing.
        """
        each = self.menu.price(item.name, item.size or None) + self.menu.shots.get(item.shots, 0)
        for addition in item.additions:
            if addition.amount != "no":
                each += self.menu.milks.get(addition.name, self.menu.extras.get(addition.name, 0))
        return each * max(1, item.count)

    def hear(self, text: str) -> tuple["OrderBook", Facts]:
        """Take one transcript; return the book after it and the facts in it. Any text is accepted, and its newest `MOST_WORDS` are heard."""
        words = " ".join(normalise(text).split()[-MOST_WORDS:])
        if not words:
            return self, ()
        if intents.AGAIN.search(words):
            return self, self.last
        book, facts = self._hear(words)
        return replace(book, last=facts), facts

    def _hear(self, words: str) -> tuple["OrderBook", Facts]:
        asked = self._answer(words)
        if asked is not None:
            return asked
        if self.offered is not None:
            return self._hear_after_offer(self.offered, words)
        if intents.REMOVE_ALL.search(words) and self.items:
            return replace(self, items=(), is_done=False), (Fact("remove", "everything"), Fact("order empty"))
        heard = self.ear.hear(words.removeprefix("no ") if intents.CHANGE.search(words) else words)
        book, facts = self._update(words, heard)
        closes = bool(intents.DONE.search(words)) or (not facts and bool(intents.NO.fullmatch(words)))
        if closes and not heard.not_sold and not (self.is_done and not facts):
            return book._close(facts)
        if facts:
            book = replace(book, is_done=False)
            facts = (*facts, book._standing())
        return book, facts + _named("not on the menu", heard.not_sold)

    def _hear_after_offer(self, offered: Item, words: str) -> tuple["OrderBook", Facts]:
        book = replace(self, offered=None)
        if intents.YES.fullmatch(words):
            book, facts = book._add((offered,))
            book = replace(book, is_done=False)
            return book, (*facts, book._standing())
        if intents.NO.fullmatch(words):
            return book, (Fact("not added", offered.name),)
        return book._hear(words)

    def _standing(self) -> Fact:
        """Say how the order stands: empty, waiting for a size, or its total."""
        if not self.items:
            return Fact("order empty")
        missing = self.missing
        return Fact("size missing", ", ".join(missing)) if missing else Fact("total", money(self.total))

    def _close(self, facts: Facts) -> tuple["OrderBook", Facts]:
        standing = self._standing()
        if standing.key == "size missing":
            return self, (*facts, standing)
        if standing.key == "order empty":
            return self, (*facts, Fact("done"), standing)
        return replace(self, is_done=True), (*facts, Fact("done"), standing, Fact("ready in", self.menu.ready_in))

    # --- changing the order -----------------------------------------------------------------------------------------------

    def _update(self, words: str, heard: Heard) -> tuple["OrderBook", Facts]:
        """Do what the words ask for; the facts say what was done, without how the order stands then."""
        is_refusal = bool(intents.NO_BUT.match(words))
        is_change = bool(intents.CHANGE.search(words)) or is_refusal
        book = replace(self, unfinished=NOTHING)
        if intents.REMOVE.search(words) and self.items:
            return book._remove(words, heard)
        if heard.items:
            if self.items and is_change and not intents.ADDING.search(words):
                return book._change_named(heard, is_refusal=is_refusal)
            named = heard.items[0]
            if len(heard.items) == 1 and named.name in self.missing and not intents.ADDING.search(words):
                # The question for its size is often answered in full: "a large latte".
                loose = merge_items(replace(named, name="", count=named.count if named.count > 1 else 0), heard.loose)
                return book._change_loose(loose, only=named.name)
            return book._add((merge_items(self.unfinished, heard.items[0]), *heard.items[1:]))
        count = heard.loose.count if is_change or len(words.split()) < 3 else 0
        loose = replace(heard.loose, count=0 if count == 1 and not intents.JUST_ONE.search(words) else count)
        if loose.is_empty or heard.not_sold:
            return book, ()
        is_cut_off = not loose.additions and not is_change and bool(intents.ORDERING.search(words))
        if not self.items or (is_cut_off and not self.missing):
            return replace(book, unfinished=loose), ()
        return book._change_loose(loose, is_for_all=bool(intents.ALL_OF_THEM.search(words)))

    def _add(self, items: tuple[Item, ...]) -> tuple["OrderBook", Facts]:
        new = tuple(self._fitted(item) for item in items)
        return replace(self, items=self.items + new), _named("add" if self.items else "order", map(str, new))

    def _fitted(self, item: Item) -> Item:
        """Drop what the product cannot have, such as a size for food, and "a" as a count."""
        product = self.menu.products[item.name]
        count = min(item.count, MAX_COUNT) if item.count > 1 else 0
        if not product.is_drink:
            return Item(name=item.name, count=count)
        is_plain = item.heat == "hot" or item.heat in item.name.split()
        return replace(
            item, count=count, heat="" if is_plain else item.heat, size=item.size if product.is_sized else ""
        )

    def _find(self, name: str) -> int | None:
        """Return the place of the newest item of that name, or that ends in it ("the latte" for an iced latte)."""
        found = [n for n, item in enumerate(self.items) if item.name == name or item.name.endswith(" " + name)]
        return found[-1] if found else None

    def _change_named(self, heard: Heard, *, is_refusal: bool) -> tuple["OrderBook", Facts]:
        """Change the item that is named, or turn the newest into what is named ("make that a mocha")."""
        known = next((item for item in heard.items if self._find(item.name) is not None), None)
        found = self._find(known.name) if known else None
        place = len(self.items) - 1 if found is None else found
        new = self.items[place]
        for item in heard.items:
            new = merge_items(new, replace(item, name=new.name if item is known else item.name))
        new = self._fitted(merge_items(new, heard.loose))
        if new == self.items[place] and is_refusal:
            return self._without([place])
        return self._with({place: new}), (Fact("change", str(new)),)

    def _change_loose(self, loose: Item, *, only: str = "", is_for_all: bool = False) -> tuple["OrderBook", Facts]:
        """Apply changes said without a product to the items waiting for their size, else to the newest drink.

        Args:
            loose: The changes.
            only: Name of the items to change, if it was said.
            is_for_all: Whether every drink changes.
        """
        waiting = [n for n, item in enumerate(self.items) if self.lacks_size(item) and only in ("", item.name)]
        fills = bool(waiting and loose.size)
        places = waiting if fills else self._places_for(loose, only, is_for_all)
        book = self._with({n: self._fitted(self._changed(self.items[n], loose)) for n in places})
        key = ("order" if len(places) == len(self.items) else "add") if fills else "change"
        return book, _named(key, (str(book.items[n]) for n in places))

    def _places_for(self, loose: Item, only: str, is_for_all: bool) -> list[int]:
        """Return which items a change is for: all drinks, those it takes something off, or the newest drink."""
        items = [n for n, item in enumerate(self.items) if only in ("", item.name)]
        drinks = [n for n in items if self.menu.products[self.items[n].name].is_drink]
        if is_for_all and drinks:
            return drinks
        refused = {addition.name for addition in loose.additions if addition.amount == "no"}
        having = [n for n in drinks if refused & {addition.name for addition in self.items[n].additions}]
        return [(having or drinks or items)[-1]]

    def _changed(self, item: Item, loose: Item) -> Item:
        """Merge changes into an item; a new milk takes the place of the old, and "no sugar" takes off any sugar."""
        has_new_milk = any(a.name in self.menu.milks and a.amount != "no" for a in loose.additions)
        refused = [a.name for a in loose.additions if a.amount == "no"]
        kept, gone = [], []
        for addition in item.additions:
            is_refused = any(addition.name == name or addition.name.endswith(" " + name) for name in refused)
            if is_refused:
                gone.append(addition.name)
            elif not (has_new_milk and addition.name in self.menu.milks):
                kept.append(addition)
        new = [a for a in loose.additions if not (a.amount == "no" and any(name.endswith(a.name) for name in gone))]
        return merge_items(replace(item, additions=tuple(kept)), replace(loose, additions=tuple(new)))

    def _remove(self, words: str, heard: Heard) -> tuple["OrderBook", Facts]:
        places = [n for n in (self._find(item.name) for item in heard.items) if n is not None]
        if places:
            return self._without(places)
        if heard.loose.additions:
            return self._change_loose(Item(additions=tuple(Addition(a.name, "no") for a in heard.loose.additions)))
        if heard.items or not intents.REMOVE_LAST.search(words):
            return self, ()
        return self._without([len(self.items) - 1])

    def _with(self, changed: Mapping[int, Item]) -> "OrderBook":
        return replace(self, items=tuple(changed.get(n, item) for n, item in enumerate(self.items)))

    def _without(self, places: list[int]) -> tuple["OrderBook", Facts]:
        left = tuple(item for n, item in enumerate(self.items) if n not in places)
        return replace(self, items=left), _named("remove", (str(self.items[n]) for n in dict.fromkeys(places)))

    # --- answering questions ----------------------------------------------------------------------------------------------

    def _answer(self, words: str) -> tuple["OrderBook", Facts] | None:
        """Return the facts that answer a question, or None if the words are not a question that the menu answers."""
        if intents.ALLERGY.search(words) and (intents.HAVE.search(words) or not intents.ORDERING.match(words)):
            return self, (Fact("allergens unknown"),)
        heard = self.ear.hear(words)
        if intents.TOTAL.search(words) and not heard.items:
            return self, self._readback()
        if intents.PRICE.search(words):
            return self._answer_price(heard)
        if intents.WAIT.search(words) and not heard.items:
            return self, (Fact("ready in", self.menu.ready_in),)
        is_asking = bool(intents.ASKING.match(words)) and not intents.ORDERING.search(words)
        if intents.HAVE.search(words) or is_asking:
            answer = self._answer_have(words, heard)
            if answer is not None:
                return answer
        if intents.MENU.search(words) and not heard.items:
            return self, _named("drinks", self._group("drinks"))
        if is_asking and (heard.items or not heard.loose.is_empty):
            return self, ()
        return None

    def _answer_have(self, words: str, heard: Heard) -> tuple["OrderBook", Facts] | None:
        named = [item.name for item in heard.items]
        additions = [addition.name for addition in heard.loose.additions]
        is_general = set(named) <= {"tea", "coffee", "muffin"} and set(additions) <= {"milk"}
        if is_general and intents.LISTS.search(words):
            for group, pattern in intents.GROUPS.items():
                if pattern.search(words):
                    return self, _named(group, self._group(group))
        if not intents.HAVE.search(words):
            return None
        if named:
            book = replace(self, offered=self._fitted(replace(heard.items[0], count=0)))
            return book, _named("on the menu", dict.fromkeys(plural(name) for name in named))
        return (self, _named("on the menu", dict.fromkeys(additions))) if additions else None

    def _answer_price(self, heard: Heard) -> tuple["OrderBook", Facts] | None:
        if heard.items:
            items = [self._fitted(item) for item in heard.items[:2]]
            book = replace(self, offered=items[0]) if len(items) == 1 else self
            return book, tuple(Fact("price", self._priced(item)) for item in items)
        if heard.not_sold:
            return self, _named("not on the menu", heard.not_sold)
        return (self, self._readback()) if self.items else None

    def _priced(self, item: Item) -> str:
        """Spell an item with its price; without a size, with the price of each of the first three sizes."""
        if not self.lacks_size(item):
            return f"{item} {money(self.cost(item))}"
        sizes = self.menu.sizes[:3]
        return f"{item} " + ", ".join(f"{size} {money(self.cost(replace(item, size=size)))}" for size in sizes)

    def _readback(self) -> Facts:
        if not self.items:
            return (self._standing(),)
        counts: dict[Item, int] = {}
        for item in self.items:
            alike = replace(item, count=0)
            counts[alike] = counts.get(alike, 0) + max(1, item.count)
        if max(counts.values()) >= len(COUNT_WORDS):
            return (*_named("repeat", map(str, self.items)), self._standing())
        return (*_named("repeat", (str(replace(item, count=n)) for item, n in counts.items())), self._standing())

    def _group(self, group: str) -> list[str]:
        """Return what belongs to a group of the menu."""
        drinks = [product.name for product in self.menu.products.values() if product.is_drink]
        food = [product.name for product in self.menu.products.values() if not product.is_drink]
        match group:
            case "milks":
                names = [name for name in self.menu.milks if name not in ("milk", "cream", "half and half")]
            case "teas":
                names = [name for name in drinks if name == "earl grey" or (name != "tea" and "tea" in name.split())]
            case "syrups":
                names = [name for name in self.menu.extras if name.endswith("syrup")]
            case "sizes":
                names = list(self.menu.sizes)
            case "roasts":
                names = list(self.menu.roasts)
            case "sandwiches":
                names = [name for name in food if name.endswith("sandwich")]
            case "pastries":
                names = [name for name in food if not name.endswith("sandwich")]
            case "food":
                names = food[::3]  # Every third: some pastries and some sandwiches.
            case _:
                names = list(self.menu.highlights)
        return names[:_MAX_LISTED]


def _named(key: str, names: Iterable[str]) -> Facts:
    """Return one fact that lists names, or none if there are no names."""
    listed = ", ".join(names)
    return (Fact(key, listed),) if listed else ()


class CafeNotes:
    """One conversation's note function: remembers the order book between transcripts."""

    def __init__(self, menu: Menu) -> None:
        self.book = OrderBook(menu, Ear(menu))

    def hear(self, text: str) -> Note:
        """Return the note for the caller's newest transcript; its text is empty when it says nothing about the order."""
        self.book, facts = self.book.hear(text)
        return note_of(facts)

    def imagine(self, text: str) -> Note:
        """The same note, of an order that stays as it is."""
        return note_of(self.book.hear(text)[1])


def cafe_notes(menu: Mapping[str, object]) -> CafeNotes:
    """Build the note function of one conversation from a preset's `[menu]` table.

    Raises:
        MenuError: If the table is not a menu.
    """
    return CafeNotes(read_menu(menu))

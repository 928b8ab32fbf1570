"""The café's order book: what the caller said so far, as facts and exact totals.

`cafe_notes` is the note function that a preset names. Each transcript gives one note, which the language model reads before it
writes its reply. The grammar of a note:

    note    = [ fact *( "; " fact ) ]
    fact    = key [ ": " value ]

    order: ITEMS          the order's first items          change: ITEMS    items as they are after a change
    add: ITEMS            items on top of earlier ones     remove: ITEMS    items taken off ("everything" for all)
    size missing: NAMES   ask for the size of these        total: $D.CC     of the whole order
    repeat: ITEMS         the whole order, read back       order empty      nothing is ordered
    done                  the caller is finished           ready in: TIME   when it can be picked up
    price: NAME PRICES    answer to "how much"             not on the menu: NAMES
    on the menu: NAMES    answer to "do you have"          milks/teas/...: NAMES
    allergens unknown     only the staff can say

ITEMS and NAMES are joined by ", "; an item is spelled by `hearing.Item`. An empty note says that nothing about the order was heard.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from voice_pipelines.cafe.hearing import MAX_COUNT, Addition, Ear, Heard, Item, merge_items, normalise, plural
from voice_pipelines.cafe.menu import Menu, money, read_menu


@dataclass(frozen=True)
class Fact:
    key: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.value}" if self.value else self.key


@dataclass(frozen=True)
class Note:
    """Facts for the model, and the price strings its reply must contain exactly."""

    text: str = ""
    must_say: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()


_WORDS_OF_CHANGE = re.compile(
    r"\b(make (that|it|the|my|them|those)|change|switch|instead|i said|i meant|i mean|not|swap|replace|wrong|should be|rather|of (them|those))\b"
)
_WORDS_OF_ADDING = re.compile(r"\b(also|too|add|as well|another|plus|and (can|could|may) i)\b")
_REMOVE = re.compile(
    r"\b(remove|cancel|take (off|out|away)|scratch|forget|drop|get rid of|don't want|do not want|delete|never ?mind)\b"
)
_EVERYTHING = re.compile(
    r"\b(cancel|scratch|forget|delete|remove) (everything|all|it all|all of it|(the|my) (whole )?order|that order)\b|\bstart over\b"
)
_DONE = re.compile(
    r"\b(that's|thats|that is|that'll be|that will be|that would be|this is|that'll do|that should be) (all|it|everything)\b"
    r"|\bthat'?(ll| will) do\b|\bnothing (else|more)\b|\bno more\b|\bi'?m (good|done|all set|finished|fine)\b|\bi am (good|done|all set)\b"
    r"|\bjust that\b|\bthat's fine\b|\ball set\b|\bthat's my order\b|\bwe're (good|done)\b"
)
_NO = re.compile(r"((um |uh |oh |okay )?no|nope|nah|not really|no i don't|no that's okay|no not today|no please|no (it|the|i|a)?)( (thanks|thank you))*")
_YES = re.compile(
    r"(yes|yeah|yep|yup|sure|okay|ok|alright|all right|please|definitely|absolutely|of course|why not|yes i would|i'll take (it|one|that)"
    r"|sounds good|that sounds good|go ahead|one please)( (yes|sure|please|thanks|thank you|i'll take (it|one|that)|one|i would|add (it|one)))*"
)
_JUST_ONE = re.compile(r"\b(just|only|make (it|that)) one$|\b(just|only) one\b")
_NO_BUT = re.compile(r"(actually )?no (?!just|only|but|and|also|i'd|i would|can|could)")
_AGAIN = re.compile(
    r"^(um |uh |oh |i'm |hm )?(sorry|pardon|what|huh|excuse me|come again|sorry what|pardon me|what sorry)( what| please| again)?$"
    r"|\b(say|repeat) (that|it)( again| once more)?\b|\bwhat (was|is) that( again)?$|\bwhat did you say\b|\b(didn't|did not|couldn't|can't) (hear|catch|get)\b"
    r"|\bmissed that\b|\bcome again\b"
)
_PRICE = re.compile(r"\b(how much|price|prices|cost|costs|what do you charge|how expensive|what does)\b")
_TOTAL = re.compile(
    r"\b(total|how much (is (it|that|everything|all)|do i owe|will (it|that) be|does (it|that) come)"
    r"|repeat (my|the) order|read (my|the|that) (order )?back|what did i order|what's in my order|what('s| is| have) (i|my) order\w*"
    r"|what do you have (so far|down)|my order so far)\b"
)
_HAVE = re.compile(r"\b(do you (have|sell|do|serve|offer|carry|make)|have you got|is there|are there|you have any)\b")
_LISTS = re.compile(r"\b(what|which|any|kinds?|types?|sorts?|other|list|options?|do you)\b")
_WAIT = re.compile(r"\b(how long|when (will|can)|when is it ready|ready)\b")
_ALLERGY = re.compile(r"\b(allerg\w*|gluten|nuts?|peanuts?|lactose|dairy free|celiac|coeliac|vegan|halal|kosher)\b")
_MENU = re.compile(r"\b(what('s| is) on (the|your) menu|what do you (have|sell|serve|offer)|your menu|what can i (get|order|have)|recommend)\b")
_GROUPS = (
    ("milks", re.compile(r"\bmilks?\b")),
    ("teas", re.compile(r"\bteas?\b")),
    ("syrups", re.compile(r"\b(syrups?|flavou?rs?)\b")),
    ("sizes", re.compile(r"\bsizes?\b")),
    ("roasts", re.compile(r"\broasts?\b")),
    ("pastries", re.compile(r"\b(pastr(y|ies)|baked|sweets?|muffins?)\b")),
    ("sandwiches", re.compile(r"\bsandwich(es)?\b")),
    ("food", re.compile(r"\b(food|snacks?|to eat)\b")),
    ("drinks", re.compile(r"\b(drinks?|coffees|coffee drinks?)\b")),
)
_ORDERING = re.compile(
    r"\b(can|could|may|might) (i|you|we) (please )?(get|have|make|give|order|also|add|grab)\b|\bi('d| would)? (like|want|need|love)\b"
    r"|\bi'?ll (have|take|get)\b|\b(give|get|make|brew|bring) me\b|\bbrew\b|\blet me (get|have)\b|\bdo you (have|sell|serve)\b"
)


@dataclass(frozen=True)
class OrderBook:
    """The order so far. Every method returns a new book."""

    menu: Menu
    ear: Ear
    items: tuple[Item, ...] = ()
    is_done: bool = False
    offered: Item | None = None
    last: tuple[Fact, ...] = ()

    @property
    def total(self) -> int:
        """Cents of all items whose price is known; an item whose size is missing counts nothing yet."""
        return sum(self.cost(item) for item in self.items if not self.lacks_size(item))

    def lacks_size(self, item: Item) -> bool:
        product = self.menu.products[item.name]
        return product.is_sized and product.needs_size and not item.size

    def cost(self, item: Item) -> int:
        """Return the cents of an item with its count, shots and additions.

        Raises:
            ValueError: If its size is missing.
        """
        each = self.menu.price(item.name, item.size or None)
        each += self.menu.shots.get(item.shots, 0)
        for addition in item.additions:
            if addition.amount != "no":
                each += self.menu.milks.get(addition.name, self.menu.extras.get(addition.name, 0))
        return each * max(1, item.count)

    def hear(self, text: str) -> tuple["OrderBook", Note]:
        """Take one transcript; return the book after it and the note for the model. Never raises."""
        words = normalise(text)
        if not words:
            return self, Note()
        if _AGAIN.search(words):
            return self, _note(self.last)
        book, facts = self._hear(words)
        return replace(book, last=facts), _note(facts)

    def _hear(self, words: str) -> tuple["OrderBook", tuple[Fact, ...]]:
        asked = self._answer(words)
        if asked is not None:
            return asked
        if self.offered is not None:
            book = replace(self, offered=None)
            if _YES.fullmatch(words):
                book, facts = book._add(Heard((self.offered,)))
                return replace(book, is_done=False), tuple(book._totalled(facts))
            if _NO.fullmatch(words):
                return book, (Fact("not added", self.offered.name),)
            return book._hear(words)
        heard = self.ear.hear(words.removeprefix("no ") if _WORDS_OF_CHANGE.search(words) else words)
        if _EVERYTHING.search(words) and self.items:
            return replace(self, items=(), is_done=False), (Fact("remove", "everything"), Fact("order empty"))
        book, facts = self._update(words, heard)
        missing = [Fact("not on the menu", ", ".join(heard.not_sold))] if heard.not_sold else []
        is_closing = bool(_DONE.search(words)) or (not facts and bool(_NO.fullmatch(words)))
        if is_closing and not missing and not (self.is_done and not facts):
            return book._close(facts)
        if facts:
            book = replace(book, is_done=False)
            facts = book._totalled(facts)
        return book, (*facts, *missing)

    def _update(self, words: str, heard: Heard) -> tuple["OrderBook", list[Fact]]:
        is_change = bool(_WORDS_OF_CHANGE.search(words)) or bool(_NO_BUT.match(words))
        if _REMOVE.search(words) and self.items:
            return self._remove(heard)
        if heard.items:
            known = [item for item in heard.items if self._find(item.name) is not None]
            if self.items and is_change and not _WORDS_OF_ADDING.search(words):
                return self._change_named(heard, known, is_refusal=bool(_NO_BUT.match(words)))
            return self._add(heard)
        count = heard.loose.count if is_change or len(words.split()) < 3 else 0
        loose = replace(heard.loose, count=0 if count == 1 and not _JUST_ONE.search(words) else count)
        if not loose.is_empty and self.items:
            return self._change_loose(loose)
        return self, []

    def _add(self, heard: Heard) -> tuple["OrderBook", list[Fact]]:
        new = tuple(self._fitted(item) for item in heard.items)
        key = "add" if self.items else "order"
        return replace(self, items=self.items + new), [Fact(key, ", ".join(map(str, new)))]

    def _fitted(self, item: Item) -> Item:
        """Drop what the product cannot have: sizes of food, counts out of range, "a" as a count."""
        product = self.menu.products[item.name]
        count = min(item.count, MAX_COUNT) if item.count > 1 else 0
        if not product.is_drink:
            return Item(name=item.name, count=count, heat="")
        iced = "" if item.heat == "hot" or (item.heat and item.heat in item.name.split()) else item.heat
        return replace(item, count=count, heat=iced, size=item.size if product.is_sized else "")

    def _find(self, name: str) -> int | None:
        found = [n for n, item in enumerate(self.items) if item.name == name or item.name.endswith(" " + name)]
        return found[-1] if found else None

    def _change_named(
        self, heard: Heard, known: list[Item], *, is_refusal: bool
    ) -> tuple["OrderBook", list[Fact]]:
        """Change the item that is named, or turn the newest into what is named ("make that a mocha")."""
        items = list(self.items)
        place = self._find(known[0].name) if known else len(items) - 1
        assert place is not None
        new = items[place]
        for item in heard.items:
            new = merge_items(new, replace(item, name=new.name if item in known else item.name))
        items[place] = self._fitted(merge_items(new, heard.loose))
        if items[place] == self.items[place]:
            return self._remove(heard) if is_refusal else (self, [])
        return replace(self, items=tuple(items)), [Fact("change", str(items[place]))]

    def _change_loose(self, loose: Item) -> tuple["OrderBook", list[Fact]]:
        """Apply changes said without a product to the item waiting for its size, else to the newest drink."""
        waiting = [n for n, item in enumerate(self.items) if self.lacks_size(item)]
        drinks = [n for n, item in enumerate(self.items) if self.menu.products[item.name].is_drink]
        if not drinks:
            drinks = [len(self.items) - 1]
        targets = waiting if waiting and loose.size else [drinks[-1]]
        items = list(self.items)
        for n in targets:
            items[n] = self._fitted(self._poured(items[n], loose))
        if items == list(self.items) and not waiting:
            return self, []
        key = "order" if waiting and loose.size and len(items) == len(targets) else "add" if waiting and loose.size else "change"
        return replace(self, items=tuple(items)), [Fact(key, ", ".join(str(items[n]) for n in targets))]

    def _poured(self, item: Item, loose: Item) -> Item:
        """Merge changes into an item; a new milk takes the place of the old, and "no sugar" takes sugar off."""
        milks = [a.name for a in loose.additions if a.name in self.menu.milks and a.amount != "no"]
        kept = tuple(a for a in item.additions if not (milks and a.name in self.menu.milks))
        refused = {a.name for a in loose.additions if a.amount == "no"}
        had = {a.name for a in item.additions}
        kept = tuple(a for a in kept if not any(a.name == name or a.name.endswith(" " + name) for name in refused))
        gone = had - {a.name for a in kept}
        new = tuple(a for a in loose.additions if not (a.amount == "no" and any(name.endswith(a.name) for name in gone)))
        return merge_items(replace(item, additions=kept), replace(loose, additions=new))

    def _remove(self, heard: Heard) -> tuple["OrderBook", list[Fact]]:
        places = [n for n in (self._find(item.name) for item in heard.items) if n is not None]
        if places:
            gone = [self.items[n] for n in places]
            left = tuple(item for n, item in enumerate(self.items) if n not in places)
            return replace(self, items=left), [Fact("remove", ", ".join(map(str, gone)))]
        if heard.loose.additions:
            unwanted = tuple(Addition(a.name, "no") for a in heard.loose.additions)
            return self._change_loose(Item(additions=unwanted))
        if heard.items or not heard.loose.is_empty:
            return self, []
        return replace(self, items=self.items[:-1]), [Fact("remove", str(self.items[-1]))]

    def missing(self) -> list[Fact]:
        names = [item.name for item in self.items if self.lacks_size(item)]
        return [Fact("size missing", ", ".join(names))] if names else []

    def _totalled(self, facts: list[Fact]) -> list[Fact]:
        if not self.items:
            return [*facts, Fact("order empty")]
        missing = self.missing()
        return [*facts, *(missing or [Fact("total", money(self.total))])]

    def _close(self, facts: list[Fact]) -> tuple["OrderBook", tuple[Fact, ...]]:
        if not self.items:
            return self, (*facts, Fact("done"), Fact("order empty"))
        missing = self.missing()
        if missing:
            return self, (*facts, *missing)
        book = replace(self, is_done=True)
        return book, (*facts, Fact("done"), Fact("total", money(self.total)), Fact("ready in", self.menu.ready_in))

    def _answer(self, words: str) -> tuple["OrderBook", tuple[Fact, ...]] | None:
        """Return the facts that answer a question, or None if the words are not a question about the menu."""
        if _ALLERGY.search(words) and not _ORDERING.match(words):
            return self, (Fact("allergens unknown"),)
        heard = self.ear.hear(words)
        if _TOTAL.search(words) and not heard.items:
            return self, self._readback()
        if _PRICE.search(words):
            return self._price(heard)
        if _WAIT.search(words) and not heard.items:
            return self, (Fact("ready in", self.menu.ready_in),)
        if _HAVE.search(words) or re.match(r"(what|which)\b", words):
            named = [item.name for item in heard.items]
            extras = [a.name for a in heard.loose.additions]
            if set(named) <= {"tea", "coffee", "muffin"} and set(extras) <= {"milk"} and _LISTS.search(words):
                for name, pattern in _GROUPS:
                    if pattern.search(words):
                        return self, (Fact(name, ", ".join(self._group(name))),)
            if _HAVE.search(words) and named:
                offered = self._fitted(replace(heard.items[0], count=0))
                names = ", ".join(dict.fromkeys(plural(name) for name in named))
                return replace(self, offered=offered), (Fact("on the menu", names),)
            if _HAVE.search(words) and extras:
                return self, (Fact("on the menu", ", ".join(dict.fromkeys(extras))),)
        if _MENU.search(words) and not heard.items:
            return self, (Fact("drinks", ", ".join(self._group("drinks"))),)
        return None

    def _readback(self) -> tuple[Fact, ...]:
        if not self.items:
            return (Fact("order empty"),)
        missing = self.missing()
        return (Fact("repeat", ", ".join(map(str, self.items))), *(missing or [Fact("total", money(self.total))]))

    def _price(self, heard: Heard) -> tuple["OrderBook", tuple[Fact, ...]] | None:
        if heard.items:
            items = [self._fitted(item) for item in heard.items[:2]]
            book = replace(self, offered=items[0]) if len(items) == 1 else self
            return book, tuple(Fact("price", self._priced(item)) for item in items)
        if heard.not_sold:
            return self, (Fact("not on the menu", ", ".join(heard.not_sold)),)
        return (self, self._readback()) if self.items else None

    def _priced(self, item: Item) -> str:
        """Spell an item with its price; without a size, with the price of each of the first three sizes."""
        if not self.lacks_size(item):
            return f"{item} {money(self.cost(item))}"
        return f"{item} " + ", ".join(f"{size} {money(self.cost(replace(item, size=size)))}" for size in self.menu.sizes[:3])

    def _group(self, name: str) -> list[str]:
        """Return what belongs to a group of the menu; at most six names, as many as a listener keeps in mind."""
        products = self.menu.products.values()
        match name:
            case "milks":
                names = [n for n in self.menu.milks if n not in ("milk", "cream", "half and half")]
            case "teas":
                names = [p.name for p in products if p.is_drink and ("tea" in p.name.split() or p.name == "earl grey") and p.name != "tea"]
            case "syrups":
                names = [n for n in self.menu.extras if n.endswith("syrup")]
            case "sizes":
                names = list(self.menu.sizes)
            case "roasts":
                names = list(self.menu.roasts)
            case "sandwiches":
                names = [p.name for p in products if not p.is_drink and p.name.endswith("sandwich")]
            case "drinks":
                names = list(self.menu.highlights)
            case "pastries":
                names = [p.name for p in products if not p.is_drink and not p.name.endswith("sandwich")]
            case _:
                names = [p.name for p in products if not p.is_drink][::3]
        return names[:6]


def _note(facts: tuple[Fact, ...]) -> Note:
    text = "; ".join(map(str, facts))
    return Note(text, tuple(dict.fromkeys(re.findall(r"\$\d+\.\d\d", text))), facts)


class CafeNotes:
    """One conversation's note function: remembers the order book between transcripts."""

    def __init__(self, menu: Menu) -> None:
        self.book = OrderBook(menu, Ear(menu))

    def hear(self, text: str) -> Note:
        """Return the note for the caller's newest transcript. Never raises."""
        self.book, note = self.book.hear(text)
        return note


def cafe_notes(menu: Mapping[str, object]) -> CafeNotes:
    """Build the note function of one conversation from a preset's `[menu]` table.

    Raises:
        MenuError: If the table is not a menu.
    """
    return CafeNotes(read_menu(menu))

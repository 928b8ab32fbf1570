"""What a caller's words say about products: from a transcript to drafts of order items.

Pure and total: any text gives a `Heard`. Transcripts are lower case without punctuation and may contain recognition errors, so
nothing here demands a complete sentence; words that mean nothing to a café are skipped.
"""

import re
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from voice_pipelines.cafe.menu import Menu

COUNT_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
MAX_COUNT = 12
_AMOUNTS = (
    "a little bit of", "little bit of", "a bit of", "bit of", "a little", "a lot of", "lot of", "lots of", "some", "extra",
    "plenty of", "a splash of", "splash of", "a dash of", "dash of", "a spoon of", "light", "a touch of", "just a little",
    "just a bit of", "just a little bit of",
)  # fmt: skip
# Amounts whose first word is easily lost are written in full, so that notes stay regular.
_AMOUNT_FORMS = {
    "little bit of": "a little bit of", "bit of": "a bit of", "lot of": "a lot of", "splash of": "a splash of",
    "dash of": "a dash of", "just a little": "a little", "just a bit of": "a bit of",
    "just a little bit of": "a little bit of",
}  # fmt: skip
_REPAIRS = ("no", "sorry", "actually", "wait", "i mean", "i meant", "rather", "make that", "make it", "or rather")
_NEGATIONS = ("no", "without", "without any", "hold the", "not any", "minus", "minus the", "leave out the", "skip the")


@dataclass(frozen=True)
class Addition:
    """Milk, syrup or sugar with the amount as it was said ("" when none was; "no" when it must be left out)."""

    name: str
    amount: str = ""

    def __str__(self) -> str:
        name = plural(self.name) if self.amount in COUNT_WORDS[2:] else self.name
        return f"{self.amount} {name}".strip()


@dataclass(frozen=True)
class Item:
    """A product with its changes, or, with an empty name, changes that were heard without a product."""

    name: str = ""
    count: int = 0
    size: str = ""
    heat: str = ""
    shots: str = ""
    roast: str = ""
    additions: tuple[Addition, ...] = ()

    @property
    def is_empty(self) -> bool:
        return self == NOTHING

    def __str__(self) -> str:
        """Spell the item the one way notes do: count, size, heat, shots, roast, name, additions."""
        shots = f"{self.shots} shot" if self.shots else ""
        roast = f"{self.roast} roast" if self.roast else ""
        name = plural(self.name) if self.count > 1 else self.name
        count = COUNT_WORDS[self.count] if self.count > 1 else ""
        head = " ".join(word for word in (count, self.size, self.heat, shots, roast, name) if word)
        return head + (" with " + " and ".join(map(str, self.additions)) if self.additions else "")


NOTHING = Item()


def plural(name: str) -> str:
    """Return the plural of a product ("croissant" -> "croissants", "earl grey" -> "earl greys")."""
    head, joint, tail = name.partition(" with ")
    ending = "" if head.endswith("bread") else "es" if re.search(r"(ch|sh|s|x)$", head) else "s"
    return head + ending + joint + tail


@dataclass(frozen=True)
class Heard:
    """The products and changes in one transcript, in the order they were spoken.

    `loose` are changes said without a product; `not_sold` names what the café does not have.
    """

    items: tuple[Item, ...] = ()
    loose: Item = NOTHING
    not_sold: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Tag:
    kind: str
    value: str
    start: int
    end: int


@dataclass
class _Scan:
    """Working state of one pass over the tags of a transcript."""

    items: list[Item] = field(default_factory=list)
    ahead: Item = NOTHING
    loose: Item = NOTHING
    not_sold: list[str] = field(default_factory=list)
    amount: str = ""
    amount_end: int = 0
    item_end: int = -1
    is_with: bool = False
    is_dropping: bool = False
    is_repair: bool = False

    def attach(self, details: Item) -> None:
        """Put details on the newest item, or keep them loose when there is none."""
        if self.items:
            self.items[-1] = merge_items(self.items[-1], details)
        else:
            self.loose = merge_items(self.loose, details)

    def settle(self) -> None:
        """Give words still waiting for a product to the newest item."""
        # An "a" that no product followed counts nothing: "three muffins and a ...".
        count = self.ahead.count if self.ahead.count > 1 or not self.items else 0
        self.attach(replace(self.ahead, count=count))
        self.ahead = NOTHING


def merge_additions(old: tuple[Addition, ...], new: tuple[Addition, ...]) -> tuple[Addition, ...]:
    """Return the additions with `new` put over those of the same name."""
    names = {addition.name for addition in new}
    return (*(addition for addition in old if addition.name not in names), *dict.fromkeys(new))


def merge_items(old: Item, new: Item) -> Item:
    """Return `old` with everything that `new` states put over it."""
    return Item(
        name=new.name or old.name,
        count=new.count or old.count,
        size=new.size or old.size,
        heat=new.heat or old.heat,
        shots=new.shots or old.shots,
        roast=new.roast or old.roast,
        additions=merge_additions(old.additions, new.additions),
    )


class Ear:
    """Recognises one menu's words in transcripts. Immutable after it is built; one can serve every conversation."""

    def __init__(self, menu: Menu) -> None:
        self._menu = menu
        self._lexicon = _lexicon(menu)
        self._longest = max(len(words) for words in self._lexicon)

    def hear(self, text: str) -> Heard:
        """Return the products and changes in a transcript; any text is accepted, in time that grows with its length."""
        tags = self._tags(normalise(text).split())
        last_item = max((position for position, tag in enumerate(tags) if tag.kind == "item"), default=-1)
        scan = _Scan()
        for position, (tag, ahead) in enumerate(zip_longest(tags, tags[1:])):
            self._take(scan, tag, ahead, has_item_ahead=position < last_item)
        scan.settle()
        return Heard(tuple(scan.items), scan.loose, tuple(dict.fromkeys(scan.not_sold)))

    def _tags(self, words: list[str]) -> list[_Tag]:
        tags: list[_Tag] = []
        position = 0
        while position < len(words):
            for length in range(min(self._longest, len(words) - position), 0, -1):
                found = self._lexicon.get(tuple(words[position : position + length]))
                if found is not None:
                    tags.append(_Tag(*found, position, position + length))
                    position += length
                    break
            else:
                position += 1
        return tags

    def _take(self, scan: _Scan, tag: _Tag, ahead: _Tag | None, *, has_item_ahead: bool) -> None:
        """Take one tag. `ahead` is the next, if there is one; `has_item_ahead` says whether any of those to come is a product."""
        if scan.is_dropping and tag.kind in ("item", "addition", "size", "shots", "roast", "heat"):
            scan.is_dropping = False
            return
        following = ahead if ahead is not None and ahead.start == tag.end else None
        match tag.kind:
            case "item":
                is_echo = bool(scan.items) and scan.items[-1].name == tag.value and scan.item_end == tag.start
                if not is_echo:  # Recognisers double words: "large coffee coffee" is one coffee.
                    self._take_item(scan, tag.value)
                scan.item_end = tag.end
            case "addition":
                amount = scan.amount if tag.start - scan.amount_end <= 1 else ""
                scan.amount = ""
                if following is not None and following.kind == "item" and not scan.is_with and not amount:
                    scan.ahead = replace(scan.ahead, additions=(*scan.ahead.additions, Addition(tag.value)))
                else:
                    scan.settle()
                    scan.attach(Item(additions=(Addition(tag.value, amount),)))
            case "amount":
                scan.amount, scan.amount_end = tag.value, tag.end
            case "negation":
                if ahead is not None and ahead.kind == "addition" and ahead.start - tag.end <= 1:
                    scan.amount, scan.amount_end = "no", tag.end
                else:
                    scan.is_repair = tag.value == "no" and bool(scan.items)
            case "count":
                self._take_count(scan, tag, following)
            case "size" | "shots" | "roast" | "heat":
                details = _details(tag)
                if scan.is_with and not has_item_ahead:
                    scan.attach(details)
                elif {scan.ahead.heat, details.heat} == {"iced", "decaf"}:
                    scan.ahead = replace(scan.ahead, heat="iced decaf")
                else:
                    scan.ahead = merge_items(scan.ahead, details)
            case "with":
                scan.is_with = True
            case "and":
                scan.is_dropping = scan.is_repair = False
                if scan.items:
                    scan.settle()
            case "drop":
                scan.is_dropping = True
            case "repair":
                scan.is_repair = bool(scan.items)
            case "not_sold":
                scan.not_sold.append(tag.value)
                scan.ahead = NOTHING

    def _take_item(self, scan: _Scan, name: str) -> None:
        ahead = scan.ahead
        if scan.items and not self._menu.products[name].is_drink and (ahead.size or ahead.shots or ahead.roast):
            # "a latte large a croissant": a size cannot belong to food, so it was meant for the drink before.
            scan.ahead = replace(ahead, count=0)
            scan.settle()
            ahead = Item(count=ahead.count)
        new = merge_items(ahead, Item(name=name))
        if scan.is_repair and scan.items:
            new = merge_items(scan.items.pop(), new)
        scan.items.append(new)
        scan.ahead = NOTHING
        scan.amount = ""
        scan.is_with = scan.is_repair = False

    def _take_count(self, scan: _Scan, tag: _Tag, following: _Tag | None) -> None:
        if following is not None and following.kind == "addition" and (scan.is_with or int(tag.value) > 1):
            if int(tag.value) > 1:
                scan.amount, scan.amount_end = COUNT_WORDS[int(tag.value)], tag.end
            return
        if scan.items:
            scan.settle()
        if int(tag.value) > 1 or not scan.ahead.count:
            scan.ahead = replace(scan.ahead, count=int(tag.value))
        if int(tag.value) > 1:
            scan.is_with = False


def _details(tag: _Tag) -> Item:
    match tag.kind:
        case "size":
            return Item(size=tag.value)
        case "shots":
            return Item(shots=tag.value)
        case "roast":
            return Item(roast=tag.value)
        case _:
            return Item(heat=tag.value)


def normalise(text: str) -> str:
    """Return lower-case words separated by single blanks: figures, letters and apostrophes only."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower().replace("’", "'")))


def _lexicon(menu: Menu) -> dict[tuple[str, ...], tuple[str, str]]:
    """Map every phrase of the menu and the few words around it to its kind and meaning; later lines win."""
    lexicon: dict[tuple[str, ...], tuple[str, str]] = {}

    def put(kind: str, phrase: str, value: str) -> None:
        lexicon[tuple(phrase.split())] = (kind, value)

    put("count", "a", "1")
    for number, word in enumerate(COUNT_WORDS[1:], start=1):
        put("count", word, str(number))
        pumps = f"{word} pump{'s' if number > 1 else ''} of"
        put("amount", pumps, pumps)
    for number in range(1, MAX_COUNT + 1):
        put("count", str(number), str(number))
    for phrase, number in (
        ("an", 1),
        ("a couple of", 2),
        ("a couple", 2),
        ("couple of", 2),
        ("a pair of", 2),
        ("another", 1),
    ):
        put("count", phrase, str(number))
    for phrase in _REPAIRS:
        put("repair", phrase, phrase)
    for phrase in _NEGATIONS:
        put("negation", phrase, phrase)
    for phrase in _AMOUNTS:
        put("amount", phrase, _AMOUNT_FORMS.get(phrase, phrase))
    put("with", "with", "with")
    for phrase in ("and", "plus", "also"):
        put("and", phrase, phrase)
    for phrase in ("instead of", "not", "not a", "not the", "rather than", "instead of the", "instead of a"):
        put("drop", phrase, phrase)
    for phrase, heat in (
        ("iced", "iced"),
        ("decaf", "decaf"),
        ("decaffeinated", "decaf"),
        ("hot", "hot"),
        ("de caf", "decaf"),
    ):
        put("heat", phrase, heat)
    for name, said in (*((s, s) for s in menu.sizes), *((s, s) for s in menu.said_sizes)):
        put("size", name, said)
        put("size", f"{name} size", said)
        put("size", f"{name} sized", said)
        if said.endswith(" ounce"):
            put("size", said + "s", said)
            put("size", said.removesuffix("ounce") + "oz", said)
            figure = _figure(said.split()[0])
            for written in (f"{figure} ounce", f"{figure} ounces", f"{figure} oz", f"{figure}oz"):
                put("size", written, said)
    for roast in menu.roasts:
        put("roast", f"{roast} roast", roast)
        put("roast", f"{roast} roasted", roast)
    for shots in menu.shots:
        put("shots", shots, shots)
        put("shots", f"{shots} shot", shots)
        put("shots", f"{shots} shots", shots)
    for number, shots in enumerate(menu.shots, start=1):
        put("shots", f"{COUNT_WORDS[number]} shot", shots)
        put("shots", f"{COUNT_WORDS[number]} shots", shots)
        put("shots", f"{COUNT_WORDS[number]} shots of espresso", shots)
    for name in (*menu.milks, *menu.extras):
        put("addition", name, name)
    for said, name in menu.said_additions.items():
        put("addition", said, name)
    for name in menu.not_sold:
        put("not_sold", name, name)
        for singular in (name.removesuffix("s"), name.removesuffix("es"), re.sub(r"ies$", "y", name)):
            put("not_sold", singular, name)
    for product in menu.products.values():
        for phrase in (product.name, *product.also):
            put("item", phrase, product.name)
            put("item", plural(phrase), product.name)
    return lexicon


def _figure(word: str) -> str:
    figures = {"four": "4", "six": "6", "eight": "8", "ten": "10", "twelve": "12", "sixteen": "16", "twenty": "20"}
    return figures.get(word, word)

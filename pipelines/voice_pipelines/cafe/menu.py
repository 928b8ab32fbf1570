"""A café's menu: what is sold, in which sizes, for how many cents."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from voiceagent.errors import ConfigError

_PRICE = re.compile(r"(\d{1,4})\.(\d\d)")


class MenuError(ConfigError):
    """A menu table that cannot be used; `key` is the dotted path, such as `menu.drinks.latte.prices`."""


@dataclass(frozen=True)
class Product:
    """One thing on the menu.

    `prices` holds cents, one for each of the menu's sizes, or a single price for what comes in one size. A product that does not
    need its size said costs its first price when none was.
    """

    name: str
    is_drink: bool
    prices: tuple[int, ...]
    also: tuple[str, ...] = ()
    needs_size: bool = True

    @property
    def is_sized(self) -> bool:
        return len(self.prices) > 1


@dataclass(frozen=True)
class Menu:
    """Everything a caller can ask for; all amounts of money are cents."""

    sizes: tuple[str, ...]
    said_sizes: Mapping[str, str]
    roasts: tuple[str, ...]
    products: Mapping[str, Product]
    shots: Mapping[str, int]
    milks: Mapping[str, int]
    extras: Mapping[str, int]
    said_additions: Mapping[str, str]
    not_sold: tuple[str, ...]
    highlights: tuple[str, ...]
    ready_in: str

    def size_of(self, said: str) -> str:
        """Return the menu's size for a size as it was said ("twelve ounce" -> "medium")."""
        return self.said_sizes.get(said, said)

    def price(self, name: str, size: str | None) -> int:
        """Return the cents of one plain product in a size as said; products of one size ignore it.

        Raises:
            KeyError: If the product is not on the menu.
            ValueError: If a sized product is given no size.
        """
        product = self.products[name]
        if not product.is_sized or (size is None and not product.needs_size):
            return product.prices[0]
        if size is None:
            raise ValueError(f"{name} comes in sizes {', '.join(self.sizes)}: a price needs one of them")
        return product.prices[self.sizes.index(self.size_of(size))]


def money(cents: int) -> str:
    """Write cents the way notes and replies do: 450 -> "$4.50"."""
    return f"${cents // 100}.{cents % 100:02d}"


def read_menu(table: Mapping[str, object]) -> Menu:
    """Check a preset's `[menu]` table and return it as a menu.

    Raises:
        MenuError: If a key is missing, unknown or of the wrong form; it names the key, the value and what was expected.
    """
    known = {
        "sizes", "said_sizes", "roasts", "drinks", "food", "shots", "milks", "extras", "said_additions", "not_sold",
        "highlights", "ready_in",
    }  # fmt: skip
    for key in table:
        if key not in known:
            raise MenuError(f"menu.{key}", table[key], f"one of the keys {', '.join(sorted(known))}")
    sizes = _words(table, "sizes")
    said_sizes = _renames(table, "said_sizes", sizes, "one of menu.sizes")
    milks, extras = _costs(table, "milks"), _costs(table, "extras")
    ready_in = table.get("ready_in")
    if not isinstance(ready_in, str) or not ready_in:
        raise MenuError("menu.ready_in", ready_in, "a time as it is said, such as '10 minutes'")
    products = {p.name: p for p in (*_products(table, "drinks", len(sizes)), *_products(table, "food", len(sizes)))}
    return Menu(
        sizes=sizes,
        said_sizes=said_sizes,
        roasts=_words(table, "roasts"),
        products=products,
        shots=_costs(table, "shots"),
        milks=milks,
        extras=extras,
        said_additions=_renames(table, "said_additions", (*milks, *extras), "one of menu.milks or menu.extras"),
        not_sold=_words(table, "not_sold"),
        highlights=_words(table, "highlights"),
        ready_in=ready_in,
    )


def _table(value: object, key: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise MenuError(key, value, "a table")
    return value


def _words(table: Mapping[str, object], key: str, prefix: str = "menu") -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(w, str) and w for w in value):
        raise MenuError(f"{prefix}.{key}", value, "a list of words in lower case")
    for word in value:
        _check_said(word, f"{prefix}.{key}")
    return tuple(value)


def _check_said(word: str, key: str) -> None:
    if not re.fullmatch(r"[a-z']+( [a-z']+)*", word):
        raise MenuError(key, word, "words in lower case as they are spoken, without figures or punctuation")


def _renames(table: Mapping[str, object], key: str, targets: Sequence[str], expected: str) -> dict[str, str]:
    renames: dict[str, str] = {}
    for said, target in _table(table.get(key, {}), f"menu.{key}").items():
        _check_said(said, f"menu.{key}.{said}")
        if not isinstance(target, str) or target not in targets:
            raise MenuError(f"menu.{key}.{said}", target, expected)
        renames[said] = target
    return renames


def _cents(value: object, key: str) -> int:
    found = _PRICE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise MenuError(key, value, "a price as a string of dollars and cents, such as '4.50'")
    return int(found[1]) * 100 + int(found[2])


def _costs(table: Mapping[str, object], key: str) -> dict[str, int]:
    costs: dict[str, int] = {}
    for name, value in _table(table.get(key, {}), f"menu.{key}").items():
        _check_said(name, f"menu.{key}.{name}")
        costs[name] = _cents(value, f"menu.{key}.{name}")
    return costs


def _products(table: Mapping[str, object], key: str, sizes: int) -> list[Product]:
    products = []
    for name, entry in _table(table.get(key, {}), f"menu.{key}").items():
        where = f"menu.{key}.{name}"
        _check_said(name, where)
        row = _table(entry, where)
        for field in row:
            if field not in ("price", "prices", "also", "needs_size"):
                raise MenuError(f"{where}.{field}", row[field], "one of the keys price, prices, also, needs_size")
        if ("price" in row) == ("prices" in row):
            raise MenuError(where, dict(row), "either `price` or `prices`")
        if "price" in row:
            prices: tuple[int, ...] = (_cents(row["price"], f"{where}.price"),)
        else:
            listed = row["prices"]
            if not isinstance(listed, Sequence) or isinstance(listed, str) or len(listed) != sizes:
                raise MenuError(f"{where}.prices", listed, f"{sizes} prices, one for each of menu.sizes")
            prices = tuple(_cents(price, f"{where}.prices") for price in listed)
        needs_size = row.get("needs_size", True)
        if not isinstance(needs_size, bool):
            raise MenuError(f"{where}.needs_size", needs_size, "true or false")
        products.append(Product(name, key == "drinks", prices, _words(row, "also", where), needs_size))
    if not products and key == "drinks":
        raise MenuError("menu.drinks", table.get(key), "a table with at least one drink")
    return products

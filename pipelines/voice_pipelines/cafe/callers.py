"""Writes what callers of a café say, as a recogniser would: lower case, no punctuation, sometimes misheard."""

import random

from voice_pipelines.cafe.hearing import Item, plural
from voice_pipelines.cafe.menu import Menu
from voice_pipelines.cafe.phrases import phrase_book

MISHEARD_TURNS = 0.15
"""Share of a caller's turns that get recognition errors."""


class Caller:
    """A caller of one café: makes sentences about its menu."""

    def __init__(self, menu: Menu, rng: random.Random) -> None:
        self.menu, self.rng = menu, rng
        self.drinks = [product for product in menu.products.values() if product.is_drink]
        self.food = [product for product in menu.products.values() if not product.is_drink]
        self._lines = phrase_book().caller

    def line(self, key: str) -> str:
        """Return one of the phrase book's sentences for callers, slots not filled."""
        return self.rng.choice(self._lines[key])

    def order(self, is_more: bool) -> str:
        """Return an order of one to three things."""
        rng = self.rng
        carriers = (*self._lines["carriers"], *self._lines["more"]) if is_more else self._lines["carriers"]
        text = f"{rng.choice(carriers)} {self._thing()}".strip()
        if rng.random() < 0.16:
            text += f" {rng.choice(('and', 'and', 'and also', 'plus'))} {self._thing()}"
        if rng.random() < 0.03:
            text += f" and {self._thing()}"
        if rng.random() < 0.14:
            text += " please"
        if rng.random() < 0.03:
            text += rng.choice((" and that's all", " that's it", " and that's it", " that'll be all"))
        if rng.random() < 0.02:
            text += f" and a {rng.choice(self.menu.not_sold)}"
        return text

    def size(self) -> str:
        """Return an answer to the question for the size."""
        size = self._said_size()
        return self.line("size").format(s=size)

    def change(self, items: tuple[Item, ...]) -> str:
        """Return a change to what was ordered."""
        rng = self.rng
        kind = rng.random()
        target = rng.choice(items)
        if kind < 0.35:
            x = f"{rng.choice(('a ', ''))}{self._said_size()}"
        elif kind < 0.6:
            x = self._addition()
            if rng.random() < 0.5:
                return self.line("add_to_item").format(x=x)
        elif kind < 0.7:
            return self.line("size_of_named").format(n=target.name, s=self._said_size())
        elif kind < 0.78:
            return self.line("leave_out")
        elif kind < 0.88:
            other = rng.choice(self.drinks).name
            return self.line("replace_named").format(n=target.name, o=other)
        elif kind < 0.95:
            x = self.line("other_details")
        else:
            x = self._drink()
        return self.line("changes").format(x=x)

    def remove(self, items: tuple[Item, ...]) -> str:
        """Return a request to take something off the order."""
        rng = self.rng
        item = rng.choice(items)
        things = [item.name, item.name, item.name, *(addition.name for addition in item.additions)]
        return self.line("remove").format(n=rng.choice(things))

    def question(self, kind: str) -> str:
        """Return a question about the menu; `kind` is one of the phrase book's steps."""
        rng = self.rng
        some = rng.choice((*self.drinks, *self.food)).name
        match kind:
            case "price":
                name = f"{self._said_size()} {some}" if rng.random() < 0.3 else some
                return self.line("price").format(n=name, p=plural(some))
            case "offmenu":
                name = rng.choice(self.menu.not_sold)
                frame = self.line("offmenu")
                is_one = " a {n}" in frame or not frame.endswith("{n}")
                return frame.format(
                    c=rng.choice(self._lines["carriers"][:16]),
                    n=name.removesuffix("s") if is_one else name,
                    d=self._drink(is_bare=True),
                )
            case "have":
                addition = rng.choice((*self.menu.milks, *self.menu.extras))
                return self.line("have").format(p=plural(some), m=addition)
            case _:
                return self.line(kind).format(n=some)

    def _said_size(self) -> str:
        sizes = self.menu.sizes
        ounces = (size for size in self.menu.said_sizes if size.endswith("ounce"))
        return self.rng.choice((*sizes[:3], *sizes[:3], *sizes, *ounces))

    def _addition(self) -> str:
        rng = self.rng
        names = (*self.menu.milks, *self.menu.extras, *self.menu.said_additions)
        return f"{rng.choice(self._lines['amounts'])} {rng.choice(names)}".strip()

    def _thing(self) -> str:
        return self._drink() if self.rng.random() < 0.78 else self._snack()

    def _drink(self, *, is_bare: bool = False) -> str:
        """Return a drink with its details in any order; a bare one has at most a size."""
        rng = self.rng
        product = rng.choice(self.drinks)
        name = rng.choice((product.name, product.name, product.name, *product.also))
        words = []
        count = rng.choices((1, 2, 3, 4), (85, 10, 3, 2))[0]
        if product.is_sized and rng.random() < 0.72:
            words.append(self._said_size())
        if not is_bare:
            if rng.random() < 0.3:
                words.append(f"{rng.choice(tuple(self.menu.shots))} shot")
            if rng.random() < 0.22 and ("coffee" in name or rng.random() < 0.2):
                words.append(f"{rng.choice(self.menu.roasts)} roast")
            if rng.random() < 0.07 and "iced" not in name and "ice" not in name.split():
                words.append(rng.choice(("iced", "decaf")))
        rng.shuffle(words)
        if not is_bare and rng.random() < 0.06:
            words.append(self.line("milks_before"))
        after = " " + words.pop() if words and rng.random() < 0.08 else ""
        text = " ".join([*words, plural(name) if count > 1 else name]) + after
        lead = ("", "", "two", "three", "four")[count] if count > 1 else rng.choice(("a", "a", "a", "a", "one", ""))
        text = f"{'an' if lead == 'a' and text[0] in 'aeiou' else lead} {text}".strip()
        if not is_bare and rng.random() < 0.45:
            text += f" {rng.choice(('with', 'with', 'with', 'with', 'and'))} {self._addition()}"
            if rng.random() < 0.25:
                text += f" and {self._addition()}"
        return text

    def _snack(self) -> str:
        rng = self.rng
        if not self.food:
            return self._drink()
        name = rng.choice(self.food).name
        if rng.random() < 0.15:
            return f"{rng.choice(('two', 'three'))} {plural(name)}"
        return f"{rng.choice(('an' if name[0] in 'aeiou' else 'a', 'one'))} {name}"


def misheard(text: str, rng: random.Random) -> str:
    """Return the text with one or two errors such as recognisers make, in one text of seven; else as it is."""
    if rng.random() >= MISHEARD_TURNS:
        return text
    book = phrase_book()
    words = text.split()
    for _ in range(rng.choice((1, 1, 2))):
        if not words:
            break
        place = rng.randrange(len(words))
        word = words[place]
        if word in book.split_words and rng.random() < 0.5:
            words[place] = book.split_words[word]
        elif word in book.small_words:
            words[place] = book.small_words[word]
        elif rng.random() < 0.3 and len(words) > 2:
            words.pop(place)
        elif rng.random() < 0.4:
            words.insert(place, rng.choice(("uh", "um", "the", "a", "and", "it", "like")))
    return " ".join(" ".join(words).split())

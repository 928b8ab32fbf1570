"""How an agent might word a note: phrasings by situation, for training dialogues only. Nothing here is used at run time."""

import random
import re

from voice_pipelines.cafe.hearing import COUNT_WORDS
from voice_pipelines.cafe.order import Fact, Note

OPENERS = (
    "Sure.", "Sure thing.", "Got it.", "Okay.", "Of course.", "Absolutely.", "Great.", "Perfect.", "Great choice.", "No problem.",
    "Certainly.", "All right.", "Lovely.", "Good choice.", "Coming right up.", "You got it.", "Sounds good.", "Wonderful.",
)  # fmt: skip
CLOSED = ("Great.", "Perfect.", "All right.", "Okay.", "Thank you.", "Lovely.", "Got it.", "Wonderful.", "Sounds good.", "Thanks.", "Excellent.")
CHANGED = (
    "Sure, I changed that.", "No problem.", "Okay, changed.", "Got it, updated.", "Of course.", "Sorry about that.", "All right.",
    "Sure, that's changed.", "My mistake.", "Done.", "Okay.", "Sure.", "Updated.",
)  # fmt: skip
ANYTHING_ELSE = (
    "Anything else?", "Can I get you anything else?", "Would you like anything else?", "Anything else for you?",
    "What else can I get you?", "What else would you like?", "And anything else?", "Is there anything else?", "Anything else today?",
    "Can I add anything else?", "Would you like anything to go with that?", "Do you want anything else?",
)  # fmt: skip
HEARD = ("{i}, {p}.", "That's {i} for {p}.", "{i}. That's {p}.", "{i}, that comes to {p}.", "{i}, that will be {p}.",
         "So that's {i}, {p}.", "I have {i} for {p}.", "{i} for {p}.", "I've got {i}, {p}.", "That's {i}, {p} in total.",
         "{i}, that's {p}.", "So {i}, that makes {p}.")  # fmt: skip
ADDED = ("{i} too, that makes {p}.", "I added {i}, {p} so far.", "And {i}. Your total is now {p}.", "I've added {i}. That's {p} altogether.",
         "{i} as well. That brings it to {p}.", "Plus {i}, that's {p} in total.", "{i} added, the total is {p}.",
         "Adding {i}. That comes to {p}.", "And {i}, that makes {p}.", "{i}. That's {p} all together.")  # fmt: skip
CHANGES = ("It's {i} now, {p} in total.", "{i} then. That's {p}.", "That's {i}, {p} in total.", "Now it's {i}. The total is {p}.",
           "{i} instead, that comes to {p}.", "I have {i} now, and the total is {p}.", "{i}. Your total is {p} now.",
           "So {i}, that makes {p}.", "I've made it {i}. That's {p}.")  # fmt: skip
REMOVED = ("I took off {i}. That leaves {p}.", "{i} removed. Your total is {p}.", "No {i} then. That's {p} now.", "I removed {i}, so it's {p}.",
           "{i} is off your order. That makes {p}.", "I've cancelled {i}. The total is now {p}.")  # fmt: skip
CLEARED = ("I removed {i}. Your order is empty now. What would you like?", "I took off {i}. What can I get you instead?",
           "{i} is cancelled. Would you like something else?", "Okay, I cancelled {i}. What else would you like?",
           "No problem, {i} is off the order. Can I get you something else?")  # fmt: skip
SIZES = ("What size {n} would you like?", "What size would you like for the {n}?", "Which size for the {n}?", "Small, medium or large {n}?",
         "And what size {n}?", "Would you like a small, medium or large {n}?", "What size should the {n} be?", "How big should the {n} be?",
         "What size of {n}?", "Which size {n} would you like?", "What size {n} can I get you?")  # fmt: skip
FIRST_FOR_SIZE = ("Sure, {i}.", "{i}, got it.", "Okay, {i}.", "{i}, sure.", "{i}.", "{i}, of course.", "Great, {i}.", "Happy to make you {i}.", "A good choice, {i}.", "So {i}.", "I have {i}.")
NAMED = ("{i}.", "That's {i}.", "{i}, got it.", "Sure, {i}.", "Okay, {i}.", "So {i}.", "Got it, {i}.")
DONE = ("Your total is {p}, and it will be ready in {t}.", "That's {p}. It will be ready in {t}.", "That comes to {p}, ready in {t}.",
        "Your order comes to {p} and will be ready in {t}.", "The total is {p}. You can pick it up in {t}.", "That will be {p}, ready in {t}.",
        "It's {p} altogether, and it'll be ready in {t}.", "{p} in total. We'll have it ready in {t}.")  # fmt: skip
BYES = ("Thank you, goodbye!", "Thanks for calling, goodbye!", "See you soon, goodbye!", "Thank you and have a great day!", "Goodbye!", "Bye for now!",
        "Thanks, see you soon!", "Have a lovely day, goodbye!", "Thanks for your order, goodbye!", "See you then!")  # fmt: skip
DONE_EMPTY = ("All right, nothing today. Thanks for calling, goodbye!", "Okay, no order then. Have a great day!", "No problem, thanks for calling. Goodbye!",
              "That's fine, nothing on the order yet. Call us any time, goodbye!", "Okay, thanks for calling. Bye!")  # fmt: skip
REPEATS = ("You have {i}. Your total is {p}.", "So far I have {i}, that's {p}.", "Your order is {i}, {p} in total.", "That's {i} for {p}.",
           "I have {i}. That comes to {p}.", "Right now it's {i}, and the total is {p}.")  # fmt: skip
REPEATS_NO_SIZE = ("So far I have {i}.", "You have {i}.", "Your order is {i} so far.", "I've got {i}.")
EMPTY = ("There's nothing on your order yet. What would you like?", "Your order is empty so far. What can I get you?", "I don't have anything down yet. What would you like?",
         "Nothing so far. What can I get started for you?")  # fmt: skip
PRICES_ONE = ("{n} is {p}.", "It's {p} for {n}.", "{n} costs {p}.", "That's {p} for {n}.", "{n} would be {p}.")
PRICES_ALL = ("{n} is {a} for a small, {b} for a medium and {c} for a large.", "{n} costs {a} small, {b} medium and {c} large.",
              "A small {n} is {a}, a medium {b} and a large {c}.", "For {n} it's {a}, {b} or {c}, small, medium or large.")  # fmt: skip
WANT_ONE = ("Would you like one?", "Can I get you one?", "Shall I add one?", "Would you like to order one?", "Want one?", "")
OFF_MENU = ("Sorry, we don't have {n}.", "I'm sorry, we have no {n}.", "We don't sell {n}, sorry.", "Sorry, no {n} here.", "Unfortunately we don't have {n}.",
            "I'm afraid we don't have {n}.", "Oh, we don't do {n}.", "Sorry, {n} we don't have.", "I'm sorry, we don't serve {n}.", "No {n} here, I'm afraid.")  # fmt: skip
NOT_ADDED = ("Okay, no {n}.", "No problem, no {n} then.", "All right, I won't add {n}.", "Sure, no {n}.", "That's fine, no {n}.", "Okay, I'll leave out the {n}.")
SOMETHING_ELSE = ("Can I get you something else?", "Would you like something else?", "What else can I get you?", "What else would you like?",
                  "Would you like something else instead?", "Anything else I can get you?")  # fmt: skip
ON_MENU = ("Yes, we have {n}.", "We do have {n}.", "Yes, we do have {n}.", "Sure, we have {n}.", "Of course, we have {n}.", "Yes, you can get {n} here.", "We sure do have {n}.")
LISTS = ("We have {l}.", "You can choose from {l}.", "There's {l}.", "We offer {l}.", "Our {k} are {l}.", "For {k} we have {l}.")
WHICH = ("Which would you like?", "What would you like?", "Would you like any of those?", "What can I get you?", "Which one would you like?", "")
READY = ("It will be ready in {t}.", "About {t}.", "That takes {t}.", "Your order will be ready in {t}.", "You can pick it up in {t}.", "We need {t} for that.")
ALLERGY = ("I can't be sure about allergens. Our staff can check that for you.", "Sorry, I don't know about allergens. Please ask our staff, they can tell you.",
           "I'm not certain what's in it. Our staff can check that for you.", "I don't want to guess about allergens. Our staff will tell you.",
           "That's a question for our staff, I can't tell you for certain.", "I can't say for sure. Please ask the staff when you come in.", "I don't know that, I'm afraid. The staff can check it for you at the counter.")  # fmt: skip


def join_words(names: list[str], word: str = "and") -> str:
    """Return "a, b and c"."""
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + f" {word} " + names[-1]


def with_article(item: str, rng: random.Random, *, may_be_bare: bool = False) -> str:
    """Return an item as it is spoken: with "a" or "one" unless it starts with a count; bare only where a sentence starts with it."""
    first = item.split()[0]
    if first in COUNT_WORDS or item == "everything" or item.startswith("banana bread"):
        return item
    choice = rng.random()
    if may_be_bare and choice < 0.3:
        return item
    article = "an" if first[0] in "aeio" else "a"
    return f"one {item}" if choice > 0.75 else f"{article} {item}"


def capital(text: str) -> str:
    """Return the text with capitals at the beginning of its sentences."""
    out, start = [], True
    for letter in text:
        out.append(letter.upper() if start and letter.isalpha() else letter)
        if letter.isalnum() or letter == "$":
            start = False
        elif letter in "?!" or letter == ".":
            start = True
    return "".join(out)


def _tidy(*parts: str) -> str:
    text = " ".join(part.strip() for part in parts if part.strip())
    return capital(text)


def _items(value: str, frame: str, rng: random.Random) -> str:
    return join_words([with_article(item, rng, may_be_bare=frame.startswith("{i}")) for item in value.split(", ")])


def _led(lead: str, sentence: str, rng: random.Random) -> str:
    """Put a short first clause before a sentence, sometimes joined to it by a comma."""
    if lead and rng.random() < 0.4 and len(lead) < 12 and not sentence.startswith(("I ", "I'")):
        return f"{lead[:-1]}, {sentence[0].lower()}{sentence[1:]}"
    return _tidy(lead, sentence)


def reply_to(note: Note, rng: random.Random) -> str:
    """Word one reply that says exactly what a note states."""
    facts = {fact.key: fact.value for fact in note.facts}
    off = facts.pop("not on the menu", "")
    sorry = rng.choice(OFF_MENU).format(n=join_words(off.split(", "), "or")) if off else ""
    if not facts:
        return _tidy(sorry, rng.choice(SOMETHING_ELSE))
    if "price" in facts:
        return _tidy(_prices([fact.value for fact in note.facts if fact.key == "price"], rng), sorry)
    return _tidy(sorry, capital(_reply_to_facts(facts, rng)))


def _reply_to_facts(facts: dict[str, str], rng: random.Random) -> str:
    """Word facts other than prices of products; what the caller did comes first, what is still open comes last."""
    pick = rng.choice
    for key, lead, frames, open_frames in (
        ("order", OPENERS, HEARD, FIRST_FOR_SIZE),
        ("add", OPENERS, ADDED, FIRST_FOR_SIZE),
        ("change", CHANGED, CHANGES, FIRST_FOR_SIZE),
        ("repeat", OPENERS[:4], REPEATS, REPEATS_NO_SIZE),
    ):
        if key not in facts:
            continue
        is_settled = "total" in facts and "done" not in facts
        frame = pick(frames if is_settled else open_frames if "size missing" in facts else NAMED)
        said = frame.format(i=_items(facts[key], frame, rng), p=facts.get("total", ""))
        if is_settled:
            return _tidy(_led(pick(lead) if rng.random() < 0.5 else "", said, rng), pick(ANYTHING_ELSE))
        return _tidy(said, _open_end(facts, rng))
    if "remove" in facts:
        items = join_words([item if item == "everything" else f"the {item}" for item in facts["remove"].split(", ")])
        if "order empty" in facts:
            return pick(CLEARED).format(i=items)
        if "size missing" in facts or "done" in facts:
            return _tidy(pick(("I removed {i}.", "I took off {i}.", "{i} is off your order.")).format(i=items), _open_end(facts, rng))
        said = pick(REMOVED).format(i=items, p=facts["total"]).replace("No the", "No")
        return _tidy(_led(pick(CHANGED[1:6]) if rng.random() < 0.4 else "", said, rng), pick(ANYTHING_ELSE))
    if "done" in facts and "order empty" in facts:
        return pick(DONE_EMPTY)
    if "done" in facts:
        return _tidy(pick(CLOSED) if rng.random() < 0.6 else "", _open_end(facts, rng))
    if "size missing" in facts:
        return _tidy(pick(("Almost done.", "Just one thing.", "One more thing.", "Sure.", "", "")), _open_end(facts, rng))
    if "order empty" in facts:
        return pick(EMPTY)
    if "not added" in facts:
        return _tidy(pick(NOT_ADDED).format(n=facts["not added"]), pick(ANYTHING_ELSE))
    if "allergens unknown" in facts:
        return pick(ALLERGY)
    if "ready in" in facts:
        return _tidy(pick(READY).format(t=facts["ready in"]), pick(ANYTHING_ELSE) if rng.random() < 0.5 else "")
    if "on the menu" in facts:
        names = facts["on the menu"]
        is_countable = names.endswith("s") and ", " not in names
        return _tidy(pick(ON_MENU).format(n=join_words(names.split(", "))), pick(WANT_ONE if is_countable else ANYTHING_ELSE))
    ((key, value),) = facts.items()
    return _tidy(pick(LISTS).format(l=join_words(value.split(", ")), k=key), pick(WHICH))


def _open_end(facts: dict[str, str], rng: random.Random) -> str:
    """Ask for the sizes that are missing, or close the order."""
    if "size missing" in facts:
        return rng.choice(SIZES).format(n=join_words(facts["size missing"].split(", ")))
    return _tidy(rng.choice(DONE).format(p=facts["total"], t=facts["ready in"]), rng.choice(BYES))


def _prices(values: list[str], rng: random.Random) -> str:
    sentences = []
    for value in values:
        prices = re.findall(r"\$\d+\.\d\d", value)
        if len(prices) == 3:
            name = value.partition(" small $")[0]
            frame = rng.choice(PRICES_ALL)
            name = name if "small {n}" in frame else with_article(name, rng)
            sentences.append(frame.format(n=name, a=prices[0], b=prices[1], c=prices[2]))
        else:
            name = value.rpartition(" ")[0]
            sentences.append(rng.choice(PRICES_ONE).format(n=with_article(name, rng), p=prices[0]))
    return _tidy(*sentences, rng.choice(WANT_ONE) if len(values) == 1 else "")

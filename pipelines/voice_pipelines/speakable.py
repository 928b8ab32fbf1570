"""Written English as words that a synthesizer can say: figures, prices, times, units, abbreviations; markup is dropped.

Pure. Rules go from the specific to the general, each leaving words behind, so that the last one only meets bare figures.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Callable

from num2words import num2words

_Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]

# --- figures ----------------------------------------------------------------------------------------------------------

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_LONGEST_CARDINAL = 15
"""Figures with more digits than this are read digit by digit."""


def _cardinal(figures: str) -> str:
    """Digits, with thousands separators or a decimal part, as words."""
    whole, _, fraction = figures.replace(",", "").partition(".")
    if len(whole) > _LONGEST_CARDINAL or (len(whole) > 1 and whole[0] == "0"):
        words = _one_by_one(whole)
    else:
        words = _plain(num2words(int(whole or "0")))
    return f"{words} point {_one_by_one(fraction)}" if fraction else words


def _plain(words: str) -> str:
    return words.replace("-", " ").replace(",", "")


def _one_by_one(text: str) -> str:
    return " ".join(_DIGITS[int(character)] for character in text if character in "0123456789")


def _ordinal(figures: str) -> str:
    if len(figures) > _LONGEST_CARDINAL:
        return _one_by_one(figures)
    return _plain(num2words(int(figures), to="ordinal"))


def _year(figures: str) -> str:
    return _plain(num2words(int(figures), to="year"))


def _phone(match: re.Match[str]) -> str:
    """Digits one by one, a pause between the groups as written."""
    groups = [_one_by_one(group) for group in re.findall(r"[0-9]+", match.group())]
    return (" plus " if match.group().lstrip().startswith("+") else " ") + ", ".join(groups) + " "


# --- money ------------------------------------------------------------------------------------------------------------

_CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
}


def _money(match: re.Match[str]) -> str:
    """The amount in words, set apart from letters that touch it ("US$5")."""
    one, many, one_part, many_parts = _CURRENCIES[match["sign"]]
    whole, fraction, scale = match["whole"].replace(",", ""), match["fraction"] or "", match["scale"]
    if scale or len(fraction) > 2 or len(whole) > _LONGEST_CARDINAL:
        amount = _cardinal(whole + (f".{fraction}" if fraction else ""))
        return f"{amount} {scale.lower()} {many}" if scale else f"{amount} {many}"
    units, parts = int(whole or "0"), int(fraction.ljust(2, "0")) if fraction else 0
    spoken = []
    if units or not parts:
        spoken.append(f"{_cardinal(str(units))} {one if units == 1 else many}")
    if parts:
        spoken.append(f"{_cardinal(str(parts))} {one_part if parts == 1 else many_parts}")
    return " and ".join(spoken)


# --- times and dates --------------------------------------------------------------------------------------------------

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def _half_of_day(text: str | None) -> str:
    if not text:
        return ""
    return " AM" if text.lower().startswith("a") else " PM"


def _time(match: re.Match[str]) -> str:
    hour, minute, half = int(match["hour"]), int(match["minute"]), _half_of_day(match["half"])
    words = _cardinal(str(hour)) if hour else "zero"
    if minute == 0:
        if half:
            return words + half
        return f"{words} o'clock" if 1 <= hour <= 12 else f"{words} hundred"
    return f"{words} {'oh ' if minute < 10 else ''}{_cardinal(str(minute))}{half}"


def _slashed(match: re.Match[str]) -> str:
    """Month/day with or without a year; fractions and anything else as two numbers."""
    first, second, year = int(match["first"]), int(match["second"]), match["year"]
    if year is None and (first, second) in _FRACTIONS:
        return _FRACTIONS[first, second]
    if 1 <= first <= 12 and 1 <= second <= 31:
        spoken_year = f", {_year(year if len(year) == 4 else '20' + year)}" if year else ""
        return f"{_MONTHS[first - 1]} {_ordinal(str(second))}{spoken_year}"
    parts = [str(first), str(second), *([year] if year else [])]
    return " ".join(_cardinal(part) for part in parts)


_FRACTIONS = {
    (1, 2): "one half",
    (1, 3): "one third",
    (2, 3): "two thirds",
    (1, 4): "one quarter",
    (3, 4): "three quarters",
    (1, 8): "one eighth",
}

# --- units and abbreviations ------------------------------------------------------------------------------------------

_UNITS = {
    "oz": ("ounce", "ounces"),
    "fl oz": ("fluid ounce", "fluid ounces"),
    "lb": ("pound", "pounds"),
    "lbs": ("pound", "pounds"),
    "kg": ("kilogram", "kilograms"),
    "g": ("gram", "grams"),
    "mg": ("milligram", "milligrams"),
    "ml": ("milliliter", "milliliters"),
    "l": ("liter", "liters"),
    "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"),
    "km": ("kilometer", "kilometers"),
    "mi": ("mile", "miles"),
    "ft": ("foot", "feet"),
    "hr": ("hour", "hours"),
    "hrs": ("hour", "hours"),
    "min": ("minute", "minutes"),
    "mins": ("minute", "minutes"),
    "sec": ("second", "seconds"),
    "secs": ("second", "seconds"),
    "mph": ("mile per hour", "miles per hour"),
    "cal": ("calorie", "calories"),
    "kcal": ("kilocalorie", "kilocalories"),
    "°f": ("degree Fahrenheit", "degrees Fahrenheit"),
    "°c": ("degree Celsius", "degrees Celsius"),
    "°": ("degree", "degrees"),
}


def _unit(match: re.Match[str]) -> str:
    one, many = _UNITS[" ".join(match["unit"].lower().split())]
    return f"{_cardinal(match['number'])} {one if match['number'] == '1' else many}"


_WORDS_FOR = {
    "mr": "Mister",
    "mrs": "Missus",
    "ms": "Miz",
    "prof": "Professor",
    "jr": "Junior",
    "sr": "Senior",
    "ave": "Avenue",
    "blvd": "Boulevard",
    "rd": "Road",
    "hwy": "Highway",
    "apt": "apartment",
    "dept": "department",
    "approx": "approximately",
    "vs": "versus",
    "etc": "etcetera",
    "oz": "ounces",
    "lb": "pounds",
    "lbs": "pounds",
    "tsp": "teaspoon",
    "tbsp": "tablespoon",
    "min": "minutes",
    "mins": "minutes",
    "hr": "hour",
    "hrs": "hours",
}
_BOTH_WAYS = {"st": ("Saint", "Street"), "dr": ("Doctor", "Drive")}


def _abbreviation(match: re.Match[str]) -> str:
    """The word, with its full stop when that also ended the text."""
    return _WORDS_FOR[match["short"].lower()] + ("." if match["end"] is not None else "")


def _saint_or_street(match: re.Match[str]) -> str:
    """A title when a name follows and none came before: "St. James", "Dr. Lee"; else a road: "5 Main St."."""
    before_name, after_name = _BOTH_WAYS[match["short"].lower()]
    if match["name"] and not match["road"]:
        return before_name
    return (match["road"] or "") + after_name + ("." if match["end"] is not None else "")


# --- the rules, in order ----------------------------------------------------------------------------------------------

_NUMBER = r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?"
_FREE = r"(?<![0-9A-Za-z.,])"
"""Where a figure may begin: not in the middle of a word or of another figure."""


def _rule(pattern: str, say: Callable[[re.Match[str]], str] | str, flags: int = 0) -> _Rule:
    return re.compile(pattern, flags), say if callable(say) else lambda match: match.expand(say)


_units_by_length = "|".join(re.escape(unit).replace(r"\ ", r"\s*") for unit in sorted(_UNITS, key=len, reverse=True))

_MARKUP: tuple[_Rule, ...] = (
    _rule(r"!?\[([^\[\]]*)\]\([^()\s]*\)", r"\1"),  # [text](address)
    _rule(r"</?[A-Za-z!?][^<>]*>", " "),  # HTML, SSML
    _rule(r"^\s*(?:#{1,6}|[-*+•])\s+", "", re.MULTILINE),  # headings, bullets
    _rule(r"^\s*([0-9]{1,2})[.)]\s+(?=\S)", lambda m: f"{_cardinal(m[1])}, ", re.MULTILINE),  # numbered items
    _rule(r"`+|\*+|~~+|(?<![^\W_])_+|_+(?![^\W_])", ""),  # code, emphasis
)

_SPEECH: tuple[_Rule, ...] = (
    _rule(r"https?://(?:www\.)?", ""),
    _rule(r"\b([\w.+-]+)@([\w-]+(?:\.[\w-]+)+)", lambda m: f"{m[1]} at {m[2]}".replace(".", " dot ")),
    _rule(
        r"\b(?:www\.)?([a-z0-9-]+(?:\.[a-z0-9-]+)*)\.(com|org|net|edu|gov|io|co|dev)\b(?:/\S*[\w/])?",
        lambda m: f"{m[1]} dot {m[2]}".replace(".", " dot "),
        re.IGNORECASE,
    ),
    _rule(r"(?<![\w.,$€£])\+?\(?[0-9]{3}\)?[-. ][0-9]{3}[-. ][0-9]{4}(?![\w,.-]*[0-9])", _phone),
    _rule(r"(?<![\w.,$€£])\+[0-9]{1,3}[-. ]?\(?[0-9]{2,4}\)?(?:[-. ]?[0-9]{2,4}){1,4}(?!\w)", _phone),
    _rule(r"(?<![\w.,$€£/-])[0-9]{1,4}(?:-[0-9]{2,4}){2,4}(?![\w-])", _phone),
    _rule(r"(?<![\w.,$€£/-])[0-9]{3}-[0-9]{4}(?![\w-])", _phone),
    _rule(r"(?<![\w.,$€£])[0-9]{7,}(?![\w]|[.,][0-9])", _phone),
    _rule(r"(?<![\w.-])([$€£]?[0-9][0-9,.:]*(?:\s?[ap]\.?m\.?)?)\s?[-–]\s?(?=[$€£]?[0-9])", r"\1 to ", re.IGNORECASE),
    _rule(r"#\s?([0-9]+)", lambda m: f"number {_cardinal(m[1]) if len(m[1]) < 3 else _one_by_one(m[1])}"),
    _rule(
        r"(?P<sign>[$€£])\s?(?P<whole>[0-9]+(?:,[0-9]{3})*|(?=\.[0-9]))(?:\.(?P<fraction>[0-9]+))?"
        r"(?:\s(?P<scale>thousand|million|billion|trillion)\b)?",
        lambda m: f" {_money(m)} ",
        re.IGNORECASE,
    ),
    _rule(
        r"(?<![\w:.])(?P<hour>[01]?[0-9]|2[0-4]):(?P<minute>[0-5][0-9])(?![0-9:])"
        r"(?:\s?(?P<half>[ap](?:m\b|\.\s?m\b(?:\.(?=\s*[a-z,;]))?)))?",
        _time,
        re.IGNORECASE,
    ),
    _rule(
        r"(?<![\w:.])(?P<hour>1[0-2]|0?[1-9])\s?(?P<half>[ap](?:m\b|\.\s?m\b(?:\.(?=\s*[a-z,;]))?))",
        lambda m: _cardinal(str(int(m["hour"]))) + _half_of_day(m["half"]),
        re.IGNORECASE,
    ),
    _rule(
        r"(?<![\w/])(?P<first>[0-9]{1,2})/(?P<second>[0-9]{1,2})(?:/(?P<year>[0-9]{4}|[0-9]{2}))?(?![\w/])", _slashed
    ),
    _rule(
        r"\b(in|since|of|year|from|until|by)\s((?:1[1-9]|20)[0-9]{2})\b(?![.,:-]?[0-9])",
        lambda m: f"{m[1]} {_year(m[2])}",
        re.IGNORECASE,
    ),
    _rule(
        rf"\b({'|'.join(month[:3] for month in _MONTHS)}|Sept)\b\.?(?=\s[0-9])",
        lambda m: next(month for month in _MONTHS if month.startswith(m[1][:3])),
    ),
    _rule(
        rf"\b({'|'.join(_MONTHS)})\s([0-9]{{1,2}})(?:st|nd|rd|th)?\b(?![:,.][0-9])",
        lambda m: f"{m[1]} {_ordinal(m[2])}",
    ),
    _rule(
        _FREE + rf"(?P<number>{_NUMBER})\s?(?P<unit>{_units_by_length})(?![\w°])\.?(?=(?P<rest>\s|$|\W))",
        _unit,
        re.IGNORECASE,
    ),
    _rule(rf"({_NUMBER})\s?%", lambda m: f"{_cardinal(m[1])} percent "),
    _rule(
        r"(?<![.,0-9])([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:st|nd|rd|th)\b",
        lambda m: _ordinal(m[1].replace(",", "")),
        re.IGNORECASE,
    ),
    _rule(_FREE + rf"[-−](?={_NUMBER})", "minus "),
    _rule(r"\be\.\s?g\.,?", "for example"),
    _rule(r"\bi\.\s?e\.,?", "that is"),
    _rule(r"\bNo\.\s?(?=[0-9])", "number "),
    _rule(r"\bw/o\b", "without"),
    _rule(r"\bw/(?=\s|\w)", "with "),
    _rule(
        r"(?P<road>\b[A-Z][a-z]+\s)?\b(?P<short>[Ss]t|[Dd]r)\b\.?(?:(?=\s(?P<name>[A-Z][a-z]))|(?P<end>(?<=\.)(?=\s*$))|(?<=\.))",
        _saint_or_street,
    ),
    _rule(rf"\b(?P<short>{'|'.join(_WORDS_FOR)})\.(?P<end>(?=\s*$))?(?!\w)", _abbreviation, re.IGNORECASE),
    _rule(r"\bMr\b", "Mister"),
    _rule(r"\bMrs\b", "Missus"),
    _rule(rf"({_NUMBER})", lambda m: f" {_cardinal(m[1])} "),
)

_SYMBOLS: tuple[_Rule, ...] = (
    _rule(r"\s*&\s*", " and "),
    _rule(r"\s*@\s*", " at "),
    _rule(r"\s*\+\s*", " plus "),
    _rule(r"\s*=\s*", " equals "),
    _rule(r"~\s?(?=\w)", "about "),
    _rule(r"\s*[—–]\s*|\s-+\s|--+", ", "),
    _rule(r"[\\/|<>{}\[\]^~_#*`\"$€£%°]", " "),
    _rule(r"\.{2,}|…", ", "),
    _rule(r"([,.?!;:])(?:\s*\1)+", r"\1"),
    _rule(r"(?<=[^\s,.?!;:])\s*\n\s*(?=\S)", ", "),
    _rule(r"\s+", " "),
    _rule(r"\s+([,.?!;:])", r"\1"),
    _rule(r",(?=[.?!;:])|[;:](?=[.?!])", ""),  # also what is left of a time that was cut off: "until 8:."
)

_TRANSLATE = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "−": "-", "‑": "-", "×": " by ", "½": " 1/2", "¼": " 1/4", "¾": " 3/4"}
)


def speakable(text: str) -> str:
    """`text` as words and the punctuation that makes pauses. No figure is left; text that holds letters keeps some.

    Never raises. The result is empty only for text without letters and figures.
    """
    cleaned = _readable(text)
    spoken = _apply(_SYMBOLS, _apply(_SPEECH, _apply(_MARKUP, cleaned))).strip(" ,;:-")
    if any(map(str.isalnum, spoken)):
        return spoken
    # All of it looked like markup ("<speak>"): say what it says.
    letters = "".join(character if character.isalnum() or character in " '" else " " for character in cleaned)
    return " ".join(_apply(_SPEECH, letters).split())


def split_for_speech(text: str, max_chars: int) -> list[str]:
    """`text` made speakable, in pieces of at most `max_chars`, cut between words where possible; none when there is nothing to say."""
    spoken = speakable(text)
    return textwrap.wrap(spoken, max_chars, break_on_hyphens=False) if any(map(str.isalnum, spoken)) else []


def _readable(text: str) -> str:
    """Compatibility forms made plain, digits of any script made ASCII, pictures and control characters dropped."""
    kept = []
    for character in unicodedata.normalize("NFKC", text.translate(_TRANSLATE)):
        category = unicodedata.category(character)
        if category == "Nd":
            kept.append(str(unicodedata.decimal(character)))
        elif character in "\n\t" or category[0] == "Z":
            kept.append("\n" if character == "\n" else " ")
        elif category in ("Cc", "Cf", "Cs", "Co", "Cn", "So", "Sk") and character not in "°^`":
            kept.append("" if category == "Cf" else " ")
        else:
            kept.append(character)
    return "".join(kept)


def _apply(rules: tuple[_Rule, ...], text: str) -> str:
    for pattern, say in rules:
        text = pattern.sub(say, text)
    return text

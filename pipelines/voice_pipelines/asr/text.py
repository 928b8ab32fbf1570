"""Written English as it is said: figures become words, so that typed dialogues can train a recogniser."""

from __future__ import annotations

import re
from functools import lru_cache

from voiceagent.transcript import normalise

_TIME = re.compile(r"\b(\d{1,2}):(\d{2})\b")
_MONEY = re.compile(r"[$£€](\d[\d,]*)(?:\.(\d{2}))?")
_UNITS = {"$": "dollars", "£": "pounds", "€": "euros"}
_ORDINAL = re.compile(r"\b(\d{1,4})(?:st|nd|rd|th)\b")
_DECIMAL = re.compile(r"\b(\d+)\.(\d+)\b")
_NUMBER = re.compile(r"\d[\d,]*")
_SPOKEN_SIGNS = {"%": " percent ", "&": " and ", "+": " plus ", "@": " at "}
_HALF_DAY = re.compile(r"(?<=\d)\s*([ap])\.?\s?m\b\.?|\b([ap])\.m\b\.?")
_DIGIT_STRING = 5
"""From this many figures on a number is said figure by figure: a telephone, card or booking number."""


def spoken_words(text: str) -> list[str]:
    """Words of `text` as a caller would say them, in normal form ("2 lattes at 7:30pm" -> two lattes at seven thirty p m)."""
    # The dictionary knows "pm" as one word; "am" there is the verb.
    text = _HALF_DAY.sub(lambda m: " pm " if "p" in m[0] else " a m ", text.casefold())
    text = re.sub(r"(\d)([^\W\d_])", r"\1 \2", _ORDINAL.sub(lambda m: f" {_ordinal(int(m[1]))} ", text))
    text = _TIME.sub(lambda m: f" {_clock(int(m[1]), int(m[2]))} ", text)
    text = _MONEY.sub(lambda m: f" {_money(m)} ", text)
    text = _DECIMAL.sub(lambda m: f" {_number(m[1])} point {' '.join(map(_number, m[2]))} ", text)
    text = _NUMBER.sub(lambda m: f" {_number(m[0].replace(',', ''))} ", text)
    for sign, word in _SPOKEN_SIGNS.items():
        text = text.replace(sign, word)
    return ["okay" if word == "ok" else word for word in normalise(text).split()]


def _clock(hour: int, minute: int) -> str:
    if minute == 0:
        return _number(str(hour))
    return f"{_number(str(hour))} {'oh ' if minute < 10 else ''}{_number(str(minute))}"


def _money(match: re.Match[str]) -> str:
    amount = f"{_number(match[1].replace(',', ''))} {_UNITS[match[0][0]]}"
    return f"{amount} and {_number(match[2])} cents" if match[2] and match[2] != "00" else amount


@lru_cache(maxsize=4096)
def _number(figures: str) -> str:
    from num2words import num2words

    value = int(figures)
    if len(figures) >= _DIGIT_STRING or (figures.startswith("0") and len(figures) > 1):
        return " ".join(str(num2words(int(figure))) for figure in figures)
    if len(figures) == 4 and 1100 <= value < 2100 and value % 1000 >= 10:
        return str(num2words(value, to="year"))
    return str(num2words(value)).replace("-", " ").replace(",", "")


@lru_cache(maxsize=512)
def _ordinal(value: int) -> str:
    from num2words import num2words

    return str(num2words(value, to="ordinal")).replace("-", " ").replace(",", "")

"""What of a caller's words may stand as a tool's argument. Pure.

An argument is what the caller said or it is nothing: a number, an alternative, a day, a time or a run of words, each with its place, since one
place is one argument. English, as a recogniser writes it: lower case, figures in words.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from dllm.calls import Call, Tool, is_within, number_of, typed_arguments, written_choice
from dllm.errors import CallError

MOST_WORDS = 8
"""Of a run that may be a value: an address, a title, a dictated number."""

Kind: TypeAlias = Literal["choice", "flag", "number", "day", "time", "digits", "address", "name", "sentence", "words"]


@dataclass(frozen=True, slots=True)
class Heard:
    """One turn of the caller's."""

    words: tuple[str, ...]
    asked: str = ""
    """What the agent said before it, in the same writing."""

    @classmethod
    def of(cls, text: str, asked: str = "") -> Heard:
        return cls(tuple(text.split()), asked)

    def without(self, arguments: Mapping[str, str], properties: Mapping[str, Mapping[str, Any]]) -> Heard:
        """The same turn with the words blanked that say a call's arguments, each where it was said first.

        Args:
            properties: Of the tool; an argument that it does not have is looked for word by word.
        """
        words = list(self.words)
        for key, text in arguments.items():
            turn = replace(self, words=tuple(words))
            said = values_of(key, properties[key], [turn]) if key in properties else []
            places = [(value.first, value.last) for value in said if value.text == text] or _places(words, text.split())
            for first, last in places[:1]:
                words[first:last] = ["-"] * (last - first)
        return replace(self, words=tuple(words))


@dataclass(frozen=True, slots=True)
class Value:
    """A value that may be an argument, and the words that say it: of a turn, the first and one past the last."""

    text: str
    turn: int
    first: int
    last: int
    is_sure: bool = False
    """The words leave no doubt: an alternative named in full, a flag by its name, "five nights"."""
    is_told: bool = False
    """The words before it say what it is: "the address is"."""
    is_answer: bool = False
    """It is all that the caller answered to a question."""
    is_other: bool = False
    """It reads like a number, a day or a time, which this argument is not by its name; or "from" stands before it, where "to" should."""

    @property
    def places(self) -> frozenset[tuple[int, int]]:
        return frozenset((self.turn, at) for at in range(self.first, self.last))


def _places(words: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, int]]:
    size = len(wanted)
    return [(at, at + size) for at in range(len(words) - size + 1) if wanted and list(words[at : at + size]) == wanted]


def kind_of(key: str, schema: Mapping[str, Any]) -> Kind:
    """What sort of words an argument is, by its type and, for text, its name."""
    if "enum" in schema:
        return "choice"
    match schema.get("type", "string"):
        case "boolean":
            return "flag"
        case "integer" | "number":
            return "number"
    return next((kind for kind, named in _KINDS.items() if not named.isdisjoint(_parts(key))), "words")


_KINDS: Mapping[Kind, frozenset[str]] = {
    "time": frozenset("time hour clock".split()),
    "day": frozenset("day date arrival departure weekday checkin checkout".split()),
    "digits": frozenset("phone telephone number code plate card id pin zip postcode".split()),
    "address": frozenset("address street".split()),
    "name": frozenset("name person caller customer guest patient who".split()),
    "sentence": frozenset("message note reason comment text problem symptom details description issue request".split()),
}

_CUES: Mapping[str, frozenset[str]] = {
    "from": frozenset({"origin", "from", "start", "pickup", "source", "departure"}),
    "at": frozenset({"pickup", "location", "place", "address", "where"}),
    "to": frozenset({"destination", "to", "target", "goal", "dropoff", "address"}),
}
"""What stands before a place, by the argument's name."""


def values_of(key: str, schema: Mapping[str, Any], turns: Sequence[Heard]) -> list[Value]:
    """All that may be an argument, in the order in which it was said.

    Args:
        schema: Of this argument alone.
        turns: What the caller said, oldest first.
    """
    kind = kind_of(key, schema)
    found: list[Value] = []
    for number, turn in enumerate(turns):
        match kind:
            case "choice":
                found += _choices(schema["enum"], turn, number)
            case "flag":
                found += _flags(key, turn, number)
            case "number":
                found += _numbers(key, schema, turn, number)
            case "day":
                found += _matches(_DAY, turn, number)
            case "time":
                found += [one for one in _matches(_TIME, turn, number) if not _is_counted(one, turn)]
            case "digits":
                found += _digits(turn, number)
            case "address":
                found += [replace(one, is_sure=True) for one in _matches(_ADDRESS, turn, number)] or _runs(
                    turn, number, kind
                )
            case "words" | "name" | "sentence":
                found += _runs(turn, number, kind)
    found = [_with_signs(value, key, kind, turns[value.turn]) for value in found]
    return _uncorrected(found, turns)


def names(word: str, key: str) -> bool:
    """Whether a word is the argument's name, or a part of it, in some form."""
    return any(_is_like(word, part) for part in _parts(key))


def asks_for(key: str, turn: Heard) -> bool:
    """Whether the agent's question before this turn names the argument."""
    return any(names(word, key) for word in turn.asked.split())


def _parts(key: str) -> list[str]:
    return [part for part in re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()) if len(part) > 2]


def _with_signs(value: Value, key: str, kind: Kind, turn: Heard) -> Value:
    """What the words around it tell."""
    before, behind = turn.words[: value.first], turn.words[value.last :]
    is_last = behind[:1] in (("and",), ("but",), ("please",)) or all(word in _NO_EDGE for word in behind)
    is_answer = bool(turn.asked) and is_last and all(word in _NO_EDGE for word in before)
    beside = (*before[-1:], *behind[:1])
    while before and before[-1] in ("the", "a", "an", "my", "our"):
        before = before[:-1]
    cue, parts = before[-1] if before else "", _parts(key)
    is_cued = not _CUES.get(cue, frozenset()).isdisjoint(parts)
    is_named = cue in ("is", "are") and any(names(word, key) for word in before[-3:-1])
    return replace(
        value,
        is_sure=value.is_sure or (kind == "number" and any(names(word, key) for word in beside)),
        is_told=is_cued
        or is_named
        or (kind == "name" and " ".join(before[-2:]) in _NAME_CUES)
        or (is_answer and asks_for(key, turn)),
        is_answer=is_answer,
        is_other=(cue in _CUES and not is_cued and any(not named.isdisjoint(parts) for named in _CUES.values()))
        or (kind in ("words", "name") and like(value.text) is not None),
    )


_NAME_CUES = frozenset({"name is", "this is", "name's", "it's on", "it's for", "is for", "is on", "i am"})


def like(text: str) -> Kind | None:
    """What a run of words reads like, where it is a day, a time or a number."""
    if _DAY.fullmatch(text):
        return "day"
    if number_of(text) is not None:
        return "number"
    return "time" if _TIME.fullmatch(text) else None


_CORRECTION = re.compile(r"(?:no sorry|no wait|sorry|i mean|actually|make it|make that|instead|wait|rather)\b")
_MOST_CORRECTING = 2
"""Words of the longest of them."""


def _uncorrected(values: Sequence[Value], turns: Sequence[Heard]) -> list[Value]:
    """Those that the caller did not take back for another one, said right behind the correction. Once over the words: there may be thousands of runs.

    "Two nights, actually for three people" takes nothing back: the two are nights by name.
    """
    kept: list[Value] = []
    for number, turn in enumerate(turns):
        here = [value for value in values if value.turn == number]
        ends = _correction_ends(turn.words)
        begun: dict[int, list[Value]] = {}
        for value in here:
            begun.setdefault(value.first, []).append(value)
        for value in here:
            at = ends[value.last]
            instead = list(begun.get(at, ()))
            while at < len(turn.words) and turn.words[at] in _BEFORE_CORRECTED:
                at += 1
                instead += begun.get(at, ())
            if not any(other.text != value.text and (other.is_sure or not value.is_sure) for other in instead):
                kept.append(value)
    return kept


_BEFORE_CORRECTED = frozenset("a an the for on at to it it's its that's under".split())


def _correction_ends(words: Sequence[str]) -> list[int]:
    """For each place where the first correction from there on ends, with those that follow it at once; behind all words where there is none."""
    ends = [len(words)] * (len(words) + 1)
    begins: dict[int, int] = {}
    for at in range(len(words) - 1, -1, -1):
        found = _CORRECTION.match(" ".join(words[at : at + _MOST_CORRECTING]))
        if found:
            end = at + len(found[0].split())
            begins[at] = begins.get(end, end)
        ends[at] = begins.get(at, ends[at + 1])
    return ends


# --- alternatives, yes and no -----------------------------------------------------------------------------------------


def _choices(choices: Sequence[object], turn: Heard, number: int) -> Iterator[Value]:
    """Alternatives whose words were said together, in any order and form; numbers as they are said."""
    stems = [stem(word) for word in turn.words]
    for choice in choices:
        text = written_choice(choice)
        wanted = [stem(word) for word in re.findall(r"[a-z0-9']+", text.casefold())]
        if isinstance(choice, int | float) and not isinstance(choice, bool):
            tool = Tool("any", "", {"properties": {"any": {"type": "number"}}})
            for value in _numbers("any", tool.properties["any"], turn, number):
                if number_of(value.text) == choice:
                    yield replace(value, is_sure=True)
            continue
        size = len(wanted)
        spread = size if size == 1 else size + 2
        for first in range(len(stems)):
            # The shortest stretch from here on that holds them all, with no more than two words between them.
            ends = (
                last
                for last in range(first + size, min(first + spread, len(stems)) + 1)
                if set(wanted) <= set(stems[first:last])
            )
            last = next(ends, None) if wanted and stems[first] in wanted else None
            if last is not None and not _is_denied(turn.words, first):
                yield Value(text, number, first, last, is_sure=True)


def _flags(key: str, turn: Heard, number: int) -> Iterator[Value]:
    """Yes or no where the caller names the thing, or answers the question that names it."""
    said: Value | None = None
    for at, word in enumerate(turn.words):
        if names(word, key):
            if _is_denied(turn.words, at):
                said = Value("no", number, at, at + 1, is_sure=True)
            elif _NO.isdisjoint(turn.words[max(at - 4, 0) : at]):
                said = Value("yes", number, at, at + 1, is_sure=True)
    if said is None and asks_for(key, turn):
        said = _answer(turn, number)
    if said is not None:
        yield said


def _answer(turn: Heard, number: int) -> Value | None:
    """Yes or no by how the turn begins: the last of them, where all of it is of that kind, as in "of course not"; and none where it is "yes no sugar"."""
    run = list(itertools.takewhile(lambda word: word in _YES | _NO | _BESIDE_ANSWERS, turn.words))
    told = ["yes" if word in _YES else "no" for word in run if word not in _BESIDE_ANSWERS]
    if not told or (len(set(told)) > 1 and len(run) < len(turn.words)):
        return None
    return Value(told[-1], number, 0, len(run), is_sure=True)


def _is_denied(words: Sequence[str], at: int) -> bool:
    """Whether what is said here is said not to be wanted: "no soup", "don't want any soup", "anything but the soup"."""
    before = at
    while before and words[before - 1] in _BETWEEN:
        before -= 1
    if before > 1 and words[before - 1] == "but":
        return words[before - 2] in ("anything", "everything", "all")
    return before > 0 and words[before - 1] in _DENYING


_BETWEEN = frozenset("a an the any my our that this want need like have for with".split())
_DENYING = frozenset("no not without don't doesn't never except".split())
_BESIDE_ANSWERS = frozenset("thanks thank you course".split())
_NO = frozenset("no not nope without don't doesn't never nothing".split())
_YES = frozenset("yes yeah yep sure please right exactly of absolutely definitely okay ok".split())


def stem(word: str) -> str:
    for end in ("ing", "ed", "es", "s"):
        if word.endswith(end) and len(word) - len(end) >= 3:
            return word[: -len(end)]
    return word


def _is_like(word: str, name: str) -> bool:
    """Whether a word is this one in another form: deliver, delivery."""
    size = max(min(len(word), len(name)) - 1, 4)
    return word == name or (len(word) >= 4 <= len(name) and word[:size] == name[:size])


# --- numbers ------------------------------------------------------------------------------------------------------------


def _numbers(key: str, schema: Mapping[str, Any], turn: Heard, number: int) -> Iterator[Value]:
    tool = Tool("any", "", {"properties": {key: dict(schema)}})
    taken = {
        at
        for value in (*_matches(_CLOCK, turn, number), *_matches(_DAY, turn, number))
        for at in range(value.first, value.last)
    }
    at, words = 0, turn.words
    while at < len(words):
        ends = range(min(at + _MOST_FIGURES, len(words)), at, -1)
        last = next((end for end in ends if _is_number(words[at:end]) and taken.isdisjoint(range(at, end))), at)
        if last > at and not (last == at + 1 and _is_pronoun(words, at)):
            text = " ".join(words[at:last])
            try:
                if is_within(typed_arguments(Call("any", {key: text}), tool)[key], schema):
                    yield Value(text, number, at, last)
            except CallError:
                pass
        at = max(last, at + 1)


_MOST_FIGURES = 9
"""Words of a number."""
_NO_NUMBER_EDGE = frozenset("a an of us and people persons dollars dollar euros euro pounds pound percent oh".split())


def _is_pronoun(words: Sequence[str], at: int) -> bool:
    """Whether "one" is a thing and no number: "the small one", "one of your cars"."""
    return words[at] == "one" and (
        "".join(words[at + 1 : at + 2]) == "of"
        or (at > 0 and words[at - 1] in ("no", "any", "some", "every", "each", "which"))
        or (at > 1 and at + 1 == len(words) and words[at - 2] in ("the", "that", "this", "a"))
    )


def _is_number(words: Sequence[str]) -> bool:
    if words[-1] in _NO_NUMBER_EDGE or (words[0] in _NO_NUMBER_EDGE and len(words) == 1):
        return False
    return words[0] not in ("of", "us", "and") and number_of(" ".join(words)) is not None


def words_of_number(number: float, text: str) -> str | None:
    """The words of a text that say a number, where it says it last."""
    words = text.split()
    for first in range(len(words) - 1, -1, -1):
        for last in range(min(first + _MOST_FIGURES, len(words)), first, -1):
            said = " ".join(words[first:last])
            if _is_number(words[first:last]) and number_of(said) == number:
                return said
    return None


_ONES = "(?:zero|oh|one|two|three|four|five|six|seven|eight|nine)"
_DIGITS = re.compile(
    rf"\b(?:(?:[a-z] )*(?:(?:double )?{_ONES}\b ?|[a-z]\b ?|(?:ten|eleven|twelve|\w+teen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)\b ?)+)"
)


def _digits(turn: Heard, number: int) -> Iterator[Value]:
    """Rows of figures and single letters, at least two words and a figure among them."""
    for value in _matches(_DIGITS, turn, number):
        words = list(turn.words[value.first : value.last])
        first = value.first
        while words and words[0] in ("a", "i"):
            words, first = words[1:], first + 1
        if len(words) > 1 and any(number_of(word) is not None for word in words):
            yield Value(" ".join(words), number, first, value.last)


# --- days and times -----------------------------------------------------------------------------------------------------

_WEEKDAY = "(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday)"
_MONTH = "(?:january|february|march|april|may|june|july|august|september|october|november|december)"
_ORDINAL = (
    "(?:(?:twenty |thirty )?(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth)|tenth|eleventh|twelfth|thirteenth|fourteenth"
    "|fifteenth|sixteenth|seventeenth|eighteenth|nineteenth|twentieth|thirtieth)"
)
_PART = "(?: (?:morning|afternoon|evening|night|noon))"
_DAY = re.compile(
    rf"\b(?:(?:next |this |coming )?{_WEEKDAY}(?: the {_ORDINAL}(?: of {_MONTH})?)?{_PART}?|(?:the )?day after tomorrow|(?:today|tomorrow){_PART}?|tonight"
    rf"|this{_PART}|(?:the )?{_ORDINAL} of {_MONTH}|{_MONTH} (?:the )?{_ORDINAL}|the {_ORDINAL}|(?:next|this) (?:week|weekend|month)|weekend)\b"
)
_HOUR = "(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)"
_MINUTE = "(?:(?:oh )?(?:one|two|three|four|five|six|seven|eight|nine)|ten|fifteen|twenty(?: five)?|thirty(?: five)?|forty(?: five)?|fifty(?: five)?)"
_HALF = "(?: o'clock)?(?: (?:[ap] m|in the (?:morning|afternoon|evening)))?"
_TIME = re.compile(
    rf"\b(?:(?:half|(?:a )?quarter|(?:five|ten|twenty)(?: minutes)?) (?:past|to|after) {_HOUR}{_HALF}|{_HOUR}(?: {_MINUTE})?{_HALF}|noon|midnight|midday"
    rf"|(?:in the )?(?:morning|afternoon|evening))\b"
)
_CLOCK = re.compile(
    rf"\b(?:(?:half|quarter|(?:five|ten|twenty)(?: minutes)?) (?:past|to|after) {_HOUR}|(?:at|around|about|by|after|before) {_HOUR}(?: {_MINUTE})?"
    rf"(?! (?:people|persons|street|road|hundred))|{_HOUR}(?: {_MINUTE})?(?: o'clock| [ap] m)|{_HOUR} (?:fifteen|thirty|forty five))\b"
)
"""A time that nobody takes for a number."""


def _matches(pattern: re.Pattern[str], turn: Heard, number: int) -> Iterator[Value]:
    text = " ".join(turn.words)
    for found in pattern.finditer(text):
        said = found[0].strip()
        if said:
            first = len(text[: found.start()].split())
            yield Value(said, number, first, first + len(said.split()))


def _is_counted(time: Value, turn: Heard) -> bool:
    """Whether what reads like an hour counts something: "three people", "a table for four"."""
    if number_of(time.text) is None:
        return False
    before, behind = turn.words[: time.first][-1:], turn.words[time.last :][:1]
    is_day = any(day.first == time.last for day in _matches(_DAY, turn, 0))
    return before == ("for",) or (bool(behind) and behind[0] not in _NO_EDGE and not is_day)


# --- runs of words --------------------------------------------------------------------------------------------------------

_NO_EDGE = frozenset(
    "- a all am an and any are as at be been both but by can come could did do does for from give going good had has have hello her here hi him his how "
    "i i'd i'll i'm i've if in into is it it's its just let like make may me mine must my need no of off oh on or our ours out please put "
    "said say she should so some sorry take than thank thanks that that's the their them then there there's they this those to too uh "
    "um until up us wanna want was we we'd we'll we're we've well were what what's when where which who will with would yeah yes you "
    "your".split()
)
"""Words with which no value begins or ends: without them there are a quarter as many runs."""


_STREET = (
    "(?:street|road|lane|avenue|square|court|drive|close|way|place|park|alley|boulevard|crescent|terrace|row|hill)"
)
_FIGURES = "(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\\w+teen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|and)"
_ADDRESS = re.compile(rf"\b{_FIGURES}(?: {_FIGURES})* (?:[a-z']+ ){{1,2}}?{_STREET}\b")


def _runs(turn: Heard, number: int, kind: Kind) -> Iterator[Value]:
    words = turn.words
    phrases = [range(one.first, one.last) for pattern in (_DAY, _CLOCK) for one in _matches(pattern, turn, number)]
    if kind == "sentence":
        phrases = []
    last_inside = max((at for at, word in enumerate(words) if word not in _NO_EDGE), default=-1)
    for first, word in enumerate(words):
        if word in _NO_EDGE or _is_joined(words, first):
            continue
        for last in range(first + 1, min(first + MOST_WORDS, last_inside + 1) + 1):
            if words[last - 1] in _NO_EDGE or (
                last < len(words) and words[last] in ("and", "of") and _goes_on(words, last + 1, 1)
            ):
                continue
            if any(
                first < part.stop and part.start < last and (first, last) != (part.start, part.stop) for part in phrases
            ):
                continue
            yield Value(" ".join(words[first:last]), number, first, last)


def _is_joined(words: Sequence[str], first: int) -> bool:
    """Whether "and" or "of" joins these words to others before them."""
    at = first - 1
    if at >= 0 and words[at] in ("the", "a", "an"):
        at -= 1
    return at >= 0 and words[at] in ("and", "of") and _goes_on(words, at - 1, -1)


def _goes_on(words: Sequence[str], at: int, step: int) -> bool:
    """Whether another word of the same thing stands there, an article aside."""
    if 0 <= at < len(words) and words[at] in ("the", "a", "an"):
        at += step
    return 0 <= at < len(words) and words[at] not in _NO_EDGE

"""Tools as the built-in family reads and calls them: one line of text each way.

A system turn ends with the tools that may be called, and an agent's turn that begins with the token `<call>` is a call:

    Tools: [book_table; people: integer; day; size?: small|large] books a table. [opening_hours] tells the opening hours.
    <call> book_table; people: four; day: friday

A type is written unless it is a string, `?` marks what may be left out. A value is in the caller's own words and holds no ";", because
a small model copies words more reliably than it converts them; `typed_arguments` makes them what the schema asks for. One of several values
that holds ; | [ or ] is told and called with , / ( or ) instead. What came of a
call is a note: `book_table: table: 12; code: K72`, or `book_table failed: no table is free`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dllm.errors import CallError, ConfigError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KEY = re.compile(r"[^\s;:?|\[\]]{1,64}")
_NO_PLACE = str.maketrans({";": ",", "|": "/", "[": "(", "]": ")"})
"""What separates parts of a declaration or a call cannot stand in a value that is one of several."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters` is a JSON schema of one flat object (OpenAI's function description).

    Raises:
        ConfigError: If a name cannot be written, or the parameters are not the schema of an object.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError("tool name", self.name, "at most 64 letters, digits, underscores, dots and dashes")
        properties = self.parameters.get("properties", {})
        if not isinstance(properties, Mapping) or self.parameters.get("type", "object") != "object":
            raise ConfigError(f"{self.name}.parameters", self.parameters, "the JSON schema of an object")
        for key, schema in properties.items():
            where = f"{self.name}.parameters.{key}"
            if not _KEY.fullmatch(key):
                raise ConfigError(where, key, "a name without spaces and ; : ? | [ ]")
            if not isinstance(schema, Mapping):
                raise ConfigError(where, schema, "a JSON schema")
            choices = schema.get("enum")
            if choices is not None and (not isinstance(choices, Sequence) or isinstance(choices, str) or not choices):
                raise ConfigError(f"{where}.enum", choices, "a list of values")
            told = {str(choice) for choice in choices or () if written_choice(choice)}
            if choices is not None and not len({written_choice(choice) for choice in told}) == len(told) > 0:
                expected = "values that differ in more than blanks and ; , | / [ ] ( ), one of them not empty"
                raise ConfigError(f"{where}.enum", choices, expected)
        required = self.parameters.get("required", [])
        names = list(properties)  # a list is asked, as JSON may hold what no set could
        if not isinstance(required, Sequence) or isinstance(required, str) or any(key not in names for key in required):
            raise ConfigError(f"{self.name}.parameters.required", required, f"names among {', '.join(properties)}")

    @property
    def properties(self) -> Mapping[str, Mapping[str, Any]]:
        found: Mapping[str, Mapping[str, Any]] = self.parameters.get("properties", {})
        return found

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(self.parameters.get("required", ()))

    @property
    def is_flat(self) -> bool:
        """Whether every argument is a text, a number, a yes or no, or one of several values: what a call can write."""
        return all(
            "enum" in schema or schema.get("type", "string") in ("string", "integer", "number", "boolean")
            for schema in self.properties.values()
        )

    @classmethod
    def from_json(cls, body: object) -> Tool:
        """A function description, bare or wrapped as `{"type": "function", "function": {...}}`.

        Raises:
            ConfigError: If it is neither.
        """
        if isinstance(body, Mapping) and isinstance(body.get("function"), Mapping):
            body = body["function"]
        if not isinstance(body, Mapping) or not isinstance(body.get("name"), str):
            raise ConfigError("tool", body, 'an object with a "name"')
        description, parameters = body.get("description") or "", body.get("parameters") or {}
        if not isinstance(description, str) or not isinstance(parameters, Mapping):
            raise ConfigError(body["name"], body, 'a string "description" and an object "parameters"')
        return cls(body["name"], description, parameters)


@dataclass(frozen=True, slots=True)
class Call:
    """A call as the model wrote it: argument values are words, not yet of their type."""

    name: str
    arguments: Mapping[str, str] = field(default_factory=dict)


def declare(tools: Sequence[Tool]) -> str:
    """What the system turn ends with; empty without tools."""
    if not tools:
        return ""
    return "Tools: " + " ".join(_declared(tool) for tool in tools)


def _declared(tool: Tool) -> str:
    parts = [tool.name]
    for key, schema in tool.properties.items():
        kind = "|".join(filter(None, map(written_choice, schema["enum"]))) if "enum" in schema else _kind(schema)
        mark = "" if key in tool.required else "?"
        parts.append(f"{key}{mark}" + ("" if kind == "string" else f": {kind}"))
    description = " ".join(tool.description.split()).rstrip(".")
    return f"[{'; '.join(parts)}]" + (f" {description}." if description else "")


def written_choice(choice: object) -> str:
    """One of several values, as it can be told and called."""
    return " ".join(str(choice).translate(_NO_PLACE).split())


def _kind(schema: Mapping[str, Any]) -> str:
    """A value's type; of several, as in `["string", "null"]`, the first that is something."""
    kind = schema.get("type", "string")
    if isinstance(kind, Sequence) and not isinstance(kind, str):
        kind = next((one for one in kind if one != "null"), "string")
    return str(kind)


def with_tools(system: str, tools: Sequence[Tool]) -> str:
    """A system turn's text with its tools at the end."""
    return " ".join(part for part in (system.strip(), declare(tools)) if part)


def write_call(call: Call) -> str:
    """A call's text, without the `<call>` token.

    Raises:
        CallError: If a value cannot be written: a semicolon has no place in it.
    """
    for key, value in call.arguments.items():
        if ";" in value or not value.strip():
            raise CallError(call.name, f"{key} = {value!r}: expected words without a semicolon")
    return "; ".join([call.name, *(f"{key}: {' '.join(value.split())}" for key, value in call.arguments.items())])


def read_call(text: str) -> Call:
    """The call that a text stands for. `read_call(write_call(call)) == call`, white space runs aside.

    Raises:
        CallError: Saying what is not as it should be.
    """
    name, *rest = (part.strip() for part in text.split(";"))
    if not _NAME.fullmatch(name):
        raise CallError(name[:64], "expected the name of a tool first")
    arguments: dict[str, str] = {}
    for part in rest:
        key, colon, value = (piece.strip() for piece in part.partition(":"))
        if not colon or not _KEY.fullmatch(key) or not value:
            raise CallError(name, f"{part!r}: expected `key: value`")
        if key in arguments:
            raise CallError(name, f"{key} is given twice", f"the {_said(key)} was given twice")
        arguments[key] = " ".join(value.split())
    return Call(name, arguments)


def typed_arguments(call: Call, tool: Tool) -> dict[str, Any]:
    """Arguments of the types that the tool's schema asks for: "four" for an integer is 4, "twelve fifty" for a number 12.5.

    Raises:
        CallError: If an argument is unknown, missing, or not of its type.
    """
    unknown = [key for key in call.arguments if key not in tool.properties]
    if unknown:
        problem = f"unknown {', '.join(unknown)}; expected {', '.join(tool.properties) or 'nothing'}"
        raise CallError(call.name, problem, f"the {_said(unknown[0])} was not asked for")
    missing = [key for key in tool.required if key not in call.arguments]
    if missing:
        raise CallError(
            call.name, f"{', '.join(missing)} is missing", f"the {' and the '.join(map(_said, missing))} is missing"
        )
    return {key: _typed(call.name, key, value, tool.properties[key]) for key, value in call.arguments.items()}


def _typed(name: str, key: str, value: str, schema: Mapping[str, Any]) -> Any:
    number = number_of(value)
    if "enum" in schema:
        for is_it in (
            lambda choice: str(choice) == value,
            lambda choice: written_choice(choice).casefold() == value.translate(_NO_PLACE).casefold(),
            lambda choice: number is not None and number == choice,
        ):
            if found := [choice for choice in schema["enum"] if is_it(choice)]:
                return found[0]
        choices = [str(choice) for choice in schema["enum"]]
        problem = f"{key} = {value!r}: expected one of {', '.join(choices)}"
        raise CallError(name, problem, f"the {_said(key)} must be {' or '.join(map(_said, choices))}")
    kind = _kind(schema)
    if kind == "string":
        return value
    if kind == "boolean":
        if value.casefold() in ("yes", "true", "yeah", "please"):
            return True
        if value.casefold() in ("no", "false", "nope"):
            return False
        raise CallError(name, f"{key} = {value!r}: expected yes or no", f"the {_said(key)} must be yes or no")
    if kind not in ("integer", "number"):
        try:
            return json.loads(value)
        except ValueError as error:
            problem = f"{key} = {value!r}: expected {kind} as JSON"
            raise CallError(name, problem, f"the {_said(key)} was not clear") from error
    if number is None or (kind == "integer" and number != int(number)):
        wanted = "a whole number" if kind == "integer" else "a number"
        raise CallError(name, f"{key} = {value!r}: expected {wanted}", f"the {_said(key)} must be {wanted}")
    return int(number) if kind == "integer" else float(number)


def is_within(value: object, schema: Mapping[str, Any]) -> bool:
    """Whether a typed argument keeps to the bounds of its schema: of a number its size, of a text its length."""
    if isinstance(value, str):
        low, high = schema.get("minLength"), schema.get("maxLength")
        return not (_is_below(len(value), low) or _is_below(high, len(value)))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    least, most = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    return not (
        _is_below(value, schema.get("minimum"))
        or _is_below(schema.get("maximum"), value)
        or (_is_number(least) and not _is_below(least, value))
        or (_is_number(most) and not _is_below(value, most))
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_below(one: Any, other: Any) -> bool:
    """Whether both are numbers and one is less."""
    return _is_number(one) and _is_number(other) and bool(one < other)


def _said(name: str) -> str:
    """A name as a caller may hear it."""
    return " ".join(re.sub(r"[_-]", " ", name).split())


def result_note(name: str, result: object) -> str:
    """The note that tells the model what a call gave: its text, or `key: value` pairs of an object."""
    return f"{name}: {_told(result)}"


def output_note(name: str, output: str) -> str:
    """The note for what a client's tool gave: text, or JSON of an object or a list. `{"error": "…"}` alone is a failure."""
    try:
        value: object = json.loads(output)
        if isinstance(value, Mapping) and list(value) == ["error"] and isinstance(value["error"], str):
            note = failure_note(name, value["error"])
        else:
            note = result_note(name, value if isinstance(value, Mapping | list) else output)
        note.encode("utf-8")  # JSON may hold half a character, which no prompt takes.
        return note
    except (ValueError, RecursionError):
        return result_note(name, output)


def failure_note(name: str, reason: str) -> str:
    """The note that tells the model that a call failed."""
    return f"{name} failed: {' '.join(reason.split()) or 'no reason given'}"


def _told(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{str(key).replace('_', ' ')}: {_told(entry)}" for key, entry in value.items()) or "done"
    if isinstance(value, str):
        return " ".join(value.split()) or "done"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Iterable):
        return ", ".join(_told(entry) for entry in value) or "none"
    return "done" if value is None else str(value)


# --- numbers as they are said -----------------------------------------------------------------------------------------

_UNITS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen".split()
    )
} | {"oh": 0, "a": 1, "an": 1, "couple": 2, "dozen": 12}
_TENS = {
    word: 10 * (number + 2)
    for number, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split())
}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
_MOST_SAID = 200
"""Characters; what is longer is no number that anybody said, and might be more than a float holds."""
_FILLERS = frozenset("dollars dollar euros euro pounds pound people persons of us percent and".split())


def number_of(text: str) -> int | float | None:
    """The number that words or figures say, or None. Rows of figures are read as dictated: "one two five" is 125."""
    plain = text.casefold().strip()
    if len(plain) > _MOST_SAID:
        return None
    for sign in ("minus ", "negative ", "-"):
        if plain.startswith(sign):
            size = _size(plain.removeprefix(sign))
            return None if size is None else -size
    return _size(plain)


def _size(text: str) -> int | float | None:
    # A hyphen joins words ("twenty-five"); between figures it may be a range, which is no number.
    plain = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text.replace(",", "").lstrip("$"))
    words = [word for word in plain.split() if word not in _FILLERS]
    if len(words) > 1 and words[0] in ("a", "an"):
        del words[0]
    if not words:
        return None
    if len(words) == 1 and re.fullmatch(r"\d+\.\d+", words[0]):
        return float(words[0])
    if "point" in words:
        at = words.index("point")
        whole, digits = _whole(words[:at]) if at else 0, words[at + 1 :]
        if whole is None or not digits or not all(_UNITS.get(digit, 10) < 10 for digit in digits):
            return None
        return float(f"{whole}.{''.join(str(_UNITS[digit]) for digit in digits)}")
    if words[-1] in ("cents", "cent"):
        return _dollars_and_cents(words[:-1])
    if all(word.isdecimal() for word in words):
        # "20 5" may be 25 as well as 205: nobody knows, so it is no number.
        is_sum = any(one.endswith("0") and len(two) < len(one) for one, two in itertools.pairwise(words))
        return None if is_sum else int("".join(words))
    return _whole(words)


def _dollars_and_cents(words: Sequence[str]) -> float | None:
    """ "twelve fifty" of "twelve dollars and fifty cents": the last two-digit group is cents."""
    for at in range(1, len(words)):
        whole, cents = _whole(words[:at]), _whole(words[at:])
        if whole is not None and cents is not None and cents < 100:
            return whole + cents / 100
    cents = _whole(words)
    return None if cents is None else cents / 100


def _whole(words: Sequence[str]) -> int | None:
    if len(words) > 1 and all(_UNITS.get(word, 10) < 10 for word in words):
        return int("".join(str(_UNITS[word]) for word in words))
    total, current, last = 0, 0, 10**9
    for word in words:
        if word in _SCALES:
            current = max(current, 1) * _SCALES[word]
            if word != "hundred":
                total, current = total + current, 0
            last = _SCALES[word]
        elif word in _TENS and last >= 100:
            current, last = current + _TENS[word], 10
        elif word in _UNITS and (last >= 100 or (last == 10 and 0 < _UNITS[word] < 10)):
            current, last = current + _UNITS[word], 1
        elif word.isdecimal() and last >= 100:
            current, last = current + int(word), 1
        else:
            return None
    return total + current

"""Reading JSON that a stranger wrote: every access is checked, and every complaint names the path of the field.

Strings come out without lone surrogates (JSON may spell them, UTF-8 cannot carry them), numbers are finite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from voiceagent.errors import ProtocolError

Json: TypeAlias = dict[str, object]

INVALID_JSON = "invalid_json"
"""Code of the error for a message that is not a JSON object at all."""
MAX_TEXT_CHARS = 64 * 1024
"""Of one text for the model: a message, instructions, what a tool said. All callers wait while the agent's notes are made of it and it is turned
to tokens."""
MAX_DEPTH = 100
"""Schemas of tools and arguments of calls nest no deeper: they are walked by functions that call themselves."""


def parse_object(text: str) -> Json:
    """The JSON object in `text`.

    Raises:
        ProtocolError: If it is not JSON (NaN and infinities are not), nests too deeply, or is not an object.
    """
    try:
        value: object = _decoder().decode(text)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise ProtocolError(INVALID_JSON, f"The message is not valid JSON: {reason[:200]}.") from error
    if not isinstance(value, dict):
        raise ProtocolError(INVALID_JSON, f"The message must be a JSON object, got {_kind(value)}.")
    return value


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object and where it sits in the message (`path` is empty for the message itself).

    Readers return None for a key that is absent or null; `has` tells the two apart where null means something. All raise
    `ProtocolError` with code `invalid_type`, `invalid_value`, `missing_required_parameter` or `unknown_parameter`.
    """

    data: Mapping[str, object]
    path: str = ""

    def param(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        return key in self.data

    def only(self, known: Sequence[str]) -> None:
        """Refuse any other key: in a table of ours it is a slip of the pen, and what it meant would never happen."""
        for key in self.data:
            if key not in known:
                param = self.param(clean_text(key)[:100])
                raise ProtocolError(
                    "unknown_parameter", f"Unknown parameter: '{param}'; known are {', '.join(known)}.", param=param
                )

    def string(self, key: str) -> str | None:
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._wrong_type(key, "a string")
        return clean_text(value)

    def required_string(self, key: str) -> str:
        return self._required(key, self.string(key))

    def text(self, key: str) -> str | None:
        """What the model reads: at most `MAX_TEXT_CHARS`."""
        value = self.string(key)
        if value is not None and len(value) > MAX_TEXT_CHARS:
            raise self.invalid(key, f"at most {MAX_TEXT_CHARS} characters of text")
        return value

    def required_text(self, key: str) -> str:
        return self._required(key, self.text(key))

    def _required(self, key: str, value: str | None) -> str:
        if value is None:
            raise ProtocolError(
                "missing_required_parameter",
                f"Missing required parameter: '{self.param(key)}'.",
                param=self.param(key),
            )
        return value

    def choice(self, key: str, allowed: Sequence[str]) -> str | None:
        value = self.string(key)
        if value is not None and value not in allowed:
            raise self.invalid(key, "one of " + ", ".join(allowed))
        return value

    def boolean(self, key: str) -> bool | None:
        value = self.data.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong_type(key, "true or false")
        return value

    def number(self, key: str, low: float, high: float) -> float | None:
        value = self.data.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong_type(key, "a number")
        # Compared before the conversion: an integer of a thousand digits does not fit a float.
        if not low <= value <= high:
            raise self.invalid(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def integer(self, key: str, low: int, high: int) -> int | None:
        value = self.number(key, low, high)
        if value is None:
            return None
        if value != int(value):
            raise self.invalid(key, "a whole number")
        return int(value)

    def child(self, key: str) -> Fields | None:
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong_type(key, "an object")
        return Fields(value, self.param(key))

    def required_child(self, key: str) -> Fields:
        value = self.child(key)
        if value is None:
            raise ProtocolError(
                "missing_required_parameter",
                f"Missing required parameter: '{self.param(key)}'.",
                param=self.param(key),
            )
        return value

    def children(self, key: str) -> tuple[Fields, ...] | None:
        """The objects of a list."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self._wrong_type(key, "a list")
        found = []
        for index, element in enumerate(value):
            path = f"{self.param(key)}[{index}]"
            if not isinstance(element, dict):
                raise ProtocolError(
                    "invalid_type", f"Invalid type for '{path}': expected an object, got {_kind(element)}.", param=path
                )
            found.append(Fields(element, path))
        return tuple(found)

    def strings(self, key: str) -> tuple[str, ...] | None:
        """The strings of a list."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self._wrong_type(key, "a list of strings")
        texts = [clean_text(element) for element in value if isinstance(element, str)]
        if len(texts) != len(value):
            raise self._wrong_type(key, "a list of strings")
        return tuple(texts)

    def invalid(self, key: str, expected: str) -> ProtocolError:
        """The error for a value of the right type that is not acceptable."""
        shown = json.dumps(self.data.get(key), default=repr)[:80]
        return ProtocolError(
            "invalid_value",
            f"Invalid value for '{self.param(key)}': {shown}. Expected {expected}.",
            param=self.param(key),
        )

    def _wrong_type(self, key: str, expected: str) -> ProtocolError:
        return ProtocolError(
            "invalid_type",
            f"Invalid type for '{self.param(key)}': expected {expected}, got {_kind(self.data.get(key))}.",
            param=self.param(key),
        )


def clean_text(text: str) -> str:
    """`text` with lone surrogates replaced, so that it can be encoded as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if not text.isascii() else text


def clean_json(value: object, depth: int = 0) -> object:
    """A JSON value whose texts and keys are `clean_text`.

    Raises:
        ProtocolError: If it nests more than `MAX_DEPTH` deep.
    """
    if depth > MAX_DEPTH:
        raise ProtocolError(INVALID_JSON, f"The message is not valid JSON: a value nests more than {MAX_DEPTH} deep.")
    match value:
        case str():
            return clean_text(value)
        case list():
            return [clean_json(entry, depth + 1) for entry in value]
        case dict():
            return {clean_text(key): clean_json(entry, depth + 1) for key, entry in value.items()}
        case _:
            return value


@cache
def _decoder() -> json.JSONDecoder:
    """Made once: `json.loads` with options of its own makes one for every message, which takes as long as the message."""
    return json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite_float)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is out of range")
    return value


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"

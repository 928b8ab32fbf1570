"""Typed values out of JSON: each reader says what it expected when it finds something else. `null` is as good as absent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from dllm.server.problems import ApiError, wrong


def load_json(raw: bytes) -> Fields:
    """The object that a request's body holds.

    Raises:
        ApiError: If it is not JSON, or not an object.
    """

    def refuse(name: str) -> float:
        raise ValueError(f"{name} is no JSON number")

    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"the body is not JSON: {reason}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is {json_name(body)}, expected an object", code="invalid_json")
    return Fields(body)


def json_name(value: object) -> str:
    """What JSON calls a value's type."""
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
            return "an array"
        case _:
            return "an object"


class Fields:
    """One JSON object.

    Args:
        body: The object.
        path: Where it stands in the request; empty for the whole.
    """

    def __init__(self, body: dict[str, Any], path: str = "") -> None:
        self.body, self.path = body, path

    def where(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def get(self, name: str) -> Any:
        return self.body.get(name)

    def has(self, name: str) -> bool:
        return self.body.get(name) is not None

    def text(self, name: str) -> str | None:
        value = self.get(name)
        return None if value is None else as_text(value, self.where(name))

    def required_text(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise wrong(self.where(name), "a string", None)
        return value

    def flag(self, name: str) -> bool:
        """False when absent."""
        value = self.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise wrong(self.where(name), "true or false", value)
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.get(name)
        if value is None:
            return None
        return as_number(value, self.where(name), low, high)

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        return as_integer(value, self.where(name), low, high)

    def choice(self, name: str, known: tuple[str, ...]) -> str | None:
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or value not in known:
            raise wrong(self.where(name), f"one of {', '.join(known)}", value)
        return value

    def object(self, name: str) -> Fields | None:
        value = self.get(name)
        return None if value is None else as_object(value, self.where(name))

    def items(self, name: str) -> Iterator[tuple[Any, str]]:
        """The entries of an array with their paths; none when absent."""
        value = self.get(name)
        if value is None:
            return
        if not isinstance(value, list):
            raise wrong(self.where(name), "an array", value)
        for index, entry in enumerate(value):
            yield entry, f"{self.where(name)}[{index}]"


def as_object(value: object, path: str) -> Fields:
    if not isinstance(value, dict):
        raise wrong(path, "an object", value)
    return Fields(value, path)


def as_text(value: object, path: str) -> str:
    """Text that can be written as UTF-8: JSON may hold halves of characters."""
    if not isinstance(value, str):
        raise wrong(path, "a string", value)
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise ApiError(400, f"{path}: expected text without lone surrogates", param=path)
    return value


def as_number(value: object, path: str, low: float, high: float) -> float:
    expected = f"a number from {low:g} to {high:g}" if math.isfinite(high) else f"a number of at least {low:g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise wrong(path, expected, value)
    return float(value)


def as_integer(value: object, path: str, low: int, high: int) -> int:
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not is_whole or not low <= value <= high:  # type: ignore[operator]
        raise wrong(path, f"a whole number from {low} to {high}", value)
    return int(value)  # type: ignore[call-overload, no-any-return]

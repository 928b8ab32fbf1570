"""Values of a configuration: text and TOML in, typed Python out. Knows types, not keys."""

from __future__ import annotations

import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Layer: TypeAlias = Mapping[str, object]
"""A nested table as TOML gives it; its leaves may be `Unparsed`."""


class Unparsed(str):
    """Text from the environment or the command line, whose type the key decides."""

    __slots__ = ()


def convert(value: object, kind: Any) -> object:
    """`value` as `kind`. A float takes an integer, and `Unparsed` text is read; nothing else changes its type. `object` takes anything.

    Raises:
        TypeError: If it is of another type, or a float is not finite.
        ValueError: If text is not a TOML value, or a number of thousands of digits.
        OverflowError: If a float is to be larger than any is.
        RecursionError: If it nests too deeply.
    """
    if kind is object:
        return parse_free(value)
    return _as(_from_text(value, kind) if isinstance(value, Unparsed) else value, kind)


def _as(value: object, kind: Any) -> object:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None or value == "none":
            return None
        return _as(value, arguments[0])
    if origin is tuple and isinstance(value, list):
        return tuple(_as(entry, arguments[0]) for entry in value)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {str(name): convert(entry, arguments[1]) for name, entry in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (str, bool) and isinstance(value, kind):
        return str(value) if kind is str else value
    raise TypeError(kind)


def _from_text(text: Unparsed, kind: Any) -> object:
    """What `text` says for a key of this type: plain text, `a,b` for a list, otherwise a TOML value."""
    if kind is str:
        return str(text)
    if typing.get_origin(kind) is types.UnionType and text in ("", "none"):
        return None
    if typing.get_origin(kind) is tuple and not text.startswith("["):
        return [entry.strip() for entry in text.split(",") if entry.strip()]
    return _toml_value(text)


def _toml_value(text: str) -> object:
    table = tomllib.loads(f"value = {text}")
    if len(table) != 1:
        raise TypeError("text with more than one value")
    return table["value"]


def parse_free(value: object) -> Any:
    """A free table with its `Unparsed` texts read as TOML where they are TOML, and as text where they are not."""
    if isinstance(value, Mapping):
        return {name: parse_free(entry) for name, entry in value.items()}
    if not isinstance(value, Unparsed):
        return value
    try:
        return _toml_value(value)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def merge(under: Layer, over: Layer) -> dict[str, object]:
    """`over` on top of `under`: tables merge key by key, everything else replaces. Neither is changed."""
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[name] = merge(below, value)
        else:
            merged[name] = value
    return merged


def nested(path: Sequence[str], value: object) -> dict[str, object]:
    """The layer that holds one value."""
    for name in reversed(path):
        value = {name: value}
    assert isinstance(value, dict), "a path has at least one name"
    return value

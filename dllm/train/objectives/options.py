"""Options of an objective, read from a table of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any, TypeVar

from dllm.errors import ConfigError

T = TypeVar("T")


def read_options(kind: type[T], name: str, body: Mapping[str, Any]) -> T:
    """A frozen dataclass of options from plain values; what is absent has its default.

    Args:
        name: The objective's, for messages: "masked.low".

    Raises:
        ConfigError: On an unknown key, a value of the wrong type, or what the dataclass itself refuses.
    """
    known: dict[str, Field[Any]] = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for key, value in body.items():
        if key not in known:
            raise ConfigError(f"{name}.{key}", value, f"one of {', '.join(sorted(known))}")
        expected = type(known[key].default)
        if expected is float and type(value) is int:
            value = float(value)
        if type(value) is not expected:
            raise ConfigError(f"{name}.{key}", value, f"a value of type {expected.__name__}")
        values[key] = value
    return kind(**values)


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(key, value, f"one of {', '.join(choices)}")


def check_band(name: str, low: float, high: float, lowest: str = "0") -> None:
    """A band of times: 0 <= low < high <= 1."""
    if not 0 <= low < 1:
        raise ConfigError(f"{name}.low", low, f"a time from {lowest} to below 1")
    if not low < high <= 1:
        raise ConfigError(f"{name}.high", high, f"a time above low, {low}, and at most 1")

"""How a key of the configuration documents and checks itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any
from urllib.parse import urlsplit

from voiceagent.errors import ConfigError


def documented(default: Any, about: str, expected: str, check: Callable[[Any], bool] = lambda value: True) -> Any:
    """A dataclass field that documents and checks itself. `expected` completes 'key = value: expected …'."""
    metadata = {"about": about, "expected": expected, "check": check}
    if isinstance(default, Mapping):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def checked(section: str, build: Callable[[], object]) -> None:
    """Let the component check its own options, and name the key as the file has it."""
    try:
        build()
    except ConfigError as error:
        raise ConfigError(f"{section}.{error.key.rpartition('.')[2]}", error.value, error.expected) from error


def without_secrets(url: str) -> str:
    """A URL, or what was meant as one, as an error may show it: neither who signs in (all before the last @) nor what is asked."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        scheme, rest = "", url
    if "@" in rest:
        rest = f"(hidden)@{rest.rpartition('@')[2]}"
    asked = re.search(r"[?#;]", rest)
    return scheme + mark + (rest if asked is None else f"{rest[: asked.end()]}(hidden)")


def within(low: float, high: float) -> Callable[[float], bool]:
    return lambda value: low <= value <= high


def optional_within(low: float, high: float) -> Callable[[float | None], bool]:
    return lambda value: value is None or low <= value <= high


def is_endpoint_url(text: str) -> bool:
    """Whether this is the base URL of an HTTP endpoint: a scheme, a host and perhaps a path. Keys and queries have no place in it."""
    try:
        url = urlsplit(text)
        return bool(
            url.scheme in ("http", "https") and url.hostname and "@" not in url.netloc and url.port != 0
        ) and not (url.query or url.fragment)
    except ValueError:  # a port that is no number, brackets that do not close
        return False

"""Hosts and origins that a request names, and whether they are this machine's: pure decisions about headers.

A page on any website may send requests to this machine from its reader's browser. On loopback, where nothing else keeps it out, its Origin
gives it away, and against DNS rebinding (a hostile name that resolves to 127.0.0.1) the Host header.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from urllib.parse import SplitResult, urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host` (a name or an address, brackets allowed); a name other than localhost may be anything."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def names_us(host_header: str | None, origins: Iterable[str]) -> bool:
    """Whether a Host header says loopback, or the host of one of `origins`. Nonsense and none at all do not."""
    own = _split_host(host_header)
    if own is None:
        return False
    listed = (_split_origin(origin) for origin in origins)
    return is_loopback(own[0]) or any(page is not None and page[0] == own[0] for page in listed)


def is_welcome(origin: str | None, host_header: str | None, origins: Sequence[str]) -> bool:
    """Whether a page of `origin` may call: one of `origins`, of which "*" is all, or a page of the very host and port that it calls.

    Clients that are no browsers send no Origin.
    """
    if origin is None or "*" in origins or origin in origins:
        return True
    page, own = _split_origin(origin), _split_host(host_header)
    if page is None or own is None:
        return False
    name, port, default = page
    return (name, port or default) == (own[0], own[1] or default)


def _split_origin(origin: str) -> tuple[str, int | None, int] | None:
    """Host, port and the scheme's own port of an http(s) origin; None for "null", other schemes and nonsense."""
    found = _split(origin)
    if found is None or found[0].scheme not in _DEFAULT_PORTS:
        return None
    parts, name, port = found
    return name, port, _DEFAULT_PORTS[parts.scheme]


def _split_host(header: str | None) -> tuple[str, int | None] | None:
    """Host and port of a Host header; None where there is anything else."""
    found = _split(f"//{header}") if header else None
    if found is None or found[0].path or found[0].query or found[0].fragment:
        return None
    return found[1:]


def _split(address: str) -> tuple[SplitResult, str, int | None] | None:
    """An address with its host and port; None where it names no host, or a user."""
    try:
        parts = urlsplit(address)
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or parts.username is not None:
        return None
    return parts, name.rstrip("."), port

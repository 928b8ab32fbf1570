"""Who may connect: pure decisions about binding, keys, origins and hosts.

A page on any website may open a websocket to this machine, and the browser sends no key of ours with it; what protects an open
server on loopback is the Origin, and against DNS rebinding (a hostile name that resolves to 127.0.0.1) the Host header. A server that
others can reach needs a key.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from voiceagent.errors import ConfigError

KEY_SUBPROTOCOL = "openai-insecure-api-key."
"""A browser cannot set headers, so its key rides in the offered subprotocols. Never selected, echoed or logged."""

REALTIME_SUBPROTOCOL = "realtime"

_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, brackets allowed) can only be reached from this machine."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def check_bind(host: str, api_key: str | None) -> None:
    """Refuse to serve a network without a key.

    Raises:
        ConfigError: If `host` is not loopback and there is no key.
    """
    if not api_key and not is_loopback(host):
        raise ConfigError(
            "host",
            host,
            "127.0.0.1 or another loopback address as long as no api_key is set: anyone who can reach the port could use the "
            "models and listen in",
        )


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """The rules of one server. `allowed_origins` are exact origins such as `https://voice.example`; "*" allows all."""

    host: str
    api_key: str | None = None
    allowed_origins: tuple[str, ...] = ()

    def allows_host(self, host_header: str | None) -> bool:
        """Whether a request may name this host. Only an open server on loopback has to care (DNS rebinding)."""
        if self.api_key:
            return True
        if host_header is None:
            return False
        name = _split_host(host_header)
        if name is None:
            return False
        return is_loopback(name[0]) or any(_host_of(origin) == name[0] for origin in self.allowed_origins)

    def allows_origin(self, origin: str | None, host_header: str | None) -> bool:
        """Whether a websocket may come from a page of `origin`. Clients that are not browsers send none."""
        if origin is None or "*" in self.allowed_origins or origin in self.allowed_origins:
            return True
        parts = _parse_origin(origin)
        if parts is None or host_header is None:
            return False
        scheme, name, port = parts
        own = _split_host(host_header)
        if own is None:
            return False
        default = _DEFAULT_PORTS[scheme]
        return (name, port or default) == (own[0], own[1] or default)

    def allows_key(self, key: str | None) -> bool:
        """Whether `key` opens this server; compared in constant time."""
        if not self.api_key:
            return True
        return key is not None and hmac.compare_digest(key.encode("utf-8", "replace"), self.api_key.encode("utf-8"))


def extract_key(authorization: str | None, subprotocols: Sequence[str]) -> str | None:
    """The client's key: from `Authorization: Bearer`, else from the offered subprotocols."""
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            return key.strip()
    for offered in subprotocols:
        if offered.startswith(KEY_SUBPROTOCOL) and len(offered) > len(KEY_SUBPROTOCOL):
            return offered[len(KEY_SUBPROTOCOL) :]
    return None


def select_subprotocol(offered: Sequence[str]) -> str | None:
    """The subprotocol to answer with: `realtime` when it was offered, else none, which every client without an offer needs."""
    return REALTIME_SUBPROTOCOL if REALTIME_SUBPROTOCOL in offered else None


def _parse_origin(origin: str) -> tuple[str, str, int | None] | None:
    """Scheme, host name and port of an http(s) origin; None for "null", other schemes and nonsense."""
    try:
        parts = urlsplit(origin)
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not name:
        return None
    return parts.scheme, name.rstrip("."), port


def _split_host(header: str) -> tuple[str, int | None] | None:
    try:
        parts = urlsplit(f"//{header}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or parts.path or parts.query or parts.fragment or parts.username is not None:
        return None
    return name.rstrip("."), port


def _host_of(origin: str) -> str | None:
    parts = _parse_origin(origin)
    return None if parts is None else parts[1]

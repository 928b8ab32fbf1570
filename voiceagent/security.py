"""Who may connect: pure decisions about binding, keys, origins and hosts.

A page on any website may open a websocket to this machine, and the browser sends no key of ours with it; what protects an open
server on loopback are the rules of `webserving.hosts`. A server that others can reach needs a key.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from voiceagent.errors import ConfigError
from webserving.hosts import is_loopback, is_welcome, names_us

KEY_SUBPROTOCOL = "openai-insecure-api-key."
"""A browser cannot set headers, so its key rides in the offered subprotocols. Never selected, echoed or logged."""

REALTIME_SUBPROTOCOL = "realtime"


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
        return bool(self.api_key) or names_us(host_header, self.allowed_origins)

    def allows_origin(self, origin: str | None, host_header: str | None) -> bool:
        """Whether a websocket may come from a page of `origin`, with a key or without. Clients that are not browsers send none."""
        return is_welcome(origin, host_header, self.allowed_origins)

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

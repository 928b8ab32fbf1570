"""Who may ask a server without keys: rules about hosts and origins, and the thin layer that applies them.

A page on any website may send requests to this machine from its reader's browser. On loopback, where nothing else keeps it out, its Origin
gives it away, and against DNS rebinding (a hostile name that resolves to 127.0.0.1) the Host header. Where there are keys a page has none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from dllm.server.problems import ApiError

_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address (brackets allowed); a name other than localhost may be anything."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


@dataclass(frozen=True, slots=True)
class AccessRules:
    """The rules of one server.

    Args:
        host: The address it is bound to. One that others can reach may be asked by any name.
        has_keys: Whether it asks for a key, which is enough.
        origins: Those whose pages may call, such as `https://chat.example`; "*" is all of them. Their hosts may be named, too.
    """

    host: str
    has_keys: bool = False
    origins: tuple[str, ...] = ()

    def allows_host(self, host_header: str | None) -> bool:
        if self.has_keys or not is_loopback(self.host):
            return True
        named = _split(f"//{host_header}") if host_header else None
        if named is None:
            return False
        listed = (_split_origin(origin) for origin in self.origins)
        return is_loopback(named[0]) or any(one is not None and one[1] == named[0] for one in listed)

    def allows_origin(self, origin: str | None, host_header: str | None) -> bool:
        """Whether a page of `origin` may call; clients that are no browsers send none."""
        if self.has_keys or origin is None or "*" in self.origins or origin in self.origins:
            return True
        page, own = _split_origin(origin), _split(f"//{host_header}") if host_header else None
        if page is None or own is None:
            return False
        scheme, name, port = page
        default = _DEFAULT_PORTS[scheme]
        return (name, port or default) == (own[0], own[1] or default)


class Guard:
    """Refuses with 403 what the rules do not allow, before anything of it is read, and tells of it."""

    def __init__(self, app: ASGIApp, rules: AccessRules, tell: Callable[[ApiError], None] = lambda _: None) -> None:
        self._app, self._rules, self._tell = app, rules, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            self._tell(problem)
            await JSONResponse(problem.body(), problem.status)(scope, receive, send)

    def _problem(self, scope: Scope) -> ApiError | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host"), headers.get(b"origin")
        if not self._rules.allows_host(host):
            message = "This server answers to localhost only: it has no --api-key-file and no --cors for this host."
            return ApiError(403, message, code="forbidden_host")
        if not self._rules.allows_origin(origin, host):
            message = "Pages of other origins may not call this server: --cors names those that may."
            return ApiError(403, message, code="forbidden_origin")
        return None


def _split_origin(origin: str) -> tuple[str, str, int | None] | None:
    """Scheme, host and port of an http(s) origin; None for "null", other schemes and nonsense."""
    scheme, _, rest = origin.partition(":")
    named = _split(rest) if scheme in _DEFAULT_PORTS else None
    return None if named is None else (scheme, *named)


def _split(authority: str) -> tuple[str, int | None] | None:
    """Host and port of `//host:port`; None where there is anything else."""
    try:
        parts = urlsplit(authority)
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or parts.scheme or parts.path or parts.query or parts.fragment or parts.username is not None:
        return None
    return name.rstrip("."), port

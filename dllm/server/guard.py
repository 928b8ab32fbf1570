"""Who may ask a server without keys, and the thin layer that applies the rules (`webserving.hosts`). Where there are keys a page has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from dllm.server.problems import ApiError
from webserving.hosts import is_loopback, is_welcome, names_us


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
        return self.has_keys or not is_loopback(self.host) or names_us(host_header, self.origins)

    def allows_origin(self, origin: str | None, host_header: str | None) -> bool:
        """Whether a page of `origin` may call; clients that are no browsers send none."""
        return self.has_keys or is_welcome(origin, host_header, self.origins)


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

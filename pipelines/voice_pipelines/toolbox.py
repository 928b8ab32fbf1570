"""The tools that a configuration declares, ready to run: Python functions and HTTP endpoints.

A plain function runs in a thread of its own, so that nothing it does holds the event loop or another caller; a thread that is given up
ends with the process at the latest. Headers may hold secrets: they are in no log, no error and no note.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import re
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from voiceagent.config import Config
from voiceagent.config_conversation import ReplyConfig
from voiceagent.config_functions import ToolConfig
from voiceagent.config_keys import without_secrets
from voiceagent.errors import ConfigError, ToolError
from voiceagent.tools import Schema, ServerTool, ToolSpec, parameters_schema

if TYPE_CHECKING:
    import httpx2

ANSWER_BYTES = 65_536
"""How much an endpoint may answer; far more than a model is told."""
KEPT_CONNECTIONS = 20
"""Connections that nobody uses and that stay open for a few seconds, of all tools together; in use there may be as many as there are callers."""
SAID_CHARS = 150
"""How much of a refusal's own words a failure repeats."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class Toolbox:
    """All tools of one agent, shared by its conversations.

    Raises:
        ConfigError: From `open`, if a function cannot be imported or takes other arguments, a variable is not set, or `httpx2` is needed
            and not installed. Nothing is called.
    """

    def __init__(self, tools: Sequence[ServerTool], client: HttpClient) -> None:
        self.tools = tuple(tools)
        self._client = client

    @classmethod
    def open(cls, config: Config, environ: Mapping[str, str]) -> Toolbox:
        client = HttpClient()
        return cls(
            [
                replace(_tool(name, tool, client, environ), say_while_running=fillers(tool, config.reply))
                for name, tool in config.tools.items()
            ],
            client,
        )

    async def aclose(self) -> None:
        await self._client.aclose()


def _tool(name: str, config: ToolConfig, client: HttpClient, environ: Mapping[str, str]) -> ServerTool:
    path = f"tools.{name}"
    parameters = parameters_schema(f"{path}.parameters", config.parameters)
    if config.function:
        run = python_tool(_import(f"{path}.function", config.function, parameters))
    else:
        _require_httpx(f"{path}.url", config.url)
        headers = {key: _filled(f"{path}.headers.{key}", key, value, environ) for key, value in config.headers.items()}
        run = HttpTool(client, config.method, config.url, headers).run
    return ServerTool(
        ToolSpec(name, config.description, parameters),
        run,
        timeout_s=config.timeout_s,
        side_effect=config.side_effect,
        result=config.result or None,
        acknowledge_after_s=config.acknowledge_after_s,
    )


def fillers(tool: ToolConfig, reply: ReplyConfig) -> tuple[str, ...]:
    """What may be said while a tool runs: its own texts first, and the agent's where they are too few to differ each time."""
    own = tool.say_while_running
    return own if len(own) > 1 else tuple(dict.fromkeys((*own, *reply.tool_acknowledgements)))


# --- Python functions -------------------------------------------------------------------------------------------------


def _import(key: str, name: str, parameters: Schema) -> Callable[..., object]:
    """The function, which must take the declared arguments by name."""
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # A module may fail in any way while it is imported.
        raise ConfigError(key, name, f"an importable 'package.module:function' ({error!r})") from error
    if not callable(function):
        raise ConfigError(key, name, "something that can be called")
    properties, required = parameters["properties"], parameters["required"]
    assert isinstance(properties, Mapping) and isinstance(required, list)
    try:
        signature = inspect.signature(function)
        for arguments in (required, properties):
            signature.bind(**dict.fromkeys(arguments))
    except (TypeError, ValueError) as error:
        declared = ", ".join(f"{one}" if one in required else f"{one} (optional)" for one in properties) or "none"
        raise ConfigError(key, name, f"a function of the declared parameters: {declared} ({error})") from error
    found: Callable[..., object] = function
    return found


def python_tool(function: Callable[..., object]) -> Callable[[Mapping[str, object]], Awaitable[object]]:
    """A function as the runtime runs tools: awaited when it is async, else called in a thread."""

    async def run(arguments: Mapping[str, object]) -> object:
        if inspect.iscoroutinefunction(function):
            return await function(**arguments)
        result = await in_thread(lambda: function(**arguments))
        return await result if inspect.isawaitable(result) else result

    return run


async def in_thread(work: Callable[[], object]) -> object:
    """What `work` returns or raises. The threads are daemons: one that hangs takes neither a worker's place nor the process's end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[object] = loop.create_future()

    def settle(result: object, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)

    def run() -> None:
        result: object = None
        failure: BaseException | None = None
        try:
            result = work()
        except Exception as error:
            # A future takes no StopIteration, and a generator's end says nothing to a model.
            failure = RuntimeError(str(error)) if isinstance(error, StopIteration) else error
        except BaseException as error:  # `sys.exit` in a tool ends the tool, not the server.
            failure = ToolError(f"it ended with {type(error).__name__}")
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:
            pass  # The loop has closed: nobody waits any more.

    threading.Thread(target=run, name="tool", daemon=True).start()
    return await done


# --- HTTP endpoints ---------------------------------------------------------------------------------------------------


class HttpClient:
    """One client and its kept connections, made when the first endpoint is asked."""

    def __init__(self) -> None:
        self._client: httpx2.AsyncClient | None = None

    def get(self) -> httpx2.AsyncClient:
        if self._client is None:
            import httpx2

            # How long an answer may take is the runtime's business; a redirect may lead anywhere and is not followed.
            # No caller waits for another's connection: without `limits` the hundred and first would.
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=KEPT_CONNECTIONS)
            self._client = httpx2.AsyncClient(timeout=None, follow_redirects=False, limits=limits)
        return self._client

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


@dataclass(frozen=True, slots=True)
class HttpTool:
    """An endpoint that takes the arguments as JSON, or as query for methods without a body, and answers with text or an object in JSON."""

    client: HttpClient
    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    async def run(self, arguments: Mapping[str, object]) -> object:
        """The answer's JSON.

        Raises:
            ToolError: If the endpoint cannot be reached, refuses, redirects, or answers with too much or with what is no JSON.
        """
        import httpx2

        body: dict[str, Any] = {"json": dict(arguments)}
        if self.method in ("GET", "DELETE"):
            # Merged by hand: a client's `params` would replace the query that the URL has.
            query = {key: _query_text(value) for key, value in arguments.items()}
            own = httpx2.QueryParams(urlsplit(self.url).query).multi_items()
            body = {"params": [*((key, value) for key, value in own if key not in query), *query.items()]}
        try:
            async with self.client.get().stream(self.method, self.url, headers=dict(self.headers), **body) as answer:
                said = b""
                async for part in answer.aiter_bytes():
                    said += part
                    if len(said) > ANSWER_BYTES:
                        raise ToolError(f"the service answered with more than {ANSWER_BYTES} bytes")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ToolError(f"the service cannot be reached ({type(error).__name__})") from error
        if answer.status_code >= 300:
            # Cut behind the secrets' removal: half of one would be left.
            words = self._without_secrets(_said(said))[:SAID_CHARS]
            status = f"{answer.status_code} {answer.reason_phrase}".strip()
            raise ToolError(f"the service answered {status}" + (f": {words}" if words else ""))
        if not said.strip():
            return None
        try:
            return json.loads(said)
        except (ValueError, RecursionError) as error:
            raise ToolError("the service answered with what is not JSON") from error

    def _without_secrets(self, text: str) -> str:
        """`text` without header values: endpoints repeat a refused key in their message."""
        for value in self.headers.values():
            for secret in (value, value.rpartition(" ")[2]):
                if len(secret) >= 4:
                    text = text.replace(secret, "(hidden)")
        return text


def _said(body: bytes) -> str:
    """An endpoint's own words about a refusal."""
    text = body.decode("utf-8", errors="replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    for key in ("error", "detail", "message"):
        inner = value.get(key) if isinstance(value, Mapping) else None
        inner = inner.get("message") if isinstance(inner, Mapping) else inner
        if isinstance(inner, str):
            return " ".join(inner.split())
    return ""


def _query_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _filled(key: str, header: str, value: str, environ: Mapping[str, str]) -> str:
    """A header's value with its variables."""
    if not _HEADER.fullmatch(header):
        raise ConfigError(key, "(hidden)", "the name of a header")
    for name in _VARIABLE.findall(value):
        if not environ.get(name, "").strip():
            raise ConfigError(key, f"${{{name}}}", "a variable that is set and not empty")
    filled = _VARIABLE.sub(lambda found: environ[found[1]].strip(), value)
    if not all(" " <= character <= "~" for character in filled):
        raise ConfigError(key, "(hidden)", "visible ASCII characters, which a header can carry")
    return filled


def _require_httpx(key: str, url: str) -> None:
    if importlib.util.find_spec("httpx2") is None:
        raise ConfigError(key, without_secrets(url), "httpx2 to be installed; run: pip install 'voiceagent[remote]'")

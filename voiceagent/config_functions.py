"""The sections of the configuration that name functions of the agent's own: its note taker and its tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from voiceagent.config_keys import documented, is_endpoint_url, optional_within, within, without_secrets
from voiceagent.errors import ConfigError
from voiceagent.tools import ACKNOWLEDGE_AFTER_S, check_schema, parameters_schema


def _is_function_name(text: str) -> bool:
    return text.count(":") == 1 and all(text.split(":"))


@dataclass(frozen=True, slots=True)
class NotesConfig:
    """The function that turns what was said into facts, such as an order and its price."""

    function: str = documented(
        "",
        "Factory of note takers; it is called with the table `[menu]`.",
        "'package.module:function', or empty",
        lambda v: not v or _is_function_name(v),
    )


def _is_tool_url(text: str) -> bool:
    """An HTTP address; unlike an endpoint's it may have a query."""
    return is_endpoint_url(text.partition("?")[0]) and "#" not in text and text.isprintable() and " " not in text


@dataclass(frozen=True, slots=True)
class ToolConfig:
    """A function that the agent may call: `function` or `url` says which. `NAME` is letters, digits and underscores."""

    description: str = documented("", "What the tool does, for the model: 'books a table'.", "text")
    parameters: Mapping[str, str] = documented(
        {},
        "What it is called with: `string`, `integer`, `number`, `boolean` or alternatives `small\\|large`; `?` behind it: optional.",
        "a table such as {people = 'integer', day = 'string?'}",
    )
    function: str = documented(
        "",
        "Python function, plain or async. It may lie beside the configuration file.",
        "'package.module:function', or empty",
        lambda v: not v or _is_function_name(v),
    )
    url: str = documented(
        "",
        "HTTP address that takes the arguments as JSON and answers in JSON.",
        "a URL such as 'https://host/book', or empty",
        lambda v: not v or _is_tool_url(v),
    )
    method: str = documented(
        "POST",
        "HTTP method; `GET` and `DELETE` send the arguments as query.",
        "'POST', 'PUT', 'PATCH', 'GET' or 'DELETE'",
        lambda v: v in ("POST", "PUT", "PATCH", "GET", "DELETE"),
    )
    headers: Mapping[str, str] = documented(
        {}, "HTTP headers; `${NAME}` in a value is that environment variable.", "a table of header values"
    )
    timeout_s: float = documented(
        5.0, "Longest wait for the result; then the call has failed.", "seconds from 0.05 to 120", within(0.05, 120.0)
    )
    side_effect: bool = documented(
        True, "Whether it changes anything: not repeated in a turn, not cancelled by an interruption.", "true or false"
    )
    result: Mapping[str, object] = documented(
        {}, "JSON schema of the result; another result is a failure. Empty takes any.", "a JSON schema"
    )
    say_while_running: tuple[str, ...] = documented(
        (),
        "One of these is said when the result takes long, another each time; those of `reply.tool_acknowledgements` when there are fewer than two.",
        "a text or a list of texts that are not empty",
        lambda v: all(text.strip() for text in v),
    )
    acknowledge_after_s: float | None = documented(
        ACKNOWLEDGE_AFTER_S,
        "So long is long, from the start of the call; none never says anything.",
        "seconds from 0.05 to 60, or 'none'",
        optional_within(0.05, 60.0),
    )

    def __post_init__(self) -> None:
        if bool(self.function) == bool(self.url):
            key, value = ("url", without_secrets(self.url)) if self.url else ("function", "")
            raise ConfigError(key, value, "exactly one of function and url")
        if self.function and self.headers:
            raise ConfigError("headers", "(hidden)", "nothing, because function is given and headers belong to a url")
        parameters_schema("parameters", self.parameters)
        check_schema("result", self.result)

"""Tools that a model may call, as values: what they are, what a call is, and what its result says. Nothing here runs anything.

A tool is described by a JSON schema of its arguments. A configuration writes that schema as a short table of types, which
`parameters_schema` turns into the long form that models and clients know.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeGuard

from voiceagent.errors import ConfigError, ToolError

Schema: TypeAlias = Mapping[str, object]
"""A JSON schema. `mismatch` reads the keywords in `KEYWORDS` and passes over all others."""

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
"""Names of tools and of their parameters, as every model and client takes them."""

MAX_CALLS = 3
"""Calls within one reply; after them the agent has to answer."""
MAX_NOTE_CHARS = 800
"""What a result may tell the model: about 200 tokens, half of the built-in model's prompt."""
MAX_REASON_CHARS = 200

TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (Mapping,),
    "array": (list, tuple),
    "null": (type(None),),
}
_A: Mapping[str, str] = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}
KEYWORDS = frozenset(
    "type enum properties required additionalProperties items minimum maximum minLength maxLength minItems maxItems "
    "title description default examples".split()
)
_BOUNDED: Mapping[str, tuple[str, ...]] = {
    "imum": ("integer", "number"),
    "Length": ("string",),
    "Items": ("array",),
}
"""What `min…` and `max…` bound, by how they end."""
_DEPTH = 16
"""Schemas nest no deeper; what is further down is not looked at."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What a model is told of a tool."""

    name: str
    description: str = ""
    parameters: Schema = field(default_factory=lambda: {"type": "object", "properties": {}})
    """JSON schema of the arguments, an object."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as a drafter read it.

    `written` is the call in the drafter's own notation, empty where it has none; later prompts give it back so that a model reads what
    it wrote. `problem` says why it cannot be carried out when the drafter could not read it.
    """

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    written: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether a reply may, must or must not begin with a call; `name` is the one tool that `required` means, or empty for any."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str = ""


AUTO = ToolChoice()


ACKNOWLEDGE_AFTER_S = 0.7
"""With the draft before the call and the one behind it, silence would pass a second and a half."""


@dataclass(frozen=True, slots=True)
class ServerTool:
    """A tool that the server runs.

    Args:
        run: Called on the event loop with arguments that fit the schema. Gives text, an object or None, or raises; the message of its
            error is what the model is told.
        timeout_s: From the start of the call; then it is cancelled.
        side_effect: Whether a call changes anything. If so it is never repeated within a turn, and goes on when the caller interrupts.
        result: Schema of what `run` gives, `must_say` and `note` left out.
        say_while_running: Of these one is said when the tool takes long, another each time.
        acknowledge_after_s: So long is long; None never says anything.
    """

    spec: ToolSpec
    run: Callable[[Mapping[str, object]], Awaitable[object]]
    timeout_s: float = 5.0
    side_effect: bool = True
    result: Schema | None = None
    say_while_running: tuple[str, ...] = ()
    acknowledge_after_s: float | None = ACKNOWLEDGE_AFTER_S


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came of a call. `output` is what clients see, `note` what the model reads, `must_say` is pinned into the reply."""

    output: str
    note: str
    must_say: tuple[str, ...] = ()


# --- schemas ----------------------------------------------------------------------------------------------------------


def parameters_schema(where: str, short: Mapping[str, str]) -> Schema:
    """The JSON schema that a short table stands for: `{people = "integer", day = "string?", size = "small|large"}`.

    A value is `string`, `integer`, `number`, `boolean` or the alternatives joined by `|`; a `?` behind it marks what may be left out.

    Raises:
        ConfigError: Naming `where` and the parameter.
    """
    properties: dict[str, object] = {}
    required: list[str] = []
    for name, kind in short.items():
        if not NAME.fullmatch(name):
            raise ConfigError(f"{where}.{name}", kind, "a name of letters, digits and underscores, a letter first")
        plain = kind.strip().removesuffix("?").strip()
        choices = [choice.strip() for choice in plain.split("|")]
        if len(choices) > 1 and all(choices) and not any(";" in choice for choice in choices):
            properties[name] = {"type": "string", "enum": choices}
        elif plain in ("string", "integer", "number", "boolean"):
            properties[name] = {"type": plain}
        else:
            expected = (
                "'string', 'integer', 'number', 'boolean' or alternatives such as 'small|large', with '?' if optional"
            )
            raise ConfigError(f"{where}.{name}", kind, expected)
        if not kind.strip().endswith("?"):
            required.append(name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def check_schema(where: str, schema: object) -> None:
    """Refuse what `mismatch` would pass over, so that nobody relies on it.

    Raises:
        ConfigError: Naming the place.
    """
    if not isinstance(schema, Mapping):
        raise ConfigError(where, schema, "a JSON schema, which is a table")
    for key in schema:
        if key not in KEYWORDS:
            raise ConfigError(f"{where}.{key}", schema[key], f"a keyword among {', '.join(sorted(KEYWORDS))}")
    kinds = schema.get("type")
    allowed = kinds if isinstance(kinds, list) else [kinds] if kinds is not None else list(TYPES)
    for kind in allowed or [kinds]:
        if not isinstance(kind, str) or kind not in TYPES:
            raise ConfigError(f"{where}.type", kind, f"one of {', '.join(TYPES)}, or a list of them")
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping):
        raise ConfigError(f"{where}.properties", properties, "a table of schemas")
    for name, inner in properties.items():
        check_schema(f"{where}.properties.{name}", inner)
    if "items" in schema:
        check_schema(f"{where}.items", schema["items"])
    for key, is_right in (("enum", list), ("required", list), ("additionalProperties", bool)):
        if key in schema and not isinstance(schema[key], is_right):
            raise ConfigError(f"{where}.{key}", schema[key], "a list" if is_right is list else "true or false")
    for name in schema.get("required", ()):
        if not isinstance(name, str):
            raise ConfigError(f"{where}.required", name, "names")
    if schema.get("enum") == []:
        raise ConfigError(f"{where}.enum", [], "a list of at least one value")
    for suffix, bounded in _BOUNDED.items():
        _check_bounds(where, schema, suffix, [kind for kind in bounded if kind in allowed], bounded)


def _check_bounds(where: str, schema: Schema, suffix: str, allowed: Sequence[str], bounded: Sequence[str]) -> None:
    """Refuse bounds that are none, that nothing could keep, or that are of no type the schema allows."""
    is_size = suffix != "imum"
    low, high = f"min{suffix}", f"max{suffix}"
    for key in (low, high):
        if key not in schema:
            continue
        bound = schema[key]
        if not (_is_size(bound) if is_size else _is_finite(bound)):
            raise ConfigError(
                f"{where}.{key}", bound, f"a {'whole number, at least 0' if is_size else 'finite number'}"
            )
        if not allowed:
            raise ConfigError(f"{where}.{key}", bound, f"the type {' or '.join(bounded)} beside it, which it bounds")
    least, most = schema.get(low), schema.get(high)
    if isinstance(least, int | float) and isinstance(most, int | float) and most < least:
        raise ConfigError(f"{where}.{high}", most, f"at least {low}, which is {_shown(least)}")


def _is_finite(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _is_size(value: object) -> bool:
    """Whether something may have so many characters or entries. JSON has one kind of number: 4.0 is a whole one."""
    return _is_finite(value) and value >= 0 and value == int(value)


def mismatch(value: object, schema: object, where: str = "", depth: int = 0) -> str:
    """The first thing about a JSON value that its schema does not allow, in words; empty when it fits."""
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return ""
    name = where or "it"
    kinds = schema.get("type")
    allowed = [kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(kind, str)]
    if allowed and not any(_is_of(value, kind) for kind in allowed):
        return f"{name} should be {' or '.join(_A.get(kind, kind) for kind in allowed)}, not {_shown(value)}"
    choices = schema.get("enum")
    if isinstance(choices, list) and not any(value == choice and type(value) is type(choice) for choice in choices):
        return f"{name} should be one of {', '.join(map(_shown, choices))}, not {_shown(value)}"
    if isinstance(value, Mapping):
        return _object_mismatch(value, schema, where, depth)
    if isinstance(value, list | tuple):
        inside = (mismatch(entry, schema.get("items"), f"{name}[{at}]", depth + 1) for at, entry in enumerate(value))
        return _limit_mismatch(name, len(value), schema, "Items", " entries") or next(filter(None, inside), "")
    if isinstance(value, str):
        return _limit_mismatch(name, len(value), schema, "Length", " characters")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _limit_mismatch(name, value, schema, "imum", "")
    return ""


def _object_mismatch(value: Mapping[object, object], schema: Schema, where: str, depth: int) -> str:
    required, properties = schema.get("required"), schema.get("properties")
    known = properties if isinstance(properties, Mapping) else {}
    path = f"{where}." if where else ""
    for key in required if isinstance(required, list) else ():
        if isinstance(key, str) and key not in value:
            return f"{path}{key} is missing"
    for key, entry in value.items():
        if key in known:
            if found := mismatch(entry, known[key], f"{path}{key}", depth + 1):
                return found
        elif schema.get("additionalProperties") is False:
            return f"{path}{key} is unknown"
    return ""


def _limit_mismatch(name: str, size: float, schema: Schema, suffix: str, unit: str) -> str:
    low, high = schema.get(f"min{suffix}"), schema.get(f"max{suffix}")
    if isinstance(low, int | float) and size < low:
        return f"{name} should be at least {_shown(low)}{unit}, not {_shown(size)}"
    if isinstance(high, int | float) and size > high:
        return f"{name} should be at most {_shown(high)}{unit}, not {_shown(size)}"
    return ""


def _is_of(value: object, kind: str) -> bool:
    if isinstance(value, bool) and kind in ("integer", "number"):
        return False
    # JSON has one kind of number: 4.0 is a whole one.
    return isinstance(value, TYPES.get(kind, (object,))) or (
        kind == "integer" and isinstance(value, float) and value.is_integer()
    )


def as_declared(arguments: Mapping[str, object], schema: Schema) -> dict[str, object]:
    """Arguments that fit their schema, of its types: a whole number may have come as 4.0."""
    properties = schema.get("properties")
    known = properties if isinstance(properties, Mapping) else {}

    def typed(key: str, value: object) -> object:
        own = known.get(key)
        is_integer = isinstance(own, Mapping) and own.get("type") == "integer"
        return int(value) if is_integer and isinstance(value, float) else value

    return {key: typed(key, value) for key, value in arguments.items()}


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:40]}…"


# --- results ----------------------------------------------------------------------------------------------------------


def read_result(tool: ServerTool, value: object) -> ToolResult:
    """What a tool gave: text, nothing, or an object whose `must_say` and `note` are the runtime's and the rest the model's.

    Raises:
        ToolError: If it is none of these, or does not fit the tool's schema.
    """
    must_say: tuple[str, ...] = ()
    told: object = None
    if isinstance(value, Mapping):
        rest = {str(key): entry for key, entry in value.items()}
        must_say, told = _texts(rest.pop("must_say", None)), rest.pop("note", None)
        value = rest
    elif value is not None and not isinstance(value, str):
        raise ToolError(f"it gave {_shown(value)}, which is neither text nor an object")
    if tool.result is not None and (found := mismatch({} if value is None else value, tool.result)):
        raise ToolError(f"its result is not what it should be: {found}")
    output = value if isinstance(value, str) else json.dumps(value or {}, ensure_ascii=False, default=str)
    note = told if isinstance(told, str) and told.strip() else value
    return ToolResult(output, result_note(tool.spec.name, note), must_say)


def failure(name: str, reason: str) -> ToolResult:
    """What is told of a call that could not be carried out."""
    reason = _cut(" ".join(reason.split()) or "no reason given", MAX_REASON_CHARS)
    return ToolResult(json.dumps({"error": reason}, ensure_ascii=False), f"{name} failed: {reason}")


def result_note(name: str, result: object) -> str:
    """The note that tells the model what a call gave."""
    return _cut(f"{name}: {spoken_of(result)}", MAX_NOTE_CHARS)


def output_note(name: str, output: str) -> str:
    """The note for a client's output, which is text or JSON."""
    try:
        value: object = json.loads(output)
    except (ValueError, RecursionError):
        return result_note(name, output)
    if isinstance(value, Mapping) and isinstance(value.get("error"), str) and len(value) == 1:
        return failure(name, str(value["error"])).note
    return result_note(name, value if isinstance(value, Mapping | list) else output)


def spoken_of(value: object, depth: int = 0) -> str:
    """A JSON value as a note tells it: `table: 12; code: K72`."""
    if depth > _DEPTH:
        return "…"
    match value:
        case Mapping():
            pairs = (f"{str(key).replace('_', ' ')}: {spoken_of(entry, depth + 1)}" for key, entry in value.items())
            return "; ".join(pairs) or "done"
        case str():
            return " ".join(value.split()) or "done"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(spoken_of(entry, depth + 1) for entry in value) or "none"
        case None:
            return "done"
        case _:
            return str(value)


def _texts(value: object) -> tuple[str, ...]:
    found = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not all(entry is None or isinstance(entry, str | int | float) for entry in found):
        raise ToolError(f"its must_say is {_shown(value)}, which is neither text nor a list of texts")
    return tuple(text for entry in found if entry is not None and (text := " ".join(_encodable(str(entry)).split())))


def _cut(text: str, limit: int) -> str:
    """At most `limit` characters, and none that UTF-8 cannot carry."""
    text = _encodable(text)
    return text if len(text) <= limit else f"{text[:limit].rsplit(' ', 1)[0]} …"


def _encodable(text: str) -> str:
    """`text` without lone surrogates: JSON may spell them, no tokenizer and no request takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")

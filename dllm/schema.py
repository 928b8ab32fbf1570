"""JSON schemas as regular expressions.

A schema describes more documents than an expression can; what is left out here never makes an accepted document invalid. Members come in
the order of `properties`; one blank may stand where JSON allows white space; only declared members are written; a `oneOf` is read as
an `anyOf`; a `$ref` to itself is followed `MAX_DEPTH` times. A keyword that would have to be ignored is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from dllm.automata import escape, from_regex, without
from dllm.errors import ConfigError

Schema: TypeAlias = Mapping[str, Any] | bool

MAX_DEPTH = 3
MAX_VALUES = 10_000
"""Integers between two bounds are listed one by one, up to so many."""
MAX_LENGTH = 2_000_000

_BLANK = "[ ]?"
_CHARACTER = r'(?:[^"\\\x00-\x1f\x7f-\x9f]|\\["\\/bfnrt])'
_PLAIN = r'[^"\\\x00-\x1f\x7f-\x9f]'
_STRING = f'"{_CHARACTER}*"'
_INTEGER = "-?(?:0|[1-9][0-9]*)"
_NUMBER = rf"{_INTEGER}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_DATE = "[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:Z|[+-][0-9]{2}:[0-9]{2})"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "email": r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "uri": r"[a-z][a-z0-9+.-]*:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+",
}

_ANNOTATIONS = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id", "$comment", "$defs", "definitions", "$anchor"),
}
_OF_TYPE = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
}


class _TooDeep(Exception):
    """A reference to itself was followed `MAX_DEPTH` times: leave out what asked for it."""


def schema_regex(schema: Schema) -> str:
    """A pattern whose full matches are JSON documents that obey the schema.

    Raises:
        ConfigError: If the schema is malformed, cannot be met, or uses what an expression cannot say.
    """
    try:
        pattern = _Writer(schema).value(schema, "schema", ())
    except _TooDeep:
        raise ConfigError("schema", "$ref", "a recursion that can end") from None
    if len(pattern) > MAX_LENGTH:
        raise ConfigError(
            "schema", f"{len(pattern)} characters of pattern", f"at most {MAX_LENGTH}: fewer or shallower properties"
        )
    return pattern


class _Writer:
    """`where` is the path to the schema at hand, for errors; `seen` the references that led there."""

    def __init__(self, root: Schema) -> None:
        self.root = root

    def value(self, schema: Schema, where: str, seen: tuple[str, ...]) -> str:
        if schema is True:
            return _any(1)
        if not isinstance(schema, Mapping):
            raise ConfigError(where, schema, "a JSON schema that something obeys: an object, or true")
        keys = set(schema) - _ANNOTATIONS
        if not keys:
            return _any(1)
        if "$ref" in keys:
            self._allow(keys, {"$ref"}, where)
            return self._reference(schema["$ref"], where, seen)
        if "enum" in keys or "const" in keys:
            self._allow(keys, {"enum", "const", "type"}, where)
            return self._listed(schema, where)
        for union in ("anyOf", "oneOf", "allOf"):
            if union in keys:
                self._allow(keys, {union}, where)
                branches = _list(schema[union], f"{where}.{union}")
                if union == "allOf" and len(branches) > 1:
                    raise ConfigError(
                        f"{where}.allOf", len(branches), "one schema: their intersection is not supported"
                    )
                return _either(self._possible(branches, f"{where}.{union}", seen))
        kinds = schema.get("type") or self._guessed_types(keys, where)
        kinds = [kinds] if isinstance(kinds, str) else _list(kinds, f"{where}.type")
        for kind in kinds:
            if kind not in _OF_TYPE:
                raise ConfigError(f"{where}.type", kind, f"one of {', '.join(_OF_TYPE)}")
        self._allow(keys, {"type"}.union(*(_OF_TYPE[kind] for kind in kinds)), where)
        return _either([self._typed(kind, schema, where, seen) for kind in kinds])

    def _typed(self, kind: str, schema: Mapping[str, Any], where: str, seen: tuple[str, ...]) -> str:
        match kind:
            case "object":
                return self._object(schema, where, seen)
            case "array":
                return self._array(schema, where, seen)
            case "string":
                return self._string(schema, where)
            case "integer":
                return self._integer(schema, where)
            case "number":
                return _NUMBER
            case "boolean":
                return "(?:true|false)"
            case _:
                return "null"

    def _guessed_types(self, keys: set[str], where: str) -> list[str]:
        kinds = [kind for kind, allowed in _OF_TYPE.items() if keys & allowed]
        if not kinds:
            raise ConfigError(where, sorted(keys), "keywords that are supported")
        return kinds[:1]

    def _allow(self, keys: set[str], allowed: set[str], where: str) -> None:
        for key in sorted(keys - allowed):
            raise ConfigError(
                f"{where}.{key}", "present", f"no such keyword: supported here are {', '.join(sorted(allowed))}"
            )

    def _reference(self, pointer: Any, where: str, seen: tuple[str, ...]) -> str:
        if not isinstance(pointer, str) or not pointer.startswith("#"):
            raise ConfigError(f"{where}.$ref", pointer, "a place in this schema: #/…")
        if seen.count(pointer) > MAX_DEPTH:
            raise _TooDeep
        found: Any = self.root
        for part in pointer[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or part not in found:
                raise ConfigError(f"{where}.$ref", pointer, f"a place in this schema: there is no {part!r}")
            found = found[part]
        return self.value(found, pointer, (*seen, pointer))

    def _possible(self, branches: Sequence[Schema], where: str, seen: tuple[str, ...]) -> list[str]:
        written = []
        for at, branch in enumerate(branches):
            try:
                written.append(self.value(branch, f"{where}[{at}]", seen))
            except _TooDeep:
                continue
        if not written:
            raise _TooDeep
        return written

    def _listed(self, schema: Mapping[str, Any], where: str) -> str:
        values = _list(schema["enum"], f"{where}.enum") if "enum" in schema else [schema["const"]]
        kinds = schema.get("type")
        if kinds is not None:
            allowed = [kinds] if isinstance(kinds, str) else kinds
            values = [value for value in values if any(_is_a(value, kind) for kind in allowed)]
        if "const" in schema:
            values = [value for value in values if _same(value, schema["const"])]
        if not values:
            raise ConfigError(where, sorted(schema), "at least one value of this type")
        return _either([_document(value) for value in values])

    def _object(self, schema: Mapping[str, Any], where: str, seen: tuple[str, ...]) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        extra = schema.get("additionalProperties", True)
        if not isinstance(properties, Mapping):
            raise ConfigError(f"{where}.properties", properties, "an object of schemas")
        for name in _list(required, f"{where}.required", at_least=0):
            if name not in properties:
                raise ConfigError(f"{where}.required", name, "a name that `properties` describes")
        if not properties:
            if extra is False:
                return rf"\{{{_BLANK}\}}"
            try:
                return _members(self.value(extra, f"{where}.additionalProperties", seen))
            except _TooDeep:
                return rf"\{{{_BLANK}\}}"
        members: list[tuple[str, bool]] = []
        for name, inner in properties.items():
            try:
                written = self.value(inner, f"{where}.{name}", seen)
            except _TooDeep:
                if name in required:
                    raise
                continue
            key = escape(json.dumps(name, ensure_ascii=False))
            members.append((f"{key}{_BLANK}:{_BLANK}{written}", name in required))
        return rf"\{{{_BLANK}{_in_order(members)}{_BLANK}\}}"

    def _array(self, schema: Mapping[str, Any], where: str, seen: tuple[str, ...]) -> str:
        first = _list(schema.get("prefixItems", []), f"{where}.prefixItems", at_least=0)
        rest = schema.get("items", not first)
        least, most = _bounds(schema, "minItems", "maxItems", where)
        heads = [self.value(inner, f"{where}.prefixItems[{at}]", seen) for at, inner in enumerate(first)]
        comma = f"{_BLANK},{_BLANK}"
        if heads:
            if rest is not False or least > len(heads) or (most is not None and most < len(heads)):
                raise ConfigError(
                    f"{where}.prefixItems", len(heads), "all of them and nothing behind: no `items` but false"
                )
            return rf"\[{_BLANK}{comma.join(heads)}{_BLANK}\]"
        empty = rf"\[{_BLANK}\]"
        if most == 0 or (rest is False and not least):
            return empty
        try:
            item = self.value(rest, f"{where}.items", seen)
        except _TooDeep:
            if least:
                raise
            return empty
        more = f"{{{max(0, least - 1)},{'' if most is None else most - 1}}}"
        items = f"{item}(?:{comma}{item}){more}"
        return rf"\[{_BLANK}{items if least else f'(?:{items})?'}{_BLANK}\]"

    def _string(self, schema: Mapping[str, Any], where: str) -> str:
        shape = {"pattern", "format"} & set(schema)
        sizes = {"minLength", "maxLength"} & set(schema)
        if len(shape) + bool(sizes) > 1:
            raise ConfigError(where, sorted(shape | sizes), "a pattern, a format or lengths, not several of them")
        if "format" in schema:
            if schema["format"] not in _FORMATS:
                raise ConfigError(f"{where}.format", schema["format"], f"one of {', '.join(_FORMATS)}")
            return f'"{_FORMATS[schema["format"]]}"'
        if "pattern" in schema:
            return f'"{_inside_quotes(schema["pattern"], f"{where}.pattern")}"'
        least, most = _bounds(schema, "minLength", "maxLength", where)
        if not sizes:
            return _STRING
        return f'"{_CHARACTER}{{{least},{"" if most is None else most}}}"'

    def _integer(self, schema: Mapping[str, Any], where: str) -> str:
        least = _limit(schema, "minimum", "exclusiveMinimum", 1, max, where)
        most = _limit(schema, "maximum", "exclusiveMaximum", -1, min, where)
        if least is None and most is None:
            return _INTEGER
        if least in (0, 1) and most is None:
            return "(?:0|[1-9][0-9]*)" if least == 0 else "[1-9][0-9]*"
        if least is None or most is None or not 0 <= most - least < MAX_VALUES:
            raise ConfigError(
                where,
                f"from {least} to {most}",
                f"no bounds, a minimum of 0 or 1, or two bounds around 1 to {MAX_VALUES} values",
            )
        return _either([str(number) for number in range(least, most + 1)])


def _any(depth: int) -> str:
    scalar = f"{_STRING}|{_NUMBER}|true|false|null"
    if depth == 0:
        return f"(?:{scalar})"
    inner = _any(depth - 1)
    items = rf"\[{_BLANK}(?:{inner}(?:{_BLANK},{_BLANK}{inner})*)?{_BLANK}\]"
    return f"(?:{scalar}|{items}|{_members(inner)})"


def _members(value: str) -> str:
    member = f"{_STRING}{_BLANK}:{_BLANK}{value}"
    return rf"\{{{_BLANK}(?:{member}(?:{_BLANK},{_BLANK}{member})*)?{_BLANK}\}}"


def _in_order(members: Sequence[tuple[str, bool]]) -> str:
    """(member, whether it is required), in order, the optional ones left out at will, with commas between those that are there."""
    comma = f"{_BLANK},{_BLANK}"
    first = next((at for at, (_, is_required) in enumerate(members) if is_required), None)
    if first is not None:
        before = "".join(f"(?:{member}{comma})?" for member, _ in members[:first])
        return before + members[first][0] + _following(members[first + 1 :], comma)
    starts = [member + _following(members[at + 1 :], comma) for at, (member, _) in enumerate(members)]
    return f"(?:{'|'.join(starts)})?"


def _following(members: Sequence[tuple[str, bool]], comma: str) -> str:
    return "".join(f"{comma}{member}" if is_required else f"(?:{comma}{member})?" for member, is_required in members)


def _either(patterns: Sequence[str]) -> str:
    return patterns[0] if len(patterns) == 1 else f"(?:{'|'.join(patterns)})"


def _document(value: Any) -> str:
    """One JSON value, with a blank at will where Python's `json` writes one."""
    if isinstance(value, Mapping):
        members = [
            f"{escape(json.dumps(name, ensure_ascii=False))}:{_BLANK}{_document(inner)}"
            for name, inner in value.items()
        ]
        return rf"\{{{f',{_BLANK}'.join(members)}\}}"
    if isinstance(value, list | tuple):
        return rf"\[{f',{_BLANK}'.join(_document(inner) for inner in value)}\]"
    return escape(json.dumps(value, ensure_ascii=False))


def _inside_quotes(pattern: Any, where: str) -> str:
    """A `pattern`, which is searched for in the string unless it is anchored.

    Raises:
        ConfigError: If it matches a character that JSON would escape.
    """
    if not isinstance(pattern, str):
        raise ConfigError(where, pattern, "a regular expression")
    body, ends = pattern.removeprefix("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    body = body[:-1] if ends else body
    full = f"{'' if pattern.startswith('^') else f'{_PLAIN}*'}(?:{body}){'' if ends else f'{_PLAIN}*'}"
    if not without(from_regex(full), from_regex(f"{_PLAIN}*")).is_empty:
        raise ConfigError(
            where,
            pattern,
            r'a pattern without quotation marks, backslashes and control characters: [^"\\] instead of .',
        )
    return full


def _list(value: Any, where: str, at_least: int = 1) -> list[Any]:
    if not isinstance(value, list | tuple) or len(value) < at_least:
        raise ConfigError(where, value, f"a list of at least {at_least}" if at_least else "a list")
    return list(value)


def _bounds(schema: Mapping[str, Any], low: str, high: str, where: str) -> tuple[int, int | None]:
    least, most = schema.get(low, 0), schema.get(high)
    for name, value in ((low, least), (high, most)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ConfigError(f"{where}.{name}", value, "a whole number of at least 0")
    if most is not None and most < least:
        raise ConfigError(f"{where}.{high}", most, f"at least {low}, {least}")
    return least, most


def _limit(
    schema: Mapping[str, Any], inclusive: str, exclusive: str, step: int, tighter: Callable[[int, int], int], where: str
) -> int | None:
    found: int | None = None
    for name, offset in ((inclusive, 0), (exclusive, step)):
        if name in schema:
            value = schema[name]
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{where}.{name}", value, "a whole number")
            found = value + offset if found is None else tighter(found, value + offset)
    return found


def _is_a(value: Any, kind: str) -> bool:
    match value:
        case None:
            return kind == "null"
        case bool():
            return kind == "boolean"
        case int():
            return kind in ("integer", "number")
        case float():
            return kind == "number" or (kind == "integer" and value.is_integer())
        case str():
            return kind == "string"
        case list() | tuple():
            return kind == "array"
        case _:
            return kind == "object"


def _same(left: Any, right: Any) -> bool:
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)

"""One TOML file, every key with a default: what it may say, and how layers of it become one checked `Config`.

Layers, weakest first: defaults, preset, the user's file, environment variables, `--set` on the command line. Tables merge key by
key; lists and single values replace. Nothing here reads a file unasked, the environment or the command line: callers pass them in.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from voiceagent.budget_terms import WhenLate
from voiceagent.config_conversation import AgentConfig, BudgetConfig, ReplyConfig, SilenceConfig, TurnConfig
from voiceagent.config_functions import NotesConfig, ToolConfig
from voiceagent.config_keys import documented, without_secrets
from voiceagent.config_models import AsrConfig, ModelsConfig, RemoteConfig, VocabularyConfig
from voiceagent.config_server import ServerConfig
from voiceagent.config_values import Layer, Unparsed, convert, merge, nested
from voiceagent.errors import ConfigError
from voiceagent.session import SessionSettings
from voiceagent.tools import NAME

ENVIRONMENT_PREFIX = "VOICEAGENT_"
ENVIRONMENT_RESERVED = frozenset({"VOICEAGENT_CONFIG", "VOICEAGENT_MODELS"})
"""Variables with our prefix that are not keys: paths of the user's file and of the model folder, read by the command."""

_SECRETS = frozenset({"server.api_key", "server.twilio_auth_token", "remote.api_key"})
_SECRET_TABLES = re.compile(r"tools\..*\.headers(\..*)?")
_URLS = re.compile(r"remote\.url|models\.llm|server\.public_url|tools\..*\.url")
_HIDDEN = "(hidden)"
"""What errors say instead of a secret, and of every value that has no key: who mistypes `server.api_key` has put a secret there."""

_SERVICE_LINK = re.compile(
    ENVIRONMENT_PREFIX + r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration, checked."""

    preset: str = documented(
        "cafe", "Agent to start from: a built-in preset or the path of a TOML file.", "a name or a path"
    )
    server: ServerConfig = field(default_factory=ServerConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    turn: TurnConfig = field(default_factory=TurnConfig)
    silence: SilenceConfig = field(default_factory=SilenceConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    reply: ReplyConfig = field(default_factory=ReplyConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    asr: AsrConfig = field(default_factory=AsrConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    notes: NotesConfig = field(default_factory=NotesConfig)
    tools: Mapping[str, ToolConfig] = field(default_factory=dict)
    menu: Mapping[str, object] = field(default_factory=dict)
    """Handed as it is to the notes factory, which knows what it means."""

    def session_settings(self) -> SessionSettings:
        """What a new conversation starts with; its client may change it."""
        return SessionSettings(
            instructions=self.agent.instructions,
            turn_detection=self.turn.detection(),
            target_s=self.budget.target_s,
            when_late=WhenLate(self.budget.when_late),
            acknowledgements=self.budget.acknowledgements,
            max_output_tokens=self.reply.max_output_tokens,
            temperature=self.reply.temperature,
            silence=self.silence.settings(),
            repair=self.asr.settings(),
            speculate=self.budget.speculate,
        )


_HINTS = typing.get_type_hints(Config)
SECTIONS: Mapping[str, type[Any]] = {
    name: kind for name, kind in _HINTS.items() if isinstance(kind, type) and is_dataclass(kind)
}
"""Section name to its dataclass, in the order of the reference."""


def read_toml(path: Path) -> Layer:
    """Read one layer.

    Raises:
        ConfigError: If the file cannot be read or is not TOML; the reason says where.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors begin with a byte-order mark.
    except OSError as error:
        raise ConfigError("config file", str(path), f"a readable file ({error.strerror})") from error
    except ValueError as error:  # No TOML, no UTF-8, or a number of thousands of digits.
        raise ConfigError("config file", str(path), f"TOML ({error})") from error
    except RecursionError as error:
        raise ConfigError("config file", str(path), "TOML that nests less deeply") from error


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """Keys from variables: `VOICEAGENT_SERVER_PORT` is `server.port`. Others with our prefix are an error.

    Those that Kubernetes sets in every container for a service of ours are passed over: a service `voiceagent` brings `VOICEAGENT_PORT` and
    `VOICEAGENT_SERVICE_HOST`, one `voiceagent-server` even `VOICEAGENT_SERVER_PORT`, with an address in it (its documentation, "Service").

    Raises:
        ConfigError: If a variable with our prefix is not a key.
    """
    names = {_variable(key): key for key in _all_keys()}
    layer: dict[str, object] = {}
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in ENVIRONMENT_RESERVED:
            continue
        if _is_service_link(variable, text):
            continue
        if variable not in names:
            raise ConfigError(
                variable,
                _HIDDEN,
                _known(variable, (*names, *ENVIRONMENT_RESERVED), "a known variable"),
            )
        layer = merge(layer, nested(names[variable].split("."), Unparsed(text)))
    return layer


def assignment_layer(pairs: Iterable[str]) -> Layer:
    """Keys from `key=value` texts, as `--set` takes them. The key is written as in TOML: `menu."hot dog".price=2.50`.

    Raises:
        ConfigError: If a text is not `key=value`.
    """
    layer: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        try:
            table: object = tomllib.loads(f"{key} = 0") if equals else None
        except tomllib.TOMLDecodeError:
            table = None
        path: list[str] = []
        while isinstance(table, Mapping) and len(table) == 1:
            ((name, table),) = table.items()
            path.append(name)
        if not path:
            raise ConfigError("--set", _shown_pair(pair), "key=value, such as server.port=9000")
        layer = merge(layer, nested(path, Unparsed(text.strip())))
    return layer


def preset_name(layers: Sequence[Layer]) -> str:
    """The preset that these layers ask for, strongest layer last: it must be known before it can become a layer."""
    asked: object = _default(next(iter(fields(Config))))
    for layer in layers:
        asked = layer.get("preset", asked)
    return typing.cast(str, _convert("preset", asked, str, "a name or a path"))


def load_config(layers: Sequence[Layer] = ()) -> Config:
    """Merge the layers, weakest first, over the defaults, and check the whole.

    Raises:
        ConfigError: If a key is unknown, a value has the wrong type or range, or two values contradict each other.
    """
    merged: dict[str, object] = {}
    for layer in layers:
        merged = merge(merged, layer)
    values: dict[str, Any] = {}
    for name, value in merged.items():
        if name in SECTIONS:
            values[name] = _section(name, SECTIONS[name], _table(name, value))
        elif name == "tools":
            values[name] = {key: _tool(key, table) for key, table in _table(name, value).items()}
        elif name == "menu":
            values[name] = _convert(name, _table(name, value), object, "tables that nest less deeply")
        elif name == "preset":
            values[name] = preset_name([merged])
        else:
            raise ConfigError(name, _HIDDEN, _known(name, _HINTS, "a known section"))
    return Config(**values)


def _tool(name: str, value: object) -> ToolConfig:
    path = f"tools.{name}"
    if isinstance(value, Mapping):
        value = _with_texts(value, "say_while_running")
    if not NAME.fullmatch(name):
        raise ConfigError(path, "", "a name of letters, digits and underscores, a letter first, at most 64")
    tool: ToolConfig = _section(path, ToolConfig, _table(path, value))
    return tool


def _with_texts(table: Layer, key: str) -> Layer:
    """The table, in which a single text has become a list of one, whatever commas it has."""
    text = table.get(key)
    if not isinstance(text, str) or (isinstance(text, Unparsed) and text.startswith("[")):
        return table
    return {**table, key: [str(text)] if text.strip() else []}


def _section(name: str, kind: type[Any], table: Layer) -> Any:
    hints = typing.get_type_hints(kind)
    known = {key.name: key for key in fields(kind)}
    values: dict[str, Any] = {}
    for key, raw in table.items():
        path = f"{name}.{key}"
        if key not in known:
            near = [f"{name}.{own}" for own in known] + _all_keys()
            raise ConfigError(path, _HIDDEN, _known(path, near, "a known key"))
        expected = known[key].metadata["expected"]
        value = _convert(path, raw, hints[key], expected)
        if not known[key].metadata["check"](value):
            raise ConfigError(path, _shown(path, raw), expected)
        values[key] = value
    try:
        return kind(**values)
    except ConfigError as error:
        if kind is not ToolConfig:
            raise
        raise ConfigError(f"{name}.{error.key}", error.value, error.expected) from error


def _convert(path: str, raw: object, kind: Any, expected: str) -> object:
    """The value as `kind`, or a `ConfigError`. A float key takes an integer; nothing else changes its type."""
    try:
        return convert(raw, kind)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(
            path, _HIDDEN if isinstance(error, RecursionError) else _shown(path, raw), expected
        ) from error


def _table(name: str, value: object) -> Layer:
    if not isinstance(value, Mapping):
        raise ConfigError(name, _HIDDEN, f"a table: [{name}]")
    return value


def _known(name: str, known: Iterable[str], what: str) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"{what}; did you mean {close[0]}?" if close else what


def _shown(path: str, value: object) -> object:
    if path in _SECRETS or _SECRET_TABLES.fullmatch(path):
        return _HIDDEN
    if isinstance(value, str):
        return without_secrets(value) if "://" in value or _URLS.fullmatch(path) else str(value)
    return _HIDDEN if _URLS.fullmatch(path) else value


def _shown_pair(pair: str) -> str:
    """What an error shows of an assignment that is none: the key that it begins with, if there is one."""
    key = max((key for key in _all_keys() if pair.startswith(key)), key=len, default="")
    return pair if pair == key else f"{key}{_HIDDEN}"


def _is_service_link(variable: str, text: str) -> bool:
    if _SERVICE_LINK.fullmatch(variable):
        return True
    return variable.endswith("_PORT") and _SERVICE_ADDRESS.match(text) is not None


def _all_keys() -> list[str]:
    return ["preset", *(f"{name}.{key.name}" for name, kind in SECTIONS.items() for key in fields(kind))]


def _variable(key: str) -> str:
    return ENVIRONMENT_PREFIX + key.upper().replace(".", "_")


def _default(key: Field[Any]) -> object:
    return key.default_factory() if key.default_factory is not MISSING else key.default

"""The reference of every configuration key, written from the dataclasses that check them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from voiceagent.config import ENVIRONMENT_PREFIX, SECTIONS, Config
from voiceagent.config_functions import ToolConfig

_INTRODUCTION = """\
# Configuration

One TOML file; every key has a default, so an empty file is a complete configuration. Weakest first: defaults, the preset, your
file (`voiceagent run --config FILE`, or the variable `VOICEAGENT_CONFIG`), environment variables, `--set key=value` on the command
line. Tables merge key by key; lists and single values replace. A preset is a file of the same shape.

    voiceagent run --config shop.toml --set server.port=9000
    VOICEAGENT_SERVER_PORT=9000 voiceagent run

In a variable or after `--set`, text is taken as it is, a list is `a,b` or a TOML array, and `none` clears a key that may be unset.
A wrong type and a value out of range are errors that name the key, the value and what was expected. An unknown key is an error too, and so
is a variable that begins with `VOICEAGENT_` and is no key, except for those that Kubernetes sets for a service whose name begins so
(`VOICEAGENT_PORT=tcp://…`); their values are not shown, because they may be secrets under a mistyped name. Of a
wrong URL what stands before `@` and behind `?` is not shown either.

This page is written from the code by `make docs`.
"""

_TOOLS = """
Keys of `[tools.NAME]`, a table for each tool; explained with an example in [tools.md](tools.md). `--set tools.NAME.…=value` reaches into
it; variables do not.
"""

_FREE = """
## `[menu]`

A free table. It is handed as it is to the function named by `notes.function`, which says what it means; the built-in café's is
explained in `pipelines/voice_pipelines/presets/cafe.toml`. `--set menu.…=value` reaches into it; variables do not.
"""


def configuration_reference() -> str:
    """The page `docs/configuration.md`, in Markdown."""
    preset = next(key for key in fields(Config) if key.name == "preset")
    parts = [_INTRODUCTION, "\n## Top level\n", *_table("", (preset,))]
    for name, kind in SECTIONS.items():
        parts += [f"\n## `[{name}]`\n", f"\n{kind.__doc__}\n", *_table(f"{name}.", fields(kind))]
    parts += ["\n## `[tools.NAME]`\n", f"\n{ToolConfig.__doc__}\n", _TOOLS]
    parts += _table("tools.NAME.", fields(ToolConfig), has_variables=False)
    return "".join([*parts, _FREE])


def _table(prefix: str, keys: tuple[Field[Any], ...], *, has_variables: bool = True) -> list[str]:
    head = "| key | default | expected | what it does |"
    lines = [f"\n{head} variable |\n|---|---|---|---|---|\n" if has_variables else f"\n{head}\n|---|---|---|---|\n"]
    for key in keys:
        default = key.default_factory() if key.default_factory is not MISSING else key.default
        about, expected = key.metadata["about"], key.metadata["expected"]
        line = f"| `{prefix}{key.name}` | `{_toml(default)}` | {expected} | {about} |"
        if has_variables:
            variable = ENVIRONMENT_PREFIX + (prefix + key.name).upper().replace(".", "_")
            line += f" `{variable}` |"
        lines.append(f"{line}\n")
    return lines


def _toml(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{value}"'
        case tuple():
            return "[]" if not value else str(list(value))
        case Mapping():
            return "{}" if not value else str(dict(value))
        case _:
            return str(value)

"""Where a configuration comes from: preset, file, environment, command line, in this order of strength."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path

from voiceagent.agent import AgentProfile, NoteTaker
from voiceagent.config import (
    Config,
    assignment_layer,
    environment_layer,
    load_config,
    preset_name,
    read_toml,
)
from voiceagent.config_values import Layer
from voiceagent.errors import ConfigError


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(
        Path(entry.name).stem
        for entry in resources.files("voice_pipelines").joinpath("presets").iterdir()
        if entry.name.endswith(".toml")
    )


def read_preset(name: str) -> Layer:
    """A built-in preset by name, or any TOML file by path.

    Raises:
        ConfigError: If it is neither, or not TOML.
    """
    if name in preset_names():
        with resources.as_file(resources.files("voice_pipelines") / "presets" / f"{name}.toml") as path:
            return read_toml(path)
    if name.endswith(".toml"):
        return read_toml(Path(name))
    raise ConfigError("preset", name, f"one of {', '.join(preset_names())}, or the path of a .toml file")


def load(
    *,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Config:
    """The checked configuration.

    Args:
        file: The user's own TOML file.
        assignments: `key=value` pairs from the command line.
        environ: Environment variables.

    Raises:
        ConfigError: Naming the key, the value and what was expected.
    """
    environ = environ or {}
    if file is None and environ.get("VOICEAGENT_CONFIG"):
        file = Path(environ["VOICEAGENT_CONFIG"])
    own: list[Layer] = [read_toml(file)] if file is not None else []
    own += [environment_layer(environ), assignment_layer(assignments)]
    return load_config([read_preset(preset_name(own)), *own])


def agent_profile(config: Config) -> AgentProfile:
    """The agent that a configuration describes, its note function looked up and tried once.

    Raises:
        ConfigError: If the note function cannot be imported or does not accept the menu.
    """
    agent = config.agent
    return AgentProfile(agent.name, agent.instructions, agent.greeting, _notes(config))


def _notes(config: Config) -> Callable[[], NoteTaker] | None:
    name = config.notes.function
    if not name:
        return None
    module_name, _, function_name = name.partition(":")
    try:
        factory: Callable[[Mapping[str, object]], NoteTaker] = getattr(
            importlib.import_module(module_name), function_name
        )
    except (ImportError, AttributeError) as error:
        raise ConfigError("notes.function", name, f"an importable 'package.module:function' ({error})") from error
    factory(config.menu)  # A menu with a mistake is reported at start-up, not to the first caller.
    return lambda: factory(config.menu)

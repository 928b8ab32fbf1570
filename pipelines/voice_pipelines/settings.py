"""Where a configuration comes from: preset, file, environment, command line, in this order of strength."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path

from voice_pipelines.adapters.remote_wire import RemoteEndpoint
from voiceagent.agent import AgentProfile, NoteTaker
from voiceagent.config import Config, assignment_layer, environment_layer, load_config, preset_name, read_toml
from voiceagent.config_keys import is_endpoint_url, without_secrets
from voiceagent.config_values import Layer, merge
from voiceagent.errors import ConfigError, VoiceAgentError
from voiceagent.server_settings import ServerSettings
from webserving.descriptors import Demand

log = logging.getLogger(__name__)

KNOWN_BY_AN_AGENT = ("agent.greeting", "notes.function", "vocabulary.phrases", "silence.prompts")
"""What belongs to an agent as much as its instructions: those of a café are wrong for anybody else."""


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
    own: list[Layer] = []
    if file is not None:
        own.append(read_toml(file))
        import_from(file.parent)
    own += [environment_layer(environ), assignment_layer(assignments)]
    preset = preset_name(own)
    base = read_preset(preset)
    if borrowed := _borrowed(base, own):
        log.warning(
            "agent.instructions are your own, but these are those of the preset %r, since no other was asked for: %s; "
            '`preset = "open"` begins an agent without them',
            preset,
            borrowed,
        )
    if preset not in preset_names():
        import_from(Path(preset).parent)
    return load_config([base, *own])


def _borrowed(preset: Layer, own: Sequence[Layer]) -> str:
    """What an agent with instructions of its own has from a preset that nobody asked for: "" or a list for a sentence."""
    mine: Layer = {}
    for layer in own:
        mine = merge(mine, layer)
    if "preset" in mine or not _has(mine, "agent.instructions"):
        return ""
    kept = [key for key in KNOWN_BY_AN_AGENT if _has(preset, key) and not _has(mine, key)]
    return ", ".join(kept)


def _has(layer: Layer, key: str) -> bool:
    """Whether the layer says anything of a key or a section."""
    section, _, name = key.partition(".")
    table = layer.get(section)
    return isinstance(table, Mapping) and (name in table if name else bool(table))


def import_from(folder: Path) -> None:
    """Let functions that a configuration names lie beside it. Last on the path: nothing that is installed can be shadowed."""
    path = str(folder.resolve())
    if path not in sys.path:
        sys.path.append(path)


def open_files(config: Config) -> Demand:
    """What all conversations take: each its socket, one connection to a remote model in use and one kept alive, one to a tool over HTTP."""
    is_remote = config.models.llm == "remote" or "://" in config.models.llm
    has_endpoint = any(tool.url for tool in config.tools.values())
    return ServerSettings(max_sessions=config.server.max_sessions).open_files(1 + 2 * is_remote + has_endpoint)


def remote_endpoint(config: Config, environ: Mapping[str, str]) -> RemoteEndpoint | None:
    """The remote language model that the configuration asks for, with its key; None when it asks for one on this machine.

    Raises:
        ConfigError: If no URL is given, two differ, or the variable that should hold the key is not set.
    """
    wanted, remote = config.models.llm, config.remote
    if "://" in wanted:
        url = wanted
        if not is_endpoint_url(url):
            raise ConfigError("models.llm", without_secrets(url), "a URL such as 'https://host/v1'")
        if remote.url and remote.url.rstrip("/") != url.rstrip("/"):
            raise ConfigError("models.llm", url, f"`remote`, or the URL that remote.url names: {remote.url}")
    elif wanted == "remote":
        url = remote.url
        if not url:
            raise ConfigError("remote.url", "", "a URL such as 'https://host/v1', because models.llm = 'remote'")
    else:
        return None
    api_key = remote.api_key
    if remote.api_key_env:
        api_key = environ.get(remote.api_key_env, "").strip()
        if not api_key:
            raise ConfigError("remote.api_key_env", remote.api_key_env, "a variable that is set and not empty")
    if not all("!" <= character <= "~" for character in api_key):
        where = "remote.api_key_env" if remote.api_key_env else "remote.api_key"
        raise ConfigError(where, "(hidden)", "a key of visible ASCII characters, which a header can carry")
    return RemoteEndpoint(
        url=url.rstrip("/"),
        model=remote.model,
        dialect="inception" if remote.dialect == "inception" else "openai",
        api_key=api_key,
        timeout_s=remote.timeout_s,
        pause_s=remote.pause_s,
        max_tokens=remote.max_tokens,
        reasoning_effort=remote.reasoning_effort,
        diffusing=remote.diffusing,
    )


def agent_profile(config: Config) -> AgentProfile:
    """The agent that a configuration describes, its note function looked up and tried once. Its tools come from a `Toolbox`.

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
    except Exception as error:  # A module may fail in any way while it is imported.
        raise ConfigError("notes.function", name, f"an importable 'package.module:function' ({error!r})") from error
    try:
        factory(config.menu)  # A menu with a mistake is reported at start-up, not to the first caller.
    except VoiceAgentError:
        raise
    except Exception as error:
        raise ConfigError("notes.function", name, f"a function that takes the table [menu] ({error!r})") from error
    return lambda: factory(config.menu)

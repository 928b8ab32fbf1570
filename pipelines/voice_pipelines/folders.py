"""Where this user's files are, also where there is no such place: in a container as anybody, or with nothing that can be written."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

from voiceagent.errors import ConfigError


def home() -> Path:
    """The user's home; the root where the system knows of none, as container engines have it."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def named(key: str, path: str) -> Path:
    """The place that a key of the configuration names, `~` and `~user` filled in; it need not exist.

    Raises:
        ConfigError: If nothing can have such a name.
    """
    try:
        place = Path(path).expanduser()
        place.exists()
    except (OSError, RuntimeError) as error:  # Too long, or of a user who is not known here.
        raise ConfigError(key, path, f"the path of something that can be looked at ({error})") from error
    return place


def can_be_filled(folder: Path) -> bool:
    """Whether files can be put there; makes the folder if it is not there yet."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def of_this_process() -> Path:
    """A folder that ends with this process, for what can be made again.

    Raises:
        OSError: If no place for temporary files can be written to.
    """
    return Path(_temporary().name)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="voiceagent-")

"""Where compiled code is kept, and what of it goes: folders that nobody else can write to and whose file system lets programs run.

Code that cannot be kept in the user's home (read-only, or mounted `noexec`) is compiled into a folder for this process alone. Loading a file
renews its time, so that what has not been loaded for long is of an older version, compiler or processor, and goes when new code comes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

UNUSED_S = 30 * 24 * 3600.0
"""Since it was loaded last: several versions may be in use side by side, each started once in a while."""
PREFIX = "kernels-"
ELSEWHERE = (Path("/dev/shm"), Path("/var/tmp"))
"""Beside the usual place for temporary files, which may let no programs run."""


def folders() -> Iterator[Path]:
    """Where to look for compiled code, and to put it where `takes_code` allows; the best first."""
    if (home := _home()) is not None:
        yield home
    if (own := _of_this_process()) is not None:
        yield Path(own.name)


def takes_code(folder: Path) -> bool:
    """Whether code may be written there and loaded."""
    return os.access(folder, os.W_OK) and runs_code(folder)


def runs_code(folder: Path) -> bool:
    """Whether code that is there may be loaded: its file system is not mounted `noexec`."""
    try:
        return not (hasattr(os, "statvfs") and os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0))
    except OSError:
        return False


def loaded(target: Path) -> None:
    """This was loaded now."""
    with contextlib.suppress(OSError):
        os.utime(target)


def forget_unused(folder: Path, kept: Path) -> None:
    """Remove what nobody has loaded for `UNUSED_S`, and what compilers that were killed have left. `kept` stays.

    A process that has mapped a removed file keeps it; one that is about to load it compiles it anew.
    """
    for path in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if path == kept or time.time() - path.stat().st_mtime < UNUSED_S:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _home() -> Path | None:
    """The user's own folder for it, which may be read-only; None where others can write to it or there can be none."""
    try:
        folder = Path.home() / ".cache" / "dllm"
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except (OSError, RuntimeError):
        return None
    is_own = not hasattr(os, "getuid") or about.st_uid == os.getuid()
    return folder if is_own and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None


@functools.cache
def _of_this_process() -> tempfile.TemporaryDirectory[str] | None:
    for root in (Path(tempfile.gettempdir()), *ELSEWHERE):
        if takes_code(root):
            with contextlib.suppress(OSError):
                return tempfile.TemporaryDirectory(prefix="dllm-", dir=root)
    return None

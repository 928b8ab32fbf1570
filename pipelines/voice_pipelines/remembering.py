"""What outlives a restart: stage times, so that the first caller's plan is no guess, and timelines, so that a turn can be explained.

Two files in one folder. Neither holds a word of what was said.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from voice_pipelines import folders
from voiceagent.config import Config
from voiceagent.costs import CostModel, CostsDamagedError, Stage
from voiceagent.errors import ConfigError

log = logging.getLogger(__name__)

COSTS, TURNS = "costs.json", "turns.jsonl"
KEPT_TURNS = 500
"""Timelines kept, about 3 kB each; twice as many are on disk before the older half goes."""
TEXTS = ("transcript", "repair", "reply")
SAVE_EVERY = 20
"""Turns after which stage times are saved, in case the process is killed; while there are fewer, whenever their number has doubled."""


def state_folder(
    environ: Mapping[str, str] = os.environ, home: Path | None = None, platform: str = sys.platform
) -> Path:
    """Where programs keep what they learn; it need not exist."""
    home = home or folders.home()
    if platform == "darwin":
        return home / "Library" / "Application Support" / "voiceagent"
    state = environ.get("XDG_STATE_HOME")
    return (Path(state) if state else home / ".local" / "state") / "voiceagent"


def memory_folder(config: Config) -> Path:
    """Where stage times and timelines are remembered."""
    return folders.named("budget.folder", config.budget.folder) if config.budget.folder else state_folder()


@dataclass(slots=True)
class Memory:
    """One process's memory. A folder that cannot be written is told once and costs nothing else."""

    folder: Path
    owners: Mapping[Stage, str]
    """Whose times the stages' are: the parts' names, which say model and device."""
    _turns: int = 0
    _is_broken: bool = field(default=False)

    def restore(self, costs: CostModel) -> tuple[Stage, ...]:
        """Take over the stage times of an earlier run; a damaged file is told, set aside and forgotten."""
        path = self.folder / COSTS
        try:
            return costs.restore(json.loads(path.read_text("utf-8")), self.owners)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except (OSError, ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, CostsDamagedError) else f"not JSON: {error}"
            log.warning("%s is ignored and will be written anew: %s", path, reason)
            return ()

    def save(self, costs: CostModel) -> None:
        """Write the stage times: whole or not at all, whoever is killed."""
        self._guarded(lambda: self._replace(COSTS, json.dumps(costs.as_json(self.owners))))

    def keep(self, response_id: str, timeline: Mapping[str, object], costs: CostModel) -> None:
        """Remember a turn that ended, without its texts."""
        kept = {key: value for key, value in timeline.items() if key not in TEXTS}
        self._guarded(lambda: self._append(json.dumps({"response_id": response_id, **kept})))
        self._turns += 1
        has_doubled = self._turns < SAVE_EVERY and self._turns & (self._turns - 1) == 0
        if has_doubled or self._turns % SAVE_EVERY == 0:
            self.save(costs)

    def _append(self, line: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / TURNS
        if self._turns % KEPT_TURNS == 0 and path.exists():
            lines = path.read_text("utf-8").splitlines()
            if len(lines) > KEPT_TURNS:
                self._replace(TURNS, "\n".join(lines[-KEPT_TURNS:]) + "\n")
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _replace(self, name: str, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        written = self.folder / f".{name}.{os.getpid()}"
        written.write_text(text, "utf-8")
        written.replace(self.folder / name)

    def _guarded(self, write: Callable[[], None]) -> None:
        if self._is_broken:
            return
        try:
            write()
        except OSError as error:
            self._is_broken = True
            log.warning("nothing will be remembered in %s: %s", self.folder, error)


def remembered_turns(folder: Path) -> Sequence[Mapping[str, object]]:
    """The timelines that are kept, oldest first; none where nothing has been remembered yet.

    Raises:
        ConfigError: If there are some and they cannot be read.
    """
    try:
        lines = (folder / TURNS).read_text("utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("budget.folder", str(folder), f"a folder whose {TURNS} can be read ({error})") from error
    turns: list[Mapping[str, object]] = []
    for line in lines:
        try:
            turn = json.loads(line)
        except (ValueError, RecursionError):
            continue  # A process was killed while it wrote this line.
        if isinstance(turn, Mapping):
            turns.append(turn)
    return turns


def find_turn(turns: Sequence[Mapping[str, object]], wanted: str) -> Mapping[str, object] | None:
    """One of them: `last`, a number from the end (`-2`), the start of a response's id, or None when there is no such turn."""
    if wanted == "last" or (wanted.startswith("-") and wanted[1:].isdigit()):
        back = 1 if wanted == "last" else int(wanted[1:])
        return turns[-back] if 0 < back <= len(turns) else None
    if not wanted:
        return None
    return next((turn for turn in reversed(turns) if str(turn.get("response_id", "")).startswith(wanted)), None)


def not_found(turns: Sequence[Mapping[str, object]], wanted: str, folder: Path) -> str:
    """What to say where `find_turn` finds none, and what could be asked for."""
    if not turns:
        return f"nothing is remembered in {folder} yet: `voiceagent run` and `say` do, with budget.remember on"
    there = "one turn is: `last`" if len(turns) == 1 else f"{len(turns)} turns are: `last`, `-1` to `-{len(turns)}`"
    example = turns[-1].get("response_id")
    return f"no turn {wanted!r} is remembered in {folder}; {there}, or by the start of its response's id, such as {example}"


def read_timeline(path: Path) -> Mapping[str, object]:
    """A timeline from a file: by itself, or the last one of what `voiceagent say --json` printed.

    Raises:
        ConfigError: If the file cannot be read or holds none.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("--file", str(path), f"a file with a timeline as JSON ({error})") from error
    if isinstance(data, Mapping) and isinstance(data.get("timeline"), Mapping):
        data = data["timeline"]
    if not isinstance(data, Mapping) or not {"turn", "status"} <= data.keys():
        raise ConfigError("--file", str(path), "a timeline, or what `voiceagent say --json` printed")
    return data

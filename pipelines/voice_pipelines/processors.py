"""How much of this machine's processors is this process's to use, and how busy they are, as the system tells it.

Three things bound it: the set of processors that it may run on, the quota of a container (a control group may use so many seconds of processor time
in each period and is held still for the rest of it), and its weight beside others: how polite it is (`nice`), and what its control groups weigh.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from voiceagent.backends import EngineWork
from voiceagent.foresight import LEAST_FREE

_PROC = Path("/proc")
_BUSY = (0, 2, 5, 6, 7)
"""Of a processor's columns in `/proc/stat` (man 5 proc): user, system, irq, softirq, steal."""
_POLITE = 1
"""The column of programs with a `nice` above 0. They give way to those without, and share evenly with each other."""
_WEIGHT_OF_NICE = 1.25
"""By so much less a program's weight is with each step of `nice` (man 7 sched): at 5 it has a quarter of a processor beside one with 0."""


def usable() -> frozenset[int]:
    """The processors that this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def available_cores() -> int:
    """Cores that this process may use, its quota included; part of one counts as one."""
    found = quota(quota_folders())
    return len(usable()) if found is None else max(min(len(usable()), math.ceil(found.cores)), 1)


def niceness() -> int:
    """This process's `nice`, from -20 to 19; 0 where there is no such thing."""
    return os.getpriority(os.PRIO_PROCESS, 0) if hasattr(os, "getpriority") else 0


def least_share(nice: int) -> float:
    """The share of a processor that a program with this `nice` gets beside one with 0."""
    weight = _WEIGHT_OF_NICE**-nice
    return weight / (weight + 1.0)


# --- how busy they are ----------------------------------------------------------------------------------------------------


def busy_s(processors: Collection[int], nice: int = 0) -> float | None:
    """Seconds that somebody has used these processors since the machine started; None where the system does not tell.

    Whoever gives way to a program with this `nice` does not count.
    """
    try:
        return read_busy_s((_PROC / "stat").read_text(), processors, os.sysconf("SC_CLK_TCK"), nice)
    except (OSError, ValueError, AttributeError):
        return None


def read_busy_s(stat: str, processors: Collection[int], ticks_per_s: int, nice: int = 0) -> float:
    """The same of the text of `/proc/stat`.

    Raises:
        ValueError: If it tells of none of them.
    """
    columns, found = (*_BUSY, _POLITE) if nice > 0 else _BUSY, []
    for line in stat.splitlines():
        name, *ticks = line.split() or [""]
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in processors:
            found.append(sum(int(ticks[column]) for column in columns if column < len(ticks)) / ticks_per_s)
    if not found:
        raise ValueError("/proc/stat: no line for a processor that may be used")
    return sum(found)


@dataclass(slots=True)
class Spared:
    """Processor time that fewer steps would have saved, from the same by the clock of the engine's thread.

    The two differ: an engine that waits for a processor takes less than the clock says, one whose thread has helpers takes more.
    """

    helped: float = 1.0
    """Processor time of thread and helpers for each second of the thread's, at least 1; measured while nothing else runs."""
    cpu_s: float = 0.0
    _spare_s: float = 0.0
    _clock_s: float = 0.0
    _thread_s: float = 0.0
    _share: float = 1.0
    """Of the time by the clock, that of the thread's on a processor, of late."""

    def read(self, spare_s: float, work: EngineWork | None) -> float:
        """Take a reading of what could have been saved until now by the clock, and of the engine's work.

        Returns:
            All of the first in processor seconds. It never falls.
        """
        if work is not None and work.clock_s > self._clock_s:
            self._share = min(max(work.thread_s - self._thread_s, 0.0) / (work.clock_s - self._clock_s), 1.0)
            self._clock_s, self._thread_s = work.clock_s, work.thread_s
        self.cpu_s += max(spare_s - self._spare_s, 0.0) * self._share * self.helped
        self._spare_s = spare_s
        return self.cpu_s


def helped(process_s: float, before: EngineWork, after: EngineWork) -> float:
    """`Spared.helped` of an engine that worked alone while its process took `process_s` of processor time."""
    thread_s = after.thread_s - before.thread_s
    return min(max(process_s / thread_s, 1.0), float(after.threads)) if thread_s > 0.0 else 1.0


# --- a container's weight -------------------------------------------------------------------------------------------------

_USUAL_WEIGHTS = {"cpu.weight": 100, "cpu.shares": 1024}
"""Of control groups of the second and the first version, and what each weighs unless somebody says otherwise."""


def group_share(folders: Sequence[Path]) -> float:
    """The share of a processor that these control groups leave a process beside one other that is busy and of the usual weight, wherever it is.

    The other competes at one level, below the parent that the two have in common, so it is the least of all levels, not their product: that would be
    with a busy one beside the process's group and beside each group around it, and an eighth three groups deep where all have the usual weight.

    Never above a half: what the groups beside weigh, and how many they are, cannot be seen from inside, and Kubernetes, for one, gives all of them much.
    """
    return min((share for folder in folders for share in _shares_of(folder)), default=LEAST_FREE)


def _shares_of(folder: Path) -> list[float]:
    found = [LEAST_FREE]
    for name, usual in _USUAL_WEIGHTS.items():
        try:  # One that runs only where nobody else would (`cpu.idle`) weighs 0; the least is 1.
            weight = max(int((folder / name).read_text()), 1)
        except (OSError, ValueError):
            continue
        found.append(weight / (weight + usual))
    return found


# --- a container's quota --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quota:
    """What a control group may use of the processors, and what has come of it since it was made."""

    cores: float
    used_s: float | None
    """Processor time of everybody in it; None where the system does not tell."""
    held_s: float
    """Periods in which it was held still because it had used its quota up, in seconds."""


def quota_folders(proc: Path = _PROC / "self", controller: str = "cpu") -> tuple[Path, ...]:
    """Folders of this process's control groups, its own first, each of which may set a quota; none where the system has no such thing.

    Args:
        controller: What the quota is of: `cpu` or `memory`. The second version has one group for all of them.
    """
    try:
        groups, mounts = (proc / "cgroup").read_text(), (proc / "mountinfo").read_text()
    except OSError:
        return ()
    paths: dict[str, str] = {}
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            paths["cgroup2"] = path
        elif controller in controllers.split(","):
            paths["cgroup"] = path
    folders: list[Path] = []
    for line in mounts.splitlines():
        fields, _, system = line.partition(" - ")
        (kind, _, options), places = _padded(system.split(" "), 3), fields.split(" ")
        if kind not in paths or len(places) < 5 or (kind == "cgroup" and controller not in options.split(",")):
            continue
        # A container sees its own group as the mount's root, and may still be told its path from outside.
        root, mount = _unescaped(places[3]), Path(_unescaped(places[4]))
        inside = paths[kind].removeprefix(root) if root != "/" else paths[kind]
        parts = [part for part in inside.split("/") if part]
        if ".." in parts or not mount.joinpath(*parts).is_dir():
            parts = []
        folders += [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
    return tuple(folders)


def quota(folders: Sequence[Path]) -> Quota | None:
    """The tightest quota of these control groups, or None where there is none."""
    found = [one for folder in folders if (one := _quota_of(folder)) is not None]
    return min(found, key=lambda one: one.cores, default=None)


def _quota_of(folder: Path) -> Quota | None:
    try:
        if (limit := folder / "cpu.max").exists():
            allowed, period = _padded(limit.read_text().split(), 2)
        else:
            allowed, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        if allowed == "max" or int(allowed) <= 0 or int(period) <= 0:
            return None
        counts = dict(line.split(" ", 1) for line in (folder / "cpu.stat").read_text().splitlines() if " " in line)
        held_s = int(counts.get("nr_throttled", 0)) * int(period) / 1e6
        return Quota(int(allowed) / int(period), _used_s(folder, counts), held_s)
    except (OSError, ValueError):
        return None


def _used_s(folder: Path, counts: dict[str, str]) -> float | None:
    if "usage_usec" in counts:
        return int(counts["usage_usec"]) / 1e6
    try:  # The first version of control groups counts in a controller of its own, often in the same folder.
        return int((folder / "cpuacct.usage").read_text()) / 1e9
    except OSError:
        return None


def _padded(fields: list[str], count: int) -> list[str]:
    return [*fields, *[""] * count][:count]


def _unescaped(text: str) -> str:
    """A path of `mountinfo`, where blanks are written as `\\040`."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)

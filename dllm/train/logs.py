"""What a run writes down: log.jsonl, TensorBoard events, curves.png and run.json."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from dllm.errors import CheckpointError
from dllm.machine import device_name
from dllm.train.accounting import Ledger
from dllm.train.config import TrainConfig
from dllm.train.files import record
from dllm.train.trainer import StepReport

LOG, BOARD, CURVES, RECORD, SAMPLES = "log.jsonl", "tensorboard", "curves.png", "run.json", "samples.jsonl"


_COUNTERS = {"step", "tokens", "learning_rate", "seconds"}
"""Of a log's line: what tells how far a run is. The rest belongs to its step."""


class Board(Protocol):
    """What is used of TensorBoard's `SummaryWriter`."""

    def add_scalar(self, tag: str, value: float, step: int) -> None: ...

    def add_text(self, tag: str, text: str, step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def open_board(folder: Path) -> Board | None:
    """TensorBoard's writer, or None where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer: Any = SummaryWriter  # typed in some versions of torch only
    board: Board = writer(str(folder))
    return board


def as_line(report: StepReport, share: float | None) -> dict[str, Any]:
    """A step as an object of log.jsonl. Counts are the step's, per source; the empty name is padding beside all sources."""
    return {
        "step": report.step,
        "tokens": report.tokens,
        "loss": report.loss,
        **report.parts,
        "gradient_norm": report.gradient_norm,
        "learning_rate": report.learning_rate,
        "seconds": report.seconds,
        "tokens_per_s": Ledger(report.sources).total.tokens / max(report.step_s, 1e-9),
        "share": share,
        "sources": {name: asdict(counts) for name, counts in report.sources.items()},
    }


class RunLog:
    """Appends to a run's log; a resumed run goes on where the former stopped."""

    def __init__(self, out: Path, board: Board | None) -> None:
        self.out, self.board = out, board
        out.mkdir(parents=True, exist_ok=True)
        self._file = (out / LOG).open("a", encoding="utf-8")

    def step(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in line.items():
                if isinstance(value, int | float) and name != "step":
                    self.board.add_scalar(name, float(value), line["step"])

    def samples(self, lines: list[dict[str, Any]]) -> None:
        with (self.out / SAMPLES).open("a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self.board is not None:
            for number, line in enumerate(lines):
                self.board.add_text(f"sample {number}", f"{line['prompt']}\n\n**{line['reply']}**", line["step"])

    def flush(self) -> None:
        self._file.flush()
        if self.board is not None:
            self.board.flush()

    def close(self) -> None:
        self._file.close()
        if self.board is not None:
            self.board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Steps in order. Where a run was resumed from an older state, what was logged beyond that state is left out."""
    steps: dict[int, dict[str, Any]] = {}
    for line in path.read_text("utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that a crash cut off
        steps = (
            {step: kept for step, kept in steps.items() if step < entry["step"]} if entry["step"] in steps else steps
        )
        steps[entry["step"]] = entry
    return list(steps.values())


def thinned(lines: list[dict[str, Any]], most: int = 400) -> list[dict[str, Any]]:
    """At most so many lines, each for a run of steps: the last one's counters, the mean of what is one step's own, no counts by source."""
    size = max(1, -(-len(lines) // most))
    found = []
    for first in range(0, len(lines), size):
        some = lines[first : first + size]
        line = {name: value for name, value in some[-1].items() if name != "sources"}
        for name in line.keys() - _COUNTERS:
            values = [each[name] for each in some if isinstance(each.get(name), int | float)]
            line[name] = round(sum(values) / len(values), 5) if values else None
        found.append(line)
    return found


def plot(lines: list[dict[str, Any]], path: Path) -> bool:
    """Losses, gradient norm, learning rate and speed by tokens; False where matplotlib is not installed or nothing is to be drawn."""
    try:
        import matplotlib
    except ImportError:
        return False
    if not lines:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    known = _COUNTERS | {"gradient_norm", "tokens_per_s", "share", "sources"}
    losses = [name for name in lines[-1] if name not in known]
    panels = [losses, ["gradient_norm"], ["learning_rate"], ["tokens_per_s"]]
    figure, axes = plt.subplots(2, 2, figsize=(10, 7))
    for axis, names in zip(axes.flat, panels, strict=True):
        for name in names:
            points = [(line["tokens"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
            tokens, values = [point[0] for point in points], [point[1] for point in points]
            axis.plot(tokens, values, alpha=0.3, linewidth=0.7)
            axis.plot(tokens, smoothed(values), color=axis.lines[-1].get_color(), label=name)
        axis.set_xlabel("positions")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(f"{path.parent.name}: {lines[-1]['step']} steps, {lines[-1]['seconds'] / 60:.1f} minutes")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def smoothed(values: list[float], share: float = 0.02) -> list[float]:
    """An exponential average over about `share` of the values, without the pull of its start."""
    keep = 1 - 1 / max(1.0, share * len(values))
    total = weight = 0.0
    found = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(total / weight)
    return found


# --- run.json ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Leg:
    """One sitting of a run."""

    started: str
    first_step: int
    ended: str = ""
    last_step: int = 0
    seconds: float = 0.0
    """Work in this sitting."""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(slots=True)
class RunRecord:
    """What a run was made of, for whoever wants to make it again."""

    config: TrainConfig
    data: Mapping[str, Path]
    device: torch.device
    processes: int
    matrix_rate: float
    leg: Leg
    earlier: list[dict[str, Any]] = field(default_factory=list)

    def write(self, out: Path, ledger: Ledger, tokens: int, progress: float) -> None:
        body = {
            "config": self.config.to_json(),
            "data": self.files(out),
            "machine": machine(self.device, self.processes),
            "matrix_rate_tflops": round(self.matrix_rate / 1e12, 4),
            "progress": round(progress, 4),
            "tokens": tokens,
            "sources": ledger.to_json(),
            "legs": [*self.earlier, asdict(self.leg)],
        }
        part = out / f"{RECORD}.part"
        part.write_text(json.dumps(body, indent=2) + "\n", "utf-8")
        part.replace(out / RECORD)

    def files(self, out: Path) -> dict[str, Any]:
        """By source; a file that the record has already and that has not changed in size is not read again."""
        known = read_record(out).get("data", {})
        found = {}
        for name, path in sorted(self.data.items()):
            old = known.get(name)
            is_same = old is not None and old["path"] == str(path) and old["bytes"] == path.stat().st_size
            found[name] = old if is_same else asdict(record(path))
        return found


def read_record(out: Path) -> dict[str, Any]:
    """A run's run.json, empty where there is none."""
    path = out / RECORD
    body: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return body


def publish(run: Path, folder: Path) -> None:
    """Copy what tells of a run to a folder that is kept with the code: the record with names instead of paths, a thinned log, curves, samples.

    Raises:
        CheckpointError: If the run has no record.
    """
    body = read_record(run)
    if not body:
        raise CheckpointError(f"{run / RECORD}: no record of a run")
    for entry in body["data"].values():
        entry["path"] = Path(entry["path"]).name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(body, indent=2) + "\n", "utf-8")
    lines = thinned(read_log(run / LOG))
    (folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    for name in (CURVES, SAMPLES):
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)


def machine(device: torch.device, processes: int) -> dict[str, Any]:
    return {
        "device": device.type,
        "name": device_name(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }

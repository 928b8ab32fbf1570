"""All that is to be asked of a GPU, unattended: one piece after another, the most valuable first, none begun that the time left is too short for.

    python benchmarks/gpu.py --save runs/gpu-bench      # what `make gpu-bench` runs, in under ten minutes
    python benchmarks/gpu.py --tiny --save runs/tiny    # such pieces on a CPU at sizes of no consequence: that all of it runs

A piece is one process or several, ended at their limit. What it has written by then is kept: every few seconds the folder holds all that there is, in at most
eight small files: `report.json` (what became of each piece), `results.json` (their figures), `log.txt` (the end of what each printed) and pictures. A piece
that fails takes no other with it. The exit status tells whether all that was begun came to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 540.0
"""Whoever rents a machine by the ten minutes needs some to get there and back."""
POLL_S = 0.2
KEEP_S = 5.0
"""Between two copies of what there is: so much is lost when all of it is ended from outside."""
GRACE_S = 5.0
"""For a process to end after it is asked to."""
LOG_BYTES = 60_000
"""Of what one process printed, its end."""
PICTURES = ("step-of-one/step", "kernels/kernels", "step-of-many/step", "engine/engine")
"""Kept under the names of their pieces."""
JOBS = 12
"""Test files at once: most of their time is the compiler's, which works for one kernel at once."""
NEEDED = ("numpy", "torch", "triton", "transformers", "tokenizers", "safetensors", "jinja2", "pytest", "hypothesis")

NO_TEST = "no test was left to run"
SPLIT = dict.fromkeys(
    ("test_commit_from_logits.py", "test_skinny_linear.py"),
    (
        "torch.float32",
        "torch.bfloat16",
        "torch.float16",
        "not torch.float32 and not torch.bfloat16 and not torch.float16",
    ),
)
"""Files of marked tests that one process would be at for minutes, by what picks a part of each."""

Outcome: TypeAlias = Literal["ran", "failed", "ended at its limit", "left out"]


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    arguments: tuple[str, ...]
    """Behind the interpreter. `{out}` is a folder of its own."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What is begun together and judged together."""

    name: str
    commands: tuple[Command, ...]
    limit_s: float
    least_s: float
    """With less time left it is not begun."""
    jobs: int = 1


@dataclass(slots=True)
class Running:
    command: Command
    process: subprocess.Popen[bytes]
    began: float


@dataclass(slots=True)
class Told:
    """What became of a piece."""

    piece: str
    outcome: Outcome = "left out"
    seconds: float = 0.0
    commands: dict[str, str] = field(default_factory=dict)
    """How each ended: its exit status, or "ended at its limit", or "not begun"."""


def test_commands() -> tuple[tuple[Command, ...], tuple[Command, ...]]:
    """Tests marked `gpu`, and the others that run kernels; a process for each file."""
    marked = [
        path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text("utf-8")
    ]
    # The older tests of commit-from-logits compile it for some hundred shapes: those that are marked are enough on a device.
    others = [*sorted((ROOT / "tests" / "kernels").glob("test_*.py")), ROOT / "tests" / "dllm" / "test_kernels_on.py"]
    others = [path for path in others if path.name not in ("test_commit_from_logits.py", "test_compiles_for_gpu.py")]

    def command(path: Path, marks: str, part: str = "") -> Command:
        options = ("-q", "-W", "default", "-p", "no:cacheprovider", "--tb=short", "-m", marks, "-k", part)
        name = ", ".join(filter(None, (path.stem, marks, part)))
        return Command(name, ("-m", "pytest", *options, str(path.relative_to(ROOT))))

    return (
        tuple(command(path, "gpu", part) for path in marked for part in SPLIT.get(path.name, ("",))),
        tuple(command(path, "not gpu") for path in others),
    )


def pieces_for_a_gpu() -> list[Piece]:
    marked, others = test_commands()

    def bench(name: str, limit_s: float, least_s: float, script: str, *options: str) -> Piece:
        return Piece(name, (Command(name, (f"benchmarks/{script}.py", *options)),), limit_s, least_s)

    step = ("--device", "cuda", "--seconds", "1.5", "--save", "{out}")
    return [
        bench("commit", 60, 20, "kernels", "--op", "commit_from_logits", "--budget", "40", "--compile-budget", "0", "--save", "{out}"),
        bench("step of one", 100, 30, "step", *step, "--batch", "1", "--canvas", "32", "--budget", "70", "--compile-budget", "0"),
        Piece("marked tests", marked, 130, 40, JOBS),
        bench("kernels", 90, 30, "kernels", "--but", "commit_from_logits", "--budget", "65", "--compile-budget", "0", "--save", "{out}"),
        bench("step of many", 90, 40, "step", *step, "--batch", "4", "--batch", "16", "--budget", "55", "--compile-budget", "0"),
        bench("engine", 80, 40, "engine", "--device", "cuda", "--graphs", "--budget", "60", "--seconds", "3", "--ar-compile", "none", "--save", "{out}/engine.json",
              "--plot", "{out}/engine.png"),
        # What waits for other compilers comes last: half a minute for each network.
        bench("step beside a compiled twin", 90, 45, "step", *step, "--geometry", "1.7B", "--batch", "1", "--canvas", "32", "--compile-budget", "90"),
        Piece("other tests", others, 200, 30, JOBS),
    ]  # fmt: skip


def pieces_for_a_cpu() -> list[Piece]:
    """The code paths of those for a GPU, at sizes of no consequence."""

    def bench(name: str, script: str, *options: str) -> Piece:
        return Piece(name, (Command(name, (f"benchmarks/{script}.py", *options)),), 400, 1)

    marked, others = test_commands()
    some = [command for command in others if command.name.startswith(("test_philox", "test_choose"))]
    tiny = ("--tiny", "--seconds", "0.1", "--save", "{out}")
    return [
        bench("commit", "kernels", "--op", "commit_from_logits", "--runs", "2", "--compile-budget", "0", "--save", "{out}"),
        bench("step of one", "step", *tiny, "--batch", "1"),
        # Without a device nothing of them is left to run, but each must be collected.
        Piece("marked tests", tuple(command for command in marked if "test_select" in command.name), 400, 1, 2),
        bench("kernels", "kernels", "--but", "commit_from_logits", "--runs", "1", "--compile-budget", "0", "--save", "{out}"),
        bench("engine", "engine", "--geometry", "tiny", "--batch", "1", "--rounds", "1", "--least-rounds", "1", "--ar-tokens", "2",
              "--save", "{out}/engine.json", "--plot", "{out}/engine.png"),
        Piece("other tests", tuple(some), 400, 1, 2),
    ]  # fmt: skip


class Driver:
    """Runs pieces against one deadline and keeps their results.

    Args:
        save: Holds what there is at any moment; what an earlier run left there goes.
        work: Of the pieces' own files.
        deadline_s: Seconds from now after which nothing runs.
    """

    def __init__(self, save: Path, work: Path, deadline_s: float, head: dict[str, Any]) -> None:
        self._save, self._work, self._head = save, work, head
        self._began = time.monotonic()
        self._deadline, self._kept = self._began + deadline_s, 0.0
        self.told: list[Told] = []

    def run(self, pieces: Sequence[Piece]) -> bool:
        """Whether every piece that was begun came to its end without a failure."""
        for piece in pieces:
            self.told.append(Told(piece.name))
            left = self._deadline - time.monotonic() - GRACE_S
            if left >= piece.least_s:
                self._run(piece, min(piece.limit_s, left), self.told[-1])
            self._keep()
            one = self.told[-1]
            print(
                f"{time.monotonic() - self._began:6.0f} s  {one.piece}: {one.outcome}, {one.seconds:.0f} s", flush=True
            )
        return all(told.outcome in ("ran", "left out") for told in self.told)

    def _run(self, piece: Piece, limit_s: float, told: Told) -> None:
        began = time.monotonic()
        waiting, running = list(piece.commands), list[Running]()
        told.commands = {command.name: "not begun" for command in piece.commands}
        try:
            while waiting or running:
                is_over = time.monotonic() - began > limit_s
                while waiting and len(running) < piece.jobs and not is_over:
                    running.append(self._start(piece, waiting.pop(0)))
                for one in list(running):
                    status = one.process.poll()
                    if status is None and is_over:
                        _end(one.process)
                        told.commands[one.command.name] = "ended at its limit"
                    elif status is not None:
                        # 5 is pytest's own: without a device nothing of a file is left to run.
                        is_empty = status == 5 and "pytest" in one.command.arguments
                        told.commands[one.command.name] = NO_TEST if is_empty else str(status)
                    else:
                        continue
                    running.remove(one)
                if is_over and not running:
                    break
                told.seconds = round(time.monotonic() - began, 1)
                if time.monotonic() - self._kept > KEEP_S:
                    self._keep()
                time.sleep(POLL_S)
        finally:
            for one in running:
                _end(one.process)
        told.seconds = round(time.monotonic() - began, 1)
        ends = set(told.commands.values()) - {NO_TEST} or {"0"}
        late = ends & {"ended at its limit", "not begun"}
        told.outcome = "ran" if ends == {"0"} else "ended at its limit" if ends <= {"0"} | late else "failed"

    def _start(self, piece: Piece, command: Command) -> Running:
        out = self._out(piece.name)
        out.mkdir(parents=True, exist_ok=True)
        arguments = [argument.replace("{out}", str(out)) for argument in command.arguments]
        with (out / f"{_plain(command.name)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return Running(command, process, time.monotonic())

    def _out(self, piece: str) -> Path:
        return self._work / _plain(piece)

    def _keep(self) -> None:
        """Copy what there is to where it is looked for; every file is whole at any moment."""
        self._kept = time.monotonic()
        report = {
            **self._head,
            "seconds": round(time.monotonic() - self._began, 1),
            "pieces": [
                {"name": one.piece, "outcome": one.outcome, "seconds": one.seconds, "commands": one.commands}
                for one in self.told
            ],
        }
        self._write("report.json", json.dumps(report, indent=1) + "\n")
        results: dict[str, Any] = {}
        logs: list[str] = []
        for one in self.told:
            for path in sorted(self._out(one.piece).glob("*.json")):
                # One that is just being written comes with the next copy.
                with contextlib.suppress(json.JSONDecodeError):
                    results[one.piece] = json.loads(path.read_text("utf-8"))
            for path in sorted(self._out(one.piece).glob("*.log")):
                logs.append(f"==== {one.piece}: {path.stem}\n{_end_of(path)}")
        self._write("results.json", json.dumps(results, indent=1) + "\n")
        self._write("log.txt", "\n".join(logs) + "\n")
        for name in PICTURES:
            if (path := self._work / f"{name}.png").exists():
                shutil.copyfile(path, self._save / f"{path.parent.name}.png")

    def _write(self, name: str, text: str) -> None:
        part = self._work / f"{name}.part"
        part.write_text(text, "utf-8")
        shutil.copyfile(part, self._save / f".{name}")
        os.replace(self._save / f".{name}", self._save / name)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        return file.read().decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S / 2)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def versions() -> dict[str, str]:
    """Of what the pieces import; "missing" tells at the head of the report why a piece failed."""

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "missing"

    return {"python": sys.version.split()[0], **{name: version(name) for name in NEEDED}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, required=True, metavar="DIR", help="where results are kept as they come")
    parser.add_argument("--tiny", action="store_true", help="on a CPU: that all of it runs")
    parser.add_argument("--deadline", type=float, default=DEADLINE_S, help="seconds in all (default 540)")
    parser.add_argument("--piece", action="append", help="only these, by their names; may be repeated")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([".", "kernels", "pipelines"])
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "MPLBACKEND": "Agg"}
    if options.tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if not options.tiny:
        import torch

        if not torch.cuda.is_available():
            print("a CUDA device is needed, and torch sees none; --tiny is for a CPU", file=sys.stderr)
            return 2
    pieces = pieces_for_a_cpu() if options.tiny else pieces_for_a_gpu()
    names = [piece.name for piece in pieces]
    if unknown := sorted(set(options.piece or ()) - set(names)):
        parser.error(f"--piece {unknown[0]}: expected one of {', '.join(names)}")
    options.save.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "results.json", "log.txt", *(f"{name.partition('/')[0]}.png" for name in PICTURES)):
        (options.save / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-bench-") as work:
        driver = Driver(options.save, Path(work), options.deadline, {"versions": versions(), "tiny": options.tiny})
        is_well = driver.run([piece for piece in pieces if options.piece is None or piece.name in options.piece])
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())

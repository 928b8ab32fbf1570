"""The unattended run on a GPU: what fails or takes too long costs nothing else, and what there is stands in few small files at any moment."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
MOST_FILES, MOST_BYTES = 8, 16 * 2**20
"""What comes back from a rented machine."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("gpu")
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(module, "KEEP_S", 0.05)
    monkeypatch.setattr(module, "GRACE_S", 1.0)
    return module


def piece(gpu: ModuleType, name: str, *scripts: str, limit_s: float = 60, least_s: float = 0, jobs: int = 1) -> object:
    commands = tuple(
        gpu.Command(f"{name} {at}", ("-c", textwrap.dedent(script), "{out}")) for at, script in enumerate(scripts)
    )
    return gpu.Piece(name, commands, limit_s, least_s, jobs)


def report(folder: Path) -> dict[str, dict[str, object]]:
    return {one["name"]: one for one in json.loads((folder / "report.json").read_text("utf-8"))["pieces"]}


WRITES = """
import json, pathlib, sys
print("some words")
pathlib.Path(sys.argv[1], "figures.json").write_text(json.dumps({"p50_ms": 1.5}))
"""
WRITES_THEN_HANGS = WRITES + "\nimport time\ntime.sleep(600)\n"


def test_what_fails_or_hangs_takes_no_other_with_it_and_keeps_what_it_had_written(
    gpu: ModuleType, tmp_path: Path
) -> None:
    save, work = tmp_path / "save", tmp_path / "work"
    save.mkdir(), work.mkdir()
    driver = gpu.Driver(save, work, 120.0, {})
    began = time.monotonic()
    is_well = driver.run(
        [
            piece(gpu, "broken", "raise SystemExit('no such device')"),
            piece(gpu, "stuck", WRITES_THEN_HANGS, limit_s=2.0),
            piece(gpu, "good", WRITES),
        ]
    )
    assert not is_well and time.monotonic() - began < 60
    told = report(save)
    assert [one["outcome"] for one in told.values()] == ["failed", "ended at its limit", "ran"]
    assert told["broken"]["commands"] == {"broken 0": "1"}
    assert told["stuck"]["commands"] == {"stuck 0": "ended at its limit"}
    assert json.loads((save / "results.json").read_text()) == {"stuck": {"p50_ms": 1.5}, "good": {"p50_ms": 1.5}}
    log = (save / "log.txt").read_text()
    assert "no such device" in log and log.count("some words") == 2


def test_nothing_is_begun_that_the_time_left_is_too_short_for_and_all_ends_at_the_deadline(
    gpu: ModuleType, tmp_path: Path
) -> None:
    driver = gpu.Driver(tmp_path, tmp_path / "work", 3.0, {})
    (tmp_path / "work").mkdir()
    began = time.monotonic()
    hangs = "import time; time.sleep(600)"
    assert not driver.run([piece(gpu, "long", hangs), piece(gpu, "late", WRITES, least_s=2.5)])
    assert time.monotonic() - began < 30
    told = report(tmp_path)
    assert [one["outcome"] for one in told.values()] == ["ended at its limit", "left out"]
    assert told["late"]["commands"] == {}


def test_results_are_there_while_a_piece_still_runs_and_files_are_whole_few_and_small(
    gpu: ModuleType, tmp_path: Path
) -> None:
    """Ended from outside in the middle, as a rented machine is."""
    save = tmp_path / "save"
    script = f"""
        import sys, tempfile, pathlib
        sys.path.insert(0, {str(ROOT / "benchmarks")!r})
        import gpu
        gpu.KEEP_S = 0.05
        save, work = pathlib.Path({str(save)!r}), pathlib.Path(tempfile.mkdtemp())
        save.mkdir()
        driver = gpu.Driver(save, work, 300.0, {{}})
        noisy = gpu.Command("noisy", ("-c", "print('x' * 40_000_000); import time; time.sleep(600)"))
        first = gpu.Command("first", ("-c", {WRITES!r}, "{{out}}"))
        driver.run([gpu.Piece("first", (first,), 60, 0), gpu.Piece("noisy", (noisy,), 250, 0)])
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], start_new_session=True)
    try:
        give_up = time.monotonic() + 120
        while time.monotonic() < give_up:
            if (save / "log.txt").exists() and "==== noisy" in (save / "log.txt").read_text():
                break
            time.sleep(0.05)
        results = json.loads((save / "results.json").read_text())
        assert results == {"first": {"p50_ms": 1.5}}
        assert report(save)["first"]["outcome"] == "ran"
    finally:
        os.killpg(process.pid, 9)
        process.wait()
    files = [path for path in save.iterdir() if not path.name.startswith(".")]
    assert len(files) <= MOST_FILES and all(path.stat().st_size < MOST_BYTES for path in files)


def test_a_process_that_starts_others_leaves_none_behind(gpu: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    child = tmp_path / "child"
    starts = f"""
        import pathlib, subprocess, sys, time
        one = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path({str(child)!r}).write_text(str(one.pid))
        time.sleep(600)
    """
    gpu.Driver(tmp_path, tmp_path / "work", 60.0, {}).run([piece(gpu, "parent", starts, limit_s=4.0)])
    number = int(child.read_text())
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up and is_running(number):
        time.sleep(0.05)
    assert not is_running(number)


def is_running(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_the_plan_fits_ten_minutes_and_begins_with_what_matters_most(gpu: ModuleType) -> None:
    pieces = gpu.pieces_for_a_gpu()
    assert [one.name for one in pieces[:2]] == ["commit", "step of one"]
    assert gpu.DEADLINE_S + gpu.GRACE_S < 600
    # Every piece up to the last two comes to its turn even when all before it run into their limits.
    spent = 0.0
    for one in pieces[:-2]:
        assert one.least_s <= one.limit_s and spent + one.least_s < gpu.DEADLINE_S - gpu.GRACE_S, one.name
        spent += one.limit_s
    marked = {command.arguments[-1] for one in pieces if one.name == "marked tests" for command in one.commands}
    assert {
        "tests/kernels/test_glue.py",
        "tests/kernels/test_canvas_attention.py",
        "tests/dllm/test_graphs.py",
    } <= marked


MISSING = (
    *("websockets", "starlette", "uvicorn", "soxr", "outlines_core", "faster_whisper", "ctranslate2", "piper", "silero_vad"),
    *("espeakng_loader", "num2words", "pocketsphinx", "soundfile", "httpx2", "openai", "pydantic", "playwright", "hatchling"),
)  # fmt: skip
"""What the environment of a rented machine lacks of what tests here have."""


def test_all_of_it_can_be_imported_where_only_the_libraries_of_a_gpu_machine_are(gpu: ModuleType) -> None:
    """Benchmarks, and every test file of the plan, in one process that knows no others."""
    files = sorted({c.arguments[-1] for one in gpu.pieces_for_a_gpu() for c in one.commands if "pytest" in c.arguments})
    script = f"""
        import sys
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {MISSING!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Missing())
        sys.path[:0] = ["benchmarks"]
        import engine, kernel_cases, kernels, measuring, step
        import pytest
        raise SystemExit(pytest.main(["-q", "--collect-only", "-W", "default", "-p", "no:cacheprovider", *{files!r}]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": ".:kernels:pipelines"}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

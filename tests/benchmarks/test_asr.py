"""What `benchmarks/asr.py` prints and writes, with a recogniser that costs nothing."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from tests.benchmarks.test_tapes import BENCHMARKS
from voice_pipelines.asr.vocabulary import Vocabulary
from voiceagent.backends import Samples


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = importlib.import_module("asr")

    def listener(options: argparse.Namespace, vocabulary: Vocabulary | None) -> tuple[object, float]:
        def listen(samples: Samples) -> object:
            return bench.Listened("a letter please", 0.01, 0.001)

        return listen, 0.0

    monkeypatch.setattr(bench, "listener", listener)
    return bench


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    folder = tmp_path / "speech"
    folder.mkdir()
    soundfile.write(folder / "one.flac", np.zeros(1600, np.float32), 16_000)
    entry = {"path": "one.flac", "kind": "order", "text": "a latte please"}
    (folder / "manifest.jsonl").write_text(json.dumps(entry) + "\n", "utf-8")
    return folder


def test_results_are_written_where_that_is_asked_for_and_nowhere_else(
    bench: ModuleType, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = BENCHMARKS.parent / "pipelines/voice_pipelines/presets/cafe.toml"
    arguments = ["--data", str(speech), "--preset", str(preset)]
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    before = set(tmp_path.rglob("*"))
    bench.main(arguments)
    assert set(tmp_path.rglob("*")) == before
    assert "| `order` | 1 | 3 | 33.3 % |" in capsys.readouterr().out

    mine = tmp_path / "mine.json"
    bench.main([*arguments, "--save", str(mine)])
    assert set(tmp_path.rglob("*")) - before == {mine, mine.with_suffix(".md")}
    assert json.loads(mine.read_text("utf-8"))["runs"]["with the vocabulary"]["kinds"][0]["words"] == 3
    assert "33.3 %" in mine.with_suffix(".md").read_text("utf-8")


def test_what_was_misheard_is_printed(bench: ModuleType, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--data", str(speech), "--errors"])
    assert "one.flac\n  said  a latte please\n  heard a letter please" in capsys.readouterr().out


def test_a_comparison_which_is_only_printed_takes_no_file(bench: ModuleType, speech: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--data", str(speech), "--compare", "topn=2", "--save", str(tmp_path / "mine.json")])

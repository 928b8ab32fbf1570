"""Recordings become tapes, and what is made of one once is read back the same."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RATE = 16_000


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tapes")


def test_a_tape_is_read_back_as_it_was_written(tapes: ModuleType) -> None:
    heard = (tapes.Heard(0.5, "a"), tapes.Heard(0.9, "a tea"))
    tape = tapes.Tape("a.flac", "order", "a tea", 1.5, 0.7, 0.6, "a", (0.1, 0.9), heard)
    assert tapes.Tape.from_json(json.loads(json.dumps(asdict(tape)))) == tape


def test_what_was_made_once_is_taken_from_the_cache_and_a_missing_place_too(
    tapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, bool]] = []

    def make(self: object, entry: dict[str, object], *, with_pause: bool) -> object:
        made.append((str(entry["path"]), with_pause))
        if with_pause:
            return None
        return tapes.Tape(entry["path"], "order", entry["text"], 1.0, None, 0.0, "", (0.5,), ())

    monkeypatch.setattr(tapes, "Splicer", lambda folder, seed: None)
    monkeypatch.setattr(tapes.TapeMaker, "_make", make)
    entry = {"path": "a.flac", "text": "tea"}
    for _ in range(2):
        maker = tapes.TapeMaker(tmp_path, tmp_path / "cache", None, "cafe", 0)
        assert maker.make(entry, with_pause=True) is None
        assert maker.make(entry, with_pause=False).text == "tea"
    assert made == [("a.flac", True), ("a.flac", False)]
    tapes.TapeMaker(tmp_path, tmp_path / "cache", None, "cafe", 1).make(entry, with_pause=False)
    assert len(made) == 3, "another seed is another tape"

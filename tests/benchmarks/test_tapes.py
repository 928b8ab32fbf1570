"""Recordings become tapes, and what is made of one once is read back the same."""

from __future__ import annotations

import importlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
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


class SlowDecoder:
    """Hears a word more with each block, and takes processor time for it."""

    def __init__(self, takes_s: float) -> None:
        self._takes_s, self._blocks = takes_s, 0

    def start(self) -> None:
        self._blocks = 0

    def feed(self, pcm: bytes) -> None:
        self._blocks += 1
        began = time.process_time()
        while time.process_time() < began + self._takes_s:
            pass

    def hypothesis(self) -> SimpleNamespace:
        words = tuple(SimpleNamespace(text=f"word{number}") for number in range(self._blocks))
        return SimpleNamespace(words=words, confidence=0.5)

    def drop(self) -> None:
        pass


def test_a_busy_machine_changes_nothing_on_a_tape_and_the_share_that_is_set_does(
    tapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tapes, "Splicer", lambda folder, seed: None)
    audio = np.full(2 * RATE, 0.1, np.float32)
    voice = [0.0] * 8 + [0.9] * 56

    def heard(takes_s: float, pace: float) -> list[tuple[float, str]]:
        maker = tapes.TapeMaker(tmp_path, tmp_path, lambda: SlowDecoder(takes_s), "cafe", 0, pace=pace)
        return [(each.at_s, each.text) for each in maker._hear(audio, voice)]

    idle = heard(0.0, 0.1)
    assert idle and idle == heard(0.02, 0.1)
    later = heard(0.0, 0.5)
    assert [text for _, text in later] == [text for _, text in idle]
    # Once it has caught up with the sound from before the voice was found, each block of 100 ms is done 40 ms later.
    assert [round(after - before, 4) for (after, _), (before, _) in zip(later, idle, strict=True)][-5:] == [0.04] * 5


def test_tapes_of_another_pace_are_others(tapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []

    def make(self: object, entry: dict[str, object], *, with_pause: bool) -> object:
        made.append(self._pace)  # type: ignore[attr-defined]
        return None

    monkeypatch.setattr(tapes, "Splicer", lambda folder, seed: None)
    monkeypatch.setattr(tapes.TapeMaker, "_make", make)
    for pace in (0.13, 0.2, 0.13):
        tapes.TapeMaker(tmp_path, tmp_path / "cache", None, "cafe", 0, pace=pace).make(
            {"path": "a.flac", "text": "tea"}, with_pause=True
        )
    assert made == [0.13, 0.2]


def test_a_tape_does_not_depend_on_those_that_were_made_before_it(
    tapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Remembering(SlowDecoder):
        def start(self) -> None:
            """What it heard before stays, as some of it does in PocketSphinx."""

    monkeypatch.setattr(tapes, "Splicer", lambda folder, seed: None)
    maker = tapes.TapeMaker(tmp_path, tmp_path, lambda: Remembering(0.0), "cafe", 0)
    audio, voice = np.full(RATE, 0.1, np.float32), [0.9] * 32
    first = list(maker._hear(audio, voice))
    assert first and list(maker._hear(audio, voice)) == first

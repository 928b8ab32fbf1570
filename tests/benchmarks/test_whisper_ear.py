"""Whisper's words come when the adapter's window asks for them and a decode has taken its time."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from voice_pipelines.adapters.whisper_guards import Segment
from voiceagent.backends import Samples, Word

BLOCK_S = 0.05


@pytest.fixture
def whisper_ear(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("whisper_ear")


def word_per_half_second(samples: Samples, prompt: str) -> tuple[Segment, ...]:
    voiced = np.flatnonzero(samples)
    count = 0 if not len(voiced) else int((voiced[-1] + 1) / 8000)
    words = tuple(Word(f"w{i}", 0.5 * i, 0.5 * i + 0.5, 0.9) for i in range(count))
    return (Segment(" ".join(word.text for word in words), words, -0.2, 0.0, 1.0),)


def audio(speech_s: float, silence_s: float) -> list[Samples]:
    samples = np.concatenate((np.full(round(speech_s * 16_000), 0.1), np.zeros(round(silence_s * 16_000))))
    return np.split(samples.astype(np.float32), range(800, len(samples), 800))


def test_partials_are_there_a_decode_after_each_step_and_behind_a_pause_the_final_needs_none(
    whisper_ear: ModuleType,
) -> None:
    ear = whisper_ear.WhisperEar(word_per_half_second, decode_s=0.2)
    told = [each for at, block in enumerate(audio(2.0, 1.0)) for each in ear.feed(block, (at + 1) * BLOCK_S)]
    assert [(round(each.at_s, 2), each.text) for each in told] == [
        (0.95, "w0"),
        (1.7, "w0 w1 w2"),
        (2.45, "w0 w1 w2 w3"),
    ]
    assert ear.finish(3.0) == whisper_ear.Told(3.0, "w0 w1 w2 w3"), "it was decoded in the pause"


def test_an_end_without_a_pause_is_a_decode_away(whisper_ear: ModuleType) -> None:
    ear = whisper_ear.WhisperEar(word_per_half_second, decode_s=0.2)
    for at, block in enumerate(audio(1.0, 0.0)):
        ear.feed(block, (at + 1) * BLOCK_S)
    final = ear.finish(1.0)
    assert (round(final.at_s, 2), final.text) == (1.2, "w0 w1")


def test_silence_is_not_decoded(whisper_ear: ModuleType) -> None:
    def never(samples: Samples, prompt: str) -> tuple[Segment, ...]:
        raise AssertionError("silence was decoded")

    ear = whisper_ear.WhisperEar(never)
    assert [ear.feed(block, 0.0) for block in audio(0.0, 1.0)] == [[]] * 20
    assert ear.finish(1.0) == whisper_ear.Told(1.0, "")

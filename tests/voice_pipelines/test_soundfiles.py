"""Sound files in and out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import DATA
from voice_pipelines.soundfiles import read_sound, write_sound


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    samples = (np.arange(-100, 100) / 128).astype(np.float32)
    write_sound(tmp_path / "a.wav", samples, 16_000)
    assert np.abs(read_sound(tmp_path / "a.wav") - samples).max() <= 1 / 32768


def test_any_rate_and_any_channels_become_mono_at_16_khz(tmp_path: Path) -> None:
    time = np.arange(44_100) / 44_100
    left = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, np.zeros_like(left)], axis=1), 44_100)
    samples = read_sound(tmp_path / "stereo.wav")
    assert samples.dtype == np.float32
    assert abs(len(samples) - 16_000) <= 1
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.25 / np.sqrt(2), rel=0.02)


def test_a_recording_keeps_its_length() -> None:
    path = DATA / "bargein" / "barge_0.mic.flac"
    assert len(read_sound(path)) == soundfile.info(path).frames


def test_a_file_that_is_no_sound_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.wav"
    path.write_text("no sound")
    with pytest.raises(ValueError, match=r"notes\.wav is not a sound file"):
        read_sound(path)
    with pytest.raises(FileNotFoundError):
        read_sound(tmp_path / "missing.wav")


def test_an_unknown_kind_of_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ends in .wav or .flac"):
        write_sound(tmp_path / "a.xyz", np.zeros(1, np.float32), 16_000)
    assert not list(tmp_path.iterdir())


def test_samples_without_a_header_and_samples_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    path = tmp_path / "call.raw"
    path.write_bytes(bytes(320))
    with pytest.raises(ValueError, match=r"call\.raw has no header"):
        read_sound(path)
    path = tmp_path / "broken.wav"
    soundfile.write(path, np.array([0.0, np.nan, 0.0]), 16_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"broken\.wav has samples that are no numbers"):
        read_sound(path)

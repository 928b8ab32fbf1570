"""`voiceagent say` as a user runs it: a recording in, a reply and its timeline out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.conftest import DATA
from tests.e2e.processes import ROOT
from voice_pipelines.measure import first_audible_s
from voiceagent.audio import StreamingResampler
from voiceagent.backends import Samples

ORDER = "order/1cf61395-1205-46c4-bf1c-2e43dd489455.flac"
"""make me a dark roast iced coffee"""
ORDER_END_S = 2.62
ROOM = "room/room_a54bceb3.flac"
LIMIT_S = 600.0
"""Against a hang; a busy machine may take minutes to load everything."""


@dataclass(frozen=True)
class Said:
    """One finished `voiceagent say`."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        (line,) = self.out.splitlines()
        report: dict[str, Any] = json.loads(line)
        return report


def start(*words: str) -> subprocess.Popen[str]:
    places = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "pipelines")]
    command = [sys.executable, "-m", "voice_pipelines.cli", "say", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def end(process: subprocess.Popen[str]) -> Said:
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    return Said(process.returncode, out, err)


def spoken_order(rate_hz: int) -> Samples:
    """The order with a little of the silence after it."""
    samples, file_rate_hz = soundfile.read(DATA / ORDER, dtype="float32")
    resampler = StreamingResampler(file_rate_hz, rate_hz)
    kept = samples[: round((ORDER_END_S + 0.3) * file_rate_hz)]
    return np.concatenate([resampler.push(kept), resampler.flush()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recordings are played from and the replies are written to."""
    return tmp_path_factory.mktemp("say")


@pytest.fixture(scope="module")
def runs(folder: Path) -> Iterator[dict[str, Said]]:
    """Three recordings at once: a CD-quality stereo order as JSON, a plain one for reading, and an empty room."""
    order = spoken_order(44_100)
    soundfile.write(folder / "stereo.wav", np.stack([order, order], axis=1), 44_100)
    soundfile.write(folder / "plain.flac", spoken_order(16_000), 16_000)
    started = {
        "json": start(str(folder / "stereo.wav"), "--json", "--out", str(folder / "reply.wav")),
        "text": start(str(folder / "plain.flac")),
        "room": start(str(DATA / ROOM), "--json", "--out", str(folder / "nothing.wav")),
    }
    try:
        yield {name: end(process) for name, process in started.items()}
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def test_an_order_in_stereo_at_44_kHz_is_heard_answered_and_timed(runs: dict[str, Said]) -> None:
    said = runs["json"]
    assert said.code == 0, said.err
    report = said.report
    assert {"iced", "coffee"} <= set(report["transcript"].split())
    assert report["reply"].strip() and report["status"] == "completed"
    assert report["voice_to_voice_ms"] > 0
    assert report["speech_end_s"] == pytest.approx(ORDER_END_S, abs=0.2), "found in the recording itself"


def test_every_stage_of_the_turn_is_in_the_report(runs: dict[str, Said]) -> None:
    report = runs["json"].report
    plan, steps, timeline = report["plan"], report["steps"], report["timeline"]
    assert plan["granted_first"] >= 1 and plan["canvas_width"] >= 16 and plan["reasons"]
    # Those before the end of the turn are the early draft's, and are told of in its own place.
    numbers, early = [step["step"] for step in steps], timeline["speculation"]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else early
    assert early or numbers[0] == 1
    assert {step["phase"] for step in steps} <= {"first", "rest"}
    marks = {mark["name"]: mark["at_ms"] for mark in timeline["marks"]}
    order = ("speech_end", "endpoint", "asr_final", "prefill", "step 1", "first_clause", "first_audio", "playout_end")
    times = [marks[name] for name in order if not (early and name == "step 1")]
    assert times == sorted(times)
    assert report["turns"] == [timeline]
    assert timeline["reply"] == report["reply"]


def test_the_reply_in_the_file_is_audible_at_the_measured_time(runs: dict[str, Said], folder: Path) -> None:
    report = runs["json"].report
    samples, rate_hz = soundfile.read(folder / "reply.wav", dtype="float32")
    heard_s = first_audible_s(samples, rate_hz)
    assert heard_s is not None
    assert heard_s - report["speech_end_s"] == pytest.approx(report["voice_to_voice_ms"] / 1000, abs=0.01)
    assert np.abs(samples).max() > 0.05
    played_s = samples.size / rate_hz - heard_s
    assert played_s > 0.04 * len(report["reply"]), "the whole reply is in the file"


def test_a_reader_sees_what_is_heard_denoised_and_said(runs: dict[str, Said]) -> None:
    said = runs["text"]
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    for beginning in ("VAD: ", "ASR: ", "LLM: ", "TTS: ", "  hearing  ", "heard  ", "  plan  ", "  step ", "says  "):
        assert any(line.startswith(beginning) for line in lines), (beginning, said.out)
    assert "timeline of the last turn (ms after the end of speech)" in lines
    assert lines[-1].startswith("voice to voice") and "ms, from the audio itself" in lines[-1]
    assert "Traceback" not in said.err


def test_an_empty_room_is_not_answered(runs: dict[str, Said], folder: Path) -> None:
    said = runs["room"]
    assert said.code == 1, said.err
    report = said.report
    assert (report["transcript"], report["reply"], report["status"]) == ("", "", "silent")
    assert report["voice_to_voice_ms"] is None and report["steps"] == [] and report["plan"] is None
    assert not (folder / "nothing.wav").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"RIFF and then nothing", "not a sound file"), (b"", "not a sound")],
)
def test_a_file_that_cannot_be_played_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "order.wav"
    if content is not None:
        path.write_bytes(content)
    said = end(start(str(path), "--json"))
    assert said.code == 2
    assert said.out == "" and "Traceback" not in said.err
    assert said.err.startswith("voiceagent say: ") and str(path) in said.err and reason in said.err

"""The official openai package, unmodified and in its own environment, holds a spoken conversation with the real server."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.conftest import DATA
from tests.e2e.processes import ROOT, running_server
from voiceagent.audio import PCM16_24K, StreamingResampler

HERE = Path(__file__).parent
PINS = HERE / "openai-constraints.txt"
ENVIRONMENT = ROOT / ".cache" / "openai-sdk-venv"

ORDER = DATA / "order" / "1cf61395-1205-46c4-bf1c-2e43dd489455.flac"
"""make me a dark roast iced coffee"""


@pytest.fixture(scope="session")
def sdk_python() -> Path:
    """Interpreter of an environment with the official package; made once, and anew when its pins change."""
    python = ENVIRONMENT / "bin" / "python"
    wanted = hashlib.sha256(PINS.read_bytes() + sys.version.encode()).hexdigest()
    stamp = ENVIRONMENT / "pins.sha256"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(PINS)]
    subprocess.run(install, check=True)
    stamp.write_text(wanted)
    return python


@pytest.fixture(scope="session")
def conversation(sdk_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    samples, rate_hz = soundfile.read(ORDER, dtype="float32")
    resampler = StreamingResampler(rate_hz, 24_000)
    recording = tmp_path_factory.mktemp("caller") / "order.pcm"
    recording.write_bytes(PCM16_24K.encode(np.concatenate([resampler.push(samples), resampler.flush()])))
    # The package's environment is its own: none of ours may leak in by the path.
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    script = str(HERE / "openai_conversation.py")
    with running_server() as server:
        command = [str(sdk_python), script, f"{server.url}/v1", str(recording)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + "".join(server.lines)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_server_speaks_first_and_takes_the_clients_session(conversation: dict[str, Any]) -> None:
    assert conversation["first"] == "session.created"
    assert conversation["silence_duration_ms"] == 500
    assert conversation["errors"] == []


def test_a_recording_is_heard_and_answered_aloud(conversation: dict[str, Any]) -> None:
    words = conversation["transcript"].lower().split()
    assert {"iced", "coffee"} <= set(words), words
    spoken = conversation["spoken"]
    assert spoken["status"] == "completed" and spoken["text"].strip()
    assert spoken["audio_s"] > 0.5 and spoken["peak"] > 1000, "audible speech"
    assert spoken["usage"]["output_tokens"] > 0
    assert {
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "response.output_audio.done",
    } <= set(conversation["types"])


def test_a_typed_turn_is_answered_in_text(conversation: dict[str, Any]) -> None:
    typed = conversation["typed"]
    assert typed["status"] == "completed" and typed["text"].strip() and typed["audio_s"] == 0


def test_a_response_can_be_cancelled(conversation: dict[str, Any]) -> None:
    assert conversation["cancelled"]["status"] == "cancelled"

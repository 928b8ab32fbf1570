"""The `voiceagent` command, in this process: what it prints and how it ends."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from voice_pipelines.cli import PARTS, main, print_info
from voice_pipelines.local import SILENCE_ALONE
from voice_pipelines.models import CATALOGUE
from voice_pipelines.soundfiles import write_sound
from voiceagent.backends import BackendInfo, Part
from voiceagent.config import Config

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("VOICEAGENT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VOICEAGENT_MODELS", str(tmp_path / "models"))


def silent_file(folder: Path) -> Path:
    path = folder / "silence.wav"
    write_sound(path, np.zeros(1600, np.float32), 16_000)
    return path


def test_the_collector_does_not_look_at_what_was_loaded_while_callers_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Loaded:
        async def aclose(self) -> None:
            pass

    async def build(config: Config, **_: object) -> Loaded:
        return Loaded()

    async def serve(*_: object, **__: object) -> None:
        frozen.append(gc.get_freeze_count())

    frozen: list[int] = []
    monkeypatch.setattr("voice_pipelines.local.build", build)
    monkeypatch.setattr("voiceagent.server.create_app", lambda *_: None)
    monkeypatch.setattr("voiceagent.serving.serve", serve)
    try:
        assert main(["run", "--port", "0"]) == 0
    finally:
        gc.unfreeze()
    assert frozen[0] > 10_000


def test_the_doctor_says_a_line_for_each_part_and_what_to_do(capsys: Capture) -> None:
    code = main(["doctor", "--set", "server.port=0"])
    lines = capsys.readouterr().out.splitlines()
    assert code == int(any(line.startswith("fail") for line in lines))
    for part in ("Python", "packages", "devices", "recognition", "voice", "language model", "port", "TLS"):
        assert any(f"{part}: " in line for line in lines), part
    assert any("voiceagent models fetch whisper-" in line for line in lines)


def test_the_doctor_looks_at_the_configuration_it_is_given(capsys: Capture, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        mine = tmp_path / "mine.toml"
        mine.write_text(f"[server]\nport = {port}\n", encoding="utf-8")
        assert main(["doctor", "--config", str(mine)]) == 1
    assert f"127.0.0.1:{port}" in capsys.readouterr().out


def test_a_port_that_is_taken_and_a_certificate_that_is_not_there_are_named_before_anything_is_loaded(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def build(*_: object, **__: object) -> None:
        raise AssertionError("models are loaded")

    monkeypatch.setattr("voice_pipelines.local.build", build)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["run", "--port", str(port)]) == 2
    assert f"server.port = {port}: expected a free port on 127.0.0.1" in capsys.readouterr().err
    assert main(["run", "--port", "0", "--tls-cert", "no.pem", "--tls-key", "no.pem"]) == 2
    assert "server.tls_cert = 'no.pem': expected a readable certificate" in capsys.readouterr().err


def test_models_are_listed_with_those_on_disk_marked(capsys: Capture, tmp_path: Path) -> None:
    folder = tmp_path / "models" / CATALOGUE["whisper-tiny.en"].place
    folder.mkdir(parents=True)
    assert main(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    marked = [line.split()[1] for line in lines if line.startswith("  * ")]
    assert marked == ["whisper-tiny.en"]
    assert str(tmp_path / "models") in lines[0]
    assert {line[4:].split()[0] for line in lines[1:-1]} == set(CATALOGUE)


def test_fetching_an_unknown_model_names_the_known_ones(capsys: Capture) -> None:
    assert main(["models", "fetch", "whisper-gigantic"]) == 2
    error = capsys.readouterr().err
    assert "'whisper-gigantic'" in error and all(name in error for name in CATALOGUE)


def test_fetching_a_model_that_is_there_needs_no_network(capsys: Capture, tmp_path: Path) -> None:
    folder = tmp_path / "models" / CATALOGUE["piper"].place
    folder.mkdir(parents=True)
    assert main(["models", "fetch", "piper"]) == 0
    assert str(folder) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("turn.silence_s=99", "turn.silence_s = '99': expected seconds from 0.05 to 10"),
        ("turn.silence_s=soon", "turn.silence_s = 'soon'"),
        ("turn.silense_s=1", "did you mean turn.silence_s"),
        ("nonsense", "--set = '(hidden)': expected key=value"),
        ("preset=nowhere", "preset = 'nowhere': expected one of cafe, open"),
        ("models.llm=nowhere", "models.llm = 'nowhere'"),
        ("models.llm=~no_such_user_here/x", "models.llm = '~no_such_user_here/x': expected the path"),
        ("models.asr=~no_such_user_here/x", "models.asr = '~no_such_user_here/x': expected the path"),
        ("models.folder=~no_such_user_here/x", "models.folder = '~no_such_user_here/x': expected the path"),
        ("turn.silence_s=1" + 400 * "0", "expected seconds from 0.05 to 10"),
        ("server.port=" + 5_000 * "9", "expected an integer from 0 to 65535"),
        ("notes.function=no.such:thing", "notes.function = 'no.such:thing'"),
    ],
)
@pytest.mark.parametrize("command", [["run"], ["serve"], ["say", "recording.wav"]])
def test_a_bad_setting_is_named_and_nothing_starts(
    capsys: Capture, tmp_path: Path, command: list[str], assignment: str, expected: str
) -> None:
    command = [str(silent_file(tmp_path)) if word == "recording.wav" else word for word in command]
    assert main([*command, "--set", assignment]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.err.startswith(f"voiceagent {command[0]}: ")
    assert captured.out == "" and "Traceback" not in captured.err


def test_a_missing_file_and_a_missing_preset_are_named(capsys: Capture, tmp_path: Path) -> None:
    assert main(["run", "--config", str(tmp_path / "none.toml")]) == 2
    assert "none.toml" in capsys.readouterr().err
    assert main(["run", "--preset", str(tmp_path / "none.toml")]) == 2
    assert "none.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--host", "0.0.0.0"], "loopback address as long as no api_key is set"),
        (["--port", "70000"], "server.port = '70000': expected an integer from 0 to 65535"),
        (["--tls-cert", "cert.pem"], "tls_key"),
    ],
)
def test_an_address_that_may_not_be_served_is_refused_before_models_load(
    capsys: Capture, options: list[str], expected: str
) -> None:
    assert main(["run", *options]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.out == ""


def test_a_key_is_never_printed(capsys: Capture) -> None:
    assert main(["run", "--api-key", "not a token, too secret"]) == 2
    captured = capsys.readouterr()
    assert "secret" not in captured.out + captured.err


def test_every_part_has_its_name_in_the_report_of_the_start() -> None:
    assert set(PARTS) == set(get_args(Part))


def test_each_part_has_its_line_with_what_would_be_better(capsys: Capture) -> None:
    print_info(BackendInfo("asr", "pocketsphinx", "nothing else on disk", "voiceagent models fetch whisper-tiny.en"))
    print_info(BackendInfo("vad", "Silero", "the only one"))
    print_info(SILENCE_ALONE)
    assert capsys.readouterr().out.splitlines() == [
        "ASR: pocketsphinx (nothing else on disk; better: voiceagent models fetch whisper-tiny.en)",
        "VAD: Silero (the only one)",
        "ENDPOINT: silence (turn.endpoint is silence)",
    ]


@pytest.mark.parametrize("words", [[], ["dance"], ["models"], ["say"], ["run", "--port"]])
def test_a_command_that_is_none_shows_its_usage(capsys: Capture, words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: voiceagent" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--out", "reply.txt"], "--out = 'reply.txt': expected a file that can be written"),
        (["--out", "no_such_folder/reply.wav"], "--out = 'no_such_folder/reply.wav': expected a file that can be"),
        (["--speech-end", "nan"], "--speech-end = nan: expected seconds up to the recording's 0.10"),
        (["--speech-end", "9"], "--speech-end = 9.0: expected seconds up to the recording's 0.10"),
        (["--speech-end", "-1"], "--speech-end = -1.0: expected seconds"),
    ],
)
def test_what_a_recording_is_not_played_for_is_said_before_the_agent_is_built(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: str
) -> None:
    async def build(*_: object, **__: object) -> None:
        raise AssertionError("models are loaded")

    monkeypatch.setattr("voice_pipelines.say.build", build)
    monkeypatch.chdir(tmp_path)
    assert main(["say", str(silent_file(tmp_path)), *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"voiceagent say: {expected}") and captured.out == ""


def test_an_empty_recording_is_told_as_one(capsys: Capture, tmp_path: Path) -> None:
    write_sound(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    assert main(["say", str(tmp_path / "empty.wav")]) == 2
    assert "empty.wav': expected a sound file that is not empty" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("words", [["models", "list"], ["doctor"], ["explain", "--file", "turn.json"], ["--help"]])
def test_output_that_cannot_be_written_is_one_line_and_status_one(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "turn.json").write_text('{"turn": 1, "status": "completed"}', "utf-8")
    words = [str(tmp_path / word) if word.endswith(".json") else word for word in words]
    code = f"import sys; from voice_pipelines.cli import main; sys.exit(main({words!r}))"
    with open("/dev/full", "wb") as full:
        ended = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == ["voiceagent: the output cannot be written: No space left on device"]


def test_a_reader_who_has_enough_ends_the_command_without_a_word() -> None:
    code = "import sys; from voice_pipelines.cli import main; sys.exit(main(['models', 'list']))"
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == IMPORTED:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                LOST
sys.meta_path.insert(0, Finder())
from voice_pipelines.cli import main
sys.exit(main(["run", "--set", "turn.silence_s=99"]))
"""


@pytest.mark.parametrize("lost", ["raise", "pass"])
@pytest.mark.parametrize("imported", ["voiceagent.errors", "voice_pipelines.settings", "uvicorn"])
def test_an_interrupt_amid_the_imports_ends_it_quietly_even_where_an_import_drops_exceptions(
    imported: str, lost: str
) -> None:
    code = INTERRUPTED.replace("IMPORTED", repr(imported)).replace("LOST", lost)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.parametrize("module", ["voice_pipelines.cli", "dllm.cli"])
def test_next_to_nothing_is_imported_before_an_interrupt_ends_a_command_quietly(module: str) -> None:
    code = f"import sys; before = set(sys.modules); import {module}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    package = module.partition(".")[0]
    ours = {package, module, "webserving", "webserving.command"}
    theirs = {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert theirs == ours and not {"argparse", "asyncio", "logging", "importlib.metadata"} & {*done.stdout.split()}


@pytest.mark.parametrize("name", ["voiceagent", "dllm"])
def test_each_command_says_which_version_it_is(capsys: Capture, name: str) -> None:
    from dllm.cli import main as dllm_main

    with pytest.raises(SystemExit) as ended:
        (main if name == "voiceagent" else dllm_main)(["--version"])
    assert ended.value.code == 0
    told = capsys.readouterr().out.split()
    assert told[0] == name and told[1][0].isdigit()

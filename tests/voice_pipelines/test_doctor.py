"""Each finding of the doctor has its verdict and a remedy, and the machine itself can be read."""

from __future__ import annotations

import re
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import run_async
from voice_pipelines.doctor import (
    PACKAGES,
    Check,
    Facts,
    Verdict,
    device_choice,
    examine,
    exit_code,
    look,
    report,
    run_doctor,
)
from voice_pipelines.local import build
from voice_pipelines.models import FoundModel, choose_model
from voice_pipelines.processors import available_cores
from voice_pipelines.settings import load, open_files
from voiceagent.backends import BackendInfo
from voiceagent.config import Config
from voiceagent.config_models import ModelsConfig
from voiceagent.config_server import ServerConfig
from voiceagent.errors import ConfigError
from webserving.descriptors import Limit

WHISPER = FoundModel("base.en", Path("/m"), BackendInfo("asr", "faster-whisper base.en", "fetched"))
PIPER = FoundModel("en_US-a-low", Path("/m"), BackendInfo("tts", "Piper en_US-a-low", "fetched"))

WELL = Facts(
    python=(3, 11, 7),
    packages=dict.fromkeys(PACKAGES, "1.0"),
    cores=4,
    memory_gib=16.0,
    cuda=None,
    cuda_memory_gib=0.0,
    models_folder=Path("/m"),
    whisper_choice=choose_model("cpu", 4, 16.0),
    whisper=WHISPER,
    piper=PIPER,
    espeak_data=Path("/espeak"),
    built_in_llm=Path("/dllm/builtin"),
    missing_llm_files=(),
    host="127.0.0.1",
    port=8080,
    port_error=None,
)


def check(name: str, **changes: object) -> Check:
    return next(c for c in examine(replace(WELL, **changes)) if c.name == name)  # type: ignore[arg-type]


def test_a_machine_with_everything_is_well() -> None:
    checks = examine(WELL)
    assert {c.verdict for c in checks} == {Verdict.OK}
    assert exit_code(checks) == 0
    assert "->" not in report(checks)
    assert report(checks).endswith("0 to mend, 0 that could be better, 14 fine")


@pytest.mark.parametrize(
    ("name", "changes", "verdict", "remedy"),
    [
        ("Python", {"python": (3, 10, 4)}, "fail", "3.11"),
        ("packages", {"packages": WELL.packages | {"torch": None}}, "fail", "pip install"),
        ("packages", {"packages": WELL.packages | {"piper-tts": None}}, "warn", "pip install"),
        ("devices", {"cores": 1}, "warn", "two cores"),
        ("recognition", {"whisper": None}, "warn", "voiceagent models fetch whisper-base.en"),
        (
            "recognition",
            {
                "whisper": replace(
                    WHISPER, info=replace(WHISPER.info, upgrade="voiceagent models fetch whisper-base.en")
                )
            },
            "warn",
            "whisper-base.en",
        ),
        ("recognition", {"asr_error": "models.asr = 'kaldi': ..."}, "fail", "mend that key"),
        ("voice", {"tts_error": "models.tts = 'amy': ..."}, "fail", "mend that key"),
        ("voice", {"piper": None}, "warn", "voiceagent models fetch piper"),
        ("voice", {"piper": None, "espeak_data": None}, "fail", "espeakng-loader"),
        ("language model", {"missing_llm_files": ("model.safetensors",)}, "fail", "clone"),
        ("turn end", {"turn_end_error": "models.endpoint = 'no.onnx': ..."}, "fail", "models.endpoint"),
        ("misheard words", {"repair_error": "asr.repair = 'show': ..."}, "fail", "asr.repair"),
        ("tools", {"tools_error": "tools.book.function = ..."}, "fail", "mend the table"),
        ("notes", {"notes_error": "notes.function = ..."}, "fail", "mend notes.function"),
        ("port", {"port_error": "Address already in use"}, "fail", "--port"),
        ("TLS", {"tls_error": "key.pem cannot be read"}, "fail", "--tls-key"),
        ("microphone", {"host": "0.0.0.0"}, "warn", "--tls-cert"),
        ("open files", {"open_files": Limit(256, 256)}, "warn", "ulimit -n"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    name: str, changes: dict[str, object], verdict: str, remedy: str
) -> None:
    found = check(name, **changes)
    assert found.verdict == verdict
    assert remedy in found.remedy
    text = report(examine(replace(WELL, **changes)))  # type: ignore[arg-type]
    assert f"-> {found.remedy}" in text
    assert exit_code((found,)) == (1 if verdict == "fail" else 0)


@pytest.mark.parametrize(
    ("name", "changes", "finding"),
    [
        ("devices", {"cuda": "NVIDIA H200", "cuda_memory_gib": 139.0}, "NVIDIA H200, 139 GiB"),
        ("microphone", {"host": "0.0.0.0", "has_tls": True}, "https"),
        ("TLS", {"has_tls": True}, "can be used"),
        ("open files", {"open_files": Limit(256, 524_288)}, "524288"),
        ("voice", {"piper": None, "tts": "espeak"}, "eSpeak NG: chosen"),
    ],
)
def test_what_is_well_says_why(name: str, changes: dict[str, object], finding: str) -> None:
    found = check(name, **changes)
    assert found.verdict is Verdict.OK
    assert finding in found.finding


@pytest.mark.parametrize(
    ("tts", "name"), [("auto", "Piper amy"), ("piper:zoe", "Piper zoe"), ("espeak", "eSpeak NG: chosen")]
)
def test_the_doctor_tells_of_the_voice_that_is_configured(tts: str, name: str, tmp_path: Path) -> None:
    for voice in ("amy", "zoe"):
        folder = tmp_path / "piper" / voice
        folder.mkdir(parents=True)
        for suffix in (".onnx", ".onnx.json"):
            (folder / f"{voice}{suffix}").touch()
    printed: list[str] = []
    run_doctor(load(assignments=[f"models.folder={tmp_path}", "server.port=0", f"models.tts={tts}"]), printed.append)
    assert any(line.startswith(f"ok    voice: {name}") for line in printed[0].splitlines()), printed[0]


@pytest.mark.parametrize(
    ("asr", "name"), [("{}/mine", "faster-whisper mine"), ("pocketsphinx", "PocketSphinx: chosen")]
)
def test_the_doctor_tells_of_the_recogniser_that_is_configured(asr: str, name: str, tmp_path: Path) -> None:
    for place in ("mine", "whisper/tiny.en"):
        (tmp_path / place).mkdir(parents=True)
        for file in ("model.bin", "config.json", "tokenizer.json"):
            (tmp_path / place / file).touch()
    printed: list[str] = []
    run_doctor(
        load(assignments=[f"models.folder={tmp_path}", "server.port=0", f"models.asr={asr.format(tmp_path)}"]),
        printed.append,
    )
    assert any(line.startswith(f"ok    recognition: {name}") for line in printed[0].splitlines()), printed[0]


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("asr.partials=auto", "ok    recognition: faster-whisper mine (int8 on cpu) and pocketsphinx: chosen in"),
        ("asr.partials=whisper", "ok    recognition: faster-whisper mine (int8 on cpu): chosen in the configuration"),
        ("agent.language=de", "ok    recognition: faster-whisper mine (int8 on cpu): chosen in the configuration"),
    ],
)
def test_the_doctor_names_both_recognisers_where_two_listen(assignment: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for file in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / "mine" / file).touch()
    (tmp_path / "mine" / "vocabulary.txt").write_text("a\n\nb\n")
    printed: list[str] = []
    settings = [f"models.folder={tmp_path}", f"models.asr={tmp_path}/mine", "models.device=cpu", "server.port=0"]
    run_doctor(load(assignments=[*settings, assignment]), printed.append)
    assert any(each.startswith(line) for each in printed[0].splitlines()), printed[0]


def test_the_doctor_tells_of_partials_that_nobody_can_tell(tmp_path: Path) -> None:
    printed: list[str] = []
    settings = [f"models.folder={tmp_path}", "server.port=0", "models.asr=pocketsphinx", "asr.partials=whisper"]
    assert run_doctor(load(assignments=settings), printed.append) == 1
    assert "fail  recognition: asr.partials = 'whisper': expected 'auto': no Whisper listens" in printed[0]


@pytest.mark.parametrize(
    ("language", "sound", "told"),
    [
        ("en", "true", "auto, with the sound of the voice"),
        ("en", "false", "auto"),
        ("de", "true", "silence alone"),
    ],
)
def test_the_doctor_tells_who_ends_a_turn(language: str, sound: str, told: str, tmp_path: Path) -> None:
    printed: list[str] = []
    settings = [f"models.folder={tmp_path}", f"agent.language={language}", f"turn.sound={sound}", "server.port=0"]
    run_doctor(load(assignments=settings), printed.append)
    assert f"ok    turn end: {told}" in printed[0].splitlines()


def test_the_doctor_tells_of_a_whisper_that_does_not_hear_the_agents_language(tmp_path: Path) -> None:
    for file in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / file).touch()
    (tmp_path / "vocabulary.txt").write_text("a\nb\n")
    printed: list[str] = []
    assignments = [f"models.folder={tmp_path}", "server.port=0", f"models.asr={tmp_path}", "agent.language=de"]
    assert run_doctor(load(assignments=assignments), printed.append) == 1
    assert (
        f"fail  recognition: models.asr = '{tmp_path}': expected a Whisper that hears agent.language = 'de'"
        in printed[0]
    )


def test_this_machine_can_be_read(tmp_path: Path) -> None:
    facts = look(port=0, models=tmp_path)
    assert facts.cores == available_cores() >= 1
    assert facts.memory_gib > 0
    assert facts.packages["numpy"] and facts.packages["onnxruntime"]
    assert facts.espeak_data is not None
    assert (facts.whisper, facts.piper, facts.port_error, facts.tls_error) == (None, None, None, None)
    assert facts.whisper_choice.size == device_choice().size


def test_the_doctor_prints_a_line_each_and_returns_its_verdict(tmp_path: Path) -> None:
    printed: list[str] = []
    config = Config(server=ServerConfig(port=0), models=ModelsConfig(folder=str(tmp_path)))
    code = run_doctor(config, printed.append)
    lines = [line for line in printed[0].splitlines() if not line.startswith("      ->")]
    assert len(lines) == 15
    assert code == int(any(line.startswith("fail") for line in lines))


@pytest.mark.parametrize(
    ("assignments", "finding"),
    [
        (["models.asr=faster-whisper:small.en"], "recognition: models.asr = 'faster-whisper:small.en'"),
        (["models.tts=nobody"], "voice: models.tts = 'nobody'"),
        (["models.tts=piper:nobody"], "voice: models.tts = 'piper:nobody'"),
        (["models.endpoint=no/such.onnx"], "turn end: models.endpoint = 'no/such.onnx'"),
        (["models.graphs=true", "models.device=cpu"], "language model: models.graphs = True"),
        (["models.device=cuda:99"], "language model: models.device = 'cuda:99'"),
        (["models.device=gpu"], "language model: models.device = 'gpu'"),
        (["models.llm=no-such-model"], "language model: models.llm = 'no-such-model'"),
        (["asr.repair=show", "models.llm=http://127.0.0.1:9/v1"], "misheard words: asr.repair = 'show'"),
        (["notes.function=no.such:thing"], "notes: notes.function = 'no.such:thing'"),
        (["asr.repair=use", "vocabulary.phrases=[]"], "misheard words: asr.repair = 'use'"),
    ],
)
def test_what_a_start_would_refuse_is_to_be_mended(assignments: list[str], finding: str, tmp_path: Path) -> None:
    printed: list[str] = []
    config = load(assignments=[f"models.folder={tmp_path}", "server.port=0", *assignments])
    assert run_doctor(config, printed.append) == 1
    assert any(line.startswith(f"fail  {finding}") for line in printed[0].splitlines()), printed[0]
    with pytest.raises(ConfigError, match=re.escape(finding.partition(": ")[2])):
        run_async(build(config), timeout_s=60.0)


def test_a_port_in_use_is_seen() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "in use" in (look(port=taken.getsockname()[1]).port_error or "")


def test_a_port_that_cannot_be_is_seen() -> None:
    assert look(port=70_000).port_error is not None


def test_a_host_that_no_name_can_be_is_seen() -> None:
    assert "no name or address" in (look("a..b", port=0).port_error or "")


def test_tls_files_are_tried(tmp_path: Path) -> None:
    cert, key, other = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "other.pem"
    assert "only the certificate" in (look(port=0, tls_cert=cert).tls_error or "")
    assert "cannot be read" in (look(port=0, tls_cert=cert, tls_key=key).tls_error or "")
    cert.write_text("no certificate")
    key.write_text("no key")
    assert "do not fit" in (look(port=0, tls_cert=cert, tls_key=key).tls_error or "")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-days",
        "2",
    ]
    for target in (key, other):
        subprocess.run([*command, "-keyout", str(target), "-out", str(cert)], check=True, capture_output=True)
    assert look(port=0, tls_cert=cert, tls_key=other).tls_error is None
    assert "do not fit" in (look(port=0, tls_cert=cert, tls_key=key).tls_error or "")


@pytest.mark.parametrize(
    ("assignments", "each"),
    [
        ([], 1),
        (["models.llm=http://localhost:9/v1"], 3),
        (["models.llm=remote", "remote.url=http://localhost:9/v1"], 3),
        (["tools.book.url=https://host/book"], 2),
    ],
)
def test_the_doctor_counts_the_connections_of_a_conversation_to_a_remote_model_and_to_tools(
    assignments: list[str], each: int
) -> None:
    # One more for each bridge without a call.
    assert open_files(load(assignments=assignments)).each == each + 1


def test_the_doctor_holds_the_callers_that_may_come_against_the_limit_on_open_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("voice_pipelines.doctor.read_limit", lambda: Limit(1_024, 1_024))
    printed: list[str] = []
    run_doctor(load(assignments=["server.port=0", "server.max_sessions=1000"]), printed.append)
    assert "warn  open files: 1000 conversations" in printed[0]
    assert "server.max_sessions to 288" in printed[0]


def test_a_phrase_of_the_vocabulary_with_a_mistake_is_named_and_refused_before_anything_is_loaded() -> None:
    config = load(assignments=["preset=open", "server.port=0", 'vocabulary.phrases=["a {drink} please"]'])
    printed: list[str] = []
    assert run_doctor(config, printed.append) == 1
    assert "fail  recognition: vocabulary = '{drink} is not a slot" in printed[0]
    reported: list[BackendInfo] = []
    with pytest.raises(ConfigError, match="drink"):
        run_async(build(config, report=reported.append))
    assert not reported

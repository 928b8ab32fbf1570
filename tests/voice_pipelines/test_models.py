"""Models are found on disk without the network, chosen to suit the machine, and fetched whole or not at all.

Fetching runs against a hub of our own on 127.0.0.1 that speaks the two routes of the real one.
"""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from voice_pipelines.download import FetchError, Hub, Progress, RemoteFile, download_folder
from voice_pipelines.models import (
    CATALOGUE,
    DEFAULT_VOICE,
    WHISPER_REPOS,
    choose_model,
    entry_for,
    fetch,
    find_fetched_smart_turn,
    find_llm,
    find_piper,
    find_whisper,
    is_english_only,
    models_folder,
)

# --- a hub of our own -------------------------------------------------------------------------------------------------


class LocalHub:
    """Repositories by name; `break_after` drops the connection once after so many bytes of a file."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.break_after: int | None = None
        self.damage = b""
        self.page_size = 1000
        self.honours_range = True
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        split = urllib.parse.urlsplit(request.path)
        path = urllib.parse.unquote(split.path)
        self.requests.append((path, request.headers.get("Range")))
        if path.startswith("/api/models/"):
            self._tree(request, path.removeprefix("/api/models/"), urllib.parse.parse_qs(split.query))
        else:
            self._file(request, path.lstrip("/"))

    def _tree(self, request: BaseHTTPRequestHandler, path: str, query: dict[str, list[str]]) -> None:
        repo, _, rest = path.partition("/tree/")
        folder = rest.partition("/")[2]
        if repo not in self.repos:
            return self._send(request, 404, b'{"error":"Repository not found"}')
        files = [(name, data) for name, data in self.repos[repo].items() if name.startswith(folder)]
        start = int(query.get("cursor", ["0"])[0])
        page = [self._listed(name, data) for name, data in files[start : start + self.page_size]]
        headers = {}
        if start + self.page_size < len(files):
            headers["Link"] = f'<{self.url}{request.path.split("?")[0]}?cursor={start + self.page_size}>; rel="next"'
        self._send(
            request,
            200,
            json.dumps([*page, {"type": "directory", "path": "x", "oid": "0", "size": 0}]).encode(),
            headers,
        )

    @staticmethod
    def _listed(name: str, data: bytes) -> dict[str, object]:
        oid = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": oid}
        if name.endswith((".bin", ".onnx", ".safetensors")):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entry["oid"] = "0" * 40
        return entry

    def _file(self, request: BaseHTTPRequestHandler, path: str) -> None:
        repo, _, rest = path.partition("/resolve/")
        data = self.repos[repo][rest.partition("/")[2]]
        data = self.damage + data[len(self.damage) :]
        asked = request.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.honours_range else 0
        body = data[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.break_after is not None and len(body) > self.break_after:
            body, self.break_after = body[: self.break_after], None
            request.close_connection = True
        request.wfile.write(body)

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture
def local() -> Iterator[LocalHub]:
    hub = LocalHub()
    yield hub
    hub.close()


WHISPER = {
    "model.bin": bytes(range(256)) * 4000,
    "config.json": b"{}",
    "tokenizer.json": b'{"a": 1}',
    "vocabulary.txt": b"a\nb\n",
    "README.md": b"not fetched",
}
TINY = "Systran/faster-whisper-tiny.en"


def hub_for(local: LocalHub, retries: int = 0) -> Hub:
    return Hub(local.url, timeout_s=10.0, retry_delays_s=[0.0] * retries)


def test_a_whisper_is_fetched_whole_and_then_found(local: LocalHub, tmp_path: Path) -> None:
    local.repos[TINY] = WHISPER
    seen: list[Progress] = []
    folder = fetch("whisper-tiny.en", seen.append, root=tmp_path, hub=hub_for(local))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: data for name, data in WHISPER.items() if name != "README.md"
    }
    total = sum(len(data) for name, data in WHISPER.items() if name != "README.md")
    assert [p.done_bytes for p in seen] == sorted(p.done_bytes for p in seen)
    assert (seen[-1].done_bytes, {p.total_bytes for p in seen}) == (total, {total})
    found = find_whisper(tmp_path, choose_model("cpu", 2, 8.0))
    assert found is not None and found.path == folder
    before = len(local.requests)
    assert fetch("whisper-tiny.en", root=tmp_path, hub=hub_for(local)) == folder
    assert len(local.requests) == before, "what is there is not asked for again"


def test_a_voice_is_fetched_from_its_folder_of_the_repository(local: LocalHub, tmp_path: Path) -> None:
    base = "en/en_US/ljspeech/medium/"
    local.repos["rhasspy/piper-voices"] = {
        base + DEFAULT_VOICE + ".onnx": b"graph" * 100,
        base + DEFAULT_VOICE + ".onnx.json": b"{}",
        base + "MODEL_CARD": b"public domain",
        base + "samples/speaker_0.mp3": b"x",
        "en/en_US/amy/medium/en_US-amy-medium.onnx": b"another",
    }
    folder = fetch("piper", root=tmp_path, hub=hub_for(local))
    assert sorted(path.name for path in folder.iterdir()) == [
        "MODEL_CARD",
        f"{DEFAULT_VOICE}.onnx",
        f"{DEFAULT_VOICE}.onnx.json",
    ]
    found = find_piper(tmp_path)
    assert found is not None and found.path == folder / f"{DEFAULT_VOICE}.onnx"
    assert DEFAULT_VOICE in found.info.name


def test_a_smart_turn_is_fetched_alone_among_its_versions_and_then_found(local: LocalHub, tmp_path: Path) -> None:
    assert find_fetched_smart_turn(tmp_path) is None
    versions = ("smart-turn-v3.0.onnx", "smart-turn-v3.2-cpu.onnx", "smart-turn-v3.2-gpu.onnx")
    local.repos["pipecat-ai/smart-turn-v3"] = {name: name.encode() for name in versions}
    folder = fetch("smart-turn-v3", root=tmp_path, hub=hub_for(local))
    assert [path.name for path in folder.iterdir()] == ["smart-turn-v3.2-cpu.onnx"]
    assert find_fetched_smart_turn(tmp_path) == folder / "smart-turn-v3.2-cpu.onnx"


def test_any_hub_id_is_a_language_model(local: LocalHub, tmp_path: Path) -> None:
    local.repos["some-org/some.model"] = {
        "config.json": b"{}",
        "model-1.safetensors": b"w" * 50,
        "pytorch_model.bin": b"x",
    }
    assert find_llm(tmp_path, "some-org/some.model") is None
    folder = fetch("some-org/some.model", root=tmp_path, hub=hub_for(local))
    assert find_llm(tmp_path, "some-org/some.model") == folder
    assert not (folder / "pytorch_model.bin").exists()


def test_a_broken_connection_is_continued_where_it_stopped(local: LocalHub, tmp_path: Path) -> None:
    local.repos[TINY], local.break_after = WHISPER, 300_000
    folder = fetch("whisper-tiny.en", root=tmp_path, hub=hub_for(local, retries=1))
    assert (folder / "model.bin").read_bytes() == WHISPER["model.bin"]
    ranges = [asked for path, asked in local.requests if path.endswith("model.bin")]
    assert ranges == [None, "bytes=300000-"]


def test_a_fetch_that_gave_up_leaves_no_model_and_continues_next_time(local: LocalHub, tmp_path: Path) -> None:
    local.repos[TINY], local.break_after = WHISPER, 300_000
    with pytest.raises(FetchError, match="could not reach"):
        fetch("whisper-tiny.en", root=tmp_path, hub=hub_for(local))
    assert find_whisper(tmp_path, choose_model("cpu", 2, 8.0)) is None
    fetch("whisper-tiny.en", root=tmp_path, hub=hub_for(local))
    assert [asked for path, asked in local.requests if path.endswith("model.bin")] == [None, "bytes=300000-"]


def test_a_server_that_ignores_ranges_sends_the_file_again(local: LocalHub, tmp_path: Path) -> None:
    local.repos[TINY], local.break_after, local.honours_range = WHISPER, 300_000, False
    folder = fetch("whisper-tiny.en", root=tmp_path, hub=hub_for(local, retries=1))
    assert (folder / "model.bin").read_bytes() == WHISPER["model.bin"]


def test_a_damaged_file_is_removed_and_said(local: LocalHub, tmp_path: Path) -> None:
    local.repos[TINY], local.damage = WHISPER, b"!"
    with pytest.raises(FetchError, match="damaged"):
        fetch("whisper-tiny.en", root=tmp_path, hub=hub_for(local))
    assert not list(tmp_path.rglob("*.part"))
    local.damage = b""
    fetch("whisper-tiny.en", root=tmp_path, hub=hub_for(local))


def test_without_a_network_the_error_says_what_to_do(local: LocalHub, tmp_path: Path) -> None:
    local.close()
    with pytest.raises(FetchError, match=r"could not reach http://127.*HF_ENDPOINT"):
        fetch("whisper-tiny.en", root=tmp_path, hub=hub_for(local))


def test_a_repository_that_is_not_there_or_is_no_model_is_said(local: LocalHub, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="no public repository no/such"):
        fetch("no/such", root=tmp_path, hub=hub_for(local))
    local.repos[TINY] = {"README.md": b"empty"}
    with pytest.raises(FetchError, match=r"lacks config.json, model.bin, tokenizer.json"):
        fetch("whisper-tiny.en", root=tmp_path, hub=hub_for(local))


def test_long_listings_come_in_pages(local: LocalHub) -> None:
    local.repos[TINY], local.page_size = WHISPER, 2
    assert {file.path for file in hub_for(local).list_files(TINY)} == set(WHISPER)


def test_a_file_outside_the_repository_is_refused(tmp_path: Path, local: LocalHub) -> None:
    with pytest.raises(FetchError, match="outside"):
        download_folder(hub_for(local), TINY, [RemoteFile("../../evil", 1, sha256="0")], tmp_path / "a" / "b")


def test_a_file_larger_than_the_disk_is_refused_before_it_starts(tmp_path: Path, local: LocalHub) -> None:
    with pytest.raises(FetchError, match="GB free"):
        download_folder(hub_for(local), TINY, [RemoteFile("big", 10**18, sha256="0")], tmp_path / "model")
    assert not local.requests


# --- names and places -------------------------------------------------------------------------------------------------


def test_every_catalogue_name_has_a_place_of_its_own() -> None:
    places = [entry.place for entry in CATALOGUE.values()]
    assert len(set(places)) == len(places)
    assert {entry.part for entry in CATALOGUE.values()} == {"asr", "tts", "endpoint", "llm"}


def test_any_piper_voice_is_known_by_its_name() -> None:
    entry = entry_for("de_DE-thorsten_emotional-medium")
    assert entry.folder == "de/de_DE/thorsten_emotional/medium"
    assert str(entry.place) == "piper/de_DE-thorsten_emotional-medium"


@pytest.mark.parametrize("name", ["whisper-huge", "", "../../etc", "a/b/c", "..//..", "../.."])
def test_unknown_names_are_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(FetchError, match="whisper-tiny.en"):
        entry_for(name)


def test_the_model_folder_follows_the_environment_and_the_platform() -> None:
    home = Path("/home/me")
    assert models_folder({"VOICEAGENT_MODELS": "/data/m"}, home, "linux") == Path("/data/m")
    assert models_folder({"XDG_DATA_HOME": "/data"}, home, "linux") == Path("/data/voiceagent/models")
    assert models_folder({}, home, "linux") == home / ".local/share/voiceagent/models"
    assert models_folder({}, home, "darwin") == home / "Library/Application Support/voiceagent/models"


# --- what suits the machine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "cores", "memory_gib", "language", "size", "compute_type"),
    [
        ("cpu", 1, 1.0, "en", "tiny.en", "int8"),
        ("cpu", 2, 16.0, "en", "tiny.en", "int8"),
        ("cpu", 4, 16.0, "en", "base.en", "int8"),
        ("cpu", 16, 16.0, "en", "small.en", "int8"),
        ("cpu", 16, 0.5, "en", "tiny.en", "int8"),
        ("cpu", 4, 16.0, "de", "base", "int8"),
        ("cuda", 8, 80.0, "en", "large-v3-turbo", "float16"),
        ("cuda", 8, 4.0, "en", "small.en", "float16"),
        ("cuda", 8, 1.0, "fr", "base", "float16"),
    ],
)
def test_the_size_follows_the_device(
    device: str, cores: int, memory_gib: float, language: str, size: str, compute_type: str
) -> None:
    choice = choose_model(device, cores, memory_gib, language)  # type: ignore[arg-type]
    assert (choice.size, choice.compute_type, choice.device) == (size, compute_type, device)
    assert choice.reason
    assert choice.size in WHISPER_REPOS


def put_whisper(root: Path, *sizes: str) -> None:
    for size in sizes:
        folder = root / "whisper" / size
        folder.mkdir(parents=True)
        for name in ("model.bin", "config.json", "tokenizer.json"):
            (folder / name).write_bytes(b"x")


@pytest.mark.parametrize(
    ("here", "found", "upgrade"),
    [
        ([], None, None),
        (["base.en"], "base.en", None),
        (["tiny.en", "base.en", "small.en"], "base.en", None),
        (["tiny.en"], "tiny.en", "voiceagent models fetch whisper-base.en"),
        (["small.en", "medium.en"], "small.en", "voiceagent models fetch whisper-base.en"),
    ],
)
def test_the_fetched_size_nearest_to_the_machine_is_used(
    tmp_path: Path, here: list[str], found: str | None, upgrade: str | None
) -> None:
    put_whisper(tmp_path, *here)
    model = find_whisper(tmp_path, choose_model("cpu", 4, 8.0))
    assert (model and model.name) == found
    if model:
        assert model.info.upgrade == upgrade
        assert model.info.reason and found in model.info.name


def test_english_models_are_not_used_for_another_language(tmp_path: Path) -> None:
    put_whisper(tmp_path, "base.en")
    assert find_whisper(tmp_path, choose_model("cpu", 4, 8.0, "de"), "de") is None


@pytest.mark.parametrize(
    ("files", "is_one"),
    [
        ({"vocabulary.txt": "a\nb\n"}, True),
        ({"vocabulary.txt": "a\nb"}, True),
        ({"vocabulary.txt": "a\n\nb\n"}, False),
        ({"vocabulary.json": '["a", "b"]', "vocabulary.txt": "a\n\nb\n"}, True),
        ({"vocabulary.json": '["a", ""]', "vocabulary.txt": "a\nb\n"}, False),
        ({"vocabulary.json": '["a"'}, False),
        ({"vocabulary.json": "3"}, False),
        ({"vocabulary.json": "\udcff"}, False),
        ({}, False),
    ],
)
def test_a_whisper_is_of_english_alone_only_if_its_vocabulary_says_so(
    files: dict[str, str], is_one: bool, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert is_english_only(tmp_path) is is_one


def test_a_half_copied_whisper_is_not_found(tmp_path: Path) -> None:
    put_whisper(tmp_path, "base.en")
    (tmp_path / "whisper/base.en/tokenizer.json").unlink()
    assert find_whisper(tmp_path, choose_model("cpu", 4, 8.0)) is None


def test_the_voice_asked_for_wins_over_the_default_and_a_missing_one_is_not_replaced(tmp_path: Path) -> None:
    for voice in ("en_GB-alan-medium", DEFAULT_VOICE, "en_US-bob-low"):
        folder = tmp_path / "piper" / voice
        folder.mkdir(parents=True)
        (folder / f"{voice}.onnx").write_bytes(b"x")
        if not voice.endswith("low"):
            (folder / f"{voice}.onnx.json").write_text("{}")
    names = [
        getattr(find_piper(tmp_path, voice), "name", None) for voice in (None, "en_GB-alan-medium", "en_US-bob-low")
    ]
    assert names == [DEFAULT_VOICE, "en_GB-alan-medium", None]
    assert find_piper(tmp_path / "nowhere") is None

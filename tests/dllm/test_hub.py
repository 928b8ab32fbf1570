"""Where checkpoints are found: folders, the hub's cache on this machine, the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

from dllm import hub, loader
from dllm.errors import CheckpointError, DownloadError
from dllm.hub import find_checkpoint
from tests.dllm import tiny

NOBODY = "http://127.0.0.1:1"
"""A port that refuses connections: the machine itself answers, so no test waits."""


def cache(root: Path, *, is_whole: bool = True) -> Path:
    """A checkpoint in the layout of the hub's cache."""
    snapshot = root / "models--org--tiny" / "snapshots" / ("0" * 40)
    loader.save(snapshot, tiny.spec(), dict(tiny.model().named_parameters()), tiny.codec())
    refs = root / "models--org--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    if not is_whole:
        (snapshot / "model.safetensors").unlink()
    return snapshot


class Hub:
    """`snapshot_download` that has nothing on disk and answers as told."""

    def __init__(self, answer: Path | Exception) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    def __call__(self, name: str, **options: Any) -> str:
        self.asked.append(options)
        if options["local_files_only"]:
            from huggingface_hub.errors import LocalEntryNotFoundError

            raise LocalEntryNotFoundError("nothing here")
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def refusal(kind: type[Exception]) -> Exception:
    """Without the HTTP response that the hub's errors carry."""
    error = kind.__new__(kind)
    error.args = ("refused",)
    return error


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) == tmp_path
    assert find_checkpoint(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("source", [Path("org/tiny"), "tiny", "a/b/c", "../x", "org/"])
def test_what_is_neither_a_folder_nor_a_name_is_refused_without_asking_anybody(source: Path | str) -> None:
    with pytest.raises(CheckpointError, match="expected a checkpoint's folder or ORG/NAME"):
        find_checkpoint(source, endpoint=NOBODY)


def test_a_cached_checkpoint_needs_no_connection(tmp_path: Path) -> None:
    snapshot = cache(tmp_path)
    found = find_checkpoint("org/tiny", cache_dir=tmp_path, endpoint=NOBODY)
    assert found == snapshot
    assert loader.load(found).spec == tiny.spec()


def test_without_a_connection_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"org/tiny: .*cannot be reached\. .*copy the checkpoint's folder"):
        find_checkpoint("org/tiny", cache_dir=tmp_path, endpoint=NOBODY)


def test_a_broken_off_fetch_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cache(tmp_path, is_whole=False)
    asked: list[bool] = []

    def download(name: str, *, local_files_only: bool, **_: Any) -> str:
        asked.append(local_files_only)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    find_checkpoint("org/tiny", cache_dir=tmp_path)
    assert asked == [True, False]


def test_only_data_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Hub(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    assert find_checkpoint("org/tiny") == tmp_path
    assert [asked["local_files_only"] for asked in answer.asked] == [True, False]
    assert all(asked["allow_patterns"] == hub.PATTERNS for asked in answer.asked)
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in hub.PATTERNS)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GatedRepoError, "its owner must grant access first"),
        (RepositoryNotFoundError, "the hub has no public checkpoint of this name"),
        (HTTPError, "the hub said: refused"),
        (OSError, "the hub said: refused"),
    ],
)
def test_refusals_are_told_apart(kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(refusal(kind)))
    with pytest.raises(DownloadError, match=message) as caught:
        find_checkpoint("org/tiny")
    assert caught.value.name == "org/tiny" and isinstance(caught.value.__cause__, kind)


def test_load_takes_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(cache(tmp_path)))
    assert loader.load("org/tiny").spec == tiny.spec()

"""Files from a model hub: listed, resumed, checked, and put in place only when whole.

Speaks the two routes of the Hugging Face hub that need no account: `/api/models/REPO/tree/REVISION` lists files with sizes and
checksums, `/REPO/resolve/REVISION/PATH` sends one and honours `Range`. Mirrors speak the same.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voiceagent.errors import VoiceAgentError

HUB_URL = "https://huggingface.co"
_CHUNK_BYTES = 1 << 18


class FetchError(VoiceAgentError):
    """A model could not be fetched; the message says what to do. What was already received is kept and resumed from."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the hub. Exactly one checksum is published: SHA-256 for large files, git's blob SHA-1 for small ones."""

    path: str
    size_bytes: int
    sha256: str | None = None
    blob_sha1: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch is, over all its files."""

    file: str
    done_bytes: int
    total_bytes: int


class Hub:
    """A hub or mirror.

    Args:
        url: Its address, without a trailing slash.
        timeout_s: Longest silence of the network that is borne.
        retry_delays_s: Pauses before trying again after a broken connection.
    """

    def __init__(
        self, url: str = HUB_URL, *, timeout_s: float = 30.0, retry_delays_s: Sequence[float] = (1.0, 4.0)
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._retry_delays_s = tuple(retry_delays_s)
        host = urllib.parse.urlsplit(self.url).hostname
        is_local = host in ("127.0.0.1", "localhost", "::1")
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_local else []))

    def list_files(self, repo: str, revision: str = "main", folder: str = "") -> tuple[RemoteFile, ...]:
        """All files of a repository below `folder`.

        Raises:
            FetchError: If the hub cannot be reached or does not know the repository.
        """
        path = f"/api/models/{repo}/tree/{urllib.parse.quote(revision, safe='')}"
        url: str | None = self.url + path + (f"/{urllib.parse.quote(folder)}" if folder else "") + "?recursive=true"
        files: list[RemoteFile] = []
        while url is not None:
            page, url = self._page(url, repo)
            files += [_remote_file(entry, self.url) for entry in page if entry.get("type") == "file"]
        return tuple(files)

    def download(
        self, repo: str, revision: str, file: RemoteFile, target: Path, on_bytes: Callable[[int], None]
    ) -> None:
        """Bring one file to `target`, continuing what an earlier attempt left in `target.part`.

        Args:
            on_bytes: Told how many bytes of the file are here, at the start and as they arrive.

        Raises:
            FetchError: If the hub cannot be reached, or what arrived does not have the published checksum.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        for delay_s in (*self._retry_delays_s, None):
            try:
                self._continue(repo, revision, file, part, on_bytes)
                break
            except urllib.error.HTTPError as error:
                raise FetchError(f"{self.url} answered {error.code} for {repo}/{file.path}") from error
            except (OSError, http.client.HTTPException) as error:
                if delay_s is None:
                    raise self._unreachable(error) from error
                time.sleep(delay_s)
        if not _has_checksum(part, file):
            part.unlink()
            raise FetchError(f"{file.path} of {repo} arrived damaged and was removed; run the same command again")
        part.replace(target)

    def _continue(
        self, repo: str, revision: str, file: RemoteFile, part: Path, on_bytes: Callable[[int], None]
    ) -> None:
        have = part.stat().st_size if part.exists() else 0
        if have > file.size_bytes:
            part.unlink()
            have = 0
        on_bytes(have)
        if have == file.size_bytes and part.exists():
            return
        url = f"{self.url}/{repo}/resolve/{urllib.parse.quote(revision, safe='')}/{urllib.parse.quote(file.path)}"
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with self._opener.open(request, timeout=self._timeout_s) as response:
            if response.status != 206:
                have = 0
            with part.open("ab" if have else "wb") as out:
                while chunk := response.read(_CHUNK_BYTES):
                    out.write(chunk)
                    have += len(chunk)
                    on_bytes(have)
        if have < file.size_bytes:
            raise ConnectionError(f"the connection ended after {have} of {file.size_bytes} bytes")

    def _page(self, url: str, repo: str) -> tuple[list[dict[str, Any]], str | None]:
        try:
            with self._opener.open(url, timeout=self._timeout_s) as response:
                entries = json.load(response)
                following = re.search(r'<([^>]+)>;\s*rel="next"', response.headers.get("Link") or "")
        except urllib.error.HTTPError as error:
            if error.code in (401, 403, 404):
                raise FetchError(f"{self.url} has no public repository {repo}; check the name") from error
            raise FetchError(f"{self.url} answered {error.code} for {repo}; try again later") from error
        except ValueError as error:
            raise FetchError(f"{self.url} answered something that is no file list; is HF_ENDPOINT right?") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise FetchError(f"{self.url} answered something that is no file list; is HF_ENDPOINT right?")
        return entries, urllib.parse.urljoin(url, following.group(1)) if following else None

    def _unreachable(self, error: Exception) -> FetchError:
        reason = getattr(error, "reason", None) or error
        return FetchError(
            f"could not reach {self.url} ({reason}); check the connection or proxy and run the same command again, "
            "it continues where it stopped. Or set HF_ENDPOINT to a mirror, or copy the files by hand (docs/models.md)"
        )


def download_folder(
    hub: Hub,
    repo: str,
    files: Sequence[RemoteFile],
    target: Path,
    *,
    revision: str = "main",
    strip: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Bring files into a new folder that appears only when all are whole.

    Args:
        target: Must not exist; files gather in a hidden folder beside it and survive a failure.
        strip: Leading folder removed from the files' paths.

    Raises:
        FetchError: If a file cannot be brought, or the disk has too little room.
    """
    staging = target.with_name(f".{target.name}.partial")
    staging.mkdir(parents=True, exist_ok=True)
    total = sum(file.size_bytes for file in files)
    here = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    free = shutil.disk_usage(staging).free
    if total - here > free:
        raise FetchError(f"{target.parent} has {free / 1e9:.1f} GB free and {(total - here) / 1e9:.1f} GB are needed")
    done = 0
    for file in files:
        place = staging / file.path.removeprefix(strip).lstrip("/")
        if not place.resolve().is_relative_to(staging.resolve()):
            raise FetchError(f"{hub.url} lists a file outside its repository: {file.path}")
        base = done

        def report(count: int, name: str = file.path, base: int = base) -> None:
            on_progress(Progress(name, base + count, total))

        if not (place.exists() and place.stat().st_size == file.size_bytes):
            hub.download(repo, revision, file, place, report)
        done += file.size_bytes
        report(file.size_bytes)
    os.replace(staging, target)


def _remote_file(entry: dict[str, Any], hub_url: str) -> RemoteFile:
    try:
        lfs = entry.get("lfs")
        if lfs:
            return RemoteFile(str(entry["path"]), int(lfs["size"]), sha256=str(lfs["oid"]).removeprefix("sha256:"))
        return RemoteFile(str(entry["path"]), int(entry["size"]), blob_sha1=str(entry["oid"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FetchError(f"{hub_url} lists a file without its size or checksum: {entry!r:.200}") from error


def _has_checksum(path: Path, file: RemoteFile) -> bool:
    digest = (
        hashlib.sha256()
        if file.sha256
        else hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    )
    with path.open("rb") as data:
        while chunk := data.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == (file.sha256 or file.blob_sha1)

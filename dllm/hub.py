"""Where a checkpoint's files are: a folder, the hub's local cache, or the hub itself."""

from __future__ import annotations

import re
from pathlib import Path

from dllm.errors import CheckpointError, DownloadError
from dllm.hub_codec import FILES
from dllm.shards import weight_files

PATTERNS = ["config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json", *FILES]
"""What is fetched: nothing that could be run, no other format of the same weights."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find_checkpoint(source: Path | str, *, cache_dir: Path | None = None, endpoint: str | None = None) -> Path:
    """The folder of a checkpoint, fetched if need be.

    Args:
        source: A folder, or the hub's "ORG/NAME". A `Path` is always a folder.
        cache_dir: The hub's local cache; None is where its own tools keep it.
        endpoint: A mirror of the hub.

    Raises:
        CheckpointError: If it is neither a folder nor a name.
        DownloadError: If the hub cannot be reached or does not hand the files out.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or not _NAME.fullmatch(source):
        raise CheckpointError(f"{folder / 'config.json'}: no such file; expected a checkpoint's folder or ORG/NAME")

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HTTPError,  # of the HTTP library that it uses, another one in each major version
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    def fetch(*, is_local: bool) -> Path:
        return Path(
            snapshot_download(
                source, allow_patterns=PATTERNS, cache_dir=cache_dir, endpoint=endpoint, local_files_only=is_local
            )
        )

    try:
        cached = fetch(is_local=True)
        if _is_whole(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        return fetch(is_local=False)
    except GatedRepoError as error:
        raise DownloadError(source, "its owner must grant access first; ask on its page, then log in") from error
    except RepositoryNotFoundError as error:
        raise DownloadError(source, "the hub has no public checkpoint of this name") from error
    except LocalEntryNotFoundError as error:
        raise DownloadError(source, "the hub cannot be reached") from error
    except (HTTPError, OSError) as error:
        raise DownloadError(source, f"the hub said: {error}") from error


def _is_whole(folder: Path) -> bool:
    """Whether a cached snapshot has its configuration and all weight files; a broken-off fetch leaves some out."""
    try:
        weight_files(folder)
    except CheckpointError:
        return False
    return (folder / "config.json").is_file()

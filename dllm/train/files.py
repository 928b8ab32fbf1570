"""Data files as lines of text. Whatever is wrong with one is said with its name and line."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from dllm.errors import DataError

MAX_LINE_BYTES = 4 * 2**20
"""A dialogue of an hour has about 60 kB; a line beyond this is a file without line ends."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a run keeps of a data file, so that another run can tell whether it has the same."""

    path: str
    sha256: str
    bytes: int
    lines: int


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file, plain or .xz, with their numbers from 1. A byte-order mark is left out.

    Raises:
        DataError: If the file is missing, empty or damaged, or a line is too long, not UTF-8 or has NUL bytes.
    """
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                yield number, _decoded(path, number, line)
    except (lzma.LZMAError, EOFError) as error:
        raise DataError(path, number + 1 if number else None, f"unreadable: {error}") from error
    except OSError as error:
        raise DataError(path, None, f"unreadable: {error.strerror}") from error
    if not number:
        raise DataError(path, None, "an empty file")


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """JSON objects, one a line, with their line numbers. Empty lines are left out.

    Raises:
        DataError: See `read_lines`; also if a line is no JSON object, or none is there.
    """
    number = 0
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            body = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            problem = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise DataError(path, number, f"not JSON: {problem}") from error
        if not isinstance(body, dict):
            raise DataError(path, number, f"expected an object, found {type(body).__name__}")
        yield number, body


def check_text(path: Path, number: int, text: str) -> str:
    """The text, if it can be written as UTF-8: JSON may spell halves of characters.

    Raises:
        DataError: If not.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(path, number, f"half a character: {error.object[error.start]!r}") from error
    return text


def record(path: Path) -> FileRecord:
    """The file as it is on disk; lines are those of its text."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return FileRecord(str(path), digest, path.stat().st_size, sum(1 for _ in read_lines(path)))


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", lzma.open(path, "rb")) if path.suffix == ".xz" else path.open("rb")


def _decoded(path: Path, number: int, line: bytes) -> str:
    if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(path, number, "UTF-16; save the file as UTF-8")
    if len(line) > MAX_LINE_BYTES:
        raise DataError(path, number, f"a line of more than {MAX_LINE_BYTES // 2**20} MiB")
    if b"\0" in line:
        raise DataError(path, number, "NUL bytes; expected UTF-8 text")
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise DataError(path, number, f"not UTF-8 at byte {error.start + 1} of the line (0x{byte:02x})") from error

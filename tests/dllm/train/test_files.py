"""Data files: what is wrong with one is said with file and line."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from dllm.errors import DataError
from dllm.train import files
from dllm.train.data import read_dialogues
from dllm.train.files import read_lines, read_objects, record

GOOD = b'{"turns": [{"role": "user", "text": "hi"}]}\n'


def lines_of(path: Path, content: bytes) -> list[tuple[int, str]]:
    path.write_bytes(content)
    return list(read_lines(path))


@pytest.mark.parametrize(
    ("content", "place", "problem"),
    [
        (b"", "", "an empty file"),
        ("{}".encode("utf-16"), ":1", "UTF-16"),
        (GOOD + "é\n".encode("latin-1"), ":2", r"not UTF-8 at byte 1 of the line \(0xe9\)"),
        (GOOD + b"a\0b\n", ":2", "NUL bytes"),
        (GOOD + GOOD[:-20] + b"\n", ":2", "not JSON"),
        (GOOD + b"[" * 100_000 + b"\n", ":2", "not JSON"),
        (GOOD + b"7\n", ":2", "expected an object, found int"),
        (GOOD + b'{"turns": []}\n', ":2", "a dialogue without turns"),
        (GOOD + b'{"turns": [{"role": "user", "text": "\\ud83d"}]}\n', ":2", "half a character"),
        (b"\n  \n", "", "no dialogue in it"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path: Path, content: bytes, place: str, problem: str) -> None:
    path = tmp_path / "a.train.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.train\.jsonl{place}: .*{problem}"):
        list(read_dialogues(path))


def test_a_line_beyond_the_limit_is_refused_before_it_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 64)
    assert len(lines_of(tmp_path / "a", b"x" * 63 + b"\n" + b"y" * 64)) == 2
    with pytest.raises(DataError, match="a:2: a line of more than"):
        lines_of(tmp_path / "a", b"x\n" + b"y" * 65)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "a", b"\xef\xbb\xbfone\ntwo\n") == [(1, "one\n"), (2, "two\n")]


def test_a_cut_archive_is_named_with_the_line_it_breaks_at(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress(GOOD * 5000)[:-40])
    with pytest.raises(DataError, match=r"a\.jsonl\.xz:\d+: unreadable"):
        list(read_objects(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: unreadable: No such file"):
        list(read_lines(tmp_path / "nowhere"))


def test_a_record_tells_files_apart_and_counts_the_lines_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(GOOD * 3)
    (tmp_path / "b.xz").write_bytes(lzma.compress(GOOD * 3))
    one, two = record(tmp_path / "a"), record(tmp_path / "b.xz")
    assert (one.lines, two.lines, one.bytes) == (3, 3, 3 * len(GOOD))
    assert one.sha256 != two.sha256

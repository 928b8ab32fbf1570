"""Word sequences people use with assistants: counts of one to three words that ship with the package.

The file is xz-compressed text. Each line is a count and one to three words, separated by blanks; `<s>` and `</s>` are the ends of a turn.
`python -m voice_pipelines.asr.build_general` makes it; its sources and licence are in the notice beside it.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from voice_pipelines.asr.ngrams import Counts

_FILE = "general.ngrams.xz"


def shipped_bytes() -> bytes:
    """The compressed file as it lies in the package."""
    return files("voice_pipelines.asr").joinpath(_FILE).read_bytes()


def load(compressed: bytes) -> Counts:
    """Counts in a compressed file.

    Raises:
        ValueError: If a line is not a count and one to three words.
    """
    counts = Counts()
    for line in lzma.decompress(compressed).decode("utf-8").splitlines():
        count, *words = line.split(" ")
        counts.add(tuple(words), float(count))
    return counts


def save(counts: Counts, path: Path) -> int:
    """Write counts, rounded, in a fixed order. Returns the size in bytes."""
    data = lzma.compress("\n".join(_lines(counts)).encode("utf-8"), preset=9 | lzma.PRESET_EXTREME)
    path.write_bytes(data)
    return len(data)


def _lines(counts: Counts) -> Iterable[str]:
    for table in counts.tables:
        for words, count in sorted(table.items()):
            yield " ".join((str(round(count)), *words))

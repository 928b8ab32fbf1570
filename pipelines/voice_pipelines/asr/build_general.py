"""Count what users say in the dialogues: `python -m voice_pipelines.asr.build_general --dialogues FOLDER --out FILE`.

Reads the user turns of every `*.train.jsonl.xz` in the folder (one dialogue a line, `{"turns": [{"role", "text"}]}`), spells out
figures, keeps the most frequent words that the bundled dictionary can pronounce, and writes their sequences. A sequence with another
word in it is broken there. The result depends on the input alone.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from voice_pipelines.asr import general
from voice_pipelines.asr.ngrams import END, ORDER, START, Counts
from voice_pipelines.asr.pronounce import bundled_dictionary
from voice_pipelines.asr.text import spoken_words

MAX_TURN_WORDS = 40
"""Longer turns are essays, not speech."""


def user_turns(folder: Path) -> Iterator[list[str]]:
    """Spoken words of every user turn, file by file in the order of their names.

    Raises:
        FileNotFoundError: If the folder holds no dialogues.
    """
    paths = sorted(folder.glob("*.train.jsonl.xz"))
    if not paths:
        raise FileNotFoundError(f"{folder}: expected files named *.train.jsonl.xz")
    for path in paths:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                for turn in json.loads(line)["turns"]:
                    if turn["role"] == "user" and 0 < len(words := spoken_words(turn["text"])) <= MAX_TURN_WORDS:
                        yield words


def count_turns(turns: list[list[str]], vocabulary: frozenset[str], min_counts: tuple[int, ...]) -> Counts:
    """Counts of all sequences of 1..ORDER words inside the vocabulary that occur at least `min_counts[length - 1]` times."""
    tables: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(ORDER)]
    for turn in turns:
        padded = [START, *turn, END]
        known = [word in vocabulary or word in (START, END) for word in padded]
        for length, table in enumerate(tables, start=1):
            for start in range(len(padded) - length + 1):
                if all(known[start : start + length]):
                    table[tuple(padded[start : start + length])] += 1
    counts = Counts()
    for table, least in zip(tables, min_counts, strict=True):
        for words, count in table.items():
            if count >= least:
                counts.add(words, count)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dialogues", type=Path, required=True, help="folder with *.train.jsonl.xz")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--words", type=int, default=4500, help="size of the vocabulary")
    parser.add_argument("--min-pairs", type=int, default=4, help="rarer sequences of two words are left out")
    parser.add_argument("--min-triples", type=int, default=6, help="rarer sequences of three words are left out")
    options = parser.parse_args()
    turns = list(user_turns(options.dialogues))
    pronounceable = bundled_dictionary()
    frequency = Counter(word for turn in turns for word in turn if word in pronounceable)
    vocabulary = frozenset(
        word for word, _ in sorted(frequency.items(), key=lambda item: (-item[1], item[0]))[: options.words]
    )
    counts = count_turns(turns, vocabulary, (1, options.min_pairs, options.min_triples))
    size = general.save(counts, options.out)
    print(f"{len(turns)} user turns; {' + '.join(str(len(table)) for table in counts.tables)} sequences; {size} bytes")


if __name__ == "__main__":
    main()

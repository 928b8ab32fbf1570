"""The files a decoder loads for a vocabulary, a language model and a dictionary, made once and kept in a cache folder.

`python -m voice_pipelines.asr.model FOLDER` reads a vocabulary as JSON and fills the folder; the runtime calls it in a process of its
own, because eSpeak keeps one state per process and the work takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from voice_pipelines.asr import general
from voice_pipelines.asr.ngrams import END, START, BackoffModel, WittenBell
from voice_pipelines.asr.pronounce import pronunciations
from voice_pipelines.asr.vocabulary import Vocabulary

_FORMAT = 2
"""Part of the cache key: raised whenever the same input gives other files."""

HUMS = ("uh-huh", "mhm", "hmm", "mm")
"""What listeners say; nobody types it, so the everyday counts, which come from text, do not have it."""
HUM_COUNT = 3_000.0
"""Turns that each of them is taken to have been, among half a million: an eighth as many as "yes". Word errors in 37 orders stayed what they were."""


@dataclass(frozen=True, slots=True)
class LanguageOptions:
    """How much the vocabulary counts against everyday language. Defaults were measured; see docs/asr.md.

    `domain_weight` is the share of the interpolation that the vocabulary gets, in (0, 1). `sentences` is how often the vocabulary is
    taken to have been heard: the more, the less it allows for words in orders it does not list. Sequences expected less than `least`
    times in them are left out.
    """

    domain_weight: float = 0.9
    sentences: float = 20_000.0
    least: float = 0.05

    def __post_init__(self) -> None:
        if not (0 < self.domain_weight < 1 and self.sentences > 0 and self.least >= 0):
            raise ValueError(f"{self}: expected a weight in (0, 1), positive sentences, and least of 0 or more")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    language_model: Path
    dictionary: Path


def cached_files(folder: Path, vocabulary: Vocabulary | None, options: LanguageOptions) -> tuple[ModelFiles, bool]:
    """Where the files for a vocabulary lie, and whether they are there."""
    key = hashlib.sha256(general.shipped_bytes())
    key.update(f"{_FORMAT} {options} {vocabulary.digest if vocabulary else ''}".encode())
    stem = folder / f"asr-{key.hexdigest()[:20]}"
    files = ModelFiles(stem.with_suffix(".lm.bin"), stem.with_suffix(".dict"))
    return files, files.language_model.exists() and files.dictionary.exists()


def build(vocabulary: Vocabulary | None, options: LanguageOptions, files: ModelFiles) -> None:
    """Make the files. Each appears complete or not at all, also when two processes build at once.

    Raises:
        ValueError: If a word cannot be pronounced.
    """
    from pocketsphinx import NGramModel

    everyday = general.load(general.shipped_bytes())
    for hum in HUMS:
        for sequence in ((hum,), (START, hum), (hum, END), (START, hum, END)):
            everyday.add(sequence, HUM_COUNT)
    known = everyday.words
    if vocabulary is None:
        model = BackoffModel([(1.0, WittenBell(everyday, known))])
    else:
        domain = vocabulary.grammar.expected_counts(options.sentences, options.least)
        known |= vocabulary.grammar.words()
        model = BackoffModel(
            [
                (options.domain_weight, WittenBell(domain, known)),
                (1 - options.domain_weight, WittenBell(everyday, known)),
            ]
        )
    folder = files.language_model.parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        dictionary = Path(scratch) / "words.dict"
        with dictionary.open("w", encoding="utf-8") as out:
            for word, variants in sorted(pronunciations(known).items()):
                for number, phones in enumerate(variants, start=1):
                    out.write(f"{word if number == 1 else f'{word}({number})'} {phones}\n")
        arpa, binary = Path(scratch) / "model.arpa", Path(scratch) / "model.lm.bin"
        with arpa.open("w", encoding="utf-8") as out:
            model.write_arpa(out)
        NGramModel.readfile(str(arpa)).write(str(binary))
        os.replace(dictionary, files.dictionary)
        os.replace(binary, files.language_model)


def main() -> None:
    request = json.load(sys.stdin)
    vocabulary = None if request["vocabulary"] is None else Vocabulary.from_table(request["vocabulary"])
    options = LanguageOptions(**request["options"])
    files, _ = cached_files(Path(sys.argv[1]), vocabulary, options)
    build(vocabulary, options, files)


if __name__ == "__main__":
    main()

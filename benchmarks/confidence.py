"""Sets how sure PocketSphinx is of its words (`voice_pipelines/asr/confidence.py`) on one half of the speakers, and says how it does on the other.

    python benchmarks/confidence.py --data SPEECH --save benchmarks/results/confidence.json

Every recording with words is decoded whole, with the agent's vocabulary and with everyday language alone. Words are right where at most one in three is wrong. Of each kind of
recording every second speaker is in the half that is fitted; recordings of which fewer than four words were heard are only reported on. The area under the curve compares recordings that
were heard well (fewer than one word in five wrong) with those that were misheard (more than every second).
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from asr import BLOCK_SAMPLES, clips, decoder_for, plain_words
from logistic import Floats, logistic
from measuring import about
from numpy.typing import NDArray
from pauses import pcm

from voice_pipelines.asr.confidence import SHIPPED, Calibration, nats_per_second
from voice_pipelines.asr.decoder import SphinxDecoder
from voice_pipelines.asr.vocabulary import Vocabulary
from voiceagent.transcript import word_errors

ROOT = Path(__file__).parent.parent
KINDS = ["order", "command", "telephone", "noisy", "number", "digit", "letter", "read", "long"]
TO_THE_AGENT = ("order", "command", "telephone", "noisy")
MOST_ERRORS = 1 / 3
"""Word error rate up to which words are right."""
WELL, MISHEARD = 0.2, 0.5
"""Word error rates below and above which a recording is one or the other for the area."""
LEAST_WORDS = 4
"""Of fewer words the number tells next to nothing, and as answers they are not asked about."""
KEEP = 1e-3
BINS = 5


@dataclass(frozen=True, slots=True)
class Heard:
    """One recording as the recogniser has it."""

    path: str
    kind: str
    speaker: str
    words: int
    nats_per_second: float
    errors: float
    """Word error rate, at most 1."""


def hear(decoder: SphinxDecoder, folder: Path, kinds: list[str], every: int) -> list[Heard]:
    """All recordings of which there were any words."""
    known = [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]
    speakers = {entry["path"]: str(entry["speaker"]) for entry in known}
    found = []
    for clip in clips(folder, kinds, every):
        sound = pcm(clip.samples)
        decoder.start()
        for start in range(0, len(sound), 2 * BLOCK_SAMPLES):
            decoder.feed(sound[start : start + 2 * BLOCK_SAMPLES])
        heard = decoder.finish()
        rate = nats_per_second(heard.spoken)
        if rate is None or not clip.words:
            continue
        errors = min(word_errors(clip.words, plain_words(heard.text)).rate, 1.0)
        found.append(Heard(clip.path, clip.kind, speakers[clip.path], len(heard.words), rate, errors))
    return found


def first_half(heard: Sequence[Heard]) -> NDArray[np.bool_]:
    """[N] which are of the speakers that it is set on: every second of those of a kind, whoever was met in an earlier kind staying where they were."""
    is_first: dict[str, bool] = {}
    for kind in dict.fromkeys(each.kind for each in heard):
        new = sorted({each.speaker for each in heard if each.kind == kind} - is_first.keys())
        is_first |= {speaker: number % 2 == 0 for number, speaker in enumerate(new)}
    return np.array([is_first[each.speaker] for each in heard])


def fit(heard: Sequence[Heard]) -> Calibration:
    """The logistic regression of words that are right."""
    rates = np.array([each.nats_per_second for each in heard])
    is_right = np.array([each.errors <= MOST_ERRORS for each in heard])
    mean, spread = float(rates.mean()), float(rates.std())
    slope, bias = logistic(((rates - mean) / spread)[:, None], is_right, np.ones(len(rates)), KEEP)
    return Calibration(half_at=round(mean - spread * float(bias / slope), 2), slope=round(float(slope) / spread, 3))


def area(ones: Floats, others: Floats) -> float | None:
    """The chance that one of the first is above one of the others; None where there are none of either."""
    if not len(ones) or not len(others):
        return None
    return round(float((ones[:, None] > others).mean() + 0.5 * (ones[:, None] == others).mean()), 3)


def told(heard: Sequence[Heard], calibration: Calibration) -> dict[str, object]:
    """How it does on these."""
    if not heard:
        return {"recordings": 0}
    rates = np.array([each.nats_per_second for each in heard])
    errors = np.array([each.errors for each in heard])
    is_right = errors <= MOST_ERRORS
    sure = 1 / (1 + np.exp(-calibration.slope * (rates - calibration.half_at)))
    parts = [part for part in np.array_split(np.argsort(sure), BINS) if len(part)]
    return {
        "recordings": len(heard),
        "heard well": int((errors < WELL).sum()),
        "misheard": int((errors > MISHEARD).sum()),
        "area": area(rates[errors < WELL], rates[errors > MISHEARD]),
        "mean confidence": round(float(sure.mean()), 3),
        "right": round(float(is_right.mean()), 3),
        "calibration": [
            {"confidence": round(float(sure[part].mean()), 3), "right": round(float(is_right[part].mean()), 3)}
            for part in parts
        ],
    }


def report(heard: Sequence[Heard], shipped: Calibration) -> dict[str, object]:
    """Set on each half and held against the other; then the shipped numbers by kind."""
    long = [each for each in heard if each.words >= LEAST_WORDS]
    first = first_half(long)
    halves = [[each for each, mine in zip(long, first == side, strict=True) if mine] for side in (True, False)]
    result: dict[str, object] = {}
    for name, (mine, others) in (("first half", (halves[0], halves[1])), ("second half", (halves[1], halves[0]))):
        found = fit(mine)
        result[f"set on the {name}"] = {
            "calibration": asdict(found),
            "the same speakers": told(mine, found),
            "the others": told(others, found),
            "callers of the others": told([each for each in others if each.kind in TO_THE_AGENT], found),
        }
    parts = {kind: [each for each in long if each.kind == kind] for kind in sorted({each.kind for each in long})}
    few = [each for each in heard if each.words < LEAST_WORDS]
    result["shipped"] = {
        name: told(some, shipped) for name, some in (*parts.items(), ("all of these", long), ("fewer words", few))
    }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of recordings with manifest.jsonl")
    parser.add_argument(
        "--preset", type=Path, default=ROOT / "pipelines/voice_pipelines/presets/cafe.toml", help="agent"
    )
    parser.add_argument("--kinds", nargs="+", default=KINDS, help="kinds of recordings")
    parser.add_argument("--every", type=int, default=1, help="take every n-th recording of each kind only")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "asr", help="folder for built language models")
    parser.add_argument("--save", type=Path, help="file for the results, such as benchmarks/results/confidence.json")
    options = parser.parse_args()
    with options.preset.open("rb") as file:
        vocabulary = Vocabulary.from_table(tomllib.load(file)["vocabulary"])
    result: dict[str, object] = {**about(torch.device("cpu")), "data": options.data.name}
    for name, words in (("with the vocabulary", vocabulary), ("everyday language only", None)):
        decoder, _ = decoder_for(words, options.cache)
        heard = hear(decoder, options.data, options.kinds, options.every)
        result[name] = {
            **report(heard, SHIPPED),
            "recordings": [
                {**asdict(each), "nats_per_second": round(each.nats_per_second, 3), "errors": round(each.errors, 3)}
                for each in heard
            ],
        }
        shown = {key: value for key, value in result[name].items() if key != "recordings"}  # type: ignore[attr-defined]
        print(f"\n## {name}\n\n{json.dumps(shown, indent=1)}", flush=True)
    if options.save is not None:
        options.save.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

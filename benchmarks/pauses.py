"""Recordings with pauses put in: what a caller who stops to think sounds like, made from one who did not.

    python benchmarks/pauses.py --data SPEECH --kinds order telephone --out PAUSED    # a folder of recordings, for examples/bench_voice_to_voice.py

Lengths are log-normal with a median of 0.6 s and a 95th percentile of 1.5 s, one per recording, at a boundary between two words
drawn uniformly, both seeded by the recording's path. Boundaries come from forced alignment of the known text; the cut is at the
quietest 10 ms near one, and the pause is filled with the recording's own background.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from voice_pipelines.asr.pronounce import pronunciations
from voiceagent.backends import INPUT_RATE_HZ, Samples

PAUSE_MEDIAN_S, PAUSE_P95_S = 0.6, 1.5
_PAUSE_SPREAD = math.log(PAUSE_P95_S / PAUSE_MEDIAN_S) / 1.6449
TAIL_S = 2.6
"""Silence after the last word."""
LEAD_S = 1.0
AFTER_CUT_S = 1.2
FAINT = 10 ** (-66 / 20)
"""Level of made background: that of the pauses in read speech here."""
_NEAR_S = 0.04
"""How far from the aligned boundary the cut may be."""


@dataclass(frozen=True, slots=True)
class Pause:
    at_s: float
    length_s: float
    before: str
    """The words before it."""


@dataclass(frozen=True, slots=True)
class Sound:
    samples: Samples
    """16 kHz mono."""
    speech_end_s: float
    pause: Pause | None


@dataclass(frozen=True, slots=True)
class Cut:
    """A recording that was broken off."""

    samples: Samples
    at: int
    """The first sample of what was put behind it."""
    is_end: bool
    """After the last word."""


def draw_pause(path: str, boundaries: int, seed: int) -> tuple[int, float]:
    """Which boundary, and for how many seconds."""
    generator = random.Random(f"{seed}:{path}")
    return generator.randrange(boundaries), generator.lognormvariate(math.log(PAUSE_MEDIAN_S), _PAUSE_SPREAD)


class Aligner:
    """Where the words of a known text end."""

    def __init__(self) -> None:
        import pocketsphinx

        model = Path(pocketsphinx.get_model_path()) / "en-us"
        self._decoder: Any = pocketsphinx.Decoder(
            hmm=str(model / "en-us"), lm=None, dict=str(model / "cmudict-en-us.dict"), loglevel="FATAL"
        )

    def word_ends(self, samples: Samples, words: list[str]) -> list[float] | None:
        """Seconds from the start of `samples`, one per word; None when the sound does not fit the text."""
        for word in words:
            if self._decoder.lookup_word(word) is None:
                self._decoder.add_word(word, pronunciations([word])[word][0], True)
        try:
            self._decoder.set_align_text(" ".join(words))
            self._decoder.start_utt()
            self._decoder.process_raw(pcm(samples), False, True)
            self._decoder.end_utt()
        except RuntimeError:
            return None
        found = [part for part in self._decoder.seg() or () if part.word[0] not in "<[+"]
        return [(part.end_frame + 1) * 0.01 for part in found] if len(found) == len(words) else None


def pcm(samples: Samples) -> bytes:
    return np.rint(np.clip(samples, -1, 1) * 32_767).astype("<i2").tobytes()


class Background:
    """What a recording sounds like while nobody speaks in it: its quietest 0.3 s outside the speech, to and fro; faint noise where it has none."""

    def __init__(self, samples: Samples, speech: tuple[int, int], generator: np.random.Generator) -> None:
        size, reserve = round(0.3 * INPUT_RATE_HZ), round(0.1 * INPUT_RATE_HZ)
        free = [samples[: max(speech[0] - reserve, 0)], samples[speech[1] + reserve :]]
        starts = [part[at : at + size] for part in free for at in range(0, part.size - size + 1, 800)]
        quiet = min(starts, key=lambda part: float(np.square(part).sum()), default=None)
        self._loop = None if quiet is None else np.concatenate([quiet, quiet[::-1]])
        self._generator = generator

    def take(self, size: int) -> Samples:
        if self._loop is None:
            return (self._generator.standard_normal(size) * FAINT).astype(np.float32)
        return np.resize(self._loop, size)


def quietest(samples: Samples, near_s: float) -> int:
    """The sample to cut at."""
    centre, reach = round(near_s * INPUT_RATE_HZ), round(_NEAR_S * INPUT_RATE_HZ)
    starts = range(max(centre - reach, 0), min(centre + reach, samples.size - 160), 40)
    return min(starts, key=lambda start: float(np.square(samples[start : start + 160]).sum())) + 80


def entries(folder: Path, kinds: Iterable[str], every: int = 1) -> Iterator[dict[str, Any]]:
    """Recordings whose last word is known to end somewhere."""
    wanted = tuple(kinds)
    known = [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]
    yield from [entry for entry in known if entry["kind"] in wanted and "speech_end_s" in entry][::every]


class Splicer:
    """Puts pauses into the recordings of a folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._aligner = Aligner()

    def sound(self, entry: dict[str, Any], *, with_pause: bool) -> Sound | None:
        """A recording from `LEAD_S` before its first word to `TAIL_S` after its last; None where a pause is wanted and there is no place for it."""
        speech, tail, background = self._read(entry)
        rate = INPUT_RATE_HZ
        tail = np.concatenate([tail, background.take(round(TAIL_S * rate) - tail.size)])
        place = self._place(entry, speech) if with_pause else None
        if with_pause and place is None:
            return None
        pause = None
        if place is not None:
            cut, pause_s, before = place
            speech = np.concatenate([speech[:cut], background.take(round(pause_s * rate)), speech[cut:]])
            pause = Pause(cut / rate, pause_s, before)
        return Sound(np.concatenate([speech, tail]), speech.size / rate, pause)

    def cuts(self, entry: dict[str, Any], most: int) -> Iterator[Cut]:
        """The same recording up to a boundary between two of its words, at most so many of them, and up to its end: each cut in the same way, and with `AFTER_CUT_S`
        of its background behind it. Nothing where its text cannot be aligned."""
        speech, tail, background = self._read(entry)
        ends = self._word_ends(entry, speech)
        if ends is None:
            return
        drawn = sorted(random.Random(f"{self._seed}:cuts:{entry['path']}").sample(ends[:-1], min(most, len(ends) - 1)))
        for near_s in [*drawn, speech.size / INPUT_RATE_HZ]:
            is_end = near_s == speech.size / INPUT_RATE_HZ
            sound = np.concatenate([speech, tail]) if is_end else speech
            at = quietest(sound, near_s)
            silence = background.take(round(AFTER_CUT_S * INPUT_RATE_HZ))
            yield Cut(np.concatenate([sound[:at], silence]), at, is_end)

    def _read(self, entry: dict[str, Any]) -> tuple[Samples, Samples, Background]:
        """From `LEAD_S` before the first word to the end of the last, what there is of `TAIL_S` behind it, and what both are filled with."""
        samples, rate = soundfile.read(self._folder / entry["path"], dtype="float32")
        if rate != INPUT_RATE_HZ:
            raise ValueError(f"{entry['path']}: {rate} Hz, expected {INPUT_RATE_HZ}")
        generator = np.random.default_rng(int(hashlib.sha256(entry["path"].encode()).hexdigest()[:8], 16))
        start = round(max(entry["speech_start_s"] - LEAD_S, 0.0) * rate)
        end = round(entry["speech_end_s"] * rate)
        background = Background(samples, (round(entry["speech_start_s"] * rate), end), generator)
        lead = background.take(max(round((LEAD_S - entry["speech_start_s"]) * rate), 0))
        return np.concatenate([lead, samples[start:end]]), samples[end : end + round(TAIL_S * rate)], background

    def _place(self, entry: dict[str, Any], speech: Samples) -> tuple[int, float, str] | None:
        """Sample, length and the words before it, or None for a single word or a text that cannot be aligned."""
        words = entry["text"].split()
        ends = self._word_ends(entry, speech) if len(words) > 1 else None
        if ends is None:
            return None
        at, pause_s = draw_pause(entry["path"], len(words) - 1, self._seed)
        return quietest(speech, ends[at]), pause_s, " ".join(words[: at + 1])

    def _word_ends(self, entry: dict[str, Any], speech: Samples) -> list[float] | None:
        words = entry["text"].split()
        if "words" in entry:
            shift = speech.size / INPUT_RATE_HZ - entry["speech_end_s"]
            ends: list[float] | None = [word["end_s"] + shift for word in entry["words"]]
        else:
            padded = np.concatenate([speech, np.zeros(3_200, np.float32)])
            ends = self._aligner.word_ends(padded, words)
        return ends if ends is not None and len(ends) == len(words) else None


def write(data: Path, kinds: Iterable[str], share: float, seed: int, out: Path) -> list[dict[str, Any]]:
    """A folder of recordings, that share of which have a pause, with a manifest like the one they come from; returns its lines.

    Those that have no place for a pause stay as they are.
    """
    splicer = Splicer(data, seed)
    known = list(entries(data, kinds))
    drawn = sorted(range(len(known)), key=lambda at: random.Random(f"{seed}:share:{known[at]['path']}").random())
    wanted = set(drawn[: round(share * len(known))])
    made = []
    for at, entry in enumerate(known):
        sound = splicer.sound(entry, with_pause=True) if at in wanted else None
        sound = sound or splicer.sound(entry, with_pause=False)
        assert sound is not None, "only a pause may have no place"
        path = out / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.clip(sound.samples, -1, 1), INPUT_RATE_HZ)
        line = {name: entry[name] for name in ("path", "kind", "text", "speaker", "licence") if name in entry}
        line |= {"speech_start_s": LEAD_S, "speech_end_s": round(sound.speech_end_s, 4)}
        line["pause_s"] = 0.0 if sound.pause is None else round(sound.pause.length_s, 4)
        line["pause_at_s"] = None if sound.pause is None else round(sound.pause.at_s, 4)
        made.append(line)
    (out / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made), "utf-8")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of recordings with manifest.jsonl")
    parser.add_argument("--kinds", nargs="+", default=["order", "command", "telephone"])
    parser.add_argument("--share", type=float, default=1.0, help="of the recordings that get a pause")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    options = parser.parse_args()
    made = write(options.data, options.kinds, options.share, options.seed, options.out)
    print(f"{options.out}: {len(made)} recordings, {sum(line['pause_s'] > 0 for line in made)} with a pause")


if __name__ == "__main__":
    main()

"""Recordings as the end-of-turn decision meets them: what the voice detector and the recogniser said, and when they said it.

A tape is made once from a recording, with one pause inserted between two of its words or none, and can then be replayed under any
settings without decoding again. Partial transcripts carry the moment when a recogniser working in real time would have had them:
each block of 100 ms is decoded once it has been spoken and the blocks before it are done, and takes the processor time it took here.

Pauses: lengths are log-normal with a median of 0.6 s and a 95th percentile of 1.5 s, one per recording, at a boundary between two words
drawn uniformly, both seeded by the recording's path. Boundaries come from forced alignment of the known text; the cut is at the
quietest 10 ms near one, and the pause is filled with the recording's own background.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from voice_pipelines.adapters.silero import SileroDetector
from voice_pipelines.asr.decoder import BLOCK_SAMPLES, SphinxDecoder
from voice_pipelines.asr.pronounce import pronunciations
from voiceagent.backends import INPUT_RATE_HZ, Samples
from voiceagent.transcript import LocalAgreement
from voiceagent.vad import PreRoll, Started, VoiceActivity, Windower

FORMAT = 3
"""Counts up when tapes of before cannot be used any more."""
PAUSE_MEDIAN_S, PAUSE_P95_S = 0.6, 1.5
_PAUSE_SPREAD = math.log(PAUSE_P95_S / PAUSE_MEDIAN_S) / 1.6449
TAIL_S = 2.6
"""Silence after the last word."""
LEAD_S, PRE_ROLL_S = 1.0, 0.3
FAINT = 10 ** (-66 / 20)
"""Level of made background: that of the pauses in read speech here."""
_NEAR_S = 0.04
"""How far from the aligned boundary the cut may be."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A partial transcript; `at_s` is when the recogniser had it."""

    at_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Tape:
    path: str
    kind: str
    text: str
    speech_end_s: float
    pause_at_s: float | None
    """Where the inserted pause begins, if there is one."""
    pause_s: float
    before_pause: str
    """The words before it."""
    voice: tuple[float, ...]
    """Speech probability per window of 512 samples."""
    partials: tuple[Heard, ...]

    @staticmethod
    def from_json(table: Mapping[str, Any]) -> Tape:
        partials = tuple(Heard(**each) for each in table["partials"])
        return Tape(**{**table, "voice": tuple(table["voice"]), "partials": partials})


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


class TapeMaker:
    """Turns recordings into tapes; keeps what it made in `cache`."""

    def __init__(self, folder: Path, cache: Path, decoder: SphinxDecoder, decoder_name: str, seed: int) -> None:
        self._folder, self._cache, self._decoder, self._seed = folder, cache, decoder, seed
        self._name = decoder_name
        self._aligner = Aligner()

    def make(self, entry: dict[str, Any], *, with_pause: bool) -> Tape | None:
        """The tape of one recording; None where a pause is wanted and there is no place for it."""
        key = json.dumps([FORMAT, entry["path"], entry["text"], with_pause, self._seed, self._name])
        path = self._cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        if path.is_file():
            table = json.loads(path.read_text("utf-8"))
            return None if table is None else Tape.from_json(table)
        tape = self._make(entry, with_pause=with_pause)
        self._cache.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(None if tape is None else asdict(tape)), "utf-8")
        return tape

    def final(self, entry: dict[str, Any], tape: Tape, endpoint_s: float) -> str:
        """What the recogniser makes of a tape's utterance when it is told at `endpoint_s` that there is no more."""
        sound = self._sound(entry, with_pause=tape.pause_at_s is not None)
        assert sound is not None, "a tape was made of it"
        activity = VoiceActivity()
        starts = [each for p in tape.voice for each in activity.update(p) if isinstance(each, Started)]
        start = max(starts[0].start_sample - round(PRE_ROLL_S * INPUT_RATE_HZ), 0)
        heard = pcm(sound[0][start : round(endpoint_s * INPUT_RATE_HZ)])
        self._decoder.start()
        for at in range(0, len(heard), 2 * BLOCK_SAMPLES):
            self._decoder.feed(heard[at : at + 2 * BLOCK_SAMPLES])
        return self._decoder.finish().text

    def _make(self, entry: dict[str, Any], *, with_pause: bool) -> Tape | None:
        sound = self._sound(entry, with_pause=with_pause)
        if sound is None:
            return None
        audio, speech_samples, place = sound
        voice = asyncio.run(_voice(audio))
        return Tape(
            path=entry["path"],
            kind=entry["kind"],
            text=entry["text"],
            speech_end_s=round(speech_samples / INPUT_RATE_HZ, 4),
            pause_at_s=None if place is None else round(place[0] / INPUT_RATE_HZ, 4),
            pause_s=0.0 if place is None else round(place[1], 4),
            before_pause="" if place is None else place[2],
            voice=tuple(round(each, 4) for each in voice),
            partials=tuple(self._hear(audio, voice)),
        )

    def _sound(
        self, entry: dict[str, Any], *, with_pause: bool
    ) -> tuple[Samples, int, tuple[int, float, str] | None] | None:
        """The samples, how many there are up to the end of speech, and where the pause was put; None where there is no place for it."""
        samples, rate = soundfile.read(self._folder / entry["path"], dtype="float32")
        if rate != INPUT_RATE_HZ:
            raise ValueError(f"{entry['path']}: {rate} Hz, expected {INPUT_RATE_HZ}")
        generator = np.random.default_rng(int(hashlib.sha256(entry["path"].encode()).hexdigest()[:8], 16))
        start = round(max(entry["speech_start_s"] - LEAD_S, 0.0) * rate)
        end = round(entry["speech_end_s"] * rate)
        background = Background(samples, (round(entry["speech_start_s"] * rate), end), generator)
        lead = background.take(max(round((LEAD_S - entry["speech_start_s"]) * rate), 0))
        tail = samples[end : end + round(TAIL_S * rate)]
        tail = np.concatenate([tail, background.take(round(TAIL_S * rate) - tail.size)])
        speech = np.concatenate([lead, samples[start:end]])
        place = self._place(entry, speech) if with_pause else None
        if with_pause and place is None:
            return None
        if place is not None:
            cut, pause_s, _ = place
            speech = np.concatenate([speech[:cut], background.take(round(pause_s * rate)), speech[cut:]])
        return np.concatenate([speech, tail]), speech.size, place

    def _place(self, entry: dict[str, Any], speech: Samples) -> tuple[int, float, str] | None:
        """Sample, length and the words before it, or None for a single word or a text that cannot be aligned."""
        words = entry["text"].split()
        if len(words) < 2:
            return None
        if "words" in entry:
            shift = speech.size / INPUT_RATE_HZ - entry["speech_end_s"]
            ends: list[float] | None = [word["end_s"] + shift for word in entry["words"]]
        else:
            padded = np.concatenate([speech, np.zeros(3_200, np.float32)])
            ends = self._aligner.word_ends(padded, words)
        if ends is None or len(ends) != len(words):
            return None
        at, pause_s = draw_pause(entry["path"], len(words) - 1, self._seed)
        return quietest(speech, ends[at]), pause_s, " ".join(words[: at + 1])

    def _hear(self, audio: Samples, voice: list[float]) -> Iterator[Heard]:
        """What the recogniser writes while the utterance that the detector finds is going on."""
        activity, kept, agreement = VoiceActivity(), PreRoll(3 * INPUT_RATE_HZ), LocalAgreement(agreeing=3, holdback=1)
        pending, is_open, done, shown = bytearray(), False, 0.0, ""
        for number, window in enumerate(Windower().push(audio)):
            kept.push(window)
            started = [each for each in activity.update(voice[number]) if isinstance(each, Started)]
            if started and not is_open:
                is_open = True
                self._decoder.start()
                pending += pcm(kept.since(max(started[0].start_sample - round(PRE_ROLL_S * INPUT_RATE_HZ), 0)))
            elif is_open:
                pending += pcm(window)
            while len(pending) >= 2 * BLOCK_SAMPLES:
                block = bytes(pending[: 2 * BLOCK_SAMPLES])
                del pending[: 2 * BLOCK_SAMPLES]
                began = time.process_time()
                self._decoder.feed(block)
                words = tuple(word.text for word in self._decoder.hypothesis().words)
                took = time.process_time() - began
                done = max(done, (number + 1) * 512 / INPUT_RATE_HZ) + took
                agreement = agreement.hear(words)
                if (text := agreement.partial.text) != shown:
                    shown = text
                    yield Heard(round(done, 4), text)
        self._decoder.drop()


async def _voice(audio: Samples) -> list[float]:
    detector = SileroDetector()
    try:
        stream = detector.open()
        return [await stream.probability(window) for window in Windower().push(audio)]
    finally:
        await detector.aclose()

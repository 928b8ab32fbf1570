"""Recordings as the end-of-turn decision meets them: what the voice detector and the recogniser said, and when they said it.

A tape is made once from a recording, with one pause inserted between two of its words or none, and can then be replayed under any
settings without decoding again. Partial transcripts carry the moment when a recogniser working in real time would have had them:
each block of 100 ms is decoded once it has been spoken and the blocks before it are done, and takes `PACE` of its length on the tape, whatever it
takes here, so that tapes do not depend on how fast or busy a machine is.

How pauses are drawn and put in is in `pauses.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pauses import Splicer, pcm
from replay_ears import PACE
from whisper_ear import WhisperEar

from voice_pipelines.adapters.silero import SileroDetector
from voice_pipelines.adapters.whisper import Decode
from voice_pipelines.asr.decoder import BLOCK_SAMPLES, SphinxDecoder
from voiceagent.backends import INPUT_RATE_HZ, Samples
from voiceagent.transcript import LocalAgreement
from voiceagent.vad import WINDOW_SAMPLES, PreRoll, Started, VoiceActivity, Windower

FORMAT = 4
"""Counts up when tapes of before cannot be used any more."""
PRE_ROLL_S = 0.3


@dataclass(frozen=True, slots=True)
class Heard:
    """A partial transcript; `at_s` is when the recogniser had it."""

    at_s: float
    text: str
    confidence: float | None = None
    """How sure it was of it; None where it does not tell."""


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


class TapeMaker:
    """Turns recordings into tapes; keeps what it made in `cache`.

    Args:
        new_decoder: Loads one. Each recording has its own, which takes 0.03 s, so that no tape can depend on those that were made before it.
        pace: What the recogniser takes on the tapes, of its audio's length.
    """

    def __init__(
        self,
        folder: Path,
        cache: Path,
        new_decoder: Callable[[], SphinxDecoder],
        decoder_name: str,
        seed: int,
        *,
        pace: float = PACE,
    ) -> None:
        self._cache, self._new_decoder, self._seed = cache, new_decoder, seed
        self._name, self._pace = f"{decoder_name}, a decoder each, {pace} of its audio", pace
        self._splicer = Splicer(folder, seed)

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

    def samples(self, entry: dict[str, Any], *, with_pause: bool) -> Samples:
        """What the tape of this recording was made from."""
        sound = self._splicer.sound(entry, with_pause=with_pause)
        assert sound is not None, "a tape was made of it"
        return sound.samples

    def final(self, entry: dict[str, Any], tape: Tape, endpoint_s: float) -> str:
        """What the recogniser makes of a tape's utterance when it is told at `endpoint_s` that there is no more."""
        samples = self.samples(entry, with_pause=tape.pause_at_s is not None)
        activity = VoiceActivity()
        starts = [each for p in tape.voice for each in activity.update(p) if isinstance(each, Started)]
        start = max(starts[0].start_sample - round(PRE_ROLL_S * INPUT_RATE_HZ), 0)
        heard = pcm(samples[start : round(endpoint_s * INPUT_RATE_HZ)])
        decoder = self._new_decoder()
        decoder.start()
        for at in range(0, len(heard), 2 * BLOCK_SAMPLES):
            decoder.feed(heard[at : at + 2 * BLOCK_SAMPLES])
        return decoder.finish().text

    def _make(self, entry: dict[str, Any], *, with_pause: bool) -> Tape | None:
        sound = self._splicer.sound(entry, with_pause=with_pause)
        if sound is None:
            return None
        voice = asyncio.run(_voice(sound.samples))
        return Tape(
            path=entry["path"],
            kind=entry["kind"],
            text=entry["text"],
            speech_end_s=round(sound.speech_end_s, 4),
            pause_at_s=None if sound.pause is None else round(sound.pause.at_s, 4),
            pause_s=0.0 if sound.pause is None else round(sound.pause.length_s, 4),
            before_pause="" if sound.pause is None else sound.pause.before,
            voice=tuple(round(each, 4) for each in voice),
            partials=tuple(self._hear(sound.samples, voice)),
        )

    def _hear(self, audio: Samples, voice: Sequence[float]) -> Iterator[Heard]:
        """What the recogniser writes while the utterance that the detector finds is going on."""
        agreement = LocalAgreement(agreeing=3, holdback=1)
        pending, done, shown = bytearray(), 0.0, ""
        decoder = self._new_decoder()
        decoder.start()
        for samples, at_s in utterance(audio, voice):
            pending += pcm(samples)
            while len(pending) >= 2 * BLOCK_SAMPLES:
                block = bytes(pending[: 2 * BLOCK_SAMPLES])
                del pending[: 2 * BLOCK_SAMPLES]
                decoder.feed(block)
                hypothesis = decoder.hypothesis()
                words = tuple(word.text for word in hypothesis.words)
                done = max(done, at_s) + self._pace * BLOCK_SAMPLES / INPUT_RATE_HZ
                agreement = agreement.hear(words)
                if (text := agreement.partial.text) != shown:
                    shown = text
                    yield Heard(round(done, 4), text, hypothesis.confidence)
        decoder.drop()


class WhisperTapeMaker(TapeMaker):
    """Tapes of what a Whisper writes; each of its decodes takes the same time on them, whatever else the machine does."""

    def __init__(
        self, folder: Path, cache: Path, decode: Decode, decoder_name: str, seed: int, *, decode_s: float
    ) -> None:
        self._cache, self._seed = cache, seed
        self._name = f"{decoder_name}, {decode_s} s"
        self._splicer = Splicer(folder, seed)
        self._decode, self._decode_s = decode, decode_s

    def _hear(self, audio: Samples, voice: Sequence[float]) -> Iterator[Heard]:
        ear = WhisperEar(self._decode, self._decode_s)
        for samples, at_s in utterance(audio, voice):
            for told in ear.feed(samples, at_s):
                yield Heard(round(told.at_s, 4), told.text)


def utterance(audio: Samples, voice: Sequence[float]) -> Iterator[tuple[Samples, float]]:
    """The sound that a recogniser is given from the moment when the detector finds a voice, and when it has been heard; what is
    behind the utterance too."""
    activity, kept, is_open = VoiceActivity(), PreRoll(3 * INPUT_RATE_HZ), False
    for number, window in enumerate(Windower().push(audio)):
        kept.push(window)
        started = [each for each in activity.update(voice[number]) if isinstance(each, Started)]
        at_s = (number + 1) * WINDOW_SAMPLES / INPUT_RATE_HZ
        if started and not is_open:
            is_open = True
            yield kept.since(max(started[0].start_sample - round(PRE_ROLL_S * INPUT_RATE_HZ), 0)), at_s
        elif is_open:
            yield window, at_s


async def _voice(audio: Samples) -> list[float]:
    detector = SileroDetector()
    try:
        stream = detector.open()
        return [await stream.probability(window) for window in Windower().push(audio)]
    finally:
        await detector.aclose()

"""What the judge of hums is set on and judged by: made hums and words, and people's words and stretches of what they say.

Made hums: eSpeak, and a source and filter of our own with a nose or a mouth for a tract, or with the resonances of a moment of somebody's voice. They
stand for nothing but themselves. Voices and people are split: those of `benchmarks/barge_in.py`, all commands, and half of the people are only reported on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from interjections import audible_onset_s
from numpy.typing import NDArray

from voice_pipelines.adapters.espeak import EspeakSynthesizer, EspeakVoice
from voiceagent.backends import INPUT_RATE_HZ, Samples

Floats = NDArray[np.float64]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(each.split()) for each in text.split("/"))


_VARIANTS = (
    "Alex Alicia Andrea Denis Diogo Gene Henrique Hugo Lee Marco Mario Michael Reed adam anika antonio benjamin boris caleb david edward gustave iven john "
    "klatt klatt6 marcelo michel miguel norbert pablo paul pedro quincy rob robert sandro shelby travis victor zac grandma Jacky"
).split()
_LANGUAGES = ("en-us", "en-us", "en", "en-us", "en-gb-x-rp", "en-us", "en-gb-scotland", "en-029")
VOICES = tuple(f"{_LANGUAGES[number % 8]}+{variant}" for number, variant in enumerate(_VARIANTS))
"""Of the made sounds that it is set on. None shares a variant with those reported on, or is a relative of one by its name."""
CHOSEN_VOICES = (
    *("en-us+m2", "en-us+m3", "en-us+m4", "en-us+m5", "en-us+m6", "en-us+m8", "en-us+f2", "en-us+f3", "en-us+f5"),
    *("en-us+Annie", "en-us+klatt2", "en-us+klatt4", "en-us+Andy", "en-us+linda", "en-us+grandpa", "en-us+belinda"),
)
"""Of the made sounds by which its form and its thresholds were chosen."""
HUMS = _listed("""
    mm hmm. / mhm. / mm. / hmm. / um. / uh. / ah. / oh. / aha. / uhm. / uh huh. / um-hum. / uh-huh. / hm. / hmmm. / mmm. / erm. / ohh. / ooh. /
    aah. / mm-hm. / ah ha. / uh hum. / er.
""")
REPORTED_HUMS = ("uh huh.", "um-hum.", "mm.", "hmm.", "mhm.", "mm hmm.", "oh.", "ah.")
WORDS = _listed("""
    no. / stop. / wait. / what? / hello? / one more. / nine. / now. / none. / more milk please. / actually no. / a large one. / and a muffin. /
    who? / okay but no. / I want a mocha. / how much is it? / on second thought. / never mind. / mine. / two. / three. / four. / five. / seven.
    / eight. / ten. / home. / more. / nope. / more tea. / you know. / I mean. / why? / when? / how? / not now. / hang on. / hold on. / one
    moment. / and an onion. / a lemon. / in the morning. / small. / medium. / large. / warm milk. / a man. / an hour. / Monday. / I'm in. /
    moment. / tomorrow. / any. / hey. / come on.
""")
REPORTED_WORDS = ("stop.", "no.", "wait.", "hold on.", "cancel.", "excuse me.", "one.", "nope.", "hang on.")


@dataclass(frozen=True, slots=True)
class Sound:
    kind: str
    is_hum: bool
    is_reported: bool
    """Not set on, only reported on."""
    samples: Samples
    whose: str = ""
    """The voice or the speaker."""
    counts: float = 1.0
    """How much it counts when the judge is set."""


# --- made -------------------------------------------------------------------------------------------------------------


async def spoken(
    voices: tuple[str, ...],
    hums: tuple[str, ...],
    words: tuple[str, ...],
    generator: np.random.Generator,
    *,
    is_reported: bool,
    most: int = 8,
) -> AsyncGenerator[Sound, None]:
    """Made by eSpeak at 125 to 240 words a minute and all pitches, three in ten through a telephone's band; each voice says `most` of the hums and of the words."""
    for voice in voices:
        for kind, texts in (("hum (eSpeak)", hums), ("word (eSpeak)", words)):
            drawn = [str(each) for each in generator.permutation(texts)[:most]]
            for first in range(0, len(drawn), 4):
                rate, pitch = int(generator.integers(125, 240)), int(generator.integers(20, 80))
                synthesizer = EspeakSynthesizer(EspeakVoice(voice, rate, pitch))
                for text in drawn[first : first + 4]:
                    samples = np.concatenate([piece async for piece in synthesizer.speak(text)])
                    samples = soxr.resample(samples, synthesizer.rate_hz, INPUT_RATE_HZ) * generator.uniform(0.1, 0.4)
                    yield Sound(kind, texts is hums, is_reported, through_a_line(samples, generator), voice)
                await synthesizer.aclose()


def through_a_line(samples: Samples, generator: np.random.Generator) -> Samples:
    """Three in ten through a telephone's band, four in ten through a microphone that favours highs or lows by up to 3 dB an octave."""
    kind = generator.random()
    if kind < 0.3:
        narrow = soxr.resample(samples, INPUT_RATE_HZ, 8000)
        return np.asarray(soxr.resample(narrow, 8000, INPUT_RATE_HZ), np.float32)
    if kind < 0.7:
        hz = np.fft.rfftfreq(samples.size, 1 / INPUT_RATE_HZ)
        gain = (np.maximum(hz, 80) / 500) ** generator.uniform(-0.5, 0.5)
        return np.fft.irfft(np.fft.rfft(samples) * gain, samples.size).astype(np.float32)
    return samples.astype(np.float32)


Tract = tuple[tuple[float, float, float], ...]
"""Resonances: centre and width in Hz, and gain."""


def hummed(
    count: int, generator: np.random.Generator, voices: tuple[tuple[str, bool, Floats], ...] = ()
) -> Iterator[Sound]:
    """Made by pulses through a nose, a neutral or an open mouth, alone, one after the other, or twice around a breath.

    Args:
        voices: Resonances of people's voices as `resonances` finds them, whose, and whether they are only reported on; then one of those is the tract.
    """

    def draw(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    for number in range(count):
        nose: Tract = ((draw(220, 320), 60, 1.0), (draw(900, 1300), 150, 0.15), (draw(2000, 2500), 250, 0.05))
        neutral: Tract = ((draw(450, 650), 80, 1.0), (draw(1100, 1400), 110, 0.6), (draw(2300, 2700), 180, 0.25))
        wide: Tract = ((draw(600, 800), 90, 1.0), (draw(1050, 1300), 110, 0.7), (draw(2300, 2700), 180, 0.25))
        tracts: list[Tract | Floats] = [(nose, nose, neutral, neutral, wide)[generator.integers(5)]]
        kind, whose, is_reported = "hum (pulses)", f"pulses {number}", number % 3 == 0
        if voices:
            whose, is_reported, response = voices[number % len(voices)]
            kind, tracts = "hum (a voice's)", [response]
        tracts *= 3
        lengths: tuple[float, ...] = (draw(0.15, 0.6),)
        form = generator.random()
        if form < 0.5:
            lengths = (draw(0.09, 0.22), draw(0.03, 0.1), draw(0.14, 0.35))
            if form < 0.1:
                tracts = [tracts[0], tracts[0], nose]  # "Uh-hm".
        elif form < 0.65:
            lengths, tracts = (draw(0.08, 0.25), 0.0, draw(0.1, 0.3)), [tracts[0], tracts[0], nose]  # "Um".
        elif form < 0.75:
            lengths = (0.0, draw(0.04, 0.1), draw(0.15, 0.45))  # "Hm".
        samples = _breathed(tracts, lengths, draw(80, 260), generator, is_flat=bool(voices)) * draw(0.1, 0.4)
        yield Sound(kind, True, is_reported, through_a_line(samples.astype(np.float32), generator), whose)


def uttered(
    count: int, generator: np.random.Generator, voices: tuple[tuple[str, bool, Floats], ...] = ()
) -> Iterator[Sound]:
    """Made by the same pulses, and no hums: vowels of the front of the mouth, or what goes from one to another, behind a burst, a hiss or nothing.

    Args:
        voices: As for `hummed`, but of any vowel; then the sound goes from one to the next of the same voice.
    """

    def draw(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    def front() -> Tract:
        return ((draw(240, 500), 60, 1.0), (draw(1700, 2300), 120, draw(0.2, 0.6)), (draw(2500, 3000), 180, 0.3))

    def back() -> Tract:
        return ((draw(300, 800), 80, 1.0), (draw(750, 1300), 110, draw(0.3, 0.7)), (draw(2300, 2700), 180, 0.1))

    for number in range(count):
        kind, whose, is_reported = "word (pulses)", f"pulses {number}", number % 3 == 0
        first: Tract | Floats = front()
        last: Tract | Floats = (first, back(), front())[generator.integers(3)]
        if generator.random() < 0.5:
            first, last = last, first
        if voices:
            (whose, is_reported, first), (other, _, last) = (
                voices[number % len(voices)],
                voices[(number + 1) % len(voices)],
            )
            kind = "word (a voice's)"
            if other != whose:
                continue
        pitch_hz, length_s = draw(80, 260), draw(0.15, 0.5)
        parts = [
            _breathed([tract] * 3, (length_s,), pitch_hz, np.random.default_rng(number), is_flat=bool(voices))
            for tract in (first, last)
        ]
        size, at = parts[0].size, draw(0.2, 0.7)
        way = np.clip((np.arange(size) / size - at) / draw(0.1, 0.5) + 0.5, 0, 1)
        samples = parts[0] * (1 - way) + parts[1] * way
        onset = generator.random()
        if onset < 0.6:
            hiss = np.diff(generator.standard_normal(round(draw(0.01, 0.15) * INPUT_RATE_HZ) + 1)) * draw(0.02, 0.3)
            hiss *= np.minimum(np.minimum(np.arange(hiss.size), np.arange(hiss.size)[::-1]) / 80, 1)
            gap = np.zeros(round(draw(0, 0.06) * INPUT_RATE_HZ))
            samples = np.concatenate([hiss, gap, samples] if onset < 0.4 else [samples, gap, hiss])
        samples = samples / np.abs(samples).max() * draw(0.1, 0.4)
        yield Sound(kind, False, is_reported, through_a_line(samples.astype(np.float32), generator), whose, 0.7)


def _breathed(
    tracts: list[Tract | Floats],
    lengths: tuple[float, ...],
    pitch_hz: float,
    generator: np.random.Generator,
    *,
    is_flat: bool,
) -> Floats:
    """One part after the other; the second of three is breath, and parts of no length are none."""
    parts: list[Floats] = []
    for part, length_s in enumerate(lengths):
        size = round(length_s * INPUT_RATE_HZ)
        if size == 0:
            continue
        if part == 1:
            breath = 0.02 * generator.standard_normal(size)
            if generator.random() < 0.5:
                breath = generator.uniform(0.5, 4) * _filtered(breath, tracts[part])
            parts.append(breath)
            continue
        drift = generator.uniform(-4, 4) / 12 * np.arange(size) / size
        wobble = generator.uniform(0, 0.02) * np.cumsum(generator.standard_normal(size // 160 + 1)).repeat(160)[:size]
        hz = pitch_hz * 2 ** (drift + wobble)
        phase = np.cumsum(hz) / INPUT_RATE_HZ % 1
        source = np.diff(np.sin(np.pi * np.minimum(phase / (0.1 if is_flat else 0.4), 1)), prepend=0)
        source += 0.003 * generator.standard_normal(size)
        voiced = _filtered(source, tracts[part])
        fade = np.minimum(np.minimum(np.arange(size), np.arange(size)[::-1]) / (0.03 * INPUT_RATE_HZ), 1)
        parts.append(voiced / np.abs(voiced).max() * fade * 10 ** (generator.uniform(-6, 0) / 20))
    return np.concatenate(parts)


def _filtered(source: Floats, tract: Tract | Floats) -> Floats:
    bins = np.fft.rfftfreq(source.size + 1600, 1 / INPUT_RATE_HZ)
    if isinstance(tract, np.ndarray):
        turns = np.exp(-2j * np.pi * np.outer(bins / INPUT_RATE_HZ, np.arange(tract.size)))
        response = 1 / (turns @ tract)
    else:
        response = sum(gain * centre**2 / (centre**2 - bins**2 + 2j * bins * width) for centre, width, gain in tract)
    voiced: Floats = np.fft.irfft(np.fft.rfft(source, source.size + 1600) * response)[: source.size]
    return voiced


# --- people's ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recording:
    kind: str
    speaker: str
    is_reported: bool
    samples: Samples
    onset_s: float


def recordings(folder: Path) -> Iterator[Recording]:
    """Who is reported on is drawn by the name of the speaker."""
    kinds = ("order", "command", "digit", "letter", "read", "number", "noisy", "telephone")
    for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines():
        entry = json.loads(line)
        if entry["kind"] not in kinds or "turns" in entry:
            continue
        samples, _ = soundfile.read(folder / entry["path"], dtype="float32")
        onset = audible_onset_s(samples, float(entry.get("speech_start_s", 0.0)))
        speaker = str(entry["speaker"])
        yield Recording(entry["kind"], speaker, is_reported_on(entry["kind"], speaker), samples, onset)


def is_reported_on(kind: str, speaker: str) -> bool:
    """Whether this speaker's recordings of this kind are not set on."""
    if kind in ("letter", "read"):
        return False
    if kind in ("digit", "number"):
        return "lucas" not in speaker
    return kind == "command" or int(hashlib.sha256(str(speaker).encode()).hexdigest(), 16) % 2 == 0


def beginning(recording: Recording) -> Sound:
    """From 0.3 s before the first word, 1.6 s."""
    first = max(round((recording.onset_s - 0.3) * INPUT_RATE_HZ), 0)
    cut = recording.samples[first : first + round(1.6 * INPUT_RATE_HZ)]
    return Sound(f"{recording.kind} (recorded)", False, recording.is_reported, cut, recording.speaker, 1.5)


def stretches(recording: Recording, count: int, generator: np.random.Generator) -> Iterator[Sound]:
    """Of 0.15 to 0.8 s from where the voice is softest near a place drawn from all of it: between syllables, so mostly of one word or two."""
    hop = 160
    frames = recording.samples[: recording.samples.size // hop * hop].reshape(-1, hop)
    level = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-9)
    smooth = np.convolve(level, np.ones(5) / 5, "same")
    is_loud = np.flatnonzero(smooth > smooth.max() - 20)
    for _ in range(count if is_loud.size > 40 else 0):
        begin = _softest(smooth, int(generator.choice(is_loud)), 12)
        end = _softest(smooth, begin + int(generator.uniform(15, 80)), 8)
        if end - begin < 15:
            continue
        cut = recording.samples[begin * hop : end * hop].copy()
        edge = np.linspace(0, 1, 80, dtype=np.float32)
        cut[:80] *= edge
        cut[-80:] *= edge[::-1]
        yield Sound(
            f"stretch of {recording.kind} (recorded)", False, recording.is_reported, cut, recording.speaker, 0.4
        )


def _softest(level: Floats, near: int, reach: int) -> int:
    low, high = max(near - reach, 0), min(near + reach, level.size - 1)
    return low + int(level[low : high + 1].argmin()) if low <= high else level.size - 1


def resonances(
    recording: Recording, count: int, generator: np.random.Generator, most_highs_db: float = -18.0
) -> Iterator[tuple[str, bool, Floats]]:
    """Of steady, periodic moments of a voice that lie low, as a nose or a neutral mouth does: linear prediction over 60 ms.

    Source: J. Makhoul, Linear prediction: a tutorial review (Proceedings of the IEEE 63, 1975).
    """
    size, order = 960, 18
    starts = np.arange(0, recording.samples.size - size, 320)
    if not starts.size:
        return
    pieces = np.stack([recording.samples[at : at + size] for at in starts]) * np.hanning(size)
    spectrum = np.abs(np.fft.rfft(pieces, 2 * size, axis=1)) ** 2
    hz = np.fft.rfftfreq(2 * size, 1 / INPUT_RATE_HZ)
    within = np.fft.irfft(spectrum, axis=1)
    level = 10 * np.log10(within[:, 0] + 1e-9)
    periodicity = within[:, 50:230].max(axis=1) / (within[:, 0] + 1e-9)
    highs = 10 * np.log10((spectrum[:, hz > 1500].sum(axis=1) + 1e-9) / (spectrum[:, hz <= 1500].sum(axis=1) + 1e-9))
    good = np.flatnonzero((level > level.max() - 15) & (periodicity > 0.5) & (highs < most_highs_db))
    for at in generator.permutation(good)[:count]:
        lags = within[at, : order + 1] * np.r_[1.0001, np.ones(order)]
        matrix = lags[np.abs(np.subtract.outer(np.arange(order), np.arange(order)))]
        found = np.r_[1.0, -np.linalg.solve(matrix, lags[1:])]
        yield recording.speaker, recording.is_reported, found

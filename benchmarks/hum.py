"""Sets the judge of hums (`voiceagent/hum.py`) and says how it does on voices and people that it was not set on.

    python benchmarks/hum.py --data SPEECH --weights voiceagent/hum_weights.py --save benchmarks/results/hum.json

Made hums: eSpeak in sixteen voices, and a source and filter of our own. Against them: made words in the same voices, and the beginnings of people's
orders, sentences, digits and letters. Voices, forms and speakers are split: "uh huh" and "um-hum", the voices of `benchmarks/barge_in.py`, all commands, and half of
the people are only reported on. Each sound is judged as it would be while it goes on, and when it has ended. Made hums stand for nothing but themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from interjections import VOICES as REPORTED_VOICES
from interjections import audible_onset_s
from logistic import logistic

from dllm.machine import commit
from voice_pipelines.adapters.espeak import EspeakSynthesizer, EspeakVoice
from voice_pipelines.adapters.silero import SileroDetector
from voiceagent.backends import INPUT_RATE_HZ, Samples
from voiceagent.hum import CLIP, EDGES_HZ, LEAD_S, likeness, traits

ROOT = Path(__file__).parent.parent
WINDOW = 512
VOICES = (
    *("en-us+m2", "en-us+m3", "en-us+m4", "en-us+m5", "en-us+m6", "en-us+m8", "en-us+f2", "en-us+f3", "en-us+f5"),
    *("en-us+Annie", "en-us+klatt2", "en-us+klatt4", "en-us+Andy", "en-us+linda", "en-us+grandpa", "en-us+belinda"),
)
"""Of the made sounds that it is set on."""
HUMS = ("mm hmm.", "mhm.", "mm.", "hmm.", "um.", "uh.", "ah.", "oh.", "aha.", "uhm.")
REPORTED_HUMS = ("uh huh.", "um-hum.", "mm.", "hmm.", "mhm.", "mm hmm.", "oh.", "ah.")
WORDS = (
    *("no.", "stop.", "wait.", "what?", "hello?", "one more.", "nine.", "now.", "none.", "more milk please."),
    *("actually no.", "a large one.", "and a muffin.", "who?", "okay but no.", "I want a mocha.", "how much is it?"),
    *("on second thought.", "never mind.", "mine."),
)
REPORTED_WORDS = ("stop.", "no.", "wait.", "hold on.", "cancel.", "excuse me.", "one.", "nope.", "hang on.")
SO_FAR = (8, 11, 14, 18, 22)
"""Voiced windows after which a voice that goes on is judged."""
LONGEST = 26


@dataclass(frozen=True, slots=True)
class Sound:
    kind: str
    is_hum: bool
    is_reported: bool
    """Not set on, only reported on."""
    samples: Samples


@dataclass(frozen=True, slots=True)
class Judged:
    """One moment of a sound: what had been heard of it then."""

    sound: Sound
    is_over: bool
    heard: Samples


# --- sounds -----------------------------------------------------------------------------------------------------------


async def spoken(generator: np.random.Generator) -> AsyncGenerator[Sound, None]:
    """Made by eSpeak at 125 to 240 words a minute and all pitches, three in ten through a telephone's band."""
    for voices, hums, words, is_reported in (
        (VOICES, HUMS, WORDS, False),
        (REPORTED_VOICES, REPORTED_HUMS, REPORTED_WORDS, True),
    ):
        for voice in voices:
            for kind, texts in (("hum (eSpeak)", hums), ("word (eSpeak)", words)):
                for text in texts:
                    rate, pitch = int(generator.integers(125, 240)), int(generator.integers(20, 80))
                    synthesizer = EspeakSynthesizer(EspeakVoice(voice, rate, pitch))
                    samples = np.concatenate([piece async for piece in synthesizer.speak(text)])
                    await synthesizer.aclose()
                    samples = soxr.resample(samples, synthesizer.rate_hz, INPUT_RATE_HZ) * generator.uniform(0.1, 0.4)
                    if generator.random() < 0.3:
                        narrow = soxr.resample(samples, INPUT_RATE_HZ, 8000)
                        samples = soxr.resample(narrow, 8000, INPUT_RATE_HZ)
                    yield Sound(kind, texts is hums, is_reported, samples.astype(np.float32))


def hummed(count: int, generator: np.random.Generator) -> Iterator[Sound]:
    """Made by pulses through three resonances: a nose, a neutral or an open mouth, alone or twice around a breath."""

    def draw(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    for number in range(count):
        pitch = draw(80, 260)
        nose = ((draw(220, 320), 60, 1.0), (draw(900, 1300), 150, 0.15), (draw(2000, 2500), 250, 0.05))
        neutral = ((draw(450, 650), 80, 1.0), (draw(1100, 1400), 110, 0.6), (draw(2300, 2700), 180, 0.25))
        open_mouth = ((draw(600, 800), 90, 1.0), (draw(1050, 1300), 110, 0.7), (draw(2300, 2700), 180, 0.25))
        tract = (nose, nose, neutral, neutral, open_mouth)[generator.integers(5)]
        lengths: tuple[float, ...] = (draw(0.15, 0.6),)
        if generator.random() < 0.5:
            lengths = (draw(0.09, 0.22), draw(0.03, 0.08), draw(0.14, 0.35))
        parts = []
        for part, length_s in enumerate(lengths):
            size = round(length_s * INPUT_RATE_HZ)
            if part == 1:
                parts.append(0.02 * generator.standard_normal(size))
                continue
            hz = pitch * 2 ** (draw(-4, 4) / 12 * np.arange(size) / size)
            phase = np.cumsum(hz) / INPUT_RATE_HZ % 1
            source = np.diff(np.sin(np.pi * np.minimum(phase / 0.4, 1)), prepend=0)
            source += 0.003 * generator.standard_normal(size)
            bins = np.fft.rfftfreq(size + 1600, 1 / INPUT_RATE_HZ)
            response = sum(
                gain * centre**2 / (centre**2 - bins**2 + 2j * bins * width) for centre, width, gain in tract
            )
            voiced = np.fft.irfft(np.fft.rfft(source, size + 1600) * response)[:size]
            fade = np.minimum(np.minimum(np.arange(size), np.arange(size)[::-1]) / (0.03 * INPUT_RATE_HZ), 1)
            parts.append(voiced / np.abs(voiced).max() * fade)
        samples = np.concatenate(parts) * draw(0.1, 0.4)
        yield Sound("hum (pulses)", True, number % 3 == 0, samples.astype(np.float32))


def recorded(folder: Path) -> Iterator[Sound]:
    """People's words from 0.3 s before the first; who is reported on is drawn by the name of the speaker."""
    kinds = ("order", "command", "digit", "letter", "read", "number", "noisy", "telephone")
    for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines():
        entry = json.loads(line)
        if entry["kind"] not in kinds or "turns" in entry:
            continue
        samples, _ = soundfile.read(folder / entry["path"], dtype="float32")
        first = max(round((audible_onset_s(samples, float(entry.get("speech_start_s", 0.0))) - 0.3) * INPUT_RATE_HZ), 0)
        cut = samples[first : first + round(1.6 * INPUT_RATE_HZ)]
        yield Sound(f"{entry['kind']} (recorded)", False, is_reported_on(entry["kind"], entry["speaker"]), cut)


def is_reported_on(kind: str, speaker: str) -> bool:
    """Whether this speaker's recordings of this kind are not set on."""
    if kind in ("letter", "read"):
        return False
    if kind in ("digit", "number"):
        return "lucas" not in speaker
    return kind == "command" or int(hashlib.sha256(str(speaker).encode()).hexdigest(), 16) % 2 == 0


async def moments(sound: Sound, detector: SileroDetector, generator: np.random.Generator) -> list[Judged]:
    """As the judge would hear it, cut by the voice detector."""
    padded = np.concatenate([np.zeros(6400, np.float32), sound.samples, np.zeros(8000, np.float32)])
    padded += (10 ** (-66 / 20) * generator.standard_normal(padded.size)).astype(np.float32)
    stream = detector.open()
    voice = [
        await stream.probability(padded[at : at + WINDOW]) for at in range(0, padded.size // WINDOW * WINDOW, WINDOW)
    ]
    first = next((n for n in range(len(voice) - 2) if voice[n] >= 0.5 and max(voice[n + 1 : n + 3]) >= 0.35), None)
    if first is None:
        return []
    voiced, last, is_over = [first], first, False
    for number in range(first + 1, len(voice)):
        if voice[number] >= 0.35:
            voiced.append(number)
            last = number
        elif number - last >= 3:
            is_over = True
            break
    begin = first * WINDOW - round(LEAD_S * INPUT_RATE_HZ)
    found = [
        Judged(sound, False, padded[begin : (voiced[so_far - 1] + 1) * WINDOW])
        for so_far in SO_FAR
        if len(voiced) >= so_far
    ]
    if is_over and 4 <= len(voiced) <= LONGEST:
        found.append(Judged(sound, True, padded[begin : (last + 4) * WINDOW]))
    return found


# --- setting ----------------------------------------------------------------------------------------------------------


def fitted(judged: list[Judged], keep: float = 3.0) -> dict[str, tuple[float, float, float]]:
    """Mean, standard deviation and weight of each trait by penalised logistic regression; both sides weigh the same, people half as much again as made words."""
    measured = np.array([traits(each.heard) for each in judged])
    is_hum = np.array([each.sound.is_hum for each in judged])
    means, spreads = measured.mean(axis=0), measured.std(axis=0) + 1e-6
    standard = np.clip((measured - means) / spreads, -CLIP, CLIP).astype(np.float64)
    weigh = np.array([1.5 if "recorded" in each.sound.kind else 1.0 for each in judged])
    weigh[is_hum] *= weigh[~is_hum].sum() / weigh[is_hum].sum()
    found = logistic(standard, is_hum, weigh, keep)
    table = zip(names(), means, spreads, found, strict=False)
    rounded = {name: (round(float(m), 3), round(float(s), 3), round(float(w), 3)) for name, m, s, w in table}
    return {**rounded, "bias": (0.0, 1.0, round(float(found[-1]), 3))}


def names() -> list[str]:
    bands = [f"{low}_{high}_hz" for low, high in itertools.pairwise(EDGES_HZ)]
    return [
        *(f"level_{band}" for band in bands),
        *(f"spread_{band}" for band in bands),
        *("flux", "flux_p90", "periodicity", "periodicity_p10", "high", "high_p80", "high_p95", "frication"),
        *("high_loud", "loud_share", "level_spread", "level_flux", "centre", "centre_spread", "centre_range"),
        *("begin_to_end", "begin_to_middle"),
    ]


def module(table: dict[str, tuple[float, float, float]]) -> str:
    lines = "".join(f'    "{name}": {row},\n' for name, row in table.items())
    return (
        '"""Mean, standard deviation and weight of what `voiceagent.hum` weighs; written by `benchmarks/hum.py --weights`."""\n\n'
        "from __future__ import annotations\n\n"
        f"TRAITS: dict[str, tuple[float, float, float]] = {{\n{lines}}}\n"
    )


def report(judged: list[Judged]) -> list[dict[str, object]]:
    counts: Counter[tuple[str, bool, bool]] = Counter()
    hums: Counter[tuple[str, bool, bool]] = Counter()
    for each in judged:
        key = (each.sound.kind, each.sound.is_reported, each.is_over)
        counts[key] += 1
        hums[key] += likeness(each.heard) >= 0.5
    return [
        {"kind": kind, "set_on": not is_reported, "over": is_over, "moments": counts[key], "judged_hums": hums[key]}
        for key in sorted(counts)
        for kind, is_reported, is_over in [key]
    ]


async def measure(options: argparse.Namespace) -> None:
    generator = np.random.default_rng(3)
    sounds = [each async for each in spoken(generator)]
    sounds += [*hummed(160, generator), *recorded(options.data)]
    detector = SileroDetector()
    judged = [moment for sound in sounds for moment in await moments(sound, detector, generator)]
    await detector.aclose()
    if options.weights is not None:
        table = fitted([each for each in judged if not each.sound.is_reported])
        options.weights.write_text(module(table), "utf-8")
        print(f"wrote {options.weights}; run again to report on it")
        return
    rows = report(judged)
    for row in rows:
        when = "over" if row["over"] else "going on"
        print(
            f"{row['kind']:22} {'set on' if row['set_on'] else 'reported':9} {when:9} {row['judged_hums']:>4} of {row['moments']}"
        )
    if options.save is not None:
        options.save.write_text(json.dumps({"commit": commit(), "rows": rows}, indent=1) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "tests" / "data", help="folder with manifest.jsonl")
    parser.add_argument("--weights", type=Path, help="set the judge, and write its weights here")
    parser.add_argument("--save", type=Path, help="write the report here, as JSON")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()

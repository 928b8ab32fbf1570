"""What happens over an agent that speaks: people's recordings, and made backchannels, short commands, coughs, keyboards and rooms.

What is made stands for nothing but itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from voice_pipelines.adapters.espeak import EspeakSynthesizer, EspeakVoice
from voiceagent.backends import INPUT_RATE_HZ, Samples

VOICES = (
    *("en-us+m1", "en-us+m7", "en-us+f1", "en-us+f4"),
    *("en-gb-scotland+steph", "en-us+ed", "en-us+aunty", "en-us+max"),
)
"""Of the made callers; others than those that the judge of hums was set on."""
BACKCHANNELS = (
    "uh huh.",
    "mm.",
    "hmm.",
    "um-hum.",
    "mhm.",
    "right.",
    "okay.",
    "yeah.",
    "I see.",
    "yes.",
    "sure.",
    "got it.",
    "oh.",
)
SHORT = ("stop.", "no.", "wait.", "hold on.", "cancel.", "excuse me.")


@dataclass(frozen=True, slots=True)
class Case:
    """Something that happens over the agent. `onset_s` is where it begins to be audible."""

    kind: str
    name: str
    is_made: bool
    interrupts: bool
    sound: Samples
    onset_s: float


def audible_onset_s(samples: Samples, near_s: float) -> float:
    """Where a recording's first syllable begins: the first 10 ms near the label that are 30 dB below its loudest or louder, and 10 dB over its background."""
    levels = 20 * np.log10(
        np.sqrt(np.square(samples[: samples.size // 160 * 160].reshape(-1, 160)).mean(axis=1)) + 1e-6
    )
    start = max(round((near_s - 0.15) * 100), 0)
    least = max(levels.max() - 30.0, float(np.percentile(levels[: max(start, 5)], 50)) + 10.0)
    for index in range(start, len(levels) - 4):
        if (levels[index : index + 4] > least).all():
            return index / 100
    return near_s


def recorded(folder: Path, kinds: tuple[str, ...], every: int, kind: str) -> Iterator[Case]:
    entries = [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]
    for entry in [entry for entry in entries if entry["kind"] in kinds and "turns" not in entry][::every]:
        samples, _ = soundfile.read(folder / entry["path"], dtype="float32")
        label = float(entry.get("speech_start_s", 0.0))
        onset = audible_onset_s(samples, label)
        first = max(round((onset - 0.4) * INPUT_RATE_HZ), 0)
        yield Case(
            kind, entry["path"], False, True, samples[first : first + 2 * INPUT_RATE_HZ], onset - first / INPUT_RATE_HZ
        )


async def spoken(texts: tuple[str, ...], kind: str, *, interrupts: bool) -> list[Case]:
    """Made: eSpeak says it, at 170 to 230 words a minute."""
    cases = []
    for index, voice in enumerate(VOICES):
        synthesizer = EspeakSynthesizer(EspeakVoice(voice, 170 + 20 * (index % 4), 40 + 5 * index))
        for text in texts:
            sound = np.concatenate([samples async for samples in synthesizer.speak(text)])
            sound = 0.4 * soxr.resample(sound, synthesizer.rate_hz, INPUT_RATE_HZ).astype(np.float32)
            sound = np.concatenate([np.zeros(1600, np.float32), sound])
            cases.append(Case(kind, f"{text} {voice}", True, interrupts, sound, audible_onset_s(sound, 0.1)))
        await synthesizer.aclose()
    return cases


def coughs(count: int, seed: int) -> Iterator[Case]:
    """Made: one to three bursts of noise with the resonances of an open throat, a sharp beginning and a fall of 0.1 to 0.2 s."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        bursts = []
        for _ in range(generator.integers(1, 4)):
            size = round(generator.uniform(0.18, 0.35) * INPUT_RATE_HZ)
            spectrum = np.fft.rfft(generator.standard_normal(size))
            hz = np.fft.rfftfreq(size, 1 / INPUT_RATE_HZ)
            shape = sum(
                gain / (1 + ((hz - centre) / width) ** 2)
                for centre, width, gain in (
                    (generator.uniform(500, 900), 250, 1.0),
                    (generator.uniform(1300, 1900), 350, 0.6),
                    (3200, 900, 0.3),
                )
            )
            noise = np.fft.irfft(spectrum * shape, size)
            decay = np.exp(-np.arange(size) / (generator.uniform(0.05, 0.1) * INPUT_RATE_HZ)) * np.minimum(
                np.arange(size) / 80, 1
            )
            noise *= decay
            bursts += [noise / np.abs(noise).max(), np.zeros(round(generator.uniform(0.05, 0.25) * INPUT_RATE_HZ))]
        sound = np.concatenate([np.zeros(800), *bursts]) * generator.uniform(0.2, 0.7)
        yield Case("cough", f"cough {number}", True, False, sound.astype(np.float32), 0.05)


def keyboards(count: int, seed: int) -> Iterator[Case]:
    """Made: two seconds of keys, each two clicks of 3 to 8 ms with most of their energy above 1.5 kHz."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        sound = np.zeros(2 * INPUT_RATE_HZ)
        at = 0.05
        while at < 1.85:
            for click_s, gain in ((0.0, 1.0), (generator.uniform(0.04, 0.09), 0.5)):
                size = round(generator.uniform(0.003, 0.008) * INPUT_RATE_HZ)
                click = np.diff(generator.standard_normal(size + 1)) * np.exp(-np.arange(size) / (0.3 * size))
                begin = round((at + click_s) * INPUT_RATE_HZ)
                sound[begin : begin + size] += gain * click
            at += generator.uniform(0.08, 0.3)
        sound *= generator.uniform(0.1, 0.5) / np.abs(sound).max()
        yield Case("keyboard", f"keyboard {number}", True, False, sound.astype(np.float32), 0.05)


def rooms(folder: Path) -> Iterator[Case]:
    entries = [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]
    for entry in entries:
        if entry["kind"] == "room":
            samples, _ = soundfile.read(folder / entry["path"], dtype="float32")
            yield Case("room", entry["path"], False, False, samples[: 3 * INPUT_RATE_HZ], 0.0)


def made_room(seed: int, loss_db: float) -> Samples:
    """An impulse response: a delay of 20 to 300 ms, a direct sound, and a tail that falls by 60 dB in 0.15 to 0.5 s; `loss_db` in all."""
    generator = np.random.default_rng(seed)
    delay = round(generator.uniform(0.02, 0.3) * INPUT_RATE_HZ)
    rt60_s = generator.uniform(0.15, 0.5)
    size = round(rt60_s * INPUT_RATE_HZ)
    tail = generator.standard_normal(size) * 10 ** (-3 * np.arange(size) / size)
    response = 0.7 * tail / np.sqrt(np.square(tail).sum())
    response[0] = 0.7
    return (np.concatenate([np.zeros(delay), response]) * 10 ** (-loss_db / 20)).astype(np.float32)


def silence(count: int) -> Iterator[Case]:
    for number in range(count):
        yield Case("echo alone", f"room {number}", True, False, np.zeros(5 * INPUT_RATE_HZ, np.float32), 0.0)

"""What a caller hears when they speak, hum, cough or type over the agent, read from the waveform of a simulated loudspeaker.

    python benchmarks/barge_in.py --data SPEECH --save benchmarks/results/barge-in.json

The conversation is the one that the server runs, with Silero and PocketSphinx (the café's vocabulary), on a clock that goes on by 20 ms at a time
when both have done their work; the recogniser's processor time passes on that clock, the detector's does not. The client sends 40 ms at a time, as
the page does, each way takes `--network-ms`, and its loudspeaker obeys: it starts 60 ms after the first audio, ducks within 5 ms, holds what it
plays once that is silence, restores within 60 ms, and is flushed by `speech_started`. With `--no-mutes` it is a client that cannot hold.

Read from the waveform: time from the caller's first audible sample to an output 20 dB below what it would have been, and to silence that lasts. A
false stop is an agent that does not come back. Recorded are orders, commands and single digits; backchannels and short commands are eSpeak's, coughs
and keyboards are shaped noise: made cases, claimed as nothing else. Echo is the output through a made room.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
import tomllib
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import soxr
from asr import decoder_for
from measuring import commit, percentile
from pauses import pcm

from voice_pipelines.adapters.espeak import EspeakSynthesizer, EspeakVoice
from voice_pipelines.adapters.silero import SileroDetector, SileroStream
from voice_pipelines.asr.decoder import SphinxDecoder
from voice_pipelines.asr.vocabulary import Vocabulary
from voiceagent.agent import AgentProfile
from voiceagent.backends import (
    INPUT_RATE_HZ,
    BackendInfo,
    Backends,
    DraftEvent,
    DraftRequest,
    Partial,
    QualityCurve,
    Samples,
    StepPlan,
    Transcript,
)
from voiceagent.budget import BudgetController
from voiceagent.clock import ManualClock
from voiceagent.conversation import Conversation
from voiceagent.events import (
    DUCK_DB,
    MUTED_DB,
    ConversationEvent,
    PlaybackDucked,
    PlaybackMuted,
    PlaybackRestored,
    ResponseAudio,
    SpeechStarted,
)
from voiceagent.session import SessionSettings, TurnDetection

ROOT = Path(__file__).parent.parent
STEP_S, MESSAGE_S = 0.02, 0.04
STEP = round(STEP_S * INPUT_RATE_HZ)
FRAME = 80
"""5 ms: the resolution of what is read from the waveform."""
LONGEST_S = 9.0
STILL_S = 0.2
"""An agent that would have been heard for so long, and is not, has been stopped."""
AGENT = (
    "Sure, one large mocha with oat milk, that's five dollars and sixty cents. It will be ready in ten minutes, and you can pick it up at the counter. "
    "We are open until five in the afternoon today, and from eight to four on weekends. Would you like anything else with that?"
)
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


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: str
    name: str
    at_s: float
    """When the sound began, of the agent's speech."""
    ducked_s: float | None
    turned_s: float | None
    """The same by the loudspeaker's gain."""
    silent_s: float | None
    restored_s: float | None
    held_s: float | None
    """How long the agent was held in silence before it came back; None where it was not, or did not."""
    events: list[str]


# --- the client -------------------------------------------------------------------------------------------------------


class Loudspeaker:
    """Plays at 16 kHz what has arrived, as the page does, and keeps the waveform; and beside it what would have been played undisturbed."""

    START_S, FADE_S, RISE_S = 0.06, 0.005, 0.06
    SILENT_GAIN = 1e-5

    def __init__(self) -> None:
        self.played: list[Samples] = []
        self.undisturbed: list[Samples] = []
        self._queue = np.zeros(0, np.float32)
        self._whole = np.zeros(0, np.float32)
        self._starts_at: float | None = None
        self._gain, self._target, self._step = 1.0, 1.0, 0.0
        self.turned_down: list[float] = []
        """Seconds of what was played until the gain was down by 20 dB, each time: while the agent pauses no waveform shows it."""
        self._resampler: soxr.ResampleStream | None = None
        self._ahead: int | None = None
        """While it is held: how far behind the place where it goes on what would have been played lies."""
        self.held: list[float] = []
        """Seconds of silence, each time that it went on after one."""

    def push(self, samples: Samples, rate_hz: int, now: float) -> None:
        if self._resampler is None:
            self._resampler = soxr.ResampleStream(rate_hz, INPUT_RATE_HZ, 1, dtype="float32")
            self._starts_at = now + self.START_S
        new = self._resampler.resample_chunk(samples)
        self._queue = np.concatenate([self._queue, new])
        self._whole = np.concatenate([self._whole, new])

    def turn(self, gain: float, ramp_s: float) -> None:
        if gain <= self.SILENT_GAIN:
            gain, self._ahead = 0.0, self._ahead or 0
        elif self._ahead is not None:
            self.held.append(self._ahead / INPUT_RATE_HZ)
            self._ahead = None
        self._target, self._step = gain, (gain - self._gain) / (ramp_s * INPUT_RATE_HZ)

    def flush(self) -> None:
        if self._gain > 0.1:
            self.turned_down.append(len(self.played) * STEP / INPUT_RATE_HZ)
        fade = round(self.FADE_S * INPUT_RATE_HZ)
        self._queue = self._queue[:fade] * self._gain * np.linspace(1, 0, min(fade, self._queue.size), dtype=np.float32)
        self._gain = self._target = 1.0
        self._ahead = None

    def render(self, now: float) -> Samples:
        """The next step's sound."""
        out, ideal = np.zeros(STEP, np.float32), np.zeros(STEP, np.float32)
        if self._starts_at is not None and now >= self._starts_at:
            ahead, size = self._ahead or 0, STEP
            if self._ahead is not None:
                size = min(STEP, 0 if self._gain == 0.0 else math.ceil(-self._gain / self._step))
                self._ahead += STEP - size
            out[: min(size, self._queue.size)] = self._queue[:size]
            would_be = self._whole[ahead : ahead + STEP]
            ideal[: would_be.size] = would_be
            self._queue, self._whole = self._queue[size:], self._whole[size:]
        if self._gain != 1.0 or self._target != 1.0:
            gains = self._gain + self._step * np.arange(1, STEP + 1)
            low, high = sorted((self._gain, self._target))
            gains = np.clip(gains, low, high).astype(np.float32)
            out *= gains
            if self._gain > 0.1 >= gains[-1]:
                at = len(self.played) * STEP + int(np.argmax(gains <= 0.1))
                self.turned_down.append(at / INPUT_RATE_HZ)
            self._gain = float(gains[-1])
        self.played.append(out)
        self.undisturbed.append(ideal)
        return out


def read_waveform(
    played: Samples, undisturbed: Samples, onset_s: float
) -> tuple[float | None, float | None, float | None]:
    """Seconds from the onset to an output 20 dB down, to silence that lasts, and to an output that is back."""
    size = min(played.size, undisturbed.size) // FRAME * FRAME
    out = np.sqrt(np.square(played[:size].reshape(-1, FRAME)).mean(axis=1)) + 1e-9
    ideal = np.sqrt(np.square(undisturbed[:size].reshape(-1, FRAME)).mean(axis=1)) + 1e-9
    audible = ideal > 10 ** (-50 / 20)
    down = audible & (out < ideal * 0.1)
    first = round(onset_s * INPUT_RATE_HZ / FRAME)
    frame_s = FRAME / INPUT_RATE_HZ

    def after(condition: np.ndarray, start: int) -> int | None:
        found = np.flatnonzero(condition[start:])
        return None if not found.size else start + int(found[0])

    ducked = after(down, max(first - 20, 0))
    if ducked is None:
        return None, None, None
    back = after(audible & (out > ideal * 0.9), ducked)
    loud = np.flatnonzero(out > 10 ** (-66 / 20))
    end = int(loud[-1]) + 1 if loud.size else 0
    silent = end if audible[end:].sum() * frame_s > STILL_S else None
    at = [None if each is None else round((each - first) * frame_s, 4) for each in (ducked, silent, back)]
    return at[0], at[1], at[2]


def turned_after(speaker: Loudspeaker, onset_s: float) -> float | None:
    """Seconds from the onset until the loudspeaker's gain is 20 dB down, or it is flushed."""
    return next((round(at - onset_s, 4) for at in speaker.turned_down if at > onset_s - 0.1), None)


def held_for(speaker: Loudspeaker) -> float | None:
    """Seconds of the longest silence after which the agent came back."""
    return round(max(speaker.held), 3) if speaker.held else None


# --- the models -------------------------------------------------------------------------------------------------------


class CountedDetector:
    """Silero, and how many windows it has answered."""

    def __init__(self, detector: SileroDetector) -> None:
        self.info, self.window_samples = detector.info, detector.window_samples
        self._detector = detector
        self.answered = 0

    def open(self) -> CountedStream:
        return CountedStream(self, self._detector.open())

    async def aclose(self) -> None:
        pass


@dataclass(slots=True)
class CountedStream:
    counted: CountedDetector
    stream: SileroStream

    async def probability(self, window: Samples) -> float:
        try:
            return await self.stream.probability(window)
        finally:
            self.counted.answered += 1

    def reset(self) -> None:
        self.stream.reset()


class SphinxUtterance:
    def __init__(self, decoder: SphinxDecoder, clock: ManualClock) -> None:
        self._decoder, self._clock = decoder, clock
        self._samples: list[Samples] = []

    def feed(self, samples: Samples) -> None:
        self._samples.append(samples)

    async def finish(self) -> Transcript:
        began = time.process_time()
        self._decoder.start()
        self._decoder.feed(pcm(np.concatenate([np.zeros(0, np.float32), *self._samples])))
        text = self._decoder.finish().text
        await self._clock.sleep_until(self._clock.now() + time.process_time() - began)
        return Transcript(text)

    def cancel(self) -> None:
        pass


class Sphinx:
    """PocketSphinx, in this process: its processor time passes on the manual clock."""

    info = BackendInfo("asr", "pocketsphinx", "benchmark")

    def __init__(self, decoder: SphinxDecoder, clock: ManualClock) -> None:
        self._decoder, self._clock = decoder, clock

    async def open(self, on_partial: Callable[[Partial], None]) -> SphinxUtterance:
        return SphinxUtterance(self._decoder, self._clock)

    async def aclose(self) -> None:
        pass


class SilentDrafter:
    """Never writes anything: what counts is over when the agent has been stopped."""

    info = BackendInfo("llm", "silent", "benchmark")
    canvas_widths: tuple[int, ...] = (32,)
    quality_curve = QualityCurve((), (), ())
    min_steps = 1
    can_revise = False

    def revise(self, draft: SilentDraft, request: DraftRequest, on_event: Callable[[DraftEvent], None]) -> SilentDraft:
        raise AssertionError("nothing is drafted early by a model that cannot revise")

    def start(self, request: DraftRequest, on_event: Callable[[DraftEvent], None]) -> SilentDraft:
        return SilentDraft()

    def warm(self, *arguments: object) -> None:
        pass

    def forget(self, conversation_id: str) -> None:
        pass

    async def aclose(self) -> None:
        pass


class SilentDraft:
    def replan(self, plan: StepPlan) -> None:
        pass

    def cancel(self) -> None:
        pass


class Recorded:
    """Says what was synthesised before, at once."""

    info = BackendInfo("tts", "espeak", "benchmark")

    def __init__(self, samples: Samples, rate_hz: int) -> None:
        self._samples, self.rate_hz = samples, rate_hz
        self._said = False

    async def speak(self, clause: str) -> AsyncGenerator[Samples, None]:
        if not self._said:
            self._said = True
            for start in range(0, self._samples.size, self.rate_hz // 20):
                yield self._samples[start : start + self.rate_hz // 20]

    async def aclose(self) -> None:
        pass


# --- one case ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Setting:
    detector: SileroDetector
    decoder: SphinxDecoder
    agent: Samples
    agent_rate_hz: int
    detection: TurnDetection
    network_s: float
    can_be_held: bool = True
    room: Samples | None = None
    """The way from the loudspeaker to the microphone, its delay included."""
    clock: ManualClock = field(default_factory=lambda: ManualClock(100.0))


async def run_case(case: Case, setting: Setting, at_s: float, seed: int) -> Outcome:
    """`case` happens `at_s` into the agent's speech."""
    clock = setting.clock
    detector = CountedDetector(setting.detector)
    speaker, events = Loudspeaker(), []
    arriving: list[tuple[float, ConversationEvent]] = []
    began = clock.now()
    generator = np.random.default_rng(seed)
    length = round((at_s + case.sound.size / INPUT_RATE_HZ + 1.6) * INPUT_RATE_HZ) // STEP * STEP
    microphone = (10 ** (-66 / 20) * generator.standard_normal(length)).astype(np.float32)
    begin = round((at_s - case.onset_s) * INPUT_RATE_HZ)
    microphone[begin : begin + case.sound.size] += case.sound[: length - begin]
    echo = np.zeros(length + INPUT_RATE_HZ, np.float32)
    conversation = Conversation(
        backends=Backends(
            detector, Sphinx(setting.decoder, clock), SilentDrafter(), Recorded(setting.agent, setting.agent_rate_hz)
        ),  # type: ignore[arg-type]
        agent=AgentProfile("café", "", "Hello."),
        settings=SessionSettings(turn_detection=setting.detection, can_be_held=setting.can_be_held),
        clock=clock,
        emit=lambda event: arriving.append((clock.now() + setting.network_s, event)),
        budget=BudgetController(),
    )
    sending: list[tuple[float, Samples]] = []
    pushed = 0
    stopped: float | None = None
    async with conversation:
        await clock.settle()
        conversation.greet()
        await clock.settle()
        for number in range(length // STEP):
            now = clock.now()
            for each in [each for each in arriving if each[0] <= now]:
                arriving.remove(each)
                match each[1]:
                    case ResponseAudio(samples=samples, rate_hz=rate_hz):
                        speaker.push(samples, rate_hz, now)
                    case PlaybackDucked():
                        events.append(f"ducked {now - began - at_s:+.2f}")
                        speaker.turn(10 ** (-DUCK_DB / 20), speaker.FADE_S)
                    case PlaybackMuted():
                        events.append(f"muted {now - began - at_s:+.2f}")
                        speaker.turn(10 ** (-MUTED_DB / 20), speaker.FADE_S)
                    case PlaybackRestored(reason=reason):
                        events.append(f"restored ({reason}) {now - began - at_s:+.2f}")
                        speaker.turn(1.0, speaker.RISE_S)
                    case SpeechStarted():
                        events.append(f"stopped {now - began - at_s:+.2f}")
                        speaker.flush()
                        stopped = stopped or now
                    case _:
                        pass
            played = speaker.render(now)
            here = slice(number * STEP, (number + 1) * STEP)
            if setting.room is not None:
                reflected = np.convolve(played, setting.room)
                echo[here.start : here.start + reflected.size] += reflected[: echo.size - here.start]
            if (number + 1) % round(MESSAGE_S / STEP_S) == 0:
                piece = slice((number - 1) * STEP, (number + 1) * STEP)
                heard = np.clip(microphone[piece] + echo[piece], -1, 1)
                sending.append((now + STEP_S + setting.network_s, heard.astype(np.float32)))
            await clock.advance(STEP_S)
            for message in [each for each in sending if each[0] <= clock.now() + 1e-9]:
                sending.remove(message)
                conversation.push_audio(message[1])
                pushed += message[1].size
            given_up = time.monotonic() + 30.0
            while detector.answered < pushed // 512:
                if time.monotonic() > given_up:
                    raise RuntimeError(f"{case.name}: the conversation no longer listens")
                await asyncio.sleep(0)
                await clock.settle()
            await clock.settle()
            if stopped is not None and now > stopped + 0.5:
                break
    waves = np.concatenate(speaker.played), np.concatenate(speaker.undisturbed)
    ducked, silent, restored = read_waveform(*waves, at_s)
    turned = turned_after(speaker, at_s)
    return Outcome(case.kind, case.name, round(at_s, 3), ducked, turned, silent, restored, held_for(speaker), events)


# --- what happens -----------------------------------------------------------------------------------------------------


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


# --- summing up -------------------------------------------------------------------------------------------------------


def summary(kind: str, outcomes: list[Outcome], cases: list[Case]) -> dict[str, object]:
    stopped = [outcome for outcome in outcomes if outcome.silent_s is not None]
    ducked = [outcome.ducked_s for outcome in outcomes if outcome.ducked_s is not None]
    turned = [outcome.turned_s for outcome in outcomes if outcome.turned_s is not None]
    silent = [outcome.silent_s for outcome in stopped if outcome.silent_s is not None]
    held = [outcome.held_s for outcome in outcomes if outcome.silent_s is None and outcome.held_s is not None]

    def spread(values: list[float]) -> dict[str, float] | None:
        return {f"p{share}": round(percentile(values, share / 100), 3) for share in (50, 95, 100)} if values else None

    return {
        "kind": kind,
        "made": cases[0].is_made,
        "interrupts": cases[0].interrupts,
        "cases": len(outcomes),
        "stopped": len(stopped),
        "ducked": len(ducked),
        "ducked_s": spread(ducked),
        "ducked_within_0.2_s": sum(each <= 0.2 for each in ducked),
        "turned_down_s": spread(turned),
        "turned_down_within_0.2_s": sum(each <= 0.2 for each in turned),
        "ducks": sum(event.startswith("ducked") for outcome in outcomes for event in outcome.events),
        "minutes": round(sum(case.sound.size for case in cases) / INPUT_RATE_HZ / 60, 2),
        "silent_s": spread(silent),
        "silent_within_0.6_s": sum(each <= 0.6 for each in silent),
        "came_back_after_silence": len(held),
        "came_back_after_silence_of_s": spread(held),
        "not_as_wanted": [
            f"{outcome.name}: {', '.join(outcome.events) or 'nothing'}"
            for outcome, case in zip(outcomes, cases, strict=True)
            if (outcome.silent_s is not None) != case.interrupts
        ],
    }


def table(rows: list[dict[str, object]]) -> str:
    head = "| over the agent | cases | stopped | 20 dB down after p50 / p95, within 0.2 s | gain 20 dB down, within 0.2 s | silent after p50 / p95, within 0.6 s | back after silence |"
    return "\n".join([head, "| --- | --- | --- | --- | --- | --- | --- |", *map(_line, rows)])


def _line(row: dict[str, object]) -> str:
    def shown(key: str, within: str, of: str) -> str:
        spread = row[key]
        if not isinstance(spread, dict):
            return "–"
        return f"{1000 * spread['p50']:.0f} / {1000 * spread['p95']:.0f} ms, {row[within]} of {row[of]}"

    ducked = shown("ducked_s", "ducked_within_0.2_s", "ducked")
    turned = shown("turned_down_s", "turned_down_within_0.2_s", "ducked")
    silent = shown("silent_s", "silent_within_0.6_s", "stopped") if row["interrupts"] else "–"
    made = " (made)" if row["made"] else ""
    held = row["came_back_after_silence_of_s"]
    back = f"{row['came_back_after_silence']}, of {held['p50']:.1f} s" if isinstance(held, dict) else "0"
    return f"| {row['kind']}{made} | {row['cases']} | {row['stopped']} | {ducked} | {turned} | {silent} | {back} |"


async def measure(options: argparse.Namespace) -> dict[str, object]:
    with options.preset.open("rb") as file:
        vocabulary = Vocabulary.from_table(tomllib.load(file)["vocabulary"])
    decoder, _ = decoder_for(vocabulary, options.cache)
    synthesizer = EspeakSynthesizer()
    agent = np.concatenate([samples async for samples in synthesizer.speak(AGENT)])
    detector = SileroDetector()
    every = options.every
    groups: list[tuple[list[Case], Callable[[int], Samples | None]]] = [
        (list(recorded(options.data, ("order",), every, "order, recorded")), lambda number: None),
        (list(recorded(options.data, ("command",), 1, "command, recorded")), lambda number: None),
        (list(recorded(options.data, ("digit",), every, "one digit, recorded")), lambda number: None),
        ((await spoken(SHORT, "one or two words", interrupts=True))[::every], lambda number: None),
        (await spoken(BACKCHANNELS, "backchannel", interrupts=False), lambda number: None),
        (list(coughs(40, options.seed)), lambda number: None),
        (list(keyboards(40, options.seed)), lambda number: None),
        (list(rooms(options.data)), lambda number: None),
        (list(silence(72 // every)), lambda number: made_room(1000 + number, (4.0, 8.0, 14.0, 20.0)[number % 4])),
        (
            list(recorded(options.data, ("order",), every, "order over echo")),
            lambda number: made_room(2000 + number, (8.0, 14.0, 20.0)[number % 3]),
        ),
    ]
    rows, log = [], []
    generator = np.random.default_rng(options.seed)
    detection = TurnDetection(barge_in=options.mode, echo_gate=not options.no_echo_gate, hums=not options.no_hums)
    for cases, room in groups:
        if options.only and (not cases or not any(each in cases[0].kind for each in options.only)):
            continue
        outcomes = []
        for number, case in enumerate(cases):
            response = room(number)
            setting = Setting(
                detector,
                decoder,
                agent,
                synthesizer.rate_hz,
                detection,
                options.network_ms / 1000,
                not options.no_mutes,
                response,
            )
            outcomes.append(await run_case(case, setting, float(generator.uniform(1.5, 4.0)), options.seed + number))
        if not cases:
            continue
        row = summary(cases[0].kind, outcomes, cases)
        rows.append(row)
        log += outcomes
        print(table([row]).splitlines()[-1], flush=True)
        for line in row["not_as_wanted"]:  # type: ignore[attr-defined]
            print("   ", line, flush=True)
    quiet = [row for row in rows if row["kind"] in ("backchannel", "cough", "keyboard")]
    false_stops = {
        "stopped": sum(int(str(row["stopped"])) for row in quiet),
        "cases": sum(int(str(row["cases"])) for row in quiet),
    }
    await detector.aclose()
    await synthesizer.aclose()
    return {
        "commit": commit(),
        "data": options.data.name,
        "mode": options.mode,
        "mutes": not options.no_mutes,
        "network_ms": options.network_ms,
        "message_ms": 1000 * MESSAGE_S,
        "seed": options.seed,
        "every": every,
        "false_stops_of_backchannels_coughs_and_keyboards": false_stops,
        "rows": rows,
        "outcomes": [[o.kind, o.name, o.at_s, o.ducked_s, o.turned_s, o.silent_s, o.restored_s, o.held_s] for o in log],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "tests" / "data", help="folder with manifest.jsonl")
    parser.add_argument(
        "--preset", type=Path, default=ROOT / "pipelines/voice_pipelines/presets/cafe.toml", help="agent"
    )
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "asr", help="folder for built language models")
    parser.add_argument("--network-ms", type=float, default=20.0, help="each way")
    parser.add_argument("--mode", choices=("two_stage", "immediate"), default="two_stage")
    parser.add_argument("--no-echo-gate", action="store_true")
    parser.add_argument("--no-hums", action="store_true", help="words alone, whatever the voice sounds like")
    parser.add_argument("--no-mutes", action="store_true", help="a client that cannot hold what it plays")
    parser.add_argument("--every", type=int, default=1, help="every n-th case only, for a quick look")
    parser.add_argument("--only", nargs="+", help="only kinds of cases with one of these words in their names")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--save", type=Path, help="write the results here, as JSON and beside it as Markdown")
    options = parser.parse_args()
    result = asyncio.run(measure(options))
    text = table(result["rows"])  # type: ignore[arg-type]
    print("\n" + text)
    print(
        f"\nfalse stops of backchannels, coughs and keyboards: {result['false_stops_of_backchannels_coughs_and_keyboards']}"
    )
    if options.save is not None:
        options.save.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        options.save.with_suffix(".md").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""What a caller hears when they speak, hum, cough or type over the agent, read from the waveform of a simulated loudspeaker.

    python benchmarks/barge_in.py --data SPEECH --save benchmarks/results/barge-in.json
    python benchmarks/barge_in.py --data SPEECH --asr FOLDER --pair    # PocketSphinx and a converted Whisper; without --pair that alone

The conversation is the one that the server runs, with Silero and PocketSphinx (the café's vocabulary), on a clock that goes on by 20 ms at a time
when both have done their work; on that clock PocketSphinx takes `--pace` of its audio's length, a decode of a Whisper `--decode-s`, and the detector no time, so that a
run's results are the same each time. The client sends 40 ms at a time, as the page does, each way takes `--network-ms`, and its loudspeaker obeys: it starts 60 ms after the first audio, ducks within 5 ms, holds what it
plays once that is silence, restores within 60 ms, and is flushed by `speech_started`. With `--no-mutes` it is a client that cannot hold.

Read from the waveform: time from the caller's first audible sample to an output 20 dB below what it would have been, and to silence that lasts. A
false stop is an agent that does not come back. The agent tells something; in rows "after a question" it has asked first. Recorded are orders, commands and
single digits; backchannels and short commands are eSpeak's, coughs and keyboards are shaped noise: made cases, claimed as nothing else. Echo is the
output through a made room.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import tomllib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from asr import decoder_for
from interjections import (
    BACKCHANNELS,
    SHORT,
    Case,
    coughs,
    keyboards,
    made_room,
    recorded,
    rooms,
    silence,
    spoken,
)
from loudspeaker import STEP, STEP_S, Loudspeaker, held_for, read_waveform, turned_after
from measuring import commit, percentile
from replay_ears import DECODE_S, PACE, Sphinx, Whisper
from whisper_ear import load

from voice_pipelines.adapters.espeak import EspeakSynthesizer, EspeakVoice
from voice_pipelines.adapters.paired import PairedTranscriber
from voice_pipelines.adapters.silero import SileroDetector, SileroStream
from voice_pipelines.adapters.whisper_window import IN_PAUSES
from voice_pipelines.asr.vocabulary import Vocabulary
from voiceagent.agent import AgentProfile
from voiceagent.backends import (
    INPUT_RATE_HZ,
    BackendInfo,
    Backends,
    DraftEvent,
    DraftRequest,
    QualityCurve,
    Samples,
    StepPlan,
    Transcriber,
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

Ears: TypeAlias = Callable[[ManualClock], Transcriber]
"""Who hears the caller of a case, by its clock."""

ROOT = Path(__file__).parent.parent
MESSAGE_S = 0.04
AGENT = (
    "Sure, one large mocha with oat milk, that's five dollars and sixty cents. It will be ready in ten minutes, and you can pick it up at the counter. "
    "We are open until five in the afternoon today, and from eight to four on weekends. Would you like anything else with that?"
)
"""Tells for more than ten seconds, and is talked over in the first four: it has asked nothing by then."""
ASKING_AGENT = f"Would you like anything else with that? {AGENT}"
"""The same, but it asks first."""
AFTER_A_QUESTION = ", after a question"
_TRAIN = (
    "The next train to the coast leaves at seven forty from platform three, and it takes two hours and ten minutes. "
    "A single costs thirty one dollars, a return fifty four."
)
OTHER_AGENTS = (
    ("en-us+f5", _TRAIN),
    (
        "en-us+m3",
        "Hello, this is the corner café, how are you today? What can I get you? We have coffee, tea, and fresh cakes, and today all cold drinks are half price.",
    ),
    (
        "en-us+f2",
        "Thank you for calling the surgery. Doctor Fisher is away this week, so her patients are seen by Doctor Shah on Tuesday and Thursday mornings.",
    ),
    ("en-us+m3", _TRAIN),
)
"""Voices and what they say: how often an agent takes its echo for a caller's voice is a matter of its words."""
OTHER_ECHO = "echo alone, other agents"


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


@dataclass(frozen=True, slots=True)
class Speech:
    """What the agent says, synthesised as a whole."""

    text: str
    samples: Samples
    rate_hz: int


async def said(text: str, synthesizer: EspeakSynthesizer) -> Speech:
    return Speech(text, np.concatenate([samples async for samples in synthesizer.speak(text)]), synthesizer.rate_hz)


class Recorded:
    """Says what was synthesised before, at once: of each clause the part that its letters are of the text."""

    info = BackendInfo("tts", "espeak", "benchmark")

    def __init__(self, speech: Speech) -> None:
        self._speech, self.rate_hz = speech, speech.rate_hz
        self._letters = 0
        """Of the text, said so far."""

    async def speak(self, clause: str) -> AsyncGenerator[Samples, None]:
        text, samples = self._speech.text, self._speech.samples
        start, self._letters = self._letters, text.index(clause, self._letters) + len(clause)
        end = round(samples.size * self._letters / len(text))
        for at in range(round(samples.size * start / len(text)), end, self.rate_hz // 20):
            yield samples[at : min(at + self.rate_hz // 20, end)]

    async def aclose(self) -> None:
        pass


# --- one case ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Setting:
    detector: SileroDetector
    ears: Ears
    agent: Speech
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
            detector,
            setting.ears(clock),
            SilentDrafter(),  # type: ignore[arg-type]
            Recorded(setting.agent),
        ),
        agent=AgentProfile("café", "", setting.agent.text),
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
                await asyncio.sleep(0.0005)  # Who spins keeps Python's lock from the detector's thread.
            await clock.settle()
            if stopped is not None and now > stopped + 0.5:
                break
    waves = np.concatenate(speaker.played), np.concatenate(speaker.undisturbed)
    ducked, silent, restored = read_waveform(*waves, at_s)
    turned = turned_after(speaker, at_s)
    return Outcome(case.kind, case.name, round(at_s, 3), ducked, turned, silent, restored, held_for(speaker), events)


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


def ears_of(options: argparse.Namespace) -> Ears:
    """PocketSphinx, a Whisper, or both as the server has them."""
    with options.preset.open("rb") as file:
        vocabulary = Vocabulary.from_table(tomllib.load(file)["vocabulary"])
    if options.asr is None:
        decoder, _ = decoder_for(vocabulary, options.cache)
        return lambda clock: Sphinx(decoder, clock, options.pace)
    decode = load(options.asr, vocabulary.hot_words())
    if not options.pair:
        return lambda clock: Whisper(decode, clock, options.decode_s)
    decoder, _ = decoder_for(vocabulary, options.cache)

    def pair(clock: ManualClock) -> Transcriber:
        careful = Whisper(decode, clock, options.decode_s, IN_PAUSES)
        return PairedTranscriber(Sphinx(decoder, clock, options.pace), careful, careful.info, clock=clock)

    return pair


async def measure(options: argparse.Namespace) -> dict[str, object]:
    ears = ears_of(options)
    synthesizer = EspeakSynthesizer()
    tells = await said(AGENT, synthesizer)
    detector = SileroDetector()
    every = options.every
    short = (await spoken(SHORT, "one or two words", interrupts=True))[::every]
    groups: list[tuple[list[Case], Callable[[int], Samples | None]]] = [
        (list(recorded(options.data, ("order",), every, "order, recorded")), lambda number: None),
        (list(recorded(options.data, ("command",), 1, "command, recorded")), lambda number: None),
        (list(recorded(options.data, ("digit",), every, "one digit, recorded")), lambda number: None),
        (short, lambda number: None),
        (await spoken(BACKCHANNELS, "backchannel", interrupts=False), lambda number: None),
        (list(coughs(40, options.seed)), lambda number: None),
        (list(keyboards(40, options.seed)), lambda number: None),
        (list(rooms(options.data)), lambda number: None),
        (
            list(silence(72 // every)),
            lambda number: made_room(1000 + options.rooms + number, (4.0, 8.0, 14.0, 20.0)[number % 4]),
        ),
        (
            list(recorded(options.data, ("order",), every, "order over echo")),
            lambda number: made_room(2000 + options.rooms + number, (8.0, 14.0, 20.0)[number % 3]),
        ),
        (
            list(recorded(options.data, ("digit",), every, f"one digit, recorded{AFTER_A_QUESTION}")),
            lambda number: None,
        ),
        (
            (await spoken(SHORT, f"one or two words{AFTER_A_QUESTION}", interrupts=True))[::every],
            lambda number: None,
        ),
        (await spoken(BACKCHANNELS, f"backchannel{AFTER_A_QUESTION}", interrupts=False), lambda number: None),
        (
            list(recorded(options.data, ("command",), 1, "command over echo")),
            lambda number: made_room(3000 + options.rooms + number, (8.0, 14.0, 20.0)[number % 3]),
        ),
        (
            list(recorded(options.data, ("digit",), every, "one digit over echo")),
            lambda number: made_room(4000 + options.rooms + number, (8.0, 14.0, 20.0)[number % 3]),
        ),
        (
            [replace(case, kind="one or two words over echo") for case in short],
            lambda number: made_room(5000 + options.rooms + number, (8.0, 14.0, 20.0)[number % 3]),
        ),
        (
            [replace(case, kind=OTHER_ECHO) for case in silence(144 // every)],
            lambda number: made_room(6000 + options.rooms + number, (4.0, 8.0, 14.0, 20.0)[number // 4 % 4]),
        ),
    ]
    asks = await said(ASKING_AGENT, synthesizer)  # Behind the callers: eSpeak goes on from text to text.
    others = []
    for voice, text in OTHER_AGENTS:
        other = EspeakSynthesizer(EspeakVoice(voice))
        others.append(await said(text, other))
        await other.aclose()
    rows, log = [], []
    generator = np.random.default_rng(options.seed)
    detection = TurnDetection(barge_in=options.mode, echo_gate=not options.no_echo_gate, hums=not options.no_hums)
    for cases, room in groups:
        places = generator.uniform(1.5, 4.0, len(cases))  # Also of what is left out: `--only` moves nothing.
        if not cases or (options.only and not any(each in cases[0].kind for each in options.only)):
            continue
        outcomes = []
        for number, (case, at_s) in enumerate(zip(cases, places, strict=True)):
            response = room(number)
            agent = asks if case.kind.endswith(AFTER_A_QUESTION) else tells
            if case.kind == OTHER_ECHO:
                agent = others[number % len(others)]
            setting = Setting(
                detector,
                ears,
                agent,
                detection,
                options.network_ms / 1000,
                not options.no_mutes,
                response,
            )
            outcomes.append(await run_case(case, setting, float(at_s), options.seed + number))
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
        "rooms": options.rooms,
        "recogniser": "PocketSphinx"
        if options.asr is None
        else options.asr.name
        if not options.pair
        else f"PocketSphinx and {options.asr.name}",
        "pace": options.pace,
        "decode_s": options.decode_s,
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
    parser.add_argument(
        "--seed", type=int, default=7, help="of the moments, the coughs, the keys and the microphone's noise"
    )
    parser.add_argument("--rooms", type=int, default=0, help="other made rooms for the echo: added to their seeds")
    parser.add_argument("--pace", type=float, default=PACE, help="what PocketSphinx takes, of its audio's length")
    parser.add_argument(
        "--asr", type=Path, help="folder of a converted Whisper, to listen with instead of PocketSphinx"
    )
    parser.add_argument("--pair", action="store_true", help="PocketSphinx beside that Whisper, as the server has them")
    parser.add_argument("--decode-s", type=float, default=DECODE_S, help="what each decode of that Whisper takes")
    parser.add_argument("--save", type=Path, help="write the results here, as JSON and beside it as Markdown")
    options = parser.parse_args()
    if options.pair and options.asr is None:
        parser.error("--pair needs --asr FOLDER")
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

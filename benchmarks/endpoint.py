"""How soon the end of a turn is noticed, against how often a caller who only paused is cut off: silence alone beside silence with the words.

    python benchmarks/endpoint.py --data SPEECH --dialogues DIALOGUES

Recordings: each with one pause inserted (`tapes.py`), and as it was recorded. What detector and recogniser said is replayed window by window
through the modules that the server decides with; a model's answer is there one window (32 ms) after its question. Delay is from the true end
of speech to the decision; a cut-off is a decision more than 0.15 s before it, counted once per recording, and has no delay. Settings are
chosen on one half of the speakers and reported on the other. Whoever judges the sound of a voice was set on other speakers' (`turn_sound.py`).

Dialogues: turns of the users of the set left out of training, as a recogniser would write them, with the same kind of pause at a boundary
between two words. There is no sound, so the text is right and is there at once.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import lzma
import math
import random
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import whisper_ear
from asr import decoder_for
from measuring import about, percentile
from numpy.typing import NDArray
from pauses import TAIL_S, draw_pause, entries
from resample import Spread, spread
from smart_ear import SmartEar
from tapes import Tape, TapeMaker, WhisperTapeMaker
from turn_sound import Ear, Ears, Stop, examples

from dllm import loader
from dllm.spoken import spoken_form
from dllm.transcript import TurnEnd
from voice_pipelines.adapters.diffusion import DiffusionDrafter
from voice_pipelines.adapters.diffusion_turns import NO_SOUND, DiffusionTurnScorer, joined
from voice_pipelines.adapters.turn_words import TurnWordsScorer, alone
from voice_pipelines.asr.vocabulary import Vocabulary
from voice_pipelines.settings import load
from voice_pipelines.turn_end.model import TurnEndModel
from voice_pipelines.turn_end.odds import Heard
from voiceagent.backends import BackendInfo, PromptTurn, Samples, TurnSoFar
from voiceagent.config import Config
from voiceagent.endpoint import EndpointSettings, Evidence, decide
from voiceagent.endpoint_dictation import is_dictation
from voiceagent.endpoint_words import PauseWords, Question, is_answer
from voiceagent.vad import WINDOW_SAMPLES, VoiceActivity, VoicedUtterance

Floats = NDArray[np.float64]

ROOT = Path(__file__).parent.parent
KINDS = ("order", "command", "telephone", "noisy", "number", "read", "long")
TO_THE_AGENT = ("order", "command", "telephone")
"""What callers of this agent say, and its recogniser can read."""
PAUSED, AS_THEY_ARE = "with a pause", "as they are"
EARLY_S = 0.15
"""An endpoint so long before the end of speech is a cut-off (the recordings' times are no more exact)."""
GOAL = 0.05
"""Share of utterances that may be cut off."""
ASKED = {"number": "Sure. What's your phone number?"}
"""What the agent said before, where it was not the greeting: nobody dictates a number unasked."""
TEXT_LAG_S = 0.1
"""How long after a dialogue turn's words their text is there."""

ALONE_AFTER_S, ALONE_GIVES_UP_S = 0.2, 3.0
"""Pipecat 1.14 asks its Smart Turn once in a pause, after so much silence, ends the turn above one half, and after so much without it."""

SILENCES = tuple(round(0.1 + 0.05 * step, 2) for step in range(48))
COSTS = tuple(round(0.25 * 2 ** (step / 3), 2) for step in range(25))
FOLDS, SHUFFLES = 5, 10
SILENCE_WINDOW_S = WINDOW_SAMPLES / 16_000


Judge: TypeAlias = Literal["both", "words", "model"]
"""`both`: the turn-end model with the built-in one, as the server has it where that one writes the replies. `words`: the turn-end model alone,
as beside any other. `model`: the built-in one alone."""
Moments: TypeAlias = tuple[tuple[VoicedUtterance, Evidence | None], ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One utterance: what there is to decide from, window by window where the caller is silent, and when they really finished."""

    name: str
    kind: str
    speaker: str
    end_s: float
    moments: Moments
    last_s: float
    """Where it ends, should nothing be decided."""
    heard_alone_s: float | None = None
    """Where a Smart Turn that judges alone ends it."""


@dataclass(frozen=True, slots=True)
class Point:
    """What a setting came to on some cases."""

    setting: dict[str, float]
    cases: int
    cut_off: int
    unanswered: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float

    @property
    def share(self) -> float:
        return self.cut_off / self.cases


# --- what a model says ------------------------------------------------------------------------------------------------


class Scores:
    """The model's answers, kept in a file: each is asked for once per model."""

    def __init__(self, model: Path | None, cache: Path, judge: Judge) -> None:
        self._judge = judge
        self._words = TurnEndModel.load()
        checkpoint = loader.load(model)
        digest = hashlib.sha256((checkpoint.path / "model.safetensors").read_bytes()).hexdigest()
        self.model = {"weights_sha256": digest, "parameters": sum(p.numel() for p in checkpoint.model.parameters())}  # type: ignore[attr-defined]
        self._file = cache / f"scores-{digest[:16]}.json"
        self._known: dict[str, tuple[float, float]] = (
            json.loads(self._file.read_text("utf-8")) if self._file.is_file() else {}
        )
        self._drafter = DiffusionDrafter(checkpoint, BackendInfo("llm", "the model", "benchmark"))
        self._scorer = DiffusionTurnScorer(self._drafter, TurnWordsScorer())
        self._warmed: tuple[PromptTurn, ...] | None = None
        self.seconds: list[float] = []
        """Processor time of the answers that were asked for now: others run on this machine."""

    async def __aenter__(self) -> Scores:
        await DiffusionTurnScorer.create(self._drafter, TurnWordsScorer())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._known), "utf-8")
        await self._drafter.aclose()

    async def ask(
        self,
        before: tuple[PromptTurn, ...],
        words: str,
        heard: Heard | None = None,
        confidence: float | None = None,
    ) -> float:
        """Probability that nothing follows, as the judge has it.

        Args:
            heard: By the sound of the voice alone; None where nobody listened.
            confidence: That the words are right, by the recogniser, for a judge of words alone; None where it does not tell.
        """
        asked = next((turn.text for turn in reversed(before) if turn.role == "agent"), "")
        of_words = self._words.completeness(words, asked)
        if self._judge == "words":
            return alone(of_words, words, asked, heard, confidence)
        if self._judge == "both" and is_answer(words, asked):
            return of_words
        end = await self._ask_model(before, words)
        # The mean of one and the same is the model's alone.
        return joined(end, of_words if self._judge == "both" else end.probability, heard)

    async def _ask_model(self, before: tuple[PromptTurn, ...], words: str) -> TurnEnd:
        key = json.dumps([[turn.role, turn.text] for turn in before] + [words])
        if key not in self._known:
            if before != self._warmed:
                await self._warm(before)
            turns = (*before, PromptTurn("user", words))
            began = time.process_time()
            end = await self._scorer.ask(TurnSoFar("bench", turns, (), NO_SOUND))
            self.seconds.append(time.process_time() - began)
            self._known[key] = (end.probability, end.surprise)
        return TurnEnd(*self._known[key])

    async def _warm(self, before: tuple[PromptTurn, ...]) -> None:
        """As a conversation does while its caller begins to speak."""
        self._warmed = before
        tokens = self._drafter.prompts.warm_part("bench", before)
        await self._drafter.ask_engine(lambda engine: engine.warm("bench", tokens))


# --- recordings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recorded:
    """A tape with who spoke."""

    tape: Tape
    speaker: str
    samples: Samples

    @property
    def name(self) -> str:
        """Of these samples: the recording, and where a pause was put."""
        return f"{self.tape.path} {self.tape.pause_at_s} {self.tape.pause_s}"


async def case_of(
    recorded: Recorded, before: tuple[PromptTurn, ...], scores: Scores, ear: Ear | SmartEar | None
) -> Case:
    """Replay a tape through voice activity and the words' evidence; neither depends on the settings that are compared.

    Args:
        ear: Judges the sound of the voice before each pause, or, if it is a Smart Turn, of each question; None where nobody listens.
    """
    tape, sounded_until = recorded.tape, -1
    activity, words, heard = VoiceActivity(), PauseWords(), list(tape.partials)
    words.begin(before[-1].text if before and before[-1].role == "agent" else "")
    asked: Question | None = None
    listened: Heard | None = None
    heard_alone_s, alone_until = None, -1
    moments = []
    for number, probability in enumerate(tape.voice):
        activity.update(probability)
        at = activity.position_sample
        while heard and heard[0].at_s <= at / 16_000:
            told = heard.pop(0)
            words.hear(told.text, at, told.confidence)
        if asked is not None:
            words.answer(asked, await scores.ask(before, asked.text, listened, asked.confidence))
            asked = None
        if (utterance := activity.utterance) is None:
            continue
        if ear is not None and utterance.is_paused and utterance.voice_end_sample != sounded_until:
            sounded_until = utterance.voice_end_sample
            if isinstance(ear, SmartEar):
                words.pause_began(None, sounded_until)
            else:
                words.pause_began(ear(Stop(utterance.start_sample, sounded_until, None).heard(recorded.samples)))
        asked = words.question(at, is_paused=utterance.is_paused)
        if asked is not None:
            listened = None if asked.sound is None else Heard(asked.sound)
            if isinstance(ear, SmartEar) and not words.is_dictation:
                listened = ear.heard(recorded.name, recorded.samples, utterance.start_sample, at)
        if isinstance(ear, SmartEar) and heard_alone_s is None and utterance.silence_s >= ALONE_AFTER_S:
            is_new, alone_until = utterance.voice_end_sample != alone_until, utterance.voice_end_sample
            if utterance.silence_s >= ALONE_GIVES_UP_S or (
                is_new and ear.probability(recorded.name, recorded.samples, utterance.start_sample, at) > 0.5
            ):
                heard_alone_s = at / 16_000
        if utterance.is_paused or number % 32 == 0:
            moments.append((utterance, words.evidence(at)))
    return Case(
        tape.path,
        tape.kind,
        recorded.speaker,
        tape.speech_end_s,
        tuple(moments),
        len(tape.voice) * SILENCE_WINDOW_S,
        heard_alone_s,
    )


def endpoint_s(case: Case, settings: EndpointSettings, *, with_words: bool) -> float | None:
    for utterance, evidence in case.moments:
        decision = decide(utterance, settings, evidence if with_words else None)
        if decision is not None:
            return decision.endpoint_sample / 16_000
    return None


# --- dialogues --------------------------------------------------------------------------------------------------------


async def dialogue_cases(
    paths: Sequence[Path], per_dataset: int, seed: int, scores: Scores
) -> tuple[list[Case], list[Case]]:
    """Turns with a pause in the middle, and the same without one. A case's speaker is its dialogue: folds share none."""
    paused, whole = [], []
    for path in paths:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            dialogues = [json.loads(line) for line in file]
        random.Random(seed).shuffle(dialogues)
        found = itertools.islice(itertools.chain.from_iterable(map(_turns, dialogues)), per_dataset)
        for name, before, text in found:
            words = text.split()
            at, pause_s = draw_pause(name, len(words) - 1, seed)
            asked = before[-1].text if before and before[-1].role == "agent" else ""
            first, said = " ".join(words[: at + 1]), " ".join(words)
            chances = [await scores.ask(before, some) for some in (first, said)]
            signs = [(is_dictation(some, asked), is_answer(some, asked)) for some in (first, said)]
            source, dialogue = path.name.partition(".")[0], name.partition("#")[0]

            def case(
                pause_s: float, moments: Moments, name: str = name, source: str = source, dialogue: str = dialogue
            ) -> Case:
                end_s = 10.0 + pause_s
                return Case(name, source, dialogue, end_s, moments, end_s + TAIL_S)

            middle = _pause(10.0, pause_s, chances[0], *signs[0])
            paused.append(case(pause_s, (*middle, *_pause(10.0 + pause_s, TAIL_S, chances[1], *signs[1]))))
            whole.append(case(0.0, tuple(_pause(10.0, TAIL_S, chances[1], *signs[1]))))
    return paused, whole


def _turns(dialogue: dict[str, Any]) -> Iterable[tuple[str, tuple[PromptTurn, ...], str]]:
    """One user's turn of a dialogue, with at most four turns before it."""
    told = [(turn["role"], turn["text"]) for turn in dialogue["turns"]]
    fit = [at for at, (role, text) in enumerate(told) if role == "user" and 2 <= len(spoken_form(text).split()) <= 30]
    if fit:
        at = random.Random(dialogue["id"]).choice(fit)
        before = tuple(
            PromptTurn("user" if role == "user" else "agent", text) for role, text in told[max(at - 4, 0) : at]
        )
        yield f"{dialogue['id']}#{at}", before, spoken_form(told[at][1])


def _pause(
    from_s: float, length_s: float, completeness: float, dictation: bool, answer: bool = False
) -> list[tuple[VoicedUtterance, Evidence | None]]:
    """A silence in windows, the words known a little after it began."""
    moments: list[tuple[VoicedUtterance, Evidence | None]] = []
    for number in range(1, int(length_s / SILENCE_WINDOW_S) + 1):
        silence_s = number * SILENCE_WINDOW_S
        end = round(from_s * 16_000)
        utterance = VoicedUtterance(0, end, end + number * WINDOW_SAMPLES, True, False)
        known = silence_s >= TEXT_LAG_S
        stable_s = max(silence_s - TEXT_LAG_S, 0.0)
        told = completeness if known else None
        evidence = Evidence(told, stable_s, dictation, is_awaited=not known, is_answer=answer)
        moments.append((utterance, evidence))
    return moments


# --- curves -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Curve:
    """Cases under a row of settings that differ in one number."""

    name: str
    """Of that number."""
    values: tuple[float, ...]
    delays: Floats
    """[S, N] seconds from the true end of speech to the endpoint, or to the end of what there is."""
    unanswered: NDArray[np.bool_]
    """[S, N] nothing was decided."""

    def point(self, at: int, cases: NDArray[np.bool_] | None = None) -> Point:
        """What one setting came to, on some of the cases."""
        some = np.ones(self.delays.shape[1], bool) if cases is None else cases
        return point_of({self.name: self.values[at]}, self.delays[at, some], int(self.unanswered[at, some].sum()))

    def points(self) -> list[Point]:
        return [self.point(at) for at in range(len(self.values))]

    def best(self, goal: float = GOAL, cases: NDArray[np.bool_] | None = None) -> int:
        """The fastest setting within the goal; the one with fewest cut-offs where none is."""
        points = [self.point(at, cases) for at in range(len(self.values))]
        fit = [at for at, point in enumerate(points) if point.share <= goal]
        return (
            min(fit, key=lambda at: points[at].mean_s)
            if fit
            else min(range(len(points)), key=lambda at: points[at].cut_off)
        )

    def beside(self, other: Curve) -> Curve:
        """The same settings on the cases of both."""
        assert self.values == other.values
        delays = np.concatenate([self.delays, other.delays], axis=1)
        return Curve(self.name, self.values, delays, np.concatenate([self.unanswered, other.unanswered], axis=1))


def point_of(setting: dict[str, float], delays: Floats, unanswered: int = 0) -> Point:
    """Shares and delays; an utterance that was cut off has no delay."""
    cut_off = delays < -EARLY_S
    kept = sorted(delays[~cut_off].tolist())
    if not kept:
        return Point(setting, len(delays), int(cut_off.sum()), unanswered, *[math.inf] * 4)
    spread = [percentile(kept, share) for share in (0.5, 0.95, 0.99)]
    return Point(setting, len(delays), int(cut_off.sum()), unanswered, sum(kept) / len(kept), *spread)


def curve_of(cases: Sequence[Case], settings: EndpointSettings, *, with_words: bool) -> Curve:
    name, grid = ("cut_off_cost_s", COSTS) if with_words else ("silence_s", SILENCES)
    values = tuple(sorted({*grid, getattr(settings, name)}))
    found = [
        [endpoint_s(case, replace(settings, **{name: value}), with_words=with_words) for case in cases]
        for value in values
    ]
    delays = [
        [(case.last_s if end is None else end) - case.end_s for end, case in zip(row, cases, strict=True)]
        for row in found
    ]
    return Curve(name, values, np.array(delays), np.array([[end is None for end in row] for row in found]))


def folds(speakers: Sequence[str], count: int, seed: int) -> Iterator[NDArray[np.bool_]]:
    """Which cases are reported, fold by fold; the others choose. No speaker is on both sides."""
    known = sorted(set(speakers))
    random.Random(seed).shuffle(known)
    place = {speaker: at % count for at, speaker in enumerate(known)}
    mine = np.array([place[speaker] for speaker in speakers])
    yield from (mine == fold for fold in range(count))


def held_out(curve: Curve, speakers: Sequence[str]) -> dict[str, Any]:
    """What settings come to on speakers who had no part in choosing them: the mean of all shuffles, and the least and most of them."""
    rounds, chosen = [], []
    for seed in range(SHUFFLES):
        delays = np.empty(curve.delays.shape[1])
        for reported in folds(speakers, FOLDS, seed):
            at = curve.best(GOAL, ~reported)
            chosen.append(curve.values[at])
            delays[reported] = curve.delays[at, reported]
        rounds.append(point_of({}, delays))
    shares, means = [point.share for point in rounds], [point.mean_s for point in rounds]
    return {
        "cases": len(speakers),
        "cut off": {"mean": sum(shares) / SHUFFLES, "least": min(shares), "most": max(shares)},
        "mean_s": {"mean": sum(means) / SHUFFLES, "least": min(means), "most": max(means)},
        f"{curve.name} chosen": {"least": min(chosen), "median": percentile(sorted(chosen), 0.5), "most": max(chosen)},
    }


def compare(name: str, cases: Sequence[Case], defaults: EndpointSettings, also: Sequence[Case] = ()) -> dict[str, Any]:
    """Silence alone beside silence with the words, on the same cases.

    Args:
        also: Cases without a pause of the same speakers: a second half of turns in which nobody pauses.
    """
    alone, words = (curve_of(cases, defaults, with_words=with_words) for with_words in (False, True))
    parts = {case.kind: np.array([each.kind == case.kind for each in cases]) for case in cases}
    speakers = [case.speaker for case in cases]
    if also:
        # Every turn weighs alike: those without a pause as often as it takes to be half.
        times = max(round(len(cases) / len(also)), 1)
        others = [curve_of(also, defaults, with_words=with_words) for with_words in (False, True)]
        for _ in range(times):
            alone, words = alone.beside(others[0]), words.beside(others[1])
        speakers += [case.speaker for case in also] * times
        parts = {}
    result: dict[str, Any] = {
        "name": name,
        "cases": len(speakers),
        "speakers": len(set(speakers)),
        "silence held out": held_out(alone, speakers),
        "words held out": held_out(words, speakers),
        "with other speakers": spread(words.delays, alone.delays, speakers, goal=GOAL, early_s=EARLY_S, folds=FOLDS),
        "best silence within the goal": alone.point(alone.best()),
        "best words within the goal": words.point(words.best()),
        "default silence": point_at(alone, defaults.silence_s),
        "defaults": point_at(words, defaults.cut_off_cost_s),
        "silence curve": alone.points(),
        "words curve": words.points(),
        **alone_by_ear(cases, also),
        "by kind": {
            kind: {
                "default silence": point_at(alone, defaults.silence_s, part),
                "defaults": point_at(words, defaults.cut_off_cost_s, part),
            }
            for kind, part in sorted(parts.items())
        },
    }
    return result


def alone_by_ear(cases: Sequence[Case], also: Sequence[Case]) -> dict[str, Point]:
    """What a Smart Turn that judges alone comes to, where one listened."""
    times = max(round(len(cases) / len(also)), 1) if also else 0
    every = [*cases, *list(also) * times]
    if all(case.heard_alone_s is None for case in every):
        return {}
    ends = [case.last_s if case.heard_alone_s is None else case.heard_alone_s for case in every]
    delays = np.array([end - case.end_s for end, case in zip(ends, every, strict=True)])
    return {"Smart Turn alone": point_of({}, delays, sum(case.heard_alone_s is None for case in every))}


def point_at(curve: Curve, value: float, cases: NDArray[np.bool_] | None = None) -> Point:
    return curve.point(curve.values.index(value), cases)


def told(label: str, point: Point | None) -> str:
    if point is None:
        return f"| {label} | – | | | | | |"
    setting = ", ".join(f"{name.removesuffix('_s')} {value:g}" for name, value in point.setting.items())
    return (
        f"| {label} | {100 * point.share:.1f} % ({point.cut_off} of {point.cases}) | {point.mean_s:.3f} | {point.p50_s:.3f} "
        f"| {point.p95_s:.3f} | {point.p99_s:.3f} | {setting} |"
    )


def told_held_out(label: str, found: dict[str, Any]) -> str:
    share, mean = found["cut off"], found["mean_s"]
    return (
        f"| {label} | {100 * share['mean']:.1f} % ({100 * share['least']:.1f} to {100 * share['most']:.1f}) "
        f"| {mean['mean']:.3f} ({mean['least']:.3f} to {mean['most']:.3f}) | | | | |"
    )


def report(result: dict[str, Any]) -> str:
    lines = [
        f"\n## {result['name']}\n",
        f"{result['cases']} cases of {result['speakers']} speakers or dialogues; held out: {FOLDS} folds, {SHUFFLES} times.\n",
        "| | cut off | mean delay, s | p50 | p95 | p99 | setting |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *[told_held_out(name, result[name]) for name in ("silence held out", "words held out")],
    ]
    names = (
        "best silence within the goal",
        "best words within the goal",
        "default silence",
        "defaults",
        "Smart Turn alone",
    )
    lines += [told(name, result[name]) for name in names if name in result]
    for kind, points in result["by kind"].items():
        lines += [told(f"{kind}: {name}", point) for name, point in points.items()]
    sooner = {
        "held out": 1 - result["words held out"]["mean_s"]["mean"] / result["silence held out"]["mean_s"]["mean"],
        "best within the goal": 1
        - result["best words within the goal"].mean_s / result["best silence within the goal"].mean_s,
    }
    lines += [f"\n{how}: the words are {100 * share:.0f} % sooner." for how, share in sooner.items()]
    other: Spread = result["with other speakers"]
    low, high = (100 * share for share in other.cut_off)
    least, most = (100 * share for share in other.sooner)
    lines.append(
        f"With other speakers (95 of 100 draws): {low:.1f} to {high:.1f} % cut off, {least:.0f} to {most:.0f} % sooner."
    )
    return "\n".join(lines)


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(len(results), 3)
    lines = math.ceil(len(results) / columns)
    figure, panels = plt.subplots(lines, columns, figsize=(5 * columns, 3.6 * lines), squeeze=False)
    for panel in panels.flat[len(results) :]:
        panel.axis("off")
    for panel, result in zip(panels.flat, results, strict=False):
        for name, label in (("silence curve", "silence alone"), ("words curve", "silence and words")):
            points = sorted((100 * point.share, point.mean_s) for point in result[name] if point.mean_s < math.inf)
            panel.plot([x for x, _ in points], [y for _, y in points], marker=".", label=label)
        panel.axvline(100 * GOAL, color="grey", linewidth=0.8, linestyle="--")
        panel.set(title=result["name"], xlabel="turns cut off, %", ylabel="mean delay, s", ylim=(0, 2.2), xlim=(0, 40))
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


# --- running ----------------------------------------------------------------------------------------------------------


def tape_maker(options: argparse.Namespace, vocabulary: Vocabulary) -> TapeMaker:
    """With the recogniser that was asked for."""
    cache, name = options.cache / "tapes", options.preset.stem
    if options.asr is not None:
        decode = whisper_ear.load(options.asr, vocabulary.hot_words())
        name = f"{name}, {options.asr_name or options.asr.name}"
        return WhisperTapeMaker(options.data, cache, decode, name, options.seed, decode_s=options.decode_s)
    decoder, _ = decoder_for(vocabulary, options.cache / "asr")
    return TapeMaker(options.data, cache, decoder, name, options.seed)


def tapes_of(options: argparse.Namespace, vocabulary: Vocabulary, *, with_pause: bool) -> list[Recorded]:
    """Tapes with their speakers and their sound."""
    maker = tape_maker(options, vocabulary)
    some = entries(options.data, options.kinds, options.every if with_pause else options.every_as_recorded)
    return [
        Recorded(tape, str(entry["speaker"]), maker.samples(entry, with_pause=with_pause))
        for entry in some
        if (tape := maker.make(entry, with_pause=with_pause)) is not None
    ]


async def run(
    options: argparse.Namespace,
    config: Config,
    tapes: Mapping[str, Sequence[Recorded]],
    dialogues: Sequence[Path],
    ears: Ears | SmartEar | None,
) -> list[dict[str, Any]]:
    defaults = config.turn.detection().endpoint()
    results = []
    async with Scores(options.model, options.cache, options.judge) as scores:
        found: dict[str, list[Case]] = {}
        for how, recorded in tapes.items():
            found[how] = []
            for each in recorded:
                said = ASKED.get(each.tape.kind, config.agent.greeting)
                before = (PromptTurn("system", config.agent.instructions), PromptTurn("agent", said))
                ear = ears.of(each.speaker) if isinstance(ears, Ears) else ears
                found[how].append(await case_of(each, before, scores, ear))
        if dialogues:
            found["dialogues"], found["whole dialogues"] = await dialogue_cases(
                dialogues, options.turns, options.seed, scores
            )
        sets = [
            ("callers of the agent", [PAUSED, AS_THEY_ARE], TO_THE_AGENT),
            ("all recordings", [PAUSED, AS_THEY_ARE], None),
            ("dialogue turns", ["dialogues", "whole dialogues"], None),
        ]
        for name, (paused, whole), kinds in sets:
            cases, others = (
                [case for case in found.get(how, ()) if kinds is None or case.kind in kinds] for how in (paused, whole)
            )
            if cases:
                results.append(compare(f"{name}, each with a pause", cases, defaults))
            if cases and others:
                results.append(compare(f"{name}, half of them with a pause", cases, defaults, others))
            if others:
                results.append(compare(f"{name}, none with a pause", others, defaults))
        print("\n".join(map(report, results)), flush=True)
        times = scores.seconds
        print(f"\nmodel {scores.model}")
        if times:
            shown = " / ".join(f"{1000 * percentile(times, share):.1f}" for share in (0.5, 0.95, 0.99))
            print(f"an answer took processor time p50 / p95 / p99 {shown} ms ({len(times)} asked)")
        answers = {
            "asked": len(times),
            "ms": {f"p{round(100 * share)}": 1000 * percentile(times, share) for share in (0.5, 0.95, 0.99)}
            if times
            else {},
        }
        results.append({"name": "model", **scores.model, "answers": answers})
    return results


def as_json(value: object) -> object:
    if isinstance(value, Spread):
        return {name: [round(each, 4) for each in ends] for name, ends in asdict(value).items()}
    if not isinstance(value, Point):
        return str(value)
    # Where everybody was cut off there is no delay.
    told = {name: None if number == math.inf else number for name, number in asdict(value).items()}
    return {name: round(number, 4) if isinstance(number, float) else number for name, number in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of recordings with manifest.jsonl")
    parser.add_argument("--dialogues", type=Path, help="folder of *.dev.jsonl.xz")
    parser.add_argument("--turns", type=int, default=100, help="turns per data set of dialogues, at most")
    parser.add_argument(
        "--model", type=Path, help="checkpoint folder of the built-in family; default: the built-in weights"
    )
    parser.add_argument(
        "--preset", type=Path, default=ROOT / "pipelines/voice_pipelines/presets/cafe.toml", help="agent"
    )
    parser.add_argument("--kinds", nargs="+", default=KINDS, help="kinds of recordings")
    parser.add_argument(
        "--asr", type=Path, help="folder of a converted Whisper, to listen with instead of PocketSphinx"
    )
    parser.add_argument("--asr-name", help="what that Whisper is called in the results")
    parser.add_argument("--decode-s", type=float, default=0.15, help="seconds that each of its decodes takes")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings that are not the defaults")
    parser.add_argument("--judge", choices=("both", "words", "model"), default="both", help="who judges the words")
    parser.add_argument(
        "--sound",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether the sound of the voice is judged too",
    )
    parser.add_argument("--smart-turn", type=Path, help="ONNX file of a Smart Turn v3 that listens instead")
    parser.add_argument("--every", type=int, default=1, help="take every n-th recording only, for a quick look")
    parser.add_argument(
        "--every-as-recorded", type=int, default=1, help="the same for recordings without a pause; 0 takes none"
    )
    parser.add_argument("--seed", type=int, default=0, help="of pauses and turns")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "endpoint", help="folder for tapes and answers")
    parser.add_argument("--save", type=Path, help="file for the results, such as benchmarks/results/endpoint.json")
    parser.add_argument("--plot", type=Path, help="file for the curves")
    options = parser.parse_args()
    dialogues = [] if options.dialogues is None else sorted(options.dialogues.glob("*.dev.jsonl.xz"))
    torch.set_num_threads(1)
    machine = about(torch.device("cpu"))
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    config = load(assignments=[f"preset={options.preset}", *options.set])
    with options.preset.open("rb") as file:
        vocabulary = Vocabulary.from_table(tomllib.load(file)["vocabulary"])
    # Before the event loop: the voice detector brings its own.
    tapes = {PAUSED: tapes_of(options, vocabulary, with_pause=True)}
    if options.every_as_recorded:
        tapes[AS_THEY_ARE] = tapes_of(options, vocabulary, with_pause=False)
    ears: Ears | SmartEar | None = None
    if options.smart_turn is not None:
        ears = SmartEar(options.smart_turn, options.cache)
    elif options.sound:
        ears = Ears(asyncio.run(examples(options.data, options.cache)))
    results = asyncio.run(run(options, config, tapes, dialogues, ears))
    sound: bool | dict[str, str] = options.sound
    if isinstance(ears, SmartEar):
        ears.keep()
        sound = {"name": ears.name, "sha256": ears.sha256}
        if ears.seconds:
            shown = " / ".join(f"{1000 * percentile(ears.seconds, share):.1f}" for share in (0.5, 0.95))
            print(f"{ears.name} took processor time p50 / p95 {shown} ms ({len(ears.seconds)} asked)")
    if options.save is not None:
        recogniser = "PocketSphinx"
        if options.asr is not None:
            recogniser = f"Whisper {options.asr_name or options.asr.name}, each decode {options.decode_s} s"
        table = {
            **machine,
            "data": options.data.name,
            "seed": options.seed,
            "judge": options.judge,
            "recogniser": recogniser,
            "sound": sound,
            "set": options.set,
            "results": results,
        }
        options.save.write_text(json.dumps(table, indent=1, default=as_json) + "\n", "utf-8")
    if options.plot is not None:
        plot([result for result in results if "words curve" in result], options.plot)


if __name__ == "__main__":
    main()

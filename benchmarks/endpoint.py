"""How soon the end of a turn is noticed, against how often a caller who only paused is cut off: silence alone beside silence with the words.

    python benchmarks/endpoint.py --data ../shared/data/speech --dialogues ../shared/data/dialogues

Recordings: each with one pause inserted (`tapes.py`), and as it was recorded. What detector and recogniser said is replayed window by window
through the modules that the server decides with; a model's answer is there one window (32 ms) after its question. Delay is from the true end
of speech to the decision; a cut-off is a decision more than 0.15 s before it, counted once per recording, and has no delay. Settings are
chosen on one half of the speakers and reported on the other.

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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from asr import decoder_for
from measuring import about, percentile
from tapes import TAIL_S, Tape, TapeMaker, draw_pause, entries

from dllm import loader
from dllm.text import spoken_form
from dllm.transcript import TurnEnd
from voice_pipelines.adapters.diffusion import DiffusionDrafter
from voice_pipelines.adapters.diffusion_turns import NO_SOUND, DiffusionTurnScorer, trusted
from voice_pipelines.asr.vocabulary import Vocabulary
from voice_pipelines.settings import load
from voiceagent.backends import BackendInfo, PromptTurn, TurnSoFar
from voiceagent.config import Config
from voiceagent.endpoint import EndpointSettings, Evidence, decide
from voiceagent.endpoint_dictation import is_dictation
from voiceagent.endpoint_words import PauseWords, Question
from voiceagent.vad import WINDOW_SAMPLES, VoiceActivity, VoicedUtterance

ROOT = Path(__file__).parent.parent
KINDS = ("order", "command", "telephone", "noisy", "number", "read", "long")
TO_THE_AGENT = ("order", "command", "telephone")
"""What callers of this agent say, and its recogniser can read."""
EARLY_S = 0.15
"""An endpoint so long before the end of speech is a cut-off (the recordings' times are no more exact)."""
GOAL = 0.05
"""Share of utterances that may be cut off."""
ASKED = {"number": "Sure. What's your phone number?"}
"""What the agent said before, where it was not the greeting: nobody dictates a number unasked."""
TEXT_LAG_S = 0.1
"""How long after a dialogue turn's words their text is there."""

SILENCES = tuple(round(0.1 + 0.05 * step, 2) for step in range(48))
COSTS = tuple(round(0.2 * 2 ** (step / 2), 3) for step in range(17))
SHORTEST, LONGEST = (0.1, 0.15, 0.2, 0.3), (0.8, 1.0, 1.2, 1.5, 1.8, 2.1)
SETTLES, DICTATIONS = (0.0, 0.1, 0.2), (0.5, 0.8, 1.0, 1.2, 1.5)
SILENCE_WINDOW_S = WINDOW_SAMPLES / 16_000


@dataclass(frozen=True, slots=True)
class Case:
    """One utterance: what there is to decide from, window by window where the caller is silent, and when they really finished."""

    name: str
    kind: str
    speaker: str
    end_s: float
    moments: tuple[tuple[VoicedUtterance, Evidence | None], ...]
    last_s: float
    """Where it ends, should nothing be decided."""


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

    def __init__(self, model: Path | None, cache: Path) -> None:
        checkpoint = loader.load(model)
        digest = hashlib.sha256((checkpoint.path / "model.safetensors").read_bytes()).hexdigest()
        self.model = {"weights_sha256": digest, "parameters": sum(p.numel() for p in checkpoint.model.parameters())}  # type: ignore[attr-defined]
        self._file = cache / f"scores-{digest[:16]}.json"
        self._known: dict[str, tuple[float, float]] = (
            json.loads(self._file.read_text("utf-8")) if self._file.is_file() else {}
        )
        self._drafter = DiffusionDrafter(checkpoint, BackendInfo("llm", "the model", "benchmark"))
        self._scorer = DiffusionTurnScorer(self._drafter)
        self._warmed: tuple[PromptTurn, ...] | None = None
        self.seconds: list[float] = []
        """Processor time of the answers that were asked for now: others run on this machine."""

    async def __aenter__(self) -> Scores:
        await DiffusionTurnScorer.create(self._drafter)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._known), "utf-8")
        await self._drafter.aclose()

    async def ask(self, before: tuple[PromptTurn, ...], words: str) -> TurnEnd:
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


async def case_of(tape: Tape, speaker: str, before: tuple[PromptTurn, ...], scores: Scores) -> Case:
    """Replay a tape through voice activity and the words' evidence; neither depends on the settings that are compared."""
    activity, words, heard = VoiceActivity(), PauseWords(), list(tape.partials)
    words.begin(before[-1].text if before and before[-1].role == "agent" else "")
    asked: Question | None = None
    moments = []
    for number, probability in enumerate(tape.voice):
        activity.update(probability)
        at = activity.position_sample
        while heard and heard[0].at_s <= at / 16_000:
            words.hear(heard.pop(0).text, at)
        if asked is not None:
            words.answer(asked, trusted(await scores.ask(before, asked.text)))
            asked = None
        if (utterance := activity.utterance) is None:
            continue
        asked = words.question(at, is_paused=utterance.is_paused)
        if utterance.is_paused or number % 32 == 0:
            moments.append((utterance, words.evidence(at)))
    return Case(
        tape.path,
        tape.kind,
        speaker,
        tape.speech_end_s,
        tuple(moments),
        len(tape.voice) * SILENCE_WINDOW_S,
    )


def endpoint_s(case: Case, settings: EndpointSettings, *, with_words: bool) -> float | None:
    for utterance, evidence in case.moments:
        decision = decide(utterance, settings, evidence if with_words else None)
        if decision is not None:
            return decision.endpoint_sample / 16_000
    return None


# --- dialogues --------------------------------------------------------------------------------------------------------


async def dialogue_cases(paths: Sequence[Path], per_dataset: int, seed: int, scores: Scores) -> list[Case]:
    """Turns with a pause in the middle. A case's speaker is its dialogue: halves share none."""
    cases = []
    for path in paths:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            dialogues = [json.loads(line) for line in file]
        random.Random(seed).shuffle(dialogues)
        found = itertools.islice(itertools.chain.from_iterable(map(_turns, dialogues)), per_dataset)
        for name, before, text in found:
            words = text.split()
            at, pause_s = draw_pause(name, len(words) - 1, seed)
            asked = before[-1].text if before and before[-1].role == "agent" else ""
            middle, whole = " ".join(words[: at + 1]), " ".join(words)
            ends = await scores.ask(before, middle), await scores.ask(before, whole)
            cases.append(
                Case(
                    name,
                    path.name.partition(".")[0],
                    name.partition("#")[0],
                    10.0 + pause_s,
                    (
                        *_pause(10.0, pause_s, trusted(ends[0]), is_dictation(middle, asked)),
                        *_pause(10.0 + pause_s, TAIL_S, trusted(ends[1]), is_dictation(whole, asked)),
                    ),
                    10.0 + pause_s + TAIL_S,
                )
            )
    return cases


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
    from_s: float, length_s: float, completeness: float, dictation: bool
) -> list[tuple[VoicedUtterance, Evidence | None]]:
    """A silence in windows, the words known a little after it began."""
    moments: list[tuple[VoicedUtterance, Evidence | None]] = []
    for number in range(1, int(length_s / SILENCE_WINDOW_S) + 1):
        silence_s = number * SILENCE_WINDOW_S
        end = round(from_s * 16_000)
        utterance = VoicedUtterance(0, end, end + number * WINDOW_SAMPLES, True, False)
        known = silence_s >= TEXT_LAG_S
        stable_s = max(silence_s - TEXT_LAG_S, 0.0)
        moments.append((utterance, Evidence(completeness if known else None, stable_s, dictation)))
    return moments


# --- curves -----------------------------------------------------------------------------------------------------------


def measure(cases: Sequence[Case], settings: EndpointSettings, *, with_words: bool) -> Point:
    delays, cut_off, unanswered = [], 0, 0
    for case in cases:
        found = endpoint_s(case, settings, with_words=with_words)
        if found is None:
            unanswered += 1
            found = case.last_s
        if found < case.end_s - EARLY_S:
            cut_off += 1
        else:
            delays.append(found - case.end_s)
    named = ("cut_off_cost_s", "min_silence_s", "max_silence_s", "dictation_silence_s", "settle_s")
    setting = {name: getattr(settings, name) for name in (named if with_words else ("silence_s",))}
    if not delays:
        return Point(setting, len(cases), cut_off, unanswered, *[math.inf] * 4)
    spread = [percentile(delays, share) for share in (0.5, 0.95, 0.99)]
    return Point(setting, len(cases), cut_off, unanswered, sum(delays) / len(delays), *spread)


def silence_curve(cases: Sequence[Case]) -> list[Point]:
    return [measure(cases, EndpointSettings(silence_s=silence_s), with_words=False) for silence_s in SILENCES]


def words_curve(cases: Sequence[Case], settings: EndpointSettings) -> list[Point]:
    return [measure(cases, replace(settings, cut_off_cost_s=cost), with_words=True) for cost in COSTS]


def best(points: Iterable[Point]) -> Point | None:
    """The fastest that cuts off no more than it may."""
    return min((point for point in points if point.share <= GOAL), key=lambda point: point.mean_s, default=None)


def choose(cases: Sequence[Case]) -> EndpointSettings:
    """Settings that are fastest within the goal on these cases, one number after the other."""
    settings = EndpointSettings(max_silence_s=max(LONGEST))
    axes: tuple[tuple[str, Sequence[float]], ...] = (
        ("max_silence_s", LONGEST),
        ("min_silence_s", SHORTEST),
        ("dictation_silence_s", DICTATIONS),
        ("settle_s", SETTLES),
    )
    for name, values in axes:
        found = {value: best(words_curve(cases, replace(settings, **{name: value}))) for value in values}
        fit = {value: point for value, point in found.items() if point is not None}
        if fit:
            settings = replace(settings, **{name: min(fit, key=lambda value: fit[value].mean_s)})
    point = best(words_curve(cases, settings))
    return settings if point is None else EndpointSettings(**point.setting)


def halves(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Tune on the first, report on the second; no speaker is in both."""
    parts: tuple[list[Case], list[Case]] = ([], [])
    for case in cases:
        parts[hashlib.sha256(case.speaker.encode()).digest()[0] % 2].append(case)
    return parts


def compare(name: str, cases: Sequence[Case], defaults: EndpointSettings) -> dict[str, Any]:
    """Both curves on the half that is reported, the settings chosen on the other, and what they come to."""
    tuned, reported = halves(cases)
    chosen = choose(tuned)
    chosen_silence = best(silence_curve(tuned))
    alone, words = silence_curve(reported), words_curve(reported, chosen)
    result: dict[str, Any] = {
        "name": name,
        "cases": {"chosen on": len(tuned), "reported on": len(reported)},
        "chosen": measure(reported, chosen, with_words=True),
        "chosen silence": None
        if chosen_silence is None
        else measure(reported, EndpointSettings(**chosen_silence.setting), with_words=False),
        "best words within the goal": best(words),
        "best silence within the goal": best(alone),
        "defaults": measure(reported, defaults, with_words=True),
        "default silence": measure(reported, defaults, with_words=False),
        "silence curve": alone,
        "words curve": words,
        "by kind": {},
    }
    for kind in sorted({case.kind for case in reported}):
        some = [case for case in reported if case.kind == kind]
        result["by kind"][kind] = {
            "chosen": measure(some, chosen, with_words=True),
            "defaults": measure(some, defaults, with_words=True),
            "default silence": measure(some, defaults, with_words=False),
        }
    return result


def told(label: str, point: Point | None) -> str:
    if point is None:
        return f"| {label} | – | | | | | |"
    setting = ", ".join(f"{name.removesuffix('_s')} {value:g}" for name, value in point.setting.items())
    return (
        f"| {label} | {100 * point.share:.1f} % ({point.cut_off} of {point.cases}) | {point.mean_s:.3f} | {point.p50_s:.3f} "
        f"| {point.p95_s:.3f} | {point.p99_s:.3f} | {setting} |"
    )


def report(result: dict[str, Any]) -> str:
    lines = [
        f"\n## {result['name']}\n",
        f"Settings chosen on {result['cases']['chosen on']} cases, reported on {result['cases']['reported on']} others.\n",
        "| | cut off | mean delay, s | p50 | p95 | p99 | setting |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = ("chosen silence", "chosen", "best silence within the goal", "best words within the goal")
    lines += [told(name, result[name]) for name in (*names, "default silence", "defaults")]
    alone, words = result["best silence within the goal"], result["best words within the goal"]
    if alone is not None and words is not None:
        lines.append(f"\nBest within the goal: the words are {100 * (1 - words.mean_s / alone.mean_s):.0f} % sooner.")
    for kind, points in result["by kind"].items():
        lines += [told(f"{kind}: {name}", point) for name, point in points.items()]
    return "\n".join(lines)


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(results), figsize=(5 * len(results), 4), squeeze=False)
    for panel, result in zip(panels[0], results, strict=True):
        for name, label in (("silence curve", "silence alone"), ("words curve", "silence and words")):
            points = sorted((100 * point.share, point.mean_s) for point in result[name] if point.mean_s < math.inf)
            panel.plot([x for x, _ in points], [y for _, y in points], marker=".", label=label)
        panel.axvline(100 * GOAL, color="grey", linewidth=0.8, linestyle="--")
        panel.set(title=result["name"], xlabel="turns cut off, %", ylabel="mean delay, s", ylim=(0, 2.2), xlim=(0, 40))
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


# --- running ----------------------------------------------------------------------------------------------------------


def tapes_of(options: argparse.Namespace, vocabulary: Vocabulary, *, with_pause: bool) -> list[tuple[Tape, str]]:
    """Tapes with their speakers."""
    decoder, _ = decoder_for(vocabulary, options.cache / "asr")
    maker = TapeMaker(options.data, options.cache / "tapes", decoder, options.preset.stem, options.seed)
    found = [
        (maker.make(entry, with_pause=with_pause), str(entry["speaker"]))
        for entry in entries(options.data, options.kinds, options.every if with_pause else options.every_as_recorded)
    ]
    return [(tape, speaker) for tape, speaker in found if tape is not None]


async def run(
    options: argparse.Namespace,
    config: Config,
    tapes: Mapping[str, Sequence[tuple[Tape, str]]],
    dialogues: Sequence[Path],
) -> list[dict[str, Any]]:
    defaults = config.turn.detection().endpoint()
    results = []
    async with Scores(options.model, options.cache) as scores:
        for how, recorded in tapes.items():
            cases = []
            for tape, speaker in recorded:
                said = ASKED.get(tape.kind, config.agent.greeting)
                before = (PromptTurn("system", config.agent.instructions), PromptTurn("agent", said))
                cases.append(await case_of(tape, speaker, before, scores))
            wanted = [case for case in cases if case.kind in TO_THE_AGENT]
            results += [compare(f"{', '.join(TO_THE_AGENT)} {how}", wanted, defaults)]
            results += [compare(f"all recordings {how}", cases, defaults)]
            print("\n".join(map(report, results[-2:])), flush=True)
        if dialogues:
            cases = await dialogue_cases(dialogues, options.turns, options.seed, scores)
            results.append(compare("dialogue turns cut in the middle", cases, defaults))
            print(report(results[-1]), flush=True)
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
    if not isinstance(value, Point):
        return str(value)
    # Where everybody was cut off there is no delay.
    return {name: None if number == math.inf else number for name, number in asdict(value).items()}


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
    config = load(assignments=[f"preset={options.preset}"])
    with options.preset.open("rb") as file:
        vocabulary = Vocabulary.from_table(tomllib.load(file)["vocabulary"])
    # Before the event loop: the voice detector brings its own.
    tapes = {"with a pause": tapes_of(options, vocabulary, with_pause=True)}
    if options.every_as_recorded:
        tapes["as they are"] = tapes_of(options, vocabulary, with_pause=False)
    results = asyncio.run(run(options, config, tapes, dialogues))
    if options.save is not None:
        table = {**machine, "data": options.data.name, "seed": options.seed, "results": results}
        options.save.write_text(json.dumps(table, indent=1, default=as_json) + "\n", "utf-8")
    if options.plot is not None:
        plot([result for result in results if "words curve" in result], options.plot)


if __name__ == "__main__":
    main()

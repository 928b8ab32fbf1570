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
import random
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import whisper_ear
from asr import decoder_for
from endpoint_curves import Case, Moments, as_json, compare, plot, report
from measuring import about, percentile
from pauses import TAIL_S, draw_pause, entries
from replay_ears import PACE
from smart_ear import SmartEar
from tapes import Tape, TapeMaker, WhisperTapeMaker
from turn_sound import Ear, Ears, Stop, examples

from dllm import loader
from dllm.spoken import spoken_form
from dllm.transcript import TurnEnd
from voice_pipelines.adapters.diffusion import DiffusionDrafter
from voice_pipelines.adapters.diffusion_turns import NO_SOUND, DiffusionTurnScorer, joined
from voice_pipelines.adapters.turn_words import TurnWordsScorer, alone
from voice_pipelines.asr.decoder import SphinxDecoder
from voice_pipelines.asr.vocabulary import Vocabulary
from voice_pipelines.settings import load
from voice_pipelines.turn_end.model import TurnEndModel
from voice_pipelines.turn_end.odds import Heard
from voice_pipelines.turn_end.phrases import PhraseEnds
from voiceagent.backends import BackendInfo, PromptTurn, Samples, TurnSoFar
from voiceagent.config import Config
from voiceagent.endpoint import Evidence
from voiceagent.endpoint_dictation import is_dictation
from voiceagent.endpoint_words import PauseWords, Question, is_answer
from voiceagent.vad import WINDOW_SAMPLES, VoiceActivity, VoicedUtterance

ROOT = Path(__file__).parent.parent
KINDS = ("order", "command", "telephone", "noisy", "number", "read", "long")
TO_THE_AGENT = ("order", "command", "telephone")
"""What callers of this agent say, and its recogniser can read."""
PAUSED, AS_THEY_ARE = "with a pause", "as they are"
ASKED = {"number": "Sure. What's your phone number?"}
"""What the agent said before, where it was not the greeting: nobody dictates a number unasked."""
TEXT_LAG_S = 0.1
"""How long after a dialogue turn's words their text is there."""

ALONE_AFTER_S, ALONE_GIVES_UP_S = 0.2, 3.0
"""Pipecat 1.14 asks its Smart Turn once in a pause, after so much silence, ends the turn above one half, and after so much without it."""

SILENCE_WINDOW_S = WINDOW_SAMPLES / 16_000


Judge: TypeAlias = Literal["both", "words", "model"]
"""`words`: the turn-end model alone, as the server has it where the recogniser tells how sure it is, and beside any language model but the built-in one. `both`: with
the built-in one, as it has it beside a Whisper. `model`: the built-in one alone."""
# --- what a model says ------------------------------------------------------------------------------------------------


class Scores:
    """The model's answers, kept in a file: each is asked for once per model."""

    def __init__(self, model: Path | None, cache: Path, judge: Judge, phrases: PhraseEnds | None = None) -> None:
        self._judge = judge
        self._phrases = phrases
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
            confidence: That the words are right, by the recogniser, for a judge of words alone, who then knows the agent's phrases too; None where it does not tell.
        """
        asked = next((turn.text for turn in reversed(before) if turn.role == "agent"), "")
        of_words = self._words.completeness(words, asked)
        if self._judge == "words":
            ends = None if self._phrases is None or confidence is None else self._phrases.share(words)
            return alone(of_words, words, asked, heard, confidence, ends)
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


# --- running ----------------------------------------------------------------------------------------------------------


def tape_maker(options: argparse.Namespace, vocabulary: Vocabulary) -> TapeMaker:
    """With the recogniser that was asked for."""
    cache, name = options.cache / "tapes", options.preset.stem
    if options.asr is not None:
        decode = whisper_ear.load(options.asr, vocabulary.hot_words())
        name = f"{name}, {options.asr_name or options.asr.name}"
        return WhisperTapeMaker(options.data, cache, decode, name, options.seed, decode_s=options.decode_s)

    def new_decoder() -> SphinxDecoder:
        return decoder_for(vocabulary, options.cache / "asr")[0]

    return TapeMaker(options.data, cache, new_decoder, name, options.seed, pace=options.pace)


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
    vocabulary = Vocabulary(config.vocabulary.phrases, config.vocabulary.slots)
    phrases = PhraseEnds(vocabulary.grammar) if options.asr is None else None
    async with Scores(options.model, options.cache, options.judge, phrases) as scores:
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
    parser.add_argument("--pace", type=float, default=PACE, help="what PocketSphinx takes, of its audio's length")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings that are not the defaults")
    parser.add_argument(
        "--judge",
        choices=("words", "both", "model"),
        help="who judges the words; default: as the server has it, `both` with a Whisper and else `words`",
    )
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
    options.judge = options.judge or ("words" if options.asr is None else "both")
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
        recogniser = f"PocketSphinx, {options.pace} of its audio's length"
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

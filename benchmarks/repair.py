"""Whether repairing doubtful words of transcripts helps: word error rates with and without, on recordings.

    python benchmarks/repair.py --data SPEECH --kinds order telephone noisy
    python benchmarks/repair.py --data tests/data
    python benchmarks/repair.py --data SPEECH --asr FOLDER    # a converted Whisper's text

PocketSphinx hears each recording (as in `asr.py`), once with the agent's vocabulary and once with everyday language alone; or a Whisper does, with the
vocabulary as hot words and without. The built-in model is asked what else may have been said, among the words of that vocabulary, as the first turn
behind the agent's greeting. All that it proposes is kept, so that the rule of `voiceagent/repair.py` can be replayed under any settings. Settings are chosen on one half of the speakers, those with
the fewest word errors (of equal ones the strictest); what is told, also of the shipped settings, is of the other half. Processor times are those of
asking as the agent does: the shipped settings, and layers compiled where they can be. By them is told how many answers come within the time that
the agent waits for one, if nobody else wants the processor.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hashlib
import itertools
import json
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asr import Clip, clips, decoder_for
from measuring import about, percentile
from whisper_ear import WhisperEar
from whisper_ear import load as load_whisper

from dllm import loader
from dllm.spoken import spoken_form
from voice_pipelines.adapters.diffusion import DiffusionDrafter
from voice_pipelines.adapters.diffusion_repair import DiffusionRepairer
from voice_pipelines.adapters.whisper import Decode
from voice_pipelines.adapters.whisper_window import IN_PAUSES
from voice_pipelines.asr.decoder import BLOCK_SAMPLES, SphinxDecoder
from voice_pipelines.asr.vocabulary import Vocabulary
from voice_pipelines.settings import load
from voiceagent.backends import BackendInfo, PromptTurn, Proposal, TurnSoFar
from voiceagent.listening import REPAIR_WITHIN_S
from voiceagent.repair import RepairSettings, repair
from voiceagent.transcript import WordErrors, word_errors

ROOT = Path(__file__).parent.parent
BELOW = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
FACTORS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)
DISTANCES = (0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5)
FARTHEST = max(DISTANCES)
_ONE_SPELLING = {"an": "a", "ok": "okay"}


@dataclass(frozen=True, slots=True)
class Case:
    """A transcript, what was said, and all that was proposed."""

    path: str
    kind: str
    speaker: str
    said: tuple[str, ...]
    heard: str
    proposals: tuple[Proposal, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a setting came to on some cases."""

    cases: int
    before: WordErrors
    after: WordErrors
    replaced: int
    better: int
    """Transcripts with fewer errors than before."""
    worse: int

    def as_json(self) -> dict[str, object]:
        return {
            "transcripts": self.cases,
            "words": self.before.reference_words,
            "errors_before": self.before.total,
            "errors_after": self.after.total,
            "word_error_rate_before": round(self.before.rate, 4),
            "word_error_rate_after": round(self.after.rate, 4),
            "replaced": self.replaced,
            "transcripts_better": self.better,
            "transcripts_worse": self.worse,
        }


def measure(cases: Iterable[Case], settings: RepairSettings) -> Outcome:
    """Replay the rule."""
    before = after = WordErrors()
    count = replaced = better = worse = 0
    for case in cases:
        found = repair(case.heard, case.proposals, settings)
        said = plain(" ".join(case.said))
        one, other = word_errors(said, plain(case.heard)), word_errors(said, plain(found.meant))
        before, after = before + one, after + other
        count, replaced = count + 1, replaced + len(found.replaced)
        better, worse = better + (other.total < one.total), worse + (other.total > one.total)
    return Outcome(count, before, after, replaced, better, worse)


def plain(text: str) -> list[str]:
    """Words as they are compared: without case and marks, figures spoken."""
    return [_ONE_SPELLING.get(word, word) for word in spoken_form(text).split()]


def choose(cases: Sequence[Case]) -> RepairSettings:
    """The settings with the fewest errors; of equal ones those that replace least, then the strictest."""
    grid = [RepairSettings("use", *each) for each in itertools.product(BELOW, FACTORS, DISTANCES)]

    def cost(settings: RepairSettings) -> tuple[float, ...]:
        found = measure(cases, settings)
        return (found.after.total, found.replaced, settings.below, -settings.factor, settings.distance)

    return min(grid, key=cost)


def halves(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Choose on the first, report on the second; no speaker is in both."""
    parts: tuple[list[Case], list[Case]] = ([], [])
    for case in cases:
        parts[hashlib.sha256(case.speaker.encode()).digest()[0] % 2].append(case)
    return parts


def hearings(options: argparse.Namespace, vocabulary: Vocabulary) -> Iterator[tuple[str, Callable[[Clip], str]]]:
    """Who hears the recordings, by name."""
    if options.asr is not None:
        for name, words in (("Whisper, with hot words", vocabulary.hot_words()), ("Whisper, without", ())):
            yield name, functools.partial(hear_whisper, load_whisper(options.asr, words))
        return
    for name, known in (("with the vocabulary", vocabulary), ("everyday language only", None)):
        yield name, functools.partial(hear, decoder_for(known, options.cache)[0])


def hear_whisper(decode: Decode, clip: Clip) -> str:
    ear = WhisperEar(decode, options=IN_PAUSES)
    ear.feed(clip.samples, clip.audio_s)
    return ear.finish(clip.audio_s).text


def hear(decoder: SphinxDecoder, clip: Clip) -> str:
    pcm = np.rint(np.clip(clip.samples, -1, 1) * 32_767).astype("<i2")
    decoder.start()
    for start in range(0, pcm.size, BLOCK_SAMPLES):
        decoder.feed(pcm[start : start + BLOCK_SAMPLES].tobytes())
    return decoder.finish().text


class Asker:
    """The repairer in the situation that a first caller's turn is in; keeps the processor times of one as it is shipped."""

    def __init__(self, model: Path | None, words: Iterable[str], before: tuple[PromptTurn, ...]) -> None:
        checkpoint = loader.load(model, packed=True, compiled=True)
        digest = hashlib.sha256((checkpoint.path / "model.safetensors").read_bytes()).hexdigest()
        self.model = {"weights_sha256": digest, "layers": checkpoint.compiled or "as PyTorch runs them"}
        self._drafter = DiffusionDrafter(checkpoint, BackendInfo("llm", "the model", "benchmark"))
        words, shipped = list(words), RepairSettings()
        self._repairer = DiffusionRepairer(self._drafter, words, below=1.01, farthest=FARTHEST)
        self._shipped = DiffusionRepairer(self._drafter, words, below=shipped.below, farthest=shipped.distance)
        self._before = before
        self.seconds: list[float] = []

    async def __aenter__(self) -> Asker:
        tokens = self._drafter.prompts.warm_part("bench", self._before)
        await self._drafter.ask_engine(lambda engine: engine.warm("bench", tokens))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._drafter.aclose()

    async def proposals(self, heard: str) -> tuple[Proposal, ...]:
        turn = TurnSoFar("bench", (*self._before, PromptTurn("user", heard)), (), np.zeros(0, np.float32))
        began = time.process_time()
        await self._shipped.proposals(turn, heard)
        self.seconds.append(time.process_time() - began)
        return tuple(await self._repairer.proposals(turn, heard))


def timing(seconds: Sequence[float]) -> dict[str, float]:
    """Of answers: how long they took, in ms, and the share that the agent would have waited for."""
    shares = {f"p{round(100 * share)}": round(1000 * percentile(seconds, share), 1) for share in (0.5, 0.95, 1.0)}
    return {**shares, "in_time": round(sum(each <= REPAIR_WITHIN_S for each in seconds) / len(seconds), 4)}


def report(name: str, cases: Sequence[Case], shipped: RepairSettings) -> dict[str, Any]:
    """Settings chosen on one half and the shipped ones, told of the other half."""
    tuned, told = halves(cases)
    chosen = choose(tuned)
    kinds = sorted({case.kind for case in cases})
    examples = [(case, repair(case.heard, case.proposals, chosen)) for case in told]
    return {
        "name": name,
        "chosen": asdict(chosen),
        "chosen_on": measure(tuned, chosen).as_json(),
        "told_of": measure(told, chosen).as_json(),
        "told_of_by_kind": {kind: measure([c for c in told if c.kind == kind], chosen).as_json() for kind in kinds},
        "shipped": asdict(shipped),
        "shipped_told_of": measure(told, shipped).as_json(),
        "shipped_by_kind": {kind: measure([c for c in told if c.kind == kind], shipped).as_json() for kind in kinds},
        "replacements": [
            {"said": " ".join(case.said), "heard": found.heard, "meant": found.meant, "path": case.path}
            for case, found in examples
            if found.replaced
        ],
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    lines = ["| | transcripts | words | errors before | after | replaced | better | worse |", "|" + " --- |" * 8]
    for result in results:
        rows = [("chosen on", result["chosen_on"]), ("told of", result["told_of"])]
        rows += [(f"told of: {kind}", row) for kind, row in result["told_of_by_kind"].items()]
        rows.append(("shipped settings, told of", result["shipped_told_of"]))
        rows += [(f"shipped settings: {kind}", row) for kind, row in result["shipped_by_kind"].items()]
        for what, row in rows:
            rates = [
                f"{row[f'errors_{when}']} ({100 * row[f'word_error_rate_{when}']:.1f} %)"
                for when in ("before", "after")
            ]
            shown = (
                row["transcripts"],
                row["words"],
                *rates,
                row["replaced"],
                row["transcripts_better"],
                row["transcripts_worse"],
            )
            lines.append(f"| {result['name']}: {what} | " + " | ".join(map(str, shown)) + " |")
    return "\n".join(lines)


async def run(
    options: argparse.Namespace, vocabulary: Vocabulary, heard: dict[str, list[tuple[Clip, str, str]]]
) -> dict[str, Any]:
    config = load(assignments=[f"preset={options.preset}"])
    before = (PromptTurn("system", config.agent.instructions), PromptTurn("agent", config.agent.greeting))
    shipped = RepairSettings("use")
    results = []
    async with Asker(options.model, vocabulary.grammar.words(), before) as asker:
        for name, transcripts in heard.items():
            cases = [
                Case(clip.path, clip.kind, speaker, tuple(clip.words), text, await asker.proposals(text))
                for clip, speaker, text in transcripts
                if text and clip.words
            ]
            results.append(report(name, cases, shipped))
            print(table(results[-1:]), flush=True)
        print(times := timing(asker.seconds))
        return {**asker.model, "processor_ms": times, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "tests" / "data", help="folder with manifest.jsonl")
    parser.add_argument("--kinds", nargs="+", default=["order", "telephone", "noisy"], help="kinds of recordings")
    parser.add_argument("--every", type=int, default=1, help="take every n-th recording of each kind, for a quick look")
    parser.add_argument(
        "--preset", type=Path, default=ROOT / "pipelines/voice_pipelines/presets/cafe.toml", help="agent"
    )
    parser.add_argument("--model", type=Path, help="checkpoint of the built-in family; default: the built-in weights")
    parser.add_argument("--asr", type=Path, help="folder of a converted Whisper, to hear with instead of PocketSphinx")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "asr", help="folder for language models")
    parser.add_argument("--save", type=Path, help="file for the results, such as benchmarks/results/repair.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = about(torch.device("cpu"))
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    with options.preset.open("rb") as file:
        vocabulary = Vocabulary.from_table(tomllib.load(file)["vocabulary"])
    manifest = (options.data / "manifest.jsonl").read_text("utf-8").splitlines()
    speakers = {entry["path"]: str(entry.get("speaker", entry["path"])) for entry in map(json.loads, manifest)}
    recordings = list(clips(options.data, options.kinds, options.every))
    print(dict(Counter(clip.kind for clip in recordings)))
    heard = {
        name: [(clip, speakers[clip.path], listen(clip)) for clip in recordings]
        for name, listen in hearings(options, vocabulary)
    }
    found = asyncio.run(run(options, vocabulary, heard))
    if options.save is not None:
        text = json.dumps({**machine, "data": options.data.name, "kinds": options.kinds, **found}, indent=1)
        options.save.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""Word error rate and speed of a recogniser on recordings, with and without an agent's vocabulary: PocketSphinx, or a converted Whisper.

    python benchmarks/asr.py --data tests/data
    python benchmarks/asr.py --data SPEECH --kinds order telephone noisy --save benchmarks/results/asr-speech-orders.json
    python benchmarks/asr.py --data SPEECH --kinds order --compare topn=2 topn=2,maxhmmpf=30000   # beside the shipped settings
    python benchmarks/asr.py --data SPEECH --asr FOLDER          # a converted Whisper; --beam 5 for a wider search
    python benchmarks/asr.py --data SPEECH --asr FOLDER --pair   # PocketSphinx while they speak, that Whisper for the text

The folder holds `manifest.jsonl` (`path`, `kind`, `text`, perhaps `speech_start_s` and `speech_end_s`, one recording a line) and 16 kHz
recordings. Each is cut to what the voice detector would pass on, 0.3 s before the speech to 0.5 s after it (`--silence`), and decoded in blocks of
100 ms on one thread. Speed is the process's own CPU time, so that other work on the machine does not count: real-time factor is CPU
time over audio time, "end to final" the CPU time between the last block and the result. Whisper decodes the final in the pause, so of that time
what has gone by until the last block does not count; figures in its text are compared as words. Of a pair each has a processor, and the
final is what the server takes (`voice_pipelines.adapters.paired`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import soundfile
from whisper_ear import WhisperEar, load

from dllm.spoken import spoken_form
from voice_pipelines.adapters.paired import PairOptions, settle
from voice_pipelines.adapters.whisper import Decode
from voice_pipelines.adapters.whisper_window import IN_PAUSES, WindowOptions
from voice_pipelines.asr.decoder import BLOCK_SAMPLES, DecoderOptions, SphinxDecoder
from voice_pipelines.asr.model import LanguageOptions, ModelFiles, build, cached_files
from voice_pipelines.asr.vocabulary import Vocabulary
from voiceagent.backends import INPUT_RATE_HZ, Samples, Transcript
from voiceagent.transcript import WordErrors, normalise, word_errors

PRE_ROLL_S, SILENCE_S = 0.3, 0.5
WHISPER_BLOCK_SAMPLES = INPUT_RATE_HZ // 50
"""As often is it looked whether a pause is one."""
ROOT = Path(__file__).parent.parent
_ONE_SPELLING = {"an": "a", "ok": "okay"}


@dataclass(frozen=True, slots=True)
class Clip:
    path: str
    kind: str
    words: list[str]
    samples: Samples

    @property
    def audio_s(self) -> float:
        return self.samples.size / INPUT_RATE_HZ


@dataclass(slots=True)
class Tally:
    """What one kind of recording came to."""

    clips: int = 0
    audio_s: float = 0.0
    cpu_s: float = 0.0
    errors: WordErrors = field(default_factory=WordErrors)
    with_text: int = 0
    all_right: int = 0
    finals_s: list[float] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.clips += other.clips
        self.audio_s += other.audio_s
        self.cpu_s += other.cpu_s
        self.errors += other.errors
        self.with_text += other.with_text
        self.all_right += other.all_right
        self.finals_s += other.finals_s


def plain_words(text: str) -> list[str]:
    """Lower case without punctuation; "an" counts as "a", "ok" as "okay"."""
    return [_ONE_SPELLING.get(word, word) for word in normalise(text).split()]


def clips(folder: Path, kinds: list[str] | None, every: int = 1, silence_s: float = SILENCE_S) -> Iterator[Clip]:
    """Recordings of a manifest, cut to their speech and so much behind it. What only the agent plays is left out; whole calls are a kind of their own."""
    seen: Counter[str] = Counter()
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        kind = entry["kind"]
        if kind == "bargein" and "far" not in entry:
            continue
        if kind == "telephone" and "turns" in entry:
            kind = "telephone call"
        if kinds and kind not in kinds:
            continue
        seen[kind] += 1
        if (seen[kind] - 1) % every:
            continue
        samples, rate = soundfile.read(folder / entry["path"], dtype="float32")
        if rate != INPUT_RATE_HZ:
            raise ValueError(f"{entry['path']}: {rate} Hz, expected {INPUT_RATE_HZ}")
        if "speech_end_s" in entry:
            start = max(entry["speech_start_s"] - PRE_ROLL_S, 0.0)
            samples = samples[int(start * rate) : int((entry["speech_end_s"] + silence_s) * rate)]
        yield Clip(entry["path"], kind, plain_words(entry["text"] or ""), samples)


@dataclass(frozen=True, slots=True)
class Listened:
    """What was heard in one recording. Seconds of processor time: of all of it, and between its end and the result."""

    text: str
    cpu_s: float
    final_s: float
    confidence: float | None = None
    both: tuple[str, str] | None = None
    """Of a pair, what the quick one and the careful one heard."""


Listen: TypeAlias = Callable[[Samples], Listened]


def sphinx(decoder: SphinxDecoder) -> Listen:
    """The fallback, block by block."""

    def listen(samples: Samples) -> Listened:
        pcm = np.rint(np.clip(samples, -1, 1) * 32_767).astype("<i2")
        began = time.process_time()
        decoder.start()
        for start in range(0, pcm.size, BLOCK_SAMPLES):
            decoder.feed(pcm[start : start + BLOCK_SAMPLES].tobytes())
        ended = time.process_time()
        heard = decoder.finish()
        done = time.process_time()
        return Listened(heard.text, done - began, done - ended, heard.confidence)

    return listen


def whisper(decode: Decode, options: WindowOptions | None = None) -> Listen:
    """A converted Whisper, as the server asks it: partials while they speak, the final in the pause behind it."""

    def listen(samples: Samples) -> Listened:
        ear = WhisperEar(decode, options=options)
        for start in range(0, samples.size, WHISPER_BLOCK_SAMPLES):
            end = min(start + WHISPER_BLOCK_SAMPLES, samples.size)
            ear.feed(samples[start:end], end / INPUT_RATE_HZ)
        ended = samples.size / INPUT_RATE_HZ
        told = ear.finish(ended)
        return Listened(spoken_form(told.text), ear.cpu_s, told.at_s - ended)

    return listen


def pair(quick: Listen, careful: Listen) -> Listen:
    """Both, and the final as the server chooses it."""

    def listen(samples: Samples) -> Listened:
        first, second = quick(samples), careful(samples)
        answer = Transcript(first.text, confidence=first.confidence)
        late_s = first.final_s + PairOptions().patience_for(answer)
        is_late = second.final_s > late_s
        final = settle(answer, None if is_late else Transcript(second.text), is_late=is_late)
        used = (final.text, late_s) if is_late and isinstance(final, Transcript) else (second.text, second.final_s)
        return Listened(used[0], first.cpu_s + second.cpu_s, used[1], both=(first.text, second.text))

    return listen


def measure(listen: Listen, recordings: list[Clip], log: list[dict[str, object]]) -> dict[str, Tally]:
    """Decode everything; appends what was said and heard to `log`."""
    tallies: dict[str, Tally] = {}
    for clip in recordings:
        tally = tallies.setdefault(clip.kind, Tally())
        listened = listen(clip.samples)
        heard = plain_words(listened.text)
        errors = word_errors(clip.words, heard)
        tally.clips += 1
        tally.audio_s += clip.audio_s
        tally.cpu_s += listened.cpu_s
        tally.errors += errors
        tally.with_text += bool(heard)
        tally.all_right += errors.total == 0
        tally.finals_s.append(listened.final_s)
        entry = {"path": clip.path, "said": " ".join(clip.words), "heard": " ".join(heard), "errors": errors.total}
        if listened.both is not None:
            entry["quick"], entry["careful"] = (" ".join(plain_words(text)) for text in listened.both)
        log.append(entry)
    return tallies


def compare(
    files: ModelFiles, settings: dict[str, DecoderOptions], recordings: list[Clip]
) -> dict[str, dict[str, Tally]]:
    """Every recording by every decoder in turn, so that whatever else the machine does meets all alike."""
    decoders = {name: sphinx(SphinxDecoder(files, options)) for name, options in settings.items()}
    found: dict[str, dict[str, Tally]] = {name: {} for name in settings}
    for number, clip in enumerate(recordings):
        # Now the one first, now the other: the first has the recording's audio to fetch.
        for name in sorted(settings, reverse=bool(number % 2)):
            for kind, tally in measure(decoders[name], [clip], []).items():
                found[name].setdefault(kind, Tally()).add(tally)
    return found


def search(text: str) -> DecoderOptions:
    """Settings such as `topn=2,beam=1e-48` in place of the shipped ones; nothing is those.

    Raises:
        ValueError: If one is not a number, or there is none of that name.
    """
    changes: dict[str, float] = {}
    shipped = DecoderOptions()
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        kind = type(getattr(shipped, name, None))
        if kind not in (int, float):
            raise ValueError(f"{pair!r}: expected a number of the search, such as topn=2")
        changes[name] = kind(value)
    return replace(shipped, **changes)  # type: ignore[arg-type]


def row(kind: str, tally: Tally) -> dict[str, object]:
    finals = sorted(tally.finals_s)
    return {
        "kind": kind,
        "clips": tally.clips,
        "audio_s": round(tally.audio_s, 1),
        "words": tally.errors.reference_words,
        "word_error_rate": round(tally.errors.rate, 4) if tally.errors.reference_words else None,
        **{name: value for name, value in asdict(tally.errors).items() if name != "reference_words"},
        "clips_without_error": tally.all_right,
        "clips_with_text": tally.with_text,
        "real_time_factor": round(tally.cpu_s / tally.audio_s, 3),
        "end_to_final_p50_ms": round(1000 * finals[len(finals) // 2], 1),
        "end_to_final_p95_ms": round(1000 * finals[min(int(len(finals) * 0.95), len(finals) - 1)], 1),
    }


def table(rows: list[dict[str, object]]) -> str:
    lines = [
        "| kind | clips | words | word error rate | clips without error | clips with text | real-time factor | end to final p50 / p95 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in rows:
        rate = "–" if each["word_error_rate"] is None else f"{100 * float(str(each['word_error_rate'])):.1f} %"
        lines.append(
            f"| `{each['kind']}` | {each['clips']} | {each['words']} | {rate} | {each['clips_without_error']} | {each['clips_with_text']} "
            f"| {each['real_time_factor']} | {each['end_to_final_p50_ms']} / {each['end_to_final_p95_ms']} ms |"
        )
    return "\n".join(lines)


def decoder_for(vocabulary: Vocabulary | None, cache: Path) -> tuple[SphinxDecoder, float]:
    """A decoder with the shipped settings, and the same of its files."""
    files, built_s = files_for(vocabulary, cache)
    return SphinxDecoder(files, DecoderOptions()), built_s


def files_for(vocabulary: Vocabulary | None, cache: Path) -> tuple[ModelFiles, float]:
    """A decoder's files, and the CPU seconds that building its language model took (0 when it was in the cache)."""
    options = LanguageOptions()
    files, is_there = cached_files(cache, vocabulary, options)
    began = time.process_time()
    if not is_there:
        build(vocabulary, options, files)
    built_s = time.process_time() - began
    return files, built_s


def listener(options: argparse.Namespace, vocabulary: Vocabulary | None) -> tuple[Listen, float]:
    """The recogniser that was asked for, and the CPU seconds that building its language model took."""
    if options.asr is None:
        decoder, built_s = decoder_for(vocabulary, options.cache)
        return sphinx(decoder), built_s
    decode = load(options.asr, () if vocabulary is None else vocabulary.hot_words(), options.beam)
    if not options.pair:
        return whisper(decode), 0.0
    decoder, built_s = decoder_for(vocabulary, options.cache)
    return pair(sphinx(decoder), whisper(decode, IN_PAUSES)), built_s


def about() -> dict[str, object]:
    """The machine and the commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "commit": commit.stdout.strip() or "unknown",
        "load_average": round(os.getloadavg()[0], 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "tests" / "data", help="folder with manifest.jsonl")
    parser.add_argument(
        "--preset", type=Path, default=ROOT / "pipelines/voice_pipelines/presets/cafe.toml", help="agent"
    )
    parser.add_argument("--kinds", nargs="+", help="only these kinds of recordings")
    parser.add_argument(
        "--every", type=int, default=1, help="take every n-th recording of each kind only, for a quick look"
    )
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "asr", help="folder for built language models")
    parser.add_argument(
        "--compare",
        nargs="*",
        metavar="NAME=VALUE[,…]",
        help="only these settings of the search beside the shipped ones, with the vocabulary; only printed",
    )
    parser.add_argument(
        "--asr", type=Path, help="folder of a converted Whisper, to listen with instead of PocketSphinx"
    )
    parser.add_argument("--pair", action="store_true", help="PocketSphinx beside that Whisper, as the server has them")
    parser.add_argument(
        "--silence", type=float, default=SILENCE_S, help="seconds behind the speech until the turn is over"
    )
    parser.add_argument("--model", help="what that Whisper is called in the results")
    parser.add_argument("--beam", type=int, default=1, help="hypotheses that it follows at a time")
    parser.add_argument("--errors", action="store_true", help="print what was misheard")
    parser.add_argument("--save", type=Path, help="write the results here, as JSON and beside it as Markdown")
    options = parser.parse_args(argv)
    if options.pair and options.asr is None:
        parser.error("--pair needs --asr FOLDER")
    if options.save is not None and options.compare is not None:
        parser.error("--compare is only printed, and --save writes")
    with options.preset.open("rb") as file:
        vocabulary = Vocabulary.from_table(tomllib.load(file)["vocabulary"])
    recordings = list(clips(options.data, options.kinds, options.every, options.silence))
    if options.compare is not None:
        settings = {"shipped": DecoderOptions(), **{text: search(text) for text in options.compare}}
        for name, kinds in compare(files_for(vocabulary, options.cache)[0], settings, recordings).items():
            print(f"\n## {name}\n\n{table([row(kind, tally) for kind, tally in sorted(kinds.items())])}", flush=True)
        return
    result: dict[str, object] = {
        **about(),
        "recordings": options.data.name,
        "every": options.every,
        "silence_s": options.silence,
        "runs": {},
    }
    if options.asr is not None:
        result["whisper"] = {"model": options.model or options.asr.name, "beam_size": options.beam, "threads": 1}
    text = [
        f"# Recognition of {options.data.name}\n\n{result['machine']}; commit {result['commit']}; load average {result['load_average']}"
    ]
    runs = [("with the vocabulary", vocabulary), ("everyday language only", None)]
    for name, words in runs[:1] if options.pair else runs:  # Without a vocabulary there is no pair.
        listen, built_s = listener(options, words)
        log: list[dict[str, object]] = []
        tallies = measure(listen, recordings, log)
        rows = [row(kind, tally) for kind, tally in sorted(tallies.items())]
        result["runs"][name] = {"language_model_built_cpu_s": round(built_s, 1), "kinds": rows, "clips": log}  # type: ignore[index]
        text += [f"\n## {name}\n", table(rows)]
        print("\n".join(text[-2:]), flush=True)
        if options.errors:
            misheard = [
                f"{each['path']}\n  said  {each['said']}\n  heard {each['heard']}" for each in log if each["errors"]
            ]
            print("\n".join(misheard), flush=True)
            text += misheard
    if options.save is not None:
        options.save.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        options.save.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.nice(10)
    main()

"""Sets the judge of how a voice sounds at the end of a turn (`voiceagent/endpoint_sound.py`), and says how it does on speakers that it was not set on.

    python benchmarks/turn_sound.py --data SPEECH --weights voiceagent/endpoint_sound_weights.py --save benchmarks/results/turn-sound.json

Recordings go through the voice detector as calls do, and what is judged is the voice before each pause: the true ends; the pauses that speakers made
themselves; and, between any two words, pauses put in as `pauses.py` puts them. So that nothing is learned of the cutting, each recording is also cut at its true end,
in the same way. Folds share no speaker; the weights that are written are set on all callers.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pauses
from logistic import Floats, logistic
from pauses import Splicer, entries

from dllm.machine import commit
from voice_pipelines.adapters.silero import SileroDetector
from voiceagent import endpoint_sound, vad
from voiceagent.backends import INPUT_RATE_HZ, Samples
from voiceagent.endpoint_sound import CLIP, LOOK_BACK_S, NAMES, NOTHING_S, heard_s, probability, table_of, traits
from voiceagent.vad import Paused, Resumed, VoiceActivity, Windower

ROOT = Path(__file__).parent.parent
Traits: TypeAlias = dict[str, tuple[float, float, float]]
Ear: TypeAlias = Callable[[Samples], float | None]
Nature: TypeAlias = Literal["end", "end, cut", "own pause", "put in"]
CALLERS = ("order", "command", "telephone", "noisy")
"""It is set on what people said to an agent."""
READERS = ("read", "long")
"""Only reported on: whoever reads aloud pauses within a sentence as at its end. Numbers are left out: their digits were spoken one by one, so each sounds like an end."""
PLACES = 12
"""Between words of a recording, at most."""
OWN_PAUSE_S = 0.15
"""Shorter ones are not judged: no turn ends as soon."""
END_NEAR_S, CUT_NEAR_S = 0.4, 0.3
"""How far the detector's end of voice may be from the recording's, and from a cut."""
FORMAT = 1
"""Counts up when examples of before cannot be used any more, beside changes of what `seen` reads."""
FOLDS, SHUFFLES = 10, 5
KEEP = 30.0
"""Penalty on the square of a weight, as many examples as would outweigh it."""
ENDS_PER_PAUSE = 5 / 3
"""How many times as frequent ends are taken to be: every turn has one, and half of them a pause. A regression of words and sound on callers' ends and pauses asks for 4 / 3; with 5 / 3 callers wait
no longer at the default cost than they did without the sound, and fewer are cut off."""
OWN_WEIGHT = 4.0
"""Of a speaker's own pause against one put in, of which there are many times as many."""


@dataclass(frozen=True, slots=True)
class Example:
    """The voice before a pause."""

    kind: str
    speaker: str
    nature: Nature
    heard_s: float
    measured: tuple[float, ...]
    """[T]"""

    @property
    def is_end(self) -> bool:
        return self.nature.startswith("end")


# --- what is judged ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a voice paused, in samples."""

    start: int
    voice_end: int
    resumed: int | None

    def heard(self, samples: Samples) -> Samples:
        """What the judge is given, as `voiceagent.listener` gives it."""
        return samples[max(self.start, self.voice_end - round(LOOK_BACK_S * INPUT_RATE_HZ)) : self.voice_end]


async def stops(samples: Samples, detector: SileroDetector) -> list[Stop]:
    stream, activity, found = detector.open(), VoiceActivity(), list[Stop]()
    for window in Windower().push(samples):
        for change in activity.update(await stream.probability(window)):
            match change:
                case Paused():
                    utterance = activity.utterance
                    assert utterance is not None
                    found.append(Stop(utterance.start_sample, utterance.voice_end_sample, None))
                case Resumed(at_sample=at):
                    found[-1] = Stop(found[-1].start, found[-1].voice_end, at)
    return found


def seen(folder: Path) -> str:
    """A digest of whatever examples of these recordings depend on; not of the weights, which are set on them."""
    read = [folder / "manifest.jsonl", *map(Path, (pauses.__file__, endpoint_sound.__file__, vad.__file__))]
    constants = (FORMAT, CALLERS, READERS, PLACES, OWN_PAUSE_S, END_NEAR_S, CUT_NEAR_S, NAMES)
    return hashlib.sha256(b"".join(path.read_bytes() for path in read) + repr(constants).encode()).hexdigest()[:16]


async def examples(folder: Path, cache: Path | None = None) -> list[Example]:
    """Of all recordings; kept in a file of `cache`, since the voice detector takes minutes."""
    path = None if cache is None else cache / f"turn-sound-{seen(folder)}.json"
    if path is not None and path.is_file():
        known = json.loads(path.read_text("utf-8"))
        return [Example(**{**each, "measured": tuple(each["measured"])}) for each in known]
    detector, splicer = SileroDetector(), Splicer(folder, 0)
    try:
        found = [
            each for entry in entries(folder, (*CALLERS, *READERS)) for each in [*await _of(entry, splicer, detector)]
        ]
    finally:
        await detector.aclose()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(each) for each in found]), "utf-8")
    return found


async def _of(entry: dict[str, Any], splicer: Splicer, detector: SileroDetector) -> list[Example]:
    found: list[tuple[Nature, Samples]] = []
    whole = splicer.sound(entry, with_pause=False)
    assert whole is not None, "only a pause may have no place"
    end = round(whole.speech_end_s * INPUT_RATE_HZ)
    for stop in await stops(whole.samples, detector):
        if abs(stop.voice_end - end) < END_NEAR_S * INPUT_RATE_HZ:
            found.append(("end", stop.heard(whole.samples)))
        elif stop.resumed is not None and end > stop.resumed >= stop.voice_end + OWN_PAUSE_S * INPUT_RATE_HZ:
            found.append(("own pause", stop.heard(whole.samples)))
    for cut in splicer.cuts(entry, PLACES):
        near = [
            each
            for each in await stops(cut.samples, detector)
            if abs(each.voice_end - cut.at) < CUT_NEAR_S * INPUT_RATE_HZ
        ]
        if near:
            found.append(("end, cut" if cut.is_end else "put in", near[-1].heard(cut.samples)))
    made = [(nature, heard_s(voice), traits(voice)) for nature, voice in found]
    return [
        Example(entry["kind"], str(entry["speaker"]), nature, duration_s, tuple(measured.tolist()))
        for nature, duration_s, measured in made
        if measured is not None and duration_s > NOTHING_S
    ]


# --- setting ----------------------------------------------------------------------------------------------------------


def fitted(known: Sequence[Example], keep: float = KEEP) -> Traits:
    """Mean, standard deviation and weight of each trait, of callers."""
    known = [each for each in known if each.kind in CALLERS]
    measured = np.array([each.measured for each in known])
    is_end = np.array([each.is_end for each in known])
    means, spreads = measured.mean(axis=0), measured.std(axis=0) + 1e-6
    weigh = np.array([OWN_WEIGHT if each.nature == "own pause" else 1.0 for each in known])
    for side, times in ((is_end, ENDS_PER_PAUSE), (~is_end, 1.0)):
        weigh[side] *= times * len(known) / (1 + ENDS_PER_PAUSE) / weigh[side].sum()
    found = logistic(np.clip((measured - means) / spreads, -CLIP, CLIP), is_end, weigh, keep)
    rows = zip(NAMES, means, spreads, found, strict=False)
    rounded = {name: (round(float(m), 4), round(float(s), 4), round(float(w), 4)) for name, m, s, w in rows}
    return {**rounded, "bias": (0.0, 1.0, round(float(found[-1]), 4))}


class Ears:
    """Judges that never heard whom they judge: one for each fold of callers, and one set on all of them for whoever is in none."""

    def __init__(self, known: Sequence[Example], seed: int = 0) -> None:
        speakers = sorted({each.speaker for each in known if each.kind in CALLERS})
        random.Random(seed).shuffle(speakers)
        self._fold = {speaker: at % FOLDS for at, speaker in enumerate(speakers)}
        self._tables = [
            table_of(fitted([each for each in known if self._fold.get(each.speaker) != fold])) for fold in range(FOLDS)
        ]
        self._all = table_of(fitted(known))

    def _table(self, speaker: str) -> Floats:
        return self._tables[self._fold[speaker]] if speaker in self._fold else self._all

    def of(self, speaker: str) -> Ear:
        table = self._table(speaker)
        return lambda voice: probability(traits(voice), table, heard_s(voice))

    def odds(self, example: Example) -> float:
        """Log-odds that it is an end, by the judge that has not heard its speaker."""
        said = probability(np.array(example.measured), self._table(example.speaker), example.heard_s)
        assert said is not None, "only what can be judged is an example"
        return math.log(said / (1 - said))


def module(table: Traits) -> str:
    lines = "".join(f'    "{name}": {row},\n' for name, row in table.items())
    return (
        '"""Mean, standard deviation and weight of what `voiceagent.endpoint_sound` weighs; written by `benchmarks/turn_sound.py --weights`."""\n\n'
        "from __future__ import annotations\n\n"
        f"TRAITS: dict[str, tuple[float, float, float]] = {{\n{lines}}}\n"
    )


# --- how it does ------------------------------------------------------------------------------------------------------


def area(odds: Sequence[float], is_end: Sequence[bool]) -> float:
    """Under the curve of true against false ends: how often an end has the higher odds of the two."""
    ends = np.array([each for each, end in zip(odds, is_end, strict=True) if end])
    others = np.array([each for each, end in zip(odds, is_end, strict=True) if not end])
    above = (ends[:, None] > others).mean() + 0.5 * (ends[:, None] == others).mean()
    return float(above)


def report(known: Sequence[Example]) -> list[dict[str, object]]:
    """Each kind of end against each kind of pause, of callers and of readers, by judges that had not heard the speaker; the mean of `SHUFFLES` of the folds."""
    judges = [Ears(known, seed) for seed in range(SHUFFLES)]
    odds = [float(np.mean([judge.odds(each) for judge in judges])) for each in known]
    rows: list[dict[str, object]] = []
    for who, kinds in (("callers", CALLERS), ("readers", READERS)):
        for end in ("end", "end, cut"):
            for pause in ("own pause", "put in"):
                some = [at for at, each in enumerate(known) if each.kind in kinds and each.nature in (end, pause)]
                is_end = [known[at].is_end for at in some]
                if 0 < sum(is_end) < len(some):
                    counts = {"ends": sum(is_end), "pauses": len(some) - sum(is_end)}
                    rows.append(
                        {
                            "who": who,
                            "end": end,
                            "pause": pause,
                            **counts,
                            "area": round(area([odds[at] for at in some], is_end), 3),
                            "odds_ends": round(float(np.mean([odds[at] for at in some if known[at].is_end])), 2),
                            "odds_pauses": round(float(np.mean([odds[at] for at in some if not known[at].is_end])), 2),
                        }
                    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of recordings with manifest.jsonl")
    parser.add_argument("--weights", type=Path, help="set the judge on all speakers, and write its weights here")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "endpoint", help="folder for what was measured")
    parser.add_argument("--save", type=Path, help="write the report here, as JSON")
    options = parser.parse_args()
    known = asyncio.run(examples(options.data, options.cache))
    rows = report(known)
    for row in rows:
        print(
            f"{row['who']:8} {row['end']:9} {row['ends']:>4}  {row['pause']:10} {row['pauses']:>5}  area {row['area']:.3f}  "
            f"log-odds {row['odds_ends']:+.2f} and {row['odds_pauses']:+.2f}"
        )
    if options.weights is not None:
        options.weights.write_text(module(fitted(known)), "utf-8")
    if options.save is not None:
        options.save.write_text(json.dumps({"commit": commit(), "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

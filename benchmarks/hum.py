"""Sets the judge of hums (`voiceagent/hum.py`) and says how it does on voices and people that it was not set on.

    python benchmarks/hum.py --data SPEECH --weights voiceagent/hum_weights.py
    python benchmarks/hum.py --data SPEECH --save benchmarks/results/hum.json

`hum_sounds.py` makes the hums and reads the people, and says who is set on and who is only reported on. Each sound is judged as it would be while it goes
on, and when it has ended. Reported are hums and words taken for hums at the likenesses that `voiceagent.barge_in` asks for, and how many hums are found
where 0, 1 and 2 % of people's words are taken for one. Made hums stand for nothing but themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hum_sounds import (
    CHOSEN_VOICES,
    HUMS,
    REPORTED_HUMS,
    REPORTED_WORDS,
    VOICES,
    WORDS,
    Floats,
    Sound,
    beginning,
    hummed,
    recordings,
    resonances,
    spoken,
    stretches,
    uttered,
)
from interjections import VOICES as REPORTED_VOICES
from perceptron import Perceptron, perceptron

from dllm.machine import commit
from voice_pipelines.adapters.silero import SileroDetector
from voiceagent.backends import INPUT_RATE_HZ, Samples
from voiceagent.barge_in import BargeInSettings
from voiceagent.hum import CLIP, LEAD_S, LEAST_S, likeness, traits

ROOT = Path(__file__).parent.parent
WINDOW = 512
SO_FAR = (8, 11, 14, 18, 22)
"""Voiced windows after which a voice that goes on is judged."""
LONGEST = 26
ROUNDS = 40
"""How often the net sees everything it is set on."""
FAVOUR = 0.5
"""Log-odds for a hum, added to what the net says: chosen so that the voices and people left out while it was chosen lose no more words than by the judge before."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One moment of a sound: what had been heard of it then."""

    sound: Sound
    is_over: bool
    heard: Samples


async def moments(sound: Sound, detector: SileroDetector, generator: np.random.Generator) -> list[Judged]:
    """As the judge would hear it, cut by the voice detector."""
    padded = np.concatenate([np.zeros(4096, np.float32), sound.samples, np.zeros(4096, np.float32)])
    padded += (10 ** (-66 / 20) * generator.standard_normal(padded.size)).astype(np.float32)
    stream = detector.open()
    voiced: list[int] = []
    is_over = False
    for number in range(padded.size // WINDOW):
        probability = await stream.probability(padded[number * WINDOW : (number + 1) * WINDOW])
        if probability >= (0.35 if voiced else 0.5):
            voiced.append(number)
        elif len(voiced) == 1 and number - voiced[0] > 2:
            voiced = []
        elif len(voiced) > 1 and number - voiced[-1] >= 3:
            is_over = True
            break
        if len(voiced) > LONGEST:
            break
    if len(voiced) < 2:
        return []
    first, last = voiced[0], voiced[-1]
    begin = first * WINDOW - round(LEAD_S * INPUT_RATE_HZ)
    found = [
        Judged(sound, False, padded[begin : (voiced[so_far - 1] + 1) * WINDOW])
        for so_far in SO_FAR
        if len(voiced) >= so_far
    ]
    if is_over and len(voiced) >= 4:
        found.append(Judged(sound, True, padded[begin : (last + 4) * WINDOW]))
    return found


# --- setting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judge:
    """What `voiceagent.hum_weights` holds."""

    means: Floats
    spreads: Floats
    net: Perceptron


def fitted(judged: list[Judged], rounds: int = ROUNDS) -> Judge:
    """Both sides count the same; people's words half as much again as made ones, and stretches of what they say less, since some are as good as hums."""
    measured = np.array([traits(each.heard) for each in judged])
    is_hum = np.array([each.sound.is_hum for each in judged])
    means, spreads = measured.mean(axis=0), measured.std(axis=0) + 1e-3
    standard = np.clip((measured - means) / spreads, -CLIP, CLIP)
    weigh = np.array([each.sound.counts for each in judged])
    weigh[is_hum] *= weigh[~is_hum].sum() / weigh[is_hum].sum()
    return Judge(means, spreads, perceptron(standard, is_hum, weigh, rounds=rounds))


def module(judge: Judge) -> str:
    """The source of `voiceagent/hum_weights.py`."""
    net = judge.net
    tables = (
        ("MEANS", judge.means, "[T]"),
        ("SPREADS", judge.spreads, "[T]"),
        ("INTO", net.into, "[T, H] What each trait says to each of the hidden units."),
        ("INTO_BIAS", net.into_bias, "[H]"),
        ("OUT", net.out, "[H]"),
    )
    text = (
        '"""What `voiceagent.hum` weighs, and how; written by `benchmarks/hum.py --weights`."""\n\n'
        "from __future__ import annotations\n\n"
        "import numpy as np\n"
        "from numpy.typing import NDArray\n\n\n"
        "def _table(text: str, *shape: int) -> NDArray[np.float64]:\n"
        "    return np.array(text.split(), np.float64).reshape(shape)\n\n\n"
    )
    for name, values, meaning in tables:
        numbers = "\n".join(textwrap.wrap(" ".join(f"{value:.3f}" for value in values.ravel()), 140))
        shape = "\n".join(f"    {size}," for size in values.shape)
        text += f'{name} = _table(\n    """\n{numbers}\n""",\n{shape}\n)\n"""{meaning}"""\n'
    return text + f"OUT_BIAS = {net.out_bias + FAVOUR:.3f}\n"


# --- reporting --------------------------------------------------------------------------------------------------------


def counted(judged: list[Judged], likenesses: Floats) -> list[dict[str, object]]:
    """How many of each kind are taken for a hum, at the likeness from which words count less than the sound."""
    moments: Counter[tuple[str, bool, bool]] = Counter()
    hums: Counter[tuple[str, bool, bool]] = Counter()
    for each, value in zip(judged, likenesses, strict=True):
        key = (each.sound.kind, each.sound.is_reported, each.is_over)
        moments[key] += 1
        hums[key] += int(value >= BargeInSettings().sure_hum)
    return [
        {"kind": kind, "set_on": not is_reported, "over": is_over, "moments": moments[key], "judged_hums": hums[key]}
        for key in sorted(moments)
        for kind, is_reported, is_over in [key]
    ]


def traded(
    judged: list[Judged], likenesses: Floats, shares: tuple[float, ...] = (0.0, 0.01, 0.02)
) -> list[dict[str, object]]:
    """Of the voices and people reported on: the share of hums found where no more than these shares of people's words are taken for one."""
    kinds = np.array([each.sound.kind for each in judged])
    reported = np.array([each.sound.is_reported for each in judged])
    is_hum = np.array([each.sound.is_hum for each in judged])
    over = np.array([each.is_over for each in judged])
    rows: list[dict[str, object]] = []
    for is_over in (True, False):
        here = reported & (over == is_over)
        people = here & np.array(["recorded" in kind and "stretch" not in kind for kind in kinds])
        cut = here & np.array(["stretch" in kind for kind in kinds])
        for words, those in (("words", people), ("stretches of speech", cut)):
            ranked = np.sort(likenesses[those])[::-1]
            for kind in sorted(set(kinds[here & is_hum])):
                found = likenesses[here & is_hum & (kinds == kind)]
                at = [float((found > ranked[int(share * ranked.size)]).mean()) for share in shares]
                row = {
                    "hums": str(kind),
                    "over": is_over,
                    "against": words,
                    "people": int(ranked.size),
                    "made": int(found.size),
                }
                rows.append({**row, "found_at": dict(zip(map(str, shares), np.round(at, 3).tolist(), strict=True))})
    return rows


async def made_and_recorded(data: Path, generator: np.random.Generator) -> list[Sound]:
    people = list(recordings(data))
    sounds = []
    for voices, hums, words, most, is_reported in (
        (VOICES, HUMS, WORDS, 24, False),
        (CHOSEN_VOICES, HUMS, WORDS, 8, False),
        (REPORTED_VOICES, REPORTED_HUMS, REPORTED_WORDS, 9, True),
    ):
        made = spoken(voices, hums, words, generator, most=most, is_reported=is_reported)
        sounds += [each async for each in made]
    sounds += [*hummed(300, generator), *uttered(350, generator)]
    low = tuple(each for recording in people for each in resonances(recording, 1, generator))
    sounds += hummed(len(low), generator, low)
    vowels = tuple(each for recording in people for each in resonances(recording, 3, generator, 0.0))
    sounds += uttered(len(vowels) - 1, generator, vowels)
    sounds += map(beginning, people)
    for recording in people:
        if recording.kind not in ("digit", "letter"):
            sounds += stretches(recording, 1 if recording.kind == "command" else 3, generator)
    return sounds


async def measure(options: argparse.Namespace) -> None:
    generator = np.random.default_rng(3)
    detector = SileroDetector()
    judged = [
        moment
        for sound in await made_and_recorded(options.data, generator)
        for moment in await moments(sound, detector, generator)
        if moment.heard.size >= LEAST_S * INPUT_RATE_HZ
    ]
    await detector.aclose()
    if options.weights is not None:
        options.weights.write_text(module(fitted([each for each in judged if not each.sound.is_reported])), "utf-8")
        print(f"wrote {options.weights}; run again to report on it")
        return
    likenesses = np.array([likeness(each.heard) for each in judged])
    rows, trade = counted(judged, likenesses), traded(judged, likenesses)
    for row in rows:
        when = "over" if row["over"] else "going on"
        print(
            f"{row['kind']:34} {'set on' if row['set_on'] else 'reported':9} {when:9} {row['judged_hums']:>4} of {row['moments']}"
        )
    for row in trade:
        when = "over" if row["over"] else "going on"
        print(f"{row['hums']:16} {when:9} against {row['people']} people's {row['against']}: {row['found_at']}")
    if options.save is not None:
        found = {"commit": commit(), "data": options.data.name, "rows": rows, "traded": trade}
        options.save.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "tests" / "data", help="folder with manifest.jsonl")
    parser.add_argument("--weights", type=Path, help="set the judge, and write its weights here")
    parser.add_argument("--save", type=Path, help="write the report here, as JSON")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()

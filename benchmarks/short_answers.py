"""How long a caller's short answer to what an agent asked is waited for, and how often a begun one would be cut off: made questions of forty trades (`short_answers.toml`).

    python benchmarks/short_answers.py --save benchmarks/results/short-answers.json

The turn-end model reads the words as they are written there: no recogniser, no voice, no phrases of the agent's. What it says is decided on as in a call whose agent has the default
settings. Behind a whole answer the silence that this asks for is what the caller waits; behind a beginning, the share of pauses within turns that last longer is what is cut off.
Both parts are counted; answers are shown of the part `looked_at` alone, so that the other stays unseen by whoever works on the model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from measuring import about

from voice_pipelines.adapters.turn_words import alone
from voice_pipelines.turn_end.model import WEIGHTS, TurnEndModel
from voiceagent.endpoint import EndpointSettings, Evidence, longer_pauses, wanted_s
from voiceagent.endpoint_dictation import is_dictation
from voiceagent.endpoint_words import is_answer

Part: TypeAlias = Literal["looked_at", "reported"]
Kind: TypeAlias = Literal[
    "yes_no",
    "choice",
    "number",
    "amount",
    "time",
    "date",
    "place",
    "name",
    "thing",
    "reason",
    "contact",
    "payment",
]
"""What is asked for."""
LONG_S = 1.0


@dataclass(frozen=True, slots=True)
class Question:
    """What an agent asks, and what may be said to it.

    Raises:
        ValueError: If there is no such part or kind.
    """

    agent: str
    part: Part
    kind: Kind
    asked: str
    answers: tuple[str, ...]
    """Whole ones."""
    unfinished: tuple[str, ...]
    """Beginnings that something must follow."""

    def __post_init__(self) -> None:
        for value, known in ((self.part, get_args(Part)), (self.kind, get_args(Kind))):
            if value not in known:
                raise ValueError(f"{self.agent}, {self.asked!r}: {value!r} is none of {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class Said:
    """Words behind a question, and the silence that they ask for."""

    question: Question
    words: str
    is_whole: bool
    waited_s: float


def questions_of(path: Path) -> list[Question]:
    """Raises:
    ValueError: If the file is no TOML, or holds another part or kind than there are.
    """
    return [
        Question(name, agent["part"], each["kind"], each["asked"], tuple(each["answers"]), tuple(each["unfinished"]))
        for name, agent in tomllib.loads(path.read_text("utf-8")).items()
        for each in agent["questions"]
    ]


def evidence_of(words: str, asked: str, model: TurnEndModel) -> Evidence:
    """What a call knows of these words where they were heard right and long enough ago, and nobody listened to the voice."""
    complete = alone(model.completeness(words, asked), words, asked)
    return Evidence(complete, 1.0, is_dictation(words, asked), is_answer=is_answer(words, asked))


def silence_s(evidence: Evidence, settings: EndpointSettings) -> float:
    """The silence after which `voiceagent.endpoint.decide` ends the turn on this evidence."""
    asked_s = wanted_s(evidence, settings)
    if evidence.is_dictation:
        asked_s = max(asked_s, settings.dictation_silence_s)
    return min(asked_s, settings.max_silence_s)


def measure(questions: Iterable[Question], model: TurnEndModel, settings: EndpointSettings) -> list[Said]:
    return [
        Said(question, words, is_whole, silence_s(evidence_of(words, question.asked, model), settings))
        for question in questions
        for is_whole, all_words in ((True, question.answers), (False, question.unfinished))
        for words in all_words
    ]


def counted(said: Iterable[Said], settings: EndpointSettings) -> dict[str, float | int | None]:
    """Means and shares of these; None of what there is none of."""
    waits: dict[bool, list[float]] = {True: [], False: []}
    for each in said:
        waits[each.is_whole].append(each.waited_s)

    def mean(values: Sequence[float]) -> float | None:
        return round(statistics.fmean(values), 4) if values else None

    return {
        "answers": len(waits[True]),
        "mean_wait_s": mean(waits[True]),
        "longer_than_silence": mean([wait_s > settings.silence_s for wait_s in waits[True]]),
        "longer_than_1_s": mean([wait_s > LONG_S for wait_s in waits[True]]),
        "unfinished": len(waits[False]),
        "cut_off_per_pause": mean([longer_pauses(wait_s) for wait_s in waits[False]]),
    }


def by_part_and_kind(said: Sequence[Said], settings: EndpointSettings) -> dict[str, dict[str, Any]]:
    """`counted` of each part: of `all` its kinds, and of each."""
    table: dict[str, dict[str, Any]] = {}
    for part in get_args(Part):
        of_part = [each for each in said if each.question.part == part]
        table[part] = {"all": counted(of_part, settings)}
        for kind in get_args(Kind):
            table[part][kind] = counted([each for each in of_part if each.question.kind == kind], settings)
    return table


def slowest(said: Iterable[Said], count: int) -> list[Said]:
    """Whole answers that are waited for longest, of those that may be looked at."""
    shown = [each for each in said if each.is_whole and each.question.part == "looked_at"]
    return sorted(shown, key=lambda each: -each.waited_s)[:count]


def as_lines(part: str, kinds: dict[str, dict[str, float | int | None]]) -> list[str]:
    """A table: a head, and one line for each kind."""
    columns = list(kinds["all"])
    head = f"{part:10}" + "".join(f"{column:>{len(column) + 2}}" for column in columns)
    return [head] + [
        f"{kind:10}"
        + "".join(f"{'-' if value is None else value:>{len(column) + 2}}" for column, value in counts.items())
        for kind, counts in kinds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, default=Path(__file__).with_suffix(".toml"), help="TOML file of them")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="another turn-end model's file")
    parser.add_argument("--slowest", type=int, default=30, metavar="COUNT", help="answers to show, of those looked at")
    parser.add_argument("--save", type=Path, help="file for the results")
    options = parser.parse_args()
    settings = EndpointSettings()
    machine = about(torch.device("cpu"))
    said = measure(questions_of(options.questions), TurnEndModel.load(options.weights), settings)
    table = by_part_and_kind(said, settings)
    print(json.dumps(machine))
    for part, kinds in table.items():
        print("\n".join(as_lines(part, kinds)))
    silence_alone = {
        "mean_wait_s": settings.silence_s,
        "cut_off_per_pause": round(longer_pauses(settings.silence_s), 4),
    }
    print("by silence alone", json.dumps(silence_alone))
    shown = [
        {
            "wait_s": round(each.waited_s, 3),
            "kind": each.question.kind,
            "asked": each.question.asked,
            "words": each.words,
        }
        for each in slowest(said, options.slowest)
    ]
    for each in shown:
        print(f"{each['wait_s']:.2f} s  {each['kind']}: {each['asked']} | {each['words']}")
    if options.save is not None:
        results = {
            "machine": machine,
            "weights": options.weights.name,
            "silence_alone": silence_alone,
            "parts": table,
            "slowest_looked_at": shown,
        }
        options.save.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

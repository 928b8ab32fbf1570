"""What endpoints came to: delays against cut-offs under a row of settings, held out by speaker, told and drawn. Pure; `endpoint.py` makes the cases."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from measuring import percentile
from numpy.typing import NDArray
from resample import Spread, spread

from voiceagent.endpoint import EndpointSettings, Evidence, decide
from voiceagent.vad import VoicedUtterance

# S: settings. N: cases.
Floats = NDArray[np.float64]

EARLY_S = 0.15
"""An endpoint so long before the end of speech is a cut-off (the recordings' times are no more exact)."""
GOAL = 0.05
"""Share of utterances that may be cut off."""
SILENCES = tuple(round(0.1 + 0.05 * step, 2) for step in range(48))
COSTS = tuple(round(0.25 * 2 ** (step / 3), 2) for step in range(25))
FOLDS, SHUFFLES = 5, 10

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


def endpoint_s(case: Case, settings: EndpointSettings, *, with_words: bool) -> float | None:
    for utterance, evidence in case.moments:
        decision = decide(utterance, settings, evidence if with_words else None)
        if decision is not None:
            return decision.endpoint_sample / 16_000
    return None


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


def as_json(value: object) -> object:
    if isinstance(value, Spread):
        return {name: [round(each, 4) for each in ends] for name, ends in asdict(value).items()}
    if not isinstance(value, Point):
        return str(value)
    # Where everybody was cut off there is no delay.
    told = {name: None if number == math.inf else number for name, number in asdict(value).items()}
    return {name: round(number, 4) if isinstance(number, float) else number for name, number in told.items()}

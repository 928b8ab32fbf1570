"""The measurements of a model card, one function per section. Each returns plain JSON and stops when its time is over."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dllm.drafts import Plan
from dllm.evaluate.bootstrap import estimate
from dllm.evaluate.likelihood import Likelihood, has_causal_mode, held_back_likelihood
from dllm.evaluate.prompts import Prompt, choose
from dllm.evaluate.questions import measure_doubts, measure_turns, turn_samples, word_samples
from dllm.evaluate.replies import Judge, Limit, Scored, measure, score_reply, score_trial, summarise, write_all
from dllm.evaluate.steps import STEPS as CURVE_STEPS
from dllm.evaluate.steps import WIDTHS, QualityReport
from dllm.evaluate.steps import measure as measure_widths
from dllm.evaluate.writing import CHUNK, Way, Writer, Written
from dllm.habits import family_options
from dllm.loader import Checkpoint
from dllm.options import DecodeOptions
from dllm.train.data import Dialogue
from dllm.transcript import turn_ends, word_chances

STEPS = (1, 2, 4, 8, 16, 32, 64)
THRESHOLDS = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
DEFAULT_PLAN = Plan()
"""What a reply gets when nobody says otherwise: two phases, as it is spoken."""
TIMED_CHUNK = 4


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that is measured on, and with."""

    checkpoint: Checkpoint
    prompts: Mapping[str, Sequence[Prompt]]
    """By source."""
    weights: Mapping[str, float]
    """Of the sources."""
    dialogues: Mapping[str, Sequence[Dialogue]]
    judge: Judge
    count: int
    """Most prompts of a section."""
    width: int = 40
    seed: int = 0
    baseline: Checkpoint | None = None
    """An autoregressive model of the same size, data and steps."""
    undistilled: Checkpoint | None = None

    @property
    def options(self) -> DecodeOptions:
        return family_options(self.checkpoint.defaults, self.checkpoint.spec)

    def choose(self, wanted: Callable[[Prompt], bool], count: int | None = None) -> list[Prompt]:
        return choose(
            self.prompts,
            self.weights,
            lambda prompt: prompt.fits(self.width) and wanted(prompt),
            self.count if count is None else count,
            self.seed,
        )

    def writer(self, checkpoint: Checkpoint, limit: Limit, batch: int = CHUNK) -> Writer:
        return Writer(checkpoint.model, checkpoint.codec.token_table, batch, limit.clock)


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    share: float
    """Of the whole time."""
    measure: Callable[[Study, Limit], Any]
    uses: tuple[str, ...] = ()
    """What it depends on beside the model, the data and the judge: other checkpoints, the machine."""


# --- ways of writing --------------------------------------------------------------------------------------------------


def samplers(options: DecodeOptions, threshold: float) -> dict[str, tuple[DecodeOptions, float]]:
    """Options and threshold by name: the rules that look at one step's distribution."""
    return {
        f"threshold {threshold:g}": (replace(options, rule="threshold"), threshold),
        "fixed count": (replace(options, rule="count"), 1.0),
        f"margin {threshold:g}": (replace(options, rule="margin"), threshold),
        f"entropy {options.entropy_bound:g}": (replace(options, rule="entropy"), threshold),
        f"factor {options.factor:g}": (replace(options, rule="factor"), threshold),
    }


def left_to_right(checkpoint: Checkpoint, width: int) -> list[Way]:
    """Causal writing and self-speculation, where the checkpoint can: greedy, nothing else."""
    if not checkpoint.spec.causal_verify:
        return []
    plan = Plan(width, width, by_clause=False)
    return [
        Way("autoregressive", plan, DecodeOptions(mode="causal"), width),
        Way("self-speculative", plan, DecodeOptions(mode="self_speculative"), width),
    ]


def default_way(study: Study, *, is_pinned: bool = False) -> Way:
    plan = replace(DEFAULT_PLAN, threshold=study.checkpoint.defaults.threshold)
    return Way("default plan", plan, study.options, study.width, is_pinned)


# --- sections ---------------------------------------------------------------------------------------------------------


def likelihood(study: Study, limit: Limit) -> dict[str, Any]:
    """Nats per token of reference replies by source: the bound, the same weights' causal mode, the baseline's."""
    chosen = study.choose(lambda prompt: True, 4 * study.count)
    found = []
    for prompt in limit.within(chosen):
        own = held_back_likelihood(study.checkpoint.model, prompt, seed=study.seed)
        other: Likelihood | None = None
        if study.baseline is not None:
            other = held_back_likelihood(study.baseline.model, prompt, draws=4, seed=study.seed)
        found.append((prompt, own, other))

    def table(rows: Sequence[tuple[Prompt, Likelihood, Likelihood | None]]) -> dict[str, Any]:
        groups = [prompt.group for prompt, _, _ in rows]

        def of(values: Sequence[float | None], kinds: Sequence[int]) -> dict[str, Any] | None:
            if any(value is None for value in values):
                return None
            counts = [[value or 0.0, float(tokens)] for value, tokens in zip(values, kinds, strict=True)]
            return estimate(counts, groups, seed=study.seed).to_json()

        tokens = [own.tokens for _, own, _ in rows]
        return {
            "tokens": sum(tokens),
            "replies": len(rows),
            "diffusion": of([own.diffusion for _, own, _ in rows], tokens),
            "causal": of([own.causal for _, own, _ in rows], tokens),
            "baseline": of([None if other is None else other.causal for _, _, other in rows], tokens),
        }

    sources = dict.fromkeys(prompt.source for prompt, _, _ in found)
    return {
        "all": table(found),
        "sources": {name: table([row for row in found if row[0].source == name]) for name in sources},
    }


def by_sampler(study: Study, limit: Limit) -> dict[str, Any]:
    """Every measure by sampler and steps."""
    ways: list[Way] = []
    # A canvas of w positions is written in w steps at most: more are the same reply, which is written once.
    steps = sorted({min(count, study.width) for count in STEPS})
    kinds = samplers(study.options, study.checkpoint.defaults.threshold)
    for name, (options, threshold) in kinds.items():
        ways += [Way(name, Plan(count, count, threshold, by_clause=False), options, study.width) for count in steps]
    against = [index // len(steps) * len(steps) + len(steps) - 1 for index in range(len(ways))]
    others = left_to_right(study.checkpoint, study.width)
    against += range(len(ways), len(ways) + len(others))
    writer = study.writer(study.checkpoint, limit)
    trial = write_all([(writer, [*ways, *others])], study.choose(lambda prompt: True), limit)
    scored = score_trial(trial, study.checkpoint.dialogue_codec, study.judge, against)
    tables = [summarise(of_way, study.seed) for of_way in scored]
    return {
        "width": study.width,
        "steps": list(STEPS),
        "prompts": len(trial.prompts),
        "samplers": {
            name: [tables[index * len(steps) + steps.index(min(count, study.width))] for count in STEPS]
            for index, name in enumerate(kinds)
        },
        "left to right": {
            # There are no steps to agree about: its one reply would agree with itself.
            way.name: {name: found for name, found in table.items() if name != "self_consistency"}
            for way, table in zip(others, tables[len(ways) :], strict=True)
        },
        "reference": _references(trial.prompts, study),
    }


def _references(prompts: Sequence[Prompt], study: Study) -> dict[str, Any]:
    """What the measures that need no reference say of the references themselves."""
    codec = study.checkpoint.dialogue_codec
    written = [Written(prompt.reference, 1, 0, 0, True) for prompt in prompts]
    nats = [study.judge(prompt, [one])[0] for prompt, one in zip(prompts, written, strict=True)]
    scored = [score_reply(p, one, codec, value) for p, one, value in zip(prompts, written, nats, strict=True)]
    return {name: measure(scored, name, study.seed).to_json() for name in ("repeating", "log_likelihood", "tokens")}


def widths(study: Study, limit: Limit) -> dict[str, Any]:
    """Quality by canvas width and steps, with the curve of the latency budget."""
    spec = study.checkpoint.spec
    fitting = [width for width in WIDTHS if width % spec.canvas_multiple == 0 and width <= (spec.max_canvas or width)]
    chosen = choose(study.prompts, study.weights, lambda prompt: prompt.fits(max(fitting)), study.count, study.seed)
    report: QualityReport = measure_widths(
        study.writer(study.checkpoint, limit),
        study.checkpoint.dialogue_codec,
        study.judge,
        chosen,
        fitting,
        CURVE_STEPS,
        limit,
    )
    return report.to_json()


def timed(study: Study, limit: Limit) -> dict[str, Any]:
    """Quality and milliseconds per reply, one reply at a time, diffusion and left to right in turns on the same prompts."""
    steps = sorted({min(count, study.width) for count in STEPS})
    threshold = study.checkpoint.defaults.threshold
    ways = [
        Way(f"{n} step{'s' * (n > 1)}", Plan(n, n, threshold, by_clause=False), study.options, study.width)
        for n in steps
    ]
    ways += [default_way(study), *left_to_right(study.checkpoint, study.width)]
    own, baseline = study.writer(study.checkpoint, limit, 1), study.baseline
    other_ways = [] if baseline is None else left_to_right(baseline, study.width)[:1]
    prompts = study.choose(lambda prompt: True)
    hands: list[tuple[Writer, Sequence[Way]]] = [(own, ways)]
    if baseline is not None:
        hands.append((study.writer(baseline, limit, 1), other_ways))
    for writer, some in hands:
        writer.write(prompts[:1], some)  # the first forwards of a process are slower
    trial = write_all(hands, prompts, limit, TIMED_CHUNK)
    scored = score_trial(trial, study.checkpoint.dialogue_codec, study.judge)
    names = [way.name for way in ways] + [f"baseline {way.name}" for way in other_ways]
    rows = []
    for name, of_way, replies in zip(names, scored, trial.written, strict=True):
        row = {"name": name, "measures": summarise(of_way, study.seed)}
        for key in ("seconds", "seconds_first"):
            times = sorted(1e3 * getattr(reply, key) for reply in replies)
            row[key.replace("seconds", "ms")] = {
                "mean": round(statistics.fmean(times), 3),
                "p50": round(statistics.median(times), 3),
                "p95": round(times[max(0, math.ceil(0.95 * len(times)) - 1)], 3),
            }
        rows.append(row)
    return {"prompts": len(trial.prompts), "width": study.width, "steps": steps, "rows": rows}


def default_plan(study: Study, limit: Limit) -> dict[str, Any]:
    """Every measure at the default plan, in all and by source."""
    prompts = study.choose(lambda prompt: True, 4 * study.count)
    trial = write_all([(study.writer(study.checkpoint, limit), [default_way(study)])], prompts, limit)
    (scored,) = score_trial(trial, study.checkpoint.dialogue_codec, study.judge)
    by_source: dict[str, list[Scored]] = {}
    for one in scored:
        by_source.setdefault(one.group[0], []).append(one)
    plan = default_way(study).plan
    return {
        "prompts": len(trial.prompts),
        "plan": f"{plan.steps_first} + {plan.steps_rest} steps, threshold {plan.threshold:g}, canvas {study.width}",
        "all": summarise(scored, study.seed),
        "sources": {name: summarise(some, study.seed) for name, some in by_source.items()},
    }


def facts(study: Study, limit: Limit) -> dict[str, Any]:
    """Exact facts at the default plan and left to right, and with what must be said pinned."""
    prompts = study.choose(lambda prompt: any(fact.kind != "pin" for fact in prompt.facts), 4 * study.count)
    ways = [default_way(study), default_way(study, is_pinned=True), *left_to_right(study.checkpoint, study.width)[:1]]
    trial = write_all([(study.writer(study.checkpoint, limit), ways)], prompts, limit)
    free, pinned, *causal = score_trial(trial, study.checkpoint.dialogue_codec, study.judge)
    by_source: dict[str, list[Scored]] = {}
    for one in free:
        by_source.setdefault(one.group[0], []).append(one)
    return {
        "prompts": len(trial.prompts),
        "free": summarise(free, study.seed),
        "pinned": summarise(pinned, study.seed),
        "causal": summarise(causal[0], study.seed) if causal else None,
        "sources": {name: summarise(some, study.seed) for name, some in by_source.items()},
    }


def calls(study: Study, limit: Limit) -> dict[str, Any]:
    """Tool calls: exact in name and arguments, at the default plan and left to right."""
    prompts = study.choose(lambda prompt: prompt.call is not None, 4 * study.count)
    ways = [default_way(study), *left_to_right(study.checkpoint, study.width)[:1]]
    trial = write_all([(study.writer(study.checkpoint, limit), ways)], prompts, limit)
    free, *causal = score_trial(trial, study.checkpoint.dialogue_codec, study.judge)
    names = ("call_exact", "call_named", "unfinished", "steps", "tokens", "tokens_per_forward")
    every = [prompt for some in study.prompts.values() for prompt in some if prompt.call is not None]
    return {
        "prompts": len(trial.prompts),
        "too_long": [sum(not prompt.fits(study.width) for prompt in every), len(every)],
        "free": {name: measure(free, name, study.seed).to_json() for name in names},
        "causal": {name: measure(causal[0], name, study.seed).to_json() for name in names} if causal else None,
    }


def turns(study: Study, limit: Limit) -> dict[str, Any]:
    """Is a caller's turn complete? See `dllm.evaluate.questions`."""
    samples = turn_samples(study.dialogues, study.checkpoint.dialogue_codec, 8 * study.count, study.seed)
    return measure_turns(partial(turn_ends, study.checkpoint.model), samples, limit, study.seed)


def doubts(study: Study, limit: Limit) -> dict[str, Any]:
    """Which words were misheard?"""
    samples = word_samples(study.dialogues, study.checkpoint.dialogue_codec, 4 * study.count, study.seed)

    def chances(prompt: Sequence[int], heard: Sequence[int]) -> list[float]:
        return [chance for chance, _ in word_chances(study.checkpoint.model, prompt, heard)]

    return measure_doubts(chances, samples, limit, study.seed)


def parallel(study: Study, limit: Limit) -> dict[str, Any]:
    """Tokens per forward at equal quality: one token per forward against falling thresholds, distilled and not, on the same prompts."""
    checkpoints = {"shipped": study.checkpoint, "undistilled": study.undistilled}
    present = {name: checkpoint for name, checkpoint in checkpoints.items() if checkpoint is not None}
    whole = study.width
    hands: list[tuple[Writer, Sequence[Way]]] = []
    for checkpoint in present.values():
        options = family_options(checkpoint.defaults, checkpoint.spec)
        ways = [Way("one", Plan(whole, whole, 1.0, by_clause=False), replace(options, rule="count"), whole)]
        ways += [Way(f"{t:g}", Plan(whole, whole, t, by_clause=False), options, whole) for t in THRESHOLDS]
        hands.append((study.writer(checkpoint, limit), ways))
    trial = write_all(hands, study.choose(lambda prompt: True), limit)
    tables = [summarise(some, study.seed) for some in score_trial(trial, study.checkpoint.dialogue_codec, study.judge)]
    found: dict[str, list[dict[str, Any]]] = {}
    for number, name in enumerate(present):
        own = tables[number * (1 + len(THRESHOLDS)) : (number + 1) * (1 + len(THRESHOLDS))]
        found[name] = [
            {"threshold": threshold, "measures": measures}
            for threshold, measures in zip((None, *THRESHOLDS), own, strict=True)
        ]
    one_at_a_time = [rows[0]["measures"] for rows in found.values()]
    return {
        name: {"prompts": len(trial.prompts), "rows": rows, "best": best_row(rows, one_at_a_time)}
        for name, rows in found.items()
    }


def best_row(rows: Sequence[Mapping[str, Any]], one_at_a_time: Sequence[Mapping[str, Any]]) -> int:
    """The setting with most tokens per forward that is as good as deciding one token at a time; the first row, if none is.

    Args:
        one_at_a_time: Measures of every checkpoint that is compared when it decides one token per forward. As good: in chrF, under the
            judge and in faulty replies on the right side of each one's interval, so a checkpoint that got worse as a whole gains nothing.
    """

    def is_good(measures: Mapping[str, Any]) -> bool:
        return all(
            measures[name]["value"] >= other[name]["low"]
            for other in one_at_a_time
            for name in ("chrf", "log_likelihood")
        ) and all(measures["faulty"]["value"] <= other["faulty"]["high"] for other in one_at_a_time)

    good = [index for index, row in enumerate(rows) if index == 0 or is_good(row["measures"])]
    return max(good, key=lambda index: rows[index]["measures"]["tokens_per_forward"]["value"])


SECTIONS = (
    Section("likelihood", 0.05, likelihood, ("baseline",)),
    Section("samplers", 0.3, by_sampler),
    Section("widths", 0.2, widths),
    Section("timed", 0.12, timed, ("baseline", "machine")),
    Section("default", 0.08, default_plan),
    Section("facts", 0.06, facts),
    Section("calls", 0.04, calls),
    Section("turns", 0.03, turns),
    Section("doubts", 0.02, doubts),
    Section("parallel", 0.1, parallel, ("undistilled",)),
)


def possible(study: Study, section: Section) -> str | None:
    """Why a section cannot be measured on this model, or None."""
    spec = study.checkpoint.spec
    if section.name in ("turns", "doubts") and spec.special.mask is None:
        return "the model has no mask to ask behind"
    if section.name == "likelihood" and not has_causal_mode(spec) and spec.special.mask is None:
        return "the model has neither a causal mode nor an any-order bound"
    if section.name in ("samplers", "timed", "default", "parallel") and not study.choose(lambda prompt: True, 1):
        return f"no held-back reply fits a canvas of {study.width}"
    if section.name == "widths" and not any(
        prompt.fits(max(WIDTHS)) for some in study.prompts.values() for prompt in some
    ):
        return f"no held-back reply fits a canvas of {max(WIDTHS)}"
    if section.name == "calls" and not study.choose(lambda prompt: prompt.call is not None, 1):
        return "no held-back dialogue has a tool call"
    if section.name == "facts" and not study.choose(lambda prompt: any(f.kind != "pin" for f in prompt.facts), 1):
        return "no held-back reply states a fact of its prompt"
    return None

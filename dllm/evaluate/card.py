"""The model card as Markdown, from what was measured. Every number on it is read from the record; nothing here measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dllm.evaluate.about import SHARE_ALIKE

TARGETS = {
    "facts pinned": ("exact facts with pinning", 0.99),
    "facts free": ("exact facts without pinning", 0.95),
    "calls": ("tool calls exact, held-back schemas", 0.95),
    "faulty": ("unfinished or repeating replies at the default plan", 0.005),
    "parallel": ("tokens per forward within one interval of the quality of one token per forward", 3.0),
}
"""What the built-in model is meant to reach when it is trained on a GPU. `faulty` is an upper limit, the others lower ones."""
MEASURES: tuple[tuple[str, str, float, int], ...] = (
    ("chrf", "chrF", 1, 1),
    ("content_f1", "content F1", 1, 3),
    ("rouge_l", "ROUGE-L", 1, 3),
    ("log_likelihood", "judge, nats/token", 1, 2),
    ("exact_facts", "facts, %", 100, 1),
    ("repeating", "repeating, %", 100, 1),
    ("unfinished", "unfinished, %", 100, 1),
    ("invented", "invented figures, %", 100, 1),
    ("call_unasked", "calls unasked, %", 100, 1),
    ("self_consistency", "agrees with most steps", 1, 3),
    ("steps", "steps", 1, 1),
    ("tokens_per_forward", "tokens/forward", 1, 2),
)
"""Name, heading, factor and decimals of the columns."""
_GUARDED = (
    "Diffusion has the family's habits: never a word twice in a row, nor three tokens (`no_stutter`); left to right has no such rule, so "
    "compare *repeating* with that in mind."
)


def cell(found: Mapping[str, Any] | None, factor: float = 1, decimals: int = 3) -> str:
    """A value with its interval: "34.7 (31.2 to 38.0)"."""
    if not found or found["value"] is None:
        return "–"
    value, low, high = (f"{factor * found[name]:.{decimals}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def write_card(data: Mapping[str, Any], images: str = "img") -> str:
    """The card.

    Args:
        data: Sections by name; those that were not measured are missing, and said so.
        images: Folder of the plots, relative to the card.
    """
    about = data["about"]
    lines = [f"# {about['name']}: model card", "", *_head(about), "", *_reached(data), "", *_weights(about), ""]
    lines += [*_data(about), *_training(about, images), ""]
    parts = (
        ("likelihood", _likelihood),
        ("timed", _timed),
        ("samplers", _samplers),
        ("widths", _widths),
        ("default", _default),
        ("facts", _facts),
        ("calls", _calls),
        ("turns", _turns),
        ("doubts", _doubts),
        ("parallel", _parallel),
    )
    for name, part in parts:
        if name in data:
            lines += [*part(data, images), ""]
    missing = [f"- {name}: {reason}" for name, reason in about["left_out"].items()]
    if missing:
        lines += ["## Not measured", "", *missing, ""]
    lines += [*_limits(data), ""]
    return "\n".join(_without_gaps(lines)) + "\n"


def _without_gaps(lines: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for line in lines:
        if line or (kept and kept[-1]):
            kept.append(line)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def _head(about: Mapping[str, Any]) -> list[str]:
    machine = about["machine"]
    baseline = about["baseline"]
    return [
        f"Written by `{about['command']}` at commit {machine['commit']}; the numbers are in `{about['record']}`. Values in brackets are 95 % "
        "intervals from resampling dialogues (percentile bootstrap, seeded). Replies are written greedily.",
        "",
        *table(
            ("", ""),
            [
                ("machine", f"{machine['processor']}; {machine['system']}; {machine['threads']} threads"),
                ("software", f"Python {machine['python']}, PyTorch {machine['torch']}"),
                ("judge of likelihood", about["judge"]),
                (
                    "autoregressive baseline",
                    f"an independent model ({baseline['sha256'][:12]}, {baseline['parameters'] / 1e6:.2f} M parameters)"
                    if baseline
                    else "none; `autoregressive` below is the causal mode of the **same weights** under a joint objective",
                ),
            ],
        ),
    ]


# --- targets ----------------------------------------------------------------------------------------------------------


def reached(data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], float, bool]]:
    """(what, estimate, target, whether it is reached) of the targets that were measured."""
    found: list[tuple[str, Mapping[str, Any], float, bool]] = []

    def add(name: str, estimate: Mapping[str, Any] | None, *, is_upper: bool = False) -> None:
        if estimate and estimate["value"] is not None:
            what, target = TARGETS[name]
            value = estimate["value"]
            found.append((what, estimate, target, value <= target if is_upper else value >= target))

    if "facts" in data:
        add("facts pinned", data["facts"]["pinned"].get("exact_facts"))
        add("facts free", data["facts"]["free"].get("exact_facts"))
    if "calls" in data:
        add("calls", data["calls"]["free"]["call_exact"])
    if "default" in data:
        add("faulty", data["default"]["all"]["faulty"], is_upper=True)
    if "parallel" in data:
        shipped = data["parallel"]["shipped"]
        add("parallel", shipped["rows"][shipped["best"]]["measures"]["tokens_per_forward"])
    return found


def _reached(data: Mapping[str, Any]) -> list[str]:
    rows = []
    for what, estimate, target, is_reached in reached(data):
        factor, decimals, unit = (1.0, 2, "") if target > 1 else (100.0, 1, " %")
        limit = "at most" if what == TARGETS["faulty"][0] else "at least"
        rows.append(
            (
                what,
                cell(estimate, factor, decimals),
                f"{estimate['count']} in {estimate['groups']} dialogues",
                f"{limit} {factor * target:g}{unit}",
                "yes" if is_reached else "**no**",
            )
        )
    if not rows:
        return []
    return [
        "## Targets",
        "",
        *table(("", "measured", "on", "target", "reached"), rows),
        "*reached* compares the value, not its interval. Resampling cannot see what never happened: where all of n dialogues were alike the "
        "interval has no width, and up to 3/n may still be otherwise.",
        "",
    ]


# --- what it is -------------------------------------------------------------------------------------------------------


def _weights(about: Mapping[str, Any]) -> list[str]:
    model = about["model"]
    config = model["config"]
    shape = (
        f"{config.get('num_hidden_layers')} layers, hidden {config.get('hidden_size')}, feed-forward {config.get('intermediate_size')}, "
        f"{config.get('num_attention_heads')} heads, {config.get('num_key_value_heads')} key/value heads, "
        f"{config.get('vocab_size')} tokens"
    )
    is_shared = any(source["licence"] == SHARE_ALIKE for source in about["data"].values())
    licence = (
        f"weights {SHARE_ALIKE}, as Schema-Guided Dialogue asks; the code is Apache-2.0"
        if is_shared
        else "as the code, Apache-2.0"
    )
    rows = [
        ("parameters", f"{model['parameters'] / 1e6:.2f} M, {model['bytes'] / 2**20:.1f} MiB on disk"),
        ("shape", shape),
        ("family", f"{model['family']}; attention {model['mask_kind']}; corruption {model['corruption']}"),
        ("SHA-256 of the weights", f"`{model['sha256']}`"),
        ("licence", licence),
    ]
    return ["## Weights", "", *table(("", ""), rows)]


def _data(about: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            source["title"],
            f"{100 * source['share']:.1f} %",
            "–" if source["train"] is None else f"{source['train']:,}",
            f"{source['held_back']:,}",
            _part(source["seen"]),
            _part(source["too_long"]),
            source["licence"],
        )
        for source in about["data"].values()
    ]
    return [
        "## Data",
        "",
        *table(
            (
                "source",
                "share of rows",
                "dialogues for training",
                "held back",
                "answers seen",
                "replies too long",
                "licence",
            ),
            rows,
        ),
        "Splits were made by dialogue, so upstream benchmarks must not be quoted. User turns are written as a recogniser writes them. "
        "Sources that a program writes are held back by seed, tools also by schema. *Answers seen*: held-back answers that training shows "
        "word for word behind the same words, greetings above all. *Replies too long* do not fit the canvas of "
        f"{about['width']}: they are left out of everything below.",
        "",
    ]


def _part(counts: Sequence[int] | None) -> str:
    return "–" if counts is None else f"{counts[0]:,} of {counts[1]:,}"


def _training(about: Mapping[str, Any], images: str) -> list[str]:
    training = about["training"]
    if not training:
        return ["No training record was given.", ""]
    rows = [("objective", str(training["objective"]))]
    if "init" in training:
        rows.append(("went on from", f"`{training['init']}`, whose own training is not counted here"))
    if "steps" in training:
        rows.append(("optimiser steps", f"{training['steps']:,}"))
    if "tokens" in training:
        rows.append(("positions", f"{training['tokens'] / 1e6:.1f} M, clean and noisy"))
    if "seconds" in training:
        legs = len(training.get("legs", [])) or 1
        rows.append(("work", f"{training['seconds'] / 60:.1f} minutes in {legs} sitting{'s' * (legs > 1)}"))
    if "machine" in training:
        machine = training["machine"]
        rows.append(("machine", ", ".join(f"{name} {value}" for name, value in machine.items())))
    lines = ["## Training", "", *table(("", ""), rows)]
    if "curves" in training:
        lines += [f"![training losses]({images}/training.png)", ""]
    return lines


# --- measurements -----------------------------------------------------------------------------------------------------


def _likelihood(data: Mapping[str, Any], images: str) -> list[str]:
    section, has_baseline = data["likelihood"], data["about"]["baseline"] is not None
    head = ["source", "diffusion bound", "causal, same weights"] + ["baseline"] * has_baseline + ["replies", "tokens"]

    def row(name: str, found: Mapping[str, Any]) -> list[str]:
        values = [cell(found[key], 1, 3) for key in ("diffusion", "causal", *(["baseline"] * has_baseline))]
        return [name, *values, str(found["replies"]), f"{found['tokens']:,}"]

    rows = [row(name, found) for name, found in section["sources"].items()]
    return [
        "## Held-back likelihood",
        "",
        "Nats per token of reference replies, their end-of-turn included. `diffusion bound` is the any-order bound, an upper limit of the "
        "true loss given the narrowest canvas that holds the reply; that canvas tells the length to within "
        f"{data['about']['model']['canvas_multiple']} tokens, which nobody tells a causal model. `causal` is exact. "
        + (
            "`baseline` is an independent autoregressive model of equal size, data and steps."
            if has_baseline
            else "There is no independent autoregressive baseline here: the causal column comes from the same weights."
        ),
        "",
        *table(head, [*rows, row("**all**", section["all"])]),
    ]


def _timed(data: Mapping[str, Any], images: str) -> list[str]:
    section = data["timed"]
    rows = []
    for row in section["rows"]:
        measures = row["measures"]
        rows.append(
            (
                row["name"],
                f"{row['ms']['p50']:.0f}",
                f"{row['ms']['p95']:.0f}",
                f"{row['ms_first']['p50']:.0f}",
                cell(measures["chrf"], 1, 1),
                cell(measures.get("log_likelihood"), 1, 2),
                cell(measures["faulty"], 100, 1),
                cell(measures["tokens_per_forward"], 1, 2),
            )
        )
    head = (
        "",
        "ms per reply, p50",
        "p95",
        "ms to first words, p50",
        "chrF",
        "judge, nats/token",
        "faulty, %",
        "tokens/forward",
    )
    return [
        "## Quality against time",
        "",
        f"One reply at a time on this machine, its prompt in the cache, {section['prompts']} prompts, canvas {section['width']}; the ways take "
        "turns on each prompt, so load on the machine meets all alike. `autoregressive` and `self-speculative` run in the engine with a "
        f"key/value cache, greedily and with nothing else. *faulty* is unfinished or repeating. {_GUARDED}",
        "",
        *table(head, rows),
        f"![quality against milliseconds]({images}/quality-time.png)",
    ]


def _samplers(data: Mapping[str, Any], images: str) -> list[str]:
    section = data["samplers"]
    names = [
        entry for entry in MEASURES if any(entry[0] in row for rows in section["samplers"].values() for row in rows)
    ]
    head = ["sampler", "steps at most", *(entry[1] for entry in names)]
    rows = [
        [name, str(steps), *(cell(row.get(key), factor, decimals) for key, _, factor, decimals in names)]
        for name, some in section["samplers"].items()
        for steps, row in zip(section["steps"], some, strict=True)
    ]
    rows += [
        [name, "–", *(cell(row.get(key), factor, decimals) for key, _, factor, decimals in names)]
        for name, row in section["left to right"].items()
    ]
    reference = section["reference"]
    return [
        "## Quality against steps, by sampler",
        "",
        f"{section['prompts']} held-back prompts, canvas {section['width']}, the whole reply in one phase. Steps are a ceiling: a rule that is "
        "sure is done earlier, and more steps than positions change nothing. *agrees with most steps* (self-consistency) is the share of words that a reply has in "
        f"common with the same sampler's at most steps. {_GUARDED} The references themselves: "
        f"{cell(reference['repeating'], 100, 1)} % repeating, {cell(reference['log_likelihood'], 1, 2)} nats/token under the judge, "
        f"{cell(reference['tokens'], 1, 1)} tokens.",
        "",
        *table(head, rows),
        f"![quality against steps]({images}/quality-steps.png)",
    ]


def _widths(data: Mapping[str, Any], images: str) -> list[str]:
    section = data["widths"]
    head = ["canvas", "prompts", *(f"{steps} step{'s' * (steps > 1)}" for steps in section["steps"])]

    def rows(name: str, factor: float, decimals: int) -> list[list[str]]:
        return [
            [str(width), str(prompts), *(cell(one.get(name), factor, decimals) for one in some)]
            for width, prompts, some in zip(section["widths"], section["prompts"], section["measures"], strict=True)
        ]

    return [
        "## Quality against canvas width",
        "",
        "Steps per phase (first clause, rest), every one of them used (threshold 1). A width is measured on the replies that fit it, so rows "
        "are of different prompts. The same replies give `quality_curve.json`, which the latency budget reads.",
        "",
        "chrF:",
        "",
        *table(head, rows("chrf", 1, 1)),
        "Repeating replies, %:",
        "",
        *table(head, rows("repeating", 100, 1)),
    ]


def _default(data: Mapping[str, Any], images: str) -> list[str]:
    section = data["default"]
    names = [entry for entry in MEASURES if entry[0] in section["all"]]
    head = ["source", "replies", *(entry[1] for entry in names)]

    def row(name: str, found: Mapping[str, Any]) -> list[str]:
        values = [cell(found.get(key), factor, decimals) for key, _, factor, decimals in names]
        return [name, str(found["chrf"]["count"]), *values]

    rows = [row(name, found) for name, found in section["sources"].items()]
    return [
        "## The default plan, by source",
        "",
        f"{section['plan']}: how a reply is written when nobody says otherwise.",
        "",
        *table(head, [*rows, row("**all**", section["all"])]),
    ]


_FACT_COLUMNS = (
    ("exact_facts", "all"),
    ("facts_price", "prices"),
    ("facts_time", "times"),
    ("facts_number", "other figures"),
    ("facts_name", "names"),
    ("facts_pin", "phrases of notes"),
    ("invented", "replies with invented figures"),
)


def _facts(data: Mapping[str, Any], images: str) -> list[str]:
    section = data["facts"]
    head = ["%", *(title for _, title in _FACT_COLUMNS), "facts"]

    def row(name: str, found: Mapping[str, Any]) -> list[str]:
        count = found["exact_facts"]["count"] if "exact_facts" in found else 0
        return [name, *(cell(found.get(key), 100, 1) for key, _ in _FACT_COLUMNS), str(count)]

    rows = [row("without pinning", section["free"]), row("with pinning", section["pinned"])]
    if section["causal"]:
        rows.append(row("left to right, without pinning", section["causal"]))
    rows += [row(f"{name}, without pinning", found) for name, found in section["sources"].items()]
    return [
        "## Exact facts",
        "",
        f"{section['prompts']} replies whose reference states a price, time, figure or name that stands in the prompt's facts or notes. Stated "
        "exactly means: the same characters as whole words. *all* leaves out phrases of notes, which people say in other words. With "
        "pinning these texts, taken from the reference, are fixed and the model chooses their places.",
        "",
        *table(head, rows),
    ]


def _calls(data: Mapping[str, Any], images: str) -> list[str]:
    section = data["calls"]
    rows = []
    for name, found in (("default plan", section["free"]), ("left to right", section["causal"])):
        if found:
            rows.append(
                [
                    name,
                    *(cell(found[key], 100, 1) for key in ("call_exact", "call_named", "unfinished")),
                    cell(found["steps"], 1, 1),
                ]
            )
    return [
        "## Tool calls",
        "",
        f"{section['prompts']} held-back places where the reference calls a tool. Exact: the same name and the same arguments, word for word. "
        f"{section['too_long'][0]} of {section['too_long'][1]} held-back calls are too long for the canvas and were not asked for.",
        "",
        *table(("", "exact, %", "right tool, %", "unfinished, %", "steps"), rows),
    ]


def _turns(data: Mapping[str, Any], images: str) -> list[str]:
    section = data["turns"]
    silence = section["silence"]
    rows = [
        ("the model", cell(section["accuracy"], 100, 1), cell(section["area"], 1, 3)),
        ("silence only", f"{100 * silence['accuracy']:.1f}", f"{silence['area']:.3f}, by construction"),
        ("number of words", "–", cell(section["length"]["area"], 1, 3)),
    ]
    return [
        "## Is the caller's turn complete?",
        "",
        f"{section['turns']} held-back turns, {section['whole']} of them whole and the others cut behind a word. A pause follows either, so silence "
        "alone cannot tell them apart; its accuracy is that of the more frequent answer. Some cuts leave a whole sentence: nobody can be "
        "right about those.",
        "",
        *table(("", "accuracy, %", "area under the curve"), rows),
        f"Calibration error {section['calibration_error']:.3f}.",
        "",
        f"![reliability]({images}/turn-reliability.png)",
    ]


def _doubts(data: Mapping[str, Any], images: str) -> list[str]:
    section = data["doubts"]
    rows = [
        (
            f"{row['below']:g}",
            cell(row["precision"], 100, 1),
            cell(row["recall"], 100, 1),
            str(row["precision"]["count"]),
        )
        for row in section["at"]
    ]
    return [
        "## Which words are doubtful?",
        "",
        f"{section['words']:,} words of {section['turns']} held-back turns, {section['wrong']} of them exchanged for words of similar spelling. Area under the "
        f"curve {cell(section['area'], 1, 3)}.",
        "",
        *table(("called doubtful below", "precision, %", "recall, %", "words called"), rows),
    ]


def _parallel(data: Mapping[str, Any], images: str) -> list[str]:
    rows = []
    for name, found in data["parallel"].items():
        for index, row in enumerate(found["rows"]):
            measures = row["measures"]
            threshold = "one per forward" if row["threshold"] is None else f"{row['threshold']:g}"
            mark = " **best**" if index == found["best"] else ""
            rows.append(
                (
                    name,
                    threshold + mark,
                    cell(measures["tokens_per_forward"], 1, 2),
                    cell(measures["chrf"], 1, 1),
                    cell(measures.get("log_likelihood"), 1, 2),
                    cell(measures["faulty"], 100, 1),
                )
            )
    prompts = data["parallel"]["shipped"]["prompts"]
    return [
        "## Tokens per forward at equal quality",
        "",
        f"{prompts} prompts, the same for all. *best* is the setting with most tokens per forward whose chrF, judge and faulty replies are not "
        "on the wrong side of the interval of one token per forward, of either checkpoint where two are compared. The end of the turn takes a "
        "forward and is not visible, so one token per forward gives less than one. Forwards are denoising and committing ones, without the "
        "prompt's."
        + ("" if "undistilled" in data["parallel"] else " No undistilled checkpoint was given to compare with."),
        "",
        *table(("weights", "threshold", "tokens/forward", "chrF", "judge, nats/token", "faulty, %"), rows),
    ]


# --- limits -----------------------------------------------------------------------------------------------------------


def _limits(data: Mapping[str, Any]) -> list[str]:
    """What the numbers say that it cannot do."""
    lines = []
    for what, estimate, target, is_reached in reached(data):
        if not is_reached:
            factor, decimals = (1.0, 2) if target > 1 else (100.0, 1)
            unit = "" if target > 1 else " %"
            lines.append(
                f"- Target missed: {what}: {cell(estimate, factor, decimals)}{unit}, wanted {factor * target:g}{unit}."
            )
    if "facts" in data:
        free = data["facts"]["free"]
        if "invented" in free and free["invented"]["value"]:
            lines.append(
                f"- {cell(free['invented'], 100, 1)} % of replies that should state a fact hold a figure that comes from nowhere. What must be "
                "right belongs into notes, and is pinned."
            )
    if "default" in data:
        found = {
            name: row["exact_facts"]["value"]
            for name, row in data["default"]["sources"].items()
            if row.get("exact_facts", {}).get("value") is not None
        }
        if found:
            worst = min(found, key=lambda name: found[name])
            lines.append(
                f"- Facts are stated least reliably in the source `{worst}`: {100 * found[worst]:.1f} % exactly."
            )
    if "likelihood" in data:
        losses = {
            name: row["diffusion"]["value"] for name, row in data["likelihood"]["sources"].items() if row["diffusion"]
        }
        if losses:
            worst = max(losses, key=lambda name: losses[name])
            lines.append(
                f"- It knows least of the source `{worst}` ({losses[worst]:.2f} nats per token): replies there keep to the topic at best."
            )
    if "timed" in data:
        rows = {row["name"]: row for row in data["timed"]["rows"]}
        if "autoregressive" in rows:
            best = rows["default plan"]
            other = rows["autoregressive"]
            faster = other["ms"]["p50"] / max(best["ms"]["p50"], 1e-9)
            words = "faster" if faster > 1 else "slower"
            ratio = faster if faster > 1 else 1 / max(faster, 1e-9)
            lines.append(
                f"- At the default plan a reply is {ratio:.2f} times {words} than the same weights left to right, with chrF "
                f"{best['measures']['chrf']['value']:.1f} against {other['measures']['chrf']['value']:.1f}."
            )
    lines.append("- English only, no safety training of any kind, no knowledge of the world beyond its dialogues.")
    return ["## Limits", "", *lines]

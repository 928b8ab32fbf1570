"""Which training objective: small models of one geometry, taught the same rows by each, then asked the same held-back questions.

    python benchmarks/objectives.py --data FOLDER [--data FOLDER] --out FOLDER [--tokens N | --minutes M] [--save FILE] [--plot FILE]

All begin with the same random weights and see the same rows in the same order: one answer behind its prompt, on a canvas of `WIDTH`
positions whose rest is end tokens. What differs is the objective, and what it needs of the network: `SUBJECTS` says what. Then

- likelihood: nats per token of the held-back answers, their end-of-turn included. Exact for `causal`, a bound for the others, which also
  pay for the rest of the canvas because they do not know how long an answer is;
- replies, one at a time through the engine, with 1, 2, 4, 8 and 16 denoising steps asked for (`causal`: a token per forward), scored
  against the true answers as the model card's are (`dllm.evaluate.replies`). Prompts are stored before the clock starts.

By default 0.38 M weights see 1.4 M positions: about twenty minutes for all objectives on one core. With `--tokens` all see equally much,
with `--minutes` all have equally long. Each objective's weights and results are kept in `--out`; the same command goes on where it was
stopped. Intervals resample dialogues.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from measuring import about, percentile
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dllm.drafts import Plan
from dllm.errors import ConfigError
from dllm.evaluate.bootstrap import estimate
from dllm.evaluate.prompts import Prompt, choose, prompts_of
from dllm.evaluate.replies import Limit, score_trial, summarise, write_all
from dllm.evaluate.writing import Way, Writer
from dllm.models.family import Network
from dllm.models.transformer import Transformer
from dllm.options import DecodeOptions
from dllm.spec import ModelSpec
from dllm.text import DialogueCodec
from dllm.train.config import SourceConfig, TrainConfig
from dllm.train.corpus import Corpus, Document, find_files
from dllm.train.data import Mixture
from dllm.train.objectives import OBJECTIVES
from dllm.train.objectives.base import Objective, Packed, Terms
from dllm.train.start import Start, make_codec
from dllm.train.tasks import PackedTask
from dllm.train.trainer import Budget, Trainer

HOST = torch.device("cpu")
WIDTH = 32
"""Canvas positions. Longer answers are neither learned nor asked for."""
BLOCK = 8
STEPS = (1, 2, 4, 8, 16)
DRAWS = 8
"""Corruptions of each held-back answer, their times evenly spread."""
HEAD = 32
ROW = 160
"""Positions of a row. What is longer is not in the study, so that most of what is computed is answers."""
SOURCES = {"cafe": SourceConfig(drop_system=1.0)}
"""One narrow domain, which models this small learn in minutes: what was ordered and what it costs stands in a note and has to be said.
The system turn says nothing else that answers need, and is long. Folders without this source give all they have, in equal parts."""
MEASURES = ("chrf", "content_f1", "exact_facts", "repeating", "unfinished")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is compared: an objective, its network, and how that writes."""

    objective: str
    options: Mapping[str, Any]
    measured: Mapping[str, Any]
    """Options under which the loss is the likelihood, or a bound."""
    decoding: DecodeOptions
    likelihood: str
    is_uniform: bool = False
    block: int = WIDTH

    @property
    def is_causal(self) -> bool:
        return self.objective == "causal"

    def spec(self, base: ModelSpec) -> ModelSpec:
        base = replace(base, block=self.block, max_canvas=WIDTH, canvas_multiple=WIDTH)
        if not self.is_uniform:
            return base
        special = replace(base.special, mask=None)
        return replace(base, corruption="uniform", special=special, self_conditioning=True, causal_verify=False)

    def make(self, spec: ModelSpec, options: Mapping[str, Any]) -> Objective:
        objective = OBJECTIVES[self.objective](spec, options)
        return WithoutRest(objective, spec.special.end) if self.is_causal else objective


HELD = DecodeOptions(hold_ends=True)
"""As the built-in family decodes, but for its ban on stutters, which would hide what is measured."""
TIMES = "bound, times .001 to .999"
SUBJECTS: dict[str, Subject] = {
    "masked": Subject("masked", {}, {}, HELD, "bound over orders"),
    "block": Subject("block", {}, {}, HELD, f"bound, blocks of {BLOCK}", block=BLOCK),
    "uniform": Subject("uniform", {}, {"self_conditioning": 1.0}, DecodeOptions(), TIMES, is_uniform=True),
    "uniform_ce": Subject(
        "uniform",
        {"loss": "cross_entropy"},
        {"self_conditioning": 1.0, "given": "all"},
        DecodeOptions(),
        TIMES,
        is_uniform=True,
    ),
    "causal": Subject("causal", {}, {}, DecodeOptions(mode="causal"), "exact"),
}


class WithoutRest:
    """An objective that is not taught the end tokens behind the first: left to right nobody reads on."""

    def __init__(self, objective: Objective, end: int) -> None:
        self._objective, self._end = objective, end

    def __call__(self, network: Network, batch: Packed, generator: torch.Generator) -> Terms:
        is_end = batch.learned & (batch.ids == self._end)
        learned = batch.learned.clone()
        learned[:, 1:] &= ~(is_end[:, 1:] & is_end[:, :-1])
        return self._objective(network, replace(batch, learned=learned), generator)


class Answers(Corpus):
    """Documents whose answer fits the canvas, and fills it with end tokens."""

    def draw(self, rng: random.Random) -> Document:
        for _ in range(100):
            if sum((document := super().draw(rng)).learned) <= WIDTH:
                return document
        raise ConfigError("data", "long answers", f"answers of fewer than {WIDTH} tokens")


# --- what is the same for all -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Study:
    """Configuration, tokenizer, data and questions."""

    out: Path
    config: TrainConfig
    budget: Budget
    codec: DialogueCodec
    corpus: Corpus
    prompts: list[Prompt]
    base: ModelSpec


def make_config(data: Sequence[Path], args: argparse.Namespace) -> TrainConfig:
    heads = max(1, args.hidden // HEAD)
    known = {name: source for name, source in SOURCES.items() if name in find_files(data, "train")}
    return TrainConfig(
        objective="masked",  # how rows are counted; each subject brings its own
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 5 // 2,
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=HEAD,
        seed=args.seed,
        rows_per_step=8,
        rows_per_forward=8,
        row_tokens=ROW,
        max_clean_tokens=ROW - WIDTH,
        renamed_share=0.0,
        warmup_steps=30,
        decay_share=0.4,
        ema_decay=0.99,
        compiled=False,
        sources=known,
    )


def settle(args: argparse.Namespace) -> Study:
    """Read the data and choose the questions; a folder holds the results of one study only."""
    config = make_config(args.data, args)
    files = {
        f"{split} {name}": path.stat().st_size
        for split in ("train", "dev")
        for name, path in find_files(args.data, "train" if split == "train" else "dev").items()
        if not config.sources or name in config.sources
    }
    tokens = None if args.minutes else args.tokens
    settings = {
        "config": config.to_json(),
        "files": files,
        "tokens": tokens,
        "minutes": args.minutes,
        "replies": args.replies,
        "threads": args.threads,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "study.json"
    if kept.is_file() and json.loads(kept.read_text("utf-8")) != json.loads(json.dumps(settings)):
        raise SystemExit(f"{kept}: another study is in this folder; give --out a folder of its own")
    kept.write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
    if (args.out / "tokenizer.json").is_file():
        codec = DialogueCodec.load(args.out / "tokenizer.json", config.model_spec().dialogue)
    else:
        codec = make_codec(args.data, config)
        codec.save(args.out)
    base = config.model_spec()
    corpus = Answers(args.data, codec, SUBJECTS["masked"].spec(base), config)
    mixture = Mixture(args.data, codec, replace(config, spoken_share=1.0), "dev")
    found = prompts_of(mixture, codec, args.replies)
    weights = {name: source.weight for name, source in mixture.sources.items()}
    prompts = choose(found, weights, lambda prompt: prompt.fits(WIDTH), args.replies)
    budget = Budget(args.tokens, args.minutes * 60 if args.minutes else None)
    return Study(args.out, config, budget, codec, corpus, prompts, base)


# --- training ---------------------------------------------------------------------------------------------------------


def trained(study: Study, name: str) -> tuple[Transformer, dict[str, Any]]:
    """A subject's network with its averaged weights, and what its training took; from `--out` if it is there."""
    subject, path = SUBJECTS[name], study.out / f"{name}.safetensors"
    spec = subject.spec(study.base)
    network = Transformer(spec)
    if not path.is_file():
        network.reset_parameters(torch.Generator().manual_seed(study.config.seed))
        _train(study, subject, network, path)
    with safe_open(path, "pt") as file:
        network.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        story = json.loads(file.metadata()["story"])
    return network.eval().requires_grad_(False), story


def _train(study: Study, subject: Subject, network: Transformer, path: Path) -> None:
    config, spec = study.config, network.spec
    task = PackedTask(study.corpus, subject.make(spec, subject.options), config)
    trainer = Trainer(study.out, Start(spec, network, study.codec), task, config, study.budget)
    losses = []
    while trainer.progress < 1:
        report = trainer.train_step()
        losses.append(report.loss)
        if report.step % 25 == 0:
            print(
                f"  step {report.step}, {report.tokens} positions, {report.seconds:.0f} s, "
                f"{fmean(losses[-25:]):.3f} nats",
                flush=True,
            )
    trainer.close()
    total = trainer.ledger.total
    story = {
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "steps": trainer.step,
        "positions": trainer.tokens,
        "seconds": round(trainer.seconds, 1),
        "learned": total.learned,
        "loss": [round(fmean(losses[at : at + 10]), 4) for at in range(0, len(losses), 10)],
    }
    half = path.with_name(path.name + ".half")
    save_file(
        {key: weight.contiguous() for key, weight in trainer.ema.weights.items()}, half, {"story": json.dumps(story)}
    )
    os.replace(half, path)


# --- likelihood -------------------------------------------------------------------------------------------------------


def answer_rows(prompt: Prompt, end: int, draws: int) -> Packed:
    """The prompt and its true answer on a whole canvas, alone in a row, so many times."""
    canvas = [*prompt.reference, *[end] * (WIDTH - len(prompt.reference))]
    ids = torch.tensor([*prompt.tokens, *canvas])
    at = torch.arange(len(ids))

    def rows(row: Tensor) -> Tensor:
        return row.expand(draws, -1)

    return Packed(rows(ids), rows(torch.zeros_like(ids)), rows(at), rows(at >= len(prompt.tokens)))


def nats_of(network: Network, objective: Objective, prompt: Prompt, draws: int, seed: int) -> float:
    """Loss of one held-back answer under an objective that is a bound: nats, the mean over the draws."""
    batch = answer_rows(prompt, network.spec.special.end, draws)
    with torch.inference_mode():
        return float(objective(network, batch, torch.Generator().manual_seed(seed)).loss) / draws


def likelihood(network: Transformer, subject: Subject, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Nats per token of the true answers with their end-of-turn, as an estimate."""
    objective = subject.make(network.spec, subject.measured)
    draws = 1 if subject.is_causal else DRAWS
    counts = [
        (nats_of(network, objective, prompt, draws, number), len(prompt.reference) + 1)
        for number, prompt in enumerate(prompts)
    ]
    return estimate(counts, [prompt.group for prompt in prompts]).to_json()


# --- replies ----------------------------------------------------------------------------------------------------------


def ways_of(subject: Subject) -> list[Way]:
    """Whole replies with so many steps, no certainty asked for; left to right there is one way."""
    counts = STEPS[-1:] if subject.is_causal else STEPS
    plans = [Plan(count, count, 1.0, by_clause=False) for count in counts]
    return [Way(str(plan.steps_first), plan, subject.decoding, WIDTH) for plan in plans]


def replies(network: Transformer, subject: Subject, study: Study) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row of measures for every number of steps, and the first few replies to look at."""
    ways, codec = ways_of(subject), study.codec
    writer = Writer(cast(Network, network), codec.token_table, batch=1)
    trial = write_all([(writer, ways)], study.prompts, Limit())
    rows = []
    for way, written, scored in zip(ways, trial.written, score_trial(trial, codec), strict=True):
        found = summarise(scored)
        times = [1e3 * reply.seconds for reply in written]
        rows.append(
            {
                "asked": None if subject.is_causal else int(way.name),
                "forwards": round(fmean(reply.forwards for reply in written), 2),
                "ms": {"p50": round(percentile(times, 0.5), 2), "p95": round(percentile(times, 0.95), 2)},
                "measures": {measure: found[measure] for measure in MEASURES if measure in found},
            }
        )
    samples = [
        {"true": prompt.text}
        | {way.name: codec.decode(of_way[at].tokens).strip() for way, of_way in zip(ways, trial.written, strict=True)}
        for at, prompt in enumerate(trial.prompts[:6])
    ]
    return rows, samples


def result(study: Study, name: str) -> dict[str, Any]:
    """Everything about one subject; what is in `--out` is not measured again."""
    path = study.out / f"{name}.json"
    if path.is_file():
        return cast(dict[str, Any], json.loads(path.read_text("utf-8")))
    subject = SUBJECTS[name]
    print(f"{name}:", flush=True)
    network, story = trained(study, name)
    # The first forwards of a process are slower than all others.
    Writer(cast(Network, network), study.codec.token_table, batch=1).write(study.prompts[:1], ways_of(subject))
    rows, samples = replies(network, subject, study)
    found = {
        "objective": name,
        "kind": subject.likelihood,
        "likelihood": likelihood(network, subject, study.prompts),
        "training": story,
        "replies": rows,
        "samples": samples,
        "load": round(os.getloadavg()[0], 1),
    }
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


# --- what is shown ----------------------------------------------------------------------------------------------------


def shown(found: Mapping[str, Any] | None, factor: float = 1.0, places: int = 0) -> str:
    """An estimate with its interval."""
    if found is None or found["value"] is None:
        return "–"
    value, low, high = (f"{factor * found[key]:.{places}f}" for key in ("value", "low", "high"))
    return f"{value} ({low}–{high})"


def tables(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Two Markdown tables: likelihoods with what training took, and replies by steps."""
    lines = [
        "| objective | held-back nats per token | which is | steps | positions | training |",
        "|---|---|---|---|---|---|",
    ]
    for one in results:
        story = one["training"]
        lines.append(
            f"| {one['objective']} | {shown(one['likelihood'], places=3)} | {one['kind']} | {story['steps']} "
            f"| {story['positions']} | {story['seconds']:.0f} s |"
        )
    lines += [
        "",
        "| objective | steps asked | forwards | ms p50 / p95 | chrF | content F1, % | facts exact, % | repeating, % | unfinished, % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        for row in one["replies"]:
            measures, ms = row["measures"], row["ms"]
            cells = [
                one["objective"],
                "–" if row["asked"] is None else str(row["asked"]),
                f"{row['forwards']:.1f}",
                f"{ms['p50']:.1f} / {ms['p95']:.1f}",
                shown(measures.get("chrf"), places=1),
                *(shown(measures.get(name), 100) for name in MEASURES[1:]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """chrF against forwards and against milliseconds, and repeating replies against forwards."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.0))
    panels = (
        ("chrf", 1, "chrF", "forwards"),
        ("chrf", 1, "chrF", "ms"),
        ("repeating", 100, "repeating, %", "forwards"),
    )
    for axis, (measure, factor, title, against) in zip(axes, panels, strict=True):
        for one in results:
            rows = [row for row in one["replies"] if row["measures"].get(measure, {}).get("value") is not None]
            at = [row["forwards"] if against == "forwards" else row["ms"]["p50"] for row in rows]
            value, low, high = (
                [factor * row["measures"][measure][key] for row in rows] for key in ("value", "low", "high")
            )
            bars = [[v - a for v, a in zip(value, low, strict=True)], [b - v for v, b in zip(value, high, strict=True)]]
            marker = "s" if one["objective"] == "causal" else "o"
            axis.errorbar(at, value, yerr=bars, marker=marker, markersize=4, capsize=2, label=one["objective"])
        axis.set(
            xscale="log",
            xlabel="forwards per reply" if against == "forwards" else "milliseconds per reply, p50",
            ylabel=title,
        )
        if against == "forwards":
            axis.set_xticks(STEPS, [str(count) for count in STEPS])
            axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    # Without the library's version the same numbers give the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, action="append", required=True, help="folder of dialogues; may be repeated"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and results, of this study alone")
    parser.add_argument("--tokens", type=int, default=1_400_000, help="positions that each objective sees")
    parser.add_argument("--minutes", type=float, help="training time of each objective instead")
    parser.add_argument("--hidden", type=int, default=96, help=f"a multiple of {HEAD}")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--objectives", nargs="+", choices=tuple(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--replies", type=int, default=200, help="held-back prompts, one of each dialogue")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path, help="results as JSON")
    parser.add_argument("--plot", type=Path, help="results as PNG")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    head = about(HOST)
    print(json.dumps(head), flush=True)
    study = settle(args)
    results = [result(study, name) for name in args.objectives]
    print("\n".join(tables(results)))
    if args.save:
        body = {
            **head,
            "settings": json.loads((args.out / "study.json").read_text("utf-8")),
            "prompts": len(study.prompts),
            "results": results,
        }
        args.save.write_text(json.dumps(body, indent=1) + "\n", "utf-8")
    if args.plot:
        draw(results, args.plot)


if __name__ == "__main__":
    main()

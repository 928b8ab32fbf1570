"""The built-in model in each type of weights and of prefix cache: time of a step, bytes, and how far its beliefs and replies are from float32's.

    python benchmarks/quantize.py [--data FOLDER] [--threads 1 2] [--repeats 60] [--prompts 90] [--json FILE]
    python benchmarks/quantize.py --only float32 "float32, cache e4m3" bfloat16 "bfloat16, cache e4m3" --data FOLDER

Types take turns step by step, so that load on the machine meets all alike. Without held-back dialogues (`--data`) times alone are
measured. The head is left as it is unless a row says "+ head".
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from measuring import about, percentile

from dllm import loader
from dllm.drafts import Cell, DraftSpec, Event, Failed, Finished, Plan, Stepped
from dllm.engine import Engine
from dllm.evaluate.likelihood import causal_log_likelihoods
from dllm.evaluate.prompts import Prompt, held_back, prompts_of
from dllm.models.family import EIGHT_BITS
from dllm.models.transformer import Transformer
from dllm.options import DecodeOptions
from dllm.packing import LAYERS_COMPILED
from dllm.quantize import Quantisation
from dllm.train.config import TrainConfig
from dllm.train.data import Mixture

HOST = torch.device("cpu")
WIDTH, CACHED = 32, 300
ENDLESS = Plan(10_000, 10_000, 1.0)
LONG = DecodeOptions(hold_ends=True, no_stutter=True, min_tokens=WIDTH - 1)
"""Replies as long as their canvas: many steps a draft."""
PLAN = Plan(steps_first=10, steps_rest=14, threshold=0.9)
CONFIG = Path(loader.__file__).parent / "configs" / "builtin.toml"


@dataclass(frozen=True, slots=True)
class Variant:
    """The same model, held otherwise."""

    checkpoint: loader.Checkpoint
    cache_dtype: torch.dtype | None = None

    def engine(self, max_batch: int = 8) -> Engine:
        checkpoint = self.checkpoint
        return Engine(checkpoint.model, checkpoint.codec.token_table, max_batch=max_batch, cache_dtype=self.cache_dtype)


def variants() -> dict[str, Variant]:
    """The same weights in each type, and as `voiceagent` runs them. fp8 is the CPU's reference: its beliefs are what a GPU's would be, its time is not."""
    found = {"float32": Variant(loader.load()), "bfloat16": Variant(loader.load(dtype=torch.bfloat16))}
    found |= {f"{name}, cache e4m3": replace(variant, cache_dtype=EIGHT_BITS) for name, variant in found.items()}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        checkpoint = loader.load(dtype=dtype, compiled=True)
        if checkpoint.compiled == LAYERS_COMPILED:
            found[f"{name}, {LAYERS_COMPILED}"] = Variant(checkpoint)
    for mode in ("int8", "int8-dynamic", "fp8", "int4"):
        for head in (False, True):
            loaded = loader.load(quantize=Quantisation(mode, head))  # type: ignore[arg-type]
            found[mode + (" + head" if head else "")] = Variant(loaded)
    return found


def refill(engine: Engine, batch: int) -> None:
    """Begin anew when a draft has ended; then all are prefilled and have stepped."""
    if len(engine.drafts) == batch:
        return
    for draft in engine.drafts:
        engine.cancel(draft)
    for index in range(batch):
        prompt = tuple(16 + (place * 7919 + index) % 4000 for place in range(CACHED))
        engine.submit(DraftSpec(prompt, f"bench{index}", WIDTH, ENDLESS, options=LONG))
    while not all(draft.steps for draft in engine.drafts):
        engine.run_round()


def step_once(engine: Engine, batch: int) -> float:
    """Milliseconds of a round in which every draft takes a step."""
    events: list[Event] = []
    # With one thread its own time, which other work on the machine disturbs least.
    now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    began = now()
    events.extend(engine.run_round())
    seconds = now() - began
    stepped = sum(isinstance(event, Stepped) for event in events)
    assert stepped == batch, f"{stepped} of {batch} drafts stepped: this is no step's time"
    return seconds * 1e3


def step_times(variants: dict[str, Variant], batch: int, repeats: int) -> dict[str, dict[str, float]]:
    """p50 and p95 of a whole round, in milliseconds. When a draft ends all begin anew, untimed."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    engines = {name: variant.engine(batch) for name, variant in variants.items()}
    for _ in range(repeats):
        for name, engine in engines.items():
            refill(engine, batch)
            times[name].append(step_once(engine, batch))
    return {
        name: {"p50_ms": round(median(taken), 2), "p95_ms": round(percentile(taken, 0.95), 2)}
        for name, taken in times.items()
    }


def beliefs(variant: Variant, prompts: Sequence[Prompt]) -> tuple[list[tuple[Cell, ...]], list[Finished]]:
    """Every prompt's canvas after its first step, and its reply, one draft at a time."""
    canvases, replies = [], []
    engine = variant.engine()
    for index, entry in enumerate(prompts):
        engine.submit(DraftSpec(entry.tokens, f"eval{index}", WIDTH, PLAN))
        first: tuple[Cell, ...] | None = None
        while engine.drafts:
            for event in engine.run_round():
                match event:
                    case Stepped(canvas=canvas) if first is None:
                        first = canvas
                    case Finished():
                        replies.append(event)
                    case Failed(error=error):
                        raise error
                    case _:
                        pass
        assert first is not None
        canvases.append(first)
    return canvases, replies


def calibration(
    variants: dict[str, Variant], prompts: Sequence[Prompt], judge: Transformer
) -> dict[str, dict[str, float]]:
    """How far each type is from the first.

    On canvases that are all masks: the mean distance of the most probable token's probability, its mean (a shift moves thresholds), and
    how often the token is the same. On replies: how many differ at all, how often the tokens are the same at the same place (after one
    difference few are: a handful of replies moves this by percents), steps, and the mean log-likelihood
    per token under the float model's causal mode.
    """
    report: dict[str, dict[str, float]] = {}
    base_canvases, base_replies = [], []
    for name, variant in variants.items():
        canvases, replies = beliefs(variant, prompts)
        if not base_canvases:
            base_canvases, base_replies = canvases, replies
        pairs = [
            pair for one, other in zip(canvases, base_canvases, strict=True) for pair in zip(one, other, strict=True)
        ]
        same = sum(
            left == right
            for one, other in zip(replies, base_replies, strict=True)
            for left, right in zip(one.tokens, other.tokens, strict=False)
        )
        total = sum(max(len(one.tokens), len(other.tokens)) for one, other in zip(replies, base_replies, strict=True))
        with torch.inference_mode():
            scores = [
                causal_log_likelihoods(judge, entry.tokens, [reply.tokens])[0] / (len(reply.tokens) + 1)
                for entry, reply in zip(prompts, replies, strict=True)
            ]
        report[name] = {
            "top_probability_distance": round(mean(abs(one.confidence - other.confidence) for one, other in pairs), 5),
            "top_probability_shift": round(mean(one.confidence - other.confidence for one, other in pairs), 5),
            "token_agreement": round(mean(one.token == other.token for one, other in pairs), 4),
            "replies_that_differ": sum(
                one.tokens != other.tokens for one, other in zip(replies, base_replies, strict=True)
            ),
            "reply_agreement": round(same / max(1, total), 4),
            "steps": round(mean(reply.usage.forwards_denoise for reply in replies), 2),
            "log_likelihood": round(mean(scores), 4),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", default=[], help="folder of dialogues; may be repeated")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=90)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="these rows alone; the first is what others are compared with"
    )
    args = parser.parse_args()
    report: dict[str, Any] = {**about(HOST), "width": WIDTH, "cached": CACHED, "steps": [], "calibration": {}}
    print(json.dumps({key: value for key, value in report.items() if isinstance(value, str)}), flush=True)
    made = variants()
    made = {name: made[name] for name in args.only or made}
    engines = {name: variant.engine() for name, variant in made.items()}
    report["bytes"] = {name: engine.memory().weights for name, engine in engines.items()}
    report["cached_token_bytes"] = {
        name: engine.cache.page_bytes // engine.cache.page_size for name, engine in engines.items()
    }
    print(report["bytes"], report["cached_token_bytes"], flush=True)
    fast = {name: variant for name, variant in made.items() if not name.startswith("fp8")}
    for threads in args.threads:
        torch.set_num_threads(threads)
        for batch in (1, 4):
            for name, times in step_times(fast, batch, args.repeats).items():
                load = round(os.getloadavg()[0], 1)
                report["steps"].append({"threads": threads, "batch": batch, "weights": name, **times, "load": load})
                print(report["steps"][-1], flush=True)
    if args.data:
        torch.set_num_threads(args.threads[0])
        codec = made["float32"].checkpoint.dialogue_codec
        mixture = Mixture(args.data, codec, held_back(TrainConfig.load(CONFIG)), "dev")
        found = prompts_of(mixture, codec, args.prompts)
        fitting = [prompt for source in found.values() for prompt in source if prompt.fits(WIDTH)]
        # Of all sources alike.
        prompts = fitting[:: max(1, len(fitting) // args.prompts)][: args.prompts]
        judge = made["float32"].checkpoint.model
        assert isinstance(judge, Transformer)
        report["prompts"] = len(prompts)
        report["calibration"] = calibration(made, prompts, judge)
        for name, row in report["calibration"].items():
            print(name, row, flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

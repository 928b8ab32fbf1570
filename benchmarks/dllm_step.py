"""Time of one denoising step and of a prefill with the built-in model: prints machine, commit, p50 and p95 in milliseconds.

    python benchmarks/dllm_step.py [--model FOLDER] [--threads 1] [--repeats 100] [--json FILE]

A step is the engine's whole round: forward over the canvas, sampling, selection, events. CPU time is beside the wall time because the
machine may be shared.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dllm import loader
from dllm.drafts import DraftSpec, Plan
from dllm.engine import Engine
from dllm.options import DecodeOptions


def measure(run: Callable[[], object], repeats: int, prepare: Callable[[], object] = lambda: None) -> dict[str, float]:
    """p50 and p95 of wall time and p50 of CPU time, after a tenth of the repeats as warm-up; `prepare` is not timed."""
    wall, cpu = [], []
    for index in range(repeats + repeats // 10):
        prepare()
        wall_began, cpu_began = time.perf_counter(), time.process_time()
        run()
        if index >= repeats // 10:
            wall.append((time.perf_counter() - wall_began) * 1e3)
            cpu.append((time.process_time() - cpu_began) * 1e3)
    wall.sort()
    return {
        "p50_ms": round(statistics.median(wall), 2),
        "p95_ms": round(wall[int(0.95 * (len(wall) - 1))], 2),
        "cpu_p50_ms": round(statistics.median(cpu), 2),
    }


def step_times(checkpoint: loader.Checkpoint, width: int, cached: int, batch: int, repeats: int) -> dict[str, float]:
    """Rounds of drafts that have been prefilled, each after its first step: threshold 1 and more steps than masks."""
    engine = Engine(checkpoint.model, checkpoint.codec.token_table, max_batch=batch)
    prompt = tuple(16 + (index * 7919) % 4000 for index in range(cached))
    # As the voice agent asks, but for an end that never comes too soon: replies as long as their canvas give many steps a draft.
    options, plan = DecodeOptions(hold_ends=True, no_stutter=True, min_tokens=width - 1), Plan(10_000, 10_000, 1.0)

    def refill() -> None:
        if len(engine.drafts) == batch:
            return
        for draft in engine.drafts:
            engine.cancel(draft)
        for index in range(batch):
            engine.submit(DraftSpec(prompt, f"bench{index}", width, plan, options=options))
        while not all(draft.steps for draft in engine.drafts):
            engine.run_round()
        if len(engine.drafts) != batch:
            raise SystemExit("the engine lost its drafts")

    return measure(engine.run_round, repeats, refill)


def prefill_times(checkpoint: loader.Checkpoint, new: int, repeats: int) -> dict[str, float]:
    """`Engine.warm` of a prompt that the cache knows nothing of."""
    engine = Engine(checkpoint.model, checkpoint.codec.token_table)
    tokens = range(20, 20 + new)
    return measure(lambda: engine.warm("bench", tokens), repeats, lambda: engine.forget("bench"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = loader.load(args.model, compiled=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {platform.system()}, {args.threads} thread(s)",
        "layers": checkpoint.compiled or "as PyTorch runs them",
        "torch": torch.__version__,
        "commit": commit.strip(),
        "parameters": sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        "rows": [],
    }
    print(report["machine"], "torch", report["torch"], "commit", report["commit"])
    for width, cached, batch in ((16, 300, 1), (32, 300, 1), (64, 300, 1), (32, 100, 1), (32, 300, 4), (32, 300, 8)):
        row = {"what": "step", "width": width, "cached": cached, "batch": batch}
        row |= step_times(checkpoint, width, cached, batch, args.repeats)
        report["rows"].append(row)
        print(row)
    for new in (16, 64, 256):
        row = {"what": "prefill", "new": new}
        row |= prefill_times(checkpoint, new, max(20, args.repeats // 4))
        report["rows"].append(row)
        print(row)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

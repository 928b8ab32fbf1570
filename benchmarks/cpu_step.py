"""A denoising step of the built-in model on a CPU: where its time goes, and how far it is from what the machine can do.

    python benchmarks/cpu_step.py [--threads 1] [--repeats 40] [--weights float32] [--before CHECKOUT] [--json FILE]
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 python benchmarks/cpu_step.py --weights float32   # as on a processor without AVX-512

Ways to run the same weights take turns round by round: PyTorch's layers, weights laid out for the CPU's products (`packed`), all layers in one
compiled call (`compiled`; where the best is AVX-512, also as compiled for AVX2). Times are processor time of the engine's thread (wall time with more than one thread), so that other work on
the machine disturbs as little as it can. A round is all that the engine does: forward, tokens, selection, events.

The floor of a row is the larger of its bytes (weights, stored keys and values, read once) over the speed of a large copy and of its
multiplications and additions over the rate of a large product in that type, both measured in the same run. With `--before` another
checkout of this repository writes the same canvases, in turns, as processes of their own.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dllm import loader
from dllm.drafts import DraftSpec, Plan
from dllm.engine import Engine
from dllm.options import DecodeOptions
from dllm.spec import ModelSpec
from dllm_kernels import native

CASES = ((16, 256, 1), (32, 256, 1), (32, 512, 1), (64, 512, 1), (32, 512, 4), (32, 512, 8))
"""Canvas, stored tokens, drafts."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WAYS: dict[str, dict[str, Any]] = {"plain": {}, "packed": {"packed": True}, "compiled": {"compiled": True}}
FOR_AVX2 = "compiled for AVX2"
PROFILED = (32, 512, 1)
BEFORE_ROUNDS = 3
WARM_UPS = 5


class Rounds:
    """An engine with drafts that never run out: replies as long as their canvas, one token a step."""

    def __init__(self, checkpoint: loader.Checkpoint, width: int, cached: int, batch: int) -> None:
        self.engine = Engine(checkpoint.model, checkpoint.codec.token_table, max_batch=batch)
        self.width, self.batch = width, batch
        self.prompt = tuple(16 + (index * 7919) % 4000 for index in range(cached))
        # As the voice agent asks, but for an end that never comes too soon.
        self.options = DecodeOptions(hold_ends=True, no_stutter=True, min_tokens=width - 1)

    def refill(self) -> int:
        """Begin anew when a draft has ended, all prefilled and stepped; how many masks there are."""
        engine = self.engine
        if len(engine.drafts) < self.batch:
            for draft in engine.drafts:
                engine.cancel(draft)
            plan = Plan(10_000, 10_000, 1.0)
            for index in range(self.batch):
                engine.submit(DraftSpec(self.prompt, f"bench{index}", self.width, plan, options=self.options))
            while not all(draft.steps for draft in engine.drafts):
                engine.run_round()
        return sum(not draft.canvas.is_decided(at) for draft in engine.drafts for at in range(self.width))


def clock(threads: int) -> Callable[[], float]:
    return time.thread_time if threads == 1 else time.perf_counter


def rate(call: Callable[[], object], amount: float, now: Callable[[], float]) -> float:
    """Amount per second: the best of nine, since what disturbs only slows."""
    seconds = []
    for _ in range(9):
        began = now()
        call()
        seconds.append(now() - began)
    return amount / min(seconds)


def speeds(now: Callable[[], float]) -> dict[str, float]:
    """Of this machine: bytes per second of a copy (read and written), operations per second of a product in each type."""
    size = 2**27
    source, target = torch.ones(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
    found = {"copy_bytes_per_s": rate(lambda: target.copy_(source), 2 * size, now)}
    for name, dtype in DTYPES.items():
        left, right = (torch.randn(768, 768).to(dtype) for _ in range(2))
        found[f"{name}_flops_per_s"] = rate(functools.partial(torch.mm, left, right), 2 * 768**3, now)
    return found


def floor_s(
    spec: ModelSpec, dtype: str, case: tuple[int, int, int], masks: float, speed: dict[str, float]
) -> dict[str, float]:
    """Seconds that the bytes and the arithmetic of a step take at these speeds."""
    width, cached, batch = case
    heads, groups = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
    per_layer = spec.hidden_size * (2 * heads + 2 * groups + 3 * spec.intermediate_size)
    head, layers, tokens, slots = (
        spec.hidden_size * spec.vocab_size,
        spec.num_hidden_layers,
        width * batch,
        width + cached,
    )
    operations = 2 * tokens * per_layer * layers + 2 * masks * head + 4 * tokens * slots * heads * layers
    item = DTYPES[dtype].itemsize
    size = (per_layer * layers + head + 2 * layers * groups * slots * batch) * item
    return {"memory": size / speed["copy_bytes_per_s"], "arithmetic": operations / speed[f"{dtype}_flops_per_s"]}


def measure(
    checkpoints: dict[tuple[str, str], loader.Checkpoint],
    case: tuple[int, int, int],
    repeats: int,
    speed: dict[str, float],
    now: Callable[[], float],
) -> list[dict[str, Any]]:
    from measuring import percentile  # not for a child: it reads what an older checkout may lack

    rounds = {key: Rounds(checkpoint, *case) for key, checkpoint in checkpoints.items()}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in rounds}
    masks: list[int] = []
    for repeat in range(repeats + WARM_UPS):
        for key, one in rounds.items():
            left = one.refill()
            began = now()
            one.engine.run_round()
            if repeat >= WARM_UPS:
                seconds[key].append(now() - began)
                masks.append(left)
    rows = []
    for (dtype, way), taken in seconds.items():
        spec = checkpoints[dtype, way].spec
        floor = floor_s(spec, dtype, case, statistics.mean(masks), speed)
        middle = statistics.median(taken)
        rows.append(
            {
                "width": case[0],
                "cached": case[1],
                "batch": case[2],
                "weights": dtype,
                "way": way,
                **{f"p{share}_ms": round(percentile(taken, share / 100) * 1e3, 2) for share in (50, 95, 99)},
                **{f"{name}_floor_ms": round(value * 1e3, 2) for name, value in floor.items()},
                "times_floor": round(middle / max(floor.values()), 2),
                "plain_over_this": round(statistics.median(seconds[dtype, "plain"]) / middle, 2),
                "load": round(os.getloadavg()[0], 1),
            }
        )
    return rows


# --- where the time goes ----------------------------------------------------------------------------------------------------


class Shares:
    """Own time of functions: what they take less what the watched functions that they call take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []
        self._undo: list[Callable[[], None]] = []

    def watch(self, place: Any, name: str, label: str) -> None:
        original = getattr(place, name)

        @functools.wraps(original)
        def timed(*arguments: Any, **options: Any) -> Any:
            self._inner.append(0.0)
            began = time.thread_time()
            try:
                return original(*arguments, **options)
            finally:
                whole = time.thread_time() - began
                inner = self._inner.pop()
                self.seconds[label] = self.seconds.get(label, 0.0) + whole - inner
                if self._inner:
                    self._inner[-1] += whole

        setattr(place, name, timed)
        self._undo.append(lambda: setattr(place, name, original))

    def stop(self) -> None:
        for undo in reversed(self._undo):
            undo()


def profile(checkpoint: loader.Checkpoint, repeats: int) -> dict[str, float]:
    """Microseconds of a round by what they are spent on. Watching costs about a microsecond a call."""
    from dllm import denoise, reading, stepping, token_rules, window
    from dllm.layers.packed import PackedLinear
    from dllm.models.transformer import Transformer
    from dllm_kernels import Decoder

    one, shares = Rounds(checkpoint, *PROFILED), Shares()
    for _ in range(WARM_UPS):
        one.refill()
        one.engine.run_round()
    between = "layers, between products and attention"
    watched: list[tuple[Any, str, str]] = [
        (Engine, "run_round", "planning, events, the cache"),
        (window.Workspace, "arrange", "windows to tensors"),
        (window.Workspace, "forward", between),
        (Decoder, "__call__", "layers, compiled"),
        (torch.nn.Linear, "forward", "layers, products"),
        (PackedLinear, "forward", "head"),
        (F, "scaled_dot_product_attention", "layers, attention"),
        (Transformer, "logits", "head"),
        (denoise.Denoiser, "visit", "canvases to tensors and back"),
        (reading, "commit_from_logits", "tokens from logits"),
        (token_rules.TokenRules, "apply", "rules about tokens"),
        (stepping.Round, "_part", "rules about tokens"),
        *(
            (stepping.Round, name, "selection, the end, the guard")
            for name in ("_scores", "_place_pins", "_select", "_close", "_watch", "_revise")
        ),
    ]
    totals: list[dict[str, float]] = []
    for _ in range(repeats):
        one.refill()
        for place, name, label in watched:
            shares.watch(place, name, label)
        one.engine.run_round()
        shares.stop()
        shares._undo.clear()
        totals.append(dict(shares.seconds))
        shares.seconds.clear()
    labels = sorted({label for taken in totals for label in taken})
    middles = {label: statistics.median(taken.get(label, 0.0) for taken in totals) * 1e6 for label in labels}
    return {label: round(value, 1) for label, value in sorted(middles.items(), key=lambda entry: -entry[1])}


# --- another checkout -------------------------------------------------------------------------------------------------------


def child(repeats: int, weights: list[str]) -> dict[str, float]:
    """Median milliseconds by case and type, with whatever this checkout does for a network that writes."""
    found = {}
    for name in weights:
        dtype = DTYPES[name]
        try:
            checkpoint = loader.load(dtype=dtype, compiled=True)
        except TypeError:  # an older one
            checkpoint = loader.load(dtype=dtype)
        for case in CASES:
            one, taken = Rounds(checkpoint, *case), []
            for repeat in range(repeats + WARM_UPS):
                one.refill()
                began = time.thread_time()
                one.engine.run_round()
                if repeat >= WARM_UPS:
                    taken.append(time.thread_time() - began)
            found[f"{name} {'/'.join(map(str, case))}"] = statistics.median(taken) * 1e3
    return found


def against(before: Path, repeats: int, weights: list[str]) -> list[dict[str, Any]]:
    here = Path(__file__).resolve().parents[1]
    asked = [part for name in weights for part in ("--weights", name)]
    found: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    for _ in range(BEFORE_ROUNDS):
        for name, root in (("before", before), ("after", here)):
            path = os.pathsep.join(str(root / part) for part in ("", "kernels", "pipelines"))
            done = subprocess.run(
                [sys.executable, __file__, "--child", "--repeats", str(repeats), *asked],
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=True,
            )
            found[name].append(json.loads(done.stdout))
    rows = []
    for case in found["after"][0]:
        old, new = (statistics.median(taken[case] for taken in found[name]) for name in ("before", "after"))
        rows.append({"case": case, "before_ms": round(old, 2), "after_ms": round(new, 2), "ratio": round(old / new, 2)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--weights", choices=DTYPES, action="append", help="only these types; may be repeated")
    parser.add_argument("--before", type=Path, help="another checkout of this repository, to be compared with in turns")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        print(json.dumps(child(args.repeats, args.weights or list(DTYPES))))
        return
    from measuring import about

    now = clock(args.threads)
    speed = speeds(now)
    weights = args.weights or list(DTYPES)
    checkpoints = {
        (name, way): loader.load(dtype=DTYPES[name], **options) for name in weights for way, options in WAYS.items()
    }
    best = native.prepare()
    if "float32" in weights and native.available()[:1] == ("avx512",):
        native.use(native.build("avx2"))
        checkpoints["float32", FOR_AVX2] = loader.load(compiled=True)
        native.use(best)
    report: dict[str, Any] = {
        **about(torch.device("cpu")),
        "layers": checkpoints[weights[0], "compiled"].compiled,
        "kernels": re.sub(r"with \S+", "", best.reason).replace("  ", " "),
        **{name: float(f"{value:.3g}") for name, value in speed.items()},
        "rows": [],
        "profile_us": {},
        "before": [],
    }
    print(json.dumps({key: value for key, value in report.items() if not isinstance(value, list | dict)}), flush=True)
    print(
        "| canvas / stored / drafts | weights | way | p50 / p95 / p99 ms | floor: memory, arithmetic | × floor | gain |"
    )
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        for row in measure(checkpoints, case, args.repeats, speed, now):
            report["rows"].append(row)
            print(
                f"| {row['width']} / {row['cached']} / {row['batch']} | {row['weights']} | {row['way']} | {row['p50_ms']} / "
                f"{row['p95_ms']} / {row['p99_ms']} | {row['memory_floor_ms']}, {row['arithmetic_floor_ms']} ms | "
                f"{row['times_floor']} | {row['plain_over_this']} |",
                flush=True,
            )
    for key in ((name, way) for name in weights for way in ("plain", "compiled")):
        report["profile_us"][" ".join(key)] = profile(checkpoints[key], args.repeats)
        print(" ".join(key), json.dumps(report["profile_us"][" ".join(key)]), flush=True)
    if args.before is not None:
        report["before"] = against(args.before.resolve(), args.repeats, weights)
        print(json.dumps(report["before"], indent=1), flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

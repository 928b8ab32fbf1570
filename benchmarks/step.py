"""One whole denoising step: forward, head, commit, selection and the host's part, against its floor, the reference and transformers.

    python benchmarks/step.py --tiny                                # seconds on a CPU: that all of it runs
    TRITON_INTERPRET=1 python benchmarks/step.py --tiny --interpret --canvas 8 --batch 1   # the ways of a GPU: kernels interpreted, recordings done again
    python benchmarks/step.py --device cuda --budget 110 --save DIR # step.json and step.png in that folder
    python benchmarks/step.py --device cuda --geometry 8B --canvas 32 --batch 1

Weights are random and made on the device. Canvases are blocks of their own over 512 stored tokens; `rule="count"` decides one position a step, so that
a draft has as many steps as positions, all alike. The ways, in turns in one run:

reference       plain PyTorch, as on a device without kernels
kernels         Triton's kernels, launched one by one (GPU only)
graphs          the same, each step recorded whole (GPU only)
graphs x 4      four steps to a visit of the host (GPU only); without a GPU `x 4` is the same loop unrecorded
..., as asked   the same with drafts as the voice agent asks for them: no stutters, held ends, a banned token, a threshold of facts and a pin whose place
                is looked for, so that a step's logits are changed before anything is chosen
transformers    `Qwen3Model` of the same weights over a static cache, its head, softmax and best token: compiled and recorded as a CUDA graph on a GPU,
                recorded alone once the time for compiling is spent, eager on a CPU. It chooses no positions and tells nobody.

Floor: weights and stored keys and values read once at the speed of a large copy, or two operations per weight and token at the rate of a large
product, whichever takes longer. The profile tells where the rest goes; host synchronisations are counted by PyTorch's profiler.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from engine import (
    ALL,
    _table,
    _tokens,
    random_network,
    slot_bytes,
    transformers_twin,
    weights_read,
    with_blocks,
)
from measuring import about, copy_bytes_per_s, flops_per_s, percentile, synchronize
from torch import Tensor

import dllm_kernels
from dllm.drafts import DraftSpec, Failed, Plan, Stepped
from dllm.engine import Engine
from dllm.graphs import Graphs, Recorded, Shape, capture, cuda_graphs
from dllm.models.transformer import Transformer
from dllm.options import DecodeOptions
from dllm_kernels.choose import Kind

CANVASES, BATCHES = (32, 16, 64), (1, 4, 16, 64)
MOST_VALUABLE = ("8B", "4B", "1.7B")
WAITING = ("StreamSynchronize", "EventSynchronize", "_local_scalar_dense")
"""What in a profile's names makes the host wait for the device."""


FIGURES, WORDS = frozenset(range(100, 110)), frozenset(range(110, 200))
PIN, BANNED = (101, 115, 116), 117


@dataclass(frozen=True, slots=True)
class Size:
    canvas: int
    batch: int
    cached: int


class Repeater:
    """On a CPU in place of a CUDA graph: does the work again, into the same memory."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        result = run().clone()
        return lambda: result.copy_(run()), result


class Ours:
    """Drafts of an engine whose prompts are stored; each `write` takes as many steps as a canvas has positions to decide one by one.

    Args:
        as_asked: With the rules about tokens that the voice agent's drafts have.
    """

    def __init__(
        self,
        name: str,
        network: Transformer,
        size: Size,
        *,
        kind: Kind,
        graphs: bool,
        visit: int,
        as_asked: bool = False,
    ) -> None:
        self.name, self._size, self._kind, self._as_asked = name, size, kind, as_asked
        self._device = network.embed_tokens.weight.device
        self.recorded: list[Recorded] = []
        blocks = with_blocks(network, size.canvas)
        self._engine = Engine(
            blocks,
            replace(_table(network.spec), digit=FIGURES, word=WORDS),
            max_batch=size.batch,
            cache_bytes=(size.batch + 1) * (size.cached + 2 * size.canvas + 64) * slot_bytes(network),
            forward=self._graphs(blocks) if graphs else None,
            steps_per_visit=visit,
        )
        self._prompts = [_tokens(number)[: size.cached] for number in range(size.batch)]
        self._use()
        for number, prompt in enumerate(self._prompts):
            self._engine.warm(f"caller {number}", prompt)

    def _graphs(self, blocks: Transformer) -> Graphs:
        if self._device.type == "cuda":
            return cuda_graphs(blocks, self.recorded.append)
        return Graphs(blocks, Repeater(), progress=self.recorded.append)

    def _use(self) -> None:
        dllm_kernels.use(self._kind)

    def _draft(self, number: int, prompt: tuple[int, ...]) -> DraftSpec:
        """Random weights are sure of nothing, so that each of the plan's steps decides its share, one position."""
        width = self._size.canvas
        plan = Plan(width, 1, 1.0, by_clause=False)
        options = DecodeOptions(rule="count", min_tokens=width, guard=False)
        if not self._as_asked:
            return DraftSpec(prompt, f"caller {number}", width, plan, options=options)
        options = replace(
            options, rule="threshold", no_stutter=True, hold_ends=True, logit_bias=((BANNED, -float("inf")),)
        )
        plan = replace(plan, threshold=0.9, fact_threshold=1.0)
        return DraftSpec(prompt, f"caller {number}", width, plan, pins=(PIN,), options=options)

    def write(self, *, is_timed: bool = True) -> list[float]:
        """Seconds of each step, the host's part included, but for the first visit of the batch, which opens the drafts."""
        self._use()
        for number, prompt in enumerate(self._prompts):
            self._engine.submit(self._draft(number, prompt))
        seconds: list[float] = []
        is_first = True
        while self._engine.drafts:
            if is_timed:
                synchronize(self._device)
            began = time.perf_counter()
            events = self._engine.run_round()
            took = time.perf_counter() - began
            failed = next((event for event in events if isinstance(event, Failed)), None)
            if failed is not None:
                raise failed.error
            steps = sum(isinstance(event, Stepped) for event in events) // self._size.batch
            if steps and not is_first:
                seconds += [took / steps] * steps
            is_first = is_first and not steps
        return seconds


class Theirs:
    """Transformers' own network over a static cache, one forward after another with the same canvas."""

    name = "transformers"

    def __init__(self, twin: Any, size: Size, compiles: bool) -> None:
        from transformers import StaticCache

        self._size = size
        self._device = next(twin.parameters()).device
        self.how = "eager"
        cache = StaticCache(config=twin.config, max_cache_len=size.cached + size.canvas)
        prompt = torch.tensor([_tokens(number)[: size.cached] for number in range(size.batch)], device=self._device)
        ids = torch.full((size.batch, size.canvas), 7, device=self._device)
        at = torch.arange(size.cached, size.cached + size.canvas, device=self._device)
        # The canvas sees all of the text and itself.
        mask = torch.zeros(
            1, 1, size.canvas, size.cached + size.canvas, dtype=next(twin.parameters()).dtype, device=self._device
        ).expand(size.batch, -1, -1, -1)

        def step() -> Tensor:
            hidden = twin.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=at.expand(size.batch, -1),
                past_key_values=cache,
            ).last_hidden_state
            best = twin.lm_head(hidden).float().softmax(dim=-1).max(dim=-1)
            return torch.stack((best.values, best.indices.float()))

        with torch.inference_mode():
            twin.model(input_ids=prompt, past_key_values=cache)
            self._lengths = [layer.cumulative_length for layer in cache.layers]
            self._step: Callable[[], object] = step
            if self._device.type == "cuda":
                self._step = self._fast(step, compiles)

    def _fast(self, step: Callable[[], Tensor], compiles: bool) -> Callable[[], object]:
        candidates = [("compiled, CUDA graph", torch.compile(step, dynamic=False))] if compiles else []
        for how, call in [*candidates, ("CUDA graph", step)]:
            try:
                replay, result = capture(call, before=self._rewind)
            except Exception as error:  # Inductor's failures have no common type; what is left is said in the row
                print(f"transformers, {how}: {type(error).__name__}: {str(error).splitlines()[:1]}", file=sys.stderr)
                torch.cuda.synchronize()
                continue
            self.how = how

            def again(replay: Callable[[], object] = replay, result: Tensor = result) -> Tensor:
                replay()
                return result

            return again
        return step

    def _rewind(self) -> None:
        """The next canvas goes where the last one went."""
        for length in self._lengths:
            length.fill_(self._size.cached)

    def write(self, *, is_timed: bool = True) -> list[float]:
        seconds = []
        with torch.inference_mode():
            for _ in range(self._size.canvas):
                self._rewind()
                if is_timed:
                    synchronize(self._device)
                began = time.perf_counter()
                result = self._step()
                assert isinstance(result, Tensor)
                result.cpu()  # as a step's outcome must be looked at
                seconds.append(time.perf_counter() - began)
        return seconds


def floors(network: Transformer, size: Size, copy_speed: float, flops: float) -> dict[str, float]:
    """Milliseconds below which a step cannot be."""
    read = weights_read(network) * network.embed_tokens.weight.element_size()
    stored = size.batch * (size.cached + size.canvas) * slot_bytes(network)
    memory = (read + stored) / copy_speed
    compute = 2 * weights_read(network) * size.batch * size.canvas / flops
    return {
        "memory_floor_ms": round(memory * 1e3, 4),
        "compute_floor_ms": round(compute * 1e3, 4),
        "floor_ms": round(max(memory, compute) * 1e3, 4),
    }


GROUPS = (
    ("attention", ("attention", "flash", "fmha", "merge_parts", "scaled_dot")),
    ("head and commit", ("head_kernel", "commit", "_merge_kernel", "softmax")),
    ("products", ("gemm", "cutlass", "matmul", "skinny", "addmm", "aten::mm", "bmm", "nvjet", "cublas", "linear")),
    ("glue", ("norm", "rotary", "rotate", "swiglu", "embed", "quantise", "silu")),
    ("selection", ("select", "sort", "scan", "cumsum", "scatter", "gather", "index")),
    ("copies", ("memcpy", "memset", "copy")),
)


def profile(way: Ours | Theirs, size: Size) -> dict[str, Any]:
    """Where a step's time goes, in ms of one step, and how often the host waits for the device in one."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    is_gpu = torch.cuda.is_available()
    if is_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        steps = len(way.write(is_timed=False))
    grouped: Counter[str] = Counter()
    waits = 0
    for event in found.key_averages():
        waits += event.count if any(name in event.key for name in WAITING) else 0
        own = event.self_device_time_total if is_gpu else event.self_cpu_time_total
        if own:
            name = event.key.lower()
            group = next((group for group, parts in GROUPS if any(part in name for part in parts)), "other")
            grouped[group] += own
    # The first visit, which opens the drafts, is in the profile and not in the count.
    return {
        "profile_ms": {name: round(time_us / 1e3 / max(steps, 1), 4) for name, time_us in grouped.most_common()},
        "host_waits_per_step": round(waits / max(steps, 1), 2),
    }


def _profile_or_why_not(way: Ours | Theirs, size: Size) -> dict[str, Any]:
    try:
        return profile(way, size)
    except Exception as error:  # a profiler that is not allowed here must not cost the times
        return {"profile_ms": {}, "host_waits_per_step": None, "profile_error": f"{type(error).__name__}: {error}"}


def ways_of(network: Transformer, size: Size, *, is_interpreted: bool = False) -> list[Ours]:
    reference = Ours("reference", network, size, kind="reference", graphs=False, visit=1)
    if network.embed_tokens.weight.device.type != "cuda" and not is_interpreted:
        return [
            reference,
            Ours("x 4", network, size, kind="reference", graphs=False, visit=4),
            Ours("x 4, as asked", network, size, kind="reference", graphs=False, visit=4, as_asked=True),
        ]
    kind: Kind = "triton" if is_interpreted else "auto"
    return [
        reference,
        Ours("kernels", network, size, kind=kind, graphs=False, visit=1),
        Ours("graphs", network, size, kind=kind, graphs=True, visit=1),
        Ours("graphs x 4", network, size, kind=kind, graphs=True, visit=4),
        Ours("graphs x 4, as asked", network, size, kind=kind, graphs=True, visit=4, as_asked=True),
    ]


def measure(
    name: str,
    network: Transformer,
    twin: Any,
    size: Size,
    *,
    rounds: int,
    seconds: float,
    compiles: bool,
    is_interpreted: bool = False,
) -> list[dict[str, Any]]:
    device = network.embed_tokens.weight.device
    ours = ways_of(network, size, is_interpreted=is_interpreted)
    ways: list[Ours | Theirs] = [*ours]
    without = ""
    failed: dict[str, str] = {}
    try:
        ways.append(Theirs(twin, size, compiles))
    except Exception as error:  # another version of transformers must not cost our own figures
        without = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    for way in list(ways):
        try:
            for _ in range(2):  # shapes are recorded when they come a second time
                way.write()
        except Exception:
            if way.name == "reference":
                raise
            # One way that fails must not take the others with it: its row says why.
            failed[way.name] = traceback.format_exc(limit=-3)
            traceback.print_exc()
            ways.remove(way)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    times: dict[str, list[float]] = {way.name: [] for way in ways}
    copies, products = [], []
    began = time.perf_counter()
    for done in range(rounds):
        if done and time.perf_counter() - began > seconds:
            break
        for way in ways:
            times[way.name] += way.write()
        copies.append(copy_bytes_per_s(device))
        products.append(flops_per_s(device, network.embed_tokens.weight.dtype))
    limits = floors(network, size, statistics.median(copies), statistics.median(products))
    medians = {key: statistics.median(values) for key, values in times.items()}
    rows, theirs = [], medians.get("transformers")
    for way in ways:
        values = times[way.name]
        row: dict[str, Any] = {
            "weights": "random weights",
            "geometry": name,
            "way": way.name if isinstance(way, Ours) else f"transformers, {way.how}",
            "canvas": size.canvas,
            "batch": size.batch,
            "cached": size.cached,
            "dtype": str(network.embed_tokens.weight.dtype).removeprefix("torch."),
            "steps": len(values),
            "p50_ms": round(medians[way.name] * 1e3, 4),
            "p95_ms": round(percentile(values, 0.95) * 1e3, 4),
            "p99_ms": round(percentile(values, 0.99) * 1e3, 4),
            **limits,
            "over_floor": round(medians[way.name] * 1e3 / limits["floor_ms"], 2),
            "reference_ratio": round(medians["reference"] / medians[way.name], 2),
            "transformers_ratio": round(theirs / medians[way.name], 2) if theirs is not None else None,
            **_profile_or_why_not(way, size),
        }
        if without:
            row["without_transformers"] = without
        if isinstance(way, Ours):
            row["recordings"] = sum(not recorded.error for recorded in way.recorded)
            row["refused"] = refusals(way.recorded)
        rows.append(row)
    dllm_kernels.use("auto")
    place = {"geometry": name, "canvas": size.canvas, "batch": size.batch}
    return rows + [{**place, "way": way, "error": error} for way, error in failed.items()]


def refusals(told: Sequence[Recorded]) -> list[dict[str, Any]]:
    """Which shapes could not be recorded, and why."""
    names = Shape._fields[:5]  # without what else a visit decides, which is long
    found = {(tuple(recorded.shape[:5]), recorded.error) for recorded in told if recorded.error}
    return [{**dict(zip(names, shape, strict=True)), "error": error} for shape, error in sorted(found)]


HEAD = "geometry  way                                  canvas batch       p50      p95      p99     floor  x floor  ref/  tf/  waits"


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['geometry']:9} {row['way']:36} {row['canvas']:6d} {row['batch']:5d} {row['p50_ms']:9.3f} {row['p95_ms']:8.3f}"
        f" {row['p99_ms']:8.3f} {row['floor_ms']:9.3f} {row['over_floor']:8.2f} {row['reference_ratio']:5.2f}"
        f" {_shown(row['transformers_ratio'], 4)} {_shown(row['host_waits_per_step'], 6)}  random weights"
    )


def _shown(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.2f}"


def plot(report: dict[str, Any], path: Path) -> None:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    rows = [row for row in report["rows"] if "error" not in row]
    if not rows:
        return
    names = list(dict.fromkeys(row["geometry"] for row in rows))
    figure, axes = plt.subplots(1, max(1, len(names)), figsize=(4.4 * max(1, len(names)), 3.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        own = [row for row in rows if row["geometry"] == name and row["canvas"] == rows[0]["canvas"]]
        for way in dict.fromkeys(row["way"] for row in own):
            points = sorted((row["batch"], row["p50_ms"]) for row in own if row["way"] == way)
            axis.plot([point[0] for point in points], [point[1] for point in points], marker="o", label=way)
        floor = sorted({(row["batch"], row["floor_ms"]) for row in own})
        axis.plot([point[0] for point in floor], [point[1] for point in floor], "k:", label="floor")
        axis.set(xscale="log", yscale="log", xlabel="drafts", ylabel="step p50, ms", title=f"{name}, random weights")
        axis.legend(fontsize=6)
    figure.suptitle(f"{report['device']}, canvas {rows[0]['canvas']}, commit {report['commit']}", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--tiny", action="store_true", help="a geometry of no consequence, a canvas of 16, 32 stored tokens"
    )
    parser.add_argument(
        "--interpret",
        action="store_true",
        help="on a CPU: the ways of a GPU; wants TRITON_INTERPRET=1 in the environment",
    )
    parser.add_argument(
        "--geometry", action="append", choices=(*MOST_VALUABLE, "tiny"), help="default: 8B, 4B and 1.7B"
    )
    parser.add_argument("--canvas", type=int, action="append", help="default 32, then 16 and 64")
    parser.add_argument("--batch", type=int, action="append", help="default 1, 4, 16 and 64")
    parser.add_argument("--cached", type=int, default=512, help="stored tokens of each draft (default 512)")
    parser.add_argument("--rounds", type=int, default=20, help="most rounds of a comparison, a canvas of steps each")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for one comparison's rounds")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no comparison is begun")
    parser.add_argument("--compile-budget", type=float, default=60.0, help="seconds for torch.compile in all")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write step.json and step.png there")
    options = parser.parse_args()
    began, device = time.perf_counter(), torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    names = options.geometry or (["tiny"] if options.tiny else list(MOST_VALUABLE))
    canvases = options.canvas or ((16,) if options.tiny else CANVASES)
    batches = options.batch or ((1, 2) if options.tiny else BATCHES)
    cached = 32 if options.tiny else options.cached
    report: dict[str, Any] = {**about(device), "rows": [], "left_out": []}
    print(*(f"{key}: {value}" for key, value in report.items() if key not in ("rows", "left_out")), sep="\n")
    print("\n" + HEAD, flush=True)
    models: dict[str, tuple[Transformer, Any]] = {}
    compiling = 0.0

    def save() -> None:
        report["seconds"] = round(time.perf_counter() - began, 1)
        if options.save:
            options.save.mkdir(parents=True, exist_ok=True)
            (options.save / "step.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")

    # What matters most first: one draft at every geometry, then more of them, then the other canvases.
    todo = [(canvas, batch, name) for canvas in canvases for batch in batches for name in names]
    for canvas, batch, name in todo:
        if time.perf_counter() - began > options.budget:
            report["left_out"].append({"geometry": name, "canvas": canvas, "batch": batch})
            continue
        before = time.perf_counter()
        compiles = compiling < options.compile_budget
        try:
            if name not in models:
                models.clear()
                network = random_network(ALL[name], device, dtype)
                models[name] = network, transformers_twin(network)
            rows = measure(
                name,
                *models[name],
                Size(canvas, batch, cached),
                rounds=1 if options.tiny else options.rounds,
                seconds=options.seconds,
                compiles=compiles,
                is_interpreted=options.interpret,
            )
            print(*(line(row) for row in rows if "error" not in row), sep="\n", flush=True)
        except Exception as error:  # one comparison that fails must not take the others with it; the exit status tells
            traceback.print_exc()
            rows = [{"geometry": name, "canvas": canvas, "batch": batch, "error": f"{type(error).__name__}: {error}"}]
        compiling += time.perf_counter() - before if compiles else 0.0
        report["rows"] += rows
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        save()
    save()
    for entry in report["left_out"]:
        print(f"left out, the budget was spent: {entry['geometry']}, canvas {entry['canvas']}, batch {entry['batch']}")
    if options.save:
        plot(report, options.save / "step.png")
    return 1 if any("error" in row for row in report["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())

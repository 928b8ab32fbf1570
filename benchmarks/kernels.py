"""Time of every kernel against plain PyTorch, `torch.compile`, a library where there is one, and the machine's own limits.

    python benchmarks/kernels.py                                  # every case; on a GPU where there is one
    python benchmarks/kernels.py --op skinny_linear --runs 100
    python benchmarks/kernels.py --save DIR                       # kernels.json, kernels.csv and kernels.png in that folder

On a GPU: the Triton kernels, each call replayed from a CUDA graph as the engine replays its steps, with the last-level cache emptied before it.
Without one: the references on the CPU, at small sizes, to see that it runs; that says nothing about the kernels. Ratios divide
the other's median by ours, measured in turns in the same run: above 1 is faster than it.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from kernel_cases import Case, cases
from measuring import about, copy_bytes_per_s, flops_per_s, percentile

from dllm.graphs import capture

FLUSHED = 512 * 2**20
"""Bytes written before each call on a GPU: several times its cache, and long enough that the host is ahead when the call begins."""


@dataclass(frozen=True, slots=True)
class Result:
    op: str
    size: str
    dtype: str
    p50_us: float
    p95_us: float
    moved_mb: float
    """Least bytes read and written."""
    of_copy: float
    """Bytes per second over those of a large copy, read and write counted."""
    of_products: float | None
    """Operations per second over those of a large square product; None where there are none."""
    eager_ratio: float | None
    """None where it fails here, as for a library; the reason is in the output."""
    compiled_ratio: float | None
    """None where torch.compile does not work here, or its time is spent."""
    library_ratio: float | None
    library: str


class Timer:
    """Times calls one by one, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flush = torch.empty(FLUSHED, dtype=torch.int8, device=device) if device.type == "cuda" else None

    def prepare(self, call: Callable[[], object]) -> Callable[[], object]:
        """The call as it will be timed: on a GPU recorded, if it can be."""
        if self._flush is None:
            for _ in range(3):
                call()
            return call
        try:
            return capture(call)[0]
        except RuntimeError as error:
            print(f"not recorded, timed as it is: {str(error).splitlines()[0]}", file=sys.stderr)
            return call

    def microseconds(self, call: Callable[[], object]) -> float:
        if self._flush is None:
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e6
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._flush.zero_()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) * 1e3


def compiled_or_none(case: Case) -> Callable[[], object] | None:
    torch.compiler.reset()  # each case is its own program; a few dozen in one process would hit the recompile limit
    compiled = torch.compile(case.eager, dynamic=False)
    try:
        compiled(*case.arguments)
    except Exception as error:  # Inductor's failures have no common type; the reason is shown and the column left out.
        first = (str(error).splitlines() or [""])[0]
        print(f"torch.compile does not work here: {type(error).__name__}: {first}", file=sys.stderr)
        return None
    return lambda: compiled(*case.arguments)


def measure(case: Case, timer: Timer, runs: int, copy: float, products: float, *, compiles: bool) -> Result:
    calls: dict[str, Callable[[], object]] = {"ours": case.ours, "eager": lambda: case.eager(*case.arguments)}
    if compiles and (compiled := compiled_or_none(case)) is not None:
        calls["compiled"] = compiled
    if case.library is not None:
        calls["library"] = case.library
    ready = {"ours": timer.prepare(calls.pop("ours"))}
    for name, call in calls.items():
        try:
            ready[name] = timer.prepare(call)
        except Exception as error:  # what others cannot do here must not cost our own figures
            print(f"{case.op}, {case.size}: {name} does not run: {type(error).__name__}: {error}", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(runs):
        for name, call in ready.items():
            times[name].append(timer.microseconds(call))
    median = {name: statistics.median(values) for name, values in times.items()}
    seconds = median["ours"] / 1e6

    def ratio(name: str) -> float | None:
        return round(median[name] / median["ours"], 2) if name in median else None

    return Result(
        case.op,
        case.size,
        str(case.dtype).removeprefix("torch."),
        round(median["ours"], 1),
        round(percentile(times["ours"], 0.95), 1),
        round(case.moved / 1e6, 3),
        round(case.moved / seconds / copy, 3),
        round(case.flops / seconds / products, 3) if case.flops else None,
        ratio("eager"),
        ratio("compiled"),
        ratio("library"),
        case.library_name,
    )


def shown(value: float | None, width: int, digits: int = 2) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def save(folder: Path, head: dict[str, Any], results: list[Result], failed: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(result) for result in results]
    (folder / "kernels.json").write_text(json.dumps({**head, "failed": failed, "results": rows}, indent=1) + "\n")
    with (folder / "kernels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Result)])
        writer.writeheader()
        writer.writerows(rows)


def plot(folder: Path, head: dict[str, Any], results: list[Result]) -> None:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    figure, axes = plt.subplots(figsize=(9, 1 + 0.22 * len(results)), layout="constrained")
    shares = [max(result.of_copy, result.of_products or 0.0) for result in results]
    axes.barh([f"{result.op}: {result.size}" for result in results], shares)
    axes.invert_yaxis()
    axes.set_xlabel("share of the nearer limit: large copy or large product")
    axes.set_title(f"{head['device']}, {head['implementation']}", fontsize=9)
    axes.tick_params(axis="y", labelsize=6)
    figure.savefig(folder / "kernels.png", dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30, help="timed calls per case (default 30)")
    parser.add_argument("--op", help="only cases of this kernel")
    parser.add_argument("--but", help="no cases of this kernel")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which no further case begins")
    parser.add_argument(
        "--compile-budget", type=float, default=60.0, help="seconds for torch.compile in all (default 60)"
    )
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="write kernels.json, kernels.csv and kernels.png there"
    )
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    copy, products = (
        copy_bytes_per_s(device),
        flops_per_s(device, torch.bfloat16 if device.type == "cuda" else torch.float32),
    )
    head: dict[str, Any] = about(device)
    head["implementation"] = "triton" if device.type == "cuda" else "reference (no GPU: the kernels are not measured)"
    head["copy_gb_per_s"], head["product_tflops"] = round(copy / 1e9, 1), round(products / 1e12, 2)
    print(*(f"{key}: {value}" for key, value in head.items()), sep="\n")
    print(
        f"\n{'op':<20} {'size':<46} {'dtype':>9} {'p50 µs':>9} {'p95 µs':>9} {'MB':>9} "
        f"{'of copy':>8} {'of prod.':>8} {'eager/':>8} {'compiled/':>9} {'library/':>8}"
    )
    results: list[Result] = []
    failed: list[str] = []
    began, compiling, left_out = time.monotonic(), 0.0, 0
    timer = Timer(device)
    for case in cases(device):
        if options.op not in (None, case.op) or case.op == options.but:
            continue
        if time.monotonic() - began > options.budget:
            left_out += 1
            continue
        before = time.monotonic()
        try:
            result = measure(case, timer, options.runs, copy, products, compiles=compiling < options.compile_budget)
        except Exception:  # one case that fails must not take the others with it; the exit status tells
            print(f"{case.op}, {case.size} failed", file=sys.stderr)
            traceback.print_exc()
            failed.append(f"{case.op}, {case.size}")
            continue
        finally:
            compiling += time.monotonic() - before
        results.append(result)
        print(
            f"{result.op:<20} {result.size:<46} {result.dtype:>9} {result.p50_us:9.1f} {result.p95_us:9.1f} "
            f"{result.moved_mb:9.3f} {result.of_copy:8.3f} {shown(result.of_products, 8, 3)} {shown(result.eager_ratio, 8)} "
            f"{shown(result.compiled_ratio, 9)} {shown(result.library_ratio, 8)}",
            flush=True,
        )
        if options.save:
            save(options.save, head, results, failed)
    if left_out:
        print(f"{left_out} cases left out: the budget of {options.budget:.0f} s was spent")
    if options.save:
        save(options.save, head, results, failed)
        plot(options.save, head, results)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

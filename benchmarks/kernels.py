"""Time of commit-from-logits against plain PyTorch and against the machine's own copy speed.

    python benchmarks/kernels.py                      # every shape; on a GPU where there is one
    python benchmarks/kernels.py --save results.json

On a GPU: the Triton kernel. Without one: the reference on CPU, which says nothing about the kernel. The ratio columns divide the
other's median by ours, measured in turns in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measuring import about, percentile
from torch import Tensor

from dllm_kernels import commit_from_logits

# (rows, vocabulary): the built-in model's canvas and vocabulary, then LLaDA's, Qwen3's and a wide one.
SHAPES = ((32, 4096), (64, 4096), (16, 126_464), (32, 151_936), (64, 151_936), (256, 151_936))
CPU_SHAPES = SHAPES[:4]


@dataclass(frozen=True, slots=True)
class Result:
    rows: int
    vocabulary: int
    dtype: str
    temperature: float
    p50_us: float
    p95_us: float
    megabytes: float
    """Bytes of logits read once; outputs are 20 bytes a row."""
    share_of_copy: float
    """Bandwidth over that of a copy of the same size, read and write counted."""
    eager_ratio: float
    compiled_ratio: float | None
    """None where torch.compile does not work on this machine."""


def eager(logits: Tensor, temperature: float) -> tuple[Tensor, ...]:
    """What one writes without thinking of memory: softmax, top two, entropy, a draw."""
    p = logits.float().softmax(dim=-1)
    best = p.topk(2, dim=-1)
    token = best.indices[:, 0] if temperature == 0.0 else torch.multinomial(p ** (1 / temperature), 1)[:, 0]
    probability = p.gather(1, token[:, None])[:, 0]
    return token, probability, best.values[:, 0] - best.values[:, 1], torch.special.entr(p).sum(dim=-1)


def clock_of(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """A function that times one call in microseconds, including the device's work."""
    if device.type == "cpu":

        def time_on_cpu(call: Callable[[], object]) -> float:
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e6

        return time_on_cpu

    # Larger than the last-level cache: a step's logits come from memory, not from the call before.
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device=device)

    def time_on_gpu(call: Callable[[], object]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) * 1e3

    return time_on_gpu


def compiled_or_none(logits: Tensor, temperature: float) -> Callable[[Tensor, float], object] | None:
    torch.compiler.reset()  # each shape is its own program; a few dozen in one process would hit the recompile limit
    compiled = torch.compile(eager, dynamic=False)
    try:
        compiled(logits, temperature)
    except Exception as error:  # Inductor's failures have no common type; the reason is shown and the column left out.
        print(
            f"torch.compile does not work here: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr
        )
        return None
    return compiled


def measure(
    rows: int, vocabulary: int, dtype: torch.dtype, temperature: float, device: torch.device, runs: int
) -> Result:
    logits = (torch.randn(rows, vocabulary, device=device) * 4).to(dtype)
    target = torch.empty_like(logits)
    compiled = compiled_or_none(logits, temperature)
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: commit_from_logits(logits, temperature=temperature, seed=1),
        "copy": lambda: target.copy_(logits),
        "eager": lambda: eager(logits, temperature),
    }
    if compiled is not None:
        calls["compiled"] = lambda: compiled(logits, temperature)
    time_one = clock_of(device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs + 3):
        for name, call in calls.items():
            taken = time_one(call)
            if run >= 3:
                times[name].append(taken)
    median = {name: statistics.median(values) for name, values in times.items()}
    size = logits.numel() * logits.element_size()
    return Result(
        rows,
        vocabulary,
        str(dtype).removeprefix("torch."),
        temperature,
        round(median["ours"], 1),
        round(percentile(times["ours"], 0.95), 1),
        round(size / 1e6, 2),
        round((size / median["ours"]) / (2 * size / median["copy"]), 3),
        round(median["eager"] / median["ours"], 2),
        round(median["compiled"] / median["ours"], 2) if compiled is not None else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="timed calls per shape (default 50)")
    parser.add_argument("--save", type=Path, help="also write the results as JSON")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head = about(device)
    head["implementation"] = (
        "triton" if device.type == "cuda" else "reference (no GPU: the kernel itself is not measured)"
    )
    print(*(f"{key}: {value}" for key, value in head.items()), sep="\n")
    print("\n   rows     vocab      dtype  temp    p50 µs    p95 µs      MB  of copy  eager/ours  compiled/ours")
    results = []
    for rows, vocabulary in SHAPES if device.type == "cuda" else CPU_SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for temperature in (0.0, 1.0):
                result = measure(rows, vocabulary, dtype, temperature, device, options.runs)
                results.append(result)
                compiled = "-" if result.compiled_ratio is None else f"{result.compiled_ratio:.2f}"
                print(
                    f"{rows:7d} {vocabulary:9d} {result.dtype:>10} {temperature:5.1f} {result.p50_us:9.1f} {result.p95_us:9.1f} "
                    f"{result.megabytes:7.2f} {result.share_of_copy:8.3f} {result.eager_ratio:11.2f} {compiled:>14}"
                )
    if options.save:
        options.save.write_text(
            json.dumps({**head, "results": [asdict(result) for result in results]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()

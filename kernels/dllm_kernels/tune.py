"""Measures tile sizes on the GPU that is here and writes them where kernels look for them.

    python -m dllm_kernels.tune                          # every op at the shapes of 1.7B, 4B and 8B
    python -m dllm_kernels.tune --op head_commit --rows 32 --budget 60
    python -m dllm_kernels.tune --out FOLDER             # elsewhere, to look at first

What the file holds already and was not measured anew stays. A candidate that does not compile or does not fit is left out; one that is less than
3 % faster than the reasoned sizes is no reason to change them.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

import dllm_kernels
from dllm_kernels import tuning

Timer: TypeAlias = Callable[[Callable[[], object]], float]
"""Microseconds of a call."""

LEAST_GAIN = 1.03
RUNS = 20
FLUSHED = 512 * 2**20
"""Bytes written before each call: several times the last-level cache, since the next step finds other weights there."""
VOCABULARY, HEAD_DIM, STORED = 151_936, 128, 512
GEOMETRIES = {"1.7B": (2048, 6144, 16), "4B": (2560, 9728, 32), "8B": (4096, 12_288, 32)}
"""Hidden size, feed-forward size and query heads of Qwen3's shapes; 8 key/value heads."""
ROWS = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Case:
    """One op at one shape."""

    op: str
    shape: str
    reasoned: tuple[int, ...]
    names: tuple[str, ...]
    candidates: tuple[tuple[int, ...], ...]
    call: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Found:
    """What a case's measurement gave."""

    case: Case
    best: tuple[int, ...]
    """Equal to the reasoned sizes where nothing was worth a change."""
    reasoned_us: float
    best_us: float
    left_out: int
    """Candidates that did not run."""


def measure(case: Case, timer: Timer) -> Found:
    """Time the reasoned sizes and every candidate.

    Raises:
        RuntimeError: If the reasoned sizes themselves do not run.
    """
    with tuning.trying(case.op, case.reasoned):
        reasoned_us = timer(case.call)
    best, best_us, left_out = case.reasoned, reasoned_us, 0
    for sizes in case.candidates:
        if sizes == case.reasoned:
            continue
        try:
            with tuning.trying(case.op, sizes):
                taken = timer(case.call)
        except Exception:  # too much shared memory, or what the compiler refuses: no common type
            left_out += 1
            continue
        if taken < best_us:
            best, best_us = sizes, taken
    if reasoned_us < best_us * LEAST_GAIN:
        best, best_us = case.reasoned, reasoned_us
    return Found(case, best, reasoned_us, best_us, left_out)


def write(path: Path, device: str, found: Sequence[Found], versions: Mapping[str, str]) -> None:
    """Add what was found to the file of a GPU; the file is whole at any time."""
    ops: dict[str, dict[str, Any]] = {op: dict(buckets) for op, buckets in tuning.read(path).items()}
    for one in found:
        sizes = dict(zip(one.case.names, one.best, strict=True))
        ops.setdefault(one.case.op, {})[one.case.shape] = sizes
    body = {
        "device": device,
        "measured": dict(versions),
        "ops": {op: dict(sorted(ops[op].items())) for op in sorted(ops)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(body, indent=1) + "\n", "utf-8")
    part.replace(path)


class DeviceTimer:
    """Median time of a call on the GPU, with the last-level cache emptied before it."""

    def __init__(self) -> None:
        self._flush = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")

    def __call__(self, call: Callable[[], object]) -> float:
        for _ in range(3):
            call()
        times = []
        for _ in range(RUNS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            self._flush.zero_()
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(float(begin.elapsed_time(end)) * 1e3)
        return statistics.median(times)


def _sizes(*choices: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    return tuple(itertools.product(*choices))


def head_cases(hidden: int, rows: Sequence[int]) -> Iterator[Case]:
    fast = importlib.import_module("dllm_kernels.head_commit.triton")
    weight = _randn(VOCABULARY, hidden)
    for count in rows:
        x = _randn(count, hidden)
        for temperature in (0.0, 1.0):
            is_sampling = temperature > 0
            yield Case(
                "head_commit",
                fast.shape_of(weight.dtype, count, VOCABULARY, hidden, is_sampling),
                tuple(fast.reasoned(count, 2, is_sampling)),
                fast.Tiles._fields,
                _sizes((32, 64) if is_sampling else (64, 128, 256), (32, 64, 128), (4, 8), (3, 4)),
                lambda x=x, temperature=temperature: dllm_kernels.head_commit(  # type: ignore[misc]
                    x, weight, temperature=temperature, seed=1
                ),
            )


def attention_cases(heads: int, rows: Sequence[int]) -> Iterator[Case]:
    fast = importlib.import_module("dllm_kernels.canvas_attention.triton")
    for length in sorted({min(count, 64) for count in rows}):
        q = _randn(1, heads, length, HEAD_DIM)
        cache = dllm_kernels.Cache(*(_randn(1, 8, STORED + length, HEAD_DIM) for _ in range(2)))
        visible = torch.full((1, length), STORED + length, dtype=torch.int32, device="cuda")
        queries = heads // 8 * length
        yield Case(
            "canvas_attention",
            fast.shape_of(q.dtype, queries, HEAD_DIM),
            tuple(fast.reasoned(queries, HEAD_DIM, 2)),
            fast.Tiles._fields,
            _sizes((16, 32, 64, 128), (32, 64, 128), (4, 8), (2, 3, 4)),
            lambda q=q, cache=cache, visible=visible: dllm_kernels.canvas_attention(q, cache, visible),  # type: ignore[misc]
        )


def linear_cases(hidden: int, inner: int, heads: int, rows: Sequence[int]) -> Iterator[Case]:
    from dllm_kernels.choose import processors

    fast = importlib.import_module("dllm_kernels.skinny_linear.triton")
    products = (((heads + 16) * HEAD_DIM, hidden, None), (2 * inner, hidden, "silu"), (hidden, inner, None))
    for outputs, inputs, gate in products:
        for dtype in (torch.bfloat16, torch.int8):
            weight = _randn(outputs, inputs) if dtype == torch.bfloat16 else _bytes(outputs, inputs)
            scale = None if dtype == torch.bfloat16 else torch.full((outputs,), 1e-4, device="cuda")
            for count in rows:
                x = _randn(count, inputs)
                results = outputs if gate is None else outputs // 2
                reasoned = fast.plan_of(count, results, inputs, 2, processors(x.device))
                yield Case(
                    "skinny_linear",
                    fast.shape_of(dtype, count, outputs, inputs, gate is not None),
                    tuple(reasoned),
                    fast.Plan._fields,
                    _sizes((reasoned.block_m,), (32, 64, 128), (64, 128), (1, 2, 4, 8), (4, 8), (3, 4)),
                    lambda x=x, weight=weight, scale=scale, gate=gate: dllm_kernels.skinny_linear(  # type: ignore[misc]
                        x, weight, scale=scale, gate=gate
                    ),
                )


def mixture_cases(rows: Sequence[int]) -> Iterator[Case]:
    """LLaDA2-mini's layer: 256 experts of 512, 8 to a token, chosen at random."""
    fast = importlib.import_module("dllm_kernels.mix_experts.triton")
    experts, hidden, size, chosen = 256, 2048, 512, 8
    weights = dllm_kernels.ExpertWeights(_randn(experts, 2 * size, hidden), _randn(experts, hidden, size))
    for count in rows:
        x = _randn(count, hidden)
        order = torch.rand(count, experts, device="cuda").argsort(-1)[:, :chosen].contiguous()
        choice = dllm_kernels.Choice(order, torch.full((count, chosen), 1 / chosen, device="cuda"))
        yield Case(
            "mix_experts",
            fast.shape_of(x.dtype, count * chosen, experts, hidden, size),
            tuple(fast.reasoned(count * chosen, experts, 2, False)),
            fast.Tiles._fields,
            _sizes((16, 32, 64), (64, 128), (64, 128), (4, 8), (2, 3, 4)),
            lambda x=x, choice=choice: dllm_kernels.mix_experts(x, choice, weights),  # type: ignore[misc]
        )


def cases(names: Sequence[str], op: str | None, rows: Sequence[int]) -> Iterator[Case]:
    """Made one after another, so that their tensors are not all held at once."""
    for name in names:
        hidden, inner, heads = GEOMETRIES[name]
        if op in (None, "head_commit"):
            yield from head_cases(hidden, [count for count in rows if count <= 64])
        if op in (None, "canvas_attention"):
            yield from attention_cases(heads, rows)
        if op in (None, "skinny_linear"):
            yield from linear_cases(hidden, inner, heads, rows)
    if op in (None, "mix_experts"):
        yield from mixture_cases(rows)


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16).mul_(0.02)


def _bytes(*shape: int) -> torch.Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda")


def run(
    found: Iterator[Case], timer: Timer, path: Path, device: str, budget_s: float, clock: Callable[[], float]
) -> int:
    """Measure one case after another until the time is over, writing after each; how many there were."""
    began, count = clock(), 0
    versions = {"torch": torch.__version__}
    for case in found:
        if clock() - began > budget_s:
            print(f"the {budget_s:g} s are over: {case.op} at {case.shape} and what follows is left as it was")
            break
        one = measure(case, timer)
        write(path, device, [one], versions)
        count += 1
        sizes = ", ".join(f"{name} {size}" for name, size in zip(case.names, one.best, strict=True))
        print(
            f"{case.op:18} {case.shape:58} {one.reasoned_us:9.1f} -> {one.best_us:9.1f} us  {sizes}"
            + (f"  ({one.left_out} did not run)" if one.left_out else ""),
            flush=True,
        )
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dllm_kernels.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--op", choices=("head_commit", "canvas_attention", "skinny_linear", "mix_experts"))
    parser.add_argument("--geometry", action="append", choices=tuple(GEOMETRIES), help="default: all")
    parser.add_argument(
        "--rows", type=int, action="append", help=f"tokens of a step; default {', '.join(map(str, ROWS))}"
    )
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no further case begins")
    parser.add_argument(
        "--out", type=Path, default=tuning.FOLDER, help="folder of the file; default: where kernels look"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("tile sizes are measured on a GPU, and torch sees none", file=sys.stderr)
        return 2
    device = torch.cuda.get_device_name()
    path = tuning.path_of(device, options.out)
    todo = cases(options.geometry or tuple(GEOMETRIES), options.op, options.rows or ROWS)
    count = run(todo, DeviceTimer(), path, device, options.budget, time.monotonic)
    print(f"{count} shapes in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

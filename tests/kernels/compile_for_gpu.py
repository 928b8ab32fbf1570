"""Compile every kernel for an H200 (sm_90) on a machine without a GPU: Triton brings the assembler.

    python -m tests.kernels.compile_for_gpu bfloat16 float32      # one JSON object per kernel and argument types
    python -m tests.kernels.compile_for_gpu --bench               # what `make gpu-bench` will launch: cases of kernels, and steps of 1.7B, 4B and 8B

Ops are called on CPU tensors with a launch that compiles and runs nothing, so what is compiled is what the op would launch: block
sizes, warps, divisibility and all. Says nothing of speed or of answers.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import dllm_kernels
from dllm_kernels import Cache, Canvas, Choice, ExpertWeights, Given, HeadNorms, Target, choose
from dllm_kernels.four_bits import Groups
from dllm_kernels.quantise_rows import quantise_rows
from dllm_kernels.route_experts import Rules
from dllm_kernels.select import RULES, CanvasColumns, RuleColumns, ScoreColumns, select

CAPABILITY = 90
PROCESSORS = 132
SHARED_LIMIT = 227 * 1024
"""Bytes of shared memory that one thread block of an H200 may have."""
_NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
    torch.float8_e4m3fn: "fp8e4nv",
}


_SEEN: set[tuple[str, ...]] = set()
"""Launches that were compiled: the same kernel for the same types, constants and divisibility is one."""


def compile_launch(kernel: Any, arguments: dict[str, Any], options: dict[str, int]) -> dict[str, Any]:
    """Compile one launch; its figures as the assembler tells them. Empty for one that was compiled before."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for place, (name, value) in enumerate(arguments.items()):
        parameter = kernel.params[place]
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{_NAMES[value.dtype]}"
            if value.data_ptr() % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        elif value is None or parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
            signature[name] = "constexpr"
            constants[(place,)] = value
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    key = (kernel.__name__, str(signature), str(constants), str(attributes), str(sorted(options.items())))
    if key in _SEEN:
        return {}
    _SEEN.add(key)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    return {
        "kernel": kernel.__name__,
        "types": " ".join(kind for kind in signature.values() if kind != "constexpr"),
        "warps": compiled.metadata.num_warps,
        "shared": compiled.metadata.shared,
        "products": next((name for name in ("wgmma", "mma.sync") if name in compiled.asm["ptx"]), ""),
        **assembled(compiled.asm["ptx"]),
    }


def assembled(ptx: str) -> dict[str, int]:
    """Registers of a thread, and bytes that it spills to memory."""
    from triton.backends import nvidia

    assembler = Path(nvidia.__file__).parent / "bin" / "ptxas"
    done = subprocess.run(
        [assembler, "-v", f"--gpu-name=sm_{CAPABILITY}a", "-o", os.devnull, "-"],
        input=ptx, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spilled = re.search(r"(\d+) bytes spill stores", done.stderr)
    assert registers is not None and spilled is not None, done.stderr
    return {"registers": int(registers[1]), "spilled": int(spilled[1])}


def compiling(call: Callable[[], object]) -> Iterator[dict[str, Any]]:
    """What the launches of a call compile to."""
    from triton.runtime.jit import JITFunction

    found: list[dict[str, Any]] = []

    def run(self: Any, *given: Any, grid: Any, warmup: bool, **named: Any) -> None:
        names = [parameter.name for parameter in self.params]
        values = dict(zip(names, given, strict=False)) | {name: named.pop(name) for name in names if name in named}
        found.append(compile_launch(self, {name: values[name] for name in names}, named))

    own = JITFunction.run
    JITFunction.run = run
    dllm_kernels.use("triton")
    try:
        call()
    finally:
        JITFunction.run = own
        dllm_kernels.use("auto")
    yield from filter(None, found)


def calls(dtype: torch.dtype) -> list[Callable[[], object]]:
    """Each op as an 8B geometry calls it at a canvas of 32."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def whole(*shape: int) -> torch.Tensor:
        return empty(*shape, dtype=torch.int64)

    hidden, weight, logits = empty(32, 4096), empty(4096), empty(32, 151_936)
    turn = empty(1, 1, 32, 128, dtype=torch.float32)
    norms = HeadNorms(empty(128), empty(128), 1e-6)
    store = empty(2, 8, 1024, 128)
    target = Target(store, store, 0, whole(2, 32))
    head = empty(2000, 4096)
    query, new, pages = empty(2, 32, 32, 128), empty(2, 8, 32, 128), empty(70, 8, 16, 128)
    prefix, wide = empty(2, dtype=torch.int32), empty(2, 4, 600, 256)
    table, visible = empty(2, 35, dtype=torch.int32), empty(2, 32, dtype=torch.int32)
    pages_eight, store_eight = pages.to(torch.float8_e4m3fn), store.to(torch.float8_e4m3fn)
    page_scale, slot_scale = empty(70, 8, 1, dtype=torch.float32), empty(2, 8, 1024, dtype=torch.float32)
    eight_bits = Target(store_eight, store_eight, 0, whole(2, 32), slot_scale, slot_scale)
    one_row = Target(store_eight[:1], store_eight[:1], 96, None, slot_scale[:1], slot_scale[:1])
    single = empty(4, 64, dtype=torch.float32)
    scores, flags = ScoreColumns(whole(4, 64), single, single, single), empty(4, 64, dtype=torch.bool)
    rules = RuleColumns(whole(4), empty(4, dtype=torch.float32), whole(4), whole(4), whole(4))
    held = dllm_kernels.Held(empty(2000, dtype=torch.bool), empty(32, dtype=torch.bool))
    canvas = CanvasColumns(whole(4, 64), flags, single, whole(4), whole(4), whole(4))
    eight, x_eight = empty(24_576, 4096, dtype=torch.float8_e4m3fn), empty(64, 4096, dtype=torch.float8_e4m3fn)
    row_scale, x_scale = empty(24_576, dtype=torch.float32), empty(64, 1, dtype=torch.float32)
    four = {
        group: Groups(empty(24_576, 2048, dtype=torch.uint8), empty(24_576, 4096 // group, dtype=torch.bfloat16))
        for group in (64, 128)
    }
    routed = empty(32, 256, dtype=torch.float32)
    choice, many = (Choice(whole(rows, 8), empty(rows, 8, dtype=torch.float32)) for rows in (32, 256))
    experts = ExpertWeights(empty(16, 1024, 2048), empty(16, 2048, 512))
    four_bits = ExpertWeights(
        empty(16, 1024, 1024, dtype=torch.uint8),
        empty(16, 2048, 256, dtype=torch.uint8),
        empty(16, 1024, 32, dtype=torch.bfloat16),
        empty(16, 2048, 8, dtype=torch.bfloat16),
    )
    scales = empty(16, 1024, dtype=torch.float32), empty(16, 2048, dtype=torch.float32)
    return [
        lambda: dllm_kernels.commit_from_logits(logits),
        lambda: dllm_kernels.commit_from_logits(logits, temperature=1.0, seed=whole(32)),
        lambda: dllm_kernels.commit_from_logits(logits, given=Given.of(whole(32))),
        lambda: dllm_kernels.rms_norm(hidden, weight, 1e-6),
        lambda: dllm_kernels.add_rms_norm(hidden, hidden, weight, 1e-6),
        lambda: quantise_rows(hidden, torch.float8_e4m3fn),
        lambda: dllm_kernels.swiglu(empty(32, 2 * 12_288)),
        lambda: dllm_kernels.embed(whole(32), empty(1000, 4096), hidden, empty(32, dtype=torch.float32)),
        lambda: select(scores, flags, flags, rules, occurring=frozenset(RULES), stable=flags, canvas=canvas),
        lambda: select(scores, flags, flags, rules, whole(4), occurring={"count"}, doubtful=flags),
        lambda: dllm_kernels.head_commit(hidden, head),
        lambda: dllm_kernels.head_commit(empty(64, 4096), head),
        lambda: dllm_kernels.head_commit(hidden, head, temperature=1.0, seed=whole(32)),
        lambda: dllm_kernels.head_commit(hidden, head, held=held),
        lambda: dllm_kernels.head_commit(hidden, head, given=Given.of(whole(32))),
        lambda: dllm_kernels.head_commit(hidden, empty(9, 4096, dtype=torch.int8), scale=empty(9, dtype=torch.float32)),
        lambda: dllm_kernels.canvas_attention(query, Cache(pages, pages, table), visible, Canvas(new, new, prefix)),
        lambda: dllm_kernels.canvas_attention(query, Cache(store, store), visible),
        lambda: dllm_kernels.canvas_attention(
            query, Cache(pages_eight, pages_eight, table, page_scale, page_scale), visible, Canvas(new, new, prefix)
        ),
        lambda: dllm_kernels.canvas_attention(
            query, Cache(store_eight, store_eight, None, slot_scale, slot_scale), visible
        ),
        lambda: dllm_kernels.canvas_attention(empty(2, 8, 32, 256), Cache(wide, wide), visible),
        lambda: dllm_kernels.skinny_linear(hidden, empty(4096, 4096), residual=hidden),
        lambda: dllm_kernels.skinny_linear(hidden, empty(24_576, 4096), gate="silu"),
        lambda: dllm_kernels.skinny_linear(
            empty(128, 4096),
            empty(6144, 4096, dtype=torch.int8),
            scale=empty(6144, dtype=torch.float32),
            bias=empty(6144),
        ),
        lambda: dllm_kernels.skinny_linear(empty(64, 4096), eight, scale=row_scale, gate="silu"),
        lambda: dllm_kernels.skinny_linear(x_eight, eight, scale=row_scale, x_scale=x_scale, gate="silu", dtype=dtype),
        lambda: dllm_kernels.skinny_linear(x_eight, eight[:4096], scale=row_scale[:4096], x_scale=x_scale, dtype=dtype),
        lambda: dllm_kernels.skinny_linear(hidden, four[64].packed, scale=four[64].scale, gate="silu"),
        lambda: dllm_kernels.skinny_linear(empty(256, 4096), four[64].packed, scale=four[64].scale, bias=empty(24_576)),
        lambda: dllm_kernels.skinny_linear(hidden, four[128].packed, scale=four[128].scale, gate="silu"),
        lambda: dllm_kernels.route_experts(routed, Rules(8, "sigmoid", 8, 4, scale=2.5), bias=routed[0]),
        lambda: dllm_kernels.route_experts(routed, Rules(8, normalise=False)),
        lambda: dllm_kernels.route_experts(routed, Rules(8, "sigmoid", per_block=32), blocks=whole(32)),
        lambda: dllm_kernels.mix_experts(empty(32, 2048), choice, experts),
        lambda: dllm_kernels.mix_experts(
            empty(32, 2048), choice, ExpertWeights(*(part.to(torch.float8_e4m3fn) for part in experts[:2]), *scales)
        ),
        lambda: dllm_kernels.mix_experts(
            empty(256, 2048), many, ExpertWeights(*(part.to(torch.int8) for part in experts[:2]), *scales)
        ),
        lambda: dllm_kernels.mix_experts(empty(256, 2048), many, experts),
        lambda: dllm_kernels.mix_experts(empty(32, 2048), choice, four_bits),
        lambda: dllm_kernels.rotate_and_store(empty(2, 32, 48, 128), turn, turn, (32, 8), norms, target=target),
        lambda: dllm_kernels.rotate_and_store(empty(2, 32, 48, 128), turn, turn, (32, 8), norms, target=eight_bits),
        lambda: dllm_kernels.rotate_and_store(empty(1, 32, 48, 128), turn, turn, (32, 8), norms, target=one_row),
    ]


def bench_calls() -> Iterator[Callable[[], object]]:
    """The cases of `benchmarks/kernels.py` on a GPU, and what steps of its geometries call; memory that nobody touches."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import kernel_cases

    def untouched(device: torch.device, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def groups(weight: torch.Tensor) -> Groups:
        outputs, inputs = weight.shape
        return Groups(
            torch.empty(outputs, inputs // 2, dtype=torch.uint8),
            torch.empty(outputs, inputs // 64, dtype=torch.bfloat16),
        )

    kernel_cases._randn, kernel_cases.quantise_groups = untouched, groups
    torch.randint = lambda *given, **named: torch.zeros(  # type: ignore[assignment]
        next(one for one in given if isinstance(one, tuple | torch.Size)), dtype=named.get("dtype", torch.int64)
    )
    for case in kernel_cases.cases_of_a_gpu(torch.device("cpu")):
        yield case.ours
    for hidden, inner, heads in ((2048, 6144, 16), (2560, 9728, 32), (4096, 12_288, 32)):
        for drafts in (1, 4, 16):
            yield from _step_calls(hidden, inner, heads, drafts)


def _step_calls(hidden: int, inner: int, heads: int, drafts: int) -> Iterator[Callable[[], object]]:
    """A step of canvases of 32 behind 512 stored tokens, in bfloat16, keys and values as they are or in e4m3."""
    half, tokens, slots = torch.bfloat16, 32 * drafts, 640
    x, weight = torch.empty(tokens, hidden, dtype=half), torch.empty(hidden, dtype=half)
    store = torch.empty(drafts, 8, slots, 128, dtype=half)
    turn = torch.empty(1 if drafts == 1 else drafts, 1, 32, 128)
    norms = HeadNorms(torch.empty(128, dtype=half), torch.empty(128, dtype=half), 1e-6)
    columns = torch.zeros(drafts, 32, dtype=torch.int64)
    qkv = torch.empty(drafts, 32, heads + 16, 128, dtype=half)
    visible = torch.full((drafts, 32), 544, dtype=torch.int32)
    query = torch.empty(drafts, heads, 32, 128, dtype=half)
    eight = torch.empty(drafts, 8, slots, 128, dtype=torch.uint8).view(torch.float8_e4m3fn)
    scale = torch.empty(drafts, 8, slots)
    yield lambda: dllm_kernels.rms_norm(x, weight, 1e-6)
    yield lambda: dllm_kernels.add_rms_norm(x, x, weight, 1e-6)
    yield lambda: dllm_kernels.swiglu(torch.empty(tokens, 2 * inner, dtype=half))
    yield lambda: dllm_kernels.embed(torch.zeros(tokens, dtype=torch.int64), torch.empty(151_936, hidden, dtype=half))
    yield lambda: dllm_kernels.head_commit(x, torch.empty(151_936, hidden, dtype=half))
    for target, cache in (
        (Target(store, store, 0, columns), Cache(store, store)),
        (Target(eight, eight, 0, columns, scale, scale), Cache(eight, eight, None, scale, scale)),
    ):
        yield lambda target=target: dllm_kernels.rotate_and_store(qkv, turn, turn, (heads, 8), norms, target=target)  # type: ignore[misc]
        yield lambda cache=cache: dllm_kernels.canvas_attention(query, cache, visible, longest=544)  # type: ignore[misc]


def main() -> None:
    choose.processors = lambda device: PROCESSORS  # before any kernel's module is imported
    names = sys.argv[1:] or ["bfloat16"]
    for name in names:
        for call in bench_calls() if name == "--bench" else calls(getattr(torch, name)):
            for figures in compiling(call):
                print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

"""What `benchmarks/kernels.py` measures: every kernel at the sizes of a denoising step, beside what one writes without it.

Geometries are those of Qwen3 1.7B and 8B, which SDAR's and TraDo's checkpoints have. Rows are tokens of all canvases of a step together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels import (
    Cache,
    Choice,
    ExpertWeights,
    HeadNorms,
    Target,
    add_rms_norm,
    cache_in_eight_bits,
    canvas_attention,
    commit_from_logits,
    embed,
    head_commit,
    mix_experts,
    rotate_and_store,
    route_experts,
    skinny_linear,
    swiglu,
)
from dllm_kernels.four_bits import quantise_groups, unpack_groups
from dllm_kernels.quantise_rows import Rows, quantise_rows
from dllm_kernels.rotary import reference as rotary
from dllm_kernels.route_experts import Rules
from dllm_kernels.select import RULES, RuleColumns, ScoreColumns, select
from dllm_kernels.select import reference as selection

VOCABULARY = 151_936
HEAD_DIM, KV_HEADS = 128, 8
STORED = 512
"""Cached tokens of a draft."""


@dataclass(frozen=True, slots=True)
class Geometry:
    name: str
    hidden: int
    inner: int
    heads: int


SMALL, LARGE = Geometry("1.7B", 2048, 6144, 16), Geometry("8B", 4096, 12_288, 32)


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one size."""

    op: str
    size: str
    dtype: torch.dtype
    moved: int
    """Bytes that must be read and written at least once."""
    flops: int
    """Of its products; 0 where there are none."""
    ours: Callable[[], object]
    eager: Callable[..., object]
    """What one writes without thinking of memory. Compiled too."""
    arguments: tuple[Any, ...]
    """Of `eager`."""
    library: Callable[[], object] | None = None
    library_name: str = ""


def cases(device: torch.device) -> Iterator[Case]:
    """Made one after another, so that their tensors are not all held at once."""
    if device.type != "cuda":
        # The references, to see that all of it runs; they say nothing about the kernels.
        for make in (commit, norm, gate, embedding, rotary_and_store, selecting, head, attention, product, mixture):
            yield from make(device, torch.float32, Geometry("tiny", 256, 512, 16), (32,), 4096)
        return
    yield from cases_of_a_gpu(device)


def cases_of_a_gpu(device: torch.device) -> Iterator[Case]:
    half = torch.bfloat16
    yield from commit(device, half, LARGE, (16, 32, 64, 256, 1024), VOCABULARY)
    yield from commit(device, torch.float32, LARGE, (64, 1024), VOCABULARY)
    yield from commit(device, half, LARGE, (32, 64), 4096)
    for geometry in (SMALL, LARGE):
        for make in (norm, gate, embedding, rotary_and_store):
            yield from make(device, half, geometry, (32, 256, 2048), VOCABULARY)
        for make in (head, attention, product):
            yield from make(device, half, geometry, (16, 32, 64, 256), VOCABULARY)
    yield from selecting(device, half, LARGE, (32, 256, 2048), VOCABULARY)
    yield from mixture(device, half, SMALL, (16, 32, 64, 256), VOCABULARY)


def commit(
    device: torch.device, dtype: torch.dtype, _: Geometry, counts: tuple[int, ...], width: int
) -> Iterator[Case]:
    for rows in counts:
        logits = _randn(device, dtype, rows, width, scale=4.0)
        for temperature in (0.0, 1.0):
            yield Case(
                "commit_from_logits",
                f"{rows} x {width}, temperature {temperature:.0f}",
                dtype,
                logits.numel() * logits.element_size(),
                0,
                lambda logits=logits, temperature=temperature: commit_from_logits(  # type: ignore[misc]
                    logits, temperature=temperature, seed=1
                ),
                eager_commit,
                (logits, temperature),
            )


def eager_commit(logits: Tensor, temperature: float) -> tuple[Tensor, ...]:
    """Softmax, top two, entropy, a draw."""
    p = logits.float().softmax(dim=-1)
    best = p.topk(2, dim=-1)
    token = best.indices[:, 0] if temperature == 0.0 else torch.multinomial(p ** (1 / temperature), 1)[:, 0]
    probability = p.gather(1, token[:, None])[:, 0]
    return token, probability, best.values[:, 0] - best.values[:, 1], torch.special.entr(p).sum(dim=-1)


def norm(device: torch.device, dtype: torch.dtype, size: Geometry, counts: tuple[int, ...], _: int) -> Iterator[Case]:
    for rows in counts:
        x, delta = (_randn(device, dtype, rows, size.hidden) for _ in range(2))
        weight = torch.ones(size.hidden, dtype=dtype, device=device)

        def eager(x: Tensor, delta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            total = x + delta
            wide = total.float()
            return total, (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(total.dtype) * weight

        def library(x: Tensor = x, delta: Tensor = delta, weight: Tensor = weight) -> Tensor:
            return F.rms_norm(x + delta, (x.shape[-1],), weight, 1e-6)

        yield Case(
            "add_rms_norm",
            f"{size.name}, {rows} rows",
            dtype,
            4 * x.numel() * x.element_size(),
            0,
            lambda x=x, delta=delta, weight=weight: add_rms_norm(x, delta, weight, 1e-6),  # type: ignore[misc]
            eager,
            (x, delta, weight),
            library,
            "F.rms_norm",
        )


def gate(device: torch.device, dtype: torch.dtype, size: Geometry, counts: tuple[int, ...], _: int) -> Iterator[Case]:
    def eager(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return F.silu(first) * second

    for rows in counts:
        x = _randn(device, dtype, rows, 2 * size.inner)
        moved = 3 * rows * size.inner * x.element_size()
        yield Case("swiglu", f"{size.name}, {rows} rows", dtype, moved, 0, lambda x=x: swiglu(x), eager, (x,))  # type: ignore[misc]


def embedding(
    device: torch.device, dtype: torch.dtype, size: Geometry, counts: tuple[int, ...], vocabulary: int
) -> Iterator[Case]:
    table = _randn(device, dtype, vocabulary, size.hidden)

    def eager(ids: Tensor, table: Tensor, soft: Tensor, share: Tensor) -> Tensor:
        return ((1 - share[:, None]) * F.embedding(ids, table) + share[:, None] * soft).to(table.dtype)

    for rows in counts:
        soft = _randn(device, dtype, rows, size.hidden)
        ids = torch.randint(vocabulary, (rows,), device=device, generator=_generator(device))
        share = torch.rand(rows, device=device, generator=_generator(device))
        yield Case(
            "embed",
            f"{size.name}, {rows} rows, mixed",
            dtype,
            3 * soft.numel() * soft.element_size(),
            0,
            lambda ids=ids, soft=soft, share=share: embed(ids, table, soft, share),  # type: ignore[misc]
            eager,
            (ids, table, soft, share),
        )


def rotary_and_store(
    device: torch.device, dtype: torch.dtype, size: Geometry, counts: tuple[int, ...], _: int
) -> Iterator[Case]:
    for rows in counts:
        drafts = max(1, rows // 32)
        qkv = _randn(device, dtype, drafts, 32, size.heads + 2 * KV_HEADS, HEAD_DIM)
        cos, sin = (_randn(device, torch.float32, 1, 1, 32, HEAD_DIM) for _ in range(2))
        norms = HeadNorms(*(torch.ones(HEAD_DIM, dtype=dtype, device=device) for _ in range(2)), 1e-6)
        keys, values = (_randn(device, dtype, drafts, KV_HEADS, STORED + 32, HEAD_DIM) for _ in range(2))
        columns = torch.arange(STORED, STORED + 32, device=device).repeat(drafts, 1)
        eight = cache_in_eight_bits(keys, values)
        heads = (size.heads, KV_HEADS)
        read, stored = qkv.numel() * qkv.element_size(), 2 * drafts * 32 * KV_HEADS * (HEAD_DIM + 4)
        turned = drafts * 32 * size.heads * HEAD_DIM * qkv.element_size()
        for name, moved, target in (
            ("", 2 * read, Target(keys, values, 0, columns)),
            (
                ", into e4m3",
                read + turned + stored,
                Target(eight.keys, eight.values, 0, columns, eight.key_scale, eight.value_scale),
            ),
        ):
            yield Case(
                "rotate_and_store",
                f"{size.name}, {rows} rows{name}",
                dtype,
                moved,
                0,
                lambda qkv=qkv, cos=cos, sin=sin, norms=norms, target=target, heads=heads: rotate_and_store(  # type: ignore[misc]
                    qkv, cos, sin, heads, norms, target=target
                ),
                rotary.rotate_and_store,
                (qkv, cos, sin, heads, norms, None, target),
            )


def selecting(device: torch.device, _: torch.dtype, size: Geometry, counts: tuple[int, ...], __: int) -> Iterator[Case]:
    for rows in counts:
        drafts = max(1, rows // 32)
        numbers = [torch.rand(drafts, 32, device=device, generator=_generator(device)) for _ in range(3)]
        scores = ScoreColumns(torch.ones(drafts, 32, dtype=torch.int64, device=device), *numbers)
        is_open = torch.ones(drafts, 32, dtype=torch.bool, device=device)
        rule, whole = (torch.full((drafts,), at, dtype=torch.int64, device=device) for at in (RULES.index("factor"), 2))
        rules = RuleColumns(rule, torch.full((drafts,), 0.9, device=device), whole << 35, whole, whole)
        arguments = (scores, is_open, is_open, rules, whole)
        yield Case(
            "select",
            f"{drafts} canvases of 32",
            torch.float32,
            drafts * 32 * 26,
            0,
            lambda arguments=arguments: select(*arguments, occurring={"factor"}),  # type: ignore[misc]
            selection.select,
            (*arguments, {"factor"}, None, None, None),
        )


def head(
    device: torch.device, dtype: torch.dtype, size: Geometry, counts: tuple[int, ...], vocabulary: int
) -> Iterator[Case]:
    weight = _randn(device, dtype, vocabulary, size.hidden, scale=0.02)

    def eager(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return eager_commit(F.linear(hidden, weight), 0.0)

    for rows in counts:
        hidden = _randn(device, dtype, rows, size.hidden)
        yield Case(
            "head_commit",
            f"{size.name}, {rows} rows",
            dtype,
            weight.numel() * weight.element_size(),
            2 * rows * weight.numel(),
            lambda hidden=hidden: head_commit(hidden, weight),  # type: ignore[misc]
            eager,
            (hidden, weight),
            lambda hidden=hidden: commit_from_logits(F.linear(hidden, weight)),  # type: ignore[misc]
            "F.linear, then commit_from_logits",
        )


def attention(
    device: torch.device, dtype: torch.dtype, size: Geometry, counts: tuple[int, ...], _: int
) -> Iterator[Case]:
    page = 16
    for rows in counts:
        length = min(rows, 32)
        drafts = max(1, rows // 32)
        slots = STORED + length
        q = _randn(device, dtype, drafts, size.heads, length, HEAD_DIM)
        keys, values = (_randn(device, dtype, drafts, KV_HEADS, slots, HEAD_DIM) for _ in range(2))
        visible = torch.full((drafts, length), slots, dtype=torch.int32, device=device)
        mask = torch.zeros(drafts, 1, size.heads // KV_HEADS * length, slots, dtype=dtype, device=device)

        def eager(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
            grouped = q.reshape(q.shape[0], KV_HEADS, -1, HEAD_DIM)
            scores = (grouped @ keys.transpose(2, 3)).float() * HEAD_DIM**-0.5 + mask
            return (scores.softmax(-1).to(q.dtype) @ values).view(q.shape)

        def library(q: Tensor = q, keys: Tensor = keys, values: Tensor = values, mask: Tensor = mask) -> Tensor:
            grouped = q.reshape(q.shape[0], KV_HEADS, -1, HEAD_DIM)
            return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).view(q.shape)

        count = drafts * -(-slots // page)
        pages = [_randn(device, dtype, count, KV_HEADS, page, HEAD_DIM) for _ in range(2)]
        table = torch.randperm(count, device=device, generator=_generator(device)).to(torch.int32).view(drafts, -1)
        whole, in_eight = 2 * keys.numel() * q.element_size(), 2 * (keys.numel() + 4 * keys.numel() // HEAD_DIM)
        kinds = (
            ("rows", whole, Cache(keys, values)),
            ("rows of e4m3", in_eight, cache_in_eight_bits(keys, values)),
            ("pages", whole, Cache(pages[0], pages[1], table)),
        )
        for name, stored, cache in kinds:
            yield Case(
                "canvas_attention",
                f"{size.name}, {drafts} of {length}, {STORED} stored in {name}",
                dtype,
                stored + 2 * q.numel() * q.element_size(),
                4 * q.numel() * slots,
                lambda q=q, cache=cache, visible=visible, slots=slots: canvas_attention(  # type: ignore[misc]
                    q, cache, visible, longest=slots
                ),
                eager,
                (q, keys, values, mask),
                library,
                "F.scaled_dot_product_attention",
            )


def product(
    device: torch.device, dtype: torch.dtype, size: Geometry, counts: tuple[int, ...], _: int
) -> Iterator[Case]:
    shapes: tuple[tuple[str, int, int, Any], ...] = (
        ("qkv", (size.heads + 2 * KV_HEADS) * HEAD_DIM, size.hidden, None),
        ("gate and up", 2 * size.inner, size.hidden, "silu"),
        ("down", size.hidden, size.inner, None),
    )

    def eager(x: Tensor, weight: Tensor, scale: Tensor | None, gate: str | None) -> Tensor:
        if scale is not None and weight.dtype == torch.uint8:
            weight = unpack_groups(weight, scale, x.shape[1]).to(x.dtype)
        elif scale is not None:
            weight = weight.to(x.dtype) * scale.to(x.dtype)[:, None]
        out = F.linear(x, weight)
        if gate is None:
            return out
        first, second = out.chunk(2, dim=-1)
        return F.silu(first) * second

    for name, outputs, inputs, gated in shapes:
        whole = _randn(device, dtype, outputs, inputs, scale=0.02)
        eight = torch.randint(-127, 128, whole.shape, dtype=torch.int8, device=device, generator=_generator(device))
        scale = torch.full((outputs,), 1e-4, device=device)
        halves = quantise_rows(whole, torch.float8_e4m3fn)
        four = quantise_groups(whole)
        for rows in counts:
            x = _randn(device, dtype, rows, inputs)
            kinds = (
                ("", whole, None),
                (", int8", eight, scale),
                (", e4m3", halves.values, halves.scale.squeeze(1)),
                (", int4", *four),
            )
            for kind, weight, factors in kinds:

                def library(x: Tensor = x, whole: Tensor = whole, gated: str | None = gated) -> Tensor:
                    return eager(x, whole, None, gated)

                yield Case(
                    "skinny_linear",
                    f"{size.name} {name}, {rows} rows{kind}",
                    dtype,
                    weight.numel() * weight.element_size(),
                    2 * rows * whole.numel(),
                    lambda x=x, weight=weight, factors=factors, gated=gated: skinny_linear(  # type: ignore[misc]
                        x, weight, scale=factors, gate=gated
                    ),
                    eager,
                    (x, weight, factors, gated),
                    library,
                    f"F.linear in {str(dtype).removeprefix('torch.')}",
                )
            x_halves, in_eight = quantise_rows(x, torch.float8_e4m3fn), halves.scale.squeeze(1)

            def eight_by_eight(
                x: Rows = x_halves, w: Rows = halves, scale: Tensor = in_eight, gated: str | None = gated
            ) -> Tensor:
                return skinny_linear(x.values, w.values, scale=scale, x_scale=x.scale, gate=gated, dtype=dtype)

            scaled: Callable[[], object] | None = None
            if device.type == "cuda" and gated is None:

                def scaled(x: Rows = x_halves, w: Rows = halves) -> Tensor:
                    return torch._scaled_mm(
                        x.values, w.values.t(), scale_a=x.scale, scale_b=w.scale.t(), out_dtype=torch.bfloat16
                    )

            yield Case(
                "skinny_linear",
                f"{size.name} {name}, {rows} rows, e4m3 by e4m3",
                dtype,
                whole.numel(),
                2 * rows * whole.numel(),
                eight_by_eight,
                eager,
                (x_halves.values.to(dtype) * x_halves.scale.to(dtype), halves.values, in_eight, gated),
                scaled,
                "torch._scaled_mm" if scaled else "",
            )


def mixture(
    device: torch.device, dtype: torch.dtype, size: Geometry, counts: tuple[int, ...], _: int
) -> Iterator[Case]:
    """LLaDA2-mini's layer on a GPU: 256 experts of 512, 8 to a token. The router, and the experts it chose."""
    experts, inner = (256, 512) if device.type == "cuda" else (16, 64)
    rules = Rules(8, "sigmoid", groups=8, groups_kept=4, scale=2.5)
    weights = ExpertWeights(
        _randn(device, dtype, experts, 2 * inner, size.hidden, scale=0.02),
        _randn(device, dtype, experts, size.hidden, inner, scale=0.02),
    )

    def library(x: Tensor, choice: Choice) -> Tensor:
        flat = choice.experts.flatten()
        order = flat.argsort(stable=True)
        # Not `bincount`, which asks the device how much room it needs and so cannot be recorded.
        every = torch.arange(experts, device=flat.device)
        borders = torch.searchsorted(flat[order], every, right=True).to(torch.int32)
        gate, up = F.grouped_mm(x[order // 8], weights.gate_up.transpose(1, 2), offs=borders).chunk(2, dim=-1)
        products = F.grouped_mm(F.silu(gate) * up, weights.down.transpose(1, 2), offs=borders)
        shares = choice.weights.to(x.dtype).unsqueeze(-1)
        return (products[order.argsort()].view(len(x), 8, -1) * shares).sum(1)

    def eager(x: Tensor, chosen: Tensor, shares: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        inner = torch.einsum("ne,xfe->xnf", x, gate_up)
        gate, up = inner.chunk(2, dim=-1)
        spread = torch.zeros(len(x), len(down), dtype=x.dtype, device=x.device).scatter(1, chosen, shares.to(x.dtype))
        return torch.bmm(F.silu(gate) * up * spread.T.unsqueeze(-1), down.transpose(1, 2)).sum(0)

    def eager_route(logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.sigmoid()
        grouped = scores.view(len(scores), 8, -1)
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(4, dim=-1).indices
        kept = torch.zeros(len(scores), 8, 1, dtype=torch.bool, device=scores.device).scatter(
            1, best.unsqueeze(-1), True
        )
        chosen = grouped.masked_fill(~kept, -torch.inf).flatten(1).topk(8, dim=-1).indices
        shares = scores.gather(1, chosen)
        return shares / shares.sum(-1, keepdim=True) * 2.5, chosen

    for rows in counts:
        logits, x = _randn(device, torch.float32, rows, experts), _randn(device, dtype, rows, size.hidden)
        yield Case(
            "route_experts",
            f"{rows} rows, 8 of {experts}",
            torch.float32,
            rows * (experts * 4 + 8 * 12),
            0,
            lambda logits=logits: route_experts(logits, rules)[::-1],  # type: ignore[misc]
            eager_route,
            (logits,),
        )
        choice = route_experts(logits, rules)
        touched = int(choice.experts.unique().numel())
        yield Case(
            "mix_experts",
            f"{rows} rows, 8 of {experts}, {touched} touched",
            dtype,
            touched * 3 * inner * size.hidden * x.element_size(),
            2 * rows * 8 * 3 * inner * size.hidden,
            lambda x=x, choice=choice: mix_experts(x, choice, weights),  # type: ignore[misc]
            eager,
            (x, choice.experts, choice.weights, weights.gate_up, weights.down),
            lambda x=x, choice=choice: library(x, choice),  # type: ignore[misc]
            "F.grouped_mm over sorted tokens",
        )


def _randn(device: torch.device, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, device=device, dtype=dtype, generator=_generator(device)).mul_(scale)


@functools.cache
def _generator(device: torch.device) -> torch.Generator:
    """Of its own: a recording that failed may leave PyTorch's unusable."""
    return torch.Generator(device).manual_seed(0)

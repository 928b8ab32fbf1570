"""The engine against transformers' autoregressive generation on the same weights, and against what the machine's memory allows.

    python benchmarks/engine.py                                      # a CPU: 0.03B at every batch size
    python benchmarks/engine.py --geometry 1.7B --batch 1 --rounds 2
    python benchmarks/engine.py --device cuda --graphs --budget 360  # everything on a GPU; `make gpu-bench` runs a part of it

Weights are random, so what is written means nothing and how many steps a reply takes is fixed instead of found: `rule="count"` with
3 steps for a first clause of 12 tokens and 5 for the other 20, which is 4 visible tokens per forward. Real checkpoints are quicker or
slower by the ratio of their own tokens per forward to 4. The first clause ends where a given token stands.

Every batch of replies of ours, eager and recorded as CUDA graphs, is followed by one of transformers' `generate` with a static cache, greedy,
of the same length, in turns in one run: load on the machine meets all alike, and the ratios hold where the absolute figures do not.
Both have 512 tokens stored when their clock starts; prefills are timed for themselves.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import statistics
import sys
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from measuring import about, copy_bytes_per_s, flops_per_s, percentile, synchronize, timed

from dllm.canvas import TokenTable
from dllm.drafts import Committed, DraftSpec, Failed, Finished, Plan, Stepped
from dllm.engine import Engine
from dllm.graphs import Recorded, cuda_graphs
from dllm.models.layout import qwen_tensors
from dllm.models.transformer import Transformer
from dllm.options import DecodeOptions
from dllm.spec import ModelSpec, RopeSpec, SpecialTokens, dialogue_spec

CANVAS, CACHED = 32, 512
CLAUSE = 12
PLAN = Plan(steps_first=3, steps_rest=5, threshold=1.0)
STOP = 100
"""The token that ends sentences; the model may not write it, it is given at the end of the first clause and of the reply."""
MOST_RECORDED = 16
"""Replies at once up to which launches matter. Beyond, two more engines' keys and values would not fit beside 8B on one card."""
PLAN_IN_WORDS = f'rule="count", 3 + 5 steps for {CLAUSE} + {CANVAS - CLAUSE} tokens (4 per forward)'


def sdar_spec(hidden: int, feed_forward: int, layers: int, heads: int) -> ModelSpec:
    """SDAR on Qwen3's shape, untied as published."""
    return ModelSpec(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        special=SpecialTokens(151_669, (151_645, 151_643), 151_643),
        family="sdar",
        rope=RopeSpec(1e6),
        max_position_embeddings=4096,
        qk_norm=True,
        mask_kind="block_causal",
        block=32,
    )


GEOMETRIES: dict[str, ModelSpec] = {
    "0.03B": dialogue_spec(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=10, num_attention_heads=8, num_key_value_heads=4
    ),
    "1.7B": sdar_spec(2048, 6144, 28, 16),
    "4B": sdar_spec(2560, 9728, 36, 32),
    "8B": sdar_spec(4096, 12_288, 36, 32),
}
TINY = replace(sdar_spec(64, 128, 2, 8), vocab_size=4100, head_dim=16, special=SpecialTokens(4099, (4098, 4097), 4097))
"""Of no consequence: to see that everything runs."""
ALL: dict[str, ModelSpec] = GEOMETRIES | {"tiny": TINY}


# --- the two models ---------------------------------------------------------------------------------------------------


def random_network(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Random weights, made where they are used."""
    with torch.device("meta"):
        network = Transformer(spec)
    network = network.to(dtype).to_empty(device=device)
    network.reset_buffers()
    network.reset_parameters(torch.Generator(device).manual_seed(0))
    return network.eval().requires_grad_(False)


def with_blocks(network: Transformer, block: int) -> Transformer:
    """The same weights, decoded in blocks of that many tokens on an absolute grid."""
    other = copy.copy(network)
    other.spec = replace(network.spec, mask_kind="block_causal", block=block, max_canvas=0, canvas_multiple=1)
    return other


def transformers_twin(network: Transformer) -> Any:
    """`Qwen3ForCausalLM` over the very tensors of our network: no second copy in memory."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    spec, weight = network.spec, network.embed_tokens.weight
    config = Qwen3Config(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_hidden_layers,
        num_attention_heads=spec.num_attention_heads,
        num_key_value_heads=spec.num_key_value_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=spec.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope.theta},
        max_position_embeddings=spec.max_position_embeddings,
        tie_word_embeddings=spec.tie_word_embeddings,
        dtype=weight.dtype,
    )
    with torch.device("meta"):
        twin = Qwen3ForCausalLM(config)
    tensors = network.state_dict()
    tensors = {name: slot.of(tensors[slot.parameter]) for name, slot in qwen_tensors(spec).items()}
    if spec.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    twin.load_state_dict(tensors, assign=True)
    twin.model.rotary_emb = type(twin.model.rotary_emb)(config).to(weight.device)
    _check(network, twin.eval())
    return twin


def _check(network: Transformer, twin: Any) -> None:
    """Both must be one model, or the comparison is of two: the causal logits of a few tokens are about equal."""
    device, dtype = network.embed_tokens.weight.device, network.embed_tokens.weight.dtype
    ids = torch.arange(200, 216, device=device).unsqueeze(0)
    mask = torch.full((16, 16), float("-inf"), dtype=dtype, device=device).triu(1)[None, None]
    with torch.inference_mode():
        ours = network.logits(network(ids, torch.arange(16, device=device).unsqueeze(0), mask)).float()
        theirs = twin(ids, use_cache=False).logits.float()
    error = ((ours - theirs).norm() / theirs.norm()).item()
    limit = 1e-3 if dtype == torch.float32 else 0.1
    assert error < limit, f"logits differ from transformers' by {error:.2g} of their norm, more than {limit:g}"


# --- ours -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Times:
    """Seconds."""

    replies: list[float] = field(default_factory=list)
    """Of a whole batch, submission to last event."""
    first_clause: list[float] = field(default_factory=list)
    """Per draft."""
    steps: list[float] = field(default_factory=list)
    """Per round, everything on the host included."""
    prefill: list[float] = field(default_factory=list)
    """Of one conversation."""


class Ours:
    """An engine in which every conversation's prompt is stored, and what its replies took."""

    def __init__(self, network: Transformer, block: int, batch: int, name: str, graphs: bool) -> None:
        spec = network.spec
        self.name, self.block, self.graphs, self.times = name, block, graphs, Times()
        self._device = network.embed_tokens.weight.device
        pages = (batch + 1) * (CACHED + CANVAS + 64)
        self.recorded: list[Recorded] = []
        self.engine = Engine(
            network,
            _table(spec),
            max_batch=batch,
            cache_bytes=pages * slot_bytes(network),
            forward=cuda_graphs(network, self.recorded.append) if graphs else None,
        )
        self._batch = batch
        self._prompts = [_tokens(number) for number in range(batch)]
        for number, prompt in enumerate(self._prompts):
            self.times.prefill.append(
                timed(lambda caller=f"caller {number}", prompt=prompt: self.engine.warm(caller, prompt), self._device)
            )

    def write(self) -> None:
        """One reply to every caller; raises what a draft failed with."""
        began = time.perf_counter()
        for number, prompt in enumerate(self._prompts):
            self.engine.submit(
                DraftSpec(
                    prompt,
                    f"caller {number}",
                    CANVAS,
                    PLAN,
                    options=DecodeOptions(rule="count", min_tokens=CANVAS, guard=False),
                    given=((CLAUSE - 1, STOP), (CANVAS - 1, STOP)),
                )
            )
        spoken = set()
        while self.engine.drafts:
            before = time.perf_counter()
            events = self.engine.run_round()
            now = time.perf_counter()
            if any(isinstance(event, Stepped) for event in events):
                self.times.steps.append(now - before)
            for event in events:
                match event:
                    case Failed(error=error):
                        raise error
                    case Committed(draft=draft) if draft not in spoken:
                        spoken.add(draft)
                        self.times.first_clause.append(now - began)
                    case Finished(tokens=tokens, usage=usage):
                        assert len(tokens) == CANVAS, f"{len(tokens)} tokens instead of {CANVAS}"
                        assert usage.forwards_prefill == 0, "the prompt should have been stored"
        self.times.replies.append(time.perf_counter() - began)


def _tokens(number: int) -> tuple[int, ...]:
    drawn = torch.randint(200, 4000, (CACHED,), generator=torch.Generator().manual_seed(number))
    return tuple(int(token) for token in drawn)


def _table(spec: ModelSpec) -> TokenTable:
    nothing: frozenset[int] = frozenset()
    assert spec.special.mask is not None
    return TokenTable(
        end=spec.special.end,
        mask=spec.special.mask,
        forbidden=frozenset({STOP, *spec.special.forbidden}),
        sentence_end=frozenset({STOP}),
        clause_end=nothing,
        digit=nothing,
        word_start=frozenset(range(spec.vocab_size)),
        case_variants={},
        word=nothing,
        other_ends=frozenset(spec.special.ends[1:]),
    )


# --- theirs -----------------------------------------------------------------------------------------------------------


class Theirs:
    """`generate` with a static cache: a token per forward."""

    def __init__(self, twin: Any, batch: int, tokens: int, compiled: bool) -> None:
        self._twin, self.tokens, self.compiled = twin, tokens, compiled
        self.device = next(twin.parameters()).device
        self._ids = torch.tensor([_tokens(number) for number in range(batch)], device=self.device)
        self.prefills: list[float] = []
        self.steps: list[float] = []

    def write(self) -> None:
        """Prefill and a token of every row per step, each with its time."""
        stamps = [time.perf_counter(), *self._generate(self._ids, self.tokens + 1)]
        self.prefills.append(stamps[1] - stamps[0])
        self.steps += [later - earlier for earlier, later in itertools.pairwise(stamps[1:])]

    def warm_up(self) -> None:
        """Compilation falls back to eager where it does not work."""
        if self.compiled:
            try:
                self._generate(self._ids, self.tokens + 1)
                return
            except Exception as error:  # Inductor's failures have no common type
                print(f"transformers' compiled decoding does not work here: {error!r}"[:300], file=sys.stderr)
                self.compiled = False
        self._generate(self._ids[:, :8], 3)

    @property
    def step_s(self) -> float:
        """Mean over the tokens, as a rate of tokens asks for."""
        return statistics.fmean(self.steps)

    def _generate(self, ids: torch.Tensor, count: int) -> list[float]:
        """When each token was there."""
        stamps: list[float] = []

        def note(tokens: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            synchronize(self.device)
            stamps.append(time.perf_counter())
            return torch.zeros(len(tokens), dtype=torch.bool, device=self.device)

        with torch.inference_mode():
            self._twin.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                cache_implementation="static",
                disable_compile=not self.compiled,
                pad_token_id=0,
                stopping_criteria=[note],
            )
        assert len(stamps) == count, f"{len(stamps)} tokens instead of {count}"
        return stamps


# --- bytes and operations ---------------------------------------------------------------------------------------------


def slot_bytes(network: Transformer) -> int:
    """Keys and values of one token."""
    spec = network.spec
    numbers = 2 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim
    return numbers * network.embed_tokens.weight.element_size()


def weights_read(network: Transformer) -> int:
    """Parameters a forward reads: all but the embedding's other rows where that is not the head as well."""
    total = sum(parameter.numel() for parameter in network.parameters())
    return total if network.lm_head is None else total - network.embed_tokens.weight.numel()


def floors(network: Transformer, batch: int, tokens: int, copy_speed: float, flops: float) -> dict[str, float]:
    """Milliseconds below which a forward cannot be: weights and stored tokens read once; two operations per weight and token."""
    read = weights_read(network) * network.embed_tokens.weight.element_size()
    stored = batch * (CACHED + CANVAS) * slot_bytes(network)
    return {
        "megabytes": round((read + stored) / 1e6, 1),
        "memory_floor_ms": round((read + stored) / copy_speed * 1e3, 3),
        "compute_floor_ms": round(2 * weights_read(network) * batch * tokens / flops * 1e3, 3),
    }


# --- one comparison ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    warm_ups: int
    """Batches of replies of ours before the first that counts; recording needs two."""
    rounds: int
    least_rounds: int
    seconds: float
    """Time for the rounds of one comparison; at least `least_rounds` are made."""
    ar_tokens: int
    graphs: bool
    compile: str
    """Where transformers may compile: none, single (one reply at a time) or all."""


def compare(geometry: str, network: Transformer, twin: Any, batch: int, settings: Settings) -> list[dict[str, Any]]:
    """All of ours and theirs in turns; one row per way of ours."""
    kinds = [(f"block {block}", block, with_blocks(network, block)) for block in (4, CANVAS)]
    if network.spec.mask_kind != "block_causal":
        kinds[1] = (f"canvas {CANVAS}", CANVAS, network)
    ways = [Ours(net, block, batch, name, False) for name, block, net in kinds]
    if settings.graphs and batch <= MOST_RECORDED:
        ways += [Ours(net, block, batch, f"{name}, graphs", True) for name, block, net in kinds]
    is_compiled = settings.compile == "all" or (settings.compile == "single" and batch == 1)
    theirs = Theirs(twin, batch, settings.ar_tokens, is_compiled)
    for way in ways:
        for _ in range(settings.warm_ups):
            way.write()
        way.times = Times(prefill=way.times.prefill)
    theirs.warm_up()
    # Measured between the rounds: on a machine that others use, a floor from another minute may lie above the step.
    copies: list[float] = []
    products: list[float] = []
    began = time.perf_counter()
    for done in range(settings.rounds):
        if done >= settings.least_rounds and time.perf_counter() - began > settings.seconds:
            break
        for way in ways:
            way.write()
        theirs.write()
        copies.append(copy_bytes_per_s(theirs.device))
        products.append(flops_per_s(theirs.device, network.embed_tokens.weight.dtype))
    speeds = statistics.median(copies), statistics.median(products)
    return [_row(geometry, network, batch, way, theirs, speeds) for way in ways]


def _row(
    geometry: str,
    network: Transformer,
    batch: int,
    way: Ours,
    theirs: Theirs,
    speeds: tuple[float, float],
) -> dict[str, Any]:
    times = way.times
    rate = len(times.replies) * batch * CANVAS / sum(times.replies)
    their_rate = batch / theirs.step_s
    step = statistics.median(times.steps)
    limits = floors(network, batch, way.block, *speeds)

    def ms(seconds: float) -> float:
        return round(seconds * 1e3, 3)

    return {
        "weights": "random weights",
        "geometry": geometry,
        "way": way.name,
        "block": way.block,
        "batch": batch,
        "dtype": str(network.embed_tokens.weight.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "plan": PLAN_IN_WORDS,
        "replies": len(times.replies) * batch,
        "tokens_per_s": round(rate, 2),
        "first_clause_p50_ms": ms(statistics.median(times.first_clause)),
        "prefill_p50_ms": ms(statistics.median(times.prefill)),
        "steps": len(times.steps),
        "step_p50_ms": ms(step),
        "step_p95_ms": ms(percentile(times.steps, 0.95)),
        "step_p99_ms": ms(percentile(times.steps, 0.99)),
        "copy_gb_per_s": round(speeds[0] / 1e9, 2),
        "matrix_gflop_per_s": round(speeds[1] / 1e9, 1),
        **limits,
        "step_over_memory_floor": round(step * 1e3 / limits["memory_floor_ms"], 2),
        "step_over_floor": round(step * 1e3 / max(limits["memory_floor_ms"], limits["compute_floor_ms"]), 2),
        "ar": f"transformers, static cache, {'compiled' if theirs.compiled else 'eager'}, {theirs.tokens} tokens",
        "ar_tokens_per_s": round(their_rate, 2),
        "ar_step_p50_ms": ms(statistics.median(theirs.steps)),
        "ar_prefill_p50_ms": ms(statistics.median(theirs.prefills)),
        "ar_first_clause_ms": ms(CLAUSE * theirs.step_s),
        "ratio": round(rate / their_rate, 2),
        "first_clause_ratio": round(CLAUSE * theirs.step_s / statistics.fmean(times.first_clause), 2),
        **(
            {
                "graphs": sum(not recorded.error for recorded in way.recorded),
                "graphs_seconds": round(sum(recorded.seconds for recorded in way.recorded), 2),
                "graphs_refused": sorted({recorded.error for recorded in way.recorded if recorded.error}),
            }
            if way.graphs
            else {}
        ),
    }


HEAD = "geometry  way                batch   tok/s  clause ms   step p50    p95    p99  floor mem  comp  x floor   AR tok/s  ratio"


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['geometry']:9} {row['way']:18} {row['batch']:5d} {row['tokens_per_s']:7.1f} {row['first_clause_p50_ms']:10.1f}"
        f" {row['step_p50_ms']:10.2f} {row['step_p95_ms']:6.1f} {row['step_p99_ms']:6.1f} {row['memory_floor_ms']:10.2f}"
        f" {row['compute_floor_ms']:5.1f} {row['step_over_floor']:8.2f} {row['ar_tokens_per_s']:10.1f} {row['ratio']:6.2f}"
        "  random weights"
    )


# --- the picture ------------------------------------------------------------------------------------------------------


def plot(report: dict[str, Any], path: Path) -> None:
    """Tokens per second by batch, and step times beside their floors."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    rows = [row for row in report["rows"] if "error" not in row]
    names = sorted({row["geometry"] for row in rows}, key=list(ALL).index)
    figure, axes = plt.subplots(2, max(1, len(names)), figsize=(4.2 * max(1, len(names)), 7), squeeze=False)
    for column, name in enumerate(names):
        own = [row for row in rows if row["geometry"] == name]
        rates, steps = axes[0][column], axes[1][column]
        for way in dict.fromkeys(row["way"] for row in own):
            points = sorted((row["batch"], row["tokens_per_s"], row["step_p50_ms"]) for row in own if row["way"] == way)
            rates.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=way)
            steps.plot([p[0] for p in points], [p[2] for p in points], marker="o", label=way)
        theirs = sorted({(row["batch"], row["ar_tokens_per_s"], row["ar_step_p50_ms"]) for row in own})
        rates.plot([p[0] for p in theirs], [p[1] for p in theirs], "k--s", label="autoregressive (transformers)")
        steps.plot([p[0] for p in theirs], [p[2] for p in theirs], "k--s", label="autoregressive, 1 token")
        memory = sorted({(row["batch"], row["memory_floor_ms"]) for row in own})
        steps.plot([p[0] for p in memory], [p[1] for p in memory], "r:", label="memory floor")
        compute = sorted({(row["batch"], row["compute_floor_ms"]) for row in own if row["block"] == CANVAS})
        steps.plot([p[0] for p in compute], [p[1] for p in compute], "m:", label="compute floor, 32 tokens")
        rates.set_title(f"{name}, {own[0]['dtype']}, random weights")
        for axis, label in ((rates, "visible tokens / s"), (steps, "step p50, ms")):
            axis.set(xscale="log", yscale="log", xlabel="replies at once", ylabel=label)
            axis.set_xticks(
                sorted({row["batch"] for row in own}), [str(b) for b in sorted({row["batch"] for row in own})]
            )
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)
    figure.suptitle(
        f"{report['device']}, {report['threads']} threads\ncommit {report['commit']}\n{report['plan']}", fontsize=7
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--geometry", action="append", choices=tuple(ALL), help="default: all but tiny on a GPU, 0.03B on CPU"
    )
    parser.add_argument("--batch", type=int, action="append", help="replies at once; default 1, 4, 16 and 64")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, float32 on CPU")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--warm-ups", type=int, default=2, help="batches of replies that do not count")
    parser.add_argument("--rounds", type=int, default=30, help="most rounds per comparison")
    parser.add_argument("--least-rounds", type=int, default=3, help="rounds made in any case")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for one comparison's rounds")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no comparison is begun")
    parser.add_argument("--ar-tokens", type=int, default=CANVAS, help="tokens that transformers writes per reply")
    parser.add_argument(
        "--ar-compile",
        choices=("none", "single", "all"),
        default="single",
        help="where transformers compiles its decoding on a GPU: half a minute for each shape (default: single replies)",
    )
    parser.add_argument("--graphs", action="store_true", help="on a GPU: also with recorded forwards")
    parser.add_argument("--save", type=Path, help="write JSON here, after every comparison")
    parser.add_argument("--plot", type=Path, help="write a picture here")
    options = parser.parse_args()
    began, device = time.perf_counter(), torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    is_gpu = device.type == "cuda"
    dtype = getattr(torch, options.dtype or ("bfloat16" if is_gpu else "float32"))
    report: dict[str, Any] = {
        **about(device),
        "plan": PLAN_IN_WORDS,
        "canvas": CANVAS,
        "cached_tokens": CACHED,
        "rows": [],
        "left_out": [],
    }
    print(*(f"{key}: {value}" for key, value in report.items() if key not in ("rows", "left_out")), sep="\n")
    print("\n" + HEAD, flush=True)
    settings = Settings(
        options.warm_ups,
        options.rounds,
        options.least_rounds,
        options.seconds,
        options.ar_tokens,
        options.graphs and is_gpu,
        options.ar_compile if is_gpu else "none",
    )
    names = options.geometry or (list(GEOMETRIES) if is_gpu else ["0.03B"])
    # One reply at a time matters most to speech, so every geometry has it before any has more.
    todo = [(batch, name) for batch in options.batch or (1, 4, 16, 64) for name in names]
    models: dict[str, tuple[Transformer, Any]] = {}

    def measure(name: str, batch: int) -> list[dict[str, Any]]:
        if name not in models:
            models.clear()
            network = random_network(ALL[name], device, dtype)
            models[name] = network, transformers_twin(network)
        return compare(name, *models[name], batch, settings)

    def save() -> None:
        report["seconds"] = round(time.perf_counter() - began, 1)
        if options.save:
            options.save.parent.mkdir(parents=True, exist_ok=True)
            options.save.write_text(json.dumps(report, indent=1) + "\n", "utf-8")

    for batch, name in todo:
        if time.perf_counter() - began > options.budget:
            report["left_out"].append({"geometry": name, "batch": batch, "why": f"{options.budget:g} s were over"})
            continue
        try:
            rows = measure(name, batch)
            print(*map(line, rows), sep="\n", flush=True)
        except Exception as error:  # one comparison that fails must not take the others with it; the exit status tells
            traceback.print_exc()
            rows = [{"geometry": name, "batch": batch, "error": f"{type(error).__name__}: {error}"}]
        report["rows"] += rows
        gc.collect()
        if is_gpu:
            torch.cuda.empty_cache()
        save()
    save()
    for entry in report["left_out"]:
        print(f"left out: {entry['geometry']} at batch {entry['batch']}: {entry['why']}")
    if options.plot:
        plot(report, options.plot)
    return 1 if any("error" in row for row in report["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())

"""`dllm bench`: steps, tokens per second and tokens per forward on this machine."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dllm.commands import decoding, geometries, model
from dllm.drafts import DraftSpec, Finished, Prefilled, Stepped
from dllm.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from dllm.engine import Engine
    from dllm.loader import Checkpoint
    from dllm.models.family import Network
    from dllm.spec import ModelSpec


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "bench",
        help="step time and tokens per second here",
        epilog="Prompts are random tokens. Tokens are those of the canvas up to an end-of-turn, over the time from the first forward to "
        "the last, prefill included; a forward is a denoising or committing one. With random weights few tokens are confident, so a "
        "step decides what the steps demand and tokens per forward say nothing of a trained model.",
    )
    model.add_model_arguments(parser)
    parser.add_argument(
        "--geometry", choices=geometries.NAMES, help="random weights of this size instead of a checkpoint"
    )
    parser.add_argument("--batch", type=int, action="append", help="replies at once; may be repeated; default 1 and 4")
    model.add_cache_argument(parser)
    parser.add_argument("--prompt", type=int, default=128, help="prompt tokens")
    parser.add_argument("--replies", type=int, default=3, help="measured rounds of replies, after one that is not")
    parser.add_argument("--json", action="store_true")
    decoding.add_decode_arguments(parser)
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class Measured:
    """One company of replies."""

    batch: int
    step_p50_ms: float
    step_p95_ms: float
    prefill_ms: float
    """All prompts of the company."""
    tokens_per_second: float
    """Over all replies, prefill included."""
    tokens_per_forward: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured."""

    checkpoint: Checkpoint
    name: str
    is_random: bool


def run(args: argparse.Namespace) -> int:
    batches = args.batch or [1, 4]
    for name, value in (("--batch", min(batches)), ("--prompt", args.prompt), ("--replies", args.replies)):
        if value < 1:
            raise ConfigError(name, value, "at least 1")
    if args.geometry and args.model:
        raise ConfigError("--geometry", args.geometry, "none beside --model")
    subject = _subject(args)
    checkpoint, spec = subject.checkpoint, subject.checkpoint.spec
    cache_dtype = model.cache_dtype_of(args.cache_dtype)
    width = decoding.width_of(args, spec, args.prompt)
    plan, options = decoding.plan(args, checkpoint, width), decoding.options(args, checkpoint)
    head = {
        **machine(checkpoint.model),
        "model": subject.name,
        "prompt": args.prompt,
        "width": width,
        "steps": plan.steps_rest,
    }
    if not args.json:
        print(", ".join(f"{name} {value}" for name, value in head.items()), flush=True)
        print(f"{'batch':>5} {'step p50':>10} {'p95':>10} {'prefill':>10} {'tokens/s':>9} {'a forward':>9}", flush=True)
    rows = []
    for batch in batches:
        drafts = [
            DraftSpec(prompt, f"bench {number}", width, plan, options=replace(options, seed=number))
            for number, prompt in enumerate(_prompts(spec, args.prompt, batch))
        ]
        engine = model.engine(
            checkpoint,
            batch,
            _cache_mb(checkpoint.model, batch * (args.prompt + width + 2 * spec.block + 32)),
            cache_dtype,
        )
        measured = measure(engine, drafts, args.replies)
        rows.append(measured)
        if not args.json:
            note = "   random weights" if subject.is_random else ""
            print(
                f"{batch:5d} {measured.step_p50_ms:7.2f} ms {measured.step_p95_ms:7.2f} ms {measured.prefill_ms:7.1f} ms "
                f"{measured.tokens_per_second:9.1f} {measured.tokens_per_forward:9.2f}{note}",
                flush=True,
            )
    if args.json:
        print(json.dumps(head | {"random_weights": subject.is_random, "rows": [asdict(row) for row in rows]}))
    return 0


def _cache_mb(network: Network, tokens: int) -> int:
    """A cache in which all replies fit at once."""
    token = sum(store.bytes for store in network.new_stores(1, 1))
    return -(-token * tokens // 2**20) + 1


def measure(engine: Engine, drafts: Sequence[DraftSpec], rounds: int) -> Measured:
    """Write the same replies `rounds` times, each time with an empty cache, after one time that does not count."""
    _write(engine, drafts)
    steps: list[float] = []
    prefill = seconds = 0.0
    tokens = forwards = 0
    for _ in range(rounds):
        start = time.perf_counter()
        for event in _write(engine, drafts):
            match event:
                case Stepped():
                    steps.append(event.seconds)
                case Prefilled():
                    prefill += event.seconds
                case Finished():
                    tokens += event.usage.visible_tokens
                    forwards += event.usage.forwards_denoise + event.usage.forwards_commit
                case _:
                    pass
        seconds += time.perf_counter() - start
    steps.sort()
    middle, high = (steps[min(len(steps) - 1, int(len(steps) * share))] if steps else 0.0 for share in (0.5, 0.95))
    return Measured(
        len(drafts),
        round(middle * 1e3, 3),
        round(high * 1e3, 3),
        round(prefill / rounds * 1e3, 2),
        round(tokens / seconds, 2),
        round(tokens / max(1, forwards), 3),
        tokens,
    )


def _write(engine: Engine, drafts: Sequence[DraftSpec]) -> list[Stepped | Prefilled | Finished]:
    from dllm.rounds import run_out

    for draft in drafts:
        engine.submit(draft)
    kept = [event for event in run_out(engine) if isinstance(event, Stepped | Prefilled | Finished)]
    for draft in drafts:
        engine.forget(draft.conversation)
    return kept


def machine(network: Network) -> dict[str, object]:
    """What a number must be read with."""
    import torch

    from dllm.machine import device_name

    weight = next(iter(network.parameters()))  # type: ignore[attr-defined]
    return {
        "device": f"{weight.device} ({device_name(weight.device)})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(weight.dtype).removeprefix("torch."),
    }


def _subject(args: argparse.Namespace) -> Subject:
    if args.geometry is None:
        checkpoint = model.load(args)
        name = "built-in" if args.model is None else args.model
        return Subject(checkpoint, name, is_random=False)
    return Subject(random_checkpoint(args), args.geometry, is_random=True)


def random_checkpoint(args: argparse.Namespace) -> Checkpoint:
    """A network of the geometry, of random weights, made where it runs.

    Raises:
        ConfigError: If this machine's memory does not hold it.
    """
    import torch

    from dllm.loader import Checkpoint
    from dllm.models.registry import family_named

    spec = geometries.spec_of(args.geometry)
    family = family_named(spec.family)
    place = model.device(args.device)
    dtype = model.dtype_of(args.dtype) or (torch.float32 if place.type == "cpu" else torch.bfloat16)
    with torch.device("meta"):
        network = family.build(spec)
    needed = sum(parameter.numel() for parameter in network.parameters()) * dtype.itemsize
    free = free_bytes(place)
    if free is not None and needed > free:
        raise ConfigError(
            "--geometry",
            args.geometry,
            f"weights of at most the {free / 2**30:.1f} GiB that are free on {place}; they take {needed / 2**30:.1f} GiB",
        )
    network = network.to(dtype).to_empty(device=place)
    network.reset_buffers()  # type: ignore[operator]
    network.reset_parameters(torch.Generator(device=place).manual_seed(0))  # type: ignore[operator]
    ready = network.eval().requires_grad_(False)
    return Checkpoint(spec, ready, Wordless(spec), Path(args.geometry), family, family.defaults)  # type: ignore[arg-type]


def free_bytes(place: torch.device) -> int | None:
    """Memory that is free there; None where nobody tells."""
    import torch

    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


class Wordless:
    """Stands where a codec does for models without a tokenizer: every token is a word."""

    def __init__(self, spec: ModelSpec) -> None:
        from dllm.canvas import TokenTable

        nothing: frozenset[int] = frozenset()
        self.token_table = TokenTable(
            end=spec.special.end,
            mask=-1 if spec.special.mask is None else spec.special.mask,
            forbidden=frozenset(spec.special.forbidden),
            sentence_end=nothing,
            clause_end=nothing,
            digit=nothing,
            word_start=frozenset(range(spec.vocab_size)),
            case_variants={},
            word=nothing,
            other_ends=frozenset(spec.special.ends[1:]),
        )


def _prompts(spec: ModelSpec, length: int, count: int) -> list[tuple[int, ...]]:
    """Random tokens, never the mask's."""
    import torch

    drawn = torch.randint(0, spec.vocab_size, (count, length), generator=torch.Generator().manual_seed(0)).tolist()
    other = next(token for token in range(spec.vocab_size) if token != spec.special.mask)
    return [tuple(other if token == spec.special.mask else token for token in row) for row in drawn]

"""How large may the built-in model be? Whole replies of models of several sizes, in turns, as multiples of the shipped one's.

    python benchmarks/model_size.py --save benchmarks/results/model-size.json

Weights are random, so every model takes all of its steps: times are those of a reply that never is sure early. Prompts are in the cache.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from measuring import about, percentile

from dllm import loader
from dllm.drafts import DraftSpec, Plan
from dllm.engine import Engine
from dllm.habits import family_options
from dllm.models.transformer import Transformer
from dllm.spec import dialogue_spec

SIZES = {
    "256 x 5": (256, 640, 5, 4, 2),
    "288 x 5": (288, 768, 5, 4, 2),
    "320 x 6": (320, 896, 6, 5, 5),
    "384 x 6": (384, 1024, 6, 6, 2),
    "512 x 8": (512, 1408, 8, 8, 2),
}
"""Hidden size and layers: hidden, feed-forward, layers, heads, key/value heads. The first is the built-in model's."""
WARM_UPS = 2


def network(
    hidden: int, feed_forward: int, layers: int, heads: int, key_value_heads: int, vocabulary: int
) -> Transformer:
    model = Transformer(
        dialogue_spec(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            head_dim=64,
        )
    )
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="denoising steps of a reply (default: %(default)s)")
    parser.add_argument("--width", type=int, default=40, help="canvas positions")
    parser.add_argument("--prompt", type=int, default=300, help="tokens in the cache")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = loader.load()
    options = replace(
        family_options(checkpoint.defaults, checkpoint.spec), rule="count", min_tokens=args.width - 1, guard=False
    )
    plan = Plan(args.steps, args.steps, 1.0, by_clause=False)
    drawn = torch.randint(20, 4000, (args.prompt,), generator=torch.Generator().manual_seed(0))
    prompt = tuple(int(token) for token in drawn)
    head = about(torch.device("cpu"))
    print(json.dumps(head))
    engines: dict[str, Engine] = {}
    weights: dict[str, int] = {}
    for name, shape in SIZES.items():
        model = network(*shape, checkpoint.spec.vocab_size)
        weights[name] = sum(parameter.numel() for parameter in model.parameters())
        engines[name] = Engine(model, checkpoint.codec.token_table, max_batch=1, cache_bytes=2**27)
    times: dict[str, list[float]] = {name: [] for name in SIZES}
    for round_number in range(WARM_UPS + args.rounds):
        for name, engine in engines.items():
            engine.warm(name, prompt)
            while engine.run_round():
                pass
            began = time.perf_counter()
            engine.submit(DraftSpec(prompt, name, args.width, plan, (), options))
            while engine.drafts:
                engine.run_round()
            if round_number >= WARM_UPS:
                times[name].append(1000 * (time.perf_counter() - began))
    first = percentile(times[next(iter(SIZES))], 0.5)
    rows = [
        {
            "size": name,
            "parameters": weights[name],
            "bf16_mib": round(2 * weights[name] / 2**20, 1),
            **{f"p{share}_ms": round(percentile(times[name], share / 100), 1) for share in (50, 95, 99)},
            "times_the_first": round(percentile(times[name], 0.5) / first, 2),
        }
        for name in SIZES
    ]
    print("| size | parameters | bf16 | p50 / p95 / p99 ms | times the first |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['size']} | {row['parameters'] / 1e6:.1f} M | {row['bf16_mib']} MiB | {row['p50_ms']} / {row['p95_ms']} / {row['p99_ms']} | "
            f"{row['times_the_first']} |"
        )
    if args.save is not None:
        args.save.write_text(
            json.dumps({"about": head, "options": vars(args) | {"save": None}, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()

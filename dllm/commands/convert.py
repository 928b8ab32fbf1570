"""`dllm convert`: an autoregressive checkpoint as the start of a diffusion model."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "convert", help="make a Llama, Qwen2 or Qwen3 checkpoint the start of a diffusion model"
    )
    parser.add_argument("--from", dest="source", required=True, help="checkpoint folder, or ORG/NAME on the hub")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument(
        "--to", required=True, help="family: sdar (from Qwen3), dream or fast_dllm (Qwen2), llada or nemotron (Llama)"
    )
    parser.add_argument("--block", type=int, help="positions of a block; default: the family's")
    parser.add_argument("--mask-token", help="text of the mask token; default: the tokenizer's own, or <|mask|>")
    parser.add_argument(
        "--noise", type=float, default=0.0, help="spread of the mask's embedding around the tokens' mean"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dllm.commands.model import source
    from dllm.convert.checkpoint import convert

    where = source(args.source)
    assert where is not None, "--from is required"
    made = convert(
        where, args.out, args.to, block=args.block, mask_text=args.mask_token, noise=args.noise, seed=args.seed
    )
    spec = made.spec
    rows = f"{spec.vocab_size} rows" + (f" (before: {made.rows_before})" if spec.vocab_size > made.rows_before else "")
    print(
        f"wrote {args.out}: {spec.family}, {made.tensors} tensors, {made.bytes / 2**20:.0f} MiB; mask token {made.mask_text} is "
        f"{spec.special.mask} of {rows}. It has not learned to fill masks yet: train it (docs/finetuning.md)"
    )
    return 0

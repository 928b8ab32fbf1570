"""`dllm finetune`: a checkpoint that knows a company's own calls."""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

LORA_RANK = 16


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "finetune", help="teach a checkpoint your own dialogues", description="See docs/finetuning.md for the format."
    )
    parser.add_argument("--data", type=Path, required=True, help="dialogues, one JSON object a line")
    parser.add_argument(
        "--out", type=Path, required=True, help="checkpoint folder to write, with report.md and report.json"
    )
    parser.add_argument("--model", help="checkpoint folder, or ORG/NAME on the hub; default: the built-in model")
    parser.add_argument("--dev", type=Path, metavar="FILE", help="dialogues to hold back, instead of a share of --data")
    parser.add_argument("--hold-back", type=float, default=0.15, metavar="SHARE", help="of the dialogues; default .15")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="sources (docs/training.md) to rehearse against forgetting"
    )
    parser.add_argument("--keep-share", type=float, default=0.25, metavar="SHARE", help="of the rows; default .25")
    parser.add_argument("--minutes", type=float, help="of learning at most, instead of --passes")
    parser.add_argument("--passes", type=float, default=30.0, help="through the data at most; default 30")
    parser.add_argument("--patience", type=int, default=5, help="measurements without a better one; default 5")
    parser.add_argument("--rate", type=float, default=1.0, help="times the usual learning rates")
    parser.add_argument(
        "--lora", type=int, nargs="?", const=LORA_RANK, default=0, metavar="RANK", help=f"adapters; rank {LORA_RANK}"
    )
    parser.add_argument("--shown", type=int, default=24, help="held-back replies written before and after; default 24")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dllm.commands.model import check_folder, device, source
    from dllm.train.finetune.plan import FinetuneOptions
    from dllm.train.finetune.run import finetune

    device(args.device)
    check_folder("--out", args.out)
    options = FinetuneOptions(
        data=args.data,
        out=args.out,
        model=source(args.model),
        dev=args.dev,
        keep=args.keep,
        keep_share=args.keep_share,
        hold_back=args.hold_back,
        passes=args.passes,
        minutes=args.minutes,
        patience=args.patience,
        rate=args.rate,
        lora_rank=args.lora,
        shown=args.shown,
        seed=args.seed,
        device=args.device,
    )
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        report = finetune(options, lambda line: print(line, flush=True), stop.is_set)
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"wrote {args.out}; {report.summary}. Before and after: {args.out / 'report.md'}")
    return 0

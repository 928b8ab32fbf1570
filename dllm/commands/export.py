"""`dllm export`: a run's averaged weights as a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("export", help="copy a run's averaged weights to a checkpoint folder")
    parser.add_argument("--run", dest="run_folder", type=Path, required=True, help="run folder of `dllm train`")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dllm import loader

    source = args.run_folder / "export"
    checkpoint = loader.load(source)
    loader.save(args.out, checkpoint.spec, dict(checkpoint.model.named_parameters()), checkpoint.codec)
    size = (args.out / "model.safetensors").stat().st_size
    print(f"wrote {args.out}, weights {size / 2**20:.1f} MiB")
    return 0

"""`dllm export`: a run's averaged weights as a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from dllm.errors import ConfigError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("export", help="copy a run's averaged weights to a checkpoint folder")
    parser.add_argument("--run", dest="run_folder", type=Path, required=True, help="run folder of `dllm train`")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--shard-mb", type=float, help="largest weight file in MB (10^6 bytes); default: 5000")
    parser.add_argument(
        "--record",
        type=Path,
        help="folder for what tells of the run: run.json, a thinned log.jsonl, curves.png, samples.jsonl",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dllm import loader
    from dllm.shards import weight_files
    from dllm.train import logs

    if args.shard_mb is not None and args.shard_mb <= 0:
        raise ConfigError("--shard-mb", args.shard_mb, "a positive number")
    limit = loader.MAX_SHARD_BYTES if args.shard_mb is None else int(args.shard_mb * 1e6)
    checkpoint = loader.load(args.run_folder / "export")
    weights = {**dict(checkpoint.model.named_buffers()), **dict(checkpoint.model.named_parameters())}
    loader.save(args.out, checkpoint.spec, weights, checkpoint.codec, max_shard_bytes=limit)
    files, _ = weight_files(args.out)
    sizes = [file.stat().st_size for file in files]
    largest = f", the largest {max(sizes) / 2**20:.1f} MiB" if len(files) > 1 else ""
    print(
        f"wrote {args.out}, weights {sum(sizes) / 2**20:.1f} MiB in {len(files)} file{'s' * (len(files) > 1)}{largest}"
    )
    if args.record is not None:
        logs.publish(args.run_folder, args.record)
        print(f"wrote {args.record}, the record of the run")
    return 0

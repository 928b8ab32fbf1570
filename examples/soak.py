"""A long call: consecutive turns on one line, with the server's memory, threads and latency watched.

    python examples/soak.py --turns 100

Fails when the second half of the call is worse than the first: resident memory by more than 5 %, more threads, processes or file descriptors, or a
median latency more than 15 % longer.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from footprint import footprint
from machine import describe
from realtime_caller import Caller, Recording, load_recordings
from server_process import server


async def soak(
    url: str, process: subprocess.Popen[str], recordings: list[Recording], turns: int, seed: int
) -> dict[str, Any]:
    rng = random.Random(seed)
    chosen = list(itertools.islice(itertools.cycle(rng.sample(recordings, len(recordings))), turns))
    caller = Caller(url)
    samples: list[dict[str, int]] = []

    async def watch() -> None:
        while True:
            done = sum(turn.voice_to_voice_s is not None for turn in caller.result.turns)
            if done > len(samples):
                samples.append({"turn": done, **footprint(process.pid)})
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        result = await caller.call(chosen)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    latencies = [turn.voice_to_voice_s for turn in result.turns if turn.voice_to_voice_s is not None]
    half = len(latencies) // 2
    settled = samples[len(samples) // 10 :]  # caches fill during the first turns
    first, second = settled[: len(settled) // 2], settled[len(settled) // 2 :]
    growth = {
        key: statistics.median(s[key] for s in second) / statistics.median(s[key] for s in first)
        for key in ("rss_kb", "threads", "files", "processes")
    }
    growth["latency"] = statistics.median(latencies[half:]) / statistics.median(latencies[:half])
    return {
        "turns": len(result.turns),
        "answered": len(latencies),
        "underruns": sum(len(turn.underruns_s) for turn in result.turns),
        "errors": result.errors,
        "second_half_over_first": {key: round(value, 4) for key, value in growth.items()},
        "latency_ms": {
            "first_half_p50": round(statistics.median(latencies[:half]) * 1000, 1),
            "second_half_p50": round(statistics.median(latencies[half:]) * 1000, 1),
        },
        "footprint": samples[:: max(len(samples) // 20, 1)],
    }


LIMITS = {"rss_kb": 1.05, "threads": 1.0, "files": 1.0, "processes": 1.0, "latency": 1.15}


def main() -> int:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--data", type=Path, default=here.parent / "tests" / "data")
    parser.add_argument("--kinds", nargs="+", default=["order", "command"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=here / "results")
    args = parser.parse_args()
    if not Path("/proc/self/status").exists():
        parser.error("the footprint is read from /proc, which this system does not have")
    recordings = load_recordings(args.data, args.kinds)
    machine = describe()
    print(f"machine: {machine['cpu']}, {machine['cores']} cores, {machine['system']}, commit {machine['commit']}")
    with server() as (url, process, lines):
        report = asyncio.run(soak(url, process, recordings, args.turns, args.seed))
        report |= {"benchmark": "soak", "date": time.strftime("%Y-%m-%d"), "machine": machine, "server": list(lines)}
    grown = {key: ratio for key, ratio in report["second_half_over_first"].items() if ratio > LIMITS[key]}
    report["grown"] = grown
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "soak.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in report.items() if key not in ("footprint", "server")}, indent=1))
    return 1 if grown or report["errors"] or report["answered"] < report["turns"] else 0


if __name__ == "__main__":
    sys.exit(main())

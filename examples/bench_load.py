"""Many callers against one server, over the phone door: how the answers change with their number, what a caller costs, how many it holds.

    python examples/bench_load.py --models --callers 1 2 4 8               # with the models of this machine, on all cores
    python examples/bench_load.py --standins --callers 1 16 48 80          # the runtime alone, on one core, Silero real
    python examples/bench_load.py --standins level --callers 80            # the same, with a stand-in for Silero as well
    python examples/bench_load.py --standins --pipecat --callers 8 16 24   # Pipecat with the same stand-ins and callers, in the same run

Every caller is on a line of its own and speaks Twilio's dialect: recorded words in messages of 20 ms, each sent when it was spoken, marks
returned when their audio was played. Callers begin at different moments, speak over some answers and fall silent now and then, all of it
decided by the seed. Times are taken at the caller: from the end of the recorded words to the first audible sample of the answer as a phone without
prefetch would play it. The generator is this process, on a core of its own where there are two.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.footprint import cpu_s, footprint
from examples.load.line import Call, call_all
from examples.load.phone import Speech, load_speeches
from examples.load.report import Metrics, Round, capacity, sum_up, table
from examples.load.schedule import Manners
from examples.load.servers import NotThere, Server, StandInTimes, models, pipecat, standins
from examples.machine import describe
from voiceagent.serving import run

AFTER_S = 3.0
"""The callers stay on the line for so long after the measured time: what was said at its end is still answered."""

Open: TypeAlias = Callable[[], AbstractContextManager[Server]]


async def measure(server: Server, callers: int, speeches: Sequence[Speech], args: argparse.Namespace) -> Round:
    """One round: everybody calls, and after `--warm` seconds counts for `--seconds`."""
    manners = Manners(cuts_in=args.cuts_in, falls_silent=args.falls_silent, spread_s=args.spread)
    opens = time.monotonic() + 0.5
    begins = opens + max(args.warm, manners.spread_s)
    ends = begins + args.seconds
    watching = asyncio.create_task(_watch(server, begins, ends))
    calls: list[Call] = await call_all(
        server.phone_url,
        callers,
        speeches,
        seed=args.seed,
        manners=manners,
        begins=opens,
        ends=ends + AFTER_S,
        reply_s=server.reply_s,
    )
    used_s, memory_mb, before, after = await watching
    return sum_up(calls, begins=begins, ends=ends, cpu_s=used_s, memory_mb=memory_mb, before=before, after=after)


async def _watch(server: Server, begins: float, ends: float) -> tuple[float, float, Metrics, Metrics]:
    """Processor time between the two readings, memory at the end, and what the server counted at both."""
    await asyncio.sleep(max(begins - time.monotonic(), 0.0))
    used_s, before = cpu_s(server.process.pid), await asyncio.to_thread(server.metrics)
    await asyncio.sleep(max(ends - time.monotonic(), 0.0))
    used_s = cpu_s(server.process.pid) - used_s
    after = await asyncio.to_thread(server.metrics)
    return used_s, footprint(server.process.pid)["rss_kb"] / 1024, before, after


def measure_server(
    open_server: Open, callers_each: Sequence[int], speeches: Sequence[Speech], args: argparse.Namespace
) -> tuple[dict[str, Any], list[tuple[str, Round]]]:
    """Rounds with more and more callers, each on a fresh server, until one does not hold or all have been made.

    Returns:
        The entry of the report, and the rounds with the server's name.
    """
    rounds: list[Round] = []
    name, idle_mb = "", 0.0
    for callers in sorted(callers_each):
        with open_server() as server:
            name, idle_mb = server.name, footprint(server.process.pid)["rss_kb"] / 1024
            done = run(measure(server, callers, speeches, args))
        rounds.append(done)
        show(name, done, idle_mb)
        if not done.holds and not args.all:
            break
    print(f"{name}: holds {capacity(rounds)} callers of the numbers tried")
    entry = {"server": name, "capacity": capacity(rounds), "rounds": [_entry(done, idle_mb) for done in rounds]}
    return entry, [(name, done) for done in rounds]


def _entry(done: Round, idle_mb: float) -> dict[str, Any]:
    return {**done.as_json(), "memory_per_caller_mb": round((done.memory_mb - idle_mb) / max(done.served, 1), 3)}


def show(name: str, done: Round, idle_mb: float) -> None:
    print(
        f"\n{name}: {done.callers} callers, {done.turns} turns in {done.measured_s:.0f} s{'' if done.holds else ': does not hold'}"
    )
    if done.voice_to_voice is not None:
        heard = done.voice_to_voice.as_ms()
        print(f"  voice to voice  p50 {heard['p50_ms']:.0f}  p95 {heard['p95_ms']:.0f}  p99 {heard['p99_ms']:.0f} ms")
    if done.stop is not None:
        stop = done.stop.as_ms()
        print(f"  spoken over, silent after  p50 {stop['p50_ms']:.0f}  p95 {stop['p95_ms']:.0f} ms")
    print(
        f"  lost {done.lost}, cut off {done.cut_off}, underruns {done.underruns} ({done.underrun_s:.2f} s), "
        f"not stopped {done.not_stopped} of {done.cut_ins}, refused {done.refused}, errors {len(done.errors)}"
    )
    print(
        f"  processor {done.cpu_share:.1%} of a core, {done.cpu_per_caller:.2%} per caller; "
        f"memory {done.memory_mb:.0f} MB, {(done.memory_mb - idle_mb) / max(done.served, 1):.2f} MB per caller"
    )
    for key, value in done.server.items():
        if value not in (None, {}, 0.0):
            print(f"  {key.replace('_', ' ')}: {value}")
    for error in done.errors[:3]:
        print(f"  {error}")
    if done.generator_late_share > 0.01:
        print(
            f"  caution: {done.generator_late_share:.1%} of the generator's own messages left late; this machine is too busy to measure"
        )


@contextlib.contextmanager
def on_cores(cores: set[int] | None) -> Iterator[None]:
    """Keep this process on some cores, where the system knows of such a thing."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def share_cores(args: argparse.Namespace) -> tuple[set[int] | None, set[int] | None]:
    """Cores of the server and of the generator: one each with stand-ins, so that "a core" is one; with models the server has all."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return None, None
    return (set(cores) if args.models else {cores[0]}), {cores[-1]}


def main() -> int:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", action="store_true", help="our server with the models that it finds on this machine"
    )
    parser.add_argument(
        "--standins",
        nargs="?",
        const="silero",
        choices=("silero", "level"),
        help="our server with stand-ins, and which VAD",
    )
    parser.add_argument("--pipecat", action="store_true", help="Pipecat with the same stand-ins, installed by pip")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 2, 4, 8], help="callers at once, one round each")
    parser.add_argument(
        "--pipecat-callers", type=int, nargs="+", help="the same for Pipecat, where its rounds are to be others"
    )
    parser.add_argument("--seconds", type=float, default=25.0, help="measured time of a round")
    parser.add_argument("--warm", type=float, default=8.0, help="time before that")
    parser.add_argument("--spread", type=float, default=Manners().spread_s, help="callers begin within so many seconds")
    parser.add_argument("--all", action="store_true", help="make all rounds, also behind one that does not hold")
    parser.add_argument("--hangover", type=float, default=0.5, help="silence that ends a turn, with stand-ins")
    for name in ("asr", "llm", "tts"):
        parser.add_argument(f"--{name}-s", type=float, default=0.0, help=f"time that the {name.upper()} stand-in takes")
    parser.add_argument(
        "--cuts-in", type=float, default=Manners().cuts_in, help="share of answers that are spoken over"
    )
    parser.add_argument(
        "--falls-silent", type=float, default=Manners().falls_silent, help="share of turns after a long silence"
    )
    parser.add_argument("--data", type=Path, default=here.parent / "tests" / "data", help="folder with manifest.jsonl")
    parser.add_argument("--kinds", nargs="+", default=["order", "command"], help="kinds of recordings that callers say")
    parser.add_argument("--preset", default="cafe", help="agent of the server with models")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of our server"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pipecat-env", type=Path, default=Path.home() / ".cache" / "voiceagent" / "pipecat-env")
    parser.add_argument(
        "--profile", type=Path, help="write where the stand-in server's loop spends its time (cProfile)"
    )
    parser.add_argument("--out", type=Path, default=here / "results" / "load.json")
    args = parser.parse_args()
    if not (args.models or args.standins or args.pipecat):
        parser.error("nothing to measure: give --models, --standins or --pipecat")
    if not Path("/proc/self/stat").exists():
        parser.error("processor time and memory are read from /proc, which this system does not have")
    return measure_all(args)


def measure_all(args: argparse.Namespace) -> int:
    machine = describe()
    print(f"machine: {machine['cpu']}, {machine['cores']} cores, {machine['system']}, commit {machine['commit']}")
    print(f"load of the machine before: {os.getloadavg()[0]:.2f}")
    server_cores, own_cores = share_cores(args)
    times = StandInTimes(args.asr_s, args.llm_s, args.tts_s)
    speeches = load_speeches(args.data, args.kinds)
    servers: list[tuple[Open, Sequence[int]]] = []
    if args.standins:
        ours = partial(standins, args.standins, times, args.hangover, server_cores, keys=args.set, profile=args.profile)
        servers.append((ours, args.callers))
    if args.pipecat:
        theirs = partial(pipecat, times, args.hangover, server_cores, args.pipecat_env)
        servers.append((theirs, args.pipecat_callers or args.callers))
    if args.models:
        servers.append((partial(models, args.preset, args.set, server_cores), args.callers))
    report: dict[str, Any] = {
        "benchmark": "load",
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", "examples/bench_load.py", *sys.argv[1:]]),
        "machine": machine,
        "load_before": os.getloadavg()[0],
        "cores": {"server": sorted(server_cores or ()) or "all", "generator": sorted(own_cores or ()) or "all"},
        "recordings": {"kinds": args.kinds, "count": len(speeches)},
        "servers": [],
    }
    rounds: list[tuple[str, Round]] = []
    for open_server, callers in servers:
        try:
            with on_cores(own_cores):
                entry, made = measure_server(open_server, callers, speeches, args)
            report["servers"].append(entry)
            rounds += made
        except NotThere as error:
            print(f"\nleft out: {error}")
            report["servers"].append({"left_out": str(error)})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(rounds)}\n\nwritten: {args.out}")
    return 0 if all(entry.get("capacity", 1) for entry in report["servers"]) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Voice-to-voice latency at the caller: recordings played over a real websocket in real time, measured from the two waveforms.

    python examples/bench_voice_to_voice.py --data tests/data --callers 1 4 8

Starts its own server unless --url names one, and has that let in as many callers as are asked for: `bench_load.py` tells whom it would
refuse. The clock, the caller and the meter are one process, so one monotonic clock covers both directions. The end of
speech is `speech_end_s` of the recordings' manifest; the start of the answer is the first frame above -50 dBFS of what a player without
prefetch would play. Before measuring, the meter is checked on a server whose answer time is known.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus

from voice_pipelines.measure import percentiles

sys.path.insert(0, str(Path(__file__).parent))

from machine import describe
from realtime_caller import FRAME_S, RATE_HZ, Caller, CallResult, Recording, Turn, load_recordings
from server_process import server

KNOWN_ANSWER_S = 0.300


async def calibrate(
    tones: int = 5, tone_s: float = 1.0, resolution_s: tuple[float, float] = (-0.005, 0.060)
) -> dict[str, float]:
    """Measure a server that answers exactly 300 ms of audio after the end of a tone; the error is the meter's own.

    The answer can leave only with the message that completes those 300 ms, and the meter's frames are 5 ms: an error up to one
    20 ms message plus one frame is the resolution, and it is never early.

    Raises:
        RuntimeError: If an answer is not heard, or the worst error is outside `resolution_s`.
    """
    t = np.arange(round(tone_s * RATE_HZ)) / RATE_HZ
    tone = (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    quiet = np.zeros(round((KNOWN_ANSWER_S + 0.1) * RATE_HZ), dtype=np.float32)
    recording = Recording("tone", "calibration", "", np.concatenate([tone, quiet]), 0.0, tone_s)

    async def answer(socket: ServerConnection) -> None:
        await socket.send(json.dumps({"type": "session.created"}))
        received, loud_end, is_answered = 0, 0, False
        async for message in socket:
            event = json.loads(message)
            if event["type"] != "input_audio_buffer.append":
                continue
            pcm = np.frombuffer(base64.b64decode(event["audio"]), dtype="<i2")
            loud = np.flatnonzero(np.abs(pcm) > 300)
            if loud.size:
                loud_end, is_answered = received + int(loud[-1]) + 1, False
            received += pcm.size
            if loud_end and not is_answered and received >= loud_end + KNOWN_ANSWER_S * RATE_HZ:
                is_answered = True
                reply = base64.b64encode((tone[:2400] * 32767).astype("<i2").tobytes()).decode("ascii")
                for extra in (
                    {"type": "response.created", "response": {"id": "r"}},
                    {"type": "response.output_audio.delta", "response_id": "r", "delta": reply},
                    {"type": "response.done", "response": {"id": "r"}},
                    {"type": "voiceagent.turn.timeline", "timeline": {}},
                ):
                    await socket.send(json.dumps(extra))

    async with serve(answer, "127.0.0.1", 0, compression=None) as fake:
        port = next(iter(fake.sockets)).getsockname()[1]
        result = await Caller(f"ws://127.0.0.1:{port}").call([recording] * tones, first_pause_s=0.2)
    measured = [turn.voice_to_voice_s for turn in result.turns if turn.voice_to_voice_s is not None]
    if len(measured) != tones:
        raise RuntimeError(f"the meter heard {len(measured)} of {tones} known answers")
    errors = [value - KNOWN_ANSWER_S for value in measured]
    worst = max(errors, key=abs)
    if not resolution_s[0] <= worst <= resolution_s[1]:
        raise RuntimeError(
            f"the meter is off by {worst * 1000:.1f} ms on a known answer; the machine is too busy to measure"
        )
    return {"known_ms": KNOWN_ANSWER_S * 1000, "worst_error_ms": round(worst * 1000, 2)}


async def measure(
    url: str, recordings: Sequence[Recording], callers: int, turns: int, calls: int, seed: int, api_key: str | None
) -> list[CallResult]:
    """`callers` lines at once, each making `calls` calls of `turns` recordings, starting at staggered moments."""
    rng = random.Random(seed)
    plan = [[rng.sample(recordings, min(turns, len(recordings))) for _ in range(calls)] for _ in range(callers)]
    offsets = [rng.uniform(0.0, 4.0) if callers > 1 else 0.0 for _ in range(callers)]

    async def line(index: int) -> list[CallResult]:
        await asyncio.sleep(offsets[index])
        try:
            return [await Caller(url, api_key).call(chosen) for chosen in plan[index]]
        except InvalidStatus as refused:
            status, body = refused.response.status_code, (refused.response.body or b"").decode(errors="replace").strip()
            hint = "; server.refuse_when_full = false lets in those who would make all late" if status == 503 else ""
            raise SystemExit(f"the server refused one of {callers} callers: {status} {body}{hint}") from refused

    return [result for results in await asyncio.gather(*map(line, range(callers))) for result in results]


def summarise(results: Sequence[CallResult]) -> dict[str, Any]:
    turns = [turn for result in results for turn in result.turns]
    answered = [turn for turn in turns if turn.voice_to_voice_s is not None]
    clean = [turn for turn in answered if not turn.cut_off]
    report: dict[str, Any] = {
        "turns": len(turns),
        "unanswered": len(turns) - len(answered),
        "cut_off": sum(turn.cut_off for turn in turns),
        "underruns": sum(len(turn.underruns_s) for turn in turns),
        "errors": [error for result in results for error in result.errors],
        "voice_to_voice": percentiles([turn.voice_to_voice_s for turn in answered]).as_ms()  # type: ignore[misc]
        if answered
        else None,
        "voice_to_voice_without_cut_offs": percentiles([turn.voice_to_voice_s for turn in clean]).as_ms()  # type: ignore[misc]
        if clean
        else None,
    }
    stages: dict[str, list[float]] = {}
    for turn in answered:
        for stage in (turn.timeline or {}).get("stages", []):
            stages.setdefault(stage["name"], []).append((stage["end_ms"] - stage["start_ms"]) / 1000)
    report["server_stages"] = {name: percentiles(values).as_ms() for name, values in stages.items()}
    granted = [turn.timeline["plan"]["granted_first"] for turn in answered if (turn.timeline or {}).get("plan")]  # type: ignore[index]
    report["steps_granted_first_clause"] = {"min": min(granted), "max": max(granted)} if granted else None
    return report


def show(callers: int, report: dict[str, Any]) -> None:
    latency = report["voice_to_voice"]
    print(f"\n{callers} caller{'s' * (callers > 1)}, {report['turns']} turns")
    if latency:
        print(
            f"  voice to voice  p50 {latency['p50_ms']:.0f}  p95 {latency['p95_ms']:.0f}  p99 {latency['p99_ms']:.0f} ms"
            f"  (mean {latency['mean_ms']:.0f})"
        )
    clean = report["voice_to_voice_without_cut_offs"]
    if clean and report["cut_off"]:
        print(
            f"  of turns not cut off  p50 {clean['p50_ms']:.0f}  p95 {clean['p95_ms']:.0f}  (mean {clean['mean_ms']:.0f})"
        )
    for name, values in report["server_stages"].items():
        print(
            f"    {name:<14}  p50 {values['p50_ms']:7.1f}  p95 {values['p95_ms']:7.1f}  p99 {values['p99_ms']:7.1f} ms"
        )
    print(
        f"  unanswered {report['unanswered']}, cut off {report['cut_off']}, underruns {report['underruns']}, "
        f"errors {len(report['errors'])}"
    )


def show_log(results: Sequence[CallResult]) -> None:
    for turn in (turn for result in results for turn in result.turns):
        latency = "  none" if turn.voice_to_voice_s is None else f"{turn.voice_to_voice_s * 1000:6.0f}"
        print(f"  {latency} ms  said: {turn.said}\n             heard: {turn.heard}\n             reply: {turn.reply}")


def plot(path: Path, rounds: Sequence[dict[str, Any]]) -> bool:
    """Draw the distributions and the server's stages; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for entry in rounds:
        values = sorted(
            turn["voice_to_voice_s"] * 1000 for turn in entry["log"] if turn["voice_to_voice_s"] is not None
        )
        left.step(
            values, np.arange(1, len(values) + 1) / len(values), where="post", label=f"{entry['callers']} callers"
        )
    left.set(xlabel="voice to voice, ms", ylabel="share of turns", title="Measured at the caller")
    left.grid(alpha=0.3)
    left.legend()
    bottom = np.zeros(len(rounds))
    names = list(dict.fromkeys(name for entry in rounds for name in entry["summary"]["server_stages"]))
    for name in names:
        heights = np.array([entry["summary"]["server_stages"].get(name, {}).get("p50_ms", 0.0) for entry in rounds])
        right.bar([str(entry["callers"]) for entry in rounds], heights, bottom=bottom, label=name)
        bottom += heights
    right.set(xlabel="callers", ylabel="ms (median of each stage)", title="Where the server spends it")
    right.legend()
    figure.savefig(path, dpi=130)
    return True


async def run(args: argparse.Namespace, url: str, startup: list[str]) -> int:
    recordings = load_recordings(args.data, args.kinds)
    calibration = await calibrate()
    machine = describe()
    print(f"machine: {machine['cpu']}, {machine['cores']} cores, {machine['system']}, commit {machine['commit']}")
    print(f"meter: known answer {calibration['known_ms']:.0f} ms, worst error {calibration['worst_error_ms']:+.1f} ms")
    rounds: list[dict[str, Any]] = []
    for callers in args.callers:
        calls = max(round(args.calls / callers), 1)
        results = await measure(url, recordings, callers, args.turns, calls, args.seed, args.api_key)
        summary = summarise(results)
        show(callers, summary)
        if callers == args.callers[0]:
            show_log(results)
        turns: list[Turn] = [turn for result in results for turn in result.turns]
        rounds.append({"callers": callers, "summary": summary, "log": [asdict(turn) for turn in turns]})
    for entry in rounds:
        for turn in entry["log"]:
            turn.pop("timeline")
    report = {
        "benchmark": "voice_to_voice",
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", "examples/bench_voice_to_voice.py", *sys.argv[1:]]),
        "machine": machine,
        "server": startup,
        "recordings": {"kinds": args.kinds, "count": len(recordings)},
        "message_ms": FRAME_S * 1000,
        "meter": calibration,
        "rounds": rounds,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "voice_to_voice.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    has_picture = plot(args.out / "voice_to_voice.png", rounds)
    picture = "and .png" if has_picture else "(no picture: matplotlib is missing, pip install 'voiceagent[bench]')"
    print(f"\nwritten: {args.out / 'voice_to_voice.json'} {picture}")
    return 0 if all(entry["summary"]["voice_to_voice"] for entry in rounds) else 1


def main() -> int:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--url", help="websocket of a running server; without it one is started here, which lets all callers in"
    )
    parser.add_argument("--api-key")
    parser.add_argument("--data", type=Path, default=here.parent / "tests" / "data", help="folder with manifest.jsonl")
    parser.add_argument("--kinds", nargs="+", default=["order"], help="kinds of recordings to play")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 2, 4, 8], help="callers at once, one round each")
    parser.add_argument("--calls", type=int, default=12, help="calls in each round, shared among the callers")
    parser.add_argument("--turns", type=int, default=4, help="recordings in each call")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=here / "results")
    parser.add_argument("--server-args", nargs=argparse.REMAINDER, default=[], help="passed to `voiceagent run`")
    args = parser.parse_args()
    if args.url:
        return asyncio.run(run(args, args.url, []))
    with server(["--set", "server.refuse_when_full=false", *args.server_args]) as (url, _, lines):
        return asyncio.run(run(args, url, list(lines)))


if __name__ == "__main__":
    sys.exit(main())

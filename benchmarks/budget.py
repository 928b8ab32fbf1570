"""Does the latency budget keep its deadlines, and what does it pay for them? Thousands of turns replayed in simulated time.

    python benchmarks/budget.py --machine cpu --save benchmarks/results/budget-cpu.json --plot benchmarks/results/budget-cpu.png
    python benchmarks/budget.py --machine h200 --save benchmarks/results/budget-h200.json --plot benchmarks/results/budget-h200.png
    python benchmarks/budget.py --record tests/data/order   # measure this machine's stages first, for "recorded"

Nothing is timed here but `--record`: callers, machine and clock are simulated from a seed, so a busy machine gives the same numbers. Stage
times are synthetic (stated medians with log-normal spread, drift and stalls) or drawn from those recorded on a real machine. The budget
controller, its cost models and the quality curve are the runtime's own; the engine's rule (nearest deadline first) is a copy of it.

Nominal load is the number of callers at which the full plan, all steps that the curve says help, uses 70 % of the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from budget_replay import (
    Autoregressive,
    Controlled,
    Machine,
    Noise,
    Outcome,
    Policy,
    Replay,
    Result,
    Scenario,
)

from voiceagent.backends import QualityCurve
from voiceagent.budget import BudgetController
from voiceagent.budget_terms import BudgetSettings
from voiceagent.costs import Stage

ROOT = Path(__file__).parents[1]
CURVE = ROOT / "dllm" / "builtin" / "quality_curve.json"
RECORDED = ROOT / "benchmarks" / "results" / "budget-stages.json"
NOMINAL_SHARE = 0.7
FLOOR_QUALITY = 0.65
"""As `voice_pipelines` chooses a model's floor: the fewest steps that reach it on the narrowest canvas."""
WARM_UP_S = 30.0
TURN_S = 10.5
"""From one turn of a caller to the next, on average."""
FIXED = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16)

TWO_CORES = Machine(
    name="two CPU cores, built-in model",
    width=32,
    target_s=0.8,
    endpoint_s=0.362,
    asr_s=0.018,
    prefill_s=lambda tokens: 0.006 + 0.0011 * tokens,
    # benchmarks/results/dllm-step.json: 10.9 ms alone, 31.3 ms for four, 58.9 ms for eight, one thread.
    step_s=lambda batch: 0.0043 + 0.0068 * batch if batch > 1 else 0.0109,
    # The same machine's ratio of a token of transformers to a canvas of 32 at 1, 4 and 16 replies (engine-cpu-0.03B.json): 0.28, 0.21, 0.11.
    ar_step_s=lambda batch: 0.0024 + 0.00065 * batch,
    tts_s=lambda chars: 0.003 + 0.00004 * chars,
    transport_s=0.0025,
    max_batch=2,
)
H200 = Machine(
    name="8B on one H200 (synthetic)",
    width=32,
    target_s=0.5,
    endpoint_s=0.362,
    asr_s=0.018,
    # Nothing of it was measured: 1.3 times 16 GB at 4.3 TB/s, and 32 positions of arithmetic for each canvas at 400 TFLOP/s.
    prefill_s=lambda tokens: 0.009 + 0.00002 * tokens,
    step_s=lambda batch: 0.0048 + 0.0013 * batch / 16,
    ar_step_s=lambda batch: 0.0048 + 0.00004 * batch / 16,
    tts_s=lambda chars: 0.003 + 0.00004 * chars,
    transport_s=0.0025,
    max_batch=32,
)


def quality_curve() -> QualityCurve:
    raw = json.loads(CURVE.read_text("utf-8"))
    return QualityCurve(tuple(raw["widths"]), tuple(raw["steps"]), tuple(map(tuple, raw["quality"])))


def settings_for(curve: QualityCurve) -> BudgetSettings:
    narrowest = curve.quality[curve.widths.index(min(curve.widths))]
    floor = next(n for n, value in zip(curve.steps, narrowest, strict=True) if value >= FLOOR_QUALITY)
    return BudgetSettings(min_steps=floor)


class Bench:
    """One machine under every load and policy."""

    def __init__(self, machine: Machine, curve: QualityCurve, turns: int, seed: int) -> None:
        self.machine, self.curve, self.seed = machine, curve, seed
        self.settings = settings_for(curve)
        limits = BudgetController(self.settings, curve=curve)
        self.full = limits.useful_steps(limits.clause_width), limits.useful_steps(machine.width)
        self.nominal = self._nominal()
        self.duration_s = WARM_UP_S + turns * TURN_S / self.nominal

    def budget(self) -> Policy:
        return Controlled(self.machine, self.curve, self.settings)

    def maximum(self) -> Policy:
        return Policy("always maximum", self.machine, *self.full)

    def fixed(self, steps: int) -> Policy:
        return Policy(f"fixed {steps}", self.machine, steps, steps)

    def run(
        self, policy: Policy, callers: Sequence[tuple[float, int]], noise: Noise, duration_s: float | None = None
    ) -> Result:
        scenario = Scenario(tuple(callers), duration_s or self.duration_s, noise, self.seed, WARM_UP_S)
        return Replay(self.machine, scenario, policy, self.curve).run()

    def _nominal(self) -> int:
        low, high = 1, 512
        while low < high:
            middle = (low + high + 1) // 2
            busy = self.run(self.maximum(), [(0.0, middle)], Noise(), 130.0).busy_share
            low, high = (middle, high) if busy <= NOMINAL_SHARE else (low, middle - 1)
        return low


def summary(result: Result) -> dict[str, Any]:
    turns: Sequence[Outcome] = result.outcomes
    if not turns:
        return {"policy": result.policy, "turns": 0, "busy": round(result.busy_share, 3)}
    latency = sorted(turn.latency_s for turn in turns)

    def rank(share: float) -> float:
        return round(latency[min(int(share * len(latency)), len(latency) - 1)] * 1000, 1)

    return {
        "policy": result.policy,
        "turns": len(turns),
        "on_time": round(statistics.fmean(turn.is_on_time for turn in turns), 4),
        "without_gap": round(statistics.fmean(not turn.has_gap for turn in turns), 4),
        "deadlines_met": round(statistics.fmean((turn.is_on_time + (not turn.has_gap)) / 2 for turn in turns), 4),
        "steps_first": round(statistics.fmean(turn.steps_first for turn in turns), 2),
        "steps_rest": round(statistics.fmean(turn.steps_rest for turn in turns), 2),
        "quality": round(statistics.fmean(turn.quality for turn in turns), 4),
        "quality_lost": round(1 - statistics.fmean(turn.quality for turn in turns), 4),
        "p50_ms": rank(0.5),
        "p95_ms": rank(0.95),
        "p99_ms": rank(0.99),
        "busy": round(result.busy_share, 3),
        "refusing": round(result.refusing_share, 4),
    }


NOISE = Noise(sigma=0.15, drift=0.05, stall=0.002)
LOADS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)


def scenarios(bench: Bench) -> dict[str, tuple[list[tuple[float, int]], Noise]]:
    """What is tried beside steady load: name to callers over time and noise."""
    n, end = bench.nominal, bench.duration_s
    third, two_thirds = end / 3, 2 * end / 3
    return {
        "load steps 1, 2, 1": ([(0.0, n), (third, 2 * n), (two_thirds, n)], NOISE),
        "machine 3 times slower for a third": (
            [(0.0, n // 2)],
            Noise(0.15, 0.05, 0.002, slow=((third, two_thirds, 3.0),)),
        ),
        "stalls of 0.1 s in 2 % of forwards": ([(0.0, n)], Noise(0.15, 0.05, 0.02, 0.1)),
        "noise, sigma 0.5": ([(0.0, n)], Noise(0.5, 0.15, 0.002)),
    }


def recorded_noise() -> Noise | None:
    """Ratios to the median of the stage times in `budget-stages.json`."""
    if not RECORDED.is_file():
        return None
    raw = json.loads(RECORDED.read_text("utf-8"))["seconds"]
    ratios = {}
    for stage in Stage:
        values = [float(value) for value in raw.get(stage.value, ())]
        if len(values) >= 20:
            median = statistics.median(values)
            ratios[stage] = tuple(value / max(median, 1e-6) for value in values)
    return Noise(sigma=0.15, drift=0.05, recorded=ratios)


def measure(bench: Bench, tell: Callable[[str], None]) -> dict[str, Any]:
    machine = bench.machine
    tell(
        f"\n{machine.name}: target {machine.target_s * 1000:.0f} ms, floor {bench.settings.min_steps}, full plan "
        f"{bench.full[0]} + {bench.full[1]} steps, nominal load {bench.nominal} callers"
    )
    rows: list[dict[str, Any]] = []

    def add(what: str, load: float | None, result: Result) -> dict[str, Any]:
        row = {"what": what, "load": load, **summary(result)}
        rows.append(row)
        if row["turns"]:
            tell(
                f"  {what:<36} {row['policy']:<15} {row['turns']:>6} turns  on time {row['on_time']:7.2%}  no gap {row['without_gap']:7.2%}"
                f"  steps {row['steps_first']:5.2f} + {row['steps_rest']:5.2f}  quality {row['quality']:.4f}  p95 {row['p95_ms']:5.0f} ms"
                f"  busy {row['busy']:.2f}" + (f"  door closed {row['refusing']:.0%}" if row["refusing"] else "")
            )
        return row

    for load in LOADS:
        callers = [(0.0, max(round(load * bench.nominal), 1))]
        policies = [bench.budget(), bench.maximum(), Autoregressive(machine)]
        if load in (1.0, 2.0):
            policies += [bench.fixed(steps) for steps in FIXED]
        for policy in policies:
            add(f"steady, {load:g} x nominal", load, bench.run(policy, callers, NOISE))
    for name, (callers, noise) in scenarios(bench).items():
        for policy in (bench.budget(), bench.fixed(bench.settings.min_steps), bench.maximum()):
            add(name, None, bench.run(policy, callers, noise))
    if machine is TWO_CORES and (noise := recorded_noise()) is not None:
        for load in (1.0, 2.0):
            callers = [(0.0, round(load * bench.nominal))]
            for policy in (bench.budget(), bench.fixed(bench.settings.min_steps), bench.maximum()):
                add(f"recorded times, {load:g} x nominal", load, bench.run(policy, callers, noise))
    verdicts = [verdict(rows, load, wanted) for load, wanted in ((1.0, 0.99), (2.0, 0.95))]
    for one in verdicts:
        tell(
            f"  {one['load']:g} x nominal: {one['on_time']:.2%} on time (target {one['target']:.0%}: {'met' if one['is_met'] else 'missed'}); "
            f"best fixed count that meets as many: {one['rival'] or 'none'}"
            + (f", quality {one['rival_quality']:.4f} against {one['quality']:.4f}" if one["rival"] else "")
        )
    return {
        "machine": machine.name,
        "target_ms": machine.target_s * 1000,
        "floor": bench.settings.min_steps,
        "full_plan": bench.full,
        "nominal_callers": bench.nominal,
        "rows": rows,
        "verdicts": verdicts,
    }


def verdict(rows: Sequence[dict[str, Any]], load: float, target: float) -> dict[str, Any]:
    """The budget at one load against its target, and against the best fixed step count that meets as many deadlines."""
    steady = [row for row in rows if row["what"].startswith("steady") and row["load"] == load and row["turns"]]
    own = next(row for row in steady if row["policy"] == "budget")
    rivals = [
        row for row in steady if row["policy"].startswith("fixed") and row["deadlines_met"] >= own["deadlines_met"]
    ]
    best = max(rivals, key=lambda row: row["quality"], default=None)
    return {
        "load": load,
        "target": target,
        "on_time": own["on_time"],
        "without_gap": own["without_gap"],
        "is_met": own["on_time"] >= target and own["without_gap"] >= target,
        "quality": own["quality"],
        "rival": best and best["policy"],
        "rival_quality": best and best["quality"],
        "has_more_quality": best is None or own["quality"] > best["quality"],
    }


# --- stages of a real machine -----------------------------------------------------------------------------------------


def recordings(folder: Path, count: int) -> list[Path]:
    files = sorted(folder.rglob("*.flac"))
    random.Random(0).shuffle(files)
    if not files:
        raise SystemExit(f"no recordings under {folder}")
    return files[:count]


async def record(files: Sequence[Path]) -> dict[str, Any]:
    """Play recordings to the built-in agent on this machine, in real time, and keep what each stage took."""
    from measuring import about
    from torch import device

    from voice_pipelines.local import build
    from voice_pipelines.loopback import call
    from voice_pipelines.settings import load
    from voice_pipelines.soundfiles import read_sound

    # Drafts that are begun before the turn is over leave no stage to time.
    runtime = await build(load(assignments=["budget.speculate=false"], environ={}))
    seconds: dict[str, list[float]] = {stage.value: [] for stage in Stage}
    names = {"asr": Stage.ASR, "prefill": Stage.PREFILL, "tts": Stage.TTS, "transport": Stage.TRANSPORT}
    turns = 0
    try:
        for file in files:
            result = await call(runtime.open_conversation, read_sound(file), runtime.clock)
            for timeline in result.timelines:
                turns += 1
                for stage in timeline.get("stages", ()):  # type: ignore[union-attr]
                    if stage["name"] in names:
                        seconds[names[stage["name"]].value].append(round(stage["took_ms"] / 1000, 6))
                for step in timeline.get("steps", ()):  # type: ignore[union-attr]
                    seconds[Stage.STEP.value].append(round((step["compute_ms"] + step["waited_ms"]) / 1000, 6))
    finally:
        await runtime.aclose()
    return {"about": about(device("cpu")), "turns": turns, "recordings": len(files), "seconds": seconds}


# --- pictures ---------------------------------------------------------------------------------------------------------


def plot(reports: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(reports), 3, figsize=(15, 4.2 * len(reports)), squeeze=False)
    for report, (left, middle, right) in zip(reports, axes, strict=True):
        rows = [row for row in report["rows"] if row["what"].startswith("steady") and row["turns"]]
        for policy in ("budget", "always maximum", "autoregressive"):
            own = [row for row in rows if row["policy"] == policy]
            left.plot([row["load"] for row in own], [100 * row["on_time"] for row in own], marker="o", label=policy)
        left.set(title=report["machine"], xlabel="load, of nominal", ylabel="answers on time, %", ylim=(0, 102))
        left.legend()
        own = [row for row in rows if row["policy"] == "budget"]
        loads = [row["load"] for row in own]
        middle.plot(loads, [row["steps_first"] for row in own], marker="o", label="first clause")
        middle.plot(loads, [row["steps_rest"] for row in own], marker="o", label="rest")
        middle.set(title="steps that the budget grants", xlabel="load, of nominal", ylabel="steps", ylim=(0, None))
        middle.legend()
        for load, marker in ((1.0, "o"), (2.0, "^")):
            fixed = [row for row in rows if row["load"] == load and row["policy"].startswith("fixed")]
            right.plot(
                [100 * row["deadlines_met"] for row in fixed],
                [row["quality"] for row in fixed],
                marker=marker,
                label=f"fixed 2 to 16, {load:g} x",
            )
            mine = next(row for row in own if row["load"] == load)
            right.plot(
                [100 * mine["deadlines_met"]],
                [mine["quality"]],
                marker=marker,
                markersize=12,
                linestyle="none",
                label=f"budget, {load:g} x",
            )
        right.set(title="deadlines against quality", xlabel="deadlines met, %", ylabel="mean quality, of the best")
        right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", choices=("all", "cpu", "h200"), default="all")
    parser.add_argument("--turns", type=int, default=2000, help="turns of each replay at nominal load, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument(
        "--record", type=Path, metavar="FOLDER", help="first measure stages on recordings, in real time"
    )
    parser.add_argument("--recordings", type=int, default=20)
    options = parser.parse_args(argv)
    if options.record is not None:
        found = asyncio.run(record(recordings(options.record, options.recordings)))
        RECORDED.write_text(json.dumps(found) + "\n", "utf-8")
        print(f"{found['turns']} turns recorded in {RECORDED}")
    machines = {"cpu": [TWO_CORES], "h200": [H200], "all": [TWO_CORES, H200]}[options.machine]
    curve = quality_curve()
    print("simulated turns; stage times are synthetic unless a line says recorded", flush=True)
    reports = [
        measure(Bench(machine, curve, options.turns, options.seed), lambda line: print(line, flush=True))
        for machine in machines
    ]
    if options.save is not None:
        from measuring import commit

        data = {
            "commit": commit(),
            "seed": options.seed,
            "turns": options.turns,
            "curve": CURVE.name,
            "reports": reports,
        }
        options.save.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    if options.plot is not None:
        plot(reports, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())

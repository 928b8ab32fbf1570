"""What a round of a load test comes to, and how many callers a server has room for. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from voice_pipelines.measure import Percentiles, percentiles

from .line import Call
from .phone import HeardTurn

P95_LIMIT_S = 1.0
LATE_S = 0.02
"""A generator that sends more than one message in a hundred later than this measures itself."""

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")

Metrics = Mapping[str, float]
"""Each line of `/metrics`: name with its labels as they are written, and the value."""


@dataclass(frozen=True, slots=True)
class Round:
    """N callers for a while. Counts are of turns that ended within the measured time."""

    callers: int
    measured_s: float
    turns: int
    cut_ins: int
    lost: int
    cut_off: int
    underruns: int
    underrun_s: float
    not_stopped: int
    """Words said over an answer that went on all the same."""
    voice_to_voice: Percentiles | None
    """Of turns that were not cut off."""
    stop: Percentiles | None
    """From the first message of words said over the agent until it was silent."""
    refused: int
    """Callers that the server would not take."""
    errors: tuple[str, ...]
    cpu_share: float
    """Processor time of the server and its workers over the measured time: 1 is a whole core."""
    memory_mb: float
    generator_late_share: float
    """Messages that the generator itself sent more than `LATE_S` late."""
    server: Mapping[str, Any]
    """What the server says of itself over the same time, where it says anything."""

    @property
    def served(self) -> int:
        """Callers that were not turned away."""
        return self.callers - self.refused

    @property
    def cpu_per_caller(self) -> float:
        return self.cpu_share / max(self.served, 1)

    @property
    def holds(self) -> bool:
        """Whether those who were let in were served: p95 within a second, no gap, nobody lost."""
        in_time = self.voice_to_voice is not None and self.voice_to_voice.p95 <= P95_LIMIT_S
        return in_time and self.underruns == 0 and self.lost == 0 and not self.errors

    def as_json(self) -> dict[str, Any]:
        times = {name: None if value is None else value.as_ms() for name, value in self._times()}
        return {
            **{key: value for key, value in asdict(self).items() if key not in ("voice_to_voice", "stop")},
            **times,
            "cpu_per_caller": round(self.cpu_per_caller, 5),
            "holds": self.holds,
        }

    def _times(self) -> Iterable[tuple[str, Percentiles | None]]:
        return (("voice_to_voice", self.voice_to_voice), ("stop", self.stop))


def sum_up(
    calls: Sequence[Call],
    *,
    begins: float,
    ends: float,
    cpu_s: float,
    memory_mb: float,
    before: Metrics,
    after: Metrics,
) -> Round:
    """The round between two readings of the clock; what was said before or is not over is left out."""
    turns = [turn for call in calls for turn in call.turns if _is_within(turn, begins, ends)]
    heard = [turn.voice_to_voice_s for turn in turns if turn.voice_to_voice_s is not None and not turn.is_cut_off]
    stops = [turn.stopped_s for turn in turns if turn.stopped_s is not None]
    gaps = [gap for turn in turns for gap in turn.gaps_s]
    late = [late_s > LATE_S for call in calls for late_s in call.late_s]
    return Round(
        callers=len(calls),
        measured_s=ends - begins,
        turns=len(turns),
        cut_ins=sum(turn.cuts_in for turn in turns),
        lost=sum(turn.answer_s is None for turn in turns),
        cut_off=sum(turn.is_cut_off for turn in turns),
        underruns=len(gaps),
        underrun_s=sum(gaps),
        not_stopped=sum(turn.cuts_in and turn.stopped_s is None for turn in turns),
        voice_to_voice=percentiles(heard) if heard else None,
        stop=percentiles(stops) if stops else None,
        refused=sum(call.refused is not None for call in calls),
        errors=tuple(f"caller {call.caller}: {call.error}" for call in calls if call.error),
        cpu_share=cpu_s / (ends - begins),
        memory_mb=memory_mb,
        generator_late_share=sum(late) / len(late) if late else 0.0,
        server=server_view(before, after) if after else {},
    )


def _is_within(turn: HeardTurn, begins: float, ends: float) -> bool:
    """Said within the measured time, and with time to be answered in it: `ends` is before the callers hang up."""
    return turn.speech_end_s >= begins and turn.speech_end_s <= ends


def capacity(rounds: Sequence[Round]) -> int:
    """The most callers that were let in and served when all smaller rounds were, too; 0 when not even the smallest was."""
    found = 0
    for each in sorted(rounds, key=lambda one: one.callers):
        if not each.holds:
            break
        found = max(found, each.served)
    return found


def table(rounds: Sequence[tuple[str, Round]]) -> str:
    """The rounds as Markdown, each with its server's name; what a server does not tell is a dash."""
    head = (
        "server",
        "callers",
        "turns",
        "voice to voice p50 / p95 / p99, ms",
        "silent after p95, ms",
        "lost",
        "cut off",
        "underruns",
        "refused",
        "on time",
        "steps, first clause",
        "own share p50, ms",
        "of a core per caller",
        "holds",
    )
    lines = [_row(head), _row(["---"] * len(head))]
    for name, each in rounds:
        steps, own = (each.server.get("steps_granted") or {}).get("first"), each.server.get("own_share_ms")
        met, heard, stop = each.server.get("deadlines_met"), each.voice_to_voice, each.stop
        lines.append(
            _row(
                (
                    name,
                    str(each.callers),
                    str(each.turns),
                    "–" if heard is None else " / ".join(f"{q * 1000:.0f}" for q in (heard.p50, heard.p95, heard.p99)),
                    "–" if stop is None else f"{stop.p95 * 1000:.0f}",
                    str(each.lost),
                    str(each.cut_off),
                    str(each.underruns),
                    str(each.refused),
                    "–" if met is None else f"{met:.1%}",
                    "–" if steps is None else f"{steps:.1f}",
                    "–" if own is None else f"≤ {own['p50']:g}",
                    f"{each.cpu_per_caller:.2%}",
                    "yes" if each.holds else "no",
                )
            )
        )
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# --- the server's own account -----------------------------------------------------------------------------------------


def parse_metrics(text: str) -> Metrics:
    """Prometheus' text format, comments left out."""
    found = {}
    for line in text.splitlines():
        if (sample := _SAMPLE.match(line)) is not None:
            name, labels, value = sample.groups()
            found[f"{name}{{{labels}}}" if labels else name] = float(value)
    return found


def server_view(before: Metrics, after: Metrics) -> dict[str, Any]:
    """What happened between two looks at `/metrics`."""

    def grew(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    def all_of(name: str) -> dict[str, float]:
        keys = [key for key in after if key.startswith(f"{name}{{")]
        return {key[len(name) + 1 : -1].replace('"', ""): grew(key) for key in keys if grew(key)}

    def mean(name: str, labels: str = "") -> float | None:
        count = grew(f"{name}_count{labels}")
        return grew(f"{name}_sum{labels}") / count if count else None

    met, late = grew("voiceagent_turn_slack_seconds_count"), grew("voiceagent_turn_late_seconds_count")
    return {
        "turns": all_of("voiceagent_turns_total"),
        "deadlines_met": met / (met + late) if met + late else None,
        "misses": all_of("voiceagent_deadline_misses_total"),
        "steps_granted": {
            phase: mean("voiceagent_denoise_steps_granted", f'{{phase="{phase}"}}') for phase in ("first", "rest")
        },
        "steps_taken": {phase: mean("voiceagent_denoise_steps", f'{{phase="{phase}"}}') for phase in ("first", "rest")},
        "expected_quality": mean("voiceagent_expected_quality_ratio"),
        "refusals": all_of("voiceagent_refusals_total"),
        "underruns": grew("voiceagent_underruns_total"),
        "own_share_ms": own_share_ms(before, after),
        "loop_lag_ms": quantiles_ms(before, after, "voiceagent_event_loop_lag_seconds"),
    }


def own_share_ms(before: Metrics, after: Metrics) -> dict[str, float] | None:
    """From the end of the turn as decided to the first audio on its way: with instant stand-ins, the runtime's own share."""
    return quantiles_ms(before, after, "voiceagent_turn_answer_seconds")


def quantiles_ms(before: Metrics, after: Metrics, name: str) -> dict[str, float] | None:
    """Quantiles of a histogram as the bounds of the buckets that hold them: the true value is at most that."""
    bounds: list[tuple[float, float]] = []
    for key, value in after.items():
        if key.startswith(f"{name}_bucket{{") and (bound := re.search(r'le="([^"]+)"', key)) is not None:
            bounds.append((float(bound.group(1)), value - before.get(key, 0.0)))
    total = max((count for _, count in bounds), default=0.0)
    if total == 0:
        return None
    bounds.sort()
    found = {
        f"p{round(q * 100)}": next(bound for bound, count in bounds if count >= q * total) for q in (0.5, 0.95, 0.99)
    }
    count, mean = f"{name}_count", f"{name}_sum"
    total_s = after.get(mean, 0.0) - before.get(mean, 0.0)
    found["mean"] = total_s / (after.get(count, 0.0) - before.get(count, 0.0))
    return {key: round(value * 1000, 3) for key, value in found.items()}

"""`voiceagent say`: one recording through the loop that the server runs, in real time, with every stage in view."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from voice_pipelines.local import build
from voice_pipelines.loopback import Call, call, find_speech_end_s, latency_s
from voice_pipelines.soundfiles import kind_of, read_sound, write_sound
from voiceagent.backends import INPUT_RATE_HZ, BackendInfo, CanvasToken, TokenState
from voiceagent.config import Config
from voiceagent.errors import ConfigError
from voiceagent.events import (
    ConversationEvent,
    ResponsePlanned,
    ResponseStepped,
    ResponseText,
    TranscriptFinal,
    TranscriptPartial,
)
from voiceagent.explain import written_before

MASK = "▒"


async def say(
    config: Config, file: Path, *, out: Path | None = None, as_json: bool = False, speech_end_s: float | None = None
) -> int:
    """Play `file` to the agent; 0 when it answered, 1 when it heard nothing to answer.

    Raises:
        VoiceAgentError: If the file cannot be read or a model cannot be loaded.
    """
    try:
        samples = read_sound(file)
    except (OSError, ValueError) as error:
        raise ConfigError("recording", str(file), f"a sound file ({error})") from error
    if not samples.size:
        raise ConfigError("recording", str(file), "a sound file that is not empty")
    if speech_end_s is not None and not 0 < speech_end_s <= samples.size / INPUT_RATE_HZ:
        length = f"seconds up to the recording's {samples.size / INPUT_RATE_HZ:.2f}"
        raise ConfigError("--speech-end", speech_end_s, length)
    if out is not None:
        _check_out(out)
    screen = sys.stderr if as_json else sys.stdout

    def report(info: BackendInfo) -> None:
        if not as_json:
            print(f"{info.part.upper()}: {info.name} ({info.reason})", file=screen)

    runtime = await build(config, report=report, remembers=True)
    try:
        end_s = speech_end_s if speech_end_s is not None else await find_speech_end_s(runtime.backends.vad, samples)
        result = await call(
            runtime.open_conversation, samples, runtime.clock, on_event=_Show(screen) if not as_json else _ignore
        )
    finally:
        await runtime.aclose()
    report_json = summary(result, end_s, config)
    if out is not None and result.track is not None:
        try:
            write_sound(out, result.track.samples(), result.track.rate_hz)
        except (OSError, ValueError) as error:
            raise ConfigError("--out", str(out), f"a file that can be written ({error})") from error
    if as_json:
        print(json.dumps(report_json, ensure_ascii=False))
    else:
        print_summary(report_json, screen)
        if out is not None and result.track is not None:
            print(f"reply written to {out}", file=screen)
    return 0 if report_json["reply"] else 1


def _check_out(out: Path) -> None:
    """What can be seen of whether the reply can be written there, before the agent is asked for it."""
    try:
        kind_of(out)
        if out.is_dir() or not out.absolute().parent.is_dir():
            raise ValueError("a directory, or in one that is not there")
    except (OSError, ValueError) as error:
        raise ConfigError("--out", str(out), f"a file that can be written ({error})") from error


def summary(result: Call, end_s: float | None, config: Config) -> dict[str, object]:
    """What `--json` prints. `voice_to_voice_ms` is measured from the two waveforms, for the last turn of the recording.

    It is None where the last reply began before the recording's last speech ended, as with both sides of a call in one file.
    """
    measured = latency_s(result, end_s)
    last = result.timelines[-1] if result.timelines else {}
    finished = result.finished[-1] if result.finished else None
    return {
        "transcript": " ".join(text for text in result.transcripts if text),
        "reply": str(last.get("reply", "")),
        "status": finished.status if finished else "silent",
        "voice_to_voice_ms": None if measured is None else round(measured * 1000, 1),
        "answered_before_speech_end": end_s is not None
        and bool(result.answers_at_s)
        and result.answers_at_s[-1] <= end_s,
        "speech_end_s": None if end_s is None else round(end_s, 3),
        "target_ms": round(config.budget.target_s * 1000, 1),
        "plan": last.get("plan"),
        "steps": last.get("steps", []),
        "timeline": last,
        "turns": result.timelines,
        "underruns_ms": [round(gap * 1000, 1) for gap in (result.track.underruns_s if result.track else [])],
    }


def _ignore(event: ConversationEvent) -> None:
    pass


class _Show:
    """Prints what happens while it happens."""

    def __init__(self, screen: TextIO) -> None:
        self._screen = screen
        self._heard = ""

    def __call__(self, event: ConversationEvent) -> None:
        match event:
            case TranscriptPartial(stable=stable, unstable=unstable):
                heard = f"{stable} {unstable}".strip()
                if heard and heard != self._heard:
                    self._heard = heard
                    self._print(f"  hearing  {heard}")
            case TranscriptFinal(text=text, repair=repair):
                self._print(f"heard      {text or '(nothing)'}")
                if repair is not None:
                    told = "taken for" if repair.is_used else "perhaps"
                    self._print(f"  {told:<8} " + ", ".join(f"{w.heard!r}: {w.meant!r}" for w in repair.replaced))
            case ResponsePlanned(plan=plan, reason=reason):
                self._print(
                    f"  plan     {plan.steps_first} steps for the first clause, up to {plan.steps_rest} for the rest, "
                    f"canvas of {plan.canvas_width}: {reason}"
                )
            case ResponseStepped(step=step, canvas=canvas, early_s=early_s, kept=kept):
                what = f"step {step:<3}" if kept is None else f"kept {kept[0]} of {kept[1]}"
                when = "" if early_s is None else f"  [{early_s:.2f} s before the turn was over]"
                self._print(f"  {what} {show_canvas(canvas)}{when}")
            case ResponseText(delta=delta):
                self._print(f"says       {delta.strip()}")
            case _:
                pass

    def _print(self, line: str) -> None:
        print(line, file=self._screen, flush=True)


def show_canvas(canvas: Sequence[CanvasToken]) -> str:
    """A canvas on one line: masks as blocks, provisional text in braces, committed text plain."""
    parts: list[str] = []
    for token in canvas:
        if token.state is TokenState.MASKED:
            parts.append(MASK)
        elif token.state is TokenState.PROVISIONAL:
            parts.append(f"{{{token.text}}}" if token.text else MASK)
        else:
            parts.append(token.text)
    return "".join(parts).replace("\n", " ").strip()


def print_summary(report: dict[str, object], screen: TextIO) -> None:
    """Print what `summary` returned for reading."""
    timeline = report["timeline"]
    assert isinstance(timeline, dict)
    print("\ntimeline of the last turn (ms after the end of speech)", file=screen)
    for mark in timeline.get("marks", []):
        print(f"  {mark['at_ms']:>9.1f}  {mark['name']}", file=screen)
    stages = timeline.get("stages", [])
    if stages:
        print("stages, with what was predicted (p50 / p95)", file=screen)
    for stage in stages:
        took = stage["end_ms"] - stage["start_ms"]
        expected = (
            f"({stage['predicted_p50_ms']:.0f} / {stage['predicted_p95_ms']:.0f})"
            if stage["predicted_p50_ms"] is not None
            else ""
        )
        print(f"  {stage['name']:<14} {took:>7.1f} ms  {expected}", file=screen)
    if timeline.get("missed_deadline"):
        missed = timeline["missed_deadline"]
        print(f"  the target was missed by {missed['late_ms']:.0f} ms; most of it in: {missed['stage']}", file=screen)
    for line in written_before(timeline):
        print(f"  {line}", file=screen)
    print(f"heard             {report['transcript'] or '(nothing)'}", file=screen)
    print(f"reply             {report['reply'] or '(none)'}", file=screen)
    print(f"voice to voice    {_waited(report)}", file=screen)


def _waited(report: dict[str, object]) -> str:
    measured = report["voice_to_voice_ms"]
    if measured is not None:
        return f"{measured} ms, from the audio itself"
    if report["answered_before_speech_end"]:
        return "not measured: the last reply began before the recording's last speech ended"
    return "no audible reply"

"""Silero, the echo gate and the rules of barge-in together, on the recorded scenes (echo and caller mixed in a made room)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.conftest import DATA, run_async
from voice_pipelines.adapters.silero import SileroDetector
from voiceagent.backends import Samples
from voiceagent.echo import EchoGate
from voiceagent.listener import Listener, Onset, WordsWanted
from voiceagent.session import TurnDetection

ENTRIES: list[dict[str, Any]] = [json.loads(line) for line in (DATA / "manifest.jsonl").read_text().splitlines()]
SCENES = [entry for entry in ENTRIES if entry["kind"] == "bargein" and "far" in entry]
RECOGNISER_S = 0.2
"""After so long the recogniser answers; it hears words in everything."""


def recording(path: str) -> Samples:
    samples, _ = soundfile.read(DATA / path, dtype="float32")
    return np.asarray(samples, np.float32)


def stopped_at_s(microphone: Samples, far: Samples, *, has_gate: bool = True) -> float | None:
    """When the agent, which speaks all the time, is stopped."""

    async def scenario() -> float | None:
        detector, gate = SileroDetector(), EchoGate()
        try:
            listener = Listener(detector.open(), 512, None, gate)
            gate.played(far, 16_000, 100.0)
            asked: list[tuple[float, int]] = []
            for start in range(0, microphone.size, 320):
                now_s = (start + 320) / 16_000
                for answer in [each for each in asked if each[0] <= now_s]:
                    asked.remove(answer)
                    listener.hear_answer(answer[1], "some words")
                settings = TurnDetection(echo_gate=has_gate)
                piece = microphone[start : start + 320]
                async for heard in listener.hear(piece, 100.0 + now_s, settings, agent_audible=True):
                    match heard:
                        case WordsWanted(number=number):
                            asked.append((now_s + RECOGNISER_S, number))
                        case Onset():
                            return now_s
                        case _:
                            pass
            return None
        finally:
            await detector.aclose()

    return run_async(scenario())


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: str(scene["path"]))
def test_echo_alone_never_stops_the_agent_and_a_caller_over_it_does(scene: dict[str, Any]) -> None:
    microphone, far = recording(scene["path"]), recording(scene["far"])
    began_s = scene["speech_start_s"]
    alone = stopped_at_s(microphone[: round((began_s - 0.1) * 16_000)], far)
    assert alone is None
    stopped = stopped_at_s(microphone, far)
    assert stopped is not None and began_s < stopped < began_s + 0.8


def test_without_the_gate_the_same_echo_stops_it() -> None:
    for scene in SCENES:
        microphone, far = recording(scene["path"]), recording(scene["far"])
        before = microphone[: round((scene["speech_start_s"] - 0.1) * 16_000)]
        assert stopped_at_s(before, far, has_gate=False) is not None

"""Silero behind the detector protocol: its numbers, its batches, its failures, and what the runtime hears with it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.conftest import DATA, run_async
from voice_pipelines.adapters import silero
from voice_pipelines.adapters.silero import (
    CATCH_UP_LIMIT_S,
    GATHER_LIMIT_S,
    Callers,
    SileroDetector,
    find_model,
    gather_s,
)
from voiceagent.backends import Samples, VoiceDetector
from voiceagent.endpoint import EndpointSettings, decide
from voiceagent.errors import BackendError
from voiceagent.vad import Started, VoiceActivity, Windower

CLIPS: list[dict[str, Any]] = [json.loads(line) for line in (DATA / "manifest.jsonl").read_text().splitlines()]


def clips(*kinds: str) -> list[dict[str, Any]]:
    return [clip for clip in CLIPS if clip["kind"] in kinds]


def windows(clip: dict[str, Any], *, silence_s: float = 0.0) -> list[Samples]:
    samples, _ = soundfile.read(DATA / clip["path"], dtype="float32")
    return Windower().push(np.concatenate([samples, np.zeros(round(silence_s * 16_000), np.float32)]))


async def probabilities(detector: VoiceDetector, heard: list[Samples]) -> list[float]:
    stream = detector.open()
    return [await stream.probability(window) for window in heard]


def test_numbers_are_those_of_the_package_itself() -> None:
    heard = windows(clips("order")[0])[:150]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from silero_vad.utils_vad import OnnxWrapper

        theirs = OnnxWrapper(str(find_model()), force_onnx_cpu=True)
        expected = [float(theirs(torch.from_numpy(window), 16_000)) for window in heard]

    async def main() -> list[float]:
        detector = SileroDetector()
        try:
            return await probabilities(detector, heard)
        finally:
            await detector.aclose()

    assert run_async(main()) == expected
    assert max(expected) > 0.9


def test_numbers_do_not_depend_on_the_company_in_the_batch() -> None:
    callers = [windows(clip)[:100] for clip in clips("order", "noisy", "room")]

    async def main() -> tuple[list[list[float]], list[list[float]]]:
        detector = SileroDetector()
        together = await asyncio.gather(*(probabilities(detector, heard) for heard in callers))
        alone = [await probabilities(detector, heard) for heard in callers]
        await detector.aclose()
        return together, alone

    together, alone = run_async(main())
    assert together == alone


def test_windows_of_all_waiting_callers_share_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    infer = SileroDetector._infer

    def counting(self: SileroDetector, batch: list[Any]) -> list[float]:
        sizes.append(len(batch))
        return infer(self, batch)

    monkeypatch.setattr(SileroDetector, "_infer", counting)
    silence = np.zeros(512, np.float32)

    async def main() -> None:
        detector = SileroDetector()
        streams = [detector.open() for _ in range(80)]
        for _ in range(5):
            await asyncio.gather(*(stream.probability(silence) for stream in streams))
        await detector.aclose()

    run_async(main())
    assert sum(sizes) == 400
    assert 1 < max(sizes) <= 64
    assert len(sizes) < 200


@pytest.mark.parametrize("callers", [0, 1, 4, 7])
def test_few_callers_do_not_wait_for_each_other(callers: int) -> None:
    assert gather_s(callers) == 0.0


def test_many_callers_wait_until_a_batch_is_worth_it_and_never_longer_than_the_limit() -> None:
    waits = [gather_s(callers) for callers in range(8, 1000)]
    assert max(waits) == GATHER_LIMIT_S == waits[0]
    assert waits == sorted(waits, reverse=True), "the more callers, the sooner there are enough"
    for callers in (64, 80, 200):
        assert gather_s(callers) * callers / 0.032 == pytest.approx(16.0), "windows that come meanwhile"


def test_callers_are_counted_by_what_they_send_and_not_once_they_have_hung_up() -> None:
    callers, now = Callers(), 100.0
    assert callers.count(now) == 0
    for _ in range(40):
        callers.sent(range(12), now)
        now += 0.032
    assert callers.count(now) == 12
    for _ in range(10):
        callers.sent(range(3), now)
        now += 0.032
    assert callers.count(now) == 3, "nine have gone, whether or not anybody has collected what is left of them"
    for _ in range(1000):
        callers.sent([0], now)
    assert callers.count(now) == 3, "one who sends faster than speech is not many"
    assert callers.count(now + 1.0) == 0


def test_the_windows_of_a_long_message_do_not_wait_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    now = [100.0]

    def wait(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(silero.time, "sleep", wait)
    monkeypatch.setattr(silero.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Callers, "count", lambda self, now: 40)
    heard = windows(clips("order")[0])[:10]

    async def main() -> None:
        detector = SileroDetector()
        stream = detector.open()
        for window in heard:
            await stream.probability(window)
        now[0] += 0.02  # The next message of a phone, in which a window may be complete already.
        await stream.probability(heard[0])
        await detector.aclose()

    run_async(main())
    assert waits == [GATHER_LIMIT_S, *[CATCH_UP_LIMIT_S] * 9, GATHER_LIMIT_S]


def test_windows_that_come_at_different_moments_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait of the first window ends when the test says so: by then the others have come."""
    sizes: list[int] = []
    infer = SileroDetector._infer
    waits: list[float] = []
    may_go_on = threading.Event()

    def counting(self: SileroDetector, batch: list[Any]) -> list[float]:
        sizes.append(len(batch))
        return infer(self, batch)

    def wait(seconds: float) -> None:
        waits.append(seconds)
        assert may_go_on.wait(60.0)

    monkeypatch.setattr(SileroDetector, "_infer", counting)
    monkeypatch.setattr(silero.time, "sleep", wait)
    present = [16, 2]
    monkeypatch.setattr(Callers, "count", lambda self, now: present.pop(0))
    heard = windows(clips("order")[0])[60]

    async def main() -> list[float]:
        detector = SileroDetector()
        streams = [detector.open() for _ in range(16)]
        asked = []
        for stream in streams:
            asked.append(asyncio.ensure_future(stream.probability(heard)))
            await asyncio.sleep(0)
        may_go_on.set()
        together = await asyncio.gather(*asked)
        alone = await detector.open().probability(heard)
        await detector.aclose()
        return [*together, alone]

    results = run_async(main())
    assert sizes == [16, 1]
    assert waits == [gather_s(16)], "two callers are too few to wait"
    assert len(set(results)) == 1


def test_windows_of_one_caller_are_answered_in_order_even_when_they_pile_up() -> None:
    heard = windows(clips("order")[0])[:60]

    async def main() -> tuple[list[float], list[float]]:
        detector = SileroDetector()
        stream = detector.open()
        piled = await asyncio.gather(*(stream.probability(window) for window in heard))
        single = await probabilities(detector, heard)
        await detector.aclose()
        return list(piled), single

    piled, single = run_async(main())
    assert piled == single


def test_reset_forgets_what_was_heard() -> None:
    heard = windows(clips("order")[0])[:60]

    async def main() -> tuple[float, float, float]:
        detector = SileroDetector()
        stream = detector.open()
        first = await stream.probability(heard[50])
        for window in heard:
            await stream.probability(window)
        warm = await stream.probability(heard[50])
        stream.reset()
        again = await stream.probability(heard[50])
        await detector.aclose()
        return first, warm, again

    first, warm, again = run_async(main())
    assert again == first != warm


def test_a_cancelled_caller_leaves_the_others_alone() -> None:
    heard = windows(clips("order")[0])[:40]

    async def main() -> tuple[list[float], list[float]]:
        detector = SileroDetector()
        leaver = asyncio.ensure_future(probabilities(detector, heard))
        stayer = asyncio.ensure_future(probabilities(detector, heard))
        await asyncio.sleep(0)
        leaver.cancel()
        stayed = await stayer
        alone = await probabilities(detector, heard)
        await detector.aclose()
        return stayed, alone

    stayed, alone = run_async(main())
    assert stayed == alone


def test_a_window_of_another_length_is_the_callers_mistake() -> None:
    async def main() -> None:
        detector = SileroDetector()
        with pytest.raises(ValueError, match="expected \\(512,\\)"):
            await detector.open().probability(np.zeros(511, np.float32))
        await detector.aclose()

    run_async(main())


def test_a_failing_model_fails_the_windows_in_work_and_serves_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    infer = SileroDetector._infer
    failures = [RuntimeError("out of memory")]

    def failing_once(self: SileroDetector, batch: list[Any]) -> list[float]:
        if failures:
            raise failures.pop()
        return infer(self, batch)

    monkeypatch.setattr(SileroDetector, "_infer", failing_once)

    async def main() -> float:
        detector = SileroDetector()
        stream = detector.open()
        with pytest.raises(BackendError, match="vad: onnxruntime failed: out of memory"):
            await stream.probability(np.zeros(512, np.float32))
        probability = await stream.probability(np.zeros(512, np.float32))
        await detector.aclose()
        return probability

    assert 0 <= run_async(main()) <= 1


def test_closing_ends_the_worker_and_later_windows_are_refused() -> None:
    async def main() -> None:
        detector = SileroDetector()
        stream = detector.open()
        await stream.probability(np.zeros(512, np.float32))
        await detector.aclose()
        await detector.aclose()
        assert not any(thread.name == "silero-vad" for thread in threading.enumerate())
        with pytest.raises(BackendError, match="closed"):
            await stream.probability(np.zeros(512, np.float32))

    run_async(main())


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(BackendError, match="broken.onnx"):
        SileroDetector(path)


def test_the_model_is_found_without_importing_torch_or_silero() -> None:
    code = (
        "import sys; from voice_pipelines.adapters.silero import SileroDetector; SileroDetector(); "
        "assert not {'torch', 'silero_vad'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


async def turns(detector: VoiceDetector, clip: dict[str, Any], settings: EndpointSettings) -> list[tuple[float, float]]:
    """Start and end of each turn in seconds."""
    activity, found, start = VoiceActivity(), [], 0
    stream = detector.open()
    for window in windows(clip, silence_s=1.0):
        for change in activity.update(await stream.probability(window)):
            if isinstance(change, Started):
                start = change.start_sample
        if decision := decide(activity.utterance, settings):
            found.append((start / 16_000, decision.speech_end_sample / 16_000))
            activity.end_utterance()
    return found


def test_spoken_orders_are_one_turn_each_that_begins_and_ends_where_the_words_do() -> None:
    spoken = [clip for clip in clips("order", "command", "telephone") if "speech_end_s" in clip]

    async def main() -> list[list[tuple[float, float]]]:
        detector = SileroDetector()
        found = await asyncio.gather(*(turns(detector, clip, EndpointSettings()) for clip in spoken))
        await detector.aclose()
        return found

    for clip, found in zip(spoken, run_async(main()), strict=True):
        assert len(found) == 1, clip["path"]
        ((start_s, end_s),) = found
        # On 130 such clips 90 % begin 0.01 to 0.14 s after the aligned first word and end -0.06 to 0.08 s from the last. The worst
        # here is a soft "brew" on a telephone, noticed 0.37 s late. Pre-roll (0.3 s) is what covers the start.
        assert -0.1 <= start_s - clip["speech_start_s"] <= 0.4, clip["path"]
        assert -0.25 <= end_s - clip["speech_end_s"] <= 0.25, clip["path"]


def test_room_sound_is_nobody_speaking() -> None:
    async def main() -> list[list[tuple[float, float]]]:
        detector = SileroDetector()
        found = [await turns(detector, clip, EndpointSettings()) for clip in clips("room")]
        await detector.aclose()
        return found

    assert run_async(main()) == [[], []]


def test_a_longer_silence_keeps_a_dictated_number_in_one_turn() -> None:
    async def main() -> list[int]:
        detector = SileroDetector()
        found = [len(await turns(detector, clip, EndpointSettings(silence_s=1.0))) for clip in clips("number")]
        await detector.aclose()
        return found

    assert run_async(main()) == [1, 1, 1]

"""The agent's own voice at the microphone. Echoes are made: recorded voices through made rooms; the scenes in `tests/data/bargein` are such, too."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.conftest import DATA
from voiceagent.backends import Samples
from voiceagent.barge_in import Origin
from voiceagent.echo import BATCH, HOP_S, EchoGate
from voiceagent.events import DUCK_DB
from voiceagent.vad import Windower

WINDOW_S = 0.032
ENTRIES: list[dict[str, Any]] = [json.loads(line) for line in (DATA / "manifest.jsonl").read_text().splitlines()]
SCENES = [entry for entry in ENTRIES if entry["kind"] == "bargein" and "far" in entry]
READ = [entry for entry in ENTRIES if entry["kind"] == "read"]


def recording(path: str) -> Samples:
    samples, _ = soundfile.read(DATA / path, dtype="float32")
    return np.asarray(samples, np.float32)


def made_echo(far: Samples, *, delay_s: float, loss_db: float, rt60_s: float = 0.3, seed: int = 0) -> Samples:
    """`far` through a made room: a direct sound and a tail of noise that falls by 60 dB in `rt60_s`; and the microphone's own noise."""
    generator = np.random.default_rng(seed)
    tail = generator.standard_normal(round(rt60_s * 16_000)) * 10 ** (
        -3 * np.arange(round(rt60_s * 16_000)) / (rt60_s * 16_000)
    )
    room = 0.7 * tail / np.sqrt(np.square(tail).sum())
    room[0] = 0.7
    echo = np.convolve(far, room)[: far.size] * 10 ** (-loss_db / 20)
    at = round(delay_s * 16_000)
    echo = np.concatenate([np.zeros(at), echo])[: far.size]
    return (echo + 10 ** (-66 / 20) * generator.standard_normal(far.size)).astype(np.float32)


def is_loud(samples: Samples) -> bool:
    return float(np.sqrt(np.square(samples).mean())) > 10 ** (-50 / 20)


def explained(gate: EchoGate, microphone: Samples, began: float = 100.0) -> list[tuple[bool, bool]]:
    """Of each window: whether it is loud, and whether it is explained."""
    found = []
    for number, window in enumerate(Windower().push(microphone)):
        loud = is_loud(window)
        origin = gate.origin(window, began + (number + 1) * WINDOW_S, is_voiced=loud)
        found.append((loud, origin is Origin.AGENT))
    return found


def share(found: list[tuple[bool, bool]], after_s: float, until_s: float) -> float:
    """Share of the loud windows in that time which are explained."""
    loud = [is_echo for is_loud, is_echo in found[round(after_s / WINDOW_S) : round(until_s / WINDOW_S)] if is_loud]
    assert loud
    return sum(loud) / len(loud)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: str(scene["path"]))
def test_a_recorded_scene_is_echo_until_the_caller_speaks(scene: dict[str, Any]) -> None:
    gate = EchoGate()
    gate.played(recording(scene["far"]), 16_000, 100.0)
    found = explained(gate, recording(scene["path"]))
    assert share(found, 1.7, scene["speech_start_s"] - 0.1) > 0.85
    assert share(found, scene["speech_start_s"] + 0.1, scene["speech_end_s"]) < 0.15


@pytest.mark.parametrize(("delay_s", "loss_db"), [(0.0, 6.0), (0.1, 0.0), (0.25, 12.0), (0.4, 6.0), (0.3, 24.0)])
def test_the_delay_is_found_and_the_echo_explained(delay_s: float, loss_db: float) -> None:
    far = recording(READ[0]["path"])[: 6 * 16_000]
    gate = EchoGate()
    for start in range(0, far.size, 640):
        gate.played(far[start : start + 640], 16_000, 100.0 + start / 16_000)
    found = explained(gate, made_echo(far, delay_s=delay_s, loss_db=loss_db))
    assert gate.delay_s == pytest.approx(delay_s, abs=2 * HOP_S)
    assert share(found, 2.0, 6.0) > 0.9


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 24_000])
def test_the_rate_of_the_voice_does_not_matter(rate_hz: int) -> None:
    far = recording(READ[0]["path"])[: 5 * 16_000]
    points = np.arange(round(far.size * rate_hz / 16_000)) * 16_000 / rate_hz
    gate = EchoGate()
    gate.played(np.interp(points, np.arange(far.size), far).astype(np.float32), rate_hz, 100.0)
    found = explained(gate, made_echo(far, delay_s=0.15, loss_db=10.0))
    assert share(found, 2.0, 5.0) > 0.85


@pytest.mark.parametrize("began_s", [0.2, 1.0, 2.5])
def test_where_no_echo_comes_back_no_caller_is_lost(began_s: float) -> None:
    far, caller = recording(READ[0]["path"]), recording(READ[1]["path"])
    size = min(5 * 16_000, far.size)
    microphone = made_echo(far[:size], delay_s=0.1, loss_db=90.0)
    at = round(began_s * 16_000)
    caller = caller[: size - at]
    microphone[at : at + caller.size] += caller
    gate = EchoGate()
    gate.played(far[:size], 16_000, 100.0)
    found = explained(gate, microphone)
    assert share(found, began_s, size / 16_000) < 0.03


def test_that_no_echo_comes_back_is_known_after_a_second_or_so_and_in_every_later_reply() -> None:
    far = recording(READ[0]["path"])
    silent = made_echo(far, delay_s=0.1, loss_db=90.0)
    gate, known_s = EchoGate(), 0.0
    gate.played(far[: 2 * 16_000], 16_000, 100.0)
    for number, window in enumerate(Windower().push(silent[: 2 * 16_000])):
        gate.origin(window, 100.0 + (number + 1) * WINDOW_S, is_voiced=False)
        known_s = known_s or (number + 1) * WINDOW_S * gate.is_learned
    assert 0.8 < known_s < 1.5, "half a second of a voice that pauses, and what an echo may need"
    gate.cut(102.0)
    gate.played(far[: 2 * 16_000], 16_000, 160.0)
    gate.origin(silent[:512], 160.032, is_voiced=False)
    assert gate.is_learned and not gate.comes_back, "nobody has to wait again"


def origins_of(far: Samples, microphone: Samples, *, ducked_s: tuple[float, float] = (99.0, 99.0)) -> list[Origin]:
    """Of every window that is loud; those that are not are unknown."""
    gate, found = EchoGate(), []
    gate.played(far, 16_000, 100.0)
    for number, window in enumerate(Windower().push(microphone)):
        ended_s = (number + 1) * WINDOW_S
        may_be_ducked = ducked_s[0] <= ended_s <= ducked_s[1]
        origin = gate.origin(window, 100.0 + ended_s, is_voiced=is_loud(window), may_be_ducked=may_be_ducked)
        found.append(origin if is_loud(window) else Origin.UNKNOWN)
    return found


@pytest.mark.parametrize("loss_db", [12.0, 20.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_caller_over_echo_is_clear_within_an_eighth_of_a_second_and_echo_alone_is_not(
    loss_db: float, seed: int
) -> None:
    for far in (recording(entry["path"])[: 6 * 16_000] for entry in READ):
        microphone = made_echo(far, delay_s=0.05 + 0.1 * seed, loss_db=loss_db, seed=seed)
        assert not any(clear_pairs(origins_of(far, microphone)))
        caller = recording(next(entry["path"] for entry in ENTRIES if entry["kind"] == "order"))
        at, begins = 96 * 512, next(at for at in range(0, caller.size, 512) if is_loud(caller[at : at + 512]))
        caller = caller[begins : begins + microphone.size - at]
        microphone[at : at + caller.size] += caller
        assert clear_pairs(origins_of(far, microphone)[96:]).index(True) <= 2


def clear_pairs(origins: list[Origin]) -> list[bool]:
    """Where two windows on end cannot be the agent's."""
    return [one is other is Origin.CALLER for one, other in itertools.pairwise(origins)]


def test_a_caller_is_known_over_an_agent_that_the_client_has_turned_down() -> None:
    far, caller = recording(READ[0]["path"])[: 5 * 16_000], recording(READ[1]["path"])[16_000 : 3 * 16_000]
    at, ducked = 3 * 16_000, far.copy()
    ducked[at:] *= 10 ** (-DUCK_DB / 20)
    alone = made_echo(ducked, delay_s=0.1, loss_db=0.0)
    whole = made_echo(far, delay_s=0.1, loss_db=0.0)
    caller *= 0.5 * np.sqrt(np.square(whole[at:]).mean()) / np.sqrt(np.square(caller).mean())
    both = alone.copy()
    both[at:] += caller[: both.size - at]  # Softer than the echo that is missing: only the bands far below that tell.
    shares = []
    for microphone in (both, alone):
        found = origins_of(far, microphone, ducked_s=(3.0, 99.0))[round(3.1 / WINDOW_S) : round(3.7 / WINDOW_S)]
        shares.append(found.count(Origin.CALLER) / len(found))
    assert shares[0] > 0.25, "half of that if the echo were thought to be as loud as before"
    assert shares[1] == 0


def test_nothing_is_explained_while_the_agent_is_silent_or_was_cut() -> None:
    far = recording(READ[0]["path"])[: 6 * 16_000]
    echo = made_echo(far, delay_s=0.1, loss_db=6.0)
    gate = EchoGate()
    assert not any(is_echo for _, is_echo in explained(gate, echo))
    gate.played(far, 16_000, 200.0)
    explained(gate, echo[: 3 * 16_000], 200.0)
    gate.cut(203.0)
    found = explained(gate, echo[3 * 16_000 :], 203.0)
    assert not any(is_echo for _, is_echo in found[round(1.0 / WINDOW_S) :]), "what is heard later is not the agent's"


def test_what_is_behind_a_cut_reply_is_played_sooner() -> None:
    first, second = (recording(entry["path"]) for entry in READ[:2])
    gate, at_s = EchoGate(), 3.2
    gate.played(first, 16_000, 100.0)
    gate.played(second, 16_000, 100.0 + len(first) / 16_000)
    played = np.concatenate([first[: round(at_s * 16_000)], second])
    microphone = made_echo(played, delay_s=0.1, loss_db=12)
    before = explained(gate, microphone[: round(at_s * 16_000)])
    gate.skip(100.0 + at_s, 100.0 + len(first) / 16_000)
    behind = explained(gate, microphone[round(at_s * 16_000) :], 100.0 + at_s)
    assert share(before, 1.0, 3.2) > 0.8 and share(behind, 0.5, 9.0) > 0.8


def test_after_a_hold_the_rest_is_played_later() -> None:
    far = recording(READ[0]["path"])[: 7 * 16_000]
    echo = made_echo(far, delay_s=0.1, loss_db=6.0)
    at, held = 3 * 16_000, 12_800
    microphone = np.concatenate([echo[:at], 1e-4 * np.ones(held, np.float32), echo[at:]]).astype(np.float32)
    gate = EchoGate()
    gate.played(far, 16_000, 100.0)
    found = explained(gate, microphone[:at])
    gate.hold(103.0)
    gate.hold(103.1)
    found += explained(gate, microphone[at : at + held], 103.0)
    gate.cut(100.0 + len(far) / 16_000)  # What was queued behind it: this waits all the same.
    gate.resume(103.8)
    gate.resume(103.9)
    found += explained(gate, microphone[at + held :], 103.8)
    assert share(found, 4.3, 7.5) > 0.8


def test_time_that_jumps_is_no_error_and_explains_nothing() -> None:
    far = recording(READ[0]["path"])[: 6 * 16_000]
    gate = EchoGate()
    gate.played(far, 16_000, 100.0)
    generator = np.random.default_rng(3)
    for number, window in enumerate(Windower().push(far)):
        gate.origin(window, 100.0 + float(generator.uniform(-3, 8)), is_voiced=bool(number % 3))
    assert gate.take_explained() <= BATCH
    assert gate.take_explained() == 0


@pytest.mark.parametrize("back_s", [0.04, 0.06, 0.1, 0.25])
def test_time_that_is_set_back_a_little_amid_a_batch_is_no_error(back_s: float) -> None:
    """A message that comes sooner than all before sets back when everything was spoken."""
    far = recording(READ[0]["path"])
    for first in range(2 * BATCH):
        gate = EchoGate()
        gate.played(far, 16_000, 100.0)
        for number, window in enumerate(Windower().push(made_echo(far, delay_s=0.1, loss_db=90.0))):
            late_s = back_s if number < 100 + first else 0.0
            gate.origin(window, 100.0 + (number + 1) * WINDOW_S + late_s, is_voiced=False)
        assert gate.is_learned and not gate.comes_back


def test_the_same_is_explained_however_the_agents_audio_is_cut() -> None:
    far = recording(READ[0]["path"])[: 5 * 16_000]
    microphone = made_echo(far, delay_s=0.2, loss_db=6.0)
    shares = []
    for size in (320, 2_000, far.size):
        gate = EchoGate()
        for start in range(0, far.size, size):
            gate.played(far[start : start + size], 16_000, 100.0 + start / 16_000)
        shares.append(share(explained(gate, microphone), 2.0, 5.0))
    assert shares == pytest.approx([shares[0]] * 3, abs=0.05), "but for the seams of its batches"


def test_what_nobody_listens_to_is_forgotten() -> None:
    gate = EchoGate()
    for number in range(2_000):
        gate.played(np.ones(8_000, np.float32), 16_000, number * 0.5)
    assert sum(len(levels) for _, levels in gate._coming) <= 21_000

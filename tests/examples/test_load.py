"""The load generator: its callers' plans and telephones by replay, its sums, and a few callers against a real server of stand-ins."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as websocket_server

from examples.load.line import Call, call_all
from examples.load.phone import (
    ANSWER_LIMIT_S,
    MESSAGE_S,
    SILENCE,
    HeardTurn,
    Phone,
    Speech,
    load_speeches,
    speech,
)
from examples.load.report import Round, capacity, parse_metrics, quantiles_ms, server_view, sum_up, table
from examples.load.schedule import Manners, PlannedTurn, begins_at_s, turns_of
from examples.load.servers import reply_s
from tests.conftest import run_async
from voice_pipelines import settings, standins
from voiceagent.audio import PCMU_8K
from voiceagent.server import create_app
from voiceagent.serving import serve
from voiceagent.telephony import twilio

LOUD = PCMU_8K.encode(np.full(160, 0.3, np.float32))
WORDS = Speech("words", tuple(base64.b64encode(LOUD).decode() for _ in range(50)), 0.9)
REPLY_S = 1.0


# --- the plan ---------------------------------------------------------------------------------------------------------


def first(count: int, caller: int = 3, seed: int = 1, manners: Manners | None = None) -> list[PlannedTurn]:
    return list(itertools.islice(turns_of(caller, 7, seed, manners or Manners()), count))


def test_a_caller_does_the_same_for_the_same_seed_and_something_else_for_another() -> None:
    assert first(100) == first(100)
    assert first(100) != first(100, caller=4)
    assert first(100) != first(100, seed=2)


def test_every_recording_is_said_before_one_is_said_again() -> None:
    said = [turn.speech for turn in first(21)]
    assert [sorted(said[at : at + 7]) for at in (0, 7, 14)] == [list(range(7))] * 3


def test_shares_and_times_are_those_that_were_asked_for() -> None:
    manners = Manners(cuts_in=0.25, falls_silent=0.5)
    turns = first(4000, manners=manners)
    cuts = [turn.cut_in_s for turn in turns if turn.cut_in_s is not None]
    assert len(cuts) / len(turns) == pytest.approx(0.25, abs=0.03)
    assert min(cuts) >= manners.cut_in_s[0] and max(cuts) <= manners.cut_in_s[1]
    long = [turn for turn in turns if turn.pause_s >= manners.silence_s[0]]
    assert len(long) / len(turns) == pytest.approx(0.5, abs=0.04)
    assert all(turn.pause_s <= manners.silence_s[1] for turn in turns)


def test_callers_begin_all_over_the_spread_and_one_alone_begins_at_once() -> None:
    manners = Manners()
    begins = sorted(begins_at_s(caller, 200, 1, manners) for caller in range(200))
    assert begins[0] < 0.2 and begins[-1] > manners.spread_s - 0.2
    assert max(np.diff(begins)) < 0.5
    assert begins_at_s(0, 1, 1, manners) == 0.0


@pytest.mark.parametrize("how", [{"cuts_in": 1.5}, {"falls_silent": -0.1}, {"pause_s": (2.0, 1.0)}])
def test_manners_that_make_no_sense_are_named(how: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(how))):
        Manners(**how)  # type: ignore[arg-type]


def test_a_caller_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="no recording"):
        next(turns_of(0, 0, 1, Manners()))


# --- the telephone ----------------------------------------------------------------------------------------------------


class Bridge:
    """A phone, and a clock that moves in messages."""

    def __init__(self, *plans: PlannedTurn, reply_s: float | None = REPLY_S) -> None:
        rest: Iterator[PlannedTurn] = itertools.chain(plans, itertools.repeat(PlannedTurn(0, 1000.0, None)))
        self.phone = Phone((WORDS,), rest, reply_s=reply_s)
        self.now_s = 0.0
        self.marks: list[str] = []

    def run(self, seconds: float) -> list[str]:
        """What the caller sends meanwhile."""
        sent = []
        for _ in range(round(seconds / MESSAGE_S)):
            self.now_s += MESSAGE_S
            sent.append(self.phone.message(self.now_s))
            self.marks += self.phone.marks_due(self.now_s)
        return sent

    def reply(self, seconds: float) -> None:
        for _ in range(round(seconds / MESSAGE_S)):
            self.phone.heard(LOUD, self.now_s)


def test_words_are_said_after_the_pause_whole_and_once() -> None:
    bridge = Bridge(PlannedTurn(0, 0.5, None))
    sent = bridge.run(2.0)
    spoken = [at for at, payload in enumerate(sent) if payload != SILENCE]
    assert spoken == list(range(24, 74))
    (turn,) = bridge.phone.turns
    assert turn.begins_s == pytest.approx(0.48) and turn.speech_end_s == pytest.approx(0.48 + 0.9)
    assert bridge.phone.is_talking, "the answer is awaited"


def test_an_answer_is_measured_from_the_last_word_to_its_first_audible_sample() -> None:
    bridge = Bridge(PlannedTurn(0, 0.5, None), PlannedTurn(0, 1000.0, None))
    bridge.run(1.98)
    bridge.phone.heard(b"\xff" * 80 + LOUD[80:], bridge.now_s)
    bridge.reply(REPLY_S)
    (turn,) = bridge.phone.turns
    assert turn.voice_to_voice_s == pytest.approx(1.98 + 0.01 - (0.48 + 0.9), abs=0.006)
    bridge.run(0.98)
    assert not turn.is_over
    bridge.run(0.1)
    assert turn.is_over and turn.gaps_s == [] and not turn.is_cut_off and not bridge.phone.is_talking


def test_a_pause_before_the_answer_is_complete_is_an_underrun_and_one_of_a_message_is_none() -> None:
    bridge = Bridge(PlannedTurn(0, 0.02, None))
    bridge.run(1.5)
    bridge.reply(0.2)
    bridge.phone.heard(LOUD[:80], bridge.now_s)
    bridge.run(0.22)
    bridge.reply(0.2)
    bridge.run(0.5)
    bridge.reply(0.6)
    bridge.run(0.7)
    (turn,) = bridge.phone.turns
    assert turn.gaps_s == [pytest.approx(0.3)] and turn.is_over


def test_a_pause_of_a_second_ends_an_answer_of_unknown_length() -> None:
    bridge = Bridge(PlannedTurn(0, 0.02, None), reply_s=None)
    bridge.run(1.5)
    bridge.reply(0.2)
    bridge.run(0.6)
    bridge.reply(0.2)
    bridge.run(1.3)
    (turn,) = bridge.phone.turns
    assert turn.is_over and turn.gaps_s == [pytest.approx(0.4)]


def test_a_turn_without_an_answer_is_lost_and_the_caller_goes_on() -> None:
    bridge = Bridge(PlannedTurn(0, 0.02, None), PlannedTurn(0, 0.5, None))
    bridge.run(1.0 + ANSWER_LIMIT_S + 1.0)
    lost, following = bridge.phone.turns
    assert lost.answer_s is None and not lost.is_over
    assert following.begins_s > lost.speech_end_s + ANSWER_LIMIT_S


def test_words_over_an_answer_count_until_it_is_cleared_and_are_answered_afterwards() -> None:
    bridge = Bridge(PlannedTurn(0, 0.02, 0.3), PlannedTurn(0, 0.5, None), reply_s=3.0)
    bridge.run(1.5)
    bridge.reply(3.0)
    bridge.phone.mark("m1", bridge.now_s)
    bridge.run(0.6)
    first_turn, over = bridge.phone.turns
    assert over.cuts_in and over.begins_s == pytest.approx(first_turn.answer_s + 0.3, abs=0.03)
    bridge.reply(0.1)
    assert over.answer_s is None and not over.is_cut_off, "more of the answer before it"
    bridge.phone.clear(bridge.now_s)
    assert over.stopped_s == pytest.approx(bridge.now_s - over.begins_s)
    bridge.run(0.02)
    assert bridge.marks == ["m1"], "a clear brings marks back at once"
    bridge.run(1.0)
    bridge.reply(3.0)
    assert over.answer_s is not None and over.answer_s > over.speech_end_s
    assert over.gaps_s == []


def test_an_agent_that_comes_back_after_a_clear_was_not_stopped_by_it() -> None:
    bridge = Bridge(PlannedTurn(0, 0.02, 0.3), PlannedTurn(0, 0.5, None), reply_s=3.0)
    bridge.run(1.5)
    bridge.reply(3.0)
    bridge.run(0.42)
    over = bridge.phone.turns[-1]
    assert over.cuts_in
    bridge.phone.clear(bridge.now_s)
    bridge.run(0.06)
    bridge.reply(2.0)
    assert over.stopped_s is None and over.answer_s is None and not over.is_cut_off
    bridge.run(0.1)
    bridge.phone.clear(bridge.now_s)
    assert over.stopped_s == pytest.approx(bridge.now_s - over.begins_s)
    bridge.run(1.0)
    bridge.reply(3.0)
    assert over.answer_s is not None and over.answer_s > over.speech_end_s


def test_an_answer_that_ends_by_itself_needs_no_clear() -> None:
    bridge = Bridge(PlannedTurn(0, 0.02, 0.9), PlannedTurn(0, 0.5, None))
    bridge.run(1.5)
    bridge.reply(REPLY_S)
    bridge.run(2.0)
    over = bridge.phone.turns[-1]
    assert over.cuts_in and over.stopped_s is None
    bridge.reply(REPLY_S)
    assert over.stopped_s == pytest.approx(0.1, abs=0.04)
    assert over.answer_s is not None


def test_an_answer_in_the_middle_of_the_words_is_a_cut_off_and_the_one_behind_them_counts() -> None:
    bridge = Bridge(PlannedTurn(0, 0.02, None))
    bridge.run(0.5)
    bridge.reply(0.2)
    (turn,) = bridge.phone.turns
    assert turn.is_cut_off and turn.answer_s is None
    bridge.phone.clear(bridge.now_s)
    bridge.run(1.0)
    bridge.reply(REPLY_S)
    assert turn.answer_s is not None and turn.answer_s >= turn.speech_end_s
    bridge.run(1.1)
    assert turn.is_over


def test_a_mark_goes_back_when_everything_before_it_was_played() -> None:
    bridge = Bridge(PlannedTurn(0, 0.02, None))
    bridge.run(1.5)
    bridge.reply(0.2)
    bridge.phone.mark("a", bridge.now_s)
    bridge.reply(0.2)
    bridge.phone.mark("b", bridge.now_s)
    bridge.run(0.18)
    assert bridge.marks == []
    bridge.run(0.1)
    assert bridge.marks == ["a"]
    bridge.run(0.2)
    assert bridge.marks == ["a", "b"]


def test_speech_is_cut_to_its_words_with_some_room_around_them(tmp_path: Path) -> None:
    samples = np.zeros(8_000 * 4, np.float32)
    samples[8_000:16_000] = 0.3
    made = speech("x", samples, 1.0, 2.0)
    assert made.end_s == pytest.approx(1.2)
    assert len(made.messages) == 90
    levels = [float(np.abs(PCMU_8K.decode(base64.b64decode(payload))).max()) for payload in made.messages]
    assert levels[9] < 0.01 < levels[10] and levels[59] > 0.01 > levels[60]
    soundfile.write(tmp_path / "a.flac", np.repeat(samples, 2), 16_000)
    lines = [
        {"path": "a.flac", "kind": "order", "speech_start_s": 1.0, "speech_end_s": 2.0},
        {"path": "a.flac", "kind": "order"},
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (loaded,) = load_speeches(tmp_path, ["order"])
    assert (loaded.name, loaded.end_s, len(loaded.messages)) == ("a.flac", pytest.approx(1.2), 90)
    with pytest.raises(ValueError, match="no recording of kind room"):
        load_speeches(tmp_path, ["room"])


# --- the sums ---------------------------------------------------------------------------------------------------------


def heard(end_s: float, latency_s: float | None, **how: object) -> HeardTurn:
    turn = HeardTurn("words", False, end_s - 1.0, end_s, None if latency_s is None else end_s + latency_s)
    for name, value in how.items():
        setattr(turn, name, value)
    return turn


def summed(*turns: HeardTurn, error: str | None = None, late_s: float = 0.0) -> Round:
    calls = [Call(0, list(turns), [late_s] * 100, error), Call(1, [], [0.0] * 100)]
    return sum_up(calls, begins=10.0, ends=20.0, cpu_s=0.2, memory_mb=100.0, before={}, after={})


def test_a_round_counts_what_was_said_within_it() -> None:
    done = summed(
        heard(9.0, 0.5),
        heard(11.0, 0.6),
        heard(12.0, 0.8, gaps_s=[0.1, 0.2]),
        heard(13.0, 0.1, is_cut_off=True),
        heard(14.0, None),
        heard(15.0, 0.7, cuts_in=True, stopped_s=0.25),
        heard(16.0, 0.7, cuts_in=True),
        heard(20.5, 0.5),
    )
    assert (done.callers, done.turns, done.lost, done.cut_off, done.cut_ins, done.not_stopped) == (2, 6, 1, 1, 2, 1)
    assert done.underruns == 2 and done.underrun_s == pytest.approx(0.3)
    assert done.voice_to_voice is not None and done.voice_to_voice.count == 4
    assert done.voice_to_voice.p50 == pytest.approx(0.7) and done.voice_to_voice.p95 == pytest.approx(0.8)
    assert done.stop is not None and done.stop.p50 == pytest.approx(0.25)
    assert done.cpu_share == pytest.approx(0.02) and done.cpu_per_caller == pytest.approx(0.01)
    assert not done.holds
    json.dumps(done.as_json())


@pytest.mark.parametrize(
    ("done", "holds"),
    [
        (summed(heard(11.0, 0.9)), True),
        (summed(heard(11.0, 1.1)), False),
        (summed(heard(11.0, 0.9, gaps_s=[0.1])), False),
        (summed(heard(11.0, 0.9), heard(12.0, None)), False),
        (summed(heard(11.0, 0.9), error="refused"), False),
        (summed(), False),
    ],
)
def test_a_round_holds_within_a_second_without_gaps_losses_and_errors(done: Round, holds: bool) -> None:
    assert done.holds is holds


def test_callers_that_were_turned_away_are_no_failure_and_do_not_count_as_served() -> None:
    calls = [Call(0, [heard(11.0, 0.5)]), Call(1, refused="full"), Call(2, refused="full")]
    done = sum_up(calls, begins=10.0, ends=20.0, cpu_s=0.2, memory_mb=1.0, before={}, after={})
    assert (done.callers, done.refused, done.served) == (3, 2, 1)
    assert done.holds and done.cpu_per_caller == pytest.approx(0.02)
    assert capacity([done]) == 1


def test_late_messages_of_the_generator_itself_are_told() -> None:
    assert summed(heard(11.0, 0.5), late_s=0.03).generator_late_share == pytest.approx(0.5)


def test_capacity_ends_before_the_first_number_that_does_not_hold() -> None:
    good, bad = summed(heard(11.0, 0.5)), summed(heard(11.0, 1.5))
    rounds = [replace(good, callers=32), replace(good, callers=8), replace(bad, callers=16)]
    assert capacity(rounds) == 8
    assert capacity(rounds[:2]) == 32
    assert capacity([bad]) == capacity([]) == 0


BEFORE = """
# HELP x y
voiceagent_turns_total{status="completed"} 3
voiceagent_turn_slack_seconds_count 1
voiceagent_turn_answer_seconds_bucket{le="0.001"} 1
voiceagent_turn_answer_seconds_bucket{le="0.002"} 1
voiceagent_turn_answer_seconds_bucket{le="+Inf"} 1
voiceagent_turn_answer_seconds_sum 0.001
voiceagent_turn_answer_seconds_count 1
"""
AFTER = """
voiceagent_turns_total{status="completed"} 7
voiceagent_turn_slack_seconds_count 4
voiceagent_turn_late_seconds_count 1
voiceagent_deadline_misses_total{stage="asr",cause="slow"} 1
voiceagent_turn_answer_seconds_bucket{le="0.001"} 3
voiceagent_turn_answer_seconds_bucket{le="0.002"} 5
voiceagent_turn_answer_seconds_bucket{le="+Inf"} 5
voiceagent_turn_answer_seconds_sum 0.007
voiceagent_turn_answer_seconds_count 5
voiceagent_denoise_steps_granted_sum{phase="first"} 12
voiceagent_denoise_steps_granted_count{phase="first"} 3
"""


def test_the_servers_own_account_is_what_grew_between_two_looks() -> None:
    view = server_view(parse_metrics(BEFORE), parse_metrics(AFTER))
    assert view["turns"] == {"status=completed": 4.0}
    assert view["deadlines_met"] == pytest.approx(0.75)
    assert view["misses"] == {"stage=asr,cause=slow": 1.0}
    assert view["steps_granted"] == {"first": 4.0, "rest": None}
    assert view["own_share_ms"] == {"p50": 1.0, "p95": 2.0, "p99": 2.0, "mean": 1.5}
    assert quantiles_ms({}, {}, "voiceagent_turn_answer_seconds") is None


def test_the_table_has_a_row_for_each_round_and_dashes_for_what_nobody_tells() -> None:
    told = replace(summed(heard(11.0, 0.5)), server=server_view(parse_metrics(BEFORE), parse_metrics(AFTER)))
    lines = table([("ours", told), ("theirs", summed(heard(11.0, None)))]).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| ours | 2 | 1 | 500 / 500 / 500 |") and "75.0%" in lines[2] and "≤ 1 |" in lines[2]
    assert lines[3].startswith("| theirs | 2 | 1 | – |") and lines[3].endswith("| no |")


# --- against a server -------------------------------------------------------------------------------------------------


def call_once(answer: Callable[[ServerConnection], Awaitable[None]]) -> Call:
    """A call of a fraction of a second to a server that does what it is told."""

    async def main() -> Call:
        async with websocket_server(answer, "127.0.0.1", 0, compression=None) as server:
            url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
            now = time.monotonic()
            (call,) = await call_all(
                url, 1, [WORDS], seed=1, manners=Manners(), begins=now, ends=now + 0.3, reply_s=REPLY_S
            )
            return call

    return run_async(main(), timeout_s=60.0)


def test_a_call_speaks_the_dialect_from_start_to_stop_and_returns_marks() -> None:
    received: list[dict[str, Any]] = []

    async def bridge(socket: ServerConnection) -> None:
        async for text in socket:
            received.append(json.loads(text))
            if received[-1]["event"] == "start":
                sid = received[-1]["streamSid"]
                payload = base64.b64encode(LOUD).decode()
                await socket.send(json.dumps({"event": "media", "streamSid": sid, "media": {"payload": payload}}))
                await socket.send(json.dumps({"event": "mark", "streamSid": sid, "mark": {"name": "m"}}))

    call = call_once(bridge)
    assert call.error is None and call.refused is None
    kinds = [message["event"] for message in received]
    assert kinds[:2] == ["connected", "start"] and kinds[-1] == "stop"
    (mark,) = [message["mark"] for message in received if message["event"] == "mark"]
    assert mark == {"name": "m"}
    media = [twilio.parse(json.dumps(message), received[1]["streamSid"]) for message in received[2:-1]]
    assert twilio.Media(base64.b64decode(SILENCE)) in media
    assert isinstance(twilio.parse(json.dumps(received[1]), None), twilio.Start)


def test_a_server_that_is_full_or_hangs_up_is_told_apart() -> None:
    async def full(socket: ServerConnection) -> None:
        await socket.close(1013, "no room")

    async def broken(socket: ServerConnection) -> None:
        await socket.close(1011, "internal error")

    assert (call_once(full).refused, call_once(full).error) == ("no room", None)
    assert call_once(broken).refused is None and "1011 internal error" in (call_once(broken).error or "")


def test_a_few_callers_are_all_answered_without_a_gap() -> None:
    """Over real sockets, in real time, for a few seconds; nothing is said about how fast this machine is."""
    config = settings.load(assignments=["preset=open", "agent.greeting=", "server.port=0", "turn.endpoint=silence"])

    async def main() -> list[Call]:
        runtime = standins.build(config, standins.Delays(), standins.LevelDetector())
        app = create_app(runtime, config.server.settings())
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        served = asyncio.create_task(serve(app, config.server.settings(), on_started=address.set_result))
        try:
            url = (await address).replace("http", "ws", 1) + "/telephony/twilio"
            now = time.monotonic()
            return await call_all(
                url,
                4,
                [WORDS],
                seed=1,
                manners=Manners(cuts_in=0.0, falls_silent=0.0, pause_s=(0.1, 0.3), spread_s=0.5),
                begins=now,
                ends=now + 4.5,
                reply_s=reply_s(),
            )
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await served
            await runtime.aclose()

    calls = run_async(main(), timeout_s=120.0)
    answered = [[turn for turn in call.turns if turn.answer_s is not None] for call in calls]
    assert [call.error for call in calls] == [None] * 4
    assert all(answered), "nobody is left without an answer"
    assert not any(turn.is_cut_off or turn.gaps_s for turns in answered for turn in turns)

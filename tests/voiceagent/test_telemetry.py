"""What operators see of conversations: counts, times and who is there, and nothing that anybody said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.voiceagent.house import KEYED, House, get, pump, refusal, serve, speak
from tests.voiceagent.realtime import connect
from tests.voiceagent.standins import tone
from tests.voiceagent.telephony.phone import phone
from tests.webserving.exposition import read
from voiceagent.barge_in import Dismissed
from voiceagent.clock import ManualClock
from voiceagent.errors import EngineFullError
from voiceagent.events import (
    CallItem,
    ConversationEvent,
    ItemAdded,
    ItemTruncated,
    PlaybackDucked,
    PlaybackMuted,
    PlaybackRestored,
    ResponseAudio,
    ResponseStarted,
    SpeechStarted,
    TurnTraced,
)
from voiceagent.server_settings import ServerSettings
from voiceagent.telemetry import Session, Telemetry, Timeline
from voiceagent.tools import ToolCall
from voiceagent.turn import Phase

TIMELINE: dict[str, Any] = {
    "status": "completed",
    "reason": None,
    "origin": "speech_end",
    "target_ms": 500.0,
    "server_latency_ms": 450.0,
    "missed_deadline": None,
    "stages": [
        {"name": "endpoint", "start_ms": 0.0, "end_ms": 360.0, "predicted_p50_ms": None, "predicted_p95_ms": None},
        {"name": "asr", "start_ms": 360.0, "end_ms": 380.0, "predicted_p50_ms": 10.0, "predicted_p95_ms": 15.0},
        {"name": "prefill", "start_ms": 380.0, "end_ms": 390.0, "predicted_p50_ms": 10.0, "predicted_p95_ms": 15.0},
    ],
    "plan": {"granted_first": 8, "granted_rest": 24, "late": "fewer_steps", "quality": 0.93},
    "steps": [
        {"phase": "first", "compute_ms": 12.0, "waited_ms": 3.0, "forced": 0},
        {"phase": "first", "compute_ms": 14.0, "forced": 2},
        {"phase": "rest", "compute_ms": 13.0, "forced": 0},
    ],
    "tools": [{"name": "book", "outcome": "ok"}],
}
MISSED = {
    **TIMELINE,
    "server_latency_ms": 700.0,
    "missed_deadline": {"stage": "asr", "cause": "slow", "late_ms": 200.0},
}


def telemetry() -> Telemetry:
    return Telemetry(lambda: {"realtime": 1.0}, 4, lambda: {"processors": 0.5})


def test_a_stage_that_was_done_already_is_not_over_its_prediction() -> None:
    meters = telemetry()
    times = {"start_ms": 0.0, "end_ms": 1.1, "predicted_p50_ms": 0.0}
    stages = [{"name": "prefill", **times, "predicted_p95_ms": 0.0}, {"name": "tts", **times, "predicted_p95_ms": 0.9}]
    meters.count_turn(Timeline({**TIMELINE, "stages": stages}))
    assert (meters.stages_over.value("prefill"), meters.stages_over.value("tts")) == (0, 1)


def test_a_turn_that_met_its_target_has_slack_and_its_stages_are_counted() -> None:
    meters = telemetry()
    meters.count_turn(Timeline(TIMELINE))
    assert meters.turns.value("completed") == 1
    assert meters.latency.sum("speech_end") == pytest.approx(0.45)
    assert (meters.answer.count(), meters.answer.sum()) == (1, pytest.approx(0.09))
    assert (meters.slack.count(), meters.slack.sum()) == (1, pytest.approx(0.05))
    assert meters.late.count() == 0
    assert meters.stages.sum("endpoint") == pytest.approx(0.36) and meters.stages.sum("asr") == pytest.approx(0.02)
    assert (meters.stages_over.value("asr"), meters.stages_over.value("prefill")) == (1, 0)
    assert (meters.steps.sum("first"), meters.steps.sum("rest")) == (2.0, 1.0)
    assert (meters.granted.sum("first"), meters.granted.sum("rest")) == (8.0, 24.0)
    assert meters.step_time.count() == 3 and meters.forced.value() == 2
    assert (meters.step_wait.count(), meters.step_wait.sum()) == (1, pytest.approx(0.003))
    assert meters.short.value("fewer_steps") == 1 and meters.quality.sum() == pytest.approx(0.93)
    assert meters.tools.value("ok") == 1 and meters.guarded.value() == 0
    meters.count_turn(Timeline({**TIMELINE, "guarded_drafts": 2}))
    assert meters.guarded.value() == 2
    meters.count_turn(Timeline({**TIMELINE, "ended_by": {"rule": "dictation"}}))
    assert (meters.turn_ends.value("dictation"), meters.turn_ends.value("silence")) == (1, 0)


def test_a_miss_is_counted_under_its_cause() -> None:
    meters = telemetry()
    meters.count_turn(Timeline(MISSED))
    assert meters.misses.value("asr", "slow") == 1
    assert (meters.late.count(), meters.late.sum()) == (1, pytest.approx(0.2))
    assert meters.slack.count() == 0


def test_early_drafts_are_counted_with_what_they_saved_and_wasted() -> None:
    meters = telemetry()
    early = {"outcome": "repaired", "early_steps": 9, "wasted_steps": 4, "saved_steps": 2}
    meters.count_turn(Timeline({**TIMELINE, "speculation": early}))
    meters.count_turn(Timeline({**TIMELINE, "speculation": {"outcome": "hit", "early_steps": 3, "saved_steps": None}}))
    meters.count_turn(Timeline({**TIMELINE, "speculation": None}))
    assert (meters.speculations.value("repaired"), meters.speculations.value("hit")) == (1, 1)
    assert (meters.early_steps.value("used"), meters.early_steps.value("wasted")) == (8, 4)
    assert meters.saved_steps.value() == 2


@pytest.mark.parametrize(
    "timeline",
    [
        {},
        {"status": 3, "stages": "none", "steps": [None, {}], "plan": [], "missed_deadline": {}, "tools": [{}]},
        {**TIMELINE, "stages": [{"name": "asr"}], "server_latency_ms": float("nan")},
        {**MISSED, "missed_deadline": {"late_ms": 200.0}},
    ],
)
def test_a_timeline_with_something_missing_is_counted_as_far_as_it_goes(timeline: dict[str, Any]) -> None:
    meters = telemetry()
    meters.count_turn(Timeline(timeline))
    assert sum(value for name, _, value in read(meters.exposition()) if name == "voiceagent_turns_total") == 1


def test_every_name_has_a_unit_and_the_exposition_can_be_read() -> None:
    meters = telemetry()
    meters.count_turn(Timeline(MISSED))
    names = {name for name, _, _ in read(meters.exposition())}
    assert "voiceagent_event_loop_lag_seconds_bucket" in names
    for name in names - {"voiceagent_callers", "voiceagent_callers_limit"}:
        stem = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        assert stem.endswith(("_total", "_seconds", "_steps", "_steps_granted", "_bytes", "_ratio")), name


def test_every_documented_value_of_a_counters_label_is_0_before_anything_happened() -> None:
    there = {
        (name, value)
        for name, labels, found in read(telemetry().exposition())
        if found == 0
        for value in labels.values()
    }
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*_total\{.*) \| counter \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) == 12
    for names, about in rows:
        name = re.findall(r"(\w+)\{", names)[-1]
        told = re.findall(r"`(\w+)`", about)
        assert any(series == name for series, _ in there) and {(name, value) for value in told} <= there


def test_a_missed_deadline_is_one_of_the_series_that_are_there_from_the_start() -> None:
    meters = telemetry()
    before = [(name, labels) for name, labels, _ in read(meters.exposition()) if "_misses_" in name]
    meters.count_turn(Timeline(MISSED))
    assert [(name, labels) for name, labels, _ in read(meters.exposition()) if "_misses_" in name] == before
    assert meters.misses.value("asr", "slow") == 1


# --- one caller -------------------------------------------------------------------------------------------------------


def watched() -> tuple[Telemetry, Session, ManualClock, Any]:
    meters, clock = telemetry(), ManualClock(10.0)
    session = Session(meters, "realtime", "10.0.0.7", clock)
    passed: list[ConversationEvent] = []
    return meters, session, clock, session.watch(passed.append)


def audio(duration_s: float) -> ResponseAudio:
    return ResponseAudio("resp", "item", tone(duration_s), 16_000)


def test_a_queue_that_runs_dry_inside_a_reply_is_an_underrun() -> None:
    meters, session, clock, emit = watched()
    emit(ResponseStarted("resp", "item", "audio"))
    emit(audio(1.0))
    clock._now += 0.9
    emit(audio(1.0))
    clock._now += 1.0
    emit(audio(1.0))
    assert meters.underruns.value() == 0
    clock._now += 1.2
    emit(audio(1.0))
    assert meters.underruns.value() == 1
    assert session.as_json("conv", Phase.SPEAKING)["underruns"] == 1


def test_silence_between_replies_and_while_a_tool_runs_is_no_underrun() -> None:
    meters, _, clock, emit = watched()
    emit(ResponseStarted("resp", "item", "audio"))
    emit(audio(0.5))
    emit(ItemAdded(CallItem("item_c", "call", ToolCall("book")), None))
    clock._now += 5.0
    emit(audio(0.5))
    clock._now += 5.0
    emit(ResponseStarted("resp_2", "item_2", "audio"))
    emit(audio(0.5))
    assert meters.underruns.value() == 0


def test_a_callers_line_tells_latencies_and_the_last_turn() -> None:
    _, session, clock, emit = watched()
    assert session.as_json("conv", Phase.IDLE)["latency_ms"] == {"p50": None, "p95": None, "turns": 0}
    for latency in (300.0, 400.0, 900.0):
        emit(TurnTraced("resp", {**TIMELINE, "server_latency_ms": latency}))
    emit(TurnTraced("resp", {**MISSED, "origin": "request", "reason": "turn_detected"}))
    clock._now += 61.5
    assert session.as_json("conv", Phase.LISTENING) == {
        "id": "conv",
        "door": "realtime",
        "peer": "10.0.0.7",
        "connected_s": 61.5,
        "phase": "listening",
        "turns": 4,
        "interruptions": 1,
        "underruns": 0,
        "missed_deadlines": 1,
        "latency_ms": {"p50": 400.0, "p95": 900.0, "turns": 3},
        "last_turn": {
            "status": "completed",
            "latency_ms": 700.0,
            "target_ms": 500.0,
            "steps": 3,
            "missed_by": {"stage": "asr", "cause": "slow"},
        },
    }


# --- the routes -------------------------------------------------------------------------------------------------------


async def samples(house: House, **headers: str) -> dict[str, float]:
    answer = await get(house, "/metrics", **headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        name + "".join(f"|{value}" for value in labels.values()): value for name, labels, value in read(answer.text)
    }


def test_a_conversation_shows_in_the_metrics_and_in_the_sessions_while_it_lasts() -> None:
    async def scenario(house: House) -> None:
        found = await samples(house)
        assert (found["voiceagent_callers|realtime"], found["voiceagent_callers|twilio"]) == (0, 0)
        assert found["voiceagent_callers_limit"] == 64
        assert (await get(house, "/sessions")).json() == {"sessions": [], "max_sessions": 64, "draining": False}
        async with connect(house.app) as client, phone(house.app, house.clock) as caller:
            await caller.dial()
            await speak(house, client)
            await pump(house, client.until("response.done"))
            await house.clock.advance(5.0)
            found = await samples(house)
            assert (found["voiceagent_callers|realtime"], found["voiceagent_callers|twilio"]) == (1, 1)
            assert found["voiceagent_turns_total|completed"] == 2, "the answer and the phone's greeting"
            assert found["voiceagent_turn_latency_seconds_count|speech_end"] == 1
            for stage in ("endpoint", "asr", "prefill", "denoise_first", "tts", "transport"):
                assert found[f"voiceagent_stage_seconds_count|{stage}"] >= 1, stage
            assert found["voiceagent_denoise_steps_count|first"] >= 1
            assert found["process_cpu_seconds_total"] > 0 and found.get("process_resident_memory_bytes", 1) > 0
            listed = (await get(house, "/sessions")).json()["sessions"]
            assert [(one["door"], one["turns"], one["phase"]) for one in listed] == [
                ("realtime", 1, "idle"),
                ("twilio", 1, "idle"),
            ]
            assert [one["id"] for one in listed] == [one.id for one in house.runtime.conversations]
            assert listed[0]["latency_ms"]["turns"] == 1 and listed[0]["peer"] == "127.0.0.1"
        assert (await get(house, "/sessions")).json()["sessions"] == []
        found = await samples(house)
        assert found["voiceagent_callers|realtime"] == 0 and found["voiceagent_conversations_total|twilio"] == 1

    serve(scenario)


def test_nothing_that_was_said_is_shown() -> None:
    async def scenario(house: House) -> None:
        async with connect(house.app) as client:
            await speak(house, client)
            await pump(house, client.until("response.done"))
            await house.clock.advance(5.0)
            shown = (await get(house, "/sessions")).text + (await get(house, "/metrics")).text
            assert "mocha" not in shown and "size" not in shown

    serve(scenario)


def test_an_interruption_is_counted() -> None:
    async def scenario(house: House) -> None:
        house.runtime.llm.step_s = 2.0
        async with connect(house.app) as client:
            await client.send("response.create")
            await pump(house, client.until("response.output_audio.delta"))
            await speak(house, client, tone(0.6))
            await pump(house, client.until("response.done"))
            found = await samples(house)
            assert (found["voiceagent_ducks_total"], found["voiceagent_duck_stops_total"]) == (1, 1)
            assert (found["voiceagent_interruptions_total"], found["voiceagent_turns_total|cancelled"]) == (1, 1)

    serve(scenario, written=("one two three. " * 30,))


def test_a_doubt_that_a_key_ends_is_a_stop_at_once_and_only_once() -> None:
    meters = telemetry()
    tell = Session(meters, "twilio", "phone", ManualClock()).watch(lambda event: None)
    tell(ItemTruncated("item_1", 0.5, "One"))
    assert meters.duck_stops.value() == 0, "it was not ducked"
    tell(PlaybackDucked(1.0))
    tell(ItemTruncated("item_2", 0.5, "One"))
    assert meters.duck_stops.value() == 1
    tell(SpeechStarted("item_3", 2.0))
    assert (meters.ducks.value(), meters.duck_stops.value()) == (1, 1)
    assert meters.mutes.value() == 0
    tell(PlaybackDucked(3.0))
    tell(PlaybackMuted(3.0))
    assert (meters.ducks.value(), meters.mutes.value()) == (2, 1), "one doubt"


def test_what_is_sent_while_the_agent_is_held_cannot_run_dry() -> None:
    meters, _, clock, emit = watched()
    emit(ResponseStarted("resp", "item", "audio"))
    for event in (audio(1.0), PlaybackDucked(1.0), audio(0.1), PlaybackMuted(1.0), audio(0.1)):
        emit(event)
        clock._now += 0.5
    emit(PlaybackRestored(Dismissed.BACKCHANNEL))
    emit(audio(0.1))
    assert meters.underruns.value() == 0
    clock._now += 0.5
    emit(audio(0.1))
    assert meters.underruns.value() == 1, "as ever"


def test_clients_that_are_turned_away_are_counted_by_reason() -> None:
    async def scenario(house: House) -> None:
        await refusal(house)
        await refusal(house, headers={"authorization": "Bearer secret-key", "origin": "http://evil.org"})
        async with phone(house.app, house.clock) as caller:
            await caller.dial(key="wrong")
            await caller.closing()
        async with phone(house.app, house.clock) as caller:
            await caller.closing()
        found = await samples(house, authorization="Bearer secret-key")
        counted = {key.partition("|")[2]: value for key, value in found.items() if "refusals" in key and value}
        assert counted == {"invalid_api_key": 2, "forbidden_origin": 1, "no_start": 1}

    serve(scenario, settings=KEYED)


def test_what_was_full_is_told_of_those_who_are_turned_away_and_how_full_it_is() -> None:
    async def scenario(house: House) -> None:
        def full(conversation: object) -> object:
            raise EngineFullError("processors_full", "the processors are full: try again later")

        house.runtime.wrap = full
        assert "processors are full" in (await refusal(house)).body["error"]["message"]
        async with phone(house.app, house.clock) as caller:
            await caller.dial()
            assert "processors are full" in (await caller.closing()).reason
        found = await samples(house)
        assert found["voiceagent_refusals_total|processors_full"] == 2
        assert found["voiceagent_fullness_ratio|processors"] == 0.25

    serve(scenario)


@pytest.mark.parametrize("path", ["/metrics", "/sessions"])
def test_operators_need_the_key_where_there_is_one(path: str) -> None:
    async def scenario(house: House) -> None:
        for headers in ({}, {"authorization": "Bearer wrong-key"}):
            refused = await get(house, path, **headers)
            assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
            assert "wrong-key" not in refused.text
            assert ("Authorization: Bearer KEY" in refused.text) is (not headers), "how to send one is told"
        assert (await get(house, path, authorization="Bearer secret-key")).status_code == 200

    async def rebound(house: House) -> None:
        assert (await get(house, path, host="evil.org")).status_code == 403

    serve(scenario, settings=KEYED)
    serve(rebound, settings=ServerSettings())

"""The page's pure modules, each asked by itself in a real browser."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.e2e.browser import OpenPage

pytestmark = pytest.mark.browser


def in_page(opened: OpenPage, module: str, body: str, argument: object = None) -> Any:
    """What `body` returns, with the page's module as `m` and the argument as `a`."""
    return opened.page.evaluate(
        f"async (a) => {{ const m = await import('/{module}'); {body} }}",
        argument,
    )


def test_samples_survive_the_way_into_a_message_and_back(quiet_page: OpenPage) -> None:
    samples = [0.0, 0.5, -0.5, 1.0, -1.0, 1.7, -3.0]
    body = "return Array.from(m.floatFromPcm16(m.bytesFromBase64(m.base64FromBytes(m.pcm16FromFloat(new Float32Array(a))))));"
    back = in_page(quiet_page, "pcm.js", body, samples)
    np.testing.assert_allclose(back, np.clip(samples, -1, 1), atol=1 / 32767)
    body = "const b = new Uint8Array(100001).map((_, i) => i * 7); return m.bytesFromBase64(m.base64FromBytes(b)).every((v, i) => v === b[i]);"
    assert in_page(quiet_page, "pcm.js", body)
    assert in_page(quiet_page, "pcm.js", "return m.floatFromPcm16(new Uint8Array([0, 64, 9])).length") == 1
    assert in_page(quiet_page, "pcm.js", "return [m.meterFromRms(0), m.meterFromRms(1), m.meterFromRms(0.001)]") == [
        0,
        1,
        0,
    ]


RESAMPLE = """
const whole = (samples) => { const r = new m.Resampler(a.from, a.to); return [...r.push(samples), ...r.finish()]; };
const input = Float32Array.from({ length: a.length }, (_, i) => Math.sin((2 * Math.PI * a.hz * i) / a.from));
if (a.cut === 0) return whole(input);
const r = new m.Resampler(a.from, a.to);
const out = [];
for (let i = 0; i < input.length; i += a.cut) out.push(...r.push(input.subarray(i, i + a.cut)));
return [...out, ...r.finish()];
"""


@pytest.mark.parametrize(
    ("rate_in", "rate_out"), [(48_000, 24_000), (44_100, 24_000), (16_000, 24_000), (24_000, 24_000)]
)
def test_a_tone_keeps_its_shape_through_the_resampler_however_it_is_cut(
    quiet_page: OpenPage, rate_in: int, rate_out: int
) -> None:
    argument = {"from": rate_in, "to": rate_out, "hz": 440, "length": rate_in // 5}
    whole = in_page(quiet_page, "resampler.js", RESAMPLE, argument | {"cut": 0})
    for cut in (1, 128, 1000):
        assert in_page(quiet_page, "resampler.js", RESAMPLE, argument | {"cut": cut}) == whole
    assert abs(len(whole) - rate_out // 5) <= 2
    expected = np.sin(2 * np.pi * 440 * np.arange(len(whole)) / rate_out)
    edge = 100  # the tone begins and ends abruptly: the filter rings there
    np.testing.assert_allclose(whole[edge:-edge], expected[edge:-edge], atol=2e-3)


def test_the_resampler_removes_what_the_lower_rate_cannot_hold(quiet_page: OpenPage) -> None:
    argument = {"from": 48_000, "to": 24_000, "hz": 15_000, "length": 9600, "cut": 0}
    out = np.array(in_page(quiet_page, "resampler.js", RESAMPLE, argument))[100:-100]
    assert np.sqrt(np.mean(out**2)) < 1e-3  # -60 dB; the tone went in at -3 dB


QUEUE = """
const q = new m.PlaybackQueue({ startSamples: 60, restartSamples: 40, patienceSamples: 100, fadeSamples: 8, riseSamples: 20 });
const log = [];
const render = (n) => { const out = new Float32Array(n); for (const e of q.render(out)) log.push([e.type, e.itemId, e.playedSamples]); return Array.from(out); };
const ones = (n) => new Float32Array(n).fill(1);
"""


def test_playback_waits_for_jitter_and_counts_only_what_was_played(quiet_page: OpenPage) -> None:
    body = (
        QUEUE
        + """
q.push("a", ones(50)); const early = render(20);
q.push("a", ones(50)); const playing = render(60); render(60); const dry = q.current;
q.push("a", ones(10)); q.end("a"); render(30);
return { early, playing, dry, log, active: q.active };
"""
    )
    result = in_page(quiet_page, "playback-queue.js", body)
    assert result["early"] == [0] * 20
    assert result["playing"] == [1] * 60
    assert result["dry"] == {"itemId": "a", "playedSamples": 100, "queuedSamples": 0}
    assert result["log"] == [["started", "a", 0], ["audible", "a", 0], ["underrun", "a", 100], ["finished", "a", 110]]
    assert not result["active"]


def test_a_short_utterance_starts_without_waiting_for_more(quiet_page: OpenPage) -> None:
    body = QUEUE + 'q.push("a", ones(10)); const r = []; for (let i = 0; i < 12; i++) r.push(...render(10)); return r;'
    rendered = in_page(quiet_page, "playback-queue.js", body)
    assert rendered == [0] * 100 + [1] * 10 + [0] * 10
    body = QUEUE + 'q.push("a", ones(10)); q.end("a"); return render(20);'
    assert in_page(quiet_page, "playback-queue.js", body) == [1] * 10 + [0] * 10


def test_a_flush_fades_to_silence_and_says_how_much_was_played(quiet_page: OpenPage) -> None:
    body = (
        QUEUE
        + 'q.push("a", ones(200)); render(70); q.push("b", ones(50)); const dropped = q.flush(); return { dropped, after: render(20), log };'
    )
    result = in_page(quiet_page, "playback-queue.js", body)
    assert result["dropped"] == [{"itemId": "a", "playedSamples": 70}, {"itemId": "b", "playedSamples": 0}]
    fade = result["after"][:8]
    assert fade == sorted(fade, reverse=True) and 0 < fade[-1] < fade[0] < 1
    assert result["after"][8:] == [0] * 12
    assert [entry[0] for entry in result["log"]] == ["started", "audible"]


def test_a_duck_turns_down_within_its_ramp_and_what_plays_so_is_not_heard_when_it_is_flushed(
    quiet_page: OpenPage,
) -> None:
    body = (
        QUEUE
        + """
q.push("a", ones(300)); render(70); q.duck(0.05); const ducked = render(40); q.push("b", ones(10));
const dropped = q.flush(); const rest = render(20);
q.push("c", ones(100)); const next = render(60);
q.duck(0.05); render(10); q.restore(); const restored = render(25);
return { ducked, dropped, rest, next, restored, heard: q.flush() };
"""
    )
    result = in_page(quiet_page, "playback-queue.js", body)
    assert result["ducked"][:8] == sorted(result["ducked"][:8], reverse=True)
    assert result["ducked"][8:] == pytest.approx([0.05] * 32)
    assert result["dropped"] == [{"itemId": "a", "playedSamples": 70}, {"itemId": "b", "playedSamples": 0}]
    assert max(result["rest"]) < 0.05, "no burst at the end"
    assert result["next"] == [1] * 60, "what comes next is not ducked"
    assert result["restored"][:20] == sorted(result["restored"][:20]) and result["restored"][20:] == [1] * 5
    assert result["heard"] == [{"itemId": "c", "playedSamples": 95}], "restored, it was heard"


def test_a_duck_to_silence_holds_what_plays_and_it_goes_on_where_it_was(quiet_page: OpenPage) -> None:
    body = (
        QUEUE
        + """
const ramp = Float32Array.from({ length: 200 }, (_, i) => 1 + i);
q.push("a", ramp); render(50); q.duck(0.05); render(20); q.duck(1e-6); q.duck(1e-6); q.duck(0.05);
const muted = render(60); const held = q.current; q.push("a", ones(5)); render(60);
q.restore(); const back = render(60);
q.duck(1e-6); render(20); const dropped = q.flush(); q.push("b", ones(100)); const next = render(60);
return { muted, held, back, dropped, next, log };
"""
    )
    result = in_page(quiet_page, "playback-queue.js", body)
    assert result["muted"][:8] == sorted(result["muted"][:8], reverse=True) and result["muted"][8:] == [0] * 52
    held = result["held"]["playedSamples"]
    assert 70 < held <= 80, "what was at the loudspeaker while it faded"
    assert result["back"][20:] == [held + 1 + at for at in range(20, 60)], "not a sample is lost"
    assert result["dropped"] == [{"itemId": "a", "playedSamples": held + 60}], "and what fades to silence is not heard"
    assert result["next"] == [1] * 60
    assert [entry[0] for entry in result["log"]] == ["started", "audible", "started", "audible"], "no underrun"


def test_playback_is_the_same_however_it_arrives_and_is_asked_for(quiet_page: OpenPage) -> None:
    body = (
        QUEUE
        + """
const samples = Float32Array.from({ length: 300 }, (_, i) => Math.sin(i));
for (let i = 0; i < 300; i += a.arrives) q.push("a", samples.slice(i, i + a.arrives));
q.end("a");
const out = [];
while (out.length < 300) out.push(...render(a.asked));
return out.slice(0, 300);
"""
    )
    answers = [
        in_page(quiet_page, "playback-queue.js", body, {"arrives": arrives, "asked": asked})
        for arrives, asked in [(300, 300), (1, 128), (7, 1), (128, 50)]
    ]
    assert all(answer == answers[0] for answer in answers)


TIMELINE = {
    "origin": "speech_end",
    "target_ms": 500,
    "server_latency_ms": 620.0,
    "stages": [
        {"name": "endpoint", "start_ms": 0, "end_ms": 400, "predicted_p50_ms": None, "predicted_p95_ms": None},
        {"name": "asr", "start_ms": 400, "end_ms": 410, "predicted_p50_ms": 5, "predicted_p95_ms": 20},
        {"name": "denoise_first", "start_ms": 410, "end_ms": 600, "predicted_p50_ms": 90, "predicted_p95_ms": 120},
        {"name": "new_stage", "start_ms": 600, "end_ms": 620, "predicted_p50_ms": None, "predicted_p95_ms": None},
    ],
    "steps": [{"step": 1, "phase": "first", "at_ms": 500}, {"step": 2, "phase": "rest", "at_ms": 5000}],
}


def test_the_page_tells_why_a_turn_was_over(quiet_page: OpenPage) -> None:
    def told(**ended_by: object) -> str:
        return str(in_page(quiet_page, "timeline.js", "return m.endingText(a)", {"ended_by": ended_by or None}))

    words = told(rule="complete", silence_ms=224.0, silence_alone_ms=350.0, completeness=0.968)
    assert words == (
        "Your turn was ended by complete words after 224 ms of silence, the words complete with 97 % "
        "(silence alone would have waited 350 ms)."
    )
    assert told(rule="silence", silence_ms=352.0, silence_alone_ms=350.0, completeness=None) == (
        "Your turn was ended by silence alone after 352 ms of silence."
    )
    sounded = told(
        rule="complete", silence_ms=224.0, silence_alone_ms=None, completeness=0.968, sound=0.7, misheard=False
    )
    assert sounded.endswith(", the sound alone, which is weighed in it, like an end with 70 %.")
    strange = told(
        rule="complete", silence_ms=1056.0, silence_alone_ms=None, completeness=0.5, sound=0.7, misheard=True
    )
    assert strange.endswith(
        "the words complete with 50 %, as far as words tell that were misheard or make no sense, "
        "the sound alone, which did not count beside them, like an end with 70 %."
    )
    doubted = told(rule="silence", silence_ms=352.0, silence_alone_ms=350.0, completeness=None, confidence=0.034)
    assert doubted.endswith("352 ms of silence. The recogniser takes its words for right with 3 %.")
    assert told(rule="client", silence_ms=None, silence_alone_ms=None, completeness=None).endswith("by this page.")
    assert told() == ""


def test_doubtful_words_are_shown_beside_what_was_meant(quiet_page: OpenPage) -> None:
    words = [{"first": 1, "heard": "all one", "meant": "almond"}, {"first": 5, "heard": "sugars", "meant": "sugar"}]
    repair = {"heard": "with all one milk and sugars", "words": words}
    used = in_page(quiet_page, "log-view.js", "return m.repairedPieces(a)", repair | {"used": True})
    assert used == [
        ["stable", "with "],
        ["misheard", "all one"],
        ["repaired", " almond "],
        ["stable", "milk and "],
        ["misheard", "sugars"],
        ["repaired", " sugar "],
    ]
    shown = in_page(quiet_page, "log-view.js", "return m.repairedPieces(a)", repair | {"used": False})
    assert "".join(text for _, text in shown) == "with all one (almond?) milk and sugars (sugar?) "


def test_the_waterfall_places_what_happened_beside_what_was_predicted(quiet_page: OpenPage) -> None:
    layout = in_page(quiet_page, "timeline.js", "return m.layoutTimeline(a, 780)", json.loads(json.dumps(TIMELINE)))
    end = layout["endMs"]
    assert end >= 780
    asr = layout["rows"][1]
    assert (asr["label"], asr["late"]) == ("Recognition", False)
    assert asr["at"] == pytest.approx(400 / end)
    assert asr["width"] == pytest.approx(10 / end)
    assert asr["p95At"] == pytest.approx(420 / end)
    assert layout["rows"][2]["late"]
    assert layout["rows"][3]["label"] == "new_stage"
    assert layout["target"]["at"] == pytest.approx(500 / end)
    assert layout["page"]["ms"] == 780
    assert [step["step"] for step in layout["steps"]] == [1]
    assert 3 <= len(layout["ticks"]) <= 8


def test_an_empty_timeline_is_still_an_axis(quiet_page: OpenPage) -> None:
    layout = in_page(quiet_page, "timeline.js", "return m.layoutTimeline({ server_latency_ms: null, target_ms: null })")
    assert layout["rows"] == [] and layout["server"] is None
    assert len(layout["ticks"]) >= 2


def test_percentiles_are_those_of_numpy(quiet_page: OpenPage) -> None:
    values = [612.0, 480.5, 1400.0, 733.25, 590.0]
    for share in (0.0, 0.5, 0.95, 1.0):
        found = in_page(quiet_page, "timeline.js", "return m.quantile(a.values, a.q)", {"values": values, "q": share})
        assert found == pytest.approx(np.quantile(values, share))
    assert in_page(quiet_page, "timeline.js", "return m.quantile([], 0.5)") is None


def test_answer_times_leave_out_typed_turns(quiet_page: OpenPage) -> None:
    responses = [
        {"id": "r1", "startedBy": "speech", "pageMs": 800, "timeline": {"server_latency_ms": 600, "target_ms": 500}},
        {"id": "r2", "startedBy": "text", "pageMs": None, "timeline": {"server_latency_ms": 100, "target_ms": 500}},
        {"id": "r3", "startedBy": "speech", "pageMs": None, "timeline": None},
    ]
    times = in_page(quiet_page, "timeline.js", "return m.answerTimes(a)", responses)
    assert [turn["id"] for turn in times["turns"]] == ["r1"]
    assert times["server"] == {"p50": 600, "p95": 600, "count": 1}


def test_media_time_counts_only_audio_that_was_sent(quiet_page: OpenPage) -> None:
    body = """
const clock = new m.MediaClock();
clock.sent(40, 10.0); clock.sent(40, 10.04);
clock.sent(40, 11.0); // a message between was not sent
return [clock.timeOf(20), clock.timeOf(79), clock.timeOf(100), clock.timeOf(121)];
"""
    found = in_page(quiet_page, "media-clock.js", body)
    assert found[:3] == pytest.approx([10.02, 10.079, 11.02])
    assert found[3] is None


def test_attempts_to_reconnect_slow_down_and_never_stop(quiet_page: OpenPage) -> None:
    delays = in_page(quiet_page, "realtime.js", "return Array.from({ length: 12 }, (_, i) => m.backoffMs(i, 0))")
    assert delays[:3] == [500, 1000, 2000]
    assert delays == sorted(delays) and delays[-1] == 8000
    assert in_page(quiet_page, "realtime.js", "return m.backoffMs(0, 0.999)") > 350


APPLY = "const model = new m.Model(); const changed = a.map((event) => [...model.apply(event)]);"


def test_a_tool_that_the_agent_calls_is_shown_with_what_it_answered(quiet_page: OpenPage) -> None:
    def done(**item: object) -> dict[str, object]:
        return {"type": "conversation.item.done", "item": item}

    events = [
        done(type="function_call", name="book_table", arguments='{"people": 4, "day": "friday"}'),
        done(type="function_call_output", output="table: 12;\n code: K72"),
        done(type="function_call", name="hang_up", arguments="{}"),
        done(type="function_call", name="half", arguments='{"people'),
        done(type="function_call_output", output=""),
        done(type="function_call", name="write_down", arguments=json.dumps({"text": "word " * 100})),
        done(type="message", role="assistant", content=[]),
    ]
    body = APPLY + "return model.entries.map(({ role, text }) => [role, text]);"
    assert in_page(quiet_page, "model.js", body, events) == [
        ["note", "tool: book_table (people: 4, day: friday)"],
        ["note", "tool answered: table: 12; code: K72"],
        ["note", "tool: hang_up"],
        ["note", "tool: half"],
        ["note", "tool answered: nothing"],
        ["note", f"tool: write_down ({('text: ' + 'word ' * 100)[:160]}…)"],
    ]


def test_a_conversation_can_be_followed_from_its_events(quiet_page: OpenPage) -> None:
    at = {"response_id": "r", "item_id": "a", "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "input_audio_buffer.speech_started", "item_id": "u", "audio_start_ms": 100},
        {"type": "voiceagent.transcript.partial", "item_id": "u", "stable": "two", "unstable": "lat"},
        {"type": "input_audio_buffer.speech_stopped", "item_id": "u", "audio_end_ms": 900},
        {"type": "input_audio_buffer.committed", "item_id": "u"},
        {"type": "conversation.item.input_audio_transcription.completed", "item_id": "u", "transcript": "two lattes"},
        {"type": "some.event.of.the.future", "item_id": "u"},
        {"type": "response.created", "response": {"id": "r"}},
        {"type": "response.output_item.added", "response_id": "r", "item": {"id": "a", "type": "message"}},
        {"type": "response.output_audio_transcript.delta", "delta": "Two lattes, ", **at},
        {"type": "response.output_audio_transcript.delta", "delta": "coming up.", **at},
        {"type": "response.done", "response": {"id": "r", "status": "cancelled", "output": [{"id": "a"}]}},
        {"type": "conversation.item.truncated", "item_id": "a", "content_index": 0, "audio_end_ms": 700},
        {"type": "conversation.item.retrieved", "item": {"id": "a", "content": [{"transcript": "Two lattes,"}]}},
    ]
    body = APPLY + "return { changed, entries: model.entries, memory: model.memory(9), response: model.response('r') };"
    result = in_page(quiet_page, "model.js", body, events)
    assert result["changed"][5] == []
    assert [entry["text"] for entry in result["entries"]] == ["two lattes", "Two lattes, coming up."]
    assert result["response"]["startedBy"] == "speech" and result["response"]["speechEndMs"] == 900
    # Another connection is told what was heard, not what was written.
    assert result["memory"] == [{"role": "user", "text": "two lattes"}, {"role": "agent", "text": "Two lattes,"}]


def canvas(*tokens: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"text": text, "state": state, "confidence": 0.9} for text, state in tokens]


def test_what_was_kept_of_an_early_draft_is_marked_and_says_when_it_was_written(quiet_page: OpenPage) -> None:
    one, two = ("Two", "committed"), (" lattes", "provisional")
    early = {"step": 1, "phase": "first", "canvas": canvas(one, two), "early_ms": 412.3}
    kept = {"step": 0, "phase": "first", "canvas": canvas(one, ("", "masked")), "kept": {"tokens": 1, "asked": 2}}
    whole = {**kept, "canvas": canvas(one, two), "kept": {"tokens": 2, "asked": 2}, "early_ms": 150.0}
    late = {"step": 1, "phase": "first", "canvas": canvas(one, ("mochas", "committed")), "early_ms": None, "kept": None}
    events = [{"type": "voiceagent.response.step", "response_id": "r", **step} for step in (early, whole, kept, late)]
    body = """
      const { Model } = await import("/model.js");
      const model = new Model();
      const parts = Object.fromEntries(["tokens", "counter", "summary", "older", "newer", "live", "which"].map((name) => [name, document.createElement("button")]));
      parts.slider = Object.assign(document.createElement("input"), { type: "range", min: "1" });
      const view = new m.CanvasView(parts);
      return a.map((event) => {
        model.apply(event);
        view.draw(model);
        return [parts.summary.textContent, [...parts.tokens.querySelectorAll(".is-kept")].map((token) => token.textContent)];
      });"""
    assert in_page(quiet_page, "canvas-view.js", body, events) == [
        ["drafted 412 ms before your turn was over", []],
        ["other words came, all 2 tokens kept 150 ms before your turn was over", ["Two", " lattes"]],
        ["other words came, 1 of 2 tokens kept when your turn was over", ["Two"]],
        ["before the first clause", []],
    ]


def test_a_turn_in_which_nothing_was_understood_waits_for_nobody(quiet_page: OpenPage) -> None:
    events = [
        {"type": "input_audio_buffer.speech_started", "item_id": "u", "audio_start_ms": 100},
        {"type": "input_audio_buffer.speech_stopped", "item_id": "u", "audio_end_ms": 900},
        {"type": "conversation.item.input_audio_transcription.completed", "item_id": "u", "transcript": ""},
    ]
    body = APPLY + "return { awaiting: model.awaitingReply, speech: model.lastSpeech, memory: model.memory(9) };"
    assert in_page(quiet_page, "model.js", body, events) == {"awaiting": False, "speech": None, "memory": []}


@pytest.mark.parametrize(
    ("code", "reason", "kind", "words"),
    [
        (1006, "", "gone", "lost"),
        (1012, "", "gone", "restarting"),
        (1013, "full", "busy", "full"),
        (1008, "bad api key", "key", "bad api key"),
        (1011, "", "server", "1011"),
    ],
)
def test_a_closed_connection_is_explained(quiet_page: OpenPage, code: int, reason: str, kind: str, words: str) -> None:
    body = "return m.closeProblem(a.code, a.reason)"
    problem = in_page(quiet_page, "problems.js", body, {"code": code, "reason": reason})
    assert problem["kind"] == kind
    assert words in problem["text"] and problem["text"].endswith(".")

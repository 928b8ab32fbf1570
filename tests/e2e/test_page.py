"""The page in a real browser, with a recording as its microphone and the real server behind it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import WebSocketRoute, expect

from tests.e2e.browser import OpenPage, Speech, microphone_file
from tests.e2e.conftest import OpenWith

pytestmark = pytest.mark.browser

PATIENCE_MS = 60_000
"""Two busy cores take their time; every wait ends as soon as its condition holds."""

ORDER = "order/00e09cf0-a01d-453e-9b89-dc6e6d31d362.flac"
"""A caller asks for an iced coffee."""


def type_message(opened: OpenPage, text: str) -> None:
    opened.page.fill("#text", text)
    opened.page.press("#text", "Enter")


def wait_for_reply(opened: OpenPage, count: int) -> None:
    """Until `count` replies of the agent stand in the conversation, and the newest is complete."""
    expect(opened.page.locator("#log .line-agent:not(.is-live)")).to_have_count(count, timeout=PATIENCE_MS)


def saved_record(opened: OpenPage) -> Any:
    """The JSON file behind "Save timelines"."""
    with opened.page.expect_download() as saved:
        opened.page.click("#save-timelines")
    return json.loads(Path(saved.value.path()).read_text("utf-8"))


# --- conversations ----------------------------------------------------------------------------------------------------


def test_a_spoken_order_is_transcribed_and_answered_aloud(open_with: OpenWith, data_dir: Path, tmp_path: Path) -> None:
    order = Speech.find(data_dir, ORDER)
    opened = open_with(microphone_file(tmp_path / "order.wav", [10.0, order, 60.0]))
    page = opened.page

    page.click("#talk")
    wait_for_reply(opened, 2)  # the greeting, and what is said to the order
    expect(page.locator("#app")).to_have_attribute("data-audible-items", re.compile(r"^\S+ \S+$"), timeout=PATIENCE_MS)

    heard = " ".join(opened.lines("user")).lower().split()
    expected = order.text.split()
    assert sum(word in heard for word in expected) >= len(expected) / 2, heard
    assert len(opened.lines("agent")[-1].split()) >= 2

    # The reply is audible at the loudspeaker, and its canvas was shown step by step.
    expect(page.locator("#waterfall .stage").first).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#server-p50")).not_to_have_text("–", timeout=PATIENCE_MS)
    assert float(opened.state("loudest") or 0) > 0.01
    expect(page.locator("#draft-counter")).to_have_text(re.compile(r"step \d+ of \d+"))
    expect(page.locator("#draft-tokens .is-committed").first).to_be_visible()
    told = r"^(drafted .* before your turn was over|other words came, .* kept .*|before the first clause|while the first clause plays)"
    expect(page.locator("#draft-summary")).to_have_text(re.compile(told))
    if not page.locator("#draft-counter").inner_text().endswith("of 1"):  # a reply of one step has no other to look at
        page.locator("#draft-slider").focus()
        page.keyboard.press("Home")
        expect(page.locator("#draft-counter")).to_have_text(re.compile(r"step 1 of \d+"))
        expect(page.locator("#draft-live")).to_be_visible()

    # The waterfall has the stages of a spoken turn; both clocks agree on a plausible answer time.
    names = page.locator("#waterfall .stage .name").all_inner_texts()
    assert {"End of turn", "Recognition", "Denoising", "Voice"} <= set(names)
    expect(page.locator("#waterfall-caption")).to_contain_text("audible here after")
    expect(page.locator("#history .column")).to_have_count(1)
    expect(page.locator("#page-p50")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    expect(page.locator("#plan dd")).to_have_count(6)

    spoken = [response for response in saved_record(opened)["responses"] if response["started_by"] == "speech"]
    assert len(spoken) == 1
    assert spoken[0]["timeline"]["server_latency_ms"] > 0
    assert spoken[0]["speech_end_to_first_audible_sample_in_page_ms"] > 0
    assert spoken[0]["steps"][0]["canvas"]

    with page.expect_download() as saved:
        page.click("#save-transcript")
    transcript = Path(saved.value.path()).read_text("utf-8")
    assert "You: " in transcript and "Agent: " in transcript

    page.click("#talk")
    opened.wait_for_state("connection", "closed")
    assert opened.lines("note") == ["call ended"]
    assert opened.complaints == []


def test_a_caller_who_speaks_up_stops_the_reply(open_with: OpenWith, data_dir: Path, tmp_path: Path) -> None:
    # The caller orders again and again. However fast the machine answers, one of the pauses ends while the agent is speaking.
    order = Speech.find(data_dir, ORDER)
    pauses = (1.6, 2.2, 2.8, 4.0, 5.5, 7.0, 9.0, 11.0, 13.0)
    parts = [part for pause in pauses for part in (order, pause)]
    opened = open_with(microphone_file(tmp_path / "orders.wav", [0.5, *parts, 30.0]))
    opened.page.click("#talk")
    interrupted = opened.page.locator("#log .line-agent .aside", has_text="interrupted after")
    expect(interrupted.first).to_be_visible(timeout=2 * PATIENCE_MS)

    # What the server kept as heard comes back; it is the beginning of what was written, and the page marks the rest.
    expect(opened.page.locator("#log .line-agent .unheard").first).to_be_visible(timeout=PATIENCE_MS)
    cut = next(entry for entry in saved_record(opened)["conversation"] if entry["heard_text"] is not None)
    assert cut["heard_ms"] > 0
    assert cut["text"].strip().startswith(cut["heard_text"].strip())
    assert len(cut["heard_text"].strip()) < len(cut["text"].strip())
    assert opened.complaints == []


def test_typing_works_when_the_microphone_is_refused(open_with: OpenWith) -> None:
    opened = open_with(None)
    page = opened.page
    page.click("#talk")
    expect(page.locator("#alert-text")).to_contain_text("not allowed to use the microphone", timeout=PATIENCE_MS)

    type_message(opened, "hello <b>can i</b> get a small latte")
    expect(page.locator("#log .line-user .said")).to_have_text("hello <b>can i</b> get a small latte")
    opened.wait_for_state("phase", "speaking")
    wait_for_reply(opened, 1)
    expect(page.locator("#draft-tokens .is-committed").first).to_be_visible()
    expect(page.locator("#waterfall .stage").first).to_be_visible(timeout=PATIENCE_MS)
    assert float(opened.state("loudest") or 0) > 0.01
    assert opened.complaints == []


def test_a_lost_connection_is_announced_and_the_conversation_goes_on(open_with: OpenWith) -> None:
    opened = open_with(None)
    page = opened.page
    routes: list[WebSocketRoute] = []
    sent: list[dict[str, Any]] = []

    def pass_on(route: WebSocketRoute) -> None:
        routes.append(route)
        upstream = route.connect_to_server()

        def to_server(message: str | bytes) -> None:
            sent.append(json.loads(message))
            upstream.send(message)

        route.on_message(to_server)

    page.route_web_socket(re.compile("/v1/realtime"), pass_on)
    type_message(opened, "hello there")
    wait_for_reply(opened, 1)

    app = page.locator("#app")
    expect(app).to_have_attribute("data-audible-items", re.compile(r"^\S+$"), timeout=PATIENCE_MS)
    expect(app).to_have_attribute("data-phase", "ready", timeout=PATIENCE_MS)
    held = {"type": "voiceagent.playback.ducked", "event_id": "evt_held", "audio_start_ms": 0, "gain_db": -120}
    routes[-1].send(json.dumps(held))  # And whoever could bring the agent back is gone.
    routes[-1].close(code=1012, reason="restart")
    expect(page.locator("#alert-text")).to_contain_text("restarting")
    expect(page.locator("#log .line-note")).to_have_text("reconnected, the conversation goes on", timeout=PATIENCE_MS)
    expect(page.locator("#alert")).to_be_hidden()
    remembered = [message["item"] for message in sent if message.get("event_id", "").startswith("memory_")]
    assert remembered[0]["content"] == [{"type": "input_text", "text": "hello there"}]

    type_message(opened, "a small latte please")
    wait_for_reply(opened, 2)
    expect(app).to_have_attribute("data-audible-items", re.compile(r"^\S+ \S+$"), timeout=PATIENCE_MS)
    assert opened.complaints == []


def test_a_reply_that_waits_while_the_caller_is_in_doubt_is_never_heard_once_they_have_the_turn(
    open_with: OpenWith,
) -> None:
    opened = open_with(None)
    page = opened.page
    routes: list[WebSocketRoute] = []
    cut: list[tuple[str, int]] = []

    def pass_on(route: WebSocketRoute) -> None:
        routes.append(route)
        upstream = route.connect_to_server()

        def to_server(text: str | bytes) -> None:
            message = json.loads(text)
            if message["type"] == "conversation.item.truncate":
                cut.append((message["item_id"], message["audio_end_ms"]))
            else:
                upstream.send(text)

        route.on_message(to_server)

    def tell(kind: str, **fields: Any) -> None:
        routes[-1].send(json.dumps({"type": kind, "event_id": f"evt_{kind}", **fields}))

    page.route_web_socket(re.compile("/v1/realtime"), pass_on)
    type_message(opened, "hello there")
    wait_for_reply(opened, 1)
    expect(page.locator("#app")).to_have_attribute("data-phase", "ready", timeout=PATIENCE_MS)
    tell("voiceagent.playback.ducked", audio_start_ms=0, gain_db=-120)
    place = {"response_id": "resp_waits", "item_id": "item_waits", "output_index": 0, "content_index": 0}
    tell("response.output_audio.delta", **place, delta=base64.b64encode(b"\x00\x40" * 12_000).decode())
    tell("input_audio_buffer.speech_started", item_id="item_heard", audio_start_ms=0)
    for _ in range(PATIENCE_MS // 50):
        if cut:
            break
        page.wait_for_timeout(50)
    assert cut == [("item_waits", 0)]
    assert "item_waits" not in (opened.state("audible-items") or "")


def test_a_server_with_a_key_asks_for_it_before_the_caller_talks(open_with: OpenWith) -> None:
    opened = open_with(None)
    page = opened.page
    page.route("**/readyz", lambda route: route.fulfill(json={"ready": True, "key_required": True, "parts": []}))
    page.reload()
    expect(page.locator("#alert-text")).to_have_text("This server asks for an API key.")
    page.fill("#key", "a-secret")
    page.press("#key", "Enter")
    expect(page.locator("#alert")).to_be_hidden()
    opened.wait_for_state("connection", "open")
    assert page.evaluate("sessionStorage.getItem('voiceagent.api_key')") == "a-secret"
    assert page.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"


def test_the_page_can_be_worked_by_keyboard(open_with: OpenWith) -> None:
    opened = open_with(None)
    page = opened.page
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert [name for name in reached if name in ("talk", "text", "log", "target")] == ["talk", "text", "log", "target"]
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, input")].filter(
          (control) => !control.labels?.length && !control.ariaLabel && !control.textContent.trim() && control.type !== "hidden",
        ).map((control) => control.id || control.outerHTML)"""
    )
    assert unnamed == ["alert-action"]  # hidden until it has a text


def test_space_mutes_and_does_not_hang_up_after_talk_was_clicked(open_with: OpenWith, tmp_path: Path) -> None:
    opened = open_with(microphone_file(tmp_path / "nothing.wav", [120.0]))
    page = opened.page
    muted = page.locator("#mute")
    page.click("#talk")
    expect(page.locator("#talk-label")).to_have_text("End", timeout=PATIENCE_MS)

    page.keyboard.down(" ")
    for _ in range(3):
        page.keyboard.down(" ")  # held down, as somebody does who knows push to talk
    page.keyboard.up(" ")
    expect(muted).to_have_attribute("aria-pressed", "true")
    page.keyboard.press(" ")
    expect(muted).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#talk-label")).to_have_text("End")

    page.locator("#talk").focus()
    page.keyboard.press(" ")  # reached by keyboard it is a button like any other
    expect(page.locator("#talk-label")).to_have_text("Talk")
    assert opened.complaints == []


def test_the_page_says_that_it_waits_for_the_microphone_and_not_for_the_server(quiet_page: OpenPage) -> None:
    page = quiet_page.page
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => new Promise(() => {}); }")
    page.click("#talk")
    expect(page.locator("#app")).to_have_attribute("data-phase", "asking")
    expect(page.locator("#hint")).to_have_text("Allow it, if your browser asks.")
    page.reload()

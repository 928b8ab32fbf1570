"""The benchmark's caller against a server whose every message is known."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from websockets.asyncio.server import ServerConnection, serve

from examples.realtime_caller import RATE_HZ, Caller, CallResult, Recording, load_recordings
from tests.conftest import run_async
from voiceagent.backends import Samples

TONE: Samples = np.full(RATE_HZ // 5, 0.3, np.float32)
RECORDING = Recording("a.flac", "order", "a mocha", np.concatenate([TONE, np.zeros_like(TONE)]), 0.0, 0.2)

Answer = Callable[[ServerConnection, int], Awaitable[None]]


def audio(samples: Samples) -> str:
    return base64.b64encode((samples * 32767).astype("<i2").tobytes()).decode("ascii")


async def send(socket: ServerConnection, kind: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, **fields}))


async def reply(socket: ServerConnection, number: int) -> None:
    """What a server says of one turn."""
    await send(socket, "input_audio_buffer.speech_stopped")
    await send(socket, "conversation.item.input_audio_transcription.completed", transcript="a mocha")
    await send(socket, "response.created", response={"id": f"r{number}"})
    await send(socket, "response.output_audio_transcript.delta", delta="Sure. ")
    await send(socket, "response.output_audio_transcript.delta", delta="What size?")
    await send(socket, "response.output_audio.delta", response_id=f"r{number}", delta=audio(TONE))
    await send(socket, "response.done", response={"id": f"r{number}"})
    await send(socket, "voiceagent.turn.timeline", timeline={"turn": number})


def place_call(answer: Answer, recordings: list[Recording]) -> tuple[CallResult, list[dict[str, Any]]]:
    """A call to a server that calls `answer` each time 0.2 s of silence have followed something loud."""
    received: list[dict[str, Any]] = []

    async def listen(socket: ServerConnection) -> None:
        await send(socket, "session.created")
        quiet, is_open, turns = 0, False, 0
        async for message in socket:
            event = json.loads(message)
            received.append(event)
            if event["type"] != "input_audio_buffer.append":
                continue
            pcm = np.frombuffer(base64.b64decode(event["audio"]), dtype="<i2")
            is_loud = bool(np.abs(pcm).max() > 300)
            quiet = 0 if is_loud else quiet + pcm.size
            is_open = is_open or is_loud
            if is_open and quiet >= RATE_HZ // 5:
                is_open, turns = False, turns + 1
                await answer(socket, turns)

    async def main() -> CallResult:
        async with serve(listen, "127.0.0.1", 0, compression=None) as fake:
            port = next(iter(fake.sockets)).getsockname()[1]
            return await Caller(f"ws://127.0.0.1:{port}", "secret").call(recordings, first_pause_s=0.05)

    return run_async(main(), timeout_s=120.0), received


def test_turns_are_measured_and_kept_with_what_was_said_heard_and_answered() -> None:
    result, received = place_call(reply, [RECORDING, RECORDING])
    assert received[0]["type"] == "session.update"
    assert result.errors == [] and len(result.turns) == 2
    for number, turn in enumerate(result.turns, start=1):
        assert (turn.said, turn.heard, turn.reply) == ("a mocha", "a mocha", "Sure. What size?")
        assert turn.voice_to_voice_s is not None and turn.voice_to_voice_s > 0.1, (
            "the server waits for 0.2 s of silence"
        )
        assert turn.timeline == {"turn": number}
        assert turn.underruns_s == [] and not turn.cut_off
    assert result.turns[1].speech_end_s > result.turns[0].speech_end_s + 0.4


def test_a_gap_inside_a_reply_is_an_underrun() -> None:
    async def haltingly(socket: ServerConnection, number: int) -> None:
        await send(socket, "response.created", response={"id": "r"})
        await send(socket, "response.output_audio.delta", response_id="r", delta=audio(TONE[:240]))
        for _ in range(10):  # 0.2 s of the caller's microphone: 10 ms of audio have long been played
            await socket.recv()
        await send(socket, "response.output_audio.delta", response_id="r", delta=audio(TONE))
        await send(socket, "response.done", response={"id": "r"})
        await send(socket, "voiceagent.turn.timeline", timeline={})

    result, _ = place_call(haltingly, [RECORDING])
    (gap,) = result.turns[0].underruns_s
    assert gap > 0.05


def test_an_error_event_is_kept() -> None:
    async def complain_and_reply(socket: ServerConnection, number: int) -> None:
        await send(socket, "error", error={"message": "what a noise"})
        await reply(socket, number)

    result, _ = place_call(complain_and_reply, [RECORDING])
    assert result.errors == ["what a noise"]
    assert result.turns[0].voice_to_voice_s is not None


def test_a_server_that_hangs_up_ends_the_call() -> None:
    async def hang_up(socket: ServerConnection, number: int) -> None:
        await socket.close(1011, "internal error")

    result, _ = place_call(hang_up, [RECORDING] * 5)
    assert result.errors == ["the server closed the call: 1011 internal error"]
    assert len(result.turns) == 1 and result.turns[0].voice_to_voice_s is None


def test_recordings_are_those_of_the_kind_with_a_known_end(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", TONE, 16_000)
    lines = [
        {"path": "a.flac", "kind": "order", "text": "a mocha", "speech_start_s": 0.1, "speech_end_s": 0.2},
        {"path": "a.flac", "kind": "order", "text": "unknown end"},
        {"path": "a.flac", "kind": "room", "text": "", "speech_start_s": 0.0, "speech_end_s": 0.0},
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (found,) = load_recordings(tmp_path, ["order"])
    assert (found.text, found.speech_end_s) == ("a mocha", 0.2)
    assert found.samples.size == pytest.approx(TONE.size * RATE_HZ / 16_000, abs=2)
    with pytest.raises(ValueError, match="no recording of kind telephone"):
        load_recordings(tmp_path, ["telephone"])

"""Callers that vanish, misbehave or come all at once, and a server that is told to stop: the real server, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from examples.realtime_caller import FRAME_S, RATE_HZ, Caller, CallResult, Recording, load_recordings
from tests.conftest import DATA, run_async
from tests.e2e.processes import ROOT, STOP_TIMEOUT_S, ServerProcess, running_server
from voiceagent.backends import Samples

Event = dict[str, Any]

PATIENCE_S = 120.0
"""Against a hang, not a measurement: a condition that has not come true after this long never will."""
CALLERS = 8
ROUNDS = 3
"""A machine that does something else at the moment makes gaps of its own: one round without any is the proof."""
HAS_PROC = Path("/proc/self/task").is_dir()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server() as started:
        yield started


@pytest.fixture(scope="module")
def orders() -> list[Recording]:
    """Eight spoken orders with little silence around them."""
    found = sorted(load_recordings(DATA, ["order"]), key=lambda order: order.speech_end_s - order.speech_start_s)
    return [_trimmed(order) for order in found[:CALLERS]]


def _trimmed(order: Recording) -> Recording:
    start_s = max(order.speech_start_s - 0.2, 0.0)
    samples = order.samples[round(start_s * RATE_HZ) : round((order.speech_end_s + 0.2) * RATE_HZ)]
    return replace(
        order,
        samples=samples,
        speech_start_s=order.speech_start_s - start_s,
        speech_end_s=order.speech_end_s - start_s,
    )


# --- a client that can misbehave --------------------------------------------------------------------------------------


class Client:
    """A raw client of the protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.seen: list[Event] = []

    async def send(self, kind: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"type": kind, **fields}))

    async def until(self, kind: str) -> Event:
        """Read on to the next event of this kind."""
        while True:
            event: Event = json.loads(await self.connection.recv())
            self.seen.append(event)
            assert event["type"] != "error", event
            if event["type"] == kind:
                return event

    async def ask(self, text: str = "can i get a large mocha with oat milk") -> None:
        content = [{"type": "input_text", "text": text}]
        await self.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        await self.send("response.create")

    async def speak(self, samples: Samples) -> None:
        """Send 24 kHz audio in real time."""
        frame = round(RATE_HZ * FRAME_S)
        pcm = (np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2")
        for start in range(0, pcm.size, frame):
            audio = base64.b64encode(pcm[start : start + frame].tobytes()).decode("ascii")
            await self.send("input_audio_buffer.append", audio=audio)
            await asyncio.sleep(FRAME_S)

    def vanish(self) -> None:
        """End the TCP connection with a reset: no goodbye, as when a phone loses its network."""
        sock = self.connection.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.transport.abort()

    def audio_s(self) -> float:
        deltas = [event["delta"] for event in self.seen if event["type"] == "response.output_audio.delta"]
        return sum(len(base64.b64decode(delta)) for delta in deltas) / 2 / RATE_HZ


@asynccontextmanager
async def calling(server: ServerProcess) -> AsyncIterator[Client]:
    address = server.url.replace("http", "ws", 1) + "/v1/realtime?model=voiceagent&extensions=1"
    async with connect(address, max_size=None, compression=None, open_timeout=PATIENCE_S, close_timeout=5.0) as socket:
        client = Client(socket)
        await client.until("session.created")
        yield client


async def full_answer(server: ServerProcess) -> Event:
    """A caller who behaves, and gets a whole spoken reply."""
    async with calling(server) as client:
        await client.ask()
        done = await client.until("response.done")
    response: Event = done["response"]
    assert response["status"] == "completed", response
    assert client.audio_s() > 0.5
    return response


# --- what can be seen of the server from outside ----------------------------------------------------------------------


def ready(server: ServerProcess) -> Event:
    with urllib.request.urlopen(f"{server.url}/readyz", timeout=PATIENCE_S) as answer:
        body: Event = json.load(answer)
    return body


def family(pid: int) -> list[int]:
    """The process and its children, and theirs."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def threads(pid: int) -> int:
    return sum(len(list(Path(f"/proc/{member}/task").iterdir())) for member in family(pid))


def cpu_s(pid: int) -> float:
    """Processor time that the process and its children have used."""
    total = 0
    for member in family(pid):
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


async def come_true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await asyncio.to_thread(condition):
                return
            await asyncio.sleep(0.05)


def is_at_rest(server: ServerProcess) -> bool:
    """Whether nothing works in the server: it takes next to none of the processor for a moment."""
    before, began = cpu_s(server.process.pid), time.monotonic()
    time.sleep(0.4)
    return cpu_s(server.process.pid) - before <= 0.05 * (time.monotonic() - began)


async def nothing_is_left(server: ServerProcess) -> None:
    await come_true(lambda: ready(server)["sessions"] == 0)
    if HAS_PROC:
        await come_true(lambda: is_at_rest(server))


# --- callers that vanish ----------------------------------------------------------------------------------------------


async def _mid_turn(client: Client, order: Recording) -> None:
    speaking = asyncio.create_task(client.speak(order.samples))
    await client.until("input_audio_buffer.speech_started")
    client.vanish()
    await asyncio.gather(speaking, return_exceptions=True)


async def _mid_recognition(client: Client, order: Recording) -> None:
    speaking = asyncio.create_task(client.speak(np.concatenate([order.samples, np.zeros(RATE_HZ, np.float32)])))
    await client.until("input_audio_buffer.committed")
    client.vanish()
    await asyncio.gather(speaking, return_exceptions=True)


async def _mid_denoise(client: Client, order: Recording) -> None:
    await client.ask(order.text)
    await client.until("voiceagent.response.step")
    client.vanish()


async def _mid_audio(client: Client, order: Recording) -> None:
    await client.ask(order.text)
    await client.until("response.output_audio.delta")
    client.vanish()


def test_a_caller_who_vanishes_leaves_nothing_running(server: ServerProcess, orders: list[Recording]) -> None:
    async def main() -> None:
        await full_answer(server)
        await nothing_is_left(server)
        before = (len(family(server.process.pid)), threads(server.process.pid)) if HAS_PROC else (0, 0)
        for vanish in (_mid_turn, _mid_recognition, _mid_denoise, _mid_audio) * 2:
            async with calling(server) as client:
                await vanish(client, orders[0])
            await nothing_is_left(server)
        await full_answer(server)
        await nothing_is_left(server)
        if HAS_PROC:
            # The event loop's pool of threads for blocking calls may still fill up to its fixed size.
            assert len(family(server.process.pid)) == before[0]
            assert threads(server.process.pid) <= before[1] + 2

    run_async(main(), timeout_s=4 * PATIENCE_S)


def test_the_start_says_which_parts_were_chosen_and_why(server: ServerProcess) -> None:
    for part in ("VAD", "ASR", "LLM", "TTS", "ENDPOINT"):
        (line,) = [line for line in server.lines if line.startswith(f"{part}: ")]
        assert "(" in line and line.rstrip().endswith(")")
    assert [part["part"] for part in ready(server)["parts"]] == ["vad", "asr", "llm", "tts", "endpoint"]


# --- callers that misbehave -------------------------------------------------------------------------------------------


async def _garbage(client: Client) -> None:
    for _ in range(10):
        await client.connection.send("{not json")
    with pytest.raises(ConnectionClosed):
        while True:
            await client.connection.recv()
    assert client.connection.close_code == 1007


async def _bytes(client: Client) -> None:
    await client.connection.send(b"\x00\xff" * 500)
    with pytest.raises(ConnectionClosed):
        while True:
            await client.connection.recv()
    assert client.connection.close_code == 1003


async def _too_much(client: Client) -> None:
    with pytest.raises(ConnectionClosed):
        await client.send("input_audio_buffer.append", audio="A" * (25 * 1024 * 1024))
        while True:
            await client.connection.recv()
    assert client.connection.close_code == 1009


async def _deaf(client: Client) -> None:
    """Asks and never reads: TCP itself is stopped, so that the server's buffers fill."""
    client.connection.transport.pause_reading()  # type: ignore[attr-defined]
    for number in range(20):
        await client.ask(f"i'd like {number} large mochas")
    client.vanish()


def test_what_one_caller_does_wrong_is_not_heard_by_another(server: ServerProcess) -> None:
    async def main() -> None:
        async with calling(server) as good:
            for wrong in (_garbage, _bytes, _too_much, _deaf):
                async with calling(server) as bad:
                    await good.ask()
                    await good.until("response.created")
                    await wrong(bad)
                done = await good.until("response.done")
                assert done["response"]["status"] == "completed", wrong.__name__
                assert good.audio_s() > 0.5
                good.seen.clear()
        await nothing_is_left(server)

    run_async(main(), timeout_s=4 * PATIENCE_S)


# --- many callers -----------------------------------------------------------------------------------------------------


def test_eight_callers_at_once_are_all_answered_without_a_gap(server: ServerProcess, orders: list[Recording]) -> None:
    address = server.url.replace("http", "ws", 1) + "/v1/realtime?model=voiceagent&extensions=1"

    async def line(index: int) -> CallResult:
        await asyncio.sleep(0.5 * index)
        return await Caller(address, answer_limit_s=PATIENCE_S).call([orders[index]])

    async def main() -> list[CallResult]:
        results = await asyncio.gather(*map(line, range(CALLERS)))
        await nothing_is_left(server)
        return results

    gaps: list[list[float]] = []
    for _ in range(ROUNDS):
        results = run_async(main(), timeout_s=2 * PATIENCE_S)
        for result in results:
            (turn,) = result.turns
            assert result.errors == []
            assert turn.voice_to_voice_s is not None and turn.reply.strip(), turn
        gaps.append([gap for result in results for gap in result.turns[0].underruns_s])
        if gaps[-1] == []:
            return
    pytest.fail(f"gaps inside replies, in seconds, in each of {ROUNDS} rounds: {gaps}")


# --- the server stops -------------------------------------------------------------------------------------------------


def test_a_server_told_to_stop_finishes_what_it_is_saying() -> None:
    """Also the proof that the other preset starts."""

    async def main(server: ServerProcess) -> tuple[Client, Event]:
        assert ready(server)["agent"]["name"] == "assistant"
        async with calling(server) as client:
            await client.ask("what can you tell me about coffee")
            await client.until("response.output_audio.delta")
            server.process.send_signal(signal.SIGTERM)
            done = await client.until("response.done")
            with pytest.raises(ConnectionClosed):
                while True:
                    client.seen.append(json.loads(await client.connection.recv()))
        return client, done["response"]

    with running_server("--preset", "open") as server:
        workers = family(server.process.pid)[1:] if HAS_PROC else []
        client, response = run_async(main(server), timeout_s=2 * PATIENCE_S)
        assert server.process.wait(STOP_TIMEOUT_S) == 0, "".join(server.lines)
    assert response["status"] == "completed"
    assert client.audio_s() > 0.5
    assert client.connection.close_code == 1001
    assert workers or not HAS_PROC
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
    assert "Traceback" not in "".join(server.lines)


def test_an_open_door_without_a_key_is_refused_before_anything_is_loaded() -> None:
    places = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "pipelines")]
    program = (
        "import sys; from voice_pipelines.cli import main; code = main(sys.argv[1:]);"
        "print('torch' in sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "run", "--host", "0.0.0.0", "--port", "0"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 2
    assert "server.host = '0.0.0.0'" in done.stderr and "api_key" in done.stderr
    assert done.stdout == "False\n", "no model library was even imported"

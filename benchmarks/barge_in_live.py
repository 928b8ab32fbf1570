"""The same as `barge_in.py`, live: a client on the websocket of a running server that talks over its answer in real time.

    python benchmarks/barge_in_live.py --data SPEECH --save benchmarks/results/barge-in-live.json
    python benchmarks/barge_in_live.py --data SPEECH --url ws://127.0.0.1:8000/v1/realtime

Starts a server of its own unless `--url` names one, whose greeting must then be longer than `--at` and a few seconds: what is talked over is the
greeting. The microphone sends 40 ms at a time, as the page does, and never stops; the loudspeaker is that of `barge_in.py` (`loudspeaker.py`), and what is read is its
waveform. Client and server share the machine, so nothing else may run there; there is no network between them. Takes about 5 s a case.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from barge_in import AGENT, MESSAGE_S, Outcome, summary, table
from interjections import Case, coughs, keyboards, recorded, spoken
from loudspeaker import STEP_S, Loudspeaker, held_for, read_waveform, turned_after
from websockets.asyncio.client import ClientConnection, connect

from voiceagent.backends import INPUT_RATE_HZ, Samples

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from machine import describe  # noqa: E402
from server_process import server  # noqa: E402

RATE_HZ = 24_000
"""On the wire."""
HUMS = ("mhm.", "right.", "okay.", "um-hum.", "got it.", "I see.")
SHORT = ("stop.", "wait.")
OPENED_S = 10.0
"""A server that has not spoken by then does not greet."""
AFTER_S = 1.6
"""After the sound: what is late shows."""


class Client:
    """One call: a microphone, a loudspeaker that obeys, and what happened."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.speaker = Loudspeaker()
        self.events: list[tuple[float, str]] = []
        self.is_speaking = False
        self.stopped_at: float | None = None

    async def send(self, kind: str, **fields: Any) -> None:
        await self._socket.send(json.dumps({"type": kind, **fields}))

    async def say(self, heard: Samples) -> None:
        """The microphone's next audio, at 24 kHz."""
        pcm = np.rint(np.clip(heard, -1, 1) * 32_767).astype("<i2").tobytes()
        await self.send("input_audio_buffer.append", audio=base64.b64encode(pcm).decode("ascii"))

    async def listen(self) -> None:
        async for message in self._socket:
            event, now = json.loads(message), time.monotonic()
            match event["type"]:
                case "response.output_audio.delta":
                    pcm = np.frombuffer(base64.b64decode(event["delta"]), dtype="<i2")
                    if self.stopped_at is None:
                        self.is_speaking = True
                        self.speaker.push((pcm / 32_768).astype(np.float32), RATE_HZ, now)
                case "voiceagent.playback.ducked":
                    is_muted = event["gain_db"] <= -100
                    self.events.append((now, "muted" if is_muted else "ducked"))
                    self.speaker.turn(10 ** (event["gain_db"] / 20), Loudspeaker.FADE_S)
                case "voiceagent.playback.restored":
                    self.events.append((now, f"restored ({event['reason']})"))
                    self.speaker.turn(1.0, Loudspeaker.RISE_S)
                case "input_audio_buffer.speech_started":
                    self.events.append((now, "stopped"))
                    self.speaker.flush()
                    self.stopped_at = self.stopped_at or now
                case "error":
                    raise RuntimeError(f"the server says: {event['error']['message']}")
                case _:
                    pass


async def run_case(url: str, case: Case, at_s: float, seed: int) -> Outcome:
    """`case` happens `at_s` after the agent is first heard.

    Raises:
        RuntimeError: If the agent says nothing, or has ended before the sound does.
    """
    async with connect(url, max_size=None, compression=None) as socket:
        client = Client(socket)
        listening = asyncio.create_task(client.listen())
        try:
            audio = {"format": {"type": "audio/pcm", "rate": RATE_HZ}}
            session = {
                "type": "realtime",
                "voiceagent": {"events": True},
                "audio": {"input": audio, "output": audio},
            }
            await client.send("session.update", session=session)
            await client.send("voiceagent.greet")
            return await _talk_over(client, listening, case, at_s, np.random.default_rng(seed))
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def _talk_over(
    client: Client, listening: asyncio.Task[None], case: Case, at_s: float, generator: np.random.Generator
) -> Outcome:
    sound = soxr.resample(case.sound, INPUT_RATE_HZ, RATE_HZ).astype(np.float32)
    step, steps_a_message = round(STEP_S * RATE_HZ), round(MESSAGE_S / STEP_S)
    began, number = time.monotonic(), 0
    begins, onset = None, 0.0
    waiting: list[Samples] = []
    while True:
        now = time.monotonic()
        if listening.done():
            listening.result()
            raise RuntimeError("the server closed the call")
        played = client.speaker.render(now)
        if begins is None and client.is_speaking and np.abs(played).max() > 0.003:
            onset = number * STEP_S + at_s
            begins = round((onset - case.onset_s) / STEP_S)
        heard = (10 ** (-66 / 20) * generator.standard_normal(step)).astype(np.float32)
        if begins is not None and number >= begins:
            piece = sound[(number - begins) * step : (number - begins + 1) * step]
            heard[: piece.size] += piece
        elif begins is None and number * STEP_S > OPENED_S:
            raise RuntimeError(f"{case.name}: the agent said nothing within {OPENED_S:g} s")
        number += 1
        waiting.append(heard)
        # A frame can leave a microphone only when its last sample was spoken.
        await asyncio.sleep(max(began + number * STEP_S - time.monotonic(), 0.0))
        if len(waiting) == steps_a_message:
            await client.say(np.concatenate(waiting))
            waiting.clear()
        is_over = begins is not None and number * STEP_S > onset + sound.size / RATE_HZ + AFTER_S
        if is_over or (client.stopped_at is not None and time.monotonic() > client.stopped_at + 0.5):
            break
    ideal = np.concatenate(client.speaker.undisturbed)
    if not np.abs(ideal[round(onset * INPUT_RATE_HZ) :][: INPUT_RATE_HZ // 2]).max(initial=0.0) > 0.003:
        raise RuntimeError(f"{case.name}: the agent had finished by then; its greeting is too short")
    ducked, silent, restored = read_waveform(np.concatenate(client.speaker.played), ideal, onset)
    events = [f"{kind} {at - began - onset:+.2f}" for at, kind in client.events]
    turned = turned_after(client.speaker, onset)
    held = held_for(client.speaker)
    return Outcome(case.kind, case.name, round(onset, 3), ducked, turned, silent, restored, held, events)


async def cases(folder: Path, seed: int) -> list[Case]:
    """About three minutes of them."""
    made = [
        *(await spoken(SHORT, "one or two words", interrupts=True))[:4],
        *(await spoken(HUMS, "backchannel", interrupts=False))[:18],
    ]
    return [
        *list(recorded(folder, ("order",), 9, "order, recorded"))[:10],
        *recorded(folder, ("command",), 2, "command, recorded"),
        *made,
        *coughs(3, seed),
        *keyboards(2, seed),
    ]


async def measure(url: str, options: argparse.Namespace) -> dict[str, object]:
    generator = np.random.default_rng(options.seed)
    chosen = [each for each in await cases(options.data, options.seed) if not options.only or each.kind in options.only]
    outcomes = []
    for number, case in enumerate(chosen[: options.limit]):
        outcome = await run_case(url, case, float(generator.uniform(*options.at)), options.seed + number)
        print(f"{case.kind}: {case.name}: {', '.join(outcome.events) or 'nothing'}", flush=True)
        outcomes.append(outcome)
    rows = []
    for kind in dict.fromkeys(each.kind for each in outcomes):
        pairs = [pair for pair in zip(outcomes, chosen, strict=False) if pair[0].kind == kind]
        rows.append(summary(kind, [outcome for outcome, _ in pairs], [case for _, case in pairs]))
    print("\n" + table(rows))
    log = [[o.kind, o.name, o.at_s, o.ducked_s, o.turned_s, o.silent_s, o.restored_s, o.held_s] for o in outcomes]
    return {"machine": describe(), "message_ms": 1000 * MESSAGE_S, "rows": rows, "outcomes": log}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "tests" / "data", help="folder with manifest.jsonl")
    parser.add_argument("--url", help="of a server that runs; without it one is started")
    parser.add_argument("--at", type=float, nargs=2, default=(1.0, 3.0), metavar="S", help="into the greeting")
    parser.add_argument("--only", nargs="+", help="only these kinds of cases")
    parser.add_argument("--limit", type=int, help="so many cases at most")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--save", type=Path, help="write the results here, as JSON")
    options = parser.parse_args()
    if options.url is not None:
        result = asyncio.run(measure(options.url, options))
    else:
        with server(["--set", f"agent.greeting={AGENT}"]) as (url, _, _):
            result = asyncio.run(measure(url, options))
    if options.save is not None:
        options.save.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

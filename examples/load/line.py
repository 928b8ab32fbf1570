"""The callers of a load test on their websockets: Twilio's dialect, one message of 20 ms after the other, each when it was spoken.

All lines of a process share one event loop and nothing else. Messages are made of text that is prepared beforehand and parsed only as far as
needed, so that the generator stays far cheaper than the server that it measures.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from .phone import MESSAGE_S, HeardTurn, Phone, Speech
from .schedule import Manners, begins_at_s, turns_of

OPEN_TIMEOUT_S = 20.0
TRY_AGAIN_LATER = 1013
"""Close code of a server that is full (IANA's registry of websocket close codes)."""


@dataclass(slots=True)
class Call:
    """One caller's whole call. Times of `turns` are seconds of the machine's monotonic clock."""

    caller: int
    turns: list[HeardTurn] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    """How late each message left: the generator's own delay, which the server is not to blame for."""
    error: str | None = None
    refused: str | None = None
    """Why the server would not serve one more; that is its right, and no error."""


async def call(url: str, caller: int, phone: Phone, begins: float, ends: float) -> Call:
    """Call from `begins` to `ends`, readings of the monotonic clock. A lost call says so in `error`, one that was turned away in `refused`."""
    result = Call(caller, phone.turns)
    await asyncio.sleep(max(begins - time.monotonic(), 0.0))
    try:
        async with connect(
            url, compression=None, max_size=None, max_queue=None, open_timeout=OPEN_TIMEOUT_S, ping_interval=None
        ) as socket:
            await _converse(socket, result, phone, ends)
    except InvalidStatus as refused:
        body = (refused.response.body or b"").decode("utf-8", "replace")
        told = f"HTTP {refused.response.status_code}: {body[:200]}"
        if refused.response.status_code == 503:
            result.refused = told
        else:
            result.error = told
    except ConnectionClosed as closed:
        frame = closed.rcvd
        _ended_by_server(result, None if frame is None else frame.code, str(closed) if frame is None else frame.reason)
    except (OSError, TimeoutError) as error:
        result.error = f"{type(error).__name__}: {error}"
    return result


async def _converse(socket: ClientConnection, result: Call, phone: Phone, ends: float) -> None:
    sid = f"MZ{result.caller:032d}"
    form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    start: dict[str, object] = {
        "streamSid": sid,
        "callSid": f"CA{result.caller:032d}",
        "accountSid": "AC0",
        "tracks": ["inbound"],
    }
    start |= {"customParameters": {}, "mediaFormat": form}
    await socket.send(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
    await socket.send(json.dumps({"event": "start", "sequenceNumber": "1", "start": start, "streamSid": sid}))
    reader = asyncio.create_task(_listen(socket, phone))
    try:
        begun = time.monotonic()
        spoken = 0
        while (now := time.monotonic()) < ends:
            due = begun + (spoken + 1) * MESSAGE_S
            if now < due:
                await asyncio.sleep(due - now)
            result.late_s.append(time.monotonic() - due)
            payload = phone.message(due)
            spoken += 1
            await socket.send(
                f'{{"event":"media","sequenceNumber":"{spoken + 1}","media":{{"track":"inbound","chunk":"{spoken}",'
                f'"timestamp":"{(spoken - 1) * 20}","payload":"{payload}"}},"streamSid":"{sid}"}}'
            )
            for name in phone.marks_due(due):
                await socket.send(json.dumps({"event": "mark", "streamSid": sid, "mark": {"name": name}}))
            if reader.done():
                break
        await socket.send(json.dumps({"event": "stop", "streamSid": sid, "stop": {"callSid": start["callSid"]}}))
    finally:
        reader.cancel()
        ended = await asyncio.gather(reader, return_exceptions=True)
    if time.monotonic() < ends:
        _ended_by_server(result, socket.close_code, f"{socket.close_reason} {ended[0] or ''}".strip())


def _ended_by_server(result: Call, code: int | None, reason: str) -> None:
    if code == TRY_AGAIN_LATER:
        result.refused = reason
    else:
        result.error = f"the server ended the call: {code} {reason}"


async def _listen(socket: ClientConnection, phone: Phone) -> None:
    async for text in socket:
        now = time.monotonic()
        message = json.loads(text)
        match message["event"]:
            case "media":
                phone.heard(base64.b64decode(message["media"]["payload"]), now)
            case "mark":
                phone.mark(message["mark"]["name"], now)
            case "clear":
                phone.clear(now)
            case _:
                pass


async def call_all(
    url: str,
    callers: int,
    speeches: Sequence[Speech],
    *,
    seed: int,
    manners: Manners,
    begins: float,
    ends: float,
    reply_s: float | None,
) -> list[Call]:
    """All callers of one round, each on a line of its own."""

    def phone(caller: int, opens: float) -> Phone:
        turns = turns_of(caller, len(speeches), seed, manners)
        return Phone(tuple(speeches), turns, opens, reply_s=reply_s)

    openings = [begins + begins_at_s(caller, callers, seed, manners) for caller in range(callers)]
    return list(
        await asyncio.gather(
            *(call(url, caller, phone(caller, opens), opens, ends) for caller, opens in enumerate(openings))
        )
    )

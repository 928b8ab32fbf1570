"""What the tests of the Realtime door share: strict validation of events, a runtime of instant models, an in-process client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from openai.types.realtime.realtime_server_event import RealtimeServerEvent
from pydantic import BaseModel

from tests.voiceagent.standins import LevelDetector, ScriptedDrafter, ScriptedTranscriber, ToneSynthesizer
from voiceagent.agent import AgentProfile
from voiceagent.backends import BackendInfo, Backends
from voiceagent.budget import BudgetController
from voiceagent.clock import Clock
from voiceagent.conversation import Conversation
from voiceagent.events import ConversationEvent
from voiceagent.session import SessionSettings

Event = dict[str, Any]

MODELS: dict[str, type[BaseModel]] = {
    kind: model
    for model in get_args(get_args(RealtimeServerEvent)[0])
    for kind in get_args(model.model_fields["type"].annotation)
}
"""The openai package's typed model of each server event."""


def check_event(event: Event) -> None:
    """Fail unless the strictest known clients accept `event`: the openai package's models, and zod's idea of null."""
    assert isinstance(event["event_id"], str) and event["event_id"]
    json.dumps(event, allow_nan=False)
    if event["type"].startswith("voiceagent."):
        return
    MODELS[event["type"]].model_validate(event, strict=True)
    items = [event.get("item"), *event.get("response", {}).get("output", [])]
    for item in filter(None, items):
        assert item["object"] == "realtime.item"
        assert item["status"] in ("in_progress", "completed", "incomplete")
        assert None not in item.values(), f"null in {item}"
        for part in item.get("content", ()):
            if part["type"] == "input_audio":
                assert "transcript" in part, "agents-realtime throws without the key"
            else:
                assert None not in part.values(), f"null in {part}"
    assert None not in event.get("part", {}).values()


def check_events(events: Iterable[Event]) -> None:
    """`check_event` for all, and the promises about order within and between responses."""
    ids: set[str] = set()
    open_parts: set[tuple[str, int]] = set()
    done: set[str] = set()
    for event in events:
        check_event(event)
        assert event["event_id"] not in ids, "event ids are unique"
        ids.add(event["event_id"])
        response_id = event.get("response_id") or event.get("response", {}).get("id")
        if event["type"].startswith("response."):
            assert response_id not in done, f"{event['type']} after response.done"
        locator = (event.get("item_id", ""), event.get("content_index", 0))
        match event["type"]:
            case "response.content_part.added":
                open_parts.add(locator)
            case "response.content_part.done":
                open_parts.remove(locator)
            case "response.done":
                done.add(str(response_id))
            case kind if kind.startswith("response.output_") and kind.endswith(".delta"):
                assert locator in open_parts, f"{kind} outside its content part"


# --- a runtime --------------------------------------------------------------------------------------------------------


@dataclass
class StandinRuntime:
    """Real conversations over instant models. `wrap` may put something between a conversation and its connection."""

    clock: Clock
    llm: ScriptedDrafter
    asr: ScriptedTranscriber = field(default_factory=ScriptedTranscriber)
    tts: ToneSynthesizer = field(default_factory=ToneSynthesizer)
    ready: bool = True
    full: str | None = None
    default_settings: SessionSettings = field(default_factory=lambda: SessionSettings(instructions="You take orders."))
    agent: AgentProfile = field(default_factory=lambda: AgentProfile("café", "You take orders.", "Welcome."))
    wrap: Callable[[Conversation], Any] = lambda conversation: conversation
    conversations: list[Conversation] = field(default_factory=list)

    @property
    def infos(self) -> Sequence[BackendInfo]:
        return (LevelDetector.info, self.asr.info, self.llm.info, self.tts.info)

    @property
    def fullness(self) -> Mapping[str, float]:
        return {"processors": 0.25}

    def unready(self) -> str | None:
        return self.full

    def open_conversation(self, emit: Callable[[ConversationEvent], None], settings: SessionSettings) -> Any:
        conversation = Conversation(
            backends=Backends(LevelDetector(), self.asr, self.llm, self.tts),
            agent=self.agent,
            settings=settings,
            clock=self.clock,
            emit=emit,
            budget=BudgetController(),
        )
        self.conversations.append(conversation)
        return self.wrap(conversation)


# --- an in-process client ---------------------------------------------------------------------------------------------


class Refused(Exception):
    """The handshake was answered with an HTTP error."""

    def __init__(self, status: int, headers: dict[str, str], body: Event) -> None:
        super().__init__(f"{status} {body}")
        self.status, self.headers, self.body = status, headers, body


class Closed(Exception):
    """The server closed the websocket."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code, self.reason = code, reason


ClientT = TypeVar("ClientT", bound="AsgiClient")


class AsgiClient:
    """A websocket client that talks ASGI to the application. While `reads` is false the server's sends block."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.subprotocol: str | None = None
        self.reads = asyncio.Event()
        self.reads.set()
        self.close_now: tuple[int, str] | None = None
        self._to_server: asyncio.Queue[Event] = asyncio.Queue()
        self._from_server: asyncio.Queue[Event] = asyncio.Queue()
        self._seen = 0

    async def send(self, kind: str, **fields: Any) -> None:
        await self.send_text(json.dumps({"type": kind, **fields}))

    async def send_text(self, text: str) -> None:
        await self._to_server.put({"type": "websocket.receive", "text": text})

    async def send_bytes(self, data: bytes) -> None:
        await self._to_server.put({"type": "websocket.receive", "bytes": data})

    async def vanish(self) -> None:
        await self._to_server.put({"type": "websocket.disconnect", "code": 1006})

    async def next(self) -> Event:
        """The next server event; each is validated as it comes."""
        event = self.take(await self._from_server.get())
        check_event(event)
        return event

    def take(self, message: Event) -> Event:
        """The event in what the server sent, which is kept; `Closed` when it closed the websocket."""
        if message["type"] == "websocket.close":
            raise Closed(message.get("code", 1000), message.get("reason", ""))
        event: Event = json.loads(message["text"])
        self.events.append(event)
        return event

    async def until(self, kind: str) -> Event:
        while (event := await self.next())["type"] != kind:
            pass
        return event

    async def closed(self) -> Closed:
        """Read to the end."""
        try:
            while True:
                await self.next()
        except Closed as closed:
            return closed

    def names(self) -> list[str]:
        return [event["type"] for event in self.events]

    async def _receive(self) -> Event:
        return await self._to_server.get()

    async def _send(self, message: Event) -> None:
        await self.reads.wait()
        await self._from_server.put(message)


@asynccontextmanager
async def connect(
    app: Any,
    query: str = "model=local",
    *,
    headers: dict[str, str] | None = None,
    subprotocols: Sequence[str] = (),
    path: str = "/v1/realtime",
) -> AsyncIterator[AsgiClient]:
    """A connected client; raises `Refused` when the handshake is. On leaving, the client vanishes and the server's task must end."""
    async with connect_as(AsgiClient(), app, query, headers=headers, subprotocols=subprotocols, path=path) as client:
        yield client


@asynccontextmanager
async def connect_as(
    client: ClientT,
    app: Any,
    query: str = "",
    *,
    headers: dict[str, str] | None = None,
    subprotocols: Sequence[str] = (),
    path: str,
) -> AsyncIterator[ClientT]:
    """`connect` for a client that has been made."""
    sent = {"host": "localhost:8080", **(headers or {})}

    def close_now(code: int, reason: str) -> None:
        client.close_now = (code, reason)
        client._from_server.put_nowait({"type": "websocket.close", "code": code, "reason": reason})

    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items()],
        "subprotocols": list(subprotocols),
        "client": ("127.0.0.1", 5000),
        "server": ("127.0.0.1", 8080),
        "extensions": {"websocket.http.response": {}, "voiceagent.close_now": close_now},
    }
    await client._to_server.put({"type": "websocket.connect"})
    serving = asyncio.create_task(app(scope, client._receive, client._send))
    try:
        first = await client._from_server.get()
        if first["type"] == "websocket.http.response.start":
            body = await client._from_server.get()
            found = {name.decode(): value.decode() for name, value in first["headers"]}
            raise Refused(first["status"], found, json.loads(body["body"]))
        if first["type"] == "websocket.close":
            raise Refused(403, {}, {})
        client.subprotocol = first.get("subprotocol")
        yield client
    finally:
        client.reads.set()
        await client.vanish()
        await serving

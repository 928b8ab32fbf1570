"""From a parsed request to its answer: prompt, drafts, events, JSON."""

from __future__ import annotations

import asyncio
import math
import random
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from starlette.responses import JSONResponse, Response

from dllm.calls import Tool
from dllm.codec import Codec
from dllm.deciding import decider_of
from dllm.drafts import DraftSpec
from dllm.reply import CanvasShown, Delta, Reply
from dllm.runner import DraftStream, EngineRunner, SpecSource
from dllm.server import plans
from dllm.server.build import (
    DONE,
    Answer,
    ChatChoice,
    ChatChunks,
    TextChoice,
    TextChunks,
    chat_answer,
    sse,
    text_answer,
)
from dllm.server.conversations import Conversation, ConversationBook
from dllm.server.decided import DecidedCall, as_spoken, can_decide, is_answered
from dllm.server.grammars import Grammars
from dllm.server.jobs import merged
from dllm.server.meters import Cache, Meters, RequestMeter
from dllm.server.native_calls import CallCodec, CallReader
from dllm.server.plans import Room
from dllm.server.problems import ApiError, too_many
from dllm.server.requests import ChatRequest, CompletionRequest, Decoding, ToolMode
from dllm.server.settings import ServerSettings
from dllm.server.tools import Piece, Reader, ToolReader
from dllm.server.workbench import Workbench
from dllm.spec import ModelSpec
from dllm.text import DialogueCodec

Result: TypeAlias = dict[str, Any] | AsyncGenerator[bytes, None]
"""A whole answer, or the chunks of a stream whose first one is there already."""
Deltas: TypeAlias = AsyncGenerator[tuple[int, list[Delta]], None]


@dataclass(frozen=True, slots=True)
class _Ask:
    """One draft to be written, and how its text is read."""

    spec: DraftSpec
    reply: Reply
    source: SpecSource
    """What the engine is given: `spec`, or what is made of it on the engine's thread."""


class Service:
    """Answers requests with one engine. Its methods raise `ApiError` and the engine's errors."""

    def __init__(
        self,
        runner: EngineRunner[Any],
        codec: Codec,
        spec: ModelSpec,
        settings: ServerSettings,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self.spec, self._settings = spec, settings
        self._runner, self._codec, self._clock, self._wall_clock = runner, codec, clock, wall_clock
        self.meters = Meters(clock, settings.max_drafts, self._cache, lambda: self._grammars.works)
        self._decider = decider_of(runner.engine, codec)
        self._grammars = Workbench(Grammars(codec), tell=self.meters.grammars.add)
        runner.watch(self.meters.observe_round)
        # Requests without a name are kept apart: many of them must not drive the named ones out.
        self._named = ConversationBook(settings.max_conversations, settings.conversation_idle_s)
        self._nameless = ConversationBook(settings.max_conversations, settings.conversation_idle_s)
        self._active = 0

    def stop(self) -> None:
        """The server was told to stop: grammars on their way are given up, so that nobody waits for them; replies go on."""
        self._grammars.close()

    def _cache(self) -> Cache | None:
        cache = getattr(self._runner.engine, "cache", None)
        return None if cache is None else Cache(cache.size_bytes, cache.limit_bytes)

    def health(self) -> Response:
        """200 while drafts are taken, 503 with the reason otherwise: drafts in the engine, and those that a client waits for."""
        failure = self._runner.failure
        if failure is not None:
            return JSONResponse({"status": "failed", "reason": str(failure)}, 503)
        counts = {"drafts": self._runner.active, "awaited": self._active, "limit": self._settings.max_drafts}
        return JSONResponse({"status": "ok", **counts})

    # --- chat ---------------------------------------------------------------------------------------------------------

    async def chat(
        self, asked: ChatRequest, conversation: Conversation, meter: RequestMeter, kind: str = "chat.completion"
    ) -> Result:
        tools = () if asked.tool_mode == "none" else tuple(tool.body for tool in asked.tools)
        prompt = tuple(await asyncio.to_thread(self._codec.encode_chat, asked.messages, tools))
        room = plans.reply_room(self.spec, self._settings, len(prompt), asked.decoding.max_tokens)
        known = [Tool.from_json(tool) for tool in tools] if isinstance(self._codec, DialogueCodec) else []
        # The built-in model's own calls are decided where they can be. Otherwise it spells them where it may call, and the grammar where it must.
        is_decided = self._is_decided(asked, known)
        is_spelled = bool(known) and not is_decided and asked.tool_mode == "auto" and asked.grammar.is_free
        mode: ToolMode = "none" if is_decided and asked.tool_mode == "auto" else asked.tool_mode
        constraint = None
        if not is_spelled:
            constraint = await self._grammars.compile(
                asked.grammar, asked.tools, mode, asked.forced_tool, several=asked.parallel_calls
            )
        decided = None
        if is_decided:
            decided = await asyncio.to_thread(self._decided, asked, known, room, constraint)
        else:
            self._check_grammar(constraint, room)
        seed = self._seed(asked.decoding)
        asks = [
            self._ask(
                asked.decoding,
                prompt,
                conversation,
                room,
                seed + index,
                asked.streaming.diffusing,
                constraint,
                shows_calls=is_decided or is_spelled,
                decided=decided,
            )
            for index in range(asked.decoding.n)
        ]
        answer = self._answer("chatcmpl", seed, asked.warnings, wants_summary=asked.wants_summary)
        choices = [
            ChatChoice(index, ask.reply, asked.decoding.logprobs, asked.decoding.top_logprobs)
            for index, ask in enumerate(asks)
        ]
        names = [tool.name for tool in asked.tools] if tools else []
        readers: list[Reader] = [ToolReader(names, most=128 if asked.parallel_calls else 1) for _ in choices]
        if is_decided or is_spelled:
            readers = [CallReader(known, reader) for reader in readers]
        deltas = self._deltas(asks, conversation, meter)
        if asked.streaming.is_on:
            chunks = ChatChunks(answer, include_usage=asked.streaming.include_usage)
            return await _primed(_stream_chat(deltas, chunks, choices, readers, asked.streaming.include_usage))
        async with aclosing(deltas):
            async for index, told in deltas:
                for delta in told:
                    _take(choices[index], readers[index], delta)
        for choice, reader in zip(choices, readers, strict=True):
            choice.take(reader.flush())
        return chat_answer(answer, choices, kind)

    def _is_decided(self, asked: ChatRequest, tools: Sequence[Tool]) -> bool:
        """Whether it is decided, before the reply is written, if it is a call."""
        callable_tools = _callable(asked, tools)
        return self._decider is not None and bool(callable_tools) and can_decide(callable_tools)

    def _decided(self, asked: ChatRequest, tools: Sequence[Tool], room: Room, constraint: Any) -> DecidedCall:
        assert self._decider is not None and isinstance(self._codec, DialogueCodec)
        # What a tool has answered is told in words, unless there must be another call.
        may_call = asked.tool_mode == "required" or not is_answered(asked.messages)
        return DecidedCall(
            self._decider,
            self._codec.encode_chat(as_spoken(asked.messages), [tool.body for tool in asked.tools]),
            [message.text for message in asked.messages if message.role == "user"],
            _callable(asked, tools) if may_call else (),
            room,
            must_call=asked.tool_mode == "required",
            check=lambda: self._check_grammar(constraint, room),
        )

    # --- text ---------------------------------------------------------------------------------------------------------

    async def complete(self, asked: CompletionRequest, conversation: Conversation, meter: RequestMeter) -> Result:
        constraint = None
        if not asked.grammar.is_free:
            constraint = await self._grammars.compile(asked.grammar)
        seed = self._seed(asked.decoding)
        asks: list[_Ask] = []
        choices: list[TextChoice] = []
        for prompt in asked.prompts:
            tokens, echo = await asyncio.to_thread(self._prompt, prompt, echo=asked.echo)
            suffix = tuple(await asyncio.to_thread(self._codec.encode, asked.suffix)) if asked.suffix else ()
            wanted = asked.decoding.max_tokens
            if suffix:
                room = plans.infill_room(self.spec, self._settings, len(tokens), len(suffix), wanted)
            else:
                room = plans.reply_room(self.spec, self._settings, len(tokens), wanted)
            self._check_grammar(constraint, room)
            for number in range(asked.decoding.n):
                ask = self._ask(
                    asked.decoding,
                    tokens,
                    conversation,
                    room,
                    seed + number,
                    asked.streaming.diffusing,
                    constraint,
                    suffix,
                )
                asks.append(ask)
                choices.append(
                    TextChoice(
                        len(choices),
                        ask.reply,
                        echo,
                        asked.decoding.logprobs,
                        asked.decoding.top_logprobs,
                        told=len(echo),
                    )
                )
        answer = self._answer("cmpl", seed, asked.warnings)
        deltas = self._deltas(asks, conversation, meter)
        if asked.streaming.is_on:
            include = asked.streaming.include_usage
            chunks = TextChunks(answer, include_usage=include, prompts=len(asked.prompts))
            return await _primed(_stream_text(deltas, chunks, choices, include))
        async with aclosing(deltas):
            async for index, told in deltas:
                for delta in told:
                    if not isinstance(delta, CanvasShown):
                        choices[index].chances += delta.chances
        return text_answer(answer, choices, len(asked.prompts))

    def _prompt(self, prompt: str | tuple[int, ...], *, echo: bool) -> tuple[tuple[int, ...], str]:
        """A prompt's tokens, and its text if that is to be repeated."""
        if isinstance(prompt, str):
            tokens = tuple(self._codec.encode(prompt))
            text = prompt
        else:
            tokens = prompt
            beyond = [token for token in tokens if token >= self.spec.vocab_size]
            if beyond:
                raise ApiError(
                    400, f"prompt: expected token ids below {self.spec.vocab_size}, got {beyond[0]}", param="prompt"
                )
            text = self._codec.decode(tokens) if echo else ""
        if not tokens:
            tokens = self._empty_prompt()
        return tokens, text if echo else ""

    def _empty_prompt(self) -> tuple[int, ...]:
        """What stands before a text that nothing stands before."""
        special = self.spec.special
        first = special.bos if special.bos is not None else special.end
        return (first,)

    # --- both ---------------------------------------------------------------------------------------------------------

    def _ask(
        self,
        decoding: Decoding,
        prompt: tuple[int, ...],
        conversation: Conversation,
        room: Room,
        seed: int,
        shows_canvas: bool,
        constraint: Any,
        suffix: tuple[int, ...] = (),
        *,
        shows_calls: bool = False,
        decided: DecidedCall | None = None,
    ) -> _Ask:
        settings, codec = self._settings, self._codec
        options = plans.options(
            decoding, settings.options, self.spec.vocab_size, seed, is_constrained=constraint is not None
        )
        unpinned: int | None = None
        if shows_calls and isinstance(codec, DialogueCodec):
            unpinned = codec.special.call
            codec = CallCodec(codec)
        elif isinstance(codec, DialogueCodec) and constraint is None:
            # Nobody would see that it is a call: its words would be the reply.
            options = replace(options, logit_bias=(*options.logit_bias, (codec.special.call, -math.inf)))
        spec = DraftSpec(
            prompt,
            conversation.key,
            room.width,
            plans.plan(decoding, settings, room.width, self._clock()),
            tuple(self._codec.encode_pin(pin) for pin in decoding.pins),
            options,
            plans.given_suffix(suffix),
            constraint,
            unpinned=unpinned,
        )
        reply = Reply(
            codec,
            room.limit,
            decoding.stop,
            over_limit="stop" if suffix else "length",
            drops_space=self.spec.dialogue is not None and not suffix,
            shows_canvas=shows_canvas,
        )
        return _Ask(spec, reply, spec if decided is None else lambda: decided.draft(spec))

    @staticmethod
    def _check_grammar(constraint: Any, room: Room) -> None:
        if constraint is None:
            return
        shortest = constraint.shortest()
        if shortest > room.limit:
            raise ApiError(
                400,
                f"max_tokens: the shortest reply that the grammar allows has {shortest} tokens, the canvas has {room.limit}",
                param="max_tokens",
            )

    @staticmethod
    def _seed(decoding: Decoding) -> int:
        return random.getrandbits(31) if decoding.seed is None else decoding.seed

    def _answer(self, prefix: str, seed: int, warnings: tuple[str, ...], *, wants_summary: bool = False) -> Answer:
        name = f"{prefix}-{uuid.uuid4().hex[:24]}"
        return Answer(name, int(self._wall_clock()), self._settings.model, seed, warnings, wants_summary)

    async def _deltas(self, asks: Sequence[_Ask], conversation: Conversation, meter: RequestMeter) -> Deltas:
        """Submit the drafts and read their events; closing it cancels what is not finished.

        Raises:
            ApiError: 429 if that would be more drafts than are written at once, 400 if it would be even alone.
        """
        if len(asks) > self._settings.max_drafts:
            message = f"n: expected at most {self._settings.max_drafts} replies in one request, got {len(asks)}"
            raise ApiError(400, message, param="n")
        if self._active + len(asks) > self._settings.max_drafts:
            raise too_many(f"{self._settings.max_drafts} replies are being written at once at most", "drafts_full")
        self._active += len(asks)
        streams: list[DraftStream] = []
        drafts = {index: self.meters.draft(ask.spec.plan) for index, ask in enumerate(asks)}
        try:
            now = self._clock()
            book = self._named if conversation.is_named else self._nameless
            for dropped in book.touch(conversation.key, now):
                self._runner.forget(dropped)
            for ask in asks:
                streams.append(self._runner.submit(ask.source, expires=now + self._settings.timeout_s))
            async with aclosing(merged(streams)) as events:
                async for index, event in events:
                    reply = asks[index].reply
                    drafts[index].observe(event)
                    told = reply.feed(event)
                    if told:
                        meter.told()
                    if reply.reason is not None:
                        streams[index].cancel()
                        drafts.pop(index).finish(reply, streams[index].came)
                    yield index, told
        finally:
            self._active -= len(asks)
            for stream in streams:
                stream.cancel()
            for index, draft in drafts.items():
                draft.close(asks[index].reply)


def _callable(asked: ChatRequest, tools: Sequence[Tool]) -> list[Tool]:
    """Those of the tools that the reply may call."""
    return [tool for tool in tools if asked.forced_tool in (None, tool.name)]


async def _primed(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Wait for the first chunk, so that what goes wrong before it can be answered with a status."""
    first = await anext(chunks)

    async def all_of_them() -> AsyncGenerator[bytes, None]:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return all_of_them()


def _take(choice: ChatChoice, reader: Reader, delta: Delta) -> list[Piece]:
    """Note what a delta brought; the pieces of text and the calls in it."""
    if isinstance(delta, CanvasShown):
        return []
    pieces = reader.feed(delta.text)
    choice.take(pieces)
    choice.chances += delta.chances
    return pieces


async def _stream_chat(
    deltas: Deltas,
    chunks: ChatChunks,
    choices: Sequence[ChatChoice],
    readers: Sequence[Reader],
    include_usage: bool,
) -> AsyncGenerator[bytes, None]:
    opened: set[int] = set()
    async with aclosing(deltas):
        async for index, told in deltas:
            choice, reader = choices[index], readers[index]
            if index not in opened:
                opened.add(index)
                yield sse(chunks.opening(choice))
            for delta in told:
                if isinstance(delta, CanvasShown):
                    yield _frame(chunks, choice, reader, delta)
                    continue
                for chunk in chunks.text(choice, _take(choice, reader, delta), delta.chances):
                    yield sse(chunk)
            if choice.reply.reason is not None:
                rest = reader.flush()
                choice.take(rest)
                for chunk in chunks.text(choice, rest, ()):
                    yield sse(chunk)
                yield sse(chunks.closing(choice))
    if include_usage:
        yield sse(chunks.usage(choices))
    yield DONE


def _frame(chunks: ChatChunks, choice: ChatChoice, reader: Reader, shown: CanvasShown) -> bytes:
    """A whole canvas: text and calls are read from it anew, and only the last one's calls are final."""
    pieces = reader.again(shown.text)
    choice.text, choice.calls = "", []
    choice.take(pieces)
    return sse(chunks.canvas(choice, choice.text, shown))


async def _stream_text(
    deltas: Deltas,
    chunks: TextChunks,
    choices: Sequence[TextChoice],
    include_usage: bool,
) -> AsyncGenerator[bytes, None]:
    opened: set[int] = set()
    async with aclosing(deltas):
        async for index, told in deltas:
            choice = choices[index]
            if index not in opened:
                opened.add(index)
                yield sse(chunks.opening(choice))
            for delta in told:
                yield sse(
                    chunks.canvas(choice, delta) if isinstance(delta, CanvasShown) else chunks.text(choice, delta)
                )
            if choice.reason is not None:
                yield sse(chunks.closing(choice))
    if include_usage:
        yield sse(chunks.usage(choices))
    yield DONE

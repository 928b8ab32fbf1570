"""One reply from plan to last audio: the draft denoises, finished clauses are spoken, and the plan follows the playout.

A draft that ends with a call of a tool is followed by another, which knows the result.

Two tasks share a bounded queue of clauses. The writer turns draft events into clauses; the voice turns clauses into text and audio events.
While the first clause plays, the rest of the canvas goes on denoising with the steps that the playout leaves it (`drafting`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

import numpy as np

from voiceagent.backends import (
    Drafter,
    DraftFailed,
    DraftFinished,
    DraftPrefilled,
    DraftRequest,
    DraftRevised,
    DraftStepped,
    Samples,
    Synthesizer,
)
from voiceagent.budget import BudgetController
from voiceagent.budget_terms import WhenLate
from voiceagent.clauses import ClauseFinder
from voiceagent.clock import Clock
from voiceagent.costs import Stage
from voiceagent.drafting import Drafting
from voiceagent.early import Beginning
from voiceagent.events import (
    ConversationEvent,
    Item,
    Modality,
    ResponseAudio,
    ResponseItemStarted,
    ResponseText,
    Usage,
)
from voiceagent.playout import Playout
from voiceagent.tool_turn import ToolTurn
from voiceagent.tools import ToolCall
from voiceagent.trace import TurnTrace

FIRST_PIECE_S = 0.2
"""Audio collected before a reply's first piece leaves: a player that starts at once has this long until the next piece. Making it takes
eSpeak 4 ms; pieces of 50 ms ran dry once in 32 replies while the rest of the canvas was denoised on the same two cores."""
CLAUSE_QUEUE = 16
"""Clauses waiting for the voice. A reply has fewer; the bound is there so that a stuck voice stops the writer."""


@dataclass(frozen=True, slots=True)
class ReplyRequest:
    """What one reply is made from. `text` is spoken as it stands (a greeting); otherwise `draft` is written by the model."""

    response_id: str
    item_id: str
    modality: Modality
    target_s: float
    draft: DraftRequest | None = None
    text: str | None = None
    prompt_tokens: float = 64.0
    """Prompt tokens that are probably not in the cache yet."""
    when_late: WhenLate = WhenLate.FEWER_STEPS
    acknowledgements: tuple[str, ...] = ()


@dataclass(slots=True)
class Reply:
    """A reply being made. `run` may be cancelled at any moment; what was said until then stands in `said` and `playout`."""

    request: ReplyRequest
    llm: Drafter
    tts: Synthesizer
    budget: BudgetController
    clock: Clock
    emit: Callable[[ConversationEvent], None]
    trace: TurnTrace
    on_audio: Callable[[], None]
    """Called once, when the first audio has left."""
    plays: Callable[[Samples, int, float], None] | None
    """Told of all audio with its rate, and when the caller's queue plays it; None where nobody wants to know."""
    tools: ToolTurn
    beginning: Beginning | None = None
    """How the first draft begins, where it is not from nothing."""
    playout: Playout = field(default_factory=Playout)
    usage: Usage = field(default_factory=Usage)
    said: str = ""
    item_started: bool = False
    drafting: Drafting = field(init=False)
    _has_words: bool = False
    """Something of it is spoken or waits for the voice."""
    _has_sent: bool = False
    """Some of its audio has left, whether or not it is played."""

    def __post_init__(self) -> None:
        self.drafting = Drafting(
            self.request.response_id, self.llm, self.budget, self.clock, self.emit, self.trace, self.playout
        )

    async def run(self) -> None:
        """Make the whole reply.

        Raises:
            BackendError: If the drafter or the synthesizer failed.
        """
        clauses: asyncio.Queue[str | None] = asyncio.Queue(CLAUSE_QUEUE)
        voice = asyncio.create_task(self._voice(clauses))
        writer = asyncio.create_task(self._write(clauses))
        try:
            # Whichever fails first ends the reply; a plain gather would leave the other running.
            done, _ = await asyncio.wait((voice, writer), return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in (writer, voice):
                task.cancel()
            await asyncio.gather(writer, voice, return_exceptions=True)
            if self.beginning is not None:  # It failed before the draft was taken up.
                self.beginning.drop()

    # --- the writer ---------------------------------------------------------------------------------------------------

    async def _write(self, clauses: asyncio.Queue[str | None]) -> None:
        draft = self.request.draft
        if draft is None:
            await self._put(clauses, self.request.text or "")
        while draft is not None:
            call = await self._write_draft(draft, clauses)
            draft = (
                None if call is None else await self.tools.take(call, draft, lambda texts: self._cover(clauses, texts))
            )
        await clauses.put(None)

    async def _write_draft(self, draft: DraftRequest, clauses: asyncio.Queue[str | None]) -> ToolCall | None:
        """Write what the draft says; the call that it ends with, if any."""
        finder, seen, before = ClauseFinder(), 0, self.usage
        call: ToolCall | None = None
        beginning = self.beginning or Beginning(self.llm)
        grant = self.drafting.plan(
            draft,
            beginning,
            target_s=self.request.target_s,
            prompt_tokens=self.request.prompt_tokens,
            needs_audio=self.request.modality == "audio",
            when_late=self.request.when_late,
            acknowledgements=() if self._has_words else self.request.acknowledgements,
        )
        if grant.acknowledgement is not None:
            self.trace.acknowledged(grant.acknowledgement, self.clock.now())
            await self._fill(clauses, grant.acknowledgement)
        following = self.drafting.follow(self.drafting.start(draft, grant, beginning))
        self.beginning = None
        async with contextlib.aclosing(following) as events:
            async for event, is_news in events:
                match event:
                    case DraftPrefilled():
                        self.usage = replace(
                            self.usage,
                            input_tokens=before.input_tokens + event.cached_tokens + event.new_tokens,
                            cached_tokens=before.cached_tokens + event.cached_tokens,
                        )
                        self.drafting.prefilled(event, is_news=is_news)
                    case DraftRevised():
                        self.drafting.revised(event, is_news=is_news)
                    case DraftStepped():
                        written = sum(1 for token in event.canvas if token.text)
                        self.usage = replace(self.usage, output_tokens=before.output_tokens + written)
                        self.drafting.stepped(event, is_news=is_news)
                        for clause in finder.push(event.committed_text[seen:], ends_word=True):
                            self.drafting.first_clause_done()
                            await self._put_clause(clauses, clause)
                        seen = len(event.committed_text)
                    case DraftFinished():
                        call = event.call
                        self.trace.guarded_drafts += event.guards > 0
                        if self.trace.speculation is not None:
                            self.trace.speculation.written()
                        self.usage = replace(
                            self.usage, output_tokens=max(self.usage.output_tokens, before.output_tokens + 1)
                        )
                        self.trace.mark("draft_done", event.at)
                        for clause in (*finder.push(event.text[seen:]), *finder.flush()):
                            await self._put_clause(clauses, clause)
                    case DraftFailed(error=error):
                        raise error
                    case _:
                        assert_never(event)
        return call

    async def _put(self, clauses: asyncio.Queue[str | None], text: str) -> None:
        finder = ClauseFinder()
        for clause in (*finder.push(text), *finder.flush()):
            await clauses.put(clause)

    async def _put_clause(self, clauses: asyncio.Queue[str | None], clause: str) -> None:
        if clause.strip():
            self._has_words = True
            self.trace.mark("first_clause", self.clock.now())
            await clauses.put(clause)

    async def _fill(self, clauses: asyncio.Queue[str | None], text: str) -> None:
        """Say something while the answer is not there yet, unless the reply has begun."""
        if not self._has_words:
            self._has_words = True
            self.trace.mark("first_clause", self.clock.now())
            await self._put(clauses, text)

    async def _cover(self, clauses: asyncio.Queue[str | None], texts: Sequence[str]) -> None:
        """A tool takes long: say one of the texts, unless the reply has begun."""
        if not self._has_words:
            text = self.tools.desk.acknowledgements.choose(texts)
            self.trace.acknowledged(text, self.clock.now())
            await self._fill(clauses, text)

    # --- the voice ----------------------------------------------------------------------------------------------------

    async def _voice(self, clauses: asyncio.Queue[str | None]) -> None:
        while (clause := await clauses.get()) is not None:
            if not clause.strip():
                continue
            self._say(clause)
            if self.request.modality == "audio":
                await self._speak(clause)

    def _say(self, clause: str) -> None:
        if not self.item_started:
            self.item_started = True
            item = Item(self.request.item_id, "agent", "", "in_progress", spoken=self.request.modality == "audio")
            self.emit(ResponseItemStarted(self.request.response_id, item, None))
        delta = clause.strip() if not self.said else f" {clause.strip()}"
        self.said += delta
        self.trace.reply = self.said
        if self.request.modality == "text":
            self.trace.mark("first_text", self.clock.now())
        self.emit(ResponseText(self.request.response_id, self.request.item_id, delta))

    async def _speak(self, clause: str) -> None:
        asked = self.clock.now()
        self.playout.begin_clause(clause.strip())
        is_heard = False
        # Closed at once when the reply is cancelled: the synthesizer must stop now, not at garbage collection.
        held: list[Samples] = []
        async with contextlib.aclosing(self.tts.speak(clause)) as audio:
            async for samples in audio:
                if samples.size == 0:
                    continue
                held.append(samples)
                if not self._has_sent and sum(map(len, held)) < FIRST_PIECE_S * self.tts.rate_hz:
                    continue
                if not is_heard:
                    is_heard = True
                    self._voice_took(asked, clause)
                self._send(np.concatenate(held))
                held = []
        if held:
            self._voice_took(asked, clause)
            self._send(np.concatenate(held))
        self.playout.end_clause()
        self.drafting.more_is_queued()

    def _voice_took(self, asked: float, clause: str) -> None:
        """The clause's first piece that is sent is there: what its caller waits for, so what is planned with."""
        made = self.clock.now()
        self.trace.mark("tts_audio", made)
        self.budget.costs.observe(Stage.TTS, max(made - asked, 0.0), len(clause))

    def _send(self, samples: Samples) -> None:
        made = self.clock.now()
        self.emit(ResponseAudio(self.request.response_id, self.request.item_id, samples, self.tts.rate_hz))
        is_first, self._has_sent = not self._has_sent, True
        if self.playout.is_over:
            return  # Cut before it came: nobody plays it, so it answers nobody and no microphone hears it.
        now = self.clock.now()
        duration_s = samples.size / self.tts.rate_hz
        dry_at = self.playout.sent(duration_s, now)
        if self.plays is not None:
            self.plays(samples, self.tts.rate_hz, dry_at - duration_s)
        self.budget.costs.observe(Stage.TRANSPORT, max(now - made, 0.0))
        if is_first:
            self.trace.mark("first_audio", now)
            if self.drafting.grant is not None and self.drafting.grant.is_on_time and not self.trace.tools:
                self.budget.margin.answered(late=now > self.trace.origin + self.request.target_s)
            self.on_audio()


def expected_prompt_tokens(new_words: int) -> float:
    """Tokens that a prompt grew by, guessed from its words: byte-level BPE with 4,096 entries makes about 1.4 per word."""
    return float(math.ceil(new_words * 1.4) + 8)

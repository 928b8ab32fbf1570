"""The diffusion engine as a `Drafter`: one thread owns the engine, all conversations share its forwards.

Commands go to the thread through a queue, events come back to each draft's own event loop. Between two rounds the thread obeys
everything that was asked, so a cancel or a new plan takes effect before the next forward.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from voiceagent.backends import (
    BackendInfo,
    CanvasToken,
    DraftEvent,
    DraftFailed,
    DraftFinished,
    DraftPrefilled,
    DraftRequest,
    DraftStepped,
    PromptTurn,
    QualityCurve,
    StepPlan,
    TokenState,
)
from voiceagent.errors import BackendError

if TYPE_CHECKING:
    from dllm import drafts as dllm_drafts
    from dllm import draft as dllm_draft
    from dllm.loader import Checkpoint

log = logging.getLogger(__name__)

CANVAS_WIDTHS = (16, 24, 32, 40)
"""Canvases a plan may ask for. A spoken reply of one to three short sentences is 15 to 35 tokens."""
PROMPT_LIMIT = 384
"""Prompt tokens before old turns are dropped. Training rows hold 256; half as many again still reads well, more does not."""
PROMPT_KEEP = 256
"""What is left after dropping: well below the limit, so that the cut (and with it the cache) stays put for several turns."""

ROOM_AROUND_PINS = 16
"""Canvas positions for the model's own words beside what must be said; a wider canvas is taken when there are fewer."""
FLOOR_STEPS = 4
"""Steps for the first clause when the checkpoint brings no quality curve."""
FLOOR_QUALITY = 0.9
"""Share of the best quality that a reply must reach to be worth hearing."""


@dataclass(slots=True, eq=False)
class DiffusionDraft:
    """One reply on the engine's thread, as its conversation holds it."""

    owner: DiffusionDrafter
    request: DraftRequest
    on_event: Callable[[DraftEvent], None]
    loop: asyncio.AbstractEventLoop
    engine_draft: dllm_draft.Draft | None = None
    committed: list[int] = field(default_factory=list)
    is_over: bool = False
    """Set on the event loop: nothing is delivered after it."""

    def replan(self, plan: StepPlan) -> None:
        self.owner._command(lambda: self.owner._replan(self, plan))

    def cancel(self) -> None:
        if not self.is_over:
            self.is_over = True
            self.owner._command(lambda: self.owner._cancel(self))

    def deliver(self, events: Sequence[DraftEvent]) -> None:
        for event in events:
            if self.is_over:
                return
            self.is_over = isinstance(event, DraftFinished | DraftFailed)
            self.on_event(event)


class DiffusionDrafter:
    """A `Drafter` over `dllm.engine.Engine`.

    Args:
        checkpoint: A loaded model with its tokenizer.
        info: What the start-up report says of it.
        max_batch: Canvases per forward.
    """

    def __init__(self, checkpoint: Checkpoint, info: BackendInfo, *, max_batch: int = 8) -> None:
        from dllm.engine import Engine

        self.info = info
        self.quality_curve = read_quality_curve(checkpoint.path / "quality_curve.json")
        self.min_steps = floor_steps(self.quality_curve)
        self._spec = checkpoint.spec
        self.canvas_widths = tuple(width for width in CANVAS_WIDTHS if width <= checkpoint.spec.max_canvas)
        self._codec = checkpoint.dialogue_codec
        self._engine = Engine(checkpoint.model, checkpoint.codec.token_table, max_batch=max_batch)
        self._drafts: dict[int, DiffusionDraft] = {}
        self._dropped: dict[str, int] = {}
        """Turns left out of a conversation's prompt, so that its beginning does not move with every turn."""
        self._wake = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._warming: dict[str, tuple[PromptTurn, ...]] = {}
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="diffusion-engine", daemon=True)
        self._thread.start()

    # --- the event loop's side ----------------------------------------------------------------------------------------

    def start(self, request: DraftRequest, on_event: Callable[[DraftEvent], None]) -> DiffusionDraft:
        draft = DiffusionDraft(self, request, on_event, asyncio.get_running_loop())
        self._command(lambda: self._submit(draft))
        return draft

    def warm(self, conversation_id: str, turns: Sequence[PromptTurn]) -> None:
        with self._wake:
            self._warming[conversation_id] = tuple(turns)
            self._wake.notify()

    def forget(self, conversation_id: str) -> None:
        self._command(lambda: self._forget(conversation_id))

    async def aclose(self) -> None:
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def _command(self, act: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(act)
            self._wake.notify()

    # --- the engine's thread ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._wake:
                while not (self._commands or self._engine.drafts or self._warming or self._is_closed):
                    self._wake.wait()
                if self._is_closed:
                    break
                commands, self._commands = list(self._commands), deque()
                # Prefill ahead of time is only done when nobody waits for a step.
                warming = None
                if not commands and not self._engine.drafts:
                    warming = self._warming.popitem()
            try:
                for command in commands:
                    self._obey(command)
                if warming is not None:
                    self._engine.warm(warming[0], self._tokens(warming[0], warming[1])[:-1])
                elif self._engine.drafts:
                    self._deliver(self._engine.run_round())
            except Exception as error:  # A bug here must not leave callers waiting for events that never come.
                log.exception("the diffusion engine's thread failed")
                self._fail_all(error)

    @staticmethod
    def _obey(command: Callable[[], None]) -> None:
        """One command that fails must not take the others asked for at the same time with it."""
        try:
            command()
        except Exception:
            log.exception("a command to the diffusion engine failed")

    def _submit(self, draft: DiffusionDraft) -> None:
        from dllm.drafts import DraftSpec
        from dllm.options import DecodeOptions

        request = draft.request
        if draft.is_over:
            return
        try:
            tokens = self._tokens(request.conversation_id, request.turns)
            pins = tuple(self._codec.encode_pin(text) for text in dict.fromkeys(request.must_say))
            width = request.plan.canvas_width
            while sum(map(len, pins)) + ROOM_AROUND_PINS > width and width < self._spec.max_canvas:
                width += self._spec.canvas_multiple
            draft.engine_draft = self._engine.submit(
                DraftSpec(
                    prompt=tuple(tokens),
                    conversation=request.conversation_id,
                    width=width,
                    plan=self._plan(request.plan, 0, is_first=True),
                    pins=pins,
                    options=DecodeOptions(temperature=request.temperature, seed=request.seed),
                )
            )
        except Exception as error:
            self._send(draft, [DraftFailed(error, time.monotonic())])
            return
        self._drafts[draft.engine_draft.number] = draft

    def _replan(self, draft: DiffusionDraft, plan: StepPlan) -> None:
        if draft.engine_draft is not None and draft.engine_draft.number in self._drafts:
            is_first = draft.engine_draft.phase == "first"
            done = draft.engine_draft.steps_first if is_first else draft.engine_draft.steps_rest
            self._engine.replan(draft.engine_draft, self._plan(plan, done, is_first=is_first))

    def _cancel(self, draft: DiffusionDraft) -> None:
        if draft.engine_draft is not None and self._drafts.pop(draft.engine_draft.number, None) is not None:
            self._engine.cancel(draft.engine_draft)

    def _forget(self, conversation_id: str) -> None:
        self._warming.pop(conversation_id, None)
        self._dropped.pop(conversation_id, None)
        self._engine.forget(conversation_id)

    def _plan(self, plan: StepPlan, steps_done: int, *, is_first: bool) -> dllm_drafts.Plan:
        """The engine counts a phase's steps from when it hears of a plan; ours count them from the start of the phase."""
        from dllm.drafts import Plan

        return Plan(
            steps_first=max(plan.steps_first - (steps_done if is_first else 0), 1),
            steps_rest=max(plan.steps_rest - (0 if is_first else steps_done), 1),
            threshold=plan.threshold,
            first_deadline=plan.first_deadline,
            rest_deadline=plan.rest_deadline,
            floor=max(self.min_steps - steps_done, 1),
        )

    def _tokens(self, conversation_id: str, turns: Sequence[PromptTurn]) -> list[int]:
        """The prompt's tokens, with the oldest turns left out when there are too many. The system turn always stays."""
        from dllm.text import spoken_form

        encoded = [
            self._codec.encode_turn(turn.role, spoken_form(turn.text) if turn.role == "user" else turn.text)
            for turn in turns
        ]
        head = encoded[0] if turns and turns[0].role == "system" else []
        rest = encoded[1:] if head else encoded
        room = self._spec.max_position_embeddings - self._spec.max_canvas - 1
        limit = min(PROMPT_LIMIT, room)
        dropped = self._dropped.get(conversation_id, 0)
        if dropped >= len(rest):
            dropped = 0
        size = len(head) + sum(map(len, rest[dropped:]))
        if size > limit:
            while size > min(PROMPT_KEEP, limit * 2 // 3) and dropped < len(rest) - 2:
                size -= len(rest[dropped])
                dropped += 1
        self._dropped[conversation_id] = dropped
        tail = [token for turn in rest[dropped:] for token in turn]
        # Instructions or a single turn beyond all positions: the beginning of the first and the end of the last count most.
        head = head[: max(room - len(tail), room // 2)]
        return [*head, *tail[max(len(tail) - (room - len(head)), 0) :], self._codec.special.agent]

    def _deliver(self, events: Sequence[dllm_drafts.Event]) -> None:
        from dllm import drafts

        now = time.monotonic()
        for event in events:
            if isinstance(event, drafts.Committed) and (draft := self._drafts.get(event.draft.number)):
                draft.committed.extend(event.tokens)
        for event in events:
            draft = self._drafts.get(event.draft.number)
            if draft is None:
                continue
            match event:
                case drafts.Prefilled():
                    out: DraftEvent = DraftPrefilled(event.cached_tokens, event.new_tokens, event.seconds, now)
                case drafts.Stepped():
                    out = DraftStepped(
                        step=event.step,
                        phase=event.phase,
                        canvas=self._show(event.canvas),
                        committed_text=self._codec.decode(draft.committed).strip(),
                        forced_tokens=event.forced,
                        compute_s=event.seconds,
                        at=now,
                        batch=event.batch,
                    )
                case drafts.Finished():
                    del self._drafts[event.draft.number]
                    out = DraftFinished(
                        self._codec.decode(event.tokens).strip(), event.steps_first, event.steps_rest, event.forced, now
                    )
                case drafts.Failed():
                    del self._drafts[event.draft.number]
                    out = DraftFailed(BackendError("llm", str(event.error)), now)
                case _:
                    continue
            self._send(draft, [out])

    def _show(self, cells: Sequence[dllm_drafts.Cell]) -> tuple[CanvasToken, ...]:
        """The canvas as text; the tail behind the predicted end of the reply is empty."""
        shown: list[CanvasToken] = []
        for cell in cells:
            text = self._codec.token_bytes(cell.token).decode("utf-8", errors="replace")
            shown.append(CanvasToken(text, TokenState(cell.state.value), round(cell.confidence, 4)))
        return tuple(shown)

    def _fail_all(self, error: Exception) -> None:
        drafts, self._drafts = list(self._drafts.values()), {}
        for draft in drafts:
            if draft.engine_draft is not None:
                self._engine.cancel(draft.engine_draft)
            self._send(draft, [DraftFailed(BackendError("llm", str(error)), time.monotonic())])

    @staticmethod
    def _send(draft: DiffusionDraft, events: Sequence[DraftEvent]) -> None:
        try:
            draft.loop.call_soon_threadsafe(draft.deliver, events)
        except RuntimeError:
            log.debug("a draft's event loop is gone; its events are dropped")


def floor_steps(curve: QualityCurve, worth: float = FLOOR_QUALITY) -> int:
    """The fewest steps for a first clause that is worth hearing; `FLOOR_STEPS` where nothing was measured.

    Read off the narrowest canvas measured, which is about as long as a first clause: wider rows tell of whole replies, most of which
    is denoised while the first clause plays.
    """
    if not curve.quality:
        return FLOOR_STEPS
    narrowest = curve.quality[min(range(len(curve.widths)), key=curve.widths.__getitem__)]
    return next((step for step, value in zip(curve.steps, narrowest, strict=True) if value >= worth), curve.steps[-1])


def read_quality_curve(path: Path) -> QualityCurve:
    """The curve that `dllm eval steps` measured, or an empty one when the checkpoint has none.

    Raises:
        BackendError: If the file is there but is not such a curve.
    """
    if not path.is_file():
        return QualityCurve((), (), ())
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        widths = tuple(int(width) for width in raw["widths"])
        steps = tuple(int(step) for step in raw["steps"])
        quality = tuple(tuple(float(value) for value in row) for row in raw["quality"])
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError("llm", f"{path}: not a quality curve: {error}") from error
    if len(quality) != len(widths) or any(len(row) != len(steps) for row in quality):
        raise BackendError("llm", f"{path}: expected quality as {len(widths)} rows of {len(steps)} values")
    return QualityCurve(widths, steps, quality)

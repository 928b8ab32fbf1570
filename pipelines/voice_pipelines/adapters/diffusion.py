"""The diffusion engine as a `Drafter`: all conversations share its forwards, whatever checkpoint it runs.

`dllm.runner` owns the engine's thread; here prompts, plans and options are put in its words and its events in ours. What must be said is
pinned into the canvas. Where a canvas cannot take pins, or no more of them, it is looked for in the reply, and added when it is missing;
published checkpoints are asked for it as well.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from dllm import drafts
from dllm.canvas import Canvas
from dllm.deciding import Decider, decider_of
from dllm.draft import Draft as EngineDraft
from dllm.engine import Engine
from dllm.errors import ConfigError, DllmError
from dllm.graphs import Recorded, cuda_graphs
from dllm.habits import family_options
from dllm.keeping import Kept, kept_canvas, kept_tail
from dllm.loader import Checkpoint
from dllm.models.family import DecodeDefaults
from dllm.options import DecodeOptions
from dllm.runner import DraftHandle, EngineRunner
from dllm.spec import ModelSpec
from voice_pipelines.adapters.articles import settled, with_articles
from voice_pipelines.adapters.diffusion_calls import ReplyReader, call_sign, known_tools, reply_reader
from voice_pipelines.adapters.diffusion_prompt import PromptWriter, prompt_writer
from voice_pipelines.adapters.remote_text import with_missing
from voiceagent.backends import (
    BackendInfo,
    CanvasToken,
    Draft,
    DraftEvent,
    DraftFailed,
    DraftFinished,
    DraftPrefilled,
    DraftRequest,
    DraftRevised,
    DraftStepped,
    EngineWork,
    PromptTurn,
    QualityCurve,
    StepPlan,
    TokenState,
)
from voiceagent.errors import BackendError
from voiceagent.tools import ToolSpec

log = logging.getLogger(__name__)

T = TypeVar("T")

BUILTIN_WIDTHS = (16, 24, 32, 40)
"""Canvases a plan may ask for. A spoken reply of one to three short sentences is 15 to 35 tokens."""
CHAT_WIDTHS = (16, 32, 48, 64)
"""The same for published checkpoints, which are wordier. Each width is timed at start-up, so there are few."""
CHAT_ROOM = 2048
"""Prompt tokens of published checkpoints: a quarter of an hour of talk, and what a tool adds."""
CACHED_PROMPTS = 4
"""How many prompts of full length the prefix cache holds at least."""
CACHE_BYTES = 128 * 2**20
"""The prefix cache is never smaller."""

ROOM_AROUND_PINS = 16
"""Canvas positions for the model's own words beside what must be said; a wider canvas is taken when there are fewer."""
FLOOR_STEPS = 4
"""Steps for the first clause when the checkpoint brings no quality curve."""
FLOOR_QUALITY = 0.65
"""Share of the best quality that a reply must reach to be worth hearing."""


KEEP_ABOVE = 0.5
"""A word of an earlier draft stays where it is at least so probable under the new prompt, whatever stands beside it."""
KEEP_LEAST = 0.5
"""Less than this share that stays is in the way of a better reply."""


@dataclass(slots=True)
class DiffusionCounts:
    """What became of the drafts so far."""

    finished: int = 0
    repaired: int = 0
    """Replies to which a text that must be said was added, since the canvas could not take it as a pin."""


@dataclass(slots=True, eq=False)
class DiffusionDraft:
    """One reply, as its conversation holds it."""

    owner: DiffusionDrafter
    request: DraftRequest
    on_event: Callable[[DraftEvent], None]
    loop: asyncio.AbstractEventLoop
    reader: ReplyReader
    """Of the committed tokens. The engine thread's."""
    before: DiffusionDraft | None = None
    """The draft that this one starts from. The engine thread's, which forgets it."""
    unheard: str | None = None
    """The end of that draft's text to start from; None for all of it."""
    handle: DraftHandle | None = None
    asked: tuple[str, ...] = ()
    """What must be said and is not pinned."""
    is_over: bool = False
    """Set on the event loop: nothing is delivered after it."""

    def replan(self, plan: StepPlan) -> None:
        if self.handle is not None:
            self.handle.apply(lambda draft: self.owner._replan(draft, plan))

    def cancel(self) -> None:
        if not self.is_over:
            self.is_over = True
            if self.handle is not None:
                self.handle.cancel()

    def send(self, event: DraftEvent) -> None:
        """Deliver an event on the event loop. Any thread."""
        try:
            self.loop.call_soon_threadsafe(self._deliver, event)
        except RuntimeError:
            log.debug("a draft's event loop is gone; its events are dropped")

    def fail(self, error: Exception) -> None:
        failure = error if isinstance(error, BackendError) else BackendError("llm", str(error))
        failure.__cause__ = error if failure is not error else error.__cause__
        self.send(DraftFailed(failure, time.monotonic()))

    def _deliver(self, event: DraftEvent) -> None:
        if not self.is_over:
            self.is_over = isinstance(event, DraftFinished | DraftFailed)
            self.on_event(event)


class _VoiceEngine(Engine):
    """Tells of a step once it is known what the step made certain: a clause is spoken one step sooner."""

    prompts: PromptWriter
    clock_s = 0.0
    thread_s = 0.0

    def run_round(self) -> list[drafts.Event]:
        began, began_cpu = time.perf_counter(), time.thread_time()
        try:
            return sorted(super().run_round(), key=lambda event: not isinstance(event, drafts.Committed))
        finally:
            self.clock_s += time.perf_counter() - began
            self.thread_s += time.thread_time() - began_cpu

    def forget(self, conversation: str) -> None:
        super().forget(conversation)
        self.prompts.forget(conversation)


def _tell_recorded(recorded: Recorded) -> None:
    log.log(logging.WARNING if recorded.error else logging.INFO, "%s", recorded)


class DiffusionDrafter:
    """A `Drafter` over `dllm.engine.Engine`.

    Args:
        checkpoint: A loaded model with its tokenizer, of any family.
        info: What the start-up report says of it.
        max_batch: Canvases per forward.
        cache_dtype: Of the prefix cache (`Engine`); None is the weights' type.
        steps_per_visit: Most steps between two looks at their outcome (`Engine`).
        graphs: Whether steps are recorded as CUDA graphs (`dllm.graphs`).

    Raises:
        BackendError: If the checkpoint has no chat template that takes a conversation, its quality curve is broken, its family keeps no
            cache of that type, or graphs are asked for where they cannot be recorded.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        info: BackendInfo,
        *,
        max_batch: int = 8,
        cache_dtype: torch.dtype | None = None,
        steps_per_visit: int = 1,
        graphs: bool = False,
    ) -> None:
        self.info = info
        self.counts = DiffusionCounts()
        self.asked_s = 0.0
        self.quality_curve = read_quality_curve(checkpoint.path / "quality_curve.json")
        self.min_steps = floor_steps(self.quality_curve)
        self._spec, self.codec, self._defaults = checkpoint.spec, checkpoint.codec, checkpoint.defaults
        self.canvas_widths = canvas_widths(checkpoint.spec)
        habits = decode_options(checkpoint.spec, checkpoint.defaults, max(self.canvas_widths))
        self.can_revise = checkpoint.spec.corruption == "absorbing" and habits.mode == "diffusion"
        room = prompt_room(checkpoint.spec, max(self.canvas_widths))
        try:
            engine = _VoiceEngine(
                checkpoint.model,
                checkpoint.codec.token_table,
                max_batch=max_batch,
                cache_bytes=cache_bytes(checkpoint, room + max(self.canvas_widths)),
                cache_dtype=cache_dtype,
                steps_per_visit=steps_per_visit,
                forward=cuda_graphs(checkpoint.model, _tell_recorded) if graphs else None,
            )
            self.prompts = engine.prompts = prompt_writer(checkpoint.codec, room)
        except ConfigError as error:
            raise BackendError("llm", f"{checkpoint.path}: {error}") from error
        self._engine, self._threads = engine, torch.get_num_threads()
        self._decider = decider_of(engine, checkpoint.codec)
        self._runner = EngineRunner(engine)

    @property
    def work(self) -> EngineWork:
        return EngineWork(self._engine.clock_s, self._engine.thread_s, self._threads)

    def start(self, request: DraftRequest, on_event: Callable[[DraftEvent], None]) -> DiffusionDraft:
        return self._start(request, on_event, None)

    def revise(
        self,
        draft: Draft,
        request: DraftRequest,
        on_event: Callable[[DraftEvent], None],
        *,
        unheard: str | None = None,
    ) -> DiffusionDraft:
        assert isinstance(draft, DiffusionDraft) and draft.owner is self
        # Obeyed in this order: nothing is written in between, and what there is can be read once it has stopped.
        draft.cancel()
        return self._start(request, on_event, draft, unheard)

    def _start(
        self,
        request: DraftRequest,
        on_event: Callable[[DraftEvent], None],
        before: DiffusionDraft | None,
        unheard: str | None = None,
    ) -> DiffusionDraft:
        may_call = request.tool_choice.mode != "none"
        reader = reply_reader(self.codec, self.prompts.offered(request.tools), may_call=may_call)
        draft = DiffusionDraft(self, request, on_event, asyncio.get_running_loop(), reader, before, unheard)
        try:
            draft.handle = self._runner.start(
                lambda: self._draft_spec(draft), lambda event: self._tell(draft, event), draft.fail
            )
        except DllmError as error:
            draft.fail(error)
        return draft

    def warm(self, conversation_id: str, turns: Sequence[PromptTurn], tools: Sequence[ToolSpec] = ()) -> None:
        self._runner.warm(conversation_id, lambda: self.prompts.warm_part(conversation_id, turns, tools))

    def forget(self, conversation_id: str) -> None:
        self._runner.forget(conversation_id)

    async def ask_engine(self, question: Callable[[Engine], T]) -> T:
        """Run a function on the engine's thread between two forwards; what it returns or raises comes back.

        Raises:
            EngineClosedError, EngineFailedError: If the engine ends before.
        """

        def timed(engine: Engine) -> T:
            began = time.perf_counter()
            try:
                return question(engine)
            finally:
                self.asked_s += time.perf_counter() - began

        return await self._runner.call(timed)

    async def aclose(self) -> None:
        await self._runner.aclose()

    # --- the engine's thread ------------------------------------------------------------------------------------------

    def _draft_spec(self, draft: DiffusionDraft) -> drafts.DraftSpec:
        request, mode = draft.request, draft.request.tool_choice.mode
        may_call = mode != "none" and bool(self.prompts.offered(request.tools))
        must_call = may_call and mode == "required" and self._spec.dialogue is not None
        width, widest = request.plan.canvas_width, self._spec.max_canvas or max(self.canvas_widths)
        call: tuple[int, ...] = ()
        if may_call and self._decider is not None:
            call = self._decided(self._decider, request, widest)
            may_call = must_call = bool(call) or must_call
        # A call says nothing: what must be said is for the reply that knows its result.
        must_say = () if must_call else tuple(dict.fromkeys(request.must_say))
        pins, draft.asked = fitting_pins(must_say, self.codec.encode_pin, widest)
        needed = max(len(call), sum(map(len, pins)) + ROOM_AROUND_PINS if pins else 0)
        while needed > width and width < widest:
            width += self._spec.canvas_multiple
        options = replace(decode_options(self._spec, self._defaults, width), keep_above=KEEP_ABOVE)
        if must_say and self._spec.mask_kind == "full":
            # A pin may belong anywhere: the whole canvas is open from the first step.
            options = replace(options, block=0)
        if not takes_pins(self._spec, width):
            draft.asked, pins = must_say, ()
        sign = call_sign(self.codec)
        if sign is not None and not may_call:
            options = replace(options, logit_bias=(*options.logit_bias, (sign, -math.inf)))
        # The built-in family is not asked in words.
        asked = draft.asked if self._spec.dialogue is None else ()
        kept = self._kept(draft, pins, width) if self.can_revise and not must_call else Kept()
        return drafts.DraftSpec(
            prompt=tuple(self.prompts.write(request.conversation_id, request.turns, asked, request.tools)),
            conversation=request.conversation_id,
            width=width,
            plan=self._plan(request.plan, 0, is_first=True),
            pins=pins,
            options=replace(options, temperature=request.temperature or self._defaults.temperature, seed=request.seed),
            given=tuple(enumerate(call)) if call else ((0, sign),) if must_call and sign is not None else (),
            unpinned=sign if self._spec.dialogue is not None else None,
            keep=kept.tokens,
            keep_pins=kept.pins,
            keep_least=KEEP_LEAST,
            keep_clause=True,
        )

    def _decided(self, decider: Decider, request: DraftRequest, widest: int) -> tuple[int, ...]:
        """The whole reply where it is a call; empty where it is words."""
        began, began_cpu = time.perf_counter(), time.thread_time()
        choice = request.tool_choice
        tools = [tool for tool in known_tools(request.tools) if choice.name in ("", tool.name)]
        prompt = self.prompts.write(request.conversation_id, request.turns, (), request.tools)
        found = decider.decide(prompt, tools, must_call=choice.mode == "required")
        reply = () if found.call is None else decider.tokens(found.call)
        self._engine.clock_s += time.perf_counter() - began
        self._engine.thread_s += time.thread_time() - began_cpu
        return reply if len(reply) <= widest else ()

    def _kept(self, draft: DiffusionDraft, pins: Sequence[tuple[int, ...]], width: int) -> Kept:
        """What the canvas begins with: what the draft before had, or the end of it that was not heard."""
        before, unheard, draft.before = draft.before, draft.unheard, None
        while before is not None and (before.handle is None or before.handle.draft is None):
            # Revised before the engine had heard of it: what it was to start from is what there is.
            unheard, before = before.unheard, before.before
        held = None if before is None or before.handle is None else before.handle.draft
        if held is None:
            return Kept()
        if unheard is None:
            return kept_canvas(held.canvas, held.spec.pins, pins, width)
        start = self._start_of(unheard, held.canvas)
        if start is None:
            return Kept()
        if pins and len(pins) == len(held.spec.pins):
            # What must be said now is what had to be said then, with a detail changed: so may be the words around it, heard or not.
            return kept_canvas(held.canvas, held.spec.pins, pins, width)
        return kept_tail(held.canvas, held.spec.pins, pins, width, start)

    def _start_of(self, text: str, canvas: Canvas) -> int | None:
        """The position from which the canvas reads so, what is still being written behind it; None where there is none."""
        wanted, end = " ".join(text.split()), canvas.reply_end()
        for at in range(end - 1, -1, -1):
            reads = self._right(" ".join(self.codec.decode(canvas.tokens[at:end]).split()))
            if wanted and reads.startswith(wanted):
                return at
        return None

    def _replan(self, draft: EngineDraft, plan: StepPlan) -> None:
        is_first = draft.phase == "first"
        done = draft.steps_first if is_first else draft.steps_rest
        self._runner.engine.replan(draft, self._plan(plan, done, is_first=is_first))

    def _plan(self, plan: StepPlan, steps_done: int, *, is_first: bool) -> drafts.Plan:
        """The engine counts a phase's steps from when it hears of a plan; ours count them from the start of the phase."""
        return drafts.Plan(
            steps_first=max(plan.steps_first - (steps_done if is_first else 0), 1),
            steps_rest=max(plan.steps_rest - (0 if is_first else steps_done), 1),
            # A family that its authors decode more carefully than the budget asks for is decoded so here.
            threshold=max(plan.threshold, self._defaults.threshold if self._spec.dialogue is None else 0.0),
            fact_threshold=plan.fact_threshold or 0.0,
            first_deadline=plan.first_deadline,
            rest_deadline=plan.rest_deadline,
            floor=max(self.min_steps - steps_done, 1),
            rest_yields_until=plan.yields_until,
            is_speculative=plan.is_speculative,
            first_guests=plan.first_guests,
        )

    def _tell(self, draft: DiffusionDraft, event: drafts.Event) -> None:
        try:
            self._pass_on(draft, event)
        except Exception as error:  # A bug here must not leave a caller waiting for events that never come.
            draft.fail(error)
            raise

    def _pass_on(self, draft: DiffusionDraft, event: drafts.Event) -> None:
        now = time.monotonic()
        match event:
            case drafts.Committed(tokens=tokens):
                draft.reader.feed(tokens)
            case drafts.Prefilled():
                draft.send(DraftPrefilled(event.cached_tokens, event.new_tokens, event.seconds, now))
            case drafts.Revised():
                canvas = self._show(event.canvas[: event.draft.spec.width])
                draft.send(DraftRevised(event.kept, event.asked, event.forwards, now, canvas))
            case drafts.Stepped():
                step = DraftStepped(
                    step=event.step,
                    phase=event.phase,
                    canvas=self._show(event.canvas[: event.draft.spec.width]),
                    committed_text=self._right(draft.reader.spoken, is_whole=False),
                    forced_tokens=event.forced,
                    compute_s=event.seconds,
                    at=now,
                    batch=event.batch,
                )
                draft.send(step)
            case drafts.Finished():
                call = draft.reader.call(is_cut=event.reason == "canvas_full")
                # What a reply lacks may follow the tool's result.
                asked = draft.request.must_say if draft.reader.lacks_words else draft.asked
                text = self._whole(draft, asked if call is None else ())
                guards = event.usage.guards
                draft.send(DraftFinished(text, event.steps_first, event.steps_rest, event.forced, now, call, guards))

    def _whole(self, draft: DiffusionDraft, asked: Sequence[str]) -> str:
        """The final text, with what the model was asked to say and did not."""
        text, added = with_missing(self._right(draft.reader.whole), asked)
        self.counts.finished += 1
        if added:
            self.counts.repaired += 1
            log.info("the language model left out %s, which was added", ", ".join(added))
        return text

    def _right(self, text: str, *, is_whole: bool = True) -> str:
        """The text as it is said: the built-in model, small and English, is corrected where an article is wrong."""
        if self._spec.dialogue is None:
            return text
        return with_articles(text if is_whole else settled(text))

    def _show(self, cells: Sequence[drafts.Cell]) -> tuple[CanvasToken, ...]:
        """The canvas as text; the tail behind the predicted end of the reply is empty."""
        shown: list[CanvasToken] = []
        for cell in cells:
            text = self.codec.token_bytes(cell.token).decode("utf-8", errors="replace")
            shown.append(CanvasToken(text, TokenState(cell.state.value), round(cell.confidence, 4)))
        return tuple(shown)


# --- what a checkpoint allows -----------------------------------------------------------------------------------------


def canvas_widths(spec: ModelSpec) -> tuple[int, ...]:
    """Canvases that a plan may ask of a model: our own few, on its multiple, within its limit and half its positions."""
    wanted = BUILTIN_WIDTHS if spec.dialogue is not None else CHAT_WIDTHS
    multiple = spec.canvas_multiple
    widest = min(spec.max_canvas or spec.max_position_embeddings, spec.max_position_embeddings // 2)
    on_multiple = sorted({-(-width // multiple) * multiple for width in wanted})
    return tuple(width for width in on_multiple if width <= widest) or (widest // multiple * multiple,)


def prompt_room(spec: ModelSpec, widest: int) -> int:
    """Most prompt tokens beside the widest canvas, which pins may ask for beyond a plan's."""
    # Block-causal canvases end where a block does.
    grid = spec.block if spec.mask_kind == "block_causal" else 1
    room = spec.max_position_embeddings // grid * grid - max(spec.max_canvas, widest)
    return room if spec.dialogue is not None else min(room, CHAT_ROOM)


def cache_bytes(checkpoint: Checkpoint, length: int) -> int:
    """Size of the prefix cache: room for some prompts and canvases of `length` tokens."""
    if checkpoint.spec.mask_kind == "full":
        return CACHE_BYTES
    token = sum(store.bytes for store in checkpoint.model.new_stores(1, 1))
    return max(CACHE_BYTES, CACHED_PROMPTS * (length + checkpoint.spec.block) * token)


def fitting_pins(
    texts: Sequence[str], encode: Callable[[str], tuple[int, ...]], width: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """Pins that a canvas holds together, an end-of-turn behind them, and the texts that are too long for that."""
    pins: list[tuple[int, ...]] = []
    beyond: list[str] = []
    room = width - 1
    for text in texts:
        pin = encode(text)
        if 0 < len(pin) <= room:
            pins.append(pin)
            room -= len(pin)
        else:
            beyond.append(text)
    return tuple(pins), tuple(beyond)


def takes_pins(spec: ModelSpec, width: int) -> bool:
    """Whether the model can choose a place anywhere on a canvas: all of it is open at once, and what is decided stays."""
    if spec.corruption != "absorbing":
        return False
    is_one_block = spec.mask_kind == "causal_prefix_bidir_block" and spec.block >= width and not spec.sub_block
    return spec.mask_kind == "full" or is_one_block


def decode_options(spec: ModelSpec, defaults: DecodeDefaults, width: int) -> DecodeOptions:
    """A family's habits, for a reply that is heard from its beginning.

    Ends are held wherever blocks do not do that: an end-of-turn that is decided early on the right, before any word is, fixes the length
    of a reply that has no words yet. A uniform canvas decides nothing before it decides everything.
    """
    is_wide = spec.mask_kind == "full" or width > spec.block
    habits = family_options(defaults, spec)
    return replace(habits, hold_ends=habits.hold_ends or (is_wide and spec.corruption == "absorbing"))


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

"""Instant stand-ins for the four models: what they hear, write and say is fixed by the test, and they take no time of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

import numpy as np

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
    Partial,
    PromptTurn,
    QualityCurve,
    Samples,
    StepPlan,
    TokenState,
    Transcript,
    TurnJudgement,
    TurnSoFar,
)
from voiceagent.clock import Clock
from voiceagent.errors import BackendError
from voiceagent.tools import ToolCall, ToolSpec

RATE_HZ = 16_000


def tone(duration_s: float, level: float = 0.3, rate_hz: int = RATE_HZ) -> Samples:
    """Loud audio: speech to `LevelDetector`, and no hum, since it jumps between a low and a high pitch."""
    t = np.arange(round(duration_s * rate_hz)) / rate_hz
    pitch_hz = np.where((t / 0.05).astype(int) % 2 == 0, 220.0, 2800.0)
    return (level * np.sin(2 * np.pi * np.cumsum(pitch_hz) / rate_hz)).astype(np.float32)


def hum(duration_s: float, level: float = 0.3, rate_hz: int = RATE_HZ) -> Samples:
    """Loud audio that does not move."""
    t = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (level * np.sin(2 * np.pi * 220.0 * t)).astype(np.float32)


def silence(duration_s: float, rate_hz: int = RATE_HZ) -> Samples:
    return np.zeros(round(duration_s * rate_hz), dtype=np.float32)


class LevelDetector:
    """Speech is whatever is loud."""

    info = BackendInfo("vad", "level", "stand-in")
    window_samples = 512

    def open(self) -> LevelDetector:
        return self

    async def probability(self, window: Samples) -> float:
        return 1.0 if float(np.abs(window).max()) > 0.05 else 0.0

    def reset(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class ScriptedUtterance:
    confidence: float | None = None

    def __init__(
        self, text: str | Exception, on_partial: Callable[[Partial], None], gate: asyncio.Event | None
    ) -> None:
        self._text = text
        self._on_partial = on_partial
        self._gate = gate
        self.fed = 0
        self.is_finished = False
        self.is_cancelled = False

    def feed(self, samples: Samples) -> None:
        assert not self.is_finished, "audio after the end of the utterance"
        self.fed += samples.size
        if isinstance(self._text, str) and self.fed >= RATE_HZ // 4:
            self._on_partial(Partial(self._text.split()[0] if self._text else "", "", self.confidence))

    async def finish(self) -> Transcript:
        self.is_finished = True
        if self._gate is not None:
            await self._gate.wait()
        if isinstance(self._text, Exception):
            raise self._text
        return Transcript(self._text)

    def cancel(self) -> None:
        self.is_cancelled = True


class ScriptedTranscriber:
    """Hears `texts` one after the other, then the last one again. With a gate, finals wait until it is set."""

    info = BackendInfo("asr", "scripted", "stand-in")
    words_after_s = 0.0
    tells_confidence = False

    def __init__(self, *texts: str | Exception, gate: asyncio.Event | None = None) -> None:
        self._texts = list(texts) or ["hello"]
        self._gate = gate
        self.utterances: list[ScriptedUtterance] = []

    async def open(self, on_partial: Callable[[Partial], None]) -> ScriptedUtterance:
        text = self._texts[min(len(self.utterances), len(self._texts) - 1)]
        utterance = ScriptedUtterance(text, on_partial, self._gate)
        self.utterances.append(utterance)
        return utterance

    async def aclose(self) -> None:
        pass


class ScriptedScorer:
    """Finds every turn as complete as it is told; with None it never answers."""

    info = BackendInfo("endpoint", "scripted", "stand-in")
    weighs_sound = True
    hears_voice = False

    def __init__(self, completeness: float | Exception | None) -> None:
        self._completeness = completeness
        self.is_misheard = False
        self.asked: list[TurnSoFar] = []

    async def judge(self, turn: TurnSoFar) -> TurnJudgement | None:
        self.asked.append(turn)
        if self._completeness is None:
            await asyncio.Event().wait()
        if isinstance(self._completeness, Exception):
            raise self._completeness
        assert self._completeness is not None
        return TurnJudgement(self._completeness, self.is_misheard)

    async def aclose(self) -> None:
        pass


class ScriptedDraft:
    def __init__(
        self,
        drafter: ScriptedDrafter,
        request: DraftRequest,
        on_event: Callable[[DraftEvent], None],
        revised: DraftRevised | None = None,
    ) -> None:
        self.request = request
        self._revised = revised
        self.plans: list[StepPlan] = [request.plan]
        self.is_cancelled = False
        self.is_over = False
        self._drafter = drafter
        self._on_event = on_event
        self._task = asyncio.ensure_future(self._run())

    def replan(self, plan: StepPlan) -> None:
        self.plans.append(plan)

    def cancel(self) -> None:
        self.is_cancelled = not self.is_over
        self._task.cancel()

    async def _run(self) -> None:
        clock = self._drafter.clock
        text = self._drafter.next_text()
        if isinstance(text, Exception):
            self._finish(DraftFailed(text, clock.now()))
            return
        if isinstance(text, ToolCall):
            self._on_event(DraftPrefilled(0, len(self.request.turns), 0.0, clock.now()))
            called = CanvasToken(text.name, TokenState.COMMITTED, 0.9)
            await clock.sleep_until(clock.now() + self._drafter.step_s)
            self._on_event(DraftStepped(1, "first", (called,), "", 0, self._drafter.step_s, clock.now()))
            self._finish(DraftFinished("", 1, 0, 0, clock.now(), text))
            return
        self._on_event(DraftPrefilled(0, len(self.request.turns), 0.0, clock.now()))
        if self._revised is not None:
            self._on_event(self._revised)
        words = text.split()
        steps = min(self._drafter.steps, max(len(words), 1))
        for step in range(1, steps + 1):
            started = clock.now()
            await clock.sleep_until(started + self._drafter.step_s)
            shown = " ".join(words[: len(words) * step // steps])
            canvas = tuple(
                CanvasToken(f" {word}", TokenState.COMMITTED if i < len(shown.split()) else TokenState.MASKED, 0.9)
                for i, word in enumerate(words)
            )
            phase = "first" if "." not in shown else "rest"
            self._on_event(
                DraftStepped(step, phase, canvas, shown, 0, clock.now() - started, clock.now())  # type: ignore[arg-type]
            )
        self._finish(DraftFinished(text, steps, 0, 0, clock.now(), guards=self._drafter.guards))

    def _finish(self, event: DraftEvent) -> None:
        self.is_over = True
        self._on_event(event)


class ScriptedDrafter:
    """Writes `texts` in turn, `steps` steps each, `step_s` of the clock per step; a call takes one step."""

    info = BackendInfo("llm", "scripted", "stand-in")
    canvas_widths: tuple[int, ...] = (16, 32)
    quality_curve = QualityCurve((), (), ())
    min_steps = 1
    can_revise = True

    def __init__(self, clock: Clock, *texts: str | Exception | ToolCall, steps: int = 4, step_s: float = 0.01) -> None:
        self.clock = clock
        self.steps = steps
        self.step_s = step_s
        self.guards = 0
        self._texts = list(texts) or ["Sure. What size would you like?"]
        self._written = 0
        self.drafts: list[ScriptedDraft] = []
        self.kept = 8
        self.revised: list[tuple[ScriptedDraft, str | None]] = []
        self.warmed: list[tuple[PromptTurn, ...]] = []
        self.forgotten: list[str] = []

    def next_text(self) -> str | Exception | ToolCall:
        text = self._texts[min(self._written, len(self._texts) - 1)]
        self._written += 1
        return text

    def start(self, request: DraftRequest, on_event: Callable[[DraftEvent], None]) -> ScriptedDraft:
        draft = ScriptedDraft(self, request, on_event)
        self.drafts.append(draft)
        return draft

    def revise(
        self,
        draft: Draft,
        request: DraftRequest,
        on_event: Callable[[DraftEvent], None],
        *,
        unheard: str | None = None,
    ) -> ScriptedDraft:
        """Writes the next text, and says that it has kept `kept` of ten words of the one before."""
        assert isinstance(draft, ScriptedDraft)
        draft.cancel()
        self.revised.append((draft, unheard))
        stands = tuple(CanvasToken(" word", TokenState.COMMITTED, 0.9) for _ in range(self.kept))
        told = DraftRevised(self.kept, 10, 2, self.clock.now(), stands) if self.kept else None
        again = ScriptedDraft(self, request, on_event, told)
        self.drafts.append(again)
        return again

    def warm(self, conversation_id: str, turns: Sequence[PromptTurn], tools: Sequence[ToolSpec] = ()) -> None:
        self.warmed.append(tuple(turns))

    def forget(self, conversation_id: str) -> None:
        self.forgotten.append(conversation_id)

    async def aclose(self) -> None:
        pass


class ToneSynthesizer:
    """Speaks a wavering tone of `second_per_char` for each character, in chunks of 100 ms, at once."""

    info = BackendInfo("tts", "tone", "stand-in")
    rate_hz = 16_000

    def __init__(self, second_per_char: float = 0.05, fail_on: str | None = None) -> None:
        self._second_per_char = second_per_char
        self._fail_on = fail_on
        self.spoken: list[str] = []
        self.closed = 0

    async def speak(self, clause: str) -> AsyncGenerator[Samples, None]:
        if self._fail_on is not None and self._fail_on in clause:
            raise BackendError("tts", f"cannot say {clause!r}")
        self.spoken.append(clause)
        audio = hum(len(clause.strip()) * self._second_per_char)
        # Louder and softer as a voice is: a steady tone over a steady tone could as well be its echo.
        levels = np.random.default_rng(len(clause)).uniform(-20.0, 0.0, audio.size // 800 + 1)
        audio *= np.repeat(10 ** (levels / 20), 800)[: audio.size].astype(np.float32)
        try:
            for start in range(0, audio.size, 1600):
                await asyncio.sleep(0)
                yield audio[start : start + 1600]
        finally:
            self.closed += 1

    async def aclose(self) -> None:
        pass

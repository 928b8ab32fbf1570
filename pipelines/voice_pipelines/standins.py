"""A server whose recogniser, language model and voice are stand-ins: what is left is the runtime itself.

    python -m voice_pipelines.standins --port 8080
    python -m voice_pipelines.standins --vad level --asr-s 0.1 --step-s 0.02 --tts-s 0.05

The stand-ins compute nothing: each takes the time that it is told to take, hears the same words in every utterance, writes the same reply
and speaks it as a tone. Load tests measure with them what a caller costs apart from models (`examples/bench_load.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from voice_pipelines import settings
from voice_pipelines.cli import print_info, serve_runtime
from voice_pipelines.local import LocalRuntime
from voice_pipelines.settings import agent_profile
from voiceagent.backends import (
    INPUT_RATE_HZ,
    BackendInfo,
    Backends,
    CanvasToken,
    Draft,
    DraftEvent,
    DraftFinished,
    DraftPrefilled,
    DraftRequest,
    DraftStepped,
    Partial,
    PromptTurn,
    QualityCurve,
    Samples,
    StepPlan,
    TokenState,
    Transcript,
    VoiceDetector,
)
from voiceagent.budget import BudgetController
from voiceagent.clock import Clock, MonotonicClock
from voiceagent.config import Config
from voiceagent.costs import CostModel
from voiceagent.errors import ConfigError, VoiceAgentError
from voiceagent.tools import ToolSpec

HEARD = "can i get a large coffee with oat milk please"
REPLY = "Sure, a large coffee. Anything else?"

_Phase: TypeAlias = Literal["first", "rest"]


@dataclass(frozen=True, slots=True)
class Delays:
    """How long each stand-in takes; the default is no time at all.

    Raises:
        ConfigError: If a time is not 0 to 60 seconds, or there is no step.
    """

    asr_s: float = 0.0
    """From the end of the audio to the transcript."""
    prefill_s: float = 0.0
    step_s: float = 0.0
    steps: int = 4
    """Steps that a reply takes when its plan grants as many; half of them, rounded up, write the first clause."""
    tts_s: float = 0.0
    """From a clause to its first audio; the rest of it follows at once."""

    def __post_init__(self) -> None:
        for name in ("asr_s", "prefill_s", "step_s", "tts_s"):
            if not 0.0 <= getattr(self, name) <= 60.0:
                raise ConfigError(name, getattr(self, name), "0 to 60 seconds")
        if self.steps < 1:
            raise ConfigError("steps", self.steps, "at least 1")


class LevelDetector:
    """Speech is whatever is loud; costs next to nothing, and is no good in a noisy room."""

    info = BackendInfo("vad", "level", "stand-in: speech is what is louder than -40 dBFS")
    window_samples = 512
    _POWER = 10 ** (-40 / 10)

    def open(self) -> LevelDetector:
        return self

    async def probability(self, window: Samples) -> float:
        """1 or 0."""
        return 1.0 if float(np.dot(window, window)) > self._POWER * self.window_samples else 0.0

    def reset(self) -> None:
        """It remembers nothing."""

    async def aclose(self) -> None:
        """It holds nothing."""


class StandInTranscriber:
    """Hears `text`, a word for every 0.3 s of audio and the rest at the end."""

    info = BackendInfo("asr", "stand-in", "hears the same words in every utterance")
    words_after_s = 0.0
    tells_confidence = False

    def __init__(self, clock: Clock, delays: Delays, text: str = HEARD) -> None:
        self._clock = clock
        self._delays = delays
        self._words = text.split()

    async def open(self, on_partial: Callable[[Partial], None]) -> _Utterance:
        return _Utterance(self._clock, self._delays, self._words, on_partial)

    async def aclose(self) -> None:
        """It holds nothing."""


class _Utterance:
    WORD_SAMPLES = round(0.3 * INPUT_RATE_HZ)

    def __init__(
        self, clock: Clock, delays: Delays, words: Sequence[str], on_partial: Callable[[Partial], None]
    ) -> None:
        self._clock = clock
        self._delays = delays
        self._words = words
        self._on_partial = on_partial
        self._fed_samples = 0
        self._told = 0

    def feed(self, samples: Samples) -> None:
        self._fed_samples += samples.size
        known = min(self._fed_samples // self.WORD_SAMPLES, len(self._words))
        if known > self._told:
            self._told = known
            self._on_partial(Partial(" ".join(self._words[: known - 1]), self._words[known - 1]))

    async def finish(self) -> Transcript:
        if self._delays.asr_s > 0:
            await self._clock.sleep_until(self._clock.now() + self._delays.asr_s)
        return Transcript(" ".join(self._words), compute_s=self._delays.asr_s)

    def cancel(self) -> None:
        """Nothing is being recognised."""


class StandInDrafter:
    """Writes `text` in as many steps as `Delays.steps` and the plan allow."""

    info = BackendInfo("llm", "stand-in", "writes the same reply to everything")
    canvas_widths: tuple[int, ...] = (32,)
    quality_curve = QualityCurve((), (), ())
    min_steps = 1
    can_revise = False

    def __init__(self, clock: Clock, delays: Delays, text: str = REPLY) -> None:
        self.clock = clock
        self.delays = delays
        self.text = text
        self.words = text.split()
        sentence = text.find(". ")
        self.first_words = len(text[: sentence + 1].split()) if sentence >= 0 else len(self.words)

    def start(self, request: DraftRequest, on_event: Callable[[DraftEvent], None]) -> _Draft:
        return _Draft(self, request, on_event)

    def revise(
        self,
        draft: Draft,
        request: DraftRequest,
        on_event: Callable[[DraftEvent], None],
        *,
        unheard: str | None = None,
    ) -> _Draft:
        """Starts anew: nothing is drafted early for a model that keeps nothing."""
        draft.cancel()
        return self.start(request, on_event)

    def warm(self, conversation_id: str, turns: Sequence[PromptTurn], tools: Sequence[ToolSpec] = ()) -> None:
        """It has no cache."""

    def forget(self, conversation_id: str) -> None:
        """It has no cache."""

    async def aclose(self) -> None:
        """It holds nothing."""


class _Draft:
    def __init__(self, drafter: StandInDrafter, request: DraftRequest, on_event: Callable[[DraftEvent], None]) -> None:
        self._drafter = drafter
        self._prompt_tokens = sum(len(turn.text.split()) for turn in request.turns)
        self._plan = request.plan
        self._on_event = on_event
        self._task = asyncio.ensure_future(self._run())

    def replan(self, plan: StepPlan) -> None:
        self._plan = plan

    def cancel(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        drafter, clock, delays = self._drafter, self._drafter.clock, self._drafter.delays
        if delays.prefill_s > 0:
            await clock.sleep_until(clock.now() + delays.prefill_s)
        self._on_event(DraftPrefilled(0, self._prompt_tokens, delays.prefill_s, clock.now()))
        steps_first = steps_rest = 0
        while steps_first < self._granted("first"):
            steps_first += 1
            is_last = steps_first >= self._granted("first")
            await self._step(steps_first, "first", drafter.first_words if is_last else 0)
        while steps_rest < self._granted("rest"):
            steps_rest += 1
            is_last = steps_rest >= self._granted("rest")
            committed = len(drafter.words) if is_last else drafter.first_words
            await self._step(steps_first + steps_rest, "rest", committed)
        self._on_event(DraftFinished(drafter.text, steps_first, steps_rest, 0, clock.now()))

    def _granted(self, phase: _Phase) -> int:
        """Steps of this phase by the plan as it is now."""
        steps = self._drafter.delays.steps
        if phase == "first":
            return max(min(self._plan.steps_first, (steps + 1) // 2), 1)
        return min(self._plan.steps_rest, steps // 2)

    async def _step(self, step: int, phase: _Phase, committed: int) -> None:
        drafter, clock = self._drafter, self._drafter.clock
        if drafter.delays.step_s > 0:
            await clock.sleep_until(clock.now() + drafter.delays.step_s)
        shown = " ".join(drafter.words[:committed])
        canvas = tuple(
            CanvasToken(f" {word}", TokenState.COMMITTED if at < committed else TokenState.PROVISIONAL, 0.9)
            for at, word in enumerate(drafter.words)
        )
        self._on_event(DraftStepped(step, phase, canvas, shown, 0, drafter.delays.step_s, clock.now()))


class ToneSynthesizer:
    """Speaks a tone, 0.06 s for each character, in pieces of 0.1 s."""

    info = BackendInfo("tts", "tone", "stand-in: every clause is a tone")
    PIECE_S = 0.1
    SECOND_PER_CHAR = 0.06

    def __init__(self, clock: Clock, delays: Delays, rate_hz: int = 8_000) -> None:
        self.rate_hz = rate_hz
        self._clock = clock
        self._delays = delays
        self._piece: Samples = (
            0.3 * np.sin(2 * np.pi * 440 * np.arange(round(self.PIECE_S * rate_hz)) / rate_hz)
        ).astype(np.float32)

    def duration_s(self, clause: str) -> float:
        return len(clause.strip()) * self.SECOND_PER_CHAR

    async def speak(self, clause: str) -> AsyncGenerator[Samples, None]:
        if self._delays.tts_s > 0:
            await self._clock.sleep_until(self._clock.now() + self._delays.tts_s)
        left = round(self.duration_s(clause) * self.rate_hz)
        while left > 0:
            piece = self._piece[:left]
            left -= piece.size
            yield piece

    async def aclose(self) -> None:
        """It holds nothing."""


def build(config: Config, delays: Delays, vad: VoiceDetector) -> LocalRuntime:
    """A runtime of stand-ins around `vad`, with the agent and the turn-taking of the configuration."""
    clock = MonotonicClock()
    llm = StandInDrafter(clock, delays)
    backends = Backends(vad, StandInTranscriber(clock, delays), llm, ToneSynthesizer(clock, delays))
    budget = BudgetController(config.budget.settings(), CostModel(), llm.quality_curve)
    return LocalRuntime(config, agent_profile(config), backends, budget, clock)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; 2 when that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m voice_pipelines.standins", description=__doc__.split("\n")[0])
    parser.add_argument("--vad", choices=("silero", "level"), default="silero", help="`level` is a stand-in, too")
    for name, about in (
        ("asr-s", "end of speech to the transcript"),
        ("prefill-s", "reading the prompt"),
        ("step-s", "one denoising step"),
        ("tts-s", "a clause to its first audio"),
    ):
        parser.add_argument(f"--{name}", type=float, default=0.0, metavar="SECONDS", help=about)
    parser.add_argument("--steps", type=int, default=4, help="denoising steps of a reply")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--preset", default="open")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key")
    args = parser.parse_args(argv)
    try:
        delays = Delays(args.asr_s, args.prefill_s, args.step_s, args.steps, args.tts_s)
        pairs = [f"preset={args.preset}", f"server.host={args.host}", f"server.port={args.port}", "agent.greeting="]
        config = settings.load(assignments=[*pairs, *args.set], environ=os.environ)
        from voiceagent.serving import run

        run(_serve(config, delays, args.vad))
    except VoiceAgentError as error:
        print(f"standins: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(config: Config, delays: Delays, vad: str) -> None:
    from voice_pipelines.adapters.silero import SileroDetector

    runtime = build(config, delays, LevelDetector() if vad == "level" else SileroDetector())
    for info in runtime.infos:
        print_info(info)
    await serve_runtime(runtime, config.server.settings())


if __name__ == "__main__":
    sys.exit(main())

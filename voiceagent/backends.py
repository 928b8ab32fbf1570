"""What a model must promise to take part in a conversation.

Four protocols: a detector says where speech is, a transcriber what was said, a drafter writes the reply, a synthesizer speaks it. Two more
are optional: a scorer says whether the words so far are a whole turn, a repairer which of them were misheard.
All methods are called on the event loop and return at once or are awaited; the work itself happens on the backend's own threads
or processes. Callbacks are always invoked on the event loop's thread.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from voiceagent.foresight import Need
from voiceagent.tools import AUTO, ToolCall, ToolChoice, ToolSpec

Samples: TypeAlias = NDArray[np.float32]
"""Mono audio, float32 in [-1, 1]. 16 kHz on the way in, the voice's own rate on the way out."""

INPUT_RATE_HZ = 16_000


Part: TypeAlias = Literal["vad", "asr", "llm", "tts", "endpoint", "repair"]


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """One line of the start-up report: which backend was chosen, why, and what would be better."""

    part: Part
    name: str
    reason: str
    upgrade: str | None = None
    """Command that would bring a better backend, or None when there is none."""
    is_remote: bool = False
    """Somebody else's machine does the work: it is not timed at start-up, and its steps are not ours to grant."""


# --- voice activity ---------------------------------------------------------------------------------------------------


class VoiceDetector(Protocol):
    """Speech probability per fixed window; one detector serves all callers and may batch them."""

    info: BackendInfo
    window_samples: int

    def open(self) -> VoiceDetectorStream:
        """Start a caller's stream with fresh recurrent state."""
        ...

    async def aclose(self) -> None: ...


class VoiceDetectorStream(Protocol):
    async def probability(self, window: Samples) -> float:
        """Probability in [0, 1] that `window` ([window_samples], 16 kHz) holds speech. Windows come in order, one at a time."""
        ...

    def reset(self) -> None:
        """Forget the recurrent state (a new caller, or a long gap)."""
        ...


# --- speech recognition -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Word:
    """One recognised word. Times are seconds from the start of the utterance's audio; probability in [0, 1]."""

    text: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class Partial:
    """What is heard so far. `stable` never changes again within the utterance; `unstable` may."""

    stable: str
    unstable: str
    confidence: float | None = None
    """Probability in [0, 1] that the words are right, by the recogniser itself; None where it does not tell."""

    @property
    def text(self) -> str:
        return f"{self.stable} {self.unstable}".strip()


@dataclass(frozen=True, slots=True)
class Transcript:
    """The final result for one utterance; empty text when nothing intelligible was said."""

    text: str
    words: tuple[Word, ...] = ()
    confidence: float | None = None
    """As a partial's."""
    compute_s: float = 0.0
    """Time the recogniser worked after the end of audio was announced."""


class Transcriber(Protocol):
    info: BackendInfo
    words_after_s: float
    """How long into a pause the words before it are there, at the latest as a rule; sooner, no turn is ended by its words. 0 where they keep up with
    the voice."""
    tells_confidence: bool
    """Whether its partials carry a confidence that is worth something."""

    async def open(self, on_partial: Callable[[Partial], None]) -> Utterance:
        """Start one utterance. Returns quickly; audio fed before the decoder is ready is queued, never lost."""
        ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Take:
    """What a short voice said, as somebody heard it."""

    text: str
    is_last: bool = True
    """Nobody is still listening who hears better."""


@runtime_checkable
class HasTakes(Protocol):
    """A transcriber that has a way of its own with a short voice: where one part of it is sooner with the words and another hears them better, or where
    all that it does for an utterance would be too much."""

    def takes(self, samples: Samples, *, is_whole: bool, likely: Sequence[str]) -> AsyncGenerator[Take, None]:
        """The words of a voice, whole or as far as it has come, as soon as anybody has them; the last take is told to be.

        Args:
            likely: Words and phrases that are most often said there, the most likely last.

        Raises:
            BackendError, OverloadedError: If nobody could tell. Not behind the first take.
        """
        ...


@runtime_checkable
class HasProcesses(Protocol):
    """A backend that works in processes of its own on this machine's processors."""

    @property
    def cpu_s(self) -> float:
        """Processor time that they have taken for callers so far; it never falls."""
        ...


@runtime_checkable
class GuessesNeed(Protocol):
    """A backend that says beforehand what a caller needs of this machine's processors for it."""

    @property
    def need(self) -> Need | None:
        """Its own part, for a caller who speaks a third of the time; None where nobody can say."""
        ...


class Utterance(Protocol):
    """One utterance being recognised while the caller speaks."""

    def feed(self, samples: Samples) -> None:
        """Queue 16 kHz samples, any number of them. Never blocks."""
        ...

    async def finish(self) -> Transcript:
        """No more audio: the final result. May be called once.

        Raises:
            BackendError: If the recogniser died; the caller of this utterance hears an error, others are untouched.
        """
        ...

    def cancel(self) -> None:
        """Drop the utterance and free its decoder. Safe at any time, also twice and after `finish`."""
        ...


# --- the reply --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the budget controller grants one draft. Deadlines are absolute clock readings."""

    canvas_width: int
    steps_first: int
    """Denoising steps until the first clause must be committed."""
    steps_rest: int
    """Further steps for the rest of the reply."""
    threshold: float
    """A position whose confidence is above this is committed without waiting."""
    first_deadline: float | None = None
    rest_deadline: float | None = None
    fact_threshold: float | None = None
    """The same for figures and names, where it is higher; None is `threshold`."""
    is_speculative: bool = False
    """The caller may go on: the draft takes no part in forwards while there is one that a caller waits for."""
    yields_until: float | None = None
    """Until then the rest of the reply gives way to drafts whose first clause is still awaited; None never does."""
    first_guests: int = 0
    """Drafts that need not give way to this one's first clause: it has its steps beside so many of them, too."""


@dataclass(frozen=True, slots=True)
class PromptTurn:
    """One turn of the prompt. A `note` is a tool result shown to the model.

    An agent's turn with a `call` is that call and has no text; the note with the same `call_id` behind it says what came of it.
    """

    role: Literal["system", "user", "agent", "note"]
    text: str
    call: ToolCall | None = None
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """A reply to be written.

    `conversation_id` keys the prefix cache. `must_say` lists texts from tool results that are pinned into the canvas: the model
    chooses their place and writes around them. `tools` may be called as `tool_choice` allows.
    """

    conversation_id: str
    turns: tuple[PromptTurn, ...]
    plan: StepPlan
    must_say: tuple[str, ...] = ()
    seed: int = 0
    temperature: float = 0.0
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = AUTO


class TokenState(StrEnum):
    MASKED = "masked"
    PROVISIONAL = "provisional"
    COMMITTED = "committed"
    PINNED = "pinned"


@dataclass(frozen=True, slots=True)
class CanvasToken:
    text: str
    """Text of the best token here; empty for a mask nothing is known about and past the end of the reply."""
    state: TokenState
    confidence: float


@dataclass(frozen=True, slots=True)
class DraftPrefilled:
    cached_tokens: int
    new_tokens: int
    compute_s: float
    at: float


@dataclass(frozen=True, slots=True)
class DraftRevised:
    """What was written before was asked for again: `kept_tokens` of `asked_tokens` stand. Comes before the first step, if at all."""

    kept_tokens: int
    asked_tokens: int
    forwards: int
    """Forwards that it took."""
    at: float
    canvas: tuple[CanvasToken, ...] = ()
    """What stands, and masks where the others were."""


@dataclass(frozen=True, slots=True)
class DraftStepped:
    """One denoising step ran.

    `committed_text` is all text committed so far, a prefix of the reply at a word boundary. Nothing of a call is in it.
    """

    step: int
    phase: Literal["first", "rest"]
    canvas: tuple[CanvasToken, ...]
    committed_text: str
    forced_tokens: int
    compute_s: float
    at: float
    batch: int = 1
    """How many drafts shared the forward."""


@dataclass(frozen=True, slots=True)
class DraftFinished:
    """The reply is complete: `text` is final, and spoken before the `call` that follows it, if any."""

    text: str
    steps_first: int
    steps_rest: int
    forced_tokens: int
    at: float
    call: ToolCall | None = None
    guards: int = 0
    """Times that it went in circles, repeated itself or ended before it began, and was finished greedily or held open."""


@dataclass(frozen=True, slots=True)
class DraftFailed:
    error: Exception
    at: float


DraftEvent: TypeAlias = DraftPrefilled | DraftRevised | DraftStepped | DraftFinished | DraftFailed


class Draft(Protocol):
    """A reply being written."""

    def replan(self, plan: StepPlan) -> None:
        """Takes effect before the next forward."""
        ...

    def cancel(self) -> None:
        """Stop between two forwards; no event follows. Safe at any time, also twice."""
        ...


@dataclass(frozen=True, slots=True)
class QualityCurve:
    """Expected quality, in [0, 1] of the best, after n denoising steps for a canvas width. Measured by `dllm eval steps`."""

    widths: tuple[int, ...]
    steps: tuple[int, ...]
    quality: tuple[tuple[float, ...], ...] = field(default=())
    """[len(widths)][len(steps)]"""


@runtime_checkable
class IsAsked(Protocol):
    """A drafter whose engine answers questions beside its drafts: whether a turn is complete, which words were misheard."""

    asked_s: float
    """Time of the engine that they have taken so far."""


@dataclass(frozen=True, slots=True)
class EngineWork:
    """What an engine has worked so far."""

    clock_s: float
    """By the clock: longer than it computed where it had to wait for a processor."""
    thread_s: float
    """Processor time of its own thread in it; what helpers of that thread take is not in it."""
    threads: int
    """Threads that may compute at once, its own included."""


@runtime_checkable
class HasEngine(Protocol):
    """A drafter whose engine works on a thread of this process."""

    @property
    def work(self) -> EngineWork: ...


class Drafter(Protocol):
    info: BackendInfo
    canvas_widths: tuple[int, ...]
    quality_curve: QualityCurve
    min_steps: int
    can_revise: bool
    """Whether `revise` keeps what still fits; otherwise it starts anew. Nothing is drafted early by a model that cannot, or that is remote."""

    def start(self, request: DraftRequest, on_event: Callable[[DraftEvent], None]) -> Draft:
        """Queue a draft. Events arrive in order, on the event loop; the last is `DraftFinished` or `DraftFailed`."""
        ...

    def revise(
        self,
        draft: Draft,
        request: DraftRequest,
        on_event: Callable[[DraftEvent], None],
        *,
        unheard: str | None = None,
    ) -> Draft:
        """Write a reply to another request, starting from a draft of this drafter's, finished or not.

        That draft is over; nothing more is told of it. What still fits under the new request stays, pins that changed take the places of those
        before. Events as of `start`.

        Args:
            unheard: The end of its text that nobody has heard, to start from; None where that is all of it.
        """
        ...

    def warm(self, conversation_id: str, turns: Sequence[PromptTurn], tools: Sequence[ToolSpec] = ()) -> None:
        """Prefill the cache for a prompt that a draft will probably start with. A hint: may be dropped under load."""
        ...

    def forget(self, conversation_id: str) -> None:
        """The conversation is over: its private cache may go."""
        ...

    async def aclose(self) -> None: ...


# --- the end of a turn -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TurnSoFar:
    """A caller's turn in which there is a pause."""

    conversation_id: str
    turns: tuple[PromptTurn, ...]
    """The conversation; the last are the caller's words so far."""
    tools: tuple[ToolSpec, ...]
    """What the agent may call: they are part of the prompt that a reply will have."""
    audio: Samples
    """The voice so far with what led up to it and the silence behind it, at most `LOOK_BACK_S`; empty where its sound is not to be weighed: it was
    switched off, or the words are dictated."""
    sound: float | None = None
    """Probability that it is over by the sound of the voice before the pause (`voiceagent.endpoint_sound`); None where nobody listened."""
    confidence: float | None = None
    """Probability that what was heard since they last began to speak is what they said, by the recogniser; None where it does not tell."""


LOOK_BACK_S = 8.0


@dataclass(frozen=True, slots=True)
class TurnJudgement:
    """What somebody makes of a pause."""

    completeness: float
    """Probability in [0, 1] that nothing follows."""
    is_misheard: bool = False
    """Whether the words were probably misheard, or make no sense: then they say less, and `TurnSoFar.sound` did not count beside them."""


class TurnScorer(Protocol):
    """Asked while the caller pauses, each time their words, or how they sounded, have changed."""

    info: BackendInfo
    weighs_sound: bool
    """Whether it wants to be told `TurnSoFar.sound`."""
    hears_voice: bool
    """Whether it hears `TurnSoFar.audio`, which is empty for others; then it is asked in each pause, about the same words too."""

    async def judge(self, turn: TurnSoFar) -> TurnJudgement | None:
        """Whether anything follows; None where there is nothing to go by, and silence alone is to decide.

        Raises:
            BackendError: If it cannot be said; silence alone decides then.
        """
        ...

    async def aclose(self) -> None: ...


# --- misheard words ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Proposal:
    """Another word for one or some of a transcript's."""

    first: int
    """Of the words that blanks separate, and one past the last."""
    last: int
    heard: str
    meant: str
    probability: float
    """In [0, 1], that what was heard was meant; of several words the least."""
    factor: float
    """How many times as likely `meant` is in this place as what was heard."""
    distance: float
    """In [0, 1], how different the two sound."""


class TranscriptRepairer(Protocol):
    """Asked once for each final transcript."""

    info: BackendInfo

    async def proposals(self, turn: TurnSoFar, words: str) -> Sequence[Proposal]:
        """Words that sound like doubtful ones and fit better, however little; which of them are taken is not its business.

        Args:
            turn: The conversation, which ends with the caller's words.
            words: The transcript, which is their end.

        Raises:
            BackendError: If it cannot be said; the transcript stays as it is then.
        """
        ...

    async def aclose(self) -> None: ...


# --- speech -----------------------------------------------------------------------------------------------------------


class Synthesizer(Protocol):
    info: BackendInfo
    rate_hz: int

    def speak(self, clause: str) -> AsyncGenerator[Samples, None]:
        """Audio of one clause, in order, leading silence trimmed. Closing the generator stops the work.

        Text is plain prose as the model wrote it; making it speakable (figures, prices, times) is the synthesizer's part.

        Raises:
            BackendError: If the engine failed on this clause.
        """
        ...

    async def aclose(self) -> None: ...


# --- all of them ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Backends:
    """The models that all conversations share."""

    vad: VoiceDetector
    asr: Transcriber
    llm: Drafter
    tts: Synthesizer
    scorer: TurnScorer | None = None
    """Says whether a caller's words are a whole turn; without one, silence alone ends turns."""
    repairer: TranscriptRepairer | None = None
    """Says which words were misheard; without one, transcripts stay as they are."""

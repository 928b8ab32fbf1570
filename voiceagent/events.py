"""What a conversation tells the outside world.

A transport turns these into its own wire format; none of them knows a socket. Times named `_s` in input positions are seconds of
*input audio received so far* (media time); `at` is a reading of the conversation's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from voiceagent.backends import CanvasToken, DraftRevised, DraftStepped, Samples, StepPlan
from voiceagent.barge_in import Dismissed
from voiceagent.repair import Repair
from voiceagent.tools import ToolCall

DUCK_DB = 26.0
"""How far a player turns the agent down in doubt: the goal is at least 20 dB, and the agent stays just audible."""

MUTED_DB = 120.0
"""The same where nothing is to be heard: no sample of 16 bits survives it, and unlike "minus infinity" JSON can carry it."""

Role: TypeAlias = Literal["system", "user", "agent"]
ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]
Modality: TypeAlias = Literal["audio", "text"]
ResponseStatus: TypeAlias = Literal["completed", "cancelled", "failed", "incomplete"]


@dataclass(frozen=True, slots=True)
class Item:
    """What somebody said.

    `text` of an agent item is what the caller heard once that is known, else what was said so far. `spoken` tells a user item
    that came as audio, and an agent item that was produced as audio. `text` is None while a spoken user item awaits its transcript.
    """

    id: str
    role: Role
    text: str | None
    status: ItemStatus = "completed"
    spoken: bool = False


@dataclass(frozen=True, slots=True)
class CallItem:
    """A call of a tool. `call_id` ties it to its output."""

    id: str
    call_id: str
    call: ToolCall
    status: ItemStatus = "completed"


@dataclass(frozen=True, slots=True)
class OutputItem:
    """What came of a call: `output` as clients write and see it, `note` as the model reads it."""

    id: str
    call_id: str
    output: str
    note: str = ""
    must_say: tuple[str, ...] = ()
    status: ItemStatus = "completed"


AnyItem: TypeAlias = Item | CallItem | OutputItem
"""One entry of the conversation. Calls and their outputs are not speech."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one response. `cached_tokens` is the part of the input that the prefix cache already held."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


# --- the caller's side ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    item_id: str
    audio_start_s: float
    """Media time of the start, pre-roll included."""


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    item_id: str
    audio_end_s: float


@dataclass(frozen=True, slots=True)
class AudioCommitted:
    item_id: str
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class AudioCleared:
    pass


@dataclass(frozen=True, slots=True)
class TranscriptPartial:
    """What the recogniser hears at this moment; `stable` is a prefix that will not change."""

    item_id: str
    stable: str
    unstable: str


@dataclass(frozen=True, slots=True)
class TranscriptFinal:
    item_id: str
    text: str
    audio_s: float
    """Length of the utterance's audio."""
    repair: Repair | None = None
    """Words that were probably misheard; `text` holds those that the agent goes by."""


@dataclass(frozen=True, slots=True)
class TranscriptFailed:
    item_id: str
    message: str


# --- items ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ItemAdded:
    item: AnyItem
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class ItemDone:
    item: AnyItem
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class ItemDeleted:
    item_id: str


@dataclass(frozen=True, slots=True)
class ItemTruncated:
    """The agent item now holds only the text heard in its first `audio_end_s` seconds."""

    item_id: str
    audio_end_s: float
    text: str


# --- the agent's side -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResponseStarted:
    response_id: str
    item_id: str
    """Id of the agent item that the response will fill; announced by `ResponseItemStarted` when it has content."""
    modality: Modality
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class ResponseItemStarted:
    response_id: str
    item: Item
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class ResponseCalled:
    """The response ends with a call that the client has to carry out. What the server runs itself is told as items alone."""

    response_id: str
    item: CallItem
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class ResponsePlanned:
    """The budget controller granted or changed a plan."""

    response_id: str
    plan: StepPlan
    reason: str


@dataclass(frozen=True, slots=True)
class ResponseStepped:
    """The canvas after one denoising step; provisional tokens may still change. Step 0 is none: it shows what stands of an earlier draft."""

    response_id: str
    step: int
    phase: Literal["first", "rest"]
    canvas: tuple[CanvasToken, ...]
    committed_text: str
    forced_tokens: int
    compute_s: float
    batch: int
    early_s: float | None = None
    """How long before the reply was wanted that was; None for what happens now."""
    kept: tuple[int, int] | None = None
    """With step 0: so many tokens stand, of so many that were asked for again."""

    @classmethod
    def of(cls, response_id: str, event: DraftStepped | DraftRevised, early_s: float | None = None) -> ResponseStepped:
        """What a draft has told, as its reply shows it."""
        if isinstance(event, DraftRevised):
            kept = (event.kept_tokens, event.asked_tokens)
            return cls(response_id, 0, "first", event.canvas, "", 0, 0.0, 1, early_s, kept)
        return cls(
            response_id,
            event.step,
            event.phase,
            event.canvas,
            event.committed_text,
            event.forced_tokens,
            event.compute_s,
            event.batch,
            early_s,
        )


@dataclass(frozen=True, slots=True)
class ResponseText:
    """Committed text, append-only; the deltas of a response joined are its text."""

    response_id: str
    item_id: str
    delta: str


@dataclass(frozen=True, slots=True)
class ResponseAudio:
    """Agent audio, in order, at the voice's own rate."""

    response_id: str
    item_id: str
    samples: Samples
    rate_hz: int


@dataclass(frozen=True, slots=True)
class PlaybackDucked:
    """Somebody speaks over the agent: turn what plays down by `DUCK_DB` at once. Either `PlaybackRestored` or `SpeechStarted` follows."""

    audio_start_s: float
    """Media time of the voice's beginning."""


@dataclass(frozen=True, slots=True)
class PlaybackMuted:
    """They go on: play nothing, and keep the place, since `PlaybackRestored` may still follow instead of `SpeechStarted`. Comes after `PlaybackDucked`."""

    audio_start_s: float
    """As the `PlaybackDucked` said."""


@dataclass(frozen=True, slots=True)
class PlaybackRestored:
    """Nothing was said: turn what plays up again, from where it was muted."""

    reason: Dismissed


@dataclass(frozen=True, slots=True)
class ResponseFinished:
    """The last event of a response. `item` is None when it never got content."""

    response_id: str
    item: Item | None
    previous_item_id: str | None
    modality: Modality
    status: ResponseStatus
    reason: str | None
    """`turn_detected`, `client_cancelled`, `shutdown`, or the error's message for a failed response."""
    usage: Usage
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class TurnTraced:
    """The timeline of one finished turn, ready for JSON: see `voiceagent.trace.TurnTrace.as_json`."""

    response_id: str
    timeline: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ConversationEnded:
    """The agent has said goodbye and been heard; whoever owns the conversation closes it, which is no failure."""

    reason: Literal["silence"]
    message: str


ConversationEvent: TypeAlias = (
    SpeechStarted
    | SpeechStopped
    | AudioCommitted
    | AudioCleared
    | TranscriptPartial
    | TranscriptFinal
    | TranscriptFailed
    | ItemAdded
    | ItemDone
    | ItemDeleted
    | ItemTruncated
    | ResponseStarted
    | ResponseItemStarted
    | ResponseCalled
    | ResponsePlanned
    | ResponseStepped
    | ResponseText
    | ResponseAudio
    | PlaybackDucked
    | PlaybackMuted
    | PlaybackRestored
    | ResponseFinished
    | TurnTraced
    | ConversationEnded
)

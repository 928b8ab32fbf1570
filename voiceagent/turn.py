"""Whose turn it is: a state machine of values, with no clock, no audio and no tasks.

Two sides move independently, since people talk over each other: the caller is silent, speaking, or waiting for their words to be
recognised; the agent is quiet, thinking (no audio yet), speaking (audio leaves while the reply is still being made) or only playing
(everything was made, the caller still hears it). `advance` takes what happened and returns the new state with what must be done.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, TypeAlias, assert_never


class Caller(StrEnum):
    SILENT = "silent"
    SPEAKING = "speaking"
    RECOGNISING = "recognising"


class Agent(StrEnum):
    QUIET = "quiet"
    THINKING = "thinking"
    SPEAKING = "speaking"
    PLAYING = "playing"


class Phase(StrEnum):
    """The one word that a person sees."""

    IDLE = "idle"
    LISTENING = "listening"
    THINKING = "thinking"
    SPEAKING = "speaking"


@dataclass(frozen=True, slots=True)
class TurnState:
    caller: Caller = Caller.SILENT
    agent: Agent = Agent.QUIET
    owes_reply: bool = False
    """A turn ended that deserves an answer, but the agent was still busy with the one before."""
    is_ducked: bool = False
    """There is voice over the agent's, and nobody knows yet whether anything was said: what plays is turned down and goes on."""
    is_muted: bool = False
    """That voice lasts: what plays is held, and goes on where it was if nothing was said."""
    earlier_plays: bool = False
    """A reply that was made before the one under way still plays."""

    @property
    def phase(self) -> Phase:
        if self.caller is Caller.SPEAKING:
            return Phase.LISTENING
        if self.is_audible:
            return Phase.SPEAKING
        if self.agent is Agent.THINKING or self.caller is Caller.RECOGNISING:
            return Phase.THINKING
        return Phase.IDLE

    @property
    def is_audible(self) -> bool:
        """The caller hears the agent."""
        return self.agent in (Agent.SPEAKING, Agent.PLAYING) or self.earlier_plays

    @property
    def is_making_reply(self) -> bool:
        """A response is open: a second one must not be started."""
        return self.agent in (Agent.THINKING, Agent.SPEAKING)


# --- what happened ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpeechBegan:
    interrupts: bool
    """Whether speech stops a running reply."""


@dataclass(frozen=True, slots=True)
class VoiceDoubted:
    """There is voice over the agent's that may be nothing."""


@dataclass(frozen=True, slots=True)
class VoiceLasted:
    """It goes on for so long that the agent must not be heard, whatever it is."""


@dataclass(frozen=True, slots=True)
class VoiceDismissed:
    """It was nothing."""


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """The endpoint was reached or the client committed the audio."""


@dataclass(frozen=True, slots=True)
class SpeechDropped:
    """The client cleared the audio: what was being said does not count."""


@dataclass(frozen=True, slots=True)
class TranscriptReady:
    is_empty: bool
    wants_reply: bool


@dataclass(frozen=True, slots=True)
class ReplyRequested:
    """The client asked for a response itself; the caller of `advance` has checked `is_making_reply`."""


@dataclass(frozen=True, slots=True)
class AudioBegan:
    pass


@dataclass(frozen=True, slots=True)
class ReplyMade:
    """Nothing more will be generated; `has_audio` tells whether something of it is still playing at the caller's."""

    has_audio: bool


@dataclass(frozen=True, slots=True)
class ReplyCancelled:
    """The client (or a shutdown) stopped the running reply."""

    reason: Literal["client_cancelled", "shutdown"]


@dataclass(frozen=True, slots=True)
class EarlierEnded:
    """Nothing plays any more that was made before the reply under way."""


@dataclass(frozen=True, slots=True)
class PlayoutEnded:
    """Nothing plays any more, and nothing is being made."""


TurnInput: TypeAlias = (
    SpeechBegan
    | VoiceDoubted
    | VoiceLasted
    | VoiceDismissed
    | SpeechEnded
    | SpeechDropped
    | TranscriptReady
    | ReplyRequested
    | AudioBegan
    | ReplyMade
    | ReplyCancelled
    | EarlierEnded
    | PlayoutEnded
)

# --- what must be done ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenUtterance:
    pass


@dataclass(frozen=True, slots=True)
class FinishUtterance:
    pass


@dataclass(frozen=True, slots=True)
class DropUtterance:
    pass


@dataclass(frozen=True, slots=True)
class StartReply:
    pass


@dataclass(frozen=True, slots=True)
class StopReply:
    """Cancel the draft and the voice; the history keeps what was heard."""

    reason: Literal["turn_detected", "client_cancelled", "shutdown"]


@dataclass(frozen=True, slots=True)
class DuckPlayout:
    """Turn down what plays; the draft, the voice and the history go on."""


@dataclass(frozen=True, slots=True)
class MutePlayout:
    """Hold what plays; the draft, the voice and the history go on."""


@dataclass(frozen=True, slots=True)
class RestorePlayout:
    """Turn it up again, from where it was held."""


@dataclass(frozen=True, slots=True)
class StopPlayout:
    """The reply was complete but not heard to its end: the history keeps what was heard."""


TurnEffect: TypeAlias = (
    OpenUtterance
    | FinishUtterance
    | DropUtterance
    | StartReply
    | StopReply
    | DuckPlayout
    | MutePlayout
    | RestorePlayout
    | StopPlayout
)


def advance(state: TurnState, happened: TurnInput) -> tuple[TurnState, tuple[TurnEffect, ...]]:
    """Take one input to the next state.

    Inputs that make no sense in a state (the end of playout that a barge-in already ended, a second end of speech) change
    nothing: they are races that the edge cannot avoid, and each is harmless.
    """
    match happened:
        case VoiceDoubted():
            if not state.is_audible or state.is_ducked or state.caller is Caller.SPEAKING:
                return state, ()
            return replace(state, is_ducked=True), (DuckPlayout(),)
        case VoiceLasted():
            if not state.is_audible or not state.is_ducked or state.is_muted:
                return state, ()
            return replace(state, is_muted=True), (MutePlayout(),)
        case VoiceDismissed():
            restored = replace(state, is_ducked=False, is_muted=False)
            return (restored, (RestorePlayout(),)) if state.is_ducked else (state, ())
        case SpeechBegan(interrupts=interrupts):
            if state.caller is Caller.SPEAKING:
                return state, ()
            listening = replace(state, caller=Caller.SPEAKING, is_ducked=False, is_muted=False)
            if not interrupts or state.agent is Agent.QUIET:
                # What was ducked has ended by itself; what comes next is to be heard.
                return listening, (*((RestorePlayout(),) if state.is_ducked else ()), OpenUtterance())
            stop: TurnEffect = StopPlayout() if state.agent is Agent.PLAYING else StopReply("turn_detected")
            # Nobody heard an answer yet: should this turn out to be a cough, the earlier words still deserve one.
            owes = state.owes_reply or state.agent is Agent.THINKING
            listening = replace(listening, agent=Agent.QUIET, owes_reply=owes, earlier_plays=False)
            return listening, (stop, OpenUtterance())
        case SpeechEnded():
            if state.caller is not Caller.SPEAKING:
                return state, ()
            return replace(state, caller=Caller.RECOGNISING), (FinishUtterance(),)
        case SpeechDropped():
            if state.caller is not Caller.SPEAKING:
                return state, ()
            state, effects = _settle(replace(state, caller=Caller.SILENT))
            return state, (DropUtterance(), *effects)
        case TranscriptReady(is_empty=is_empty, wants_reply=wants_reply):
            if state.caller is Caller.SPEAKING:
                # The caller went on: these words are in the history and the next endpoint answers both.
                return replace(state, owes_reply=state.owes_reply or (wants_reply and not is_empty)), ()
            state = replace(state, caller=Caller.SILENT)
            if is_empty or not wants_reply:
                return _settle(state)
            if state.agent is Agent.QUIET:
                return replace(state, agent=Agent.THINKING, owes_reply=False), (StartReply(),)
            return replace(state, owes_reply=True), ()
        case ReplyRequested():
            if state.agent is Agent.PLAYING or state.agent is Agent.QUIET:
                plays = state.agent is Agent.PLAYING
                return replace(state, agent=Agent.THINKING, owes_reply=False, earlier_plays=plays), (StartReply(),)
            return state, ()
        case AudioBegan():
            return (replace(state, agent=Agent.SPEAKING), ()) if state.agent is Agent.THINKING else (state, ())
        case ReplyMade(has_audio=has_audio):
            if not state.is_making_reply:
                return state, ()
            agent = Agent.PLAYING if has_audio or state.earlier_plays else Agent.QUIET
            return _settle(replace(state, agent=agent, earlier_plays=False))
        case ReplyCancelled(reason=reason):
            if not state.is_making_reply:
                return state, ()
            state = replace(state, agent=Agent.QUIET, earlier_plays=False)
            if reason == "shutdown":
                return state, (StopReply(reason),)
            state, settled = _settle(state)
            return state, (StopReply(reason), *settled)
        case EarlierEnded():
            return replace(state, earlier_plays=False), ()
        case PlayoutEnded():
            return _settle(replace(state, agent=Agent.QUIET)) if state.agent is Agent.PLAYING else (state, ())
        case _:
            assert_never(happened)


def _settle(state: TurnState) -> tuple[TurnState, tuple[TurnEffect, ...]]:
    """Pay a reply that is owed, once the agent is quiet and nobody is speaking."""
    if state.owes_reply and state.agent is Agent.QUIET and state.caller is not Caller.SPEAKING:
        return replace(state, agent=Agent.THINKING, owes_reply=False), (StartReply(),)
    return state, ()

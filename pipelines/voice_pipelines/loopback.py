"""A caller in the same process: plays a recording into a conversation in real time and records what comes back.

The conversation is the one that the server runs, with the same models; only the socket is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from voice_pipelines.measure import Track, voice_to_voice_s
from voiceagent.backends import INPUT_RATE_HZ, Samples, VoiceDetector
from voiceagent.clock import Clock
from voiceagent.conversation import Conversation
from voiceagent.events import (
    ConversationEvent,
    ResponseAudio,
    ResponseFinished,
    ResponseStarted,
    SpeechStarted,
    SpeechStopped,
    TranscriptFailed,
    TranscriptFinal,
    TurnTraced,
)

FRAME_S = 0.02
SETTLE_S = 1.0
"""Quiet time after the recording and the last reply before the call counts as over: longer than any endpoint hangover in use."""
LIMIT_S = 60.0
"""The longest wait for a reply after the recording has ended."""


@dataclass(slots=True)
class Call:
    """What one call produced, on one clock that starts with the first sample sent."""

    track: Track | None = None
    transcripts: list[str] = field(default_factory=list)
    timelines: list[dict[str, object]] = field(default_factory=list)
    finished: list[ResponseFinished] = field(default_factory=list)
    heard_at_s: list[float] = field(default_factory=list)
    answers_at_s: list[float] = field(default_factory=list)
    """When the first audio of each reply came."""
    duration_s: float = 0.0


async def call(
    open_conversation: Callable[[Callable[[ConversationEvent], None]], Conversation],
    samples: Samples,
    clock: Clock,
    *,
    on_event: Callable[[ConversationEvent], None] = lambda event: None,
) -> Call:
    """Play `samples` (16 kHz) in real time and keep the line open until the agent has answered and finished speaking."""
    result = Call()
    start = clock.now()
    open_responses: set[str] = set()
    untraced: set[str] = set()
    heard: set[str] = set()
    busy_until = 0.0
    recognising = 0

    def emit(event: ConversationEvent) -> None:
        nonlocal busy_until, recognising
        at_s = clock.now() - start
        match event:
            case ResponseAudio(samples=audio, rate_hz=rate_hz, response_id=response_id):
                if result.track is None:
                    result.track = Track(rate_hz)
                result.track.play(audio, at_s, continues=response_id in heard)
                if response_id not in heard:
                    result.answers_at_s.append(at_s)
                heard.add(response_id)
            case SpeechStarted():
                recognising += 1
                if result.track is not None:
                    result.track.stop(at_s)
            case SpeechStopped():
                result.heard_at_s.append(at_s)
            case TranscriptFailed():
                recognising -= 1
            case TranscriptFinal(text=text):
                recognising -= 1
                result.transcripts.append(text)
            case ResponseStarted(response_id=response_id):
                open_responses.add(response_id)
                untraced.add(response_id)
            case ResponseFinished():
                open_responses.discard(event.response_id)
                result.finished.append(event)
            case TurnTraced(response_id=response_id, timeline=timeline):
                untraced.discard(response_id)
                result.timelines.append(dict(timeline))
            case _:
                pass
        busy_until = max(at_s, busy_until, result.track.end_s if result.track is not None else 0.0)
        on_event(event)

    frame = round(FRAME_S * INPUT_RATE_HZ)
    silence = np.zeros(frame, dtype=np.float32)
    length_s = samples.size / INPUT_RATE_HZ
    async with open_conversation(emit) as conversation:
        index = 0
        while True:
            at_s = index * FRAME_S
            waits = open_responses or untraced or recognising > 0
            if at_s >= length_s and not waits and at_s > max(busy_until, length_s) + SETTLE_S:
                break
            if at_s > max(length_s, busy_until) + LIMIT_S:
                break
            # A frame is complete, and may be sent, when its last sample has been spoken.
            await clock.sleep_until(start + at_s + FRAME_S)
            piece = samples[index * frame : (index + 1) * frame]
            conversation.push_audio(piece if piece.size == frame else np.concatenate([piece, silence[piece.size :]]))
            index += 1
        result.duration_s = clock.now() - start
    return result


async def find_speech_end_s(detector: VoiceDetector, samples: Samples, threshold: float = 0.5) -> float | None:
    """End of the last speech in a recording, to the detector's window (32 ms); None when it holds none."""
    stream = detector.open()
    window = detector.window_samples
    end: float | None = None
    for start in range(0, samples.size - window + 1, window):
        if await stream.probability(samples[start : start + window]) >= threshold:
            end = (start + window) / INPUT_RATE_HZ
    return end


def latency_s(result: Call, end_s: float | None) -> float | None:
    """Voice-to-voice latency of the last turn of a call whose caller stopped speaking at `end_s`; None where no reply began after that."""
    if result.track is None or end_s is None or result.answers_at_s[-1] <= end_s:
        return None
    return voice_to_voice_s(result.track.samples(), result.track.rate_hz, end_s)

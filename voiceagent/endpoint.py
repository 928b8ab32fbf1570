"""When a pause is the end of the turn. Pure: evidence in, decision out.

One function weighs all evidence. Today that is silence alone; the probability that the sentence is complete and the stability of
the transcript become further arguments, which change the silence that is asked for and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from voiceagent.vad import VoicedUtterance


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """The trade between answering soon and cutting people off.

    Raises:
        ValueError: If a value is outside the range stated beside it.
    """

    silence_s: float = 0.35
    """0.05 to 10. Silence that ends a turn; OpenAI Realtime's `silence_duration_ms`. The default cut off 1 of 131 spoken orders
    and commands, and was reached 0.36 s (p50) after their true end; 0.5 cut off none. Speech with long pauses wants more: every
    dictated number and half of the sentences read aloud were cut off at either."""
    max_utterance_s: float = 60.0
    """1 to 3600. Voice or noise that goes on for longer is a turn by force: nothing may listen for ever."""

    def __post_init__(self) -> None:
        if not 0.05 <= self.silence_s <= 10:
            raise ValueError(f"silence_s = {self.silence_s}: expected 0.05 to 10 seconds")
        if not 1 <= self.max_utterance_s <= 3600:
            raise ValueError(f"max_utterance_s = {self.max_utterance_s}: expected 1 to 3600 seconds")


@dataclass(frozen=True, slots=True)
class EndpointDecision:
    """The turn is over."""

    speech_end_sample: int
    """One past the last voiced sample."""
    endpoint_sample: int
    """One past the last sample looked at when it was decided."""
    reason: Literal["silence", "too_long"]


def decide(utterance: VoicedUtterance | None, settings: EndpointSettings) -> EndpointDecision | None:
    """Whether the turn is over, asked once per window; None while it is not, or while nobody speaks."""
    if utterance is None:
        return None
    # Voice that has just come back gets the window it needs to prove itself: the turn must not end on the first word after a pause.
    if utterance.is_paused and not utterance.is_stirring and utterance.silence_s >= settings.silence_s:
        return EndpointDecision(utterance.voice_end_sample, utterance.position_sample, "silence")
    if utterance.duration_s >= settings.max_utterance_s:
        return EndpointDecision(utterance.voice_end_sample, utterance.position_sample, "too_long")
    return None

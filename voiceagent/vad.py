"""From speech probabilities to where a caller's utterance begins, pauses and goes on. Pure; time is a sample index at 16 kHz.

    for window in windower.push(samples):
        changes = activity.update(await detector_stream.probability(window))

`endpoint.py` decides from `activity.utterance` when a pause ends the turn; then call `activity.end_utterance()`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from voiceagent.backends import INPUT_RATE_HZ, Samples

WINDOW_SAMPLES = 512
"""32 ms: what Silero expects at 16 kHz."""


@dataclass(frozen=True, slots=True)
class VadSettings:
    """When sound counts as speech.

    Raises:
        ValueError: If a value is outside the range stated beside it.
    """

    threshold: float = 0.5
    """In (0, 1). Probability at which speech opens; OpenAI Realtime's `threshold`."""
    hysteresis: float = 0.15
    """In [0, 1). Speech stays open above threshold minus this (Silero's own value)."""
    min_speech_s: float = 0.096
    """Speech shorter than this, counted in windows and rounded up, never starts an utterance: a click, a cup put down."""
    min_resume_s: float = 0.064
    """The same within a pause: what is shorter does not interrupt the silence. A breath after the last word is one window."""
    agent_threshold_rise: float = 0.2
    """In [0, 1). Added to the threshold for opening while the agent speaks: echo of it is weaker speech than the caller's."""
    agent_min_speech_s: float = 0.192
    """Minimum speech while the agent speaks, instead of `min_speech_s`."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold = {self.threshold}: expected more than 0 and less than 1")
        for name in ("hysteresis", "agent_threshold_rise"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} = {value}: expected at least 0 and less than 1")
        for name in ("min_speech_s", "min_resume_s", "agent_min_speech_s"):
            value = getattr(self, name)
            if not 0 <= value <= 5:
                raise ValueError(f"{name} = {value}: expected 0 to 5 seconds")


@dataclass(frozen=True, slots=True)
class Started:
    """An utterance began. `start_sample` is the first sample of its first voiced window, before the one that proved it."""

    start_sample: int


@dataclass(frozen=True, slots=True)
class Paused:
    """Voice stopped; `at_sample` is the first sample of the silence."""

    at_sample: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """The pause was only a pause; `at_sample` is the first sample of the voice that followed it."""

    at_sample: int


VoiceChange: TypeAlias = Started | Paused | Resumed


@dataclass(frozen=True, slots=True)
class VoicedUtterance:
    """The utterance so far, as endpointing sees it."""

    start_sample: int
    voice_end_sample: int
    """One past the last voiced sample: the end of speech, should nothing follow."""
    position_sample: int
    """One past the last sample looked at."""
    is_paused: bool
    is_stirring: bool
    """In the pause there is voice right now, too short so far to count as `Resumed`."""

    @property
    def silence_s(self) -> float:
        return (self.position_sample - self.voice_end_sample) / INPUT_RATE_HZ

    @property
    def duration_s(self) -> float:
        return (self.position_sample - self.start_sample) / INPUT_RATE_HZ


class VoiceActivity:
    """Hysteresis and minimum lengths over one probability per window."""

    def __init__(self, settings: VadSettings | None = None, *, window_samples: int = WINDOW_SAMPLES) -> None:
        self.settings = settings or VadSettings()
        self._window_samples = window_samples
        self._position = 0
        self._run_start = 0
        self._run_windows = 0
        """Windows of the voiced run that has yet to prove itself, and where it began."""
        self._utterance_start: int | None = None
        self._voice_end = 0
        self._is_paused = False

    @property
    def position_sample(self) -> int:
        """One past the last sample of the last window seen."""
        return self._position

    @property
    def is_speaking(self) -> bool:
        """An utterance is open, in voice or in a pause."""
        return self._utterance_start is not None

    @property
    def utterance(self) -> VoicedUtterance | None:
        if self._utterance_start is None:
            return None
        return VoicedUtterance(
            start_sample=self._utterance_start,
            voice_end_sample=self._voice_end,
            position_sample=self._position,
            is_paused=self._is_paused,
            is_stirring=self._is_paused and self._run_windows > 0,
        )

    def update(self, probability: float, *, agent_is_speaking: bool = False) -> tuple[VoiceChange, ...]:
        """Take the next window's speech probability; say what changed with it.

        Args:
            agent_is_speaking: The agent is audible to the caller, so opening is harder.
        """
        start, end = self._position, self._position + self._window_samples
        self._position = end
        release = self.settings.threshold - self.settings.hysteresis
        if self._utterance_start is not None and not self._is_paused:
            if probability >= release:
                self._voice_end = end
                return ()
            self._is_paused = True
            self._run_windows = 0
            return (Paused(start),)
        return self._try_to_open(probability, start, end, release, agent_is_speaking)

    def pass_over(self) -> None:
        """Let a window pass that is judged elsewhere: media time moves, and nothing opens."""
        self._position += self._window_samples
        self._run_windows = 0

    def open(self, start_sample: int, voice_end_sample: int) -> None:
        """An utterance began that was noticed elsewhere; both samples lie in what has been seen."""
        self._utterance_start, self._voice_end = start_sample, voice_end_sample
        self._is_paused = voice_end_sample < self._position
        self._run_windows = 0

    def _try_to_open(
        self, probability: float, start: int, end: int, release: float, agent_is_speaking: bool
    ) -> tuple[VoiceChange, ...]:
        opening = self._utterance_start is None
        rise = self.settings.agent_threshold_rise if opening and agent_is_speaking else 0.0
        threshold = min(self.settings.threshold + rise, 0.99)
        if probability < (release + rise if self._run_windows else threshold):
            self._run_windows = 0
            return ()
        if self._run_windows == 0:
            self._run_start = start
        self._run_windows += 1
        if not opening:
            needed_s = self.settings.min_resume_s
        elif agent_is_speaking:
            needed_s = self.settings.agent_min_speech_s
        else:
            needed_s = self.settings.min_speech_s
        # A hair's breadth of tolerance: 0.096 s are three windows although 3 * 0.032 is a little more in binary.
        if self._run_windows * self._window_samples < needed_s * INPUT_RATE_HZ - 1e-6:
            return ()
        self._run_windows = 0
        self._voice_end = end
        self._is_paused = False
        if opening:
            self._utterance_start = self._run_start
            return (Started(self._run_start),)
        return (Resumed(self._run_start),)

    def end_utterance(self) -> None:
        """The turn is over (endpoint, commit or clear): the next voice starts a new utterance. Media time runs on."""
        self._utterance_start = None
        self._is_paused = False
        self._run_windows = 0


class Windower:
    """Cuts a stream into exact windows, however it arrives."""

    def __init__(self, window_samples: int = WINDOW_SAMPLES) -> None:
        if window_samples <= 0:
            raise ValueError(f"window_samples = {window_samples}: expected a positive number")
        self._window_samples = window_samples
        self._window: Samples = np.empty(window_samples, np.float32)
        """The next one, filled up to `pending_samples`."""
        self.pending_samples = 0
        """Samples that do not fill a window yet."""

    def push(self, samples: Samples) -> list[Samples]:
        """Windows that are now complete, oldest first. They are copies: the input may be reused."""
        windows, taken, size = [], 0, self._window_samples
        while taken + size - self.pending_samples <= len(samples):
            more = size - self.pending_samples
            self._window[self.pending_samples :] = samples[taken : taken + more]
            windows.append(self._window)
            self._window = np.empty(size, np.float32)
            taken, self.pending_samples = taken + more, 0
        rest = len(samples) - taken
        if rest:
            self._window[self.pending_samples : self.pending_samples + rest] = samples[taken:]
            self.pending_samples += rest
        return windows

    def reset(self) -> None:
        """Drop the incomplete window."""
        self.pending_samples = 0


class PreRoll:
    """The last seconds of a stream, so that an utterance can start before it was noticed."""

    def __init__(self, capacity_samples: int) -> None:
        if capacity_samples <= 0:
            raise ValueError(f"capacity_samples = {capacity_samples}: expected a positive number")
        self._ring: Samples = np.zeros(capacity_samples, np.float32)
        self._end = 0

    @property
    def end_sample(self) -> int:
        """One past the newest sample: all samples ever pushed."""
        return self._end

    @property
    def start_sample(self) -> int:
        """The oldest sample still held."""
        return max(self._end - len(self._ring), 0)

    def push(self, samples: Samples) -> None:
        capacity, first = len(self._ring), self._end % len(self._ring)
        if first + len(samples) <= capacity:
            self._ring[first : first + len(samples)] = samples
            self._end += len(samples)
            return
        kept = samples[-capacity:]
        first = (self._end + len(samples) - len(kept)) % capacity
        head = min(len(kept), capacity - first)
        self._ring[first : first + head] = kept[:head]
        self._ring[: len(kept) - head] = kept[head:]
        self._end += len(samples)

    def since(self, sample: int) -> Samples:
        """A copy of everything from `sample` on, or from the oldest held sample when that is later."""
        start = min(max(sample, self.start_sample), self._end)
        return self._ring[np.arange(start, self._end) % len(self._ring)]

"""A simulated loudspeaker that obeys as the page does, and what its waveform tells about who talked over it."""

from __future__ import annotations

import math

import numpy as np
import soxr

from voiceagent.backends import INPUT_RATE_HZ, Samples

STEP_S = 0.02
STEP = round(STEP_S * INPUT_RATE_HZ)
FRAME = 80
"""5 ms: the resolution of what is read from the waveform."""
STILL_S = 0.2
"""An agent that would have been heard for so long, and is not, has been stopped."""


class Loudspeaker:
    """Plays at 16 kHz what has arrived, as the page does, and keeps the waveform; and beside it what would have been played undisturbed."""

    START_S, FADE_S, RISE_S = 0.06, 0.005, 0.06
    SILENT_GAIN = 1e-5

    def __init__(self) -> None:
        self.played: list[Samples] = []
        self.undisturbed: list[Samples] = []
        self._queue = np.zeros(0, np.float32)
        self._whole = np.zeros(0, np.float32)
        self._starts_at: float | None = None
        self._gain, self._target, self._step = 1.0, 1.0, 0.0
        self.turned_down: list[float] = []
        """Seconds of what was played until the gain was down by 20 dB, each time: while the agent pauses no waveform shows it."""
        self._resampler: soxr.ResampleStream | None = None
        self._ahead: int | None = None
        """While it is held: how far behind the place where it goes on what would have been played lies."""
        self.held: list[float] = []
        """Seconds of silence, each time that it went on after one."""

    def push(self, samples: Samples, rate_hz: int, now: float) -> None:
        if self._resampler is None:
            self._resampler = soxr.ResampleStream(rate_hz, INPUT_RATE_HZ, 1, dtype="float32")
            self._starts_at = now + self.START_S
        new = self._resampler.resample_chunk(samples)
        self._queue = np.concatenate([self._queue, new])
        self._whole = np.concatenate([self._whole, new])

    def turn(self, gain: float, ramp_s: float) -> None:
        if gain <= self.SILENT_GAIN:
            gain, self._ahead = 0.0, self._ahead or 0
        elif self._ahead is not None:
            self.held.append(self._ahead / INPUT_RATE_HZ)
            self._ahead = None
        self._target, self._step = gain, (gain - self._gain) / (ramp_s * INPUT_RATE_HZ)

    def flush(self) -> None:
        if self._gain > 0.1:
            self.turned_down.append(len(self.played) * STEP / INPUT_RATE_HZ)
        fade = round(self.FADE_S * INPUT_RATE_HZ)
        self._queue = self._queue[:fade] * self._gain * np.linspace(1, 0, min(fade, self._queue.size), dtype=np.float32)
        self._gain = self._target = 1.0
        self._ahead = None

    def render(self, now: float) -> Samples:
        """The next step's sound."""
        out, ideal = np.zeros(STEP, np.float32), np.zeros(STEP, np.float32)
        if self._starts_at is not None and now >= self._starts_at:
            ahead, size = self._ahead or 0, STEP
            if self._ahead is not None:
                size = min(STEP, 0 if self._gain == 0.0 else math.ceil(-self._gain / self._step))
                self._ahead += STEP - size
            out[: min(size, self._queue.size)] = self._queue[:size]
            would_be = self._whole[ahead : ahead + STEP]
            ideal[: would_be.size] = would_be
            self._queue, self._whole = self._queue[size:], self._whole[size:]
        if self._gain != 1.0 or self._target != 1.0:
            gains = self._gain + self._step * np.arange(1, STEP + 1)
            low, high = sorted((self._gain, self._target))
            gains = np.clip(gains, low, high).astype(np.float32)
            out *= gains
            if self._gain > 0.1 >= gains[-1]:
                at = len(self.played) * STEP + int(np.argmax(gains <= 0.1))
                self.turned_down.append(at / INPUT_RATE_HZ)
            self._gain = float(gains[-1])
        self.played.append(out)
        self.undisturbed.append(ideal)
        return out


def read_waveform(
    played: Samples, undisturbed: Samples, onset_s: float
) -> tuple[float | None, float | None, float | None]:
    """Seconds from the onset to an output 20 dB down, to silence that lasts, and to an output that is back."""
    size = min(played.size, undisturbed.size) // FRAME * FRAME
    out = np.sqrt(np.square(played[:size].reshape(-1, FRAME)).mean(axis=1)) + 1e-9
    ideal = np.sqrt(np.square(undisturbed[:size].reshape(-1, FRAME)).mean(axis=1)) + 1e-9
    audible = ideal > 10 ** (-50 / 20)
    down = audible & (out < ideal * 0.1)
    first = round(onset_s * INPUT_RATE_HZ / FRAME)
    frame_s = FRAME / INPUT_RATE_HZ

    def after(condition: np.ndarray, start: int) -> int | None:
        found = np.flatnonzero(condition[start:])
        return None if not found.size else start + int(found[0])

    ducked = after(down, max(first - 20, 0))
    if ducked is None:
        return None, None, None
    back = after(audible & (out > ideal * 0.9), ducked)
    loud = np.flatnonzero(out > 10 ** (-66 / 20))
    end = int(loud[-1]) + 1 if loud.size else 0
    silent = end if audible[end:].sum() * frame_s > STILL_S else None
    at = [None if each is None else round((each - first) * frame_s, 4) for each in (ducked, silent, back)]
    return at[0], at[1], at[2]


def turned_after(speaker: Loudspeaker, onset_s: float) -> float | None:
    """Seconds from the onset until the loudspeaker's gain is 20 dB down, or it is flushed."""
    return next((round(at - onset_s, 4) for at in speaker.turned_down if at > onset_s - 0.1), None)


def held_for(speaker: Loudspeaker) -> float | None:
    """Seconds of the longest silence after which the agent came back."""
    return round(max(speaker.held), 3) if speaker.held else None

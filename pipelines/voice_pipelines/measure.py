"""Voice-to-voice latency from two waveforms on one clock: what the caller said and what the caller heard.

The start of the answer is the first sample of the first 5 ms frame whose RMS is above -50 dBFS, so leading silence of the voice counts
as waiting. The threshold is 10 dB above the noise of 8-bit telephony and far below speech (-30 to -15 dBFS).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voiceagent.backends import Samples

AUDIBLE_DBFS = -50.0
FRAME_S = 0.005


def first_audible_s(
    samples: Samples, rate_hz: int, from_s: float = 0.0, threshold_dbfs: float = AUDIBLE_DBFS
) -> float | None:
    """Time of the first audible frame at or after `from_s`, in seconds from the track's start; None when all is silent."""
    frame = max(round(rate_hz * FRAME_S), 1)
    start = max(round(from_s * rate_hz), 0)
    tail = samples[start:]
    count = tail.size // frame
    if count == 0:
        return None
    energy = np.square(tail[: count * frame].reshape(count, frame), dtype=np.float64).mean(axis=1)
    loud = np.flatnonzero(energy > 10.0 ** (threshold_dbfs / 10.0))
    return None if loud.size == 0 else (start + int(loud[0]) * frame) / rate_hz


def voice_to_voice_s(agent: Samples, rate_hz: int, speech_end_s: float) -> float | None:
    """From the true end of the caller's speech to the first audible agent sample; both tracks start at the same instant.

    None when the agent stays silent. An agent that already speaks at `speech_end_s` gives 0: it did not wait.
    """
    heard = first_audible_s(agent, rate_hz, speech_end_s)
    return None if heard is None else max(heard - speech_end_s, 0.0)


@dataclass(frozen=True, slots=True)
class Percentiles:
    count: int
    mean: float
    p50: float
    p95: float
    p99: float

    def as_ms(self) -> dict[str, float | int]:
        values = {"mean": self.mean, "p50": self.p50, "p95": self.p95, "p99": self.p99}
        return {"count": self.count, **{f"{name}_ms": round(value * 1000, 1) for name, value in values.items()}}


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """Nearest-rank percentiles.

    Raises:
        ValueError: If `seconds` is empty.
    """
    if not seconds:
        raise ValueError("percentiles of nothing: expected at least one measurement")
    ordered = sorted(seconds)

    def rank(q: float) -> float:
        return ordered[min(int(np.ceil(q * len(ordered))), len(ordered)) - 1]

    return Percentiles(len(ordered), float(np.mean(ordered)), rank(0.5), rank(0.95), rank(0.99))


class Track:
    """What a loudspeaker plays: pieces placed where a player without prefetch would play them."""

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self._pieces: list[tuple[int, Samples]] = []
        self._end = 0
        self.underruns_s: list[float] = []

    @property
    def end_s(self) -> float:
        return self._end / self.rate_hz

    def play(self, samples: Samples, at_s: float, *, continues: bool) -> None:
        """Queue audio that arrived at `at_s`; it starts when what is queued has ended.

        `continues` says that it belongs to a reply already playing: a gap before it is an underrun and is recorded.
        """
        arrived = round(at_s * self.rate_hz)
        if continues and arrived > self._end:
            self.underruns_s.append((arrived - self._end) / self.rate_hz)
        start = max(arrived, self._end)
        self._pieces.append((start, samples))
        self._end = start + samples.size

    def stop(self, at_s: float) -> None:
        """Barge-in: everything from `at_s` on is dropped."""
        cut = round(at_s * self.rate_hz)
        kept: list[tuple[int, Samples]] = []
        for start, samples in self._pieces:
            if start < cut:
                kept.append((start, samples[: cut - start]))
        self._pieces = kept
        self._end = min(self._end, max(cut, 0))

    def samples(self, duration_s: float | None = None) -> Samples:
        """The whole track as float32 from time 0, at least `duration_s` long."""
        length = max(self._end, round((duration_s or 0.0) * self.rate_hz))
        track = np.zeros(length, dtype=np.float32)
        for start, samples in self._pieces:
            track[start : start + samples.size] = samples
        return track

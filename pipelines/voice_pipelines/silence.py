"""Silence around a synthesizer's clause: cut in front, shortened behind. Pure."""

from __future__ import annotations

import numpy as np

from voiceagent.backends import Samples

AUDIBLE_DBFS = -50.0
"""A sample is audible when its absolute value is above this."""


class SilenceTrimmer:
    """Audio of one clause in pieces, without what nobody hears; the same samples however it is cut.

    Args:
        rate_hz: Sample rate of the clause.
        lead_s: Silence kept before the first audible sample, so that it does not begin with a click.
        tail_s: Silence kept after the last audible sample, at most what was there.
        threshold_dbfs: What counts as audible.
    """

    def __init__(
        self, rate_hz: int, *, lead_s: float = 0.002, tail_s: float = 0.12, threshold_dbfs: float = AUDIBLE_DBFS
    ) -> None:
        self._lead_samples = round(lead_s * rate_hz)
        self._tail_samples = round(tail_s * rate_hz)
        self._threshold = 10 ** (threshold_dbfs / 20)
        self._held: Samples = np.zeros(0, np.float32)
        """Before anything was audible: the end of the silence. Later: silence that may turn out to be the last."""
        self._has_begun = False

    def push(self, samples: Samples) -> Samples:
        """What may be played now; a pause is held back until voice follows it."""
        joined = np.concatenate([self._held, samples])
        audible = np.flatnonzero(np.abs(joined) > self._threshold)
        if not len(audible):
            self._held = joined if self._has_begun else joined[len(joined) - min(self._lead_samples, len(joined)) :]
            return joined[:0]
        first = 0 if self._has_begun else max(int(audible[0]) - self._lead_samples, 0)
        end = int(audible[-1]) + 1
        self._has_begun = True
        self._held = joined[end:]
        return joined[first:end]

    def flush(self) -> Samples:
        """The silence that ends the clause, shortened; nothing when nothing was audible."""
        tail = self._held[: self._tail_samples] if self._has_begun else self._held[:0]
        self._held = self._held[:0]
        self._has_begun = False
        return tail

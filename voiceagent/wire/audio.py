"""Audio between the wire's formats and the runtime's samples, with the state that streaming needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from voiceagent.audio import PCM16_24K, PCMA_8K, PCMU_8K, AudioFormat, StreamingResampler
from voiceagent.backends import INPUT_RATE_HZ, Samples
from voiceagent.wire.session import FormatName

FORMATS: Mapping[FormatName, AudioFormat] = {"audio/pcm": PCM16_24K, "audio/pcmu": PCMU_8K, "audio/pcma": PCMA_8K}

MAX_DELTA_S = 0.2
"""Longest audio in one delta: a client can start playing the first while the rest is still on its way."""


class InputAudio:
    """A client's audio as 16 kHz samples, however its bytes are cut."""

    def __init__(self, name: FormatName) -> None:
        self._format = FORMATS[name]
        self._resampler = StreamingResampler(self._format.rate_hz, INPUT_RATE_HZ)
        self._rest = b""

    def samples(self, audio: bytes) -> Samples:
        data = self._rest + audio
        whole = len(data) - len(data) % self._format.bytes_per_sample
        self._rest = data[whole:]
        return self._resampler.push(self._format.decode(data[:whole]))

    def finish(self) -> Samples:
        """What is still in flight; half a sample is dropped and the next call of `samples` starts a new stream."""
        self._rest = b""
        return self._resampler.flush()


class OutputAudio:
    """One response's audio in the client's format, in pieces of whole samples and at most `MAX_DELTA_S`."""

    def __init__(self, rate_hz: int, name: FormatName) -> None:
        self._format = FORMATS[name]
        self._resampler = StreamingResampler(rate_hz, self._format.rate_hz)

    def encode(self, samples: Samples) -> Iterator[bytes]:
        return self._pieces(self._resampler.push(samples))

    def finish(self) -> Iterator[bytes]:
        """The end of the response's audio."""
        return self._pieces(self._resampler.flush())

    def _pieces(self, samples: Samples) -> Iterator[bytes]:
        step = round(MAX_DELTA_S * self._format.rate_hz)
        for start in range(0, len(samples), step):
            yield self._format.encode(np.asarray(samples[start : start + step]))

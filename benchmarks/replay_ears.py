"""Recognisers of a replay: they hear in this process, and on the manual clock take what they are told to take, whatever they take here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

import numpy as np
from pauses import pcm
from whisper_ear import WhisperEar

from voice_pipelines.adapters.whisper import WhisperDecoder, as_said
from voice_pipelines.adapters.whisper_window import WindowOptions
from voice_pipelines.asr.decoder import SphinxDecoder
from voiceagent.backends import INPUT_RATE_HZ, BackendInfo, Partial, Samples, Take, Transcript
from voiceagent.clock import ManualClock

PACE = 0.13
"""Of its audio's length: what PocketSphinx took for 0.5 to 1.4 s of it, on two cores of an Intel Xeon with others at work. By times as they were taken here an answer comes
before a window in one run and behind it in the next."""
DECODE_S = 0.14
"""What `tiny.en` takes of a thread for a voice of up to a second with likely words before it: of 146, 0.12 s of processor time at the median and 0.15 s for
95 %, beside others at work, which makes it longer than it is alone."""


class SphinxUtterance:
    def __init__(self, decoder: SphinxDecoder, clock: ManualClock, pace: float) -> None:
        self._decoder, self._clock, self._pace = decoder, clock, pace
        self._samples: list[Samples] = []

    def feed(self, samples: Samples) -> None:
        self._samples.append(samples)

    async def finish(self) -> Transcript:
        samples = np.concatenate([np.zeros(0, np.float32), *self._samples])
        self._decoder.start()
        self._decoder.feed(pcm(samples))
        text = self._decoder.finish().text
        await self._clock.sleep_until(self._clock.now() + self._pace * samples.size / INPUT_RATE_HZ)
        return Transcript(text)

    def cancel(self) -> None:
        pass


class Sphinx:
    """PocketSphinx. It takes `pace` of its audio's length."""

    info = BackendInfo("asr", "pocketsphinx", "benchmark")
    words_after_s = 0.0
    tells_confidence = False

    def __init__(self, decoder: SphinxDecoder, clock: ManualClock, pace: float = PACE) -> None:
        self._decoder, self._clock, self._pace = decoder, clock, pace

    async def open(self, on_partial: Callable[[Partial], None]) -> SphinxUtterance:
        return SphinxUtterance(self._decoder, self._clock, self._pace)

    async def aclose(self) -> None:
        pass


class WhisperUtterance:
    """All of its audio is there when it is asked for its words."""

    def __init__(self, ear: WhisperEar, clock: ManualClock) -> None:
        self._ear, self._clock = ear, clock

    def feed(self, samples: Samples) -> None:
        self._ear.feed(samples, self._clock.now())

    async def finish(self) -> Transcript:
        told = self._ear.finish(self._clock.now())
        await self._clock.sleep_until(told.at_s)
        return Transcript(told.text)

    def cancel(self) -> None:
        pass


class Whisper:
    """A converted Whisper on a thread of its own. Each decode takes `decode_s`."""

    info = BackendInfo("asr", "whisper", "benchmark")
    words_after_s = 0.5
    tells_confidence = False

    def __init__(
        self,
        decoder: WhisperDecoder,
        clock: ManualClock,
        decode_s: float = DECODE_S,
        options: WindowOptions | None = None,
    ) -> None:
        self._decoder, self._clock, self._decode_s, self._options = decoder, clock, decode_s, options

    async def open(self, on_partial: Callable[[Partial], None]) -> WhisperUtterance:
        return WhisperUtterance(WhisperEar(self._decoder, self._decode_s, self._options), self._clock)

    async def takes(self, samples: Samples, *, is_whole: bool, likely: Sequence[str]) -> AsyncGenerator[Take, None]:
        options = replace(self._options or WindowOptions(), partials=False)
        ear = WhisperEar(self._decoder.without_hot_words, self._decode_s, options, as_said(likely))
        utterance = WhisperUtterance(ear, self._clock)
        utterance.feed(samples)
        yield Take((await utterance.finish()).text)

    async def aclose(self) -> None:
        pass

"""Two recognisers for one caller: a quick one to take turns by, a careful one for the text.

Both hear the same audio. What is heard while the caller speaks is the quick one's: it ends turns and begins drafts. The final transcript is the
careful one's, unless it fails or is late; `settle` says which, and nothing here waits for a decoder except `finish`. Who talks over whom is told by
both, each at its own pace (`takes`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeAlias

from voiceagent.backends import (
    BackendInfo,
    GuessesNeed,
    HasProcesses,
    HasTakes,
    Partial,
    Samples,
    Take,
    Transcriber,
    Transcript,
    Utterance,
)
from voiceagent.clock import Clock, MonotonicClock
from voiceagent.errors import BackendError, OverloadedError
from voiceagent.foresight import Need

_log = logging.getLogger(__name__)

Answer: TypeAlias = Transcript | Exception | None
"""What one of the two has come to; None while it is waited for."""


@dataclass(frozen=True, slots=True)
class PairOptions:
    """How long the quick one's final stands by for the careful one's, in seconds."""

    patience_s: float = 0.5
    """A decode of an order takes 0.11 s of a core and begins in the pause before the end of the turn: who is not there then is behind with other callers."""
    doubted_patience_s: float = 2.0
    """The same where the quick one doubts its words: a dictated number, which Whisper may hear twice (0.5 s), is not worth guessing."""
    doubted_below: float = 0.5
    """Confidence below which it does: even odds that more than a word in three is wrong."""

    def __post_init__(self) -> None:
        if not 0 <= self.patience_s <= self.doubted_patience_s:
            raise ValueError(f"{self}: expected 0 <= patience_s <= doubted_patience_s")

    def patience_for(self, quick: Transcript) -> float:
        """Seconds that the careful one has from the quick one's final on."""
        is_doubted = quick.confidence is not None and quick.confidence < self.doubted_below
        return self.doubted_patience_s if is_doubted else self.patience_s


def settle(quick: Answer, careful: Answer, *, is_late: bool) -> Answer:
    """Which of the two answers is the final one, or None to wait on.

    The careful one's is, also where it is empty: it tells noise from speech far better, and a turn that nobody took would be answered. The quick one's is,
    where the careful one failed, or where it is late and the quick one has words; without any nobody waits for an answer, and the careful one may
    have heard some. If both failed it is the quick one's error.

    Args:
        is_late: Whether the careful one has had its time since the quick one's answer.
    """
    match quick, careful:
        case _, Transcript():
            return careful
        case _, Exception():
            return quick
        case Transcript(text=text), None if is_late and text:
            return quick
        case _:
            return None


def newest(quick: Answer, careful: Answer) -> Take | None:
    """What is known of a short voice by now: the careful one's words, or those of the quick one meanwhile; None where there are none."""
    match quick, careful:
        case _, Transcript(text=text):
            return Take(text)
        case Transcript(text=text), _:
            return Take(text, is_last=careful is not None)
        case _:
            return None


class PairedTranscriber:
    """A `Transcriber` made of two; it owns and closes both.

    Args:
        quick: Tells what it hears while the caller speaks.
        careful: Best one that decodes in pauses alone, since what it tells before the final is used only where the quick one could not be opened.
    """

    def __init__(
        self,
        quick: Transcriber,
        careful: Transcriber,
        info: BackendInfo,
        *,
        options: PairOptions | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.info = info
        self.words_after_s = quick.words_after_s
        self.tells_confidence = quick.tells_confidence
        self._quick = quick
        self._careful = careful
        self._options = options or PairOptions()
        self._clock = clock or MonotonicClock()

    @property
    def cpu_s(self) -> float:
        """Processor time of the processes of both."""
        return sum(each.cpu_s for each in (self._quick, self._careful) if isinstance(each, HasProcesses))

    @property
    def need(self) -> Need | None:
        """What a caller needs for both, as far as they say."""
        told = [each.need for each in (self._quick, self._careful) if isinstance(each, GuessesNeed)]
        known = [need for need in told if need is not None]
        return sum(known[1:], known[0]) if known else None

    async def open(self, on_partial: Callable[[Partial], None]) -> PairedUtterance:
        """Start one utterance with both, or with the one that has room.

        Raises:
            BackendError, OverloadedError: The quick one's, if neither could be opened.
        """
        quick = await _opened(self._quick, on_partial)
        try:
            careful = await _opened(self._careful, on_partial if isinstance(quick, _Unopened) else _nobody)
        except BaseException:
            quick.cancel()
            raise
        if isinstance(quick, _Unopened) and isinstance(careful, _Unopened):
            raise quick.error from careful.error
        return PairedUtterance(quick, careful, self._options, self._clock)

    async def takes(self, samples: Samples, *, is_whole: bool, likely: Sequence[str]) -> AsyncGenerator[Take, None]:
        """The words of a short voice: the quick one's first, then the careful one's. Of half a voice the quick one alone is asked: what the careful one
        would say of it is there when the voice is over, and would hold up what it says of the whole.

        Raises:
            BackendError, OverloadedError: The quick one's, if nobody could tell.
        """
        if not is_whole:
            yield Take((await _heard(self._quick, samples, is_whole, likely)).text)
            return
        quick = asyncio.create_task(_heard(self._quick, samples, is_whole, likely))
        careful = asyncio.create_task(_heard(self._careful, samples, is_whole, likely))
        told: Take | None = None
        try:
            while told is None or not told.is_last:
                heard = _answer(quick), _answer(careful)
                if isinstance(heard[1], Exception) and isinstance(heard[0], Transcript):
                    _log.warning("the careful recogniser failed, and the quick one's words are used: %s", heard[1])
                take = newest(*heard)
                if take is not None and take != told:
                    told = take
                    yield take
                    continue
                match heard:
                    case Exception() as error, Exception() as other:
                        raise error from other
                await asyncio.wait(
                    [task for task in (quick, careful) if not task.done()], return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            quick.cancel()
            careful.cancel()

    async def aclose(self) -> None:
        """Close both; what is open fails."""
        await asyncio.gather(self._quick.aclose(), self._careful.aclose())


class PairedUtterance:
    """One utterance; made by `PairedTranscriber.open`."""

    def __init__(self, quick: Utterance, careful: Utterance, options: PairOptions, clock: Clock) -> None:
        self._quick = quick
        self._careful = careful
        self._options = options
        self._clock = clock

    def feed(self, samples: Samples) -> None:
        self._quick.feed(samples)
        self._careful.feed(samples)

    async def finish(self) -> Transcript:
        """The final result of one of the two, as `settle` says; the other's work ends with it.

        Raises:
            BackendError, OverloadedError: The quick one's, if both failed.
        """
        began = self._clock.now()
        quick = asyncio.create_task(self._quick.finish())
        careful = asyncio.create_task(self._careful.finish())
        patience: asyncio.Task[None] | None = None
        try:
            while True:
                heard = _answer(quick), _answer(careful)
                final = settle(*heard, is_late=patience is not None and patience.done())
                if final is not None:
                    break
                if patience is None and isinstance(heard[0], Transcript):
                    until = self._clock.now() + self._options.patience_for(heard[0])
                    patience = asyncio.create_task(self._clock.sleep_until(until))
                tasks = (quick, careful) if patience is None else (quick, careful, patience)
                await asyncio.wait([task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (quick, careful, patience):
                if task is not None:
                    task.cancel()
            self.cancel()
        match heard:
            case Exception() as error, Exception() as other:
                raise error from other
            case _, Exception() as error:
                _log.warning("the careful recogniser failed, and the quick one's words are used: %s", error)
            case Exception() as error, _:
                _log.warning("the quick recogniser failed, and the careful one's words are used: %s", error)
            case Transcript() as words, None:
                waited_s = self._options.patience_for(words)
                _log.warning("the careful recogniser is late by %g s, and the quick one's words are used", waited_s)
        assert isinstance(final, Transcript)
        return replace(final, compute_s=self._clock.now() - began)

    def cancel(self) -> None:
        self._quick.cancel()
        self._careful.cancel()


class _Unopened:
    """An utterance in the place of one that could not be opened: its result is the error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def feed(self, samples: Samples) -> None:
        """Nobody hears it."""

    async def finish(self) -> Transcript:
        raise self.error

    def cancel(self) -> None:
        """Nothing is being recognised."""


async def _opened(transcriber: Transcriber, on_partial: Callable[[Partial], None]) -> Utterance:
    try:
        return await transcriber.open(on_partial)
    except (BackendError, OverloadedError) as error:
        return _Unopened(error)


async def _heard(transcriber: Transcriber, samples: Samples, is_whole: bool, likely: Sequence[str]) -> Transcript:
    """What one of the two makes of a short voice at last, in a way of its own where it has one."""
    if isinstance(transcriber, HasTakes):
        text = ""
        async with aclosing(transcriber.takes(samples, is_whole=is_whole, likely=likely)) as heard:
            async for take in heard:
                text = take.text
        return Transcript(text)
    utterance = await transcriber.open(_nobody)
    try:
        utterance.feed(samples)
        return await utterance.finish()
    finally:
        utterance.cancel()


def _nobody(partial: Partial) -> None:
    """The other one's partials are told."""


def _answer(task: asyncio.Task[Transcript]) -> Answer:
    if not task.done():
        return None
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, Exception):
        return error
    raise error

"""One utterance of the caller on its way to a transcript."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import numpy as np

from voiceagent.backends import (
    INPUT_RATE_HZ,
    HasTakes,
    Partial,
    Samples,
    Take,
    Transcriber,
    Transcript,
    Utterance,
)
from voiceagent.budget import BudgetController


class Hearing:
    """Feeds an utterance whose decoder may still be opening; audio that comes before it is ready waits, none is lost."""

    def __init__(
        self, asr: Transcriber, item_id: str, on_partial: Callable[[Partial], None], budget: BudgetController
    ) -> None:
        self.item_id = item_id
        self.fed_samples = 0
        self._waiting: list[Samples] = []
        self._utterance: Utterance | None = None
        self._is_cancelled = False
        self._budget = budget
        budget.open_utterances += 1
        self._opening = asyncio.ensure_future(asr.open(on_partial))
        self._opening.add_done_callback(self._opened)

    @property
    def audio_s(self) -> float:
        return self.fed_samples / INPUT_RATE_HZ

    def feed(self, samples: Samples) -> None:
        self.fed_samples += samples.size
        if self._utterance is None:
            self._waiting.append(np.array(samples, dtype=np.float32))
        else:
            self._utterance.feed(samples)

    async def finish(self) -> Transcript:
        """The final transcript.

        Raises:
            BackendError: If the recogniser failed, while opening or later.
        """
        utterance = await self._opening
        # What waited for the decoder must reach it first: a task that has ended lets us go on before it calls back.
        self._take_over(utterance)
        return await utterance.finish()

    def cancel(self) -> None:
        """Nothing more of it is wanted, also when its transcript is there: its decoder is free. Safe at any time, also twice."""
        if not self._is_cancelled:
            self._budget.open_utterances -= 1
        self._is_cancelled = True
        self._budget.room.awaited.pop(self, None)
        self._waiting.clear()
        if self._utterance is not None:
            self._utterance.cancel()
        else:
            self._opening.cancel()

    def _opened(self, opening: asyncio.Future[Utterance]) -> None:
        if opening.cancelled():
            return
        if opening.exception() is not None:
            return  # `finish` raises it to whoever waits for the transcript.
        self._take_over(opening.result())

    def _take_over(self, utterance: Utterance) -> None:
        """The decoder is there, and hears what waited for it. Safe to call twice."""
        if self._utterance is not None:
            return
        self._utterance = utterance
        if self._is_cancelled:
            utterance.cancel()
            return
        for samples in self._waiting:
            utterance.feed(samples)
        self._waiting.clear()


async def takes(
    asr: Transcriber, samples: Samples, budget: BudgetController, *, is_whole: bool, likely: Sequence[str]
) -> AsyncGenerator[Take, None]:
    """The words of a short voice that is no utterance yet, as soon as anybody has them (`HasTakes`); of a transcriber without a way of its own, its final.

    Raises:
        BackendError, OverloadedError: If nobody could tell.
    """
    if isinstance(asr, HasTakes):
        budget.open_utterances += 1
        try:
            async with aclosing(asr.takes(samples, is_whole=is_whole, likely=likely)) as heard:
                async for take in heard:
                    yield take
        finally:
            budget.open_utterances -= 1
        return
    hearing = Hearing(asr, "", lambda partial: None, budget)
    try:
        hearing.feed(samples)
        yield Take((await hearing.finish()).text)
    finally:
        hearing.cancel()

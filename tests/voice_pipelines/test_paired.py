"""Two recognisers as one: what is heard meanwhile is the quick one's, the final the careful one's, and no failure of one of them is the caller's."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import run_async
from tests.voice_pipelines.tiny_whisper import make_tiny_whisper
from voice_pipelines.adapters.paired import PairedTranscriber, PairOptions, settle
from voice_pipelines.adapters.pocketsphinx import PocketSphinxOptions, PocketSphinxTranscriber
from voice_pipelines.adapters.whisper import FasterWhisperTranscriber, WhisperDecoder
from voice_pipelines.adapters.whisper_window import IN_PAUSES
from voice_pipelines.asr.vocabulary import Vocabulary
from voice_pipelines.models import choose_model
from voiceagent.backends import (
    INPUT_RATE_HZ,
    BackendInfo,
    GuessesNeed,
    HasProcesses,
    HasTakes,
    Partial,
    Samples,
    Take,
    Transcriber,
    Transcript,
)
from voiceagent.clock import ManualClock
from voiceagent.errors import BackendError, OverloadedError
from voiceagent.foresight import Need

INFO = BackendInfo("asr", "a pair", "made in a test")
QUICK, CAREFUL = Transcript("a ladder", confidence=0.8), Transcript("A latte.", confidence=0.9)
BROKEN = BackendError("asr", "broken")
SECOND = np.full(INPUT_RATE_HZ, 0.1, np.float32)
"""Audio of as many blocks as it has seconds: a scripted ear tells a word for each."""


class ScriptedEar:
    """A recogniser whose answer comes so long after the end of the audio; errors in the place of answers are raised."""

    info = INFO

    def __init__(
        self,
        clock: ManualClock,
        answer: Transcript | Exception,
        *,
        takes_s: float = 0.0,
        refuses: Exception | None = None,
        cpu_s: float | None = None,
        words_after_s: float = 0.0,
        tells_confidence: bool = False,
    ) -> None:
        self.clock = clock
        self.answer = answer
        self.takes_s = takes_s
        self.refuses = refuses
        self.words_after_s = words_after_s
        self.tells_confidence = tells_confidence
        self.open_utterances: list[ScriptedUtterance] = []
        self.utterances: list[ScriptedUtterance] = []
        self.is_closed = False
        if cpu_s is not None:
            self.cpu_s = cpu_s

    async def open(self, on_partial: Callable[[Partial], None]) -> ScriptedUtterance:
        if self.refuses is not None:
            raise self.refuses
        utterance = ScriptedUtterance(self, on_partial)
        self.utterances.append(utterance)
        self.open_utterances.append(utterance)
        return utterance

    async def aclose(self) -> None:
        self.is_closed = True
        for utterance in tuple(self.open_utterances):
            utterance.fail(BackendError("asr", "closed"))


class ScriptedUtterance:
    def __init__(self, owner: ScriptedEar, on_partial: Callable[[Partial], None]) -> None:
        self.owner = owner
        self.on_partial = on_partial
        self.samples = 0
        self.told = 0
        self.result: asyncio.Future[Transcript] = asyncio.get_running_loop().create_future()

    def feed(self, samples: Samples) -> None:
        self.samples += len(samples)
        while self.told < self.samples // INPUT_RATE_HZ:
            self.told += 1
            text = self.owner.answer.text if isinstance(self.owner.answer, Transcript) else "a latte"
            self.on_partial(Partial("", " ".join(text.split()[: self.told]), 0.5))

    async def finish(self) -> Transcript:
        thinking = asyncio.create_task(self._think())
        try:
            return await self.result
        finally:
            thinking.cancel()
            self.cancel()

    def cancel(self) -> None:
        if self in self.owner.open_utterances:
            self.owner.open_utterances.remove(self)
        if not self.result.done():
            self.result.set_result(Transcript(""))

    def fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)
            self.result.exception()

    async def _think(self) -> None:
        await self.owner.clock.sleep_until(self.owner.clock.now() + self.owner.takes_s)
        if isinstance(self.owner.answer, Exception):
            self.fail(self.owner.answer)
        elif not self.result.done():
            self.result.set_result(self.owner.answer)


class Pair:
    """Both ears and what they are made into, on a clock that stands still."""

    def __init__(
        self,
        quick: Transcript | Exception = QUICK,
        careful: Transcript | Exception = CAREFUL,
        *,
        quick_s: float = 0.0,
        careful_s: float = 0.1,
        quick_refuses: Exception | None = None,
        careful_refuses: Exception | None = None,
    ) -> None:
        self.clock = ManualClock()
        self.quick = ScriptedEar(self.clock, quick, takes_s=quick_s, refuses=quick_refuses)
        self.careful = ScriptedEar(self.clock, careful, takes_s=careful_s, refuses=careful_refuses)
        self.both = PairedTranscriber(self.quick, self.careful, INFO, clock=self.clock)
        self.partials: list[str] = []

    async def hear(self, within_s: float, cuts: Sequence[int] = ()) -> Transcript | Exception | None:
        """Two seconds of audio, cut there; what `finish` came to in that time, None if nothing."""
        utterance = await self.both.open(lambda partial: self.partials.append(partial.text))
        audio = np.concatenate((SECOND, SECOND))
        for start, end in itertools.pairwise((0, *cuts, len(audio))):
            utterance.feed(audio[start:end])
        finishing = asyncio.create_task(utterance.finish())
        await self.clock.advance(within_s)
        if not finishing.done():
            utterance.cancel()
            assert await finishing == Transcript("", compute_s=within_s)
            self.check_free()
            return None
        self.check_free()
        error = finishing.exception()
        assert error is None or isinstance(error, Exception)
        return error or finishing.result()

    def check_free(self) -> None:
        assert not self.quick.open_utterances and not self.careful.open_utterances


def words(heard: Transcript | Exception | None) -> str | None:
    assert not isinstance(heard, Exception), heard
    return None if heard is None else heard.text


# --- which of the two ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_late", [False, True])
def test_the_careful_answer_counts_as_soon_as_it_is_there_whatever_the_quick_one_is(is_late: bool) -> None:
    for quick in (QUICK, Transcript(""), BROKEN, None):
        assert settle(quick, CAREFUL, is_late=is_late) is CAREFUL


def test_the_quick_answer_counts_where_the_careful_one_failed_or_is_late() -> None:
    assert settle(QUICK, BROKEN, is_late=False) is QUICK
    assert settle(QUICK, None, is_late=False) is None
    assert settle(QUICK, None, is_late=True) is QUICK
    assert settle(Transcript(""), None, is_late=True) is None, "nobody waits, and the careful one may hear something"
    assert settle(BROKEN, None, is_late=True) is None, "there is nothing else"
    assert settle(None, BROKEN, is_late=False) is None


def test_of_two_failures_the_quick_ones_is_told() -> None:
    error = BackendError("asr", "quick")
    assert settle(error, BROKEN, is_late=False) is error


def test_patience_is_no_less_than_none() -> None:
    assert PairOptions(0.0)
    for wrong in ((-0.1, 2.0), (3.0, 2.0)):
        with pytest.raises(ValueError, match="0 <= patience_s <= doubted_patience_s"):
            PairOptions(*wrong)


@pytest.mark.parametrize(("confidence", "patience_s"), [(None, 0.5), (0.5, 0.5), (0.49, 2.0), (0.0, 2.0)])
def test_words_that_the_quick_one_doubts_stand_in_for_nothing_so_soon(
    confidence: float | None, patience_s: float
) -> None:
    assert PairOptions().patience_for(Transcript("tree", confidence=confidence)) == patience_s


def test_an_empty_careful_answer_is_believed() -> None:
    silence = Transcript("")
    assert settle(QUICK, silence, is_late=False) is silence


# --- as a recogniser -----------------------------------------------------------------------------------------------------


def test_partials_are_the_quick_ones_and_the_final_is_the_careful_ones_however_the_audio_is_cut() -> None:
    async def main() -> None:
        for cuts in ((), range(320, 32_000, 320), (1, 17_000), (16_000,)):
            pair = Pair()
            assert await pair.hear(0.2, cuts) == Transcript("A latte.", confidence=0.9, compute_s=0.1)
            assert pair.partials == ["a", "a ladder"]
            assert [ear.utterances[0].samples for ear in (pair.quick, pair.careful)] == [32_000, 32_000]

    run_async(main())


def test_a_careful_one_that_is_there_first_is_not_held_up_by_the_quick_one() -> None:
    async def main() -> None:
        assert words(await Pair(quick_s=9.0).hear(0.1)) == "A latte."

    run_async(main())


def test_the_careful_one_has_its_patience_from_the_quick_ones_final_on(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        assert words(await Pair(quick_s=0.2, careful_s=0.69).hear(0.7)) == "A latte."
        assert not caplog.records
        assert await Pair(quick_s=0.2, careful_s=9.0).hear(0.69) is None
        caplog.clear()
        assert await Pair(quick_s=0.2, careful_s=9.0).hear(0.71) == Transcript("a ladder", (), 0.8, compute_s=0.7)
        assert [record.message for record in caplog.records] == [
            "the careful recogniser is late by 0.5 s, and the quick one's words are used"
        ]

        pair = Pair(Transcript("a ladder", confidence=0.1), careful_s=1.9)
        assert words(await pair.hear(1.9)) == "A latte.", "a doubtful word is waited for longer"

    run_async(main())


@pytest.mark.parametrize("moment", ["opens", "finishes"])
def test_a_careful_one_that_fails_or_is_full_leaves_the_quick_ones_words_and_is_told_of_once(
    moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        for error in (BROKEN, OverloadedError(64, 64)):
            caplog.clear()
            pair = Pair(careful_refuses=error) if moment == "opens" else Pair(careful=error)
            assert words(await pair.hear(0.2)) == "a ladder"
            assert pair.partials == ["a", "a ladder"]
            (record,) = caplog.records
            assert record.message == f"the careful recogniser failed, and the quick one's words are used: {error}"

    run_async(main())


def test_a_quick_one_that_cannot_be_opened_leaves_both_to_the_careful_one(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        pair = Pair(quick_refuses=BROKEN, careful_s=9.0)
        assert words(await pair.hear(9.0)) == "A latte.", "nothing else is waited for"
        assert pair.partials == ["A", "A latte."]
        (record,) = caplog.records
        assert record.message == "the quick recogniser failed, and the careful one's words are used: asr: broken"

    run_async(main())


def test_a_quick_one_that_dies_amid_the_speech_leaves_the_final_to_the_careful_one() -> None:
    async def main() -> None:
        pair = Pair()
        utterance = await pair.both.open(lambda partial: None)
        utterance.feed(SECOND)
        pair.quick.utterances[0].fail(BROKEN)
        utterance.feed(SECOND)
        finishing = asyncio.create_task(utterance.finish())
        await pair.clock.advance(0.1)
        assert (await finishing).text == "A latte."

    run_async(main())


def test_if_both_fail_the_quick_ones_error_is_told_and_the_others_is_behind_it() -> None:
    async def main() -> None:
        first, second = BackendError("asr", "first"), BackendError("asr", "second")
        failed = await Pair(quick=first, careful=second).hear(0.2)
        assert failed is first and failed.__cause__ is second
        first, second = BackendError("asr", "first"), OverloadedError(64, 64)
        with pytest.raises(BackendError, match="first") as caught:
            await Pair(quick_refuses=first, careful_refuses=second).hear(0.2)
        assert caught.value.__cause__ is second

    run_async(main())


def test_cancel_frees_both_at_any_time_and_twice() -> None:
    async def main() -> None:
        for quick_refuses, careful_refuses in ((None, None), (BROKEN, None), (None, BROKEN)):
            pair = Pair(careful_s=9.0, quick_s=9.0, quick_refuses=quick_refuses, careful_refuses=careful_refuses)
            for fed in (0, 1):
                utterance = await pair.both.open(lambda partial: None)
                for _ in range(fed):
                    utterance.feed(SECOND)
                utterance.cancel()
                utterance.cancel()
                assert (await utterance.finish()).text == ""
                pair.check_free()
            utterance = await pair.both.open(lambda partial: None)
            finishing = asyncio.create_task(utterance.finish())
            await pair.clock.advance(0.1)
            utterance.cancel()
            assert (await finishing).text == ""
            utterance.cancel()
            pair.check_free()

    run_async(main())


def test_who_no_longer_waits_for_the_final_frees_both() -> None:
    async def main() -> None:
        for careful_s in (0.3, 9.0):
            pair = Pair(quick_s=0.1, careful_s=careful_s)
            utterance = await pair.both.open(lambda partial: None)
            finishing = asyncio.create_task(utterance.finish())
            await pair.clock.advance(0.2)
            finishing.cancel()
            await pair.clock.settle()
            assert finishing.cancelled()
            pair.check_free()
            assert len(asyncio.all_tasks()) == 1

    run_async(main())


def test_an_open_that_is_cancelled_while_the_careful_one_opens_frees_the_quick_one() -> None:
    async def main() -> None:
        pair = Pair()
        never = asyncio.Event()

        async def slow(on_partial: object) -> ScriptedUtterance:
            await never.wait()
            raise AssertionError

        pair.careful.open = slow  # type: ignore[method-assign]
        opening = asyncio.create_task(pair.both.open(lambda partial: None))
        await pair.clock.settle()
        assert pair.quick.open_utterances
        opening.cancel()
        await pair.clock.settle()
        assert opening.cancelled()
        pair.check_free()

    run_async(main())


def test_closing_closes_both_and_fails_who_waits() -> None:
    async def main() -> None:
        pair = Pair(quick_s=9.0, careful_s=9.0)
        utterance = await pair.both.open(lambda partial: None)
        finishing = asyncio.create_task(utterance.finish())
        await pair.clock.settle()
        await pair.both.aclose()
        assert pair.quick.is_closed and pair.careful.is_closed
        with pytest.raises(BackendError, match="closed"):
            await finishing
        pair.check_free()

    run_async(main())


def test_what_is_told_of_a_pair_is_the_quick_ones_and_the_processor_time_both() -> None:
    clock = ManualClock()
    quick = ScriptedEar(clock, QUICK, cpu_s=1.5, words_after_s=0.1, tells_confidence=True)
    careful = ScriptedEar(clock, CAREFUL, words_after_s=0.5)
    pair = PairedTranscriber(quick, careful, INFO, clock=clock)
    assert (pair.info, pair.words_after_s, pair.tells_confidence) == (INFO, 0.1, True)
    assert isinstance(pair, HasTakes) and isinstance(pair, HasProcesses) and pair.cpu_s == 1.5
    careful = ScriptedEar(clock, CAREFUL, cpu_s=2.0)
    assert PairedTranscriber(quick, careful, INFO, clock=clock).cpu_s == 3.5


@pytest.mark.parametrize(
    ("quick", "careful", "both"),
    [
        (Need(0.25, 0.5), Need(0.5, 0.25), Need(0.75, 0.75)),
        (Need(0.25, 0.5), None, Need(0.25, 0.5)),
        (None, None, None),
    ],
)
def test_a_caller_needs_the_processors_for_both(quick: Need | None, careful: Need | None, both: Need | None) -> None:
    clock = ManualClock()
    ears = ScriptedEar(clock, QUICK), ScriptedEar(clock, CAREFUL)
    for ear, need in zip(ears, (quick, careful), strict=True):
        ear.need = need  # type: ignore[attr-defined]
    pair = PairedTranscriber(*ears, INFO, clock=clock)
    assert isinstance(pair, GuessesNeed) and pair.need == both
    assert PairedTranscriber(*(ScriptedEar(clock, QUICK) for _ in ears), INFO, clock=clock).need is None, "neither says"


# --- a short voice -------------------------------------------------------------------------------------------------------


async def takes(pair: Pair, *, is_whole: bool = True, within_s: float = 20.0) -> list[tuple[float, Take]]:
    """What is told of a voice, and when."""
    told: list[tuple[float, Take]] = []

    async def listen() -> None:
        async for take in pair.both.takes(SECOND, is_whole=is_whole, likely=("stop", "mhm")):
            told.append((round(pair.clock.now(), 3), take))

    listening = asyncio.create_task(listen())
    await pair.clock.advance(within_s)
    if not listening.done():
        listening.cancel()
        await pair.clock.settle()
    assert len(asyncio.all_tasks()) == 1, "nobody listens on"
    pair.check_free()
    if not listening.cancelled():
        await listening
    return told


def test_a_short_voice_is_told_by_the_quick_one_and_then_by_the_careful_one() -> None:
    async def main() -> None:
        first, last = Take("a ladder", is_last=False), Take("A latte.")
        assert await takes(Pair(quick_s=0.1, careful_s=0.6)) == [(0.1, first), (0.6, last)]
        assert await takes(Pair(quick_s=0.6, careful_s=0.1)) == [(0.1, last)], "the careful one knows better"
        assert await takes(Pair(quick_s=0.1, careful_s=9.0), within_s=1.0) == [(0.1, first)], "both are freed"
        assert await takes(Pair(Transcript(""), Transcript(""), careful_s=0.6)) == [
            (0.0, Take("", is_last=False)),
            (0.6, Take("")),
        ]

    run_async(main())


def test_of_half_a_voice_the_careful_one_is_not_asked() -> None:
    async def main() -> None:
        pair = Pair(quick_s=0.1)
        assert await takes(pair, is_whole=False) == [(0.1, Take("a ladder"))]
        assert not pair.careful.utterances

    run_async(main())


def test_a_careful_one_that_fails_on_a_short_voice_makes_the_quick_ones_words_the_last(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        for failing in (
            Pair(quick_s=0.1, careful=BROKEN, careful_s=0.6),
            Pair(quick_s=0.1, careful_refuses=OverloadedError(64, 64)),
        ):
            caplog.clear()
            told = await takes(failing)
            assert [record.message[:26] for record in caplog.records] == ["the careful recogniser fai"]
            assert told[-1][1] == Take("a ladder") and all(take.text == "a ladder" for _, take in told)
        assert await takes(Pair(BROKEN, careful_s=0.6)) == [(0.6, Take("A latte."))]
        with pytest.raises(BackendError, match="first") as caught:
            await takes(Pair(BackendError("asr", "first"), BackendError("asr", "second")))
        assert caught.value.__cause__ is not None
        with pytest.raises(BackendError, match="first"):
            await takes(Pair(BackendError("asr", "first")), is_whole=False)

    run_async(main())


def test_of_both_in_earnest_the_final_is_what_the_careful_one_hears_alone(tmp_path: Path, data_dir: Path) -> None:
    audio = soundfile.read(sorted((data_dir / "order").glob("*.flac"))[0], dtype="float32")[0]
    decoder = WhisperDecoder(make_tiny_whisper(tmp_path), choose_model("cpu", 1, 4.0))

    async def hear(transcriber: Transcriber) -> tuple[list[str], str]:
        partials: list[str] = []
        utterance = await transcriber.open(lambda partial: partials.append(partial.text))
        for start in range(0, len(audio), 1600):
            utterance.feed(audio[start : start + 1600])
        while transcriber.tells_confidence and len(partials) < 3:
            await ManualClock.settle()
            await asyncio.sleep(0.01)
        return partials, (await utterance.finish()).text

    async def main() -> None:
        quick = await PocketSphinxTranscriber.create(
            Vocabulary(("can i get a large latte with oat milk please",)),
            PocketSphinxOptions(workers=1, decoders=1),
            cache=tmp_path,
        )
        careful = FasterWhisperTranscriber(decoder, INFO, options=IN_PAUSES)
        both = PairedTranscriber(quick, careful, INFO, options=PairOptions(60.0, 60.0))
        try:
            partials, final = await hear(both)
            (_, heard), (_, written) = await hear(quick), await hear(careful)
            assert heard and final == written != heard
            assert partials and not set(partials) & {final}
            assert both.cpu_s == quick.cpu_s > 0.0
        finally:
            await both.aclose()

    run_async(main(), timeout_s=120.0)

"""Voice over the agent where two recognisers listen, on the manual clock: whose words decide, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from tests.conftest import run_async
from tests.voiceagent.conversing import Line, talk
from tests.voiceagent.over_the_agent import LONG, answered, over
from tests.voiceagent.standins import silence, tone
from voice_pipelines.adapters.paired import PairedTranscriber
from voiceagent import hearing
from voiceagent.backends import BackendInfo, Partial, Samples, Take, Transcriber, Transcript
from voiceagent.budget import BudgetController
from voiceagent.clock import ManualClock
from voiceagent.events import PlaybackRestored, SpeechStarted
from voiceagent.session import SessionSettings, TurnDetection

HELD = SessionSettings(can_be_held=True)


class Ear:
    """Hears an order first, and then `words`, one text after the other, each so long after it was asked."""

    info = BackendInfo("asr", "scripted", "stand-in")
    words_after_s = 0.0
    tells_confidence = False

    def __init__(self, clock: ManualClock, *words: str, takes_s: float = 0.0) -> None:
        self.clock, self.words, self.takes_s = clock, ["a mocha please", *words], takes_s
        self.opened = 0

    async def open(self, on_partial: Callable[[Partial], None]) -> EarUtterance:
        words = self.words[min(self.opened, len(self.words) - 1)]
        takes_s = self.takes_s if self.opened else 0.0
        self.opened += 1
        return EarUtterance(self.clock, words, takes_s)

    async def aclose(self) -> None:
        pass


class EarUtterance:
    def __init__(self, clock: ManualClock, words: str, takes_s: float) -> None:
        self.clock, self.words, self.takes_s = clock, words, takes_s

    def feed(self, samples: Samples) -> None:
        pass

    async def finish(self) -> Transcript:
        await self.clock.sleep_until(self.clock.now() + self.takes_s)
        return Transcript(self.words)

    def cancel(self) -> None:
        pass


def both(quick: str, careful: str, careful_s: float, *, half: str = "so") -> Callable[[ManualClock], Transcriber]:
    """The quick one needs 0.05 s."""

    def made(clock: ManualClock) -> Transcriber:
        ears = Ear(clock, half, quick, takes_s=0.05), Ear(clock, careful, takes_s=careful_s)
        return PairedTranscriber(*ears, ears[1].info, clock=clock)

    return made


def heard(
    ears: Callable[[ManualClock], Transcriber], voice_s: float, settings: SessionSettings = HELD
) -> tuple[list[str], float]:
    """What a voice over the agent leads to, and how long after its end that is."""
    after_s: list[float] = []

    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(tone(voice_s))
        ended = line.clock.now()
        for _ in range(50):
            count = len(line.of(PlaybackRestored)) + len(line.of(SpeechStarted))
            await line.play(silence(0.02))
            if len(line.of(PlaybackRestored)) + len(line.of(SpeechStarted)) > count:
                after_s.append(line.clock.now() - ended)

    line = talk(scenario, written=(LONG, "Yes?"), step_s=0.0, settings=settings, ears=ears)
    return over(line), after_s[0]


DUCKED, MUTED = 0.3, 0.5
BACK, STOPPED = "PlaybackRestored", "SpeechStarted"


@pytest.mark.parametrize("voice_s", [DUCKED, MUTED], ids=["ducked", "muted"])
@pytest.mark.parametrize(
    ("quick", "careful", "expected"),
    [
        ("receive", "I see.", BACK),
        ("latte to", "Got it.", BACK),
        ("an ham", "Mm-hmm.", BACK),
        ("with a", "Three.", STOPPED),
        ("two", "Two.", STOPPED),
    ],
)
def test_who_hears_best_decides_where_that_is_there_in_time(
    voice_s: float, quick: str, careful: str, expected: str
) -> None:
    told, after_s = heard(both(quick, careful, 0.3), voice_s)
    assert told[-1] == expected
    assert 0.4 <= after_s <= 0.5, "0.1 s of silence, and its 0.3 s"


@pytest.mark.parametrize("voice_s", [DUCKED, MUTED], ids=["ducked", "muted"])
def test_a_careful_one_that_is_late_costs_no_stop_and_no_backchannel(voice_s: float) -> None:
    for quick, expected in (("got it", BACK), ("stop", STOPPED)):
        told, after_s = heard(both(quick, "Got it." if expected == BACK else "Stop.", 1.5), voice_s)
        assert told[-1] == expected
        assert after_s <= 0.22, "the quick one's words are plain"
    told, after_s = heard(both("a latte", "A latte.", 1.5), voice_s)
    assert told[-1] == STOPPED and 0.5 <= after_s <= 0.6, "by the quick one's words, when the time is over"


def test_words_that_nobody_but_a_late_careful_one_hears_stop_an_agent_that_is_back() -> None:
    told, _ = heard(both("", "Three.", 0.8), DUCKED)
    assert told == ["PlaybackDucked", BACK, STOPPED]


def test_a_stopping_word_of_the_quick_one_stops_the_agent_while_it_is_spoken_whatever_the_careful_one_is_doing() -> (
    None
):
    async def scenario(line: Line) -> None:
        await answered(line)
        await line.play(tone(0.38))
        assert over(line) == ["PlaybackDucked", STOPPED]

    talk(scenario, written=(LONG, "Yes?"), step_s=0.0, ears=both("stop", "Stop.", 9.0, half="stop"))


def test_of_a_short_voice_the_careful_one_is_told_what_is_likely_there(monkeypatch: pytest.MonkeyPatch) -> None:
    likely: list[tuple[str, ...]] = []
    takes = PairedTranscriber.takes

    def noted(pair: PairedTranscriber, samples: Samples, **about: Any) -> AsyncGenerator[Take, None]:
        likely.append(about["likely"])
        return takes(pair, samples, **about)

    monkeypatch.setattr(PairedTranscriber, "takes", noted)
    detection = TurnDetection(backchannels=("ja", "genau"), stopping_words=("halt",))
    heard(both("genau", "Genau.", 0.1), DUCKED, SessionSettings(turn_detection=detection))
    assert set(likely) == {("halt", "ja", "genau")}


@pytest.mark.parametrize("cancels", [False, True])
def test_a_short_voice_counts_as_an_utterance_as_long_as_it_is_recognised(cancels: bool) -> None:
    async def main() -> None:
        clock, budget = ManualClock(), BudgetController()
        listening = asyncio.create_task(collect(both("a latte", "A latte.", 0.4)(clock), budget))
        await clock.advance(0.2)
        assert budget.open_utterances == 1
        if cancels:
            listening.cancel()
        await clock.advance(0.4)
        assert budget.open_utterances == 0 and listening.done()

    async def collect(asr: Transcriber, budget: BudgetController) -> list[Take]:
        samples = tone(0.3)
        (await asr.open(lambda partial: None)).cancel()  # The order before it.
        return [take async for take in hearing.takes(asr, samples, budget, is_whole=True, likely=())]

    run_async(main())

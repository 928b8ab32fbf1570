"""The turn-end model as a `TurnScorer`: words alone, beside any language model or none."""

from __future__ import annotations

import asyncio
from pathlib import Path

from voice_pipelines.adapters.smart_turn import SmartTurn
from voice_pipelines.turn_end.model import WEIGHTS, TurnEndModel
from voice_pipelines.turn_end.odds import Heard, known, weighed
from voice_pipelines.turn_end.phrases import PhraseEnds
from voiceagent.backends import BackendInfo, TurnJudgement, TurnSoFar
from voiceagent.endpoint_words import is_answer, is_yes_or_no

FEWER_ODDS = 0.5
"""Of a turn that is no short answer, where nobody else judges. The model was taught that seven turns in ten have a pause, so it finds all ends likelier
than the cost of a cut-off reckons with: of callers half of whom
pause 4.6 % are cut off at the default cost with half the odds (3.8 where the recogniser tells what was misheard); with all of them, those of an earlier version, it was 8.4 %."""
YES_OR_NO = 0.5
"""A yes or a no alone is at least so complete, where one was asked for: enough to be waited for no longer than silence alone would. People who type go on behind it."""
SURELY_MISHEARD = 0.05
"""Confidence of the recogniser below which words were misheard. Most of what is said to the agent lies far above, most of what is read to it below. As a weight between both ways to take
them it takes 7 to 19 points from callers who pause: right words that are doubted a little are waited for (docs/endpointing.md)."""
HEARS_WITHIN_S = 0.1
"""Of an ear. It hears one caller after the other: where several pause at once the words must not wait for it, since an answer later than 0.15 s leaves silence alone."""


def alone(
    probability: float,
    words: str,
    asked: str,
    heard: Heard | None = None,
    confidence: float | None = None,
    ends: float | None = None,
) -> float:
    """What the turn-end model's word is worth without another model's beside it.

    Args:
        heard: By the sound of the voice alone; None where nobody listened.
        confidence: That the words are right, by the recogniser; where it does not tell they count as right.
        ends: Share of the agent's phrases with the same last words that end behind them; of misheard words that says nothing.
    """
    if is_answer(words, asked):
        return max(probability, YES_OR_NO) if is_yes_or_no(words, asked) else probability
    odds = FEWER_ODDS * probability / (1 - probability)
    is_misheard = is_surely_misheard(confidence)
    of_words = odds / (1 + odds)
    return weighed(of_words if is_misheard else known(of_words, ends), heard, is_misheard=is_misheard)


def is_surely_misheard(confidence: float | None) -> bool:
    """Whether a recogniser that is so sure of words has misheard them; where it does not tell they count as right."""
    return confidence is not None and confidence < SURELY_MISHEARD


def said_before(turn: TurnSoFar) -> str:
    """What the agent said last; "" where it has said nothing."""
    return next((said.text for said in reversed(turn.turns[:-1]) if said.role == "agent" and said.text), "")


class TurnWordsScorer:
    """Answers at once, on the caller's thread: less than a millisecond of it.

    Args:
        ear: Hears the voice in the place of `voiceagent.endpoint_sound`, on its thread; closed with this.
        hears_within_s: Longer than that it is not waited for, and the words judge alone.
        phrases: What callers of the agent say, where its vocabulary lists it.

    Raises:
        BackendError: If the weights cannot be loaded.
    """

    def __init__(
        self,
        path: Path = WEIGHTS,
        ear: SmartTurn | None = None,
        *,
        hears_within_s: float = HEARS_WITHIN_S,
        phrases: PhraseEnds | None = None,
    ) -> None:
        self.info = BackendInfo("endpoint", "turn-end model", "judges the words, whatever model replies")
        self.weighs_sound, self.hears_voice = ear is None, ear is not None
        self._model = TurnEndModel.load(path)
        self._ear = ear
        self._hears_within_s = hears_within_s
        self._phrases = phrases

    async def completeness(self, turn: TurnSoFar) -> float:
        words, asked = turn.turns[-1].text, said_before(turn)
        heard = None if is_answer(words, asked) else await self.heard(turn)
        ends = None if self._phrases is None else self._phrases.share(words)
        return alone(self.taught(turn), words, asked, heard, turn.confidence, ends)

    async def judge(self, turn: TurnSoFar) -> TurnJudgement:
        is_answer_alone = is_answer(turn.turns[-1].text, said_before(turn))
        return TurnJudgement(await self.completeness(turn), not is_answer_alone and is_surely_misheard(turn.confidence))

    async def heard(self, turn: TurnSoFar) -> Heard | None:
        """What the sound of the voice says, by whoever listens; None where nobody does."""
        if self._ear is not None:
            try:
                return await asyncio.wait_for(self._ear.hear(turn.audio), self._hears_within_s)
            except TimeoutError:
                return None
        return None if turn.sound is None else Heard(turn.sound)

    def taught(self, turn: TurnSoFar) -> float:
        """The model's own probability, for whoever joins it with another's."""
        return self._model.completeness(turn.turns[-1].text, said_before(turn))

    async def aclose(self) -> None:
        if self._ear is not None:
            await self._ear.aclose()

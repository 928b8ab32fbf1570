"""The built-in family's own probability that a caller's turn is complete, joined with the turn-end model's, as a `TurnScorer`.

The turn-end model has read far more turns, the built-in one knows the agent's topics, and the conversation from its beginning. Its answer is read off the model that writes the replies, on its thread and its prefix cache: while the caller pauses, one forward over their words
and a canvas of masks. Whether a checkpoint was taught the question cannot be seen from outside, so it is asked a few questions first.

What both are worth follows from how much the words surprise it, which the same forward tells: a transcript that makes no sense to it was misheard, or
is about something it has not learnt, and says little about its own end.

Answers of up to three words (`voiceagent.endpoint_words.is_answer`) are left to the turn-end model, which was taught them: to the built-in one a "two" or a name alone is as strange as what
was misheard.
"""

from __future__ import annotations

import asyncio

import numpy as np

from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.transcript import TurnEnd, turn_end
from voice_pipelines.adapters.diffusion import DiffusionDrafter
from voice_pipelines.adapters.turn_words import TurnWordsScorer, said_before
from voice_pipelines.turn_end.odds import Heard, together, weighed
from voiceagent.backends import BackendInfo, PromptTurn, TurnJudgement, TurnSoFar
from voiceagent.endpoint_words import is_answer
from voiceagent.errors import BackendError

KNOWN = (
    ("how much is the tea", True),
    ("yes please", True),
    ("that's all thank you", True),
    ("i'd like a", False),
    ("can i get a large", False),
    ("and could you also", False),
)
"""Turns that anybody would say are complete, or are not."""
MOST_SURPRISE = 6.0
"""Nats per token above which words make no sense. Of the transcripts of spoken orders 95 in 100 surprise the built-in model by less than 4.3, of those
of read sentences, three words in four misheard, nine in ten by more than 6.0; of what people typed in calls nine in ten by less than 5.9, in
open talk three in four by less than 6.0."""
NO_SOUND = np.zeros(0, np.float32)
LEAST_GAP = 0.3
"""How much more probable the end of a complete turn must be than that of the other kind, on average."""


def joined(end: TurnEnd, words: float, heard: Heard | None = None) -> float:
    """Both models' probability, the mean of their log-odds; what makes no sense to the built-in one counts as misheard.

    How sure the recogniser is adds nothing to that: the surprise tells as well what was misheard (docs/endpointing.md).

    Args:
        words: The turn-end model's.
        heard: By the sound of the voice alone; None where nobody listened.
    """
    return weighed(together((end.probability, words)), heard, is_misheard=makes_no_sense(end))


def makes_no_sense(end: TurnEnd) -> bool:
    """Whether the words surprise the built-in model too much to have been heard right, or to say much of their end."""
    return end.surprise > MOST_SURPRISE


class DiffusionTurnScorer:
    """A `TurnScorer` on a `DiffusionDrafter`'s engine, which its owner closes. Made by `create`."""

    def __init__(self, drafter: DiffusionDrafter, words: TurnWordsScorer) -> None:
        self.info = BackendInfo("endpoint", f"{words.info.name} and built-in diffusion model", "both judge the words")
        self._drafter = drafter
        self._words = words
        self.weighs_sound, self.hears_voice = words.weighs_sound, words.hears_voice

    @staticmethod
    async def create(drafter: DiffusionDrafter, words: TurnWordsScorer) -> DiffusionTurnScorer:
        """Ask the built-in model what anybody knows.

        Raises:
            BackendError: If it is not of the built-in family, or was not taught the question.
        """
        scorer = DiffusionTurnScorer(drafter, words)
        sums = {True: 0.0, False: 0.0}
        for known, is_complete in KNOWN:
            turn = TurnSoFar("", (PromptTurn("user", known),), (), NO_SOUND)
            sums[is_complete] += (await scorer.ask(turn)).probability
        half = len(KNOWN) // 2
        if (sums[True] - sums[False]) / half < LEAST_GAP:
            raise BackendError(
                "endpoint",
                f"{drafter.info.name} was not taught when a turn is complete: it finds complete ones {sums[True] / half:.2f} "
                f"probable and others {sums[False] / half:.2f}",
            )
        return scorer

    async def judge(self, turn: TurnSoFar) -> TurnJudgement:
        words = self._words.taught(turn)
        if is_answer(turn.turns[-1].text, said_before(turn)):
            return TurnJudgement(words)
        hearing = asyncio.ensure_future(self._words.heard(turn))
        try:
            end = await self.ask(turn)
            return TurnJudgement(joined(end, words, await hearing), makes_no_sense(end))
        finally:
            hearing.cancel()

    async def ask(self, turn: TurnSoFar) -> TurnEnd:
        """The built-in model's own answer.

        Raises:
            BackendError: If it cannot be given.
        """

        def question(engine: Engine) -> TurnEnd:
            tokens = self._drafter.prompts.write(turn.conversation_id, turn.turns, (), turn.tools)
            # A reply's prompt ends with the words, <end> and the agent's role token.
            return turn_end(engine, tokens[:-2])

        try:
            return await self._drafter.ask_engine(question)
        except DllmError as error:
            raise BackendError("endpoint", str(error)) from error

    async def aclose(self) -> None:
        """The engine stays: it is the drafter's."""
        await self._words.aclose()

"""Words that were probably misheard, as the built-in model finds them: a `TranscriptRepairer` on the engine that writes the replies.

One forward says how probable each word is where it stands. Doubtful ones are masked again, alone and with a neighbour, and the words of the agent's
vocabulary that sound like them are looked up in what the model expects at the masks: a second forward, for all of them together. Both run
on the conversation's prefix cache.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence

from dllm.engine import Engine
from dllm.errors import ConfigError, DllmError
from dllm.spoken import spoken_form
from dllm.text import DialogueCodec
from dllm.transcript import HeardTurn
from voice_pipelines.adapters.diffusion import DiffusionDrafter
from voice_pipelines.asr.pronounce import bundled_dictionary
from voice_pipelines.asr.sounds import distance
from voiceagent.backends import BackendInfo, Proposal, TurnSoFar
from voiceagent.errors import BackendError

MOST_DOUBTS = 4
"""Words that are masked again in one transcript: the least probable. Where more are doubtful, the model understands none of it."""
MOST_ALIKE = 24
"""Words looked up in one place, those that sound most alike."""


REMEMBERED = 4096
MOST_NATS = 20.0
"""A factor is not told beyond e to this."""


class DiffusionRepairer:
    """Made by `create`.

    Args:
        words: What may have been meant, in normal form; those that the bundled dictionary lacks are left out.
        below: Words at least as probable are not looked at.
        farthest: How different a word may sound.

    Raises:
        BackendError: If the model is not of the built-in family, or there are no words.
    """

    def __init__(self, drafter: DiffusionDrafter, words: Iterable[str], *, below: float, farthest: float) -> None:
        if not isinstance(drafter.codec, DialogueCodec):
            raise BackendError("repair", f"{drafter.info.name} was not taught to judge transcripts")
        dictionary = bundled_dictionary()
        self._phones = {word: [spoken.split() for spoken in dictionary[word]] for word in words if word in dictionary}
        if not self._phones:
            raise BackendError("repair", "the agent has no vocabulary to look for other words in")
        self.info = BackendInfo(
            "repair", "built-in diffusion model", f"among {len(self._phones)} words of the vocabulary"
        )
        self._drafter, self._codec, self._dictionary = drafter, drafter.codec, dictionary
        self._below, self._farthest = below, farthest
        self._known: dict[tuple[str, ...], list[tuple[float, str]]] = {}

    async def proposals(self, turn: TurnSoFar, words: str) -> Sequence[Proposal]:
        shown = words.split()
        heard = [spoken_form(word) for word in shown]
        if not all(len(word.split()) == 1 for word in heard):
            return ()  # Figures and signs are several words when they are spoken; what is one here was none there.
        said = spoken_form(turn.turns[-1].text)
        before = len(said.split()) - len(heard)  # What they said before a pause, in the same turn.
        if said.split()[max(before, 0) :] != heard:
            return ()  # Words that are spoken otherwise together, as "5 pm": no place in one list is a place in the other.

        def ask(engine: Engine) -> HeardTurn:
            tokens = self._drafter.prompts.write(turn.conversation_id, turn.turns, (), turn.tools)
            if self._codec.special.user not in tokens:
                raise ConfigError("transcript", len(heard), "a turn that fits into a prompt")
            user = len(tokens) - 1 - tokens[::-1].index(self._codec.special.user)
            return HeardTurn(engine, self._codec, tokens[: user + 1], said)

        try:
            found = await self._drafter.ask_engine(lambda engine: ask(engine).words())
            chances = [word.probability for word in found][before:]
            # Many small comparisons: not on the event loop, and the engine has others to serve.
            alike = await asyncio.to_thread(self._alike, heard, chances)
            texts = [[" ".join(heard[first:last]), *near] for (first, last), near in alike.items()]
            places = [(first + before, last + before) for first, last in alike]
            nats = await self._drafter.ask_engine(lambda engine: ask(engine).instead(places, texts))
        except DllmError as error:
            raise BackendError("repair", str(error)) from error
        return [
            Proposal(
                first,
                last,
                " ".join(shown[first:last]),
                meant,
                min(chances[first:last]),
                math.exp(min(other - own, MOST_NATS)),
                far,
            )
            for ((first, last), near), (own, *others) in zip(alike.items(), nats, strict=True)
            for (meant, far), other in zip(near.items(), others, strict=True)
        ]

    async def aclose(self) -> None:
        """Nothing: the engine is the drafter's."""

    def _alike(self, heard: Sequence[str], chances: Sequence[float]) -> dict[tuple[int, int], dict[str, float]]:
        """For each place that is looked at, the words that sound like what was heard there, and how different they do."""
        doubtful = sorted(range(len(heard)), key=lambda at: chances[at])[:MOST_DOUBTS]
        doubtful = [at for at in doubtful if chances[at] < self._below]
        spans = (
            {(at, at + 1) for at in doubtful}
            | {(at, at + 2) for at in doubtful}
            | {(at - 1, at + 1) for at in doubtful}
        )
        found = {}
        for first, last in sorted(spans):
            if first < 0 or last > len(heard) or not all(word in self._dictionary for word in heard[first:last]):
                continue
            near = [(far, word) for far, word in self._near(tuple(heard[first:last])) if [word] != heard[first:last]]
            if near:
                found[first, last] = {word: far for far, word in near[:MOST_ALIKE]}
        return found

    def _near(self, heard: tuple[str, ...]) -> list[tuple[float, str]]:
        """Words of the vocabulary that sound like these, the nearest first. What was asked for once is remembered: callers repeat words."""
        known = self._known.get(heard)
        if known is None:
            phones = [phone for word in heard for phone in self._dictionary[word][0].split()]
            near = []
            for word, spokens in self._phones.items():
                # Each phone too many or too few is one that differs.
                fit = [s for s in spokens if abs(len(s) - len(phones)) <= self._farthest * max(len(s), len(phones))]
                far = min((distance(phones, spoken) for spoken in fit), default=1.0)
                if far <= self._farthest:
                    near.append((far, word))
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known[heard] = sorted(near)
        return known

"""Where an agent's own phrases end says that a turn is over, where the turn-end model has never met such words."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import run_async
from tests.voiceagent.standins import ScriptedDrafter
from voice_pipelines.adapters.turn_words import TurnWordsScorer, alone
from voice_pipelines.asr.grammar import Grammar
from voice_pipelines.local import choose_scorer
from voice_pipelines.turn_end.odds import MOST_BY_PHRASES, NO_IDEA, PHRASES_END, beside, known
from voice_pipelines.turn_end.phrases import PhraseEnds
from voiceagent.backends import PromptTurn, TurnSoFar
from voiceagent.clock import ManualClock
from voiceagent.config import Config
from voiceagent.config_models import VocabularyConfig

SLOTS = {"thing": ("laptop", "printer"), "doctor": ("doctor smith",)}
PHRASES = (
    "my {thing} does not turn on",
    "/3/ reset my password please",
    "reset my password",
    "see {doctor} today",
    "{doctor}",
)
ENDS = PhraseEnds(Grammar(PHRASES, SLOTS))


@pytest.mark.parametrize(
    ("said", "share"),
    [
        ("my laptop does not turn on", 1.0),
        ("Um, hello: my printer does not turn on.", 1.0),
        ("my laptop does not", 0.0),
        ("reset my password", 0.25),
        ("Doctor Smith", 0.5),
        ("see doctor smith", 0.5),
        ("is that doctor smith", None),
        ("turn on", None),
        ("hello", None),
        ("", None),
    ],
)
def test_the_share_of_phrases_that_end_is_told_behind_words_that_stand_in_them(said: str, share: float | None) -> None:
    assert ENDS.share(said) == (None if share is None else pytest.approx(share))


def test_phrases_that_nearly_all_end_make_an_end_more_probable_and_others_say_nothing() -> None:
    assert known(0.3, None) == known(0.3, 0.0) == known(0.3, PHRASES_END - 0.01) == 0.3
    assert known(0.3, 1.0) == pytest.approx(beside(0.3, MOST_BY_PHRASES))
    assert 0.3 < known(0.3, PHRASES_END) < known(0.3, 1.0)


def test_whole_phrases_of_misheard_words_and_short_answers_say_nothing_more() -> None:
    said = "my laptop does not turn on"
    assert alone(0.5, said, "", ends=1.0) > alone(0.5, said, "")
    assert alone(0.9, said, "", confidence=0.0, ends=1.0) == alone(0.9, said, "", confidence=0.0) == NO_IDEA
    assert alone(0.6, "doctor smith", "Who would you like to see?", ends=1.0) == 0.6


@pytest.mark.parametrize("tells_confidence", [True, False])
def test_an_agents_vocabulary_is_asked_where_its_recogniser_tells_what_it_misheard(tells_confidence: bool) -> None:
    said = "my laptop does not turn on"
    turn = TurnSoFar("call", (PromptTurn("user", said),), (), np.zeros(0, np.float32), confidence=1.0)

    async def judged(config: Config) -> float | None:
        scorer, _ = await choose_scorer(config, ScriptedDrafter(ManualClock()), tells_confidence=tells_confidence)
        assert isinstance(scorer, TurnWordsScorer)
        return await scorer.completeness(turn)

    with_phrases = run_async(judged(Config(vocabulary=VocabularyConfig(phrases=PHRASES, slots=SLOTS))))
    without = run_async(judged(Config()))
    assert without is not None and with_phrases is not None
    assert with_phrases == pytest.approx(beside(without, MOST_BY_PHRASES) if tells_confidence else without)

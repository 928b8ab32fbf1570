"""The built-in family says whether a turn is complete, where it was taught to."""

from __future__ import annotations

from pathlib import Path

import pytest

from dllm.loader import Checkpoint
from dllm.transcript import TurnEnd, turn_ends
from tests.conftest import run_async
from tests.dllm.tiny import codec, model
from tests.voice_pipelines import families
from tests.voice_pipelines.test_diffusion import INFO, with_drafter
from voice_pipelines.adapters import diffusion_turns
from voice_pipelines.adapters.diffusion import DiffusionDrafter
from voice_pipelines.adapters.diffusion_turns import DiffusionTurnScorer
from voice_pipelines.adapters.turn_words import TurnWordsScorer
from voice_pipelines.turn_end.odds import NO_IDEA, Heard
from voiceagent.backends import PromptTurn, TurnJudgement, TurnSoFar
from voiceagent.endpoint import EndpointSettings, Evidence, wanted_s
from voiceagent.errors import BackendError

TURNS = (
    PromptTurn("system", "Be brief."),
    PromptTurn("agent", "Hello!"),
    PromptTurn("user", "I'd like a large mocha with"),
)
WORDS = TurnWordsScorer()
CALL = TurnSoFar("call", TURNS, (), diffusion_turns.NO_SOUND)


def test_the_words_are_judged_as_a_recogniser_writes_them_behind_the_conversation() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        text = codec()
        prompt = [
            *text.encode_turn("system", "Be brief."),
            *text.encode_turn("agent", "Hello!"),
            text.special.user,
            *text.encode_text("i'd like a large mocha with"),
        ]
        (expected,) = turn_ends(model(), [prompt])
        scorer = DiffusionTurnScorer(drafter, WORDS)
        found = await scorer.ask(CALL)
        assert found.probability == pytest.approx(expected, rel=1e-4)
        drafter.warm("call", TURNS[:2])
        assert (await scorer.ask(CALL)).probability == pytest.approx(expected, rel=1e-4)
        words = WORDS.taught(CALL)
        judged = await scorer.judge(CALL)
        assert judged.completeness == pytest.approx(diffusion_turns.joined(found, words), rel=1e-4)
        assert judged.is_misheard is (found.surprise > diffusion_turns.MOST_SURPRISE)

    with_drafter(scenario)


def test_a_model_that_was_not_taught_the_question_is_not_asked() -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        with pytest.raises(BackendError, match=r"endpoint: tiny was not taught when a turn is complete: it finds"):
            await DiffusionTurnScorer.create(drafter, WORDS)

    with_drafter(scenario)


def test_a_model_that_knows_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    complete = {tuple(codec().encode_text(words)) for words, is_complete in diffusion_turns.KNOWN if is_complete}
    monkeypatch.setattr(
        diffusion_turns, "turn_end", lambda engine, prompt: TurnEnd(0.9 * (tuple(prompt[1:]) in complete), 2.0)
    )

    async def scenario(drafter: DiffusionDrafter) -> None:
        assert (await DiffusionTurnScorer.create(drafter, WORDS)).info.part == "endpoint"

    with_drafter(scenario)


def test_another_family_is_refused(tmp_path: Path) -> None:
    async def scenario(drafter: DiffusionDrafter) -> None:
        with pytest.raises(BackendError, match="endpoint: .*built-in family"):
            await DiffusionTurnScorer.create(drafter, WORDS)

    with_drafter(scenario, families.checkpoint("sdar", tmp_path))


def test_an_engine_that_has_ended_is_a_failure_of_this_question_alone() -> None:
    async def main() -> None:
        tiny = model()
        drafter = DiffusionDrafter(Checkpoint(tiny.spec, tiny, codec(), Path("nowhere")), INFO)
        await drafter.aclose()
        with pytest.raises(BackendError, match="endpoint: "):
            await DiffusionTurnScorer(drafter, WORDS).judge(CALL)

    run_async(main())


def test_an_answer_of_a_word_or_two_is_left_to_the_turn_end_model_and_a_beginning_is_not() -> None:
    async def main() -> None:
        tiny = model()
        drafter = DiffusionDrafter(Checkpoint(tiny.spec, tiny, codec(), Path("nowhere")), INFO)
        await drafter.aclose()
        scorer = DiffusionTurnScorer(drafter, WORDS)

        def call(words: str, asked: str) -> TurnSoFar:
            turns = (PromptTurn("agent", asked), PromptTurn("user", words))
            return TurnSoFar("call", turns, (), diffusion_turns.NO_SOUND)

        for words in ("large", "No, thanks.", "Tom"):
            answer = call(words, "What size?")
            assert await scorer.judge(answer) == TurnJudgement(await WORDS.completeness(answer))
        for other in (
            call("large with", "What size?"),
            call("large", "What can I get you?"),
            call("large", "A latte."),
        ):
            with pytest.raises(BackendError, match="endpoint: "):
                await scorer.judge(other)

    run_async(main())


@pytest.mark.parametrize("most", [0.0, 1e9])
def test_what_the_model_takes_for_misheard_is_told_with_its_answer(
    monkeypatch: pytest.MonkeyPatch, most: float
) -> None:
    monkeypatch.setattr(diffusion_turns, "MOST_SURPRISE", most)

    async def scenario(drafter: DiffusionDrafter) -> None:
        assert (await DiffusionTurnScorer(drafter, WORDS).judge(CALL)).is_misheard is (most == 0.0)

    with_drafter(scenario)


def test_words_that_make_no_sense_to_the_model_are_not_taken_for_complete() -> None:
    known, strange = diffusion_turns.MOST_SURPRISE - 1, diffusion_turns.MOST_SURPRISE + 1
    assert diffusion_turns.joined(TurnEnd(0.95, known), 0.95) == pytest.approx(0.95)
    assert 0.5 < diffusion_turns.joined(TurnEnd(0.95, known), 0.2) < 0.95, "they meet in the middle"
    assert diffusion_turns.joined(TurnEnd(0.95, strange), 0.95) == NO_IDEA
    low, high = (diffusion_turns.joined(TurnEnd(0.7, known), 0.7, Heard(sound)) for sound in (0.2, 0.8))
    assert low < diffusion_turns.joined(TurnEnd(0.7, known), 0.7) < high
    assert diffusion_turns.joined(TurnEnd(0.95, strange), 0.95, Heard(0.99)) == NO_IDEA, "misheard all the same"
    one_that_knows = Heard(0.99, 0.8)
    assert diffusion_turns.joined(TurnEnd(0.95, strange), 0.95, one_that_knows) == pytest.approx(0.8)
    assert diffusion_turns.joined(TurnEnd(0.95, known), 0.5, one_that_knows) > 0.95


def test_words_that_make_no_sense_and_look_unfinished_are_not_waited_for_as_long_as_there_may_be() -> None:
    strange = TurnEnd(0.05, diffusion_turns.MOST_SURPRISE + 1)
    heard = diffusion_turns.joined(strange, 0.1)
    assert 0.05 < heard < NO_IDEA, "unfinished still, but less surely so"
    settings = EndpointSettings()
    waits = [wanted_s(Evidence(completeness, stable_s=1.0), settings) for completeness in (0.07, heard)]
    assert waits[0] > 0.9 * settings.max_silence_s > waits[1]

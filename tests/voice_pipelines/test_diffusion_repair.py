"""Which words the built-in model proposes instead of doubtful ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dllm.engine import Engine
from dllm.loader import Checkpoint
from dllm.transcript import HeardTurn
from tests.conftest import run_async
from tests.dllm.tiny import codec, model
from tests.voice_pipelines import families
from tests.voice_pipelines.test_diffusion import INFO, with_drafter
from tests.voiceagent.standins import ScriptedDrafter
from voice_pipelines.adapters import diffusion_repair
from voice_pipelines.adapters.diffusion import DiffusionDrafter
from voice_pipelines.adapters.diffusion_repair import DiffusionRepairer
from voice_pipelines.local import choose_repairer
from voice_pipelines.settings import load
from voiceagent.backends import PromptTurn, Proposal, TurnSoFar
from voiceagent.clock import ManualClock
from voiceagent.errors import BackendError, ConfigError

BEFORE = (PromptTurn("system", "Be brief."), PromptTurn("agent", "Hello!"))
WORDS = ("mocha", "milk", "oat", "soy", "soya", "ice", "iced", "almond", "latte", "qqq")


def turn(words: str, before: tuple[PromptTurn, ...] = BEFORE) -> TurnSoFar:
    return TurnSoFar("call", (*before, PromptTurn("user", words)), (), np.zeros(0, np.float32))


def proposed(words: str, *, said: str | None = None, below: float = 1.01, farthest: float = 0.45) -> list[Proposal]:
    found: list[Proposal] = []

    async def scenario(drafter: DiffusionDrafter) -> None:
        repairer = DiffusionRepairer(drafter, WORDS, below=below, farthest=farthest)
        assert repairer.info.part == "repair" and "9 words" in repairer.info.reason
        found.extend(await repairer.proposals(turn(said or words), words))

    with_drafter(scenario)
    return found


def test_words_that_sound_alike_are_weighed_where_they_would_stand() -> None:
    words = "an ice mocha with soya"
    found = {(each.first, each.last, each.meant): each for each in proposed(words)}
    assert {(1, 2, "iced"), (4, 5, "soy")} <= set(found)
    text = codec()
    prompt = [*text.encode_turn("system", "Be brief."), *text.encode_turn("agent", "Hello!"), text.special.user]
    asked = HeardTurn(Engine(model(), text.token_table), text, prompt, words)
    ((own, other),) = asked.instead([(1, 2)], [["ice", "iced"]])
    iced = found[1, 2, "iced"]
    assert iced.factor == pytest.approx(math.exp(other - own), rel=1e-3)
    assert iced.probability == pytest.approx(asked.words()[1].probability, rel=1e-3)
    assert (iced.heard, iced.distance) == ("ice", pytest.approx(1 / 3))


def test_two_words_may_have_been_one() -> None:
    joined = [each for each in proposed("a latte the please") if each.meant == "latte"]
    assert (1, 3, "latte the") in [(each.first, each.last, each.heard) for each in joined]


def test_nothing_is_proposed_for_words_that_were_probably_meant_or_sound_like_no_other() -> None:
    assert proposed("an ice mocha with soya", below=0.0) == []
    assert proposed("an ice mocha with soya", farthest=0.0) == []
    assert proposed("zyzzyva zyzzyva") == [], "nobody knows how that sounds"


def test_what_was_said_before_a_pause_is_context_and_stays() -> None:
    found = proposed("an ice mocha", said="hello i would like an ice mocha")
    assert found and all(0 <= each.first < each.last <= 3 for each in found)
    assert {each.heard for each in found if each.meant == "iced"} <= {"ice", "an ice", "ice mocha"}


def test_a_transcript_with_figures_is_left_alone() -> None:
    assert proposed("2 ice mochas for $5") == []


def test_words_that_are_spoken_otherwise_together_are_left_alone() -> None:
    assert proposed("ice mocha at nine pm"), "one by one and together they are the same"
    assert proposed("ice mocha at 9 pm") == [], "nine p m: the second word of the one is not that of the other"


def test_marks_and_capitals_are_not_heard() -> None:
    found = proposed("An Ice mocha, please.")
    assert ("Ice", "iced") in {(each.heard, each.meant) for each in found}


def test_as_many_words_are_looked_at_as_there_is_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    instead = HeardTurn.instead

    def watched(self: HeardTurn, spans: Any, texts: Any) -> Any:
        asked.append(len(spans))
        return instead(self, spans, texts)

    monkeypatch.setattr(HeardTurn, "instead", watched)
    proposed("ice soya ice soya ice soya ice soya ice soya")
    assert asked and asked[0] <= 3 * diffusion_repair.MOST_DOUBTS


def test_another_family_and_an_empty_vocabulary_are_refused(tmp_path: Path) -> None:
    async def other(drafter: DiffusionDrafter) -> None:
        with pytest.raises(BackendError, match="repair: .* was not taught to judge transcripts"):
            DiffusionRepairer(drafter, WORDS, below=0.9, farthest=0.4)

    async def empty(drafter: DiffusionDrafter) -> None:
        with pytest.raises(BackendError, match="no vocabulary"):
            DiffusionRepairer(drafter, ("qqq",), below=0.9, farthest=0.4)

    with_drafter(other, families.checkpoint("sdar", tmp_path))
    with_drafter(empty)


def test_an_engine_that_has_ended_and_a_turn_without_words_fail_this_question_alone() -> None:
    async def main() -> None:
        tiny = model()
        drafter = DiffusionDrafter(Checkpoint(tiny.spec, tiny, codec(), Path("nowhere")), INFO)
        repairer = DiffusionRepairer(drafter, WORDS, below=0.9, farthest=0.4)
        with pytest.raises(BackendError, match="repair: .*transcript"):
            await repairer.proposals(turn("ice " * 200), "ice " * 200)
        await drafter.aclose()
        with pytest.raises(BackendError, match="repair"):
            await repairer.proposals(turn("an ice mocha"), "an ice mocha")

    run_async(main())


def test_who_repairs_is_chosen_by_the_configuration_and_asking_in_vain_is_an_error() -> None:
    config = load(assignments=["asr.repair=show"])

    async def scenario(drafter: DiffusionDrafter) -> None:
        repairer = await choose_repairer(config, drafter)
        assert isinstance(repairer, DiffusionRepairer)
        assert await choose_repairer(load(), drafter) is None, "it is off unless asked for"
        with pytest.raises(ConfigError, match=r"asr\.repair = 'show'.*no vocabulary"):
            await choose_repairer(replace(config, vocabulary=type(config.vocabulary)()), drafter)

    with_drafter(scenario)
    with pytest.raises(ConfigError, match=r"asr\.repair = 'show': expected 'off': scripted was not taught"):
        run_async(vain(lambda: choose_repairer(config, ScriptedDrafter(ManualClock()))))


async def vain(ask: Callable[[], Coroutine[Any, Any, object]]) -> None:
    await ask()

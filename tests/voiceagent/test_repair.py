"""Which doubtful words are replaced, and what a conversation, its client and its timeline make of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import run_async
from tests.voiceagent.conversing import Line
from tests.voiceagent.standins import LevelDetector, ScriptedDrafter, ScriptedTranscriber, ToneSynthesizer
from tests.voiceagent.test_wire import make_codec
from tests.voiceagent.wiring import receive, update
from voiceagent.agent import AgentProfile
from voiceagent.backends import BackendInfo, Backends, Proposal, TurnSoFar
from voiceagent.budget import BudgetController
from voiceagent.clock import ManualClock
from voiceagent.config import load_config
from voiceagent.conversation import Conversation
from voiceagent.errors import BackendError, ConfigError, ProtocolError
from voiceagent.events import AudioCommitted, ConversationEvent, TranscriptFinal, TurnTraced
from voiceagent.explain import explain
from voiceagent.repair import Repair, RepairSettings, repair
from voiceagent.session import SessionSettings

HEARD = "with all one milk and sugars"
USE = RepairSettings("use", below=0.9, factor=10.0, distance=0.4)
ALMOND = Proposal(1, 3, "all one", "almond", 0.5, 500.0, 0.35)
SUGAR = Proposal(5, 6, "sugars", "sugar", 0.6, 20.0, 0.2)

# --- the rule ---------------------------------------------------------------------------------------------------------


def test_convincing_words_are_replaced_and_the_original_is_kept() -> None:
    found = repair(HEARD, (SUGAR, ALMOND), USE)
    assert found == Repair(HEARD, "with almond milk and sugar", (ALMOND, SUGAR), is_used=True)
    assert found.text == found.meant
    shown = repair(HEARD, (SUGAR, ALMOND), replace(USE, mode="show"))
    assert (shown.meant, shown.text) == (found.meant, HEARD), "shown, not used"


@pytest.mark.parametrize(
    "changes",
    [{"probability": 0.9}, {"factor": 9.9}, {"distance": 0.41}],
    ids=["it was probably meant", "hardly likelier", "sounds different"],
)
def test_each_kind_of_evidence_is_needed(changes: dict[str, float]) -> None:
    weak = replace(SUGAR, **changes)  # type: ignore[arg-type]
    assert repair(HEARD, (weak,), USE) == Repair(HEARD, HEARD)


def test_no_word_is_replaced_twice_and_the_likeliest_wins() -> None:
    alone = Proposal(2, 3, "one", "oat", 0.4, 499.0, 0.1)
    assert repair(HEARD, (alone, ALMOND), USE).replaced == (ALMOND,)
    assert repair(HEARD, (replace(alone, factor=501.0), ALMOND), USE).replaced[0].meant == "oat"
    alike = replace(alone, factor=500.0)
    assert repair(HEARD, (ALMOND, alike), USE).replaced == (alike,), (
        "of two that are as likely the one that sounds alike"
    )


def test_marks_behind_a_word_stay_and_untouched_text_is_untouched() -> None:
    text = "With all one, milk  and sugars."
    assert repair(text, (ALMOND, SUGAR), USE).meant == "With almond, milk and sugar."
    assert repair(text, (), USE).meant == text


@given(
    words=st.lists(st.sampled_from(["a", "tea", "please"]), max_size=6),
    places=st.lists(st.tuples(st.integers(-2, 8), st.integers(-2, 8), st.floats(1, 1e6)), max_size=6),
)
def test_whatever_is_proposed_the_other_words_stay(words: list[str], places: list[tuple[int, int, float]]) -> None:
    heard = " ".join(words)
    proposals = [Proposal(first, last, "", "X", 0.1, factor, 0.1) for first, last, factor in places]
    found = repair(heard, proposals, USE)
    replaced = {at for each in found.replaced for at in range(each.first, each.last)}
    assert [word for word in found.meant.split() if word != "X"] == [
        w for at, w in enumerate(words) if at not in replaced
    ]
    assert found.meant.split().count("X") == len(found.replaced)


@pytest.mark.parametrize(("key", "value"), [("mode", "yes"), ("below", 1.1), ("factor", 0.5), ("distance", -0.1)])
def test_settings_out_of_range_are_named(key: str, value: Any) -> None:
    name = "asr.repair" if key == "mode" else f"asr.repair_{key}"
    with pytest.raises(ConfigError, match=name):
        replace(USE, **{key: value})


def test_the_configuration_reaches_the_session() -> None:
    config = load_config(
        [{"asr": {"repair": "show", "repair_below": 0.5, "repair_factor": 30, "repair_distance": 0.3}}]
    )
    assert config.session_settings().repair == RepairSettings("show", 0.5, 30.0, 0.3)
    assert load_config().session_settings().repair.mode == "off"
    with pytest.raises(ConfigError, match=r"asr\.repair = 'maybe'"):
        load_config([{"asr": {"repair": "maybe"}}])


# --- conversations ----------------------------------------------------------------------------------------------------


class ScriptedRepairer:
    """Proposes what it is told; with an error raises it, with None never answers."""

    info = BackendInfo("repair", "scripted", "stand-in")

    def __init__(self, *proposals: Proposal, error: Exception | None = None, answers: bool = True) -> None:
        self._proposals, self._error, self._answers = proposals, error, answers
        self.asked: list[tuple[TurnSoFar, str]] = []

    async def proposals(self, turn: TurnSoFar, words: str) -> Sequence[Proposal]:
        self.asked.append((turn, words))
        if not self._answers:
            await asyncio.Event().wait()
        if self._error is not None:
            raise self._error
        return self._proposals

    async def aclose(self) -> None:
        pass


def turn_with(repairer: ScriptedRepairer | None, settings: RepairSettings = USE) -> Line:
    """One spoken turn, heard as `HEARD`."""

    async def main() -> Line:
        clock = ManualClock(100.0)
        asr, llm, voice = ScriptedTranscriber(HEARD), ScriptedDrafter(clock), ToneSynthesizer()
        events: list[ConversationEvent] = []
        conversation = Conversation(
            backends=Backends(LevelDetector(), asr, llm, voice, repairer=repairer),
            agent=AgentProfile("café"),
            settings=SessionSettings(instructions="You take orders.", repair=settings),
            clock=clock,
            emit=events.append,
            budget=BudgetController(),
        )
        line = Line(clock, conversation, llm, asr, voice, events)
        async with conversation:
            await line.speak_turn()
            await clock.advance(10.0)
        await clock.settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return line

    return run_async(main())


def final(line: Line) -> TranscriptFinal:
    (event,) = line.of(TranscriptFinal)
    return event


def prompted(line: Line) -> str:
    return line.llm.drafts[-1].request.turns[-1].text


def test_the_agent_goes_by_what_was_meant_and_everybody_is_told_what_was_heard() -> None:
    repairer = ScriptedRepairer(ALMOND)
    line = turn_with(repairer)
    assert prompted(line) == final(line).text == "with almond milk and sugars"
    told = final(line).repair
    assert told is not None and told.heard == HEARD and told.is_used
    (turn, words) = repairer.asked[0]
    assert words == HEARD and turn.turns[-1].text == HEARD
    timeline: Any = line.of(TurnTraced)[0].timeline
    assert timeline["transcript"] == "with almond milk and sugars"
    assert timeline["repair_missed"] is None
    assert timeline["repair"] == {
        "heard": HEARD,
        "meant": "with almond milk and sugars",
        "used": True,
        "words": [
            {"first": 1, "heard": "all one", "meant": "almond", "probability": 0.5, "factor": 500.0, "distance": 0.35}
        ],
    }


def test_what_is_only_shown_changes_nothing() -> None:
    line = turn_with(ScriptedRepairer(ALMOND), replace(USE, mode="show"))
    assert prompted(line) == final(line).text == HEARD
    told = final(line).repair
    assert told is not None and told.meant == "with almond milk and sugars" and not told.is_used


@pytest.mark.parametrize("mode", ["off", "use"])
def test_nobody_is_asked_where_it_is_off_or_nobody_can(mode: Any) -> None:
    repairer = ScriptedRepairer(ALMOND) if mode == "off" else None
    line = turn_with(repairer, replace(USE, mode=mode))
    assert final(line) == TranscriptFinal(final(line).item_id, HEARD, final(line).audio_s)
    assert repairer is None or not repairer.asked
    assert line.of(TurnTraced)[0].timeline["repair"] is None


@pytest.mark.parametrize(
    ("repairer", "reason", "missed"),
    [
        (ScriptedRepairer(error=BackendError("repair", "engine gone")), "engine gone", "failed"),
        (ScriptedRepairer(error=IndexError("list index out of range")), "list index out of range", "failed"),
        (ScriptedRepairer(answers=False), "no word on misheard words within 0.25 s", "overdue"),
    ],
)
def test_a_repairer_that_fails_or_is_late_leaves_the_transcript_and_says_so(
    repairer: ScriptedRepairer, reason: str, missed: str, caplog: pytest.LogCaptureFixture
) -> None:
    line = turn_with(repairer)
    assert prompted(line) == HEARD and final(line).repair is None
    assert reason in caplog.text
    timeline = line.of(TurnTraced)[0].timeline
    assert timeline["repair_missed"] == missed
    assert any("they were taken as they were heard" in sentence for sentence in explain(timeline))


# --- clients ----------------------------------------------------------------------------------------------------------


def test_clients_that_ask_for_our_events_see_both_texts() -> None:
    event = TranscriptFinal("item_u", "with almond milk", 1.0, repair("with all one milk", (ALMOND,), USE))
    codec = make_codec(extensions=True)
    codec.send(AudioCommitted("item_u", None), 0.0)
    sent = codec.send(event, 0.0)
    assert [each["type"].rpartition(".")[2] for each in sent if isinstance(each["type"], str)][-2:] == [
        "completed",
        "repaired",
    ]
    assert sent[-1]["heard"] == "with all one milk" and sent[-1]["used"] is True
    plain = make_codec()
    plain.send(AudioCommitted("item_u", None), 0.0)
    assert [each["type"] for each in plain.send(event, 0.0)][
        -1
    ] == "conversation.item.input_audio_transcription.completed"


def test_a_client_switches_it_where_the_server_has_it() -> None:
    codec = make_codec(defaults=SessionSettings(repair=USE))
    shown: Any = update(codec, voiceagent={"events": True, "repair": "show"})
    assert shown["voiceagent"]["repair"] == "show" and codec.session.settings.repair == replace(USE, mode="show")
    with pytest.raises(ProtocolError, match=r"voiceagent\.repair.*asr\.repair"):
        receive(make_codec(), "session.update", session={"type": "realtime", "voiceagent": {"repair": "use"}})
    assert update(make_codec(), voiceagent={"repair": "off"})

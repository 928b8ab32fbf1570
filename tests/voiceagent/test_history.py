from __future__ import annotations

import pytest

from voiceagent.agent import Note
from voiceagent.backends import PromptTurn
from voiceagent.errors import ProtocolError
from voiceagent.events import CallItem, Item, OutputItem
from voiceagent.history import ROOT, History
from voiceagent.tools import ToolCall


def test_items_are_inserted_at_the_end_at_the_front_or_after_another() -> None:
    history = History()
    assert history.add(Item("b", "user", "two")) is None
    assert history.add(Item("a", "user", "one"), ROOT) is None
    assert history.add(Item("c", "agent", "three"), "a") == "a"
    assert [item.id for item in history] == ["a", "c", "b"]
    assert history.previous_id("b") == "c"


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda h: h.add(Item("a", "user", "again")), "item_create_duplicate_item_id"),
        (lambda h: h.add(Item("z", "user", "x"), "nowhere"), "invalid_value"),
        (lambda h: h.get("nowhere"), "item_retrieve_invalid_item_id"),
        (lambda h: h.delete("nowhere"), "item_delete_invalid_item_id"),
    ],
)
def test_an_unknown_or_used_id_is_a_protocol_error_and_changes_nothing(act, code) -> None:  # type: ignore[no-untyped-def]
    history = History()
    history.add(Item("a", "user", "hello"))
    with pytest.raises(ProtocolError) as caught:
        act(history)
    assert caught.value.code == code
    assert [item.id for item in history] == ["a"]


def test_the_prompt_joins_turns_of_one_speaker_and_leaves_out_what_was_not_heard() -> None:
    history = History()
    history.add(Item("1", "user", "a large"))
    history.add(Item("2", "agent", ""))
    history.add(Item("3", "user", "mocha please"))
    history.add(Item("4", "user", None, spoken=True))
    assert history.prompt("Be brief.") == (
        PromptTurn("system", "Be brief."),
        PromptTurn("user", "a large mocha please"),
    )


def test_a_note_follows_its_item_and_asks_to_be_said_until_a_reply_answered_it() -> None:
    history = History()
    history.add(Item("1", "user", "a large mocha"))
    history.note("1", Note("order: large mocha $4.75", ("$4.75",)))
    assert history.prompt("")[-1] == PromptTurn("note", "order: large mocha $4.75")
    assert history.must_say() == ("$4.75",)
    history.add(Item("2", "agent", "", "incomplete"))
    assert history.must_say() == ("$4.75",), "a reply that nobody heard answers nothing"
    history.add(Item("3", "agent", "One large mocha, $4.75."))
    assert history.must_say() == ()


def test_a_deleted_item_takes_its_note_along() -> None:
    history = History()
    history.add(Item("1", "user", "a large mocha"))
    history.note("1", Note("order: large mocha", ("$4.75",)))
    history.delete("1")
    assert history.prompt("") == ()
    assert history.must_say() == ()


def test_a_call_of_the_agents_is_awaited_until_its_output_or_until_somebody_speaks() -> None:
    history = History()
    history.add(Item("u", "user", "two tables"))
    for number in ("1", "2"):
        history.add(CallItem(f"item_{number}", f"call_{number}", ToolCall("book", {})))
    history.add(Item("s", "system", "The till is slow."))
    assert history.awaited_calls() == {"call_1", "call_2"}
    history.add_from_client(OutputItem("o", "call_2", "done"))
    assert history.awaited_calls() == {"call_1"}
    history.add_from_client(CallItem("item_3", "call_3", ToolCall("book", {})))
    assert history.awaited_calls() == {"call_1"}, "nobody waits for what a client made up"
    history.add(Item("v", "user", "hello?"))
    assert not history.awaited_calls()


def test_what_the_agent_said_since_the_callers_last_words_is_unanswered_newest_first() -> None:
    history = History()
    assert history.unanswered() == ()
    for item in (Item("a", "agent", "What size?"), Item("b", "user", "large"), Item("c", "agent", "Sure.")):
        history.add(item)
    history.add(Item("d", "system", "be brief"))
    history.add(Item("e", "user", None))
    history.add(Item("f", "user", ""))
    history.add(Item("g", "agent", "Anything else?"))
    assert [item.id for item in history.unanswered()] == ["g", "c"], "a noise is no answer"

"""Replies against references, prompts fairly chosen, and measurements that stop in time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dllm.calls import Call
from dllm.drafts import Plan
from dllm.evaluate.metrics import Fact
from dllm.evaluate.prompts import Prompt, choose
from dllm.evaluate.replies import Judge, Limit, measure, score_reply, score_trial, summarise, write_all
from dllm.evaluate.writing import Way, Writer, Written
from dllm.options import DecodeOptions
from tests.dllm import tiny

CODEC = tiny.codec()
CALL = CODEC.special.call


def written(text: str, *, is_call: bool = False, is_finished: bool = True) -> Written:
    tokens = tuple(CODEC.encode_text(text))
    return Written((CALL, *tokens) if is_call else tokens, 2, 1, 1, is_finished)


def prompt(text: str, *, call: Call | None = None, facts: tuple[Fact, ...] = (), dialogue: str = "1") -> Prompt:
    tokens = tuple(CODEC.encode_text(text))
    reference = tokens if call is None else (CALL, *tokens)
    return Prompt("tea", dialogue, (CODEC.special.agent,), reference, text, "price: $5.10", "tea please", call, facts)


def test_a_call_is_exact_in_name_and_arguments_or_not_at_all() -> None:
    wanted = prompt("book; people: four", call=Call("book", {"people": "four"}))
    right = score_reply(wanted, written("book; people: four", is_call=True), CODEC).counts
    other = score_reply(wanted, written("book; people: five", is_call=True), CODEC).counts
    words = score_reply(wanted, written("book; people: four"), CODEC).counts
    broken = score_reply(wanted, written("book; people", is_call=True), CODEC).counts
    assert [one["call_exact"][0] for one in (right, other, words, broken)] == [1, 0, 0, 0]
    assert [one["call_named"][0] for one in (right, other, words, broken)] == [1, 1, 0, 0]
    assert "call_unasked" not in right


def test_a_call_that_nobody_asked_for_is_counted() -> None:
    assert score_reply(prompt("hello"), written("book", is_call=True), CODEC).counts["call_unasked"] == [1, 1]


def test_exact_facts_leave_out_phrases_and_count_each_kind() -> None:
    facts = (Fact("$5.10", "price"), Fact("a large tea", "pin"))
    counts = score_reply(prompt("x", facts=facts), written("That is $5.10"), CODEC).counts
    assert (counts["facts"], counts["exact_facts"]) == ([1, 2], [1, 1])
    assert (counts["facts_price"], counts["facts_pin"]) == ([1, 1], [0, 1])


def test_unfinished_and_repeating_replies_are_faulty() -> None:
    replies = [written("fine"), written("fine", is_finished=False), written("tea tea")]
    scored = [score_reply(prompt("fine", dialogue=str(at)), reply, CODEC) for at, reply in enumerate(replies)]
    tables = summarise(scored)
    assert tables["unfinished"]["value"] == pytest.approx(1 / 3, abs=1e-5)
    assert tables["repeating"]["value"] == pytest.approx(1 / 3, abs=1e-5)
    assert tables["faulty"]["value"] == pytest.approx(2 / 3, abs=1e-5)


def test_facts_are_counted_one_by_one() -> None:
    facts = (Fact("$5.10", "price"), Fact("9 am", "time"))
    scored = [score_reply(prompt("x", facts=facts), written("That is $5.10"), CODEC)]
    found = measure(scored, "exact_facts")
    assert (found.value, found.count) == (0.5, 2)


def test_every_beginning_of_a_choice_keeps_the_sources_proportions() -> None:
    prompts = {
        name: [Prompt(name, str(number), (1,), (2,), "") for number in range(50) for _ in range(3)] for name in "ab"
    }
    chosen = choose(prompts, {"a": 3.0, "b": 1.0}, lambda one: True, 40)
    for length in (4, 8, 20, 40):
        assert sum(one.source == "a" for one in chosen[:length]) == 3 * length // 4
    assert len({one.group for one in chosen}) == 40
    assert chosen == choose(prompts, {"a": 3.0, "b": 1.0}, lambda one: True, 40)


def test_a_choice_ends_with_the_prompts_that_are_wanted() -> None:
    prompts = {"a": [Prompt("a", "1", (1,), (2,), "")], "b": [Prompt("b", "1", (1,), (3,), "")]}
    assert [one.source for one in choose(prompts, {"a": 1.0, "b": 1.0}, lambda one: one.reference == (3,), 9)] == ["b"]


def ticking(seconds: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += seconds


def test_writing_stops_when_its_time_is_over_but_not_before_the_first_prompts() -> None:
    writer = Writer(tiny.model(), CODEC.token_table)
    way = Way("one", Plan(1, 1, 1.0), DecodeOptions(hold_ends=True), 8)
    prompts = [prompt("hello", dialogue=str(number)) for number in range(20)]
    clock = ticking(10.0)
    trial = write_all([(writer, [way, way])], prompts, Limit(5.0, lambda: next(clock)))
    assert len(trial.prompts) == 3
    assert [len(of_way) for of_way in trial.written] == [3, 3]
    assert len(write_all([(writer, [way])], prompts, Limit()).prompts) == 20


def test_equal_replies_are_judged_once_and_agree_with_themselves() -> None:
    model = tiny.model()
    judge = Judge(model)
    way = Way("two", Plan(2, 2, 1.0), DecodeOptions(hold_ends=True), 8)
    trial = write_all([(Writer(model, CODEC.token_table), [way, way])], [prompt("hello")], Limit())
    first, second = score_trial(trial, CODEC, judge, [1, 1])
    assert len(judge.known) == 1
    assert first[0].counts == second[0].counts
    assert first[0].counts["self_consistency"] == [1, 1]
    assert first[0].counts["log_likelihood"][0] < 0

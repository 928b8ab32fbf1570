"""What marks say about the ear at the other end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceagent.telephony.marks import EARLY_S, MAX_PENDING, OVERDUE_S, Marks, Piece


def send(marks: Marks, *pieces: tuple[str, float, float], now: float = 0.0) -> list[str]:
    return [marks.sent(Piece(item, start, end), now) for item, start, end in pieces]


def test_nothing_is_heard_before_the_first_mark() -> None:
    marks = Marks()
    send(marks, ("a", 0.0, 0.2), ("a", 0.2, 0.4))
    assert marks.is_playing
    assert marks.heard(0.3) == {"a": 0.0}


def test_a_mark_confirms_its_piece_and_all_before_it() -> None:
    marks = Marks()
    _, second, _ = send(marks, ("a", 0.0, 0.2), ("a", 0.2, 0.4), ("a", 0.4, 0.6))
    assert marks.returned(second, 0.5) == {"a": 0.4}
    assert marks.heard(0.5) == {"a": 0.4}


def test_time_moves_the_position_up_to_the_next_mark_and_no_further() -> None:
    marks = Marks()
    first, _ = send(marks, ("a", 0.0, 0.2), ("a", 0.2, 0.4))
    marks.returned(first, 0.3)
    assert marks.heard(0.35) == {"a": 0.25}
    assert marks.heard(9.0) == {"a": 0.4}


def test_a_piece_that_was_sent_late_may_not_have_begun() -> None:
    marks = Marks()
    (first,) = send(marks, ("a", 0.0, 0.2))
    send(marks, ("a", 0.2, 0.4), now=0.25)
    marks.returned(first, 0.3)
    assert marks.heard(0.4) == {"a": 0.2}, "0.05 s before the mark: perhaps the queue was empty until now"


def test_replies_behind_the_one_that_plays_are_unheard() -> None:
    marks = Marks()
    first, *_ = send(marks, ("a", 0.0, 0.2), ("a", 0.2, 0.4), ("b", 0.0, 0.2))
    marks.returned(first, 0.3)
    assert marks.heard(0.3) == {"a": 0.2, "b": 0.0}


def test_what_comes_back_after_a_clear_is_no_proof() -> None:
    marks = Marks()
    first, second = send(marks, ("a", 0.0, 0.2), ("a", 0.2, 0.4))
    marks.returned(first, 0.3)
    marks.cleared()
    assert not marks.is_playing
    assert marks.returned(second, 0.35) == {}
    assert marks.heard(0.4) == {}
    (third,) = send(marks, ("b", 0.0, 0.2), now=0.5)
    assert third not in (first, second)
    assert marks.heard(0.9) == {"b": 0.0}, "the mark of before the clear says nothing about the new queue"


def test_a_bridge_that_returns_no_marks_is_recognised() -> None:
    marks = Marks()
    send(marks, ("a", 0.0, 0.2), now=1.0)
    assert marks.heard(1.2 + OVERDUE_S) == {"a": 0.0}
    assert marks.heard(1.21 + OVERDUE_S) is None


def test_a_bridge_without_marks_stays_known_behind_a_clear_until_one_comes_back() -> None:
    marks = Marks()
    send(marks, ("a", 0.0, 0.2))
    assert marks.heard(0.3 + OVERDUE_S) is None
    marks.cleared()
    assert marks.heard(2.9) == {}
    (name,) = send(marks, ("b", 0.0, 0.2), now=3.0)
    assert marks.heard(3.1) is None
    assert marks.returned(name, 3.2) == {"b": 0.2}
    send(marks, ("b", 0.2, 0.4), now=3.2)
    assert marks.heard(3.3) == {"b": 0.2}, "it was late, and does return them"


def test_without_marks_time_tells_what_is_unheard_and_errs_to_the_early_side() -> None:
    marks = Marks()
    audio = bytes(1600)
    for start_s in (0.0, 0.2, 0.4):
        marks.sent(Piece("a", start_s, start_s + 0.2, audio), 1.0)
    marks.sent(Piece("b", 0.0, 0.2, audio), 5.0)
    marks.heard(4.0)
    assert [(each.item_id, each.start_s) for each in marks.unheard(5.0)] == [("b", 0.0)]
    assert [(each.item_id, each.start_s) for each in marks.unheard(1.0 + EARLY_S)][:2] == [("a", 0.0), ("a", 0.2)]
    first = marks.unheard(1.3 + EARLY_S)[0]
    assert (first.start_s, len(first.audio)) == (pytest.approx(0.3, abs=0.001), pytest.approx(800, abs=2))
    assert marks.unheard(9.0) == []


def test_marks_that_never_return_do_not_fill_memory() -> None:
    marks = Marks()
    for number in range(MAX_PENDING + 10):
        send(marks, ("a", 0.2 * number, 0.2 * (number + 1)), now=0.2 * number)
    heard = marks.heard(0.0)
    assert heard is not None and round(heard["a"] / 0.2) == 10


@given(st.lists(st.one_of(st.integers(0, 12), st.just("clear"), st.just("send")), max_size=60))
def test_positions_never_go_back_nor_past_what_was_sent(happened: list[int | str]) -> None:
    marks, names, now, sent_s, last = Marks(), ["nobody's"], 0.0, 0.0, 0.0
    for what in happened:
        now += 0.07
        if what == "clear":
            marks.cleared()
        elif what == "send":
            names.append(marks.sent(Piece("a", sent_s, sent_s + 0.2), now))
            sent_s += 0.2
        else:
            assert isinstance(what, int)
            for position in marks.returned(names[what % len(names)], now).values():
                assert last <= position <= sent_s + 1e-9
                last = position
        for position in (marks.heard(now) or {}).values():
            assert 0.0 <= position <= sent_s + 1e-9

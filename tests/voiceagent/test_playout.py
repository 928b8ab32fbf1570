from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceagent.playout import Playout


def spoken() -> Playout:
    playout = Playout()
    playout.begin_clause("One large mocha.")
    playout.sent(1.0, now=10.0)
    playout.end_clause()
    playout.begin_clause("Anything else for you?")
    playout.sent(1.0, now=10.1)
    playout.end_clause()
    return playout


def test_nothing_is_heard_before_audio_was_sent() -> None:
    playout = Playout()
    assert playout.played_s(5.0) == 0.0
    assert playout.dry_at() is None
    assert playout.heard_text(3.0) == ""


def test_playing_starts_when_audio_arrives_and_lasts_as_long_as_the_audio() -> None:
    playout = spoken()
    assert playout.dry_at() == 12.0
    assert playout.played_s(10.5) == 0.5
    assert playout.played_s(99.0) == 2.0


def test_a_gap_in_the_audio_pauses_the_playing() -> None:
    playout = Playout()
    playout.begin_clause("one")
    playout.sent(1.0, now=0.0)
    playout.sent(1.0, now=5.0)
    assert playout.dry_at() == 6.0
    assert playout.played_s(5.5) == 1.5


def test_only_words_spoken_to_their_end_were_heard() -> None:
    playout = spoken()
    assert playout.heard_text(1.0) == "One large mocha."
    assert playout.heard_text(0.3) == "One"
    assert playout.heard_text(0.05) == ""
    assert playout.heard_text(1.4) == "One large mocha. Anything"
    assert playout.heard_text(2.0) == "One large mocha. Anything else for you?"


def test_a_clause_that_has_no_audio_yet_was_not_heard() -> None:
    playout = Playout()
    playout.begin_clause("One large mocha.")
    assert playout.heard_text(playout.played_s(9.0)) == "", "stopped while the voice was still at work"
    playout.sent(1.0, now=10.0)
    playout.begin_clause("Anything else for you?")
    assert playout.heard_text(playout.played_s(99.0)) == "One large mocha."


def test_a_clause_whose_audio_is_not_complete_was_not_heard_to_its_end() -> None:
    playout = Playout()
    playout.begin_clause("One large mocha with a little bit of oat milk.")
    playout.sent(1.0, now=0.0)
    assert playout.heard_text(playout.played_s(5.0)) == "One large mocha"
    playout.sent(1.8, now=5.0)
    playout.end_clause()
    assert playout.heard_text(playout.played_s(9.0)) == "One large mocha with a little bit of oat milk."


def test_a_reply_behind_another_is_heard_after_it() -> None:
    playout = Playout(not_before=12.0)
    playout.begin_clause("Second.")
    playout.sent(1.0, now=10.0)
    playout.end_clause()
    assert playout.dry_at() == 13.0
    assert playout.played_s(11.9) == 0.0
    assert playout.played_s(12.5) == 0.5


def test_the_clients_own_position_replaces_the_estimate() -> None:
    playout = spoken()
    playout.report(0.2, now=11.0)
    assert playout.played_s(11.0) == 0.2
    assert playout.dry_at() == 12.8
    playout.report(99.0, now=11.1)
    assert playout.played_s(11.1) == 2.0


def test_a_position_that_goes_back_is_old_news() -> None:
    playout = spoken()
    playout.report(1.5, now=11.5)
    playout.report(0.1, now=11.6)
    assert playout.dry_at() == 12.0
    assert playout.played_s(11.7) == pytest.approx(1.7)


def test_a_late_report_of_the_end_does_not_move_it() -> None:
    playout = spoken()
    playout.report(2.0, now=11.8)
    assert playout.dry_at() == 11.8, "sooner than was thought"
    playout.report(2.0, now=12.5)
    assert playout.dry_at() == 11.8
    late = spoken()
    late.report(2.0, now=12.5)
    assert late.dry_at() == 12.0
    assert late.sent(1.0, now=12.6) == 13.6, "more of it is a gap later"


def test_what_was_stopped_is_over_and_only_the_client_knows_better() -> None:
    playout = spoken()
    playout.duck(10.7)
    playout.stop(10.9)
    playout.stop(11.5)
    assert (playout.dry_at(), playout.heard_s(15.0)) == (10.9, pytest.approx(0.7))
    playout.report(1.0, now=11.6)
    assert playout.dry_at() == 10.9, "a report that was on its way changes nothing"
    assert playout.cut(0.8, now=11.0) == 0.8
    assert playout.heard_s(15.0) == 0.8


def test_what_is_cut_is_not_played_whatever_comes_afterwards() -> None:
    playout = spoken()
    assert playout.cut(0.5, now=11.0) == 0.5
    assert (playout.dry_at(), playout.played_s(11.5)) == (11.0, 0.5)
    playout.sent(1.0, now=11.1)
    playout.report(2.5, now=11.2)
    assert playout.dry_at() == 11.0
    assert playout.cut(99.0, now=11.3) == 0.5 and playout.cut(-1.0, now=11.3) == 0.0
    assert playout.heard_s(20.0) == 0.0


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=8), st.floats(0.0, 6.0), st.floats(0.0, 6.0))
def test_more_playing_never_means_fewer_words(durations: list[float], a: float, b: float) -> None:
    playout = Playout()
    for index, duration in enumerate(durations):
        playout.begin_clause(f"clause number {index} of many")
        playout.sent(duration, now=0.0)
    early, late = sorted((a, b))
    assert playout.heard_text(late).startswith(playout.heard_text(early))


def test_what_plays_ducked_counts_when_it_is_restored_and_not_when_it_is_stopped() -> None:
    playout = spoken()
    playout.duck(10.5)
    playout.duck(10.7)
    assert (playout.played_s(10.9), playout.heard_s(10.9)) == (pytest.approx(0.9), 0.5)
    playout.restore()
    assert playout.heard_s(10.9) == pytest.approx(0.9)


def test_all_the_words_of_a_reply_begin_with_those_that_were_heard() -> None:
    playout = spoken()
    assert playout.text.startswith(playout.heard_text(1.0)) and playout.text == playout.heard_text(2.0)
    playout.begin_clause(" And  more. ")
    assert playout.text.endswith(" And  more.")


def test_a_reply_behind_one_that_is_cut_is_heard_at_once() -> None:
    playout, behind, late = spoken(), Playout(not_before=12.0), Playout(not_before=12.0)
    behind.sent(1.0, now=10.2)
    assert (playout.cut(0.6, 10.6), playout.dry_at()) == (0.6, 10.6)
    for each in (behind, late):
        each.follow(10.6)
    assert (behind.dry_at(), behind.played_s(11.0)) == (11.6, pytest.approx(0.4))
    assert late.sent(1.0, now=10.7) == 11.7, "what is sent later waits for nothing"
    late.follow(10.6)
    assert late.dry_at() == 11.7, "it began when it came"
    waiting = Playout(not_before=12.0)
    waiting.sent(1.0, now=10.0)
    assert (waiting.cut(0.0, 10.5), waiting.dry_at()) == (0.0, 12.0), "before it the earlier one plays on"
    waiting.follow(10.6)
    assert waiting.dry_at() == 10.6, "until that is cut too"


def test_a_hold_moves_everything_behind_it() -> None:
    playout, behind = spoken(), Playout(not_before=12.0)
    for each in (playout, behind):
        each.hold(10.5)
        each.hold(10.6)
    assert playout.heard_s(11.5) == 0.5
    playout.sent(1.0, now=11.0)
    for each in (playout, behind):
        each.resume(11.5)
        each.resume(11.6)
    assert playout.dry_at() == 14.0
    assert playout.played_s(12.0) == 1.0
    behind.sent(1.0, now=11.7)
    assert behind.dry_at() == 14.0


def test_what_is_muted_waits_and_what_played_ducked_before_is_heard_only_once_it_is_restored() -> None:
    for comes_back in (True, False):
        playout = spoken()
        playout.duck(10.5)
        playout.mute(10.8)
        playout.mute(10.9)
        assert playout.is_held and (playout.played_s(11.5), playout.heard_s(11.5)) == (pytest.approx(0.8), 0.5)
        if comes_back:
            playout.restore()
            playout.resume(11.8)
            assert playout.dry_at() == pytest.approx(13.0) and playout.heard_s(12.0) == pytest.approx(1.0)
        else:
            playout.stop(11.8)
            assert not playout.is_held and (playout.dry_at(), playout.heard_s(15.0)) == (11.8, 0.5)


def test_what_the_client_cuts_while_it_is_held_is_over() -> None:
    playout = spoken()
    playout.mute(10.5)
    playout.cut(0.4, now=11.0)
    assert not playout.is_held and playout.dry_at() == 10.5 and playout.heard_s(12.0) == 0.4


def test_what_is_made_during_a_hold_is_due_as_if_that_ended_now() -> None:
    playout = spoken()
    playout.mute(10.5)
    assert (playout.dry_at(), playout.due_at(10.5), playout.due_at(11.5)) == (12.0, 12.0, 13.0)
    playout.resume(11.5)
    assert playout.dry_at() == playout.due_at(11.6) == 13.0
    assert Playout().due_at(11.0) is None


def test_a_queued_reply_that_is_cut_during_a_hold_is_over_with_the_one_before_it() -> None:
    for cuts_both in (False, True):
        playout, behind = spoken(), Playout(not_before=12.0)
        behind.sent(1.0, now=10.2)
        for each in (playout, behind):
            each.mute(10.5)
        behind.cut(0.0, now=11.0)
        assert behind.is_held and behind.dry_at() == 12.0
        if cuts_both:
            playout.cut(0.5, now=11.2)
            behind.follow(10.5)
            assert not playout.is_held and not behind.is_held and behind.dry_at() == 10.5
        else:
            for each in (playout, behind):
                each.resume(12.5)
            assert playout.dry_at() == behind.dry_at() == 14.0


def test_a_position_told_during_a_hold_is_where_it_goes_on() -> None:
    playout = spoken()
    playout.hold(10.5)
    playout.report(0.4, now=10.9)
    assert playout.heard_s(11.0) == pytest.approx(0.4)
    playout.resume(11.5)
    assert playout.dry_at() == pytest.approx(11.5 + 1.6)

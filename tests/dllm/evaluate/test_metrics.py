"""Every measure on texts whose answer can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dllm.evaluate import metrics
from dllm.evaluate.metrics import Fact

PAIRS = (
    ("The cat sat on the mat.", "A cat sat on a mat.", 55.77074553591104),
    ("That's $5.10. Anything else?", "A large mocha, that's $5.10. Anything else?", 66.88994802811385),
    ("ok", "Goodbye!", 7.352941176470589),
    ("", "Hello there", 0.0),
    ("hi", "hi", 100.0),
)
"""Replies, references, and what sacrebleu 2.6.0 says of them (`nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no`)."""
CORPUS = 52.476988632639255


def test_chrf_is_sacrebleu_s() -> None:
    counts = np.array([metrics.chrf_counts(reply, reference) for reply, reference, _ in PAIRS], dtype=np.float64)
    # Both average the same six fractions in float64; they may be added in another order.
    assert metrics.chrf(counts) == pytest.approx([value for *_, value in PAIRS], abs=1e-9)
    assert metrics.chrf(counts.sum(axis=0, keepdims=True)) == pytest.approx([CORPUS], abs=1e-9)


def test_content_f1_counts_words_that_say_something() -> None:
    assert metrics.content_f1("a large tea, please", "one large mocha and a tea") == pytest.approx(2 * 2 / (2 + 4))
    assert metrics.content_f1("anything", "is it you?") is None


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    assert metrics.rouge_l("a b c d", "a c b d") == pytest.approx(2 * 3 / 8)
    assert metrics.rouge_l("", "") == 1.0
    assert metrics.rouge_l("x", "") == 0.0


def test_word_agreement_ignores_order_and_case() -> None:
    assert metrics.word_agreement("Hello you", "you hello") == 1.0
    assert metrics.word_agreement("one two", "two three") == 0.5
    assert metrics.word_agreement("", "") == 1.0


def test_facts_are_what_reply_and_prompt_share() -> None:
    reference = "Table 12 is yours on Friday at 7:30 pm, code K72. That's $5.10 at Luigi's."
    known = "You answer for Luigi's. book_table: table: 12; code: K72; price: $5.10; time: 7:30 pm"
    assert metrics.facts_in(reference, known, ["on Friday", "K72"]) == [
        Fact("12", "number"),
        Fact("on Friday", "pin"),
        Fact("7:30 pm", "time"),
        Fact("K72", "number"),
        Fact("$5.10", "price"),
        Fact("Luigi's", "name"),
    ]


def test_a_capital_at_a_sentence_s_start_makes_no_name() -> None:
    assert metrics.facts_in("Parking is free. Dogs may come in.", "Parking: free. Dogs: yes") == []


def test_a_title_belongs_to_its_name_and_ends_no_sentence() -> None:
    known = "Dr. Aluko is in on Mondays, Mr. Bell never."
    assert metrics.facts_in("You'll see Dr. Aluko.", known) == [Fact("Dr. Aluko", "name")]
    assert metrics.facts_in("Mr. Bell is out.", known) == [Fact("Mr. Bell", "name")]
    assert metrics.facts_in("You'll see Dr. Bell.", known) == []


@pytest.mark.parametrize(
    ("text", "fact", "is_stated"),
    [
        ("that's $5.10.", "$5.10", True),
        ("that's $5.10", "$5", False),
        ("that's $15.10", "5.10", False),
        ("at 10:30 pm", "10", False),
        ("room 10, second floor", "10", True),
        ("code K725", "K72", False),
        ("at luigi's today", "Luigi's", True),
        ("open 9 am", "9  am", True),
    ],
)
def test_a_fact_is_stated_as_whole_words(text: str, fact: str, is_stated: bool) -> None:
    assert metrics.states(text, fact) is is_stated


def test_figures_from_nowhere_are_found_and_the_caller_s_own_are_not() -> None:
    found = metrics.invented_figures(
        "Table for 4 at 7 pm, $4.20 or $5.", "price: $4.20", "four people at eight p m", ""
    )
    assert found == ["$5", "7 pm"]


@pytest.mark.parametrize(
    ("text", "is_repeating"),
    [
        ("Anything anything else?", True),
        ("that's it that's it", True),
        ("We open at nine. We open at nine.", True),
        ("Thank you. Thank them.", False),
        ("Call 5 5 5 1 1 1", False),
        ("", False),
    ],
)
def test_repetition_is_a_word_a_run_or_a_sentence_twice(text: str, is_repeating: bool) -> None:
    assert metrics.repeats(text) is is_repeating


def test_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    assert metrics.area_under_curve([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == pytest.approx(0.75)
    assert metrics.area_under_curve([1.0, 1.0, 1.0], [True, False, True]) == 0.5
    assert np.isnan(metrics.area_under_curve([1.0], [True]))


def test_reliability_compares_what_was_predicted_with_what_came() -> None:
    bins = metrics.reliability([0.05, 0.15, 0.95, 1.0], [False, True, True, True])
    assert [(entry.low, entry.count, entry.observed) for entry in bins] == [(0.0, 1, 0.0), (0.1, 1, 1.0), (0.9, 2, 1.0)]
    assert metrics.calibration_error(bins) == pytest.approx((0.05 + 0.85 + 2 * 0.025) / 4)

from hypothesis import given
from hypothesis import strategies as st

from voiceagent.backends import Partial
from voiceagent.transcript import LocalAgreement, WordErrors, normalise, word_errors

words = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=7)


def hear(*hypotheses: str, agreeing: int = 2, holdback: int = 1) -> LocalAgreement:
    agreement = LocalAgreement(agreeing=agreeing, holdback=holdback)
    for hypothesis in hypotheses:
        agreement = agreement.hear(hypothesis.split())
    return agreement


def test_normal_form_keeps_apostrophes_inside_words_only():
    assert normalise("I\u2019d LIKE a flat-white, 'please'!") == "i'd like a flat white please"
    assert normalise(" ... ' ") == ""


def test_one_hypothesis_settles_nothing():
    assert hear("can i get").partial == Partial("", "can i get")


def test_words_two_hypotheses_agree_on_are_stable_except_the_last():
    assert hear("can i get", "can i get a").partial == Partial("can i get", "a")
    assert hear("can i get", "can i get").partial == Partial("can i", "get")


def test_words_that_changed_stay_unstable():
    assert hear("can i get latte", "can i bet a latte").partial == Partial("can i", "bet a latte")


def test_three_agreeing_hypotheses_settle_later_than_two():
    assert hear("a b c", "a b c", agreeing=3).stable == ()
    assert hear("a b c", "a b c", "a b c", agreeing=3).stable == ("a", "b")


def test_stable_words_stay_when_a_later_hypothesis_disagrees():
    heard = hear("a tall latte now", "a tall latte now", "a small latte now please")
    assert heard.stable == ("a", "tall", "latte", "now")
    assert heard.partial.text == "a tall latte now please"


def test_spelling_follows_the_newest_hypothesis_and_agreement_ignores_it():
    assert hear("Can I, get", "can I get").stable == ("can", "I")


def test_a_shrinking_hypothesis_keeps_the_stable_words():
    assert hear("a b c", "a b c", "").partial == Partial("a b", "")


@given(st.lists(words, max_size=8))
def test_stable_only_grows(hypotheses):
    agreement = LocalAgreement()
    for hypothesis in hypotheses:
        following = agreement.hear(hypothesis)
        assert following.stable[: len(agreement.stable)] == agreement.stable
        agreement = following


@given(words)
def test_the_same_hypothesis_twice_is_shown_whole(hypothesis):
    agreement = LocalAgreement().hear(hypothesis).hear(hypothesis)
    assert [*agreement.stable, *agreement.unstable] == hypothesis


def test_word_errors_by_kind():
    assert word_errors(["a", "b", "c", "d"], ["a", "x", "c"]) == WordErrors(1, 1, 0, 4)
    assert word_errors(["a", "b"], ["a", "b", "c"]) == WordErrors(0, 0, 1, 2)
    assert word_errors([], ["a"]).rate == float("inf")
    assert word_errors([], []).rate == 0.0
    assert (word_errors(["a"], ["b"]) + word_errors(["a"], ["a"])).rate == 0.5


@given(words, words)
def test_word_errors_are_a_distance(left, right):
    errors = word_errors(left, right)
    assert errors.total == word_errors(right, left).total
    assert len(right) - len(left) == errors.insertions - errors.deletions
    assert (errors.total == 0) == (left == right)
    assert errors.total <= max(len(left), len(right))

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voice_pipelines.asr.ngrams import END, ORDER, START, BackoffModel, Counts, WittenBell


def count(*sentences: str) -> Counts:
    counts = Counts()
    for sentence in sentences:
        words = (START, *sentence.split(), END)
        for order in range(1, ORDER + 1):
            for i in range(len(words) - order + 1):
                counts.add(words[i : i + order], 1)
    return counts


def contexts(words):
    return [(), *((a,) for a in (START, *words)), *itertools.product((START, *words), words)]


def test_witten_bell_by_hand():
    model = WittenBell(count("a b", "a a"), ["a", "b"])
    # Unigrams: a 3, b 1, </s> 2 in 6 with 3 types; below them the uniform third.
    a, b = (3 + 3 / 3) / 9, (1 + 3 / 3) / 9
    assert model.probability("a", ()) == pytest.approx(a)
    # After "a": b 1, a 1, </s> 1 in 3 with 3 types.
    assert model.probability("b", ("a",)) == pytest.approx((1 + 3 * b) / 6)
    # After "<s> a": b 1, a 1 in 2 with 2 types.
    assert model.probability("b", (START, "a")) == pytest.approx((1 + 2 * (1 + 3 * b) / 6) / 4)
    # "b b" was never seen as a context, "b" was: </s> 1 with 1 type.
    assert model.probability("a", ("b", "b")) == pytest.approx((0 + 1 * a) / 2)


words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=5).map(" ".join)


@given(
    st.lists(words, min_size=1, max_size=6), st.lists(words, min_size=1, max_size=6), st.sampled_from([0.1, 0.5, 0.9])
)
def test_every_context_sums_to_one(left, right, weight):
    vocabulary = ["a", "b", "c", "unseen"]
    models = [WittenBell(count(*left), vocabulary), WittenBell(count(*right), vocabulary)]
    mixed = BackoffModel([(weight, models[0]), (1 - weight, models[1])])
    for model in (*models, mixed):
        for context in contexts(vocabulary):
            assert sum(model.probability(word, context) for word in (*vocabulary, END)) == pytest.approx(1, abs=1e-9)


@given(st.lists(words, min_size=1, max_size=6), st.lists(words, min_size=1, max_size=6))
def test_stored_sequences_have_exactly_the_weighted_sum(left, right):
    vocabulary = ["a", "b", "c"]
    one, two = WittenBell(count(*left), vocabulary), WittenBell(count(*right), vocabulary)
    mixed = BackoffModel([(0.3, one), (0.7, two)])
    for model in (one, two):
        for context, seen in model.contexts.items():
            for word in seen:
                exact = 0.3 * one.probability(word, context) + 0.7 * two.probability(word, context)
                assert mixed.probability(word, context) == pytest.approx(exact)


def test_weights_that_do_not_sum_to_one_and_unequal_vocabularies_are_refused():
    one, two = WittenBell(count("a"), ["a"]), WittenBell(count("a"), ["a", "b"])
    with pytest.raises(ValueError, match="sum"):
        BackoffModel([(0.5, one)])
    with pytest.raises(ValueError, match="one vocabulary"):
        BackoffModel([(0.5, one), (0.5, two)])


def test_a_count_must_be_positive_and_of_a_length_the_model_knows():
    for words, number in (((), 1.0), (("a",) * 4, 1.0), (("a",), 0.0), (("a",), float("nan"))):
        with pytest.raises(ValueError, match="positive count"):
            Counts().add(words, number)


def test_pocketsphinx_reads_the_arpa_file_and_agrees_on_every_probability(tmp_path):
    from pocketsphinx import LogMath, NGramModel

    vocabulary = ["a", "b", "c"]
    mixed = BackoffModel(
        [(0.6, WittenBell(count("a b", "a c b"), vocabulary)), (0.4, WittenBell(count("c", "b b a"), vocabulary))]
    )
    text = io.StringIO()
    mixed.write_arpa(text)
    lines = text.getvalue().splitlines()
    for order in range(1, ORDER + 1):
        start = lines.index(f"\\{order}-grams:") + 1
        listed = list(itertools.takewhile(bool, lines[start:]))
        assert f"ngram {order}={len(listed)}" in lines
    (tmp_path / "model.arpa").write_text(text.getvalue())
    read = NGramModel.readfile(str(tmp_path / "model.arpa"))
    logs = LogMath()
    for context in contexts(vocabulary):
        for word in (*vocabulary, END):
            # PocketSphinx wants the newest word first.
            theirs = logs.exp(read.prob([word, *reversed(context)]))
            assert theirs == pytest.approx(mixed.probability(word, context), rel=2e-3), (word, context)

import random
from collections import Counter
from itertools import pairwise

import pytest

from voice_pipelines.asr.grammar import Choice, Expression, Grammar, GrammarError, Series, Slot, Words, choice_of

PHRASES = ["/3/ can i (get|have) [a] {size} {drink} [with {addition} [and {addition}]]", "yes [please]", "{size}"]
SLOTS = {"size": ["/2/ small", "extra large"], "drink": ["latte", "[iced] mocha", "flat white"], "addition": ["milk", "two {addition_kind}"], "addition_kind": ["sugars", "shots of hazelnut syrup"]}  # fmt: skip
CAFE = Grammar(PHRASES, SLOTS)


def sentences(grammar: Grammar, count: int = 200) -> set[str]:
    rng = random.Random(0)
    return {" ".join(grammar.sample(rng)) for _ in range(count)}


def test_a_phrase_says_exactly_its_alternatives_options_and_slots():
    grammar = Grammar(["(a|b c) [d] {x}"], {"x": ["e", "[f] g"]})
    assert sentences(grammar) == {
        f"{head} {middle}{tail}" for head in ("a", "b c") for middle in ("", "d ") for tail in ("e", "g", "f g")
    }


def test_figures_in_phrases_are_spelled_out():
    assert sentences(Grammar(["2 lattes"], {})) == {"two lattes"}


def test_hand_computed_expectations_of_a_small_grammar():
    counts = Grammar(["a [b] {x}"], {"x": ["c", "/3/ d e"]}).expected_counts(8)
    unigrams = {words[0]: count for words, count in counts.tables[0].items()}
    assert unigrams == pytest.approx({"<s>": 8, "a": 8, "b": 4, "c": 2, "d": 6, "e": 6, "</s>": 8})
    assert counts.tables[1][("b", "d")] == pytest.approx(3)
    assert counts.tables[2][("<s>", "a", "d")] == pytest.approx(3)
    assert counts.tables[2][("a", "b", "c")] == pytest.approx(1)
    assert counts.tables[2][("d", "e", "</s>")] == pytest.approx(6)
    assert ("d", "d") not in counts.tables[1]


def test_expectations_agree_with_many_sampled_sentences():
    rng = random.Random(7)
    drawn: Counter[tuple[str, ...]] = Counter()
    total = 20_000
    for _ in range(total):
        words = ["<s>", *CAFE.sample(rng), "</s>"]
        drawn.update(pairwise(words))
        drawn.update(zip(words, words[1:], words[2:], strict=False))
    expected = CAFE.expected_counts(total)
    exact = {**expected.tables[1], **expected.tables[2]}
    assert drawn.keys() <= exact.keys()
    for ngram, count in exact.items():
        # Five standard deviations of a count that is nearly Poisson.
        assert abs(drawn[ngram] - count) < 5 * max(count, 1) ** 0.5, ngram


def said(expression: Expression, slots: dict[str, list[str]]) -> dict[tuple[str, ...], float]:
    """Every text of an expression with its probability."""
    match expression:
        case Words(words):
            return {words: 1.0}
        case Slot(name):
            return said(choice_of(slots[name]), slots)
        case Choice(options):
            mixed: Counter[tuple[str, ...]] = Counter()
            for weight, option in options:
                for words, p in said(option, slots).items():
                    mixed[words] += weight * p
            return mixed
        case Series(parts):
            whole: dict[tuple[str, ...], float] = {(): 1.0}
            for part in parts:
                joined: Counter[tuple[str, ...]] = Counter()
                for left, p in whole.items():
                    for right, q in said(part, slots).items():
                        joined[left + right] += p * q
                whole = joined
            return whole


@pytest.mark.parametrize(
    ("phrases", "slots"),
    [
        (PHRASES, SLOTS),
        (
            ["[a] [b] [c]", "{x} {x} [d] {y}", "[{y}] e [{x}]"],
            {"x": ["[f]", "g h", "/2/ i j k"], "y": ["[{x}] l [{x}]"]},
        ),
    ],
)
def test_expectations_are_exactly_those_of_all_sentences(phrases: list[str], slots: dict[str, list[str]]) -> None:
    exact: Counter[tuple[str, ...]] = Counter()
    for text, p in said(choice_of(phrases), slots).items():
        words = ("<s>", *text, "</s>")
        for length in (1, 2, 3):
            for at in range(len(words) + 1 - length):
                exact[words[at : at + length]] += p
    found = Grammar(phrases, slots).expected_counts(1.0)
    assert {ngram: count for table in found.tables for ngram, count in table.items()} == pytest.approx(exact)


def test_rare_sequences_are_left_out_on_request():
    assert ("a", "b") not in Grammar(["/99/ a", "a b"], {}).expected_counts(100, least=1.5).tables[1]


@pytest.mark.parametrize(
    ("phrases", "slots", "complaint"),
    [
        (["(a|b"], {}, "'\\(' is not closed"),
        (["a]"], {}, "unexpected ']'"),
        (["a }"], {}, "unexpected '}'"),
        (["{}"], {}, "needs a name"),
        (["/0/ a"], {}, "not a positive weight"),
        (["/1.2.3/ a"], {}, "not a positive weight"),
        (["a /2/ b"], {}, "in front"),
        (["{size}"], {"drink": ["tea"]}, "{size} is not a slot; there are: drink"),
        (["{x}"], {"x": ["{y}"], "y": ["a {x}"]}, "{x} contains itself: x > y > x"),
        ([], {}, "at least one phrase"),
        (["a"], {"x": []}, "at least one phrase"),
    ],
)
def test_a_mistake_is_named(phrases, slots, complaint):
    with pytest.raises(GrammarError, match=complaint):
        Grammar(phrases, slots)


def test_words_of_slots_nobody_uses_are_known_too():
    assert Grammar(["a"], {"x": ["b [c|d]"]}).words() == {"a", "b", "c", "d"}

"""A small model of words says whether a turn is over: as taught, however the words are written, beside any language model."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dllm.spoken import spoken_form
from tests.conftest import run_async
from voice_pipelines.adapters.turn_words import SURELY_MISHEARD, TurnWordsScorer, alone
from voice_pipelines.turn_end import training
from voice_pipelines.turn_end.answers import PHRASES, Answer, made_answers
from voice_pipelines.turn_end.model import (
    FIRST,
    MOST_ASKED,
    MOST_WORDS,
    NEWEST_CHARS,
    QUESTION,
    STATEMENT,
    UNKNOWN,
    Asked,
    TurnEndModel,
    asked_of,
    crosses,
    places,
    rows,
)
from voice_pipelines.turn_end.odds import NO_IDEA, Heard, beside, tempered, weighed
from voice_pipelines.turn_end.training import (
    LEAST_MET,
    PAUSED_TURNS,
    PAUSES_WITHIN_ANSWERS,
    Network,
    Row,
    Turn,
    answered_otherwise,
    batch_of,
    common_words,
    epoch_of,
    known_words,
    measure,
    measure_answers,
    misheard,
    odds_of,
    pause_less,
    read_turns,
    rows_of,
    said_otherwise,
    short_answers,
)
from voiceagent.backends import PromptTurn, Samples, TurnJudgement, TurnSoFar
from voiceagent.endpoint import EndpointSettings
from voiceagent.errors import BackendError

SILENCE: Samples = np.zeros(0, np.float32)


@pytest.fixture(scope="module")
def model() -> TurnEndModel:
    return TurnEndModel.load()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("What can I get you?", "I'd like a"),
        ("What can I get you?", "can i get a large"),
        ("Anything else?", "and could you also"),
        ("", "how much is the"),
        ("Where would you like to go?", "i want to fly to"),
    ],
)
def test_words_that_lack_their_end_are_less_probably_a_turn_than_those_that_have_it(
    model: TurnEndModel, asked: str, words: str
) -> None:
    whole = {"i want to fly to": "i want to fly to san francisco"}.get(words, f"{words} coffee please")
    assert model.completeness(words, asked) < model.completeness(whole, asked) - 0.3


def test_text_of_any_recogniser_is_read_alike(model: TurnEndModel) -> None:
    typed, heard = "A large mocha, for $4 at 7 pm, please!", "a large mocha for four dollars at seven p m please"
    assert model.completeness(typed, "What can I get you?") == model.completeness(heard, "what can i get you?")


def test_without_words_nothing_is_known_and_no_text_is_certain(model: TurnEndModel) -> None:
    assert model.completeness("") == model.completeness("?!") == 0.5
    for words in ("yes", "zzyzx " * 500, "привет", "thank you goodbye " * 30):
        assert 0.0 < model.completeness(words) < 1.0


def test_only_the_newest_words_count(model: TurnEndModel) -> None:
    newest = ["yes"] * MOST_WORDS
    endless, asked = asked_of("one " * 40), asked_of("one " * MOST_ASKED)
    assert model.log_odds(endless, ["no", *newest]).tolist() == model.log_odds(asked, newest).tolist()


def test_what_the_agent_asked_is_its_last_words_the_opening_of_its_last_sentence_and_whether_it_is_a_question() -> None:
    assert asked_of("Sure, a latte. How many for 2?") == Asked(
        ("sure", "a", "latte", "how", "many", "for", "two"), ("how", "many"), True
    )
    assert asked_of("One moment.") == Asked(("one", "moment"), ("one", "moment"), False)
    assert asked_of("") == Asked()


def test_a_name_that_was_never_met_is_as_complete_as_another_behind_the_question_for_it(model: TurnEndModel) -> None:
    for name in ("zbigniew", "priyanka", "oluwaseun"):
        assert model.completeness(name, "What's your name?") > 0.6
        assert model.completeness("it's", "What's your name?") < 0.2


def test_an_answer_to_a_question_is_likelier_whole_than_the_same_word_unasked(model: TurnEndModel) -> None:
    for asked in ("Is there a gate?", "Is that all?", "Would you like one?"):
        assert model.completeness("yes", asked) > max(0.6, model.completeness("yes", "I see."))


def test_no_more_of_an_endless_text_is_read_than_its_newest_words(
    model: TurnEndModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def spoken(text: str) -> str:
        read.append(len(text))
        return spoken_form(text)

    monkeypatch.setattr("voice_pipelines.turn_end.model.spoken_form", spoken)
    newest = "and then a large tea with oat milk please " * 6
    assert model.completeness("1,2 " * 100_000 + newest, "what " * 100_000) == model.completeness(newest, "what " * 12)
    assert max(read) <= NEWEST_CHARS
    assert model.completeness("9" * 100_000) == 0.5, "that is no word"


def test_network_and_model_agree_for_turns_of_all_lengths_side_by_side(tmp_path: Path) -> None:
    torch.manual_seed(0)
    turns = [
        Turn(asked_of(""), ("yes",)),
        Turn(asked_of("Sure. What else?"), ("a", "large", "tea", "please")),
        Turn(asked_of("word " * 30), ("no",) * MOST_WORDS),
        Turn(asked_of("Who else?"), ("never", "met", "yes")),
    ]
    known = known_words(common_words([*turns[:3]] * LEAST_MET))
    network = Network(known).eval()
    torch.nn.init.normal_(network.crossed.weight)
    training.save(network, tmp_path / "weights.npz")
    model = TurnEndModel.load(tmp_path / "weights.npz")
    for module in (
        network.words,
        network.beginnings,
        network.endings,
        network.crossed,
        network.output,
        network.recurrent,
    ):
        module.half().float()
    batch = batch_of([row for turn in turns for row in rows_of(turn, random.Random(0))], known)
    with torch.no_grad():
        expected = network(batch.words, batch.beginnings, batch.endings, batch.entries)
    for row, turn in enumerate(turns):
        found = model.log_odds(turn.asked, turn.words)
        # float32 either way, summed in another order.
        np.testing.assert_allclose(found, expected[row, : len(turn.words)], rtol=1e-4, atol=1e-4)


def test_what_stands_behind_a_place_does_not_change_it(model: TurnEndModel) -> None:
    words = "can i get a coffee and a muffin please".split()
    whole = model.log_odds(asked_of("Hello!"), words)
    for count in range(1, len(words)):
        np.testing.assert_allclose(
            model.log_odds(asked_of("Hello!"), words[:count]), whole[:count], rtol=1e-4, atol=1e-4
        )


def test_table_entries_tell_order_kind_place_and_what_was_asked() -> None:
    asked = (asked_of("What size?"), asked_of("What size"), asked_of("Which size?"))
    found = rows(
        [(asked[0], ("a", "tea")), (asked[0], ("tea", "a")), (asked[1], ("a", "tea")), (asked[2], ("a", "tea"))]
    )
    assert found.words.shape == found.endings.shape == (4, FIRST + 2)
    assert found.words[:, FIRST - 1].tolist() == [QUESTION, QUESTION, STATEMENT, QUESTION]
    entries = crosses(found.words[:, FIRST - 1 :], found.opening)
    assert entries.min() >= 0 and entries.shape[:2] == (4, 2)
    assert entries[0, 1, 0] == entries[1, 0, 0], "the same last word"
    assert entries[0, 1, 1] != entries[1, 1, 1], "another order"
    assert len(set(entries[0, 1].tolist())) == entries.shape[2], "kinds do not meet"
    assert (entries[0, 1] != entries[2, 1]).tolist() == [False] * 7 + [True] * 3, "no question"
    assert (entries[0, 1] != entries[3, 1]).tolist() == [False] * 8 + [True] * 2, "another question"


def test_words_that_are_not_known_are_one() -> None:
    known = known_words(["tom", "who"])
    found = rows([(asked_of("Who?"), ("tom",)), (asked_of("Who?"), ("tim",)), (asked_of("Who?"), ("jo",))])
    at = places(found.words, known)
    assert at[0, FIRST] > UNKNOWN and at[1, FIRST] == at[2, FIRST] == UNKNOWN
    assert at[0, FIRST - 1] == QUESTION and at[0, 0] == 0
    assert found.beginnings[1, FIRST] != found.beginnings[2, FIRST]


def test_weights_that_lack_a_part_or_are_none_are_named(tmp_path: Path, model: TurnEndModel) -> None:
    weights: dict[str, Any] = {"known": model._known, **model._weights}
    with pytest.raises(BackendError, match=r"endpoint: turn-end weights: .*output"):
        TurnEndModel({name: value for name, value in weights.items() if name != "output"})
    with pytest.raises(BackendError, match=r"table has shape None"):
        TurnEndModel({name: value for name, value in weights.items() if name != "table"})
    with pytest.raises(BackendError, match=r"bias has shape \(2,\), expected \(1,\)"):
        TurnEndModel({**weights, "bias": np.zeros(2, np.float32)})
    with pytest.raises(BackendError, match=r"known does not begin with the marks"):
        TurnEndModel({**weights, "known": model._known + np.uint64(1)})
    for content in (b"", b"PK\x03\x04 no archive", b"text"):
        path = tmp_path / "weights.npz"
        path.write_bytes(content)
        with pytest.raises(BackendError, match=r"endpoint: cannot load"):
            TurnEndModel.load(path)
    with pytest.raises(BackendError, match=r"endpoint: cannot load"):
        TurnEndModel.load(tmp_path / "nowhere.npz")


def test_the_scorer_reads_what_the_agent_said_last_and_the_callers_words(model: TurnEndModel) -> None:
    turns = (
        PromptTurn("system", "Be brief."),
        PromptTurn("agent", "Which day?"),
        PromptTurn("note", "the table is free"),
        PromptTurn("user", "next friday"),
    )

    async def ask(*turns: PromptTurn) -> float:
        return await TurnWordsScorer().completeness(TurnSoFar("call", turns, (), SILENCE))

    assert run_async(ask(*turns)) == model.completeness("next friday", "Which day?")
    assert run_async(ask(turns[-1])) == alone(model.completeness("next friday"), "next friday", "")


def test_the_sound_is_weighed_beside_the_words_but_for_short_answers(model: TurnEndModel) -> None:
    def ask(words: str, sound: float | None) -> float:
        turns = (PromptTurn("agent", "What size?"), PromptTurn("user", words))
        return run_async(TurnWordsScorer().completeness(TurnSoFar("call", turns, (), SILENCE, sound)))

    unheard = ask("a large tea please", None)
    assert ask("a large tea please", 0.5) == pytest.approx(unheard)
    assert ask("a large tea please", 0.2) < unheard < ask("a large tea please", 0.8)
    assert ask("large", 0.1) == ask("large", 0.9) == model.completeness("large", "What size?")


def test_what_sounds_and_words_make_probable_is_the_sum_of_their_odds() -> None:
    assert beside(0.8, None) == 0.8 and beside(0.8, 0.5) == pytest.approx(0.8)
    assert beside(0.75, 0.6) == pytest.approx(4.5 / 5.5) and beside(0.5, 0.2) == pytest.approx(0.2)
    assert 0.0 < beside(0.0, 0.0) < beside(1.0, 1.0) < 1.0, "two that are sure are not quite"


def test_a_judge_that_is_alone_is_more_careful_but_for_short_answers() -> None:
    assert alone(0.8, "a large tea please", "What size?") == pytest.approx(2 / 3)
    assert alone(0.8, "large", "What size?") == 0.8
    for certain in (1e-9, 1 - 1e-9):
        assert alone(certain, "a large tea please", "") == pytest.approx(certain, abs=1e-8)


def test_misheard_words_say_half_as_much_and_that_they_are_complete_not_at_all() -> None:
    complete, unfinished = 0.95, 0.05
    assert weighed(complete, None, is_misheard=False) == complete
    assert weighed(complete, None, is_misheard=True) == NO_IDEA
    assert weighed(unfinished, None, is_misheard=True) == tempered(unfinished, 0.5)
    assert unfinished < weighed(unfinished, None, is_misheard=True) < NO_IDEA


def test_the_built_in_judge_of_sound_counts_beside_words_that_were_heard_and_another_beside_all() -> None:
    assert weighed(0.7, Heard(0.9), is_misheard=False) == pytest.approx(beside(0.7, 0.9))
    assert weighed(0.7, Heard(0.9), is_misheard=True) == NO_IDEA
    assert weighed(0.7, Heard(0.9, 0.8), is_misheard=True) == pytest.approx(0.8)


def test_the_turn_end_model_alone_believes_a_recogniser_that_is_sure_to_have_misheard_but_for_short_answers(
    model: TurnEndModel,
) -> None:
    def ask(words: str, confidence: float | None) -> float:
        turns = (PromptTurn("agent", "What size?"), PromptTurn("user", words))
        turn = TurnSoFar("call", turns, (), SILENCE, confidence=confidence)
        return run_async(TurnWordsScorer().completeness(turn))

    said = "a large tea and that's all thank you"
    assert ask(said, None) == ask(said, 1.0) == ask(said, SURELY_MISHEARD) > NO_IDEA
    assert ask(said, 0.0) == NO_IDEA
    assert ask("large", 0.0) == ask("large", 1.0) == model.completeness("large", "What size?")


@pytest.mark.parametrize(
    ("words", "confidence", "is_misheard"),
    [
        ("a large tea and that's all", 0.0, True),
        ("a large tea and that's all", SURELY_MISHEARD, False),
        ("a large tea and that's all", None, False),
        ("large", 0.0, False),
    ],
)
def test_what_the_turn_end_model_takes_for_misheard_is_told_with_its_answer(
    words: str, confidence: float | None, is_misheard: bool
) -> None:
    turns = (PromptTurn("agent", "What size?"), PromptTurn("user", words))
    turn = TurnSoFar("call", turns, (), SILENCE, confidence=confidence)
    scorer = TurnWordsScorer()
    completeness = run_async(scorer.completeness(turn))
    assert run_async(scorer.judge(turn)) == TurnJudgement(completeness, is_misheard)


def test_no_package_but_numpy_is_needed_to_judge() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'tokenizers', 'safetensors', 'onnxruntime')))\n"
        "from voice_pipelines.adapters.turn_words import TurnWordsScorer\n"
        "print(TurnWordsScorer().info.name)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "turn-end model\n"


# --- training ---------------------------------------------------------------------------------------------------------


def test_turns_are_read_with_the_question_before_them(tmp_path: Path) -> None:
    path = tmp_path / "made.train.jsonl"
    path.write_text(
        '{"turns": [{"role": "system", "text": "x"}, {"role": "user", "text": "Hi!"}, {"role": "agent", "text": "A tea?"}, '
        '{"role": "user", "text": "..."}, {"role": "note", "text": "n"}, {"role": "user", "text": "Yes, 2."}]}\n'
    )
    assert read_turns(path, 9, 0) == [Turn(asked_of(""), ("hi",)), Turn(asked_of("A tea?"), ("yes", "two"))]
    assert len(read_turns(path, 1, 0)) == 1


def test_misheard_words_are_never_none_and_half_of_the_turns_stay_as_they_are() -> None:
    rng = random.Random(0)
    said, others = ["a", "large", "tea", "please"], [("x",), ("y", "z")]
    heard = [misheard(said, others, rng) for _ in range(400)]
    assert all(heard) and all(set(words) <= {*said, "x", "y", "z"} for words in heard)
    assert 160 < sum(words == said for words in heard) < 290
    short = [misheard(said[:3], others, rng) for _ in range(400)]
    assert sum(words == said[:3] for words in short) > 290, "of few words nothing would be left"


def test_some_turns_are_said_without_contractions_and_some_with_a_filler_before_a_word() -> None:
    rng = random.Random(0)
    found = {" ".join(said_otherwise(["that's", "all"], rng)) for _ in range(2_000)}
    assert {"that's all", "that is all", "um that's all", "that's um all"} <= found
    assert all(said.endswith("all") for said in found), "nobody ends with a filler"


def test_a_made_answer_has_a_word_now_and_then_that_its_maker_does_not_know() -> None:
    rng = random.Random(0)
    vocabulary = ["wombat", "leeds"]
    found = [answered_otherwise(["large", "please"], vocabulary, rng) for _ in range(2_000)]
    assert {tuple(each) for each in found} == {
        ("large", "please"), ("wombat", "please"), ("leeds", "please"), ("large", "wombat"), ("large", "leeds"),
    }  # fmt: skip
    assert 0.25 < sum(each != ["large", "please"] for each in found) / len(found) < 0.35
    assert answered_otherwise(["large"], [], rng) == ["large"]


def test_made_answers_alone_are_learned_with_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "OTHER_ANSWERS", 1.0)
    monkeypatch.setattr(training, "UNCHANGED", 1.0)
    monkeypatch.setattr(training, "HESITANT", 0.0)
    read: list[Row] = []
    original = training.batch_of
    monkeypatch.setattr(training, "batch_of", lambda some, *rest: read.extend(some) or original(some, *rest))
    turns = [Turn(Asked(), ("large",), True), Turn(Asked(), ("large",))]
    assert list(epoch_of(turns, [("x",)], ["wombat"], known_words(["large"]), random.Random(0)))
    assert sorted(list(row.words) for row in read) == [["large"], ["wombat"]]


def taught(turn: Turn, seed: int = 0) -> list[tuple[tuple[str, ...], float, bool]]:
    """What the places of a turn teach: the words up to each, its weight, and whether it is an end."""
    batch = batch_of(found := list(rows_of(turn, random.Random(seed))), known_words(common_words([turn])))
    return [
        (tuple(row.words[: place + 1]), float(batch.weight[at, place]), bool(batch.is_end[at, place]))
        for at, row in enumerate(found)
        for place in range(len(row.words))
        if batch.weight[at, place] > 0
    ]


def test_a_pause_within_a_turn_is_as_likely_as_behind_it_and_hardly_one_within_a_short_answer() -> None:
    for words in ("abcdefghijklmnop", "abcd", "ab"):
        found = taught(Turn(Asked(), tuple(words)))
        assert [is_end for _, _, is_end in found] == [False] * (len(words) - 1) + [True]
        assert sum(weight for _, weight, is_end in found if not is_end) == pytest.approx(1.0)
    no_thanks = taught(Turn(Asked(), ("no", "thanks"), is_made=True))
    assert no_thanks == [(("no",), pytest.approx(PAUSES_WITHIN_ANSWERS), False), (("no", "thanks"), 1.0, True)]
    assert taught(Turn(Asked(), ("yes",))) == [(("yes",), 1.0, True)]


@pytest.mark.parametrize("count", [MOST_WORDS, MOST_WORDS + 1, MOST_WORDS + 2, 90])
def test_a_turn_of_more_words_than_are_read_ends_where_it_ends_and_nowhere_else(count: int) -> None:
    words = tuple(map(str, range(count)))
    for seed in range(20):
        places = taught(Turn(Asked(), words), seed)
        ends = [said for said, _, is_end in places if is_end]
        assert ends == [words[-MOST_WORDS:]], "its last words, as the model meets them"
        inner = [(said, weight) for said, weight, is_end in places if not is_end]
        assert sum(weight for _, weight in inner) == pytest.approx(1.0), "as much as its end"
        for said, _ in inner:
            last = words.index(said[-1])
            assert said == words[: last + 1][-MOST_WORDS:] and last < count - 1


def test_the_odds_of_a_long_turn_are_those_that_a_caller_meets_word_by_word(model: TurnEndModel) -> None:
    words = tuple(f"{word}{at}" for at in range(20) for word in ("and", "then", "tea"))
    found = odds_of(model, Turn(asked_of("What else?"), words))
    assert len(found) == len(words)
    for count in (1, 39, 40, 41, 60):
        expected = model.log_odds(asked_of("What else?"), words[:count])[-1]
        assert found[count - 1] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_few_turns_are_learned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training, "BATCH", 8)
    monkeypatch.setattr(training, "RATE", 0.05)
    monkeypatch.setattr(training, "UNCHANGED", 1.0)
    turns = [
        Turn(asked_of("What else?"), ("a", size, "tea", "please")) for size in ("small", "large", "huge", "cold")
    ] * 4
    network = training.train(turns, [("x",)], seed=0, epochs=5)
    training.save(network, tmp_path / "weights.npz")
    taught_model = TurnEndModel.load(tmp_path / "weights.npz")
    found = measure(taught_model, [*turns, Turn(Asked(), ("yes",))])
    assert found.turns == len(turns), "a single word has no place to pause"
    assert found.area > 0.99 and found.nats < 0.3


def test_where_fewer_turns_have_a_pause_every_end_is_so_much_likelier() -> None:
    network = Network(known_words([])).eval()
    turn = Turn(Asked(), ("yes", "please"))
    batch = batch_of(list(rows_of(turn, random.Random(0))), network.known)
    with torch.no_grad():
        before = network(batch.words, batch.beginnings, batch.endings, batch.entries)
        pause_less(network)
        after = network(batch.words, batch.beginnings, batch.endings, batch.entries)
    torch.testing.assert_close(after, before - math.log(PAUSED_TURNS))


def test_turns_that_grow_by_being_said_otherwise_are_trained_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "BATCH", 1)
    monkeypatch.setattr(training, "EXPANDED", 1.0)
    turn = Turn(Asked(), ("that's",) * MOST_WORDS)
    assert training.train([turn] * 2, [("x",)], seed=0, epochs=1).known.size > UNKNOWN


# --- made answers -----------------------------------------------------------------------------------------------------


def test_answers_are_made_again_from_their_seed_and_have_no_slot_left() -> None:
    made = list(made_answers(500, 3))
    assert made == list(made_answers(500, 3)) != list(made_answers(500, 4))
    assert not [each for each in made if "{" in each.asked + each.said or not each.said.strip()]


def test_every_kind_of_answer_is_made_as_often_as_it_says_and_fits_what_was_asked() -> None:
    with PHRASES.open("rb") as file:
        kinds = tomllib.load(file)
    fill = kinds.pop("fill")
    made = Counter(each.kind for each in made_answers(6_000, 0))
    total = sum(kind["share"] for kind in kinds.values())
    for name, kind in kinds.items():
        assert made[name] / 6_000 == pytest.approx(kind["share"] / total, rel=0.35), name
    chosen = [each for each in made_answers(6_000, 0) if each.kind == "choice" and each.said.endswith(" please")]
    offered = [each for each in chosen if any(each.said == f"{word} please" for word in (*fill["a"], *fill["b"]))]
    assert len(offered) > 30 and all(each.said.removesuffix(" please") in each.asked.lower() for each in offered)
    assert [each for each in made_answers(6_000, 0) if each.kind == "no" and each.asked in kinds["yes"]["questions"]]


def test_answers_that_are_taken_for_complete_too_late_are_found(model: TurnEndModel) -> None:
    whole, begun = (
        Answer("size", "Which size?", "large"),
        Answer("size", "Which size?", "a large one with"),
    )
    settings = EndpointSettings(min_silence_s=0.2)
    for cost, slow in ((0.01, 0.0), (1000.0, 1.0)):
        found = measure_answers(model, [begun], replace(settings, cut_off_cost_s=cost))
        assert (found.count, found.slow) == (1, slow)
        assert (found.wait_s > 1.0) == (slow == 1.0)
        assert (found.cut_off > 0.5) == (slow == 0.0)
    assert measure_answers(model, [whole], settings).cut_off == 0.0, "nobody can pause in a word"


def test_short_answers_of_dialogues_are_those_that_a_question_stands_before(tmp_path: Path) -> None:
    path = tmp_path / "made.dev.jsonl"
    path.write_text(
        '{"turns": [{"role": "user", "text": "Hi!"}, {"role": "agent", "text": "A tea?"}, {"role": "user", "text": "Yes, 2."}, '
        '{"role": "agent", "text": "Sure."}, {"role": "user", "text": "Bye."}, {"role": "agent", "text": "Sure?"}, '
        '{"role": "user", "text": "I think so, yes."}]}\n'
    )
    assert short_answers(path, 0) == [Answer("made", "A tea?", "yes two")]

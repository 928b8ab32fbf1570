"""Two questions about callers' turns, answered by models that know and by models that guess."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dllm.evaluate.questions import TurnSample, WordSample, measure_doubts, measure_turns, turn_samples, word_samples
from dllm.train.data import Dialogue, Turn
from tests.dllm import tiny

CODEC = tiny.codec()
SPECIAL = CODEC.special
DIALOGUES = {
    name: [
        Dialogue(
            str(number),
            name,
            (
                Turn("system", "You answer the phone."),
                Turn("agent", "What size would you like?"),
                Turn("user", "I'd like a large tea and a muffin for 7 pm."),
            ),
        )
        for number in range(30)
    ]
    for name in ("tea", "milk")
}


def test_turns_are_whole_or_cut_behind_a_word_as_a_recogniser_writes_them() -> None:
    samples = turn_samples(DIALOGUES, CODEC, 40)
    whole = "i'd like a large tea and a muffin for seven p m"
    assert len(samples) == 40
    assert {sample.group[0] for sample in samples} == {"tea", "milk"}
    for sample in samples:
        assert sample.prompt[0] == SPECIAL.system and sample.prompt.count(SPECIAL.user) == 1
        said = CODEC.decode(sample.prompt[sample.prompt.index(SPECIAL.user) + 1 :]).strip()
        assert whole.startswith(said)
        assert (said == whole) is sample.is_whole
        assert sample.words == len(said.split())
    assert 10 < sum(sample.is_whole for sample in samples) < 30
    assert samples == turn_samples(DIALOGUES, CODEC, 40)


def test_misheard_words_are_others_of_one_token_and_marked() -> None:
    samples = word_samples(DIALOGUES, CODEC, 40)
    meant = CODEC.encode_text("i'd like a large tea and a muffin for seven p m")
    assert sum(sum(sample.is_wrong) for sample in samples) > 0
    for sample in samples:
        assert sample.prompt[-1] == SPECIAL.user
        for (start, end), is_wrong in zip(sample.words, sample.is_wrong, strict=True):
            assert (list(sample.heard[start:end]) != meant[start:end]) is is_wrong


def samples_of(pattern: Sequence[bool]) -> list[TurnSample]:
    return [TurnSample(("tea", str(at)), (at,), is_whole, 3) for at, is_whole in enumerate(pattern)]


def test_a_model_that_knows_is_always_right_and_silence_never_tells() -> None:
    samples = samples_of([True, False] * 10)
    found = measure_turns(lambda prompts: [float(prompt[0] % 2 == 0) for prompt in prompts], samples)
    assert (found["accuracy"]["value"], found["area"]["value"]) == (1.0, 1.0)
    assert found["silence"] == {"area": 0.5, "accuracy": 0.5}
    assert found["length"]["area"]["value"] == 0.5
    assert (found["turns"], found["whole"], found["calibration_error"]) == (20, 10, 0.0)


def test_a_model_that_always_says_the_same_is_as_good_as_silence() -> None:
    found = measure_turns(lambda prompts: [0.9] * len(prompts), samples_of([True, True, True, False]))
    assert (found["accuracy"]["value"], found["area"]["value"]) == (0.75, 0.5)
    assert found["calibration_error"] == pytest.approx(0.15)


def test_doubts_are_precise_where_only_wrong_words_are_improbable() -> None:
    sample = WordSample(("tea", "1"), (4,), (30, 31, 32), ((0, 1), (1, 3)), (True, False))
    found = measure_doubts(lambda prompt, heard: [0.05, 0.9, 0.4], [sample])
    assert (found["words"], found["wrong"], found["area"]["value"]) == (2, 1, 1.0)
    by_bound = {row["below"]: (row["precision"]["value"], row["recall"]["value"]) for row in found["at"]}
    # The second word is as doubtful as its least probable token: 0.4.
    assert by_bound == {0.02: (None, 0.0), 0.1: (1.0, 1.0), 0.5: (0.5, 1.0)}

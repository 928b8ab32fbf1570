"""Dialogue files: what is read, what is refused and where, and what a row is made of."""

from __future__ import annotations

import json
import lzma
import random
from dataclasses import replace
from pathlib import Path

import pytest

from dllm.errors import ConfigError, DataError
from dllm.train.config import SourceConfig, TrainConfig
from dllm.train.data import (
    Dialogue,
    Mixture,
    RowMaker,
    Turn,
    alike_words,
    find_sources,
    read_dialogues,
    source_weights,
    with_recogniser_noise,
)
from tests.dllm import tiny

CODEC = tiny.codec()
PLAIN = TrainConfig(spoken_share=0.0, noise_share=0.0, renamed_share=0.0, rest_share=0.0, transcript_share=0.0)
ORDER = Dialogue(
    "1",
    "cafe",
    (
        Turn("system", "You sell tea."),
        Turn("user", "A large mocha, please."),
        Turn("note", "large mocha; total: $5.10"),
        Turn("agent", "A large mocha, that's $5.10.", ("$5.10",)),
        Turn("user", "Thanks!"),
        Turn("agent", "Goodbye!"),
    ),
)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object, found list"),
        ('{"turns": []}', "a dialogue without turns"),
        ('{"turns": [{"role": "user"}]}', 'turn 0: expected an object with a string "text"'),
        ('{"turns": [{"role": "user", "call": {"name": "pay"}}]}', "turn 0: only an agent calls tools"),
        ('{"turns": [{"role": "agent", "call": "pay"}]}', 'turn 0: expected "call" to be an object'),
        (
            '{"turns": [{"role": "agent", "call": {"name": "pay", "arguments": {"a": 1}}}]}',
            "must be an object of strings",
        ),
        ('{"turns": [{"role": "agent", "call": {"name": "pay", "arguments": {"a": ";"}}}]}', "without a semicolon"),
        ('{"turns": [{"role": "agent", "call": {"name": "pay now"}}]}', "expected the name of a tool"),
        (
            '{"turns": [{"role": "agent", "call": {"name": "pay", "arguments": {"a:b": "c"}}}]}',
            "is read back with other arguments",
        ),
        ('{"tools": [{"name": "a b"}], "turns": [{"role": "user", "text": "hi"}]}', "tool name"),
        ('{"turns": [{"role": "bot", "text": "hi"}]}', "turn 0: role 'bot' is not one of system, user, note, agent"),
        ('{"turns": [{"role": "agent", "text": "hi", "pins": "hi"}]}', '"pins" must be a list of strings'),
        ('{"turns": [{"role": "agent", "text": "hi", "pins": [""]}]}', "none of them empty"),
        ('{"turns": [{"role": "agent", "text": "hi", "pins": ["$5"]}]}', r"pin '\$5' is not in the text"),
    ],
)
def test_bad_lines_are_reported_with_file_and_line(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "tea.train.jsonl"
    path.write_text('{"turns": [{"role": "user", "text": "hi"}]}\n\n' + line + "\n")
    with pytest.raises(DataError, match=rf"tea\.train\.jsonl:3: .*{problem}"):
        list(read_dialogues(path))


def test_damaged_archives_are_reported_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tea.train.jsonl.xz"
    path.write_bytes(b"not xz")
    with pytest.raises(DataError, match=r"tea\.train\.jsonl\.xz: unreadable"):
        list(read_dialogues(path))
    path.write_bytes(lzma.compress(b'{"turns": [{"role": "user", "text": "hi"}]}\n' * 50)[:-20])
    with pytest.raises(DataError, match="unreadable"):
        list(read_dialogues(path))


def test_plain_and_compressed_files_read_alike(tmp_path: Path) -> None:
    plain = tiny.write_dialogues(tmp_path)
    packed = tmp_path / "packed.train.jsonl.xz"
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    assert list(read_dialogues(plain)) == list(read_dialogues(packed))


def test_folders_without_data_and_names_used_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \*\.train\.jsonl"):
        find_sources([tmp_path], "train")
    (tmp_path / "notes.train.txt").write_text("A text.")
    with pytest.raises(DataError, match=r"`dialogue` reads no text such as notes\.train\.txt, `masked` and others do"):
        find_sources([tmp_path], "train")
    tiny.write_dialogues(tmp_path / "one")
    tiny.write_dialogues(tmp_path / "two")
    with pytest.raises(DataError, match="source 'tea' is also in"):
        find_sources([tmp_path / "one", tmp_path / "two"], "train")


def test_mixture_comes_from_the_configuration_or_the_folder_or_is_even(tmp_path: Path) -> None:
    names = ["tea", "cake"]
    assert {name: source.weight for name, source in source_weights([tmp_path], names, TrainConfig()).items()} == {
        "tea": 1.0,
        "cake": 1.0,
    }
    (tmp_path / "mixture.json").write_text(json.dumps({"cake": 3}))
    assert list(source_weights([tmp_path], names, TrainConfig())) == ["cake"]
    config = TrainConfig(sources={"tea": SourceConfig(weight=2.0), "absent": SourceConfig()})
    assert list(source_weights([tmp_path], names, config)) == ["tea"]
    with pytest.raises(ConfigError, match="at least one of: cake"):
        source_weights([tmp_path], ["cake"], config)


@pytest.mark.parametrize("text", ["{", "[1]", '{"tea": "much"}'])
def test_a_mixture_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "mixture.json").write_text(text, "utf-8")
    with pytest.raises(DataError, match=r"mixture\.json: "):
        source_weights([tmp_path], ["tea"], TrainConfig())


def test_a_row_holds_every_turn_and_one_answer_per_agent_turn() -> None:
    row = RowMaker(CODEC, PLAIN).make(ORDER, SourceConfig(), random.Random(1))
    assert row is not None
    assert list(row.clean) == [token for turn in ORDER.turns for token in CODEC.encode_turn(turn.role, turn.text)]
    for answer in row.answers:
        assert row.clean[answer.start : answer.start + len(answer.tokens)] == answer.tokens
        assert row.clean[answer.start - 1] == CODEC.special.agent
        assert answer.tokens[-1] == CODEC.special.end
    assert [CODEC.decode(answer.tokens).strip() for answer in row.answers] == [ORDER.turns[3].text, ORDER.turns[5].text]


def test_pinned_tokens_are_exactly_the_price_with_its_space() -> None:
    row = RowMaker(CODEC, PLAIN).make(ORDER, SourceConfig(), random.Random(1))
    assert row is not None
    first = row.answers[0]
    pinned = tuple(token for token, is_pinned in zip(first.tokens, first.pinned, strict=True) if is_pinned)
    assert pinned == CODEC.encode_pin("$5.10")
    assert not any(row.answers[1].pinned)


def test_windows_keep_the_system_turn_and_the_limit() -> None:
    config = replace(PLAIN, max_clean_tokens=60)
    long = replace(ORDER, turns=ORDER.turns[:1] + ORDER.turns[1:] * 6)
    for seed in range(20):
        row = RowMaker(CODEC, config).make(long, SourceConfig(), random.Random(seed))
        assert row is not None
        assert len(row.clean) <= 60
        assert row.clean[: row.head] == tuple(CODEC.encode_turn("system", "You sell tea."))


def test_long_agent_turns_are_cut_after_a_sentence_or_only_read() -> None:
    maker, source = RowMaker(CODEC, PLAIN), SourceConfig(max_agent_tokens=6)
    two = Dialogue("1", "", (Turn("user", "hi"), Turn("agent", "Goodbye! A large mocha with almond milk, please.")))
    row = maker.make(two, source, random.Random(1))
    assert row is not None
    assert CODEC.decode(row.answers[0].tokens).strip() == "Goodbye!"
    endless = Dialogue("1", "", (Turn("user", "hi"), Turn("agent", "mocha " * 40)))
    assert maker.make(endless, source, random.Random(1)) is None


def test_roles_of_equals_can_be_exchanged() -> None:
    row = RowMaker(CODEC, PLAIN).make(ORDER, SourceConfig(swap_roles=1.0), random.Random(1))
    assert row is not None
    assert CODEC.decode(row.answers[0].tokens).strip() == ORDER.turns[1].text


def test_user_turns_are_written_as_heard() -> None:
    row = RowMaker(CODEC, replace(PLAIN, spoken_share=1.0)).make(ORDER, SourceConfig(), random.Random(1))
    assert row is not None
    assert "a large mocha please" in CODEC.tokenizer.decode(list(row.clean))


def test_renaming_exchanges_a_content_word_everywhere_alike() -> None:
    maker = RowMaker(CODEC, replace(PLAIN, renamed_share=1.0))
    words = ("mocha", "almond", "muffin")
    noted = next(word for word in words if len(CODEC.encode_text(word)) == 1)
    turns = (Turn("user", f"a {noted}"), Turn("note", f"order: {noted}"), Turn("agent", f"A {noted}."))
    plain = RowMaker(CODEC, PLAIN).make(Dialogue("1", "", turns), SourceConfig(), random.Random(1))
    for seed in range(5):
        row = maker.make(Dialogue("1", "", turns), SourceConfig(), random.Random(seed))
        assert row is not None and plain is not None
        changed = {(old, new) for old, new in zip(plain.clean, row.clean, strict=True) if old != new}
        assert len(changed) <= 1, "one word, one new name"
        answer = row.answers[0]
        assert row.clean[answer.start : answer.start + len(answer.tokens)] == answer.tokens


def test_recogniser_noise_changes_few_words() -> None:
    spoken = "i would like a large mocha with almond milk and a muffin for the road please " * 20
    noisy = with_recogniser_noise(spoken.strip(), random.Random(1))
    assert noisy != spoken.strip()
    assert abs(len(noisy.split()) - len(spoken.split())) < 0.1 * len(spoken.split())


def test_a_row_is_the_same_in_every_run(tmp_path: Path) -> None:
    tiny.write_dialogues(tmp_path)
    config = replace(TrainConfig(), sources={})
    one, two = Mixture([tmp_path], CODEC, config), Mixture([tmp_path], CODEC, config)
    assert [one.row(number) for number in (5, 0, 9)] == [two.row(number) for number in (5, 0, 9)]
    assert one.row(1) != one.row(2)
    assert one.rows_of("tea", 3) == two.rows_of("tea", 3)


def test_unknown_and_impossible_configuration_is_named() -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        TrainConfig.from_json({"learning_rate": 1})
    with pytest.raises(ConfigError, match="seed = 'x'"):
        TrainConfig.from_json({"seed": "x"})
    with pytest.raises(ConfigError, match=r"sources\.tea"):
        TrainConfig.from_json({"sources": {"tea": {"wait": 1}}})
    with pytest.raises(ConfigError, match="a multiple of rows_per_forward"):
        TrainConfig(rows_per_step=5, rows_per_forward=2)
    with pytest.raises(ConfigError, match="a probability"):
        TrainConfig(prefix_share=1.5)


def test_tools_stand_in_the_system_turn_and_calls_are_turns(tmp_path: Path) -> None:
    path = tmp_path / "tea.train.jsonl"
    body = {
        "tools": [{"name": "price", "parameters": {"properties": {"drink": {}}}}],
        "turns": [
            {"role": "user", "text": "how much is a tea"},
            {"role": "agent", "call": {"name": "price", "arguments": {"drink": "tea"}}},
        ],
    }
    path.write_text(json.dumps(body))
    (dialogue,) = read_dialogues(path)
    assert dialogue.turns[0] == Turn("system", "Tools: [price; drink?]")
    row = RowMaker(CODEC, PLAIN).make(dialogue, SourceConfig(), random.Random(1))
    assert row is not None
    (answer,) = row.answers
    assert answer.tokens == (CODEC.special.call, *CODEC.encode_text("price; drink: tea"), CODEC.special.end)
    assert row.clean[answer.start : answer.start + len(answer.tokens)] == answer.tokens


def copied_text(*turns: Turn) -> str:
    row = RowMaker(CODEC, PLAIN).make(Dialogue("1", "cafe", turns), SourceConfig(), random.Random(1))
    assert row is not None
    pairs = zip(row.answers[0].tokens, row.answers[0].copied, strict=True)
    return CODEC.decode([token for token, is_copied in pairs if is_copied])


def test_what_was_told_is_marked_as_copied_and_words_that_make_sentences_are_not() -> None:
    told = copied_text(*ORDER.turns)
    assert "mocha" in told and "5" in told and "that" not in told
    user, reply = Turn("user", "a mocha"), Turn("agent", "A mocha.")
    assert copied_text(user, reply) == "", "a reply is told by notes and the system turn, not by the caller"
    assert "mocha" in copied_text(Turn("user", "a mocha"), Turn("agent", "price; drink: mocha", is_call=True))


def test_a_user_turn_that_is_cut_or_whole_asks_for_its_rest() -> None:
    maker = RowMaker(CODEC, replace(PLAIN, rest_share=1.0))
    user = CODEC.encode_turn("user", "A large mocha, please.")
    whole = cut = 0
    for seed in range(60):
        row = maker.make(ORDER, SourceConfig(), random.Random(seed))
        assert row is not None
        for answer in row.answers:
            if answer.kind == "rest":
                assert row.clean[answer.start : answer.start + len(answer.tokens)] == answer.tokens
                whole += answer.tokens == (CODEC.special.end,)
                cut += len(answer.tokens) > 1
                if len(answer.tokens) < len(user) - 1:
                    first = CODEC.token_bytes(answer.tokens[0])
                    assert answer.tokens[0] == CODEC.special.end or first.startswith(b" "), "cuts are where words end"
    assert whole > 20 and cut > 20


def test_a_transcript_is_asked_for_word_by_word() -> None:
    maker = RowMaker(CODEC, replace(PLAIN, transcript_share=1.0))
    changed = 0
    for seed in range(60):
        row = maker.make(ORDER, SourceConfig(), random.Random(seed))
        assert row is not None
        for answer in row.answers:
            if answer.kind == "transcript":
                assert len(answer.heard) == len(answer.tokens)
                assert row.clean[answer.start : answer.start + len(answer.tokens)] == answer.tokens, (
                    "the text is the truth"
                )
                changed += answer.heard != answer.tokens
    assert 5 < changed < 115


def test_words_that_look_alike_stand_in_for_each_other() -> None:
    alike = alike_words({1: b" fifty", 2: b" fifteen", 3: b" mocha", 4: b" mocca", 5: b" zzz"}, per_word=1)
    assert alike == {1: [2], 2: [1], 3: [4], 4: [3]}

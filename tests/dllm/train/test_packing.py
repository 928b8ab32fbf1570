"""Documents and packed rows: what is learned, who belongs together, and that a step's rows depend on seed and step alone."""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.codec import Codec
from dllm.errors import ConfigError, DataError
from dllm.hub_codec import HubCodec
from dllm.spec import ModelSpec
from dllm.train.config import SourceConfig, TrainConfig
from dllm.train.corpus import Corpus, Document, encode_prompt, find_files, read_items
from dllm.train.data import Dialogue, Turn
from dllm.train.packing import collate, generator_of, pack
from tests.dllm import tiny
from tests.dllm.models.tiny_checkpoints import tiny_spec
from tests.dllm.models.tiny_tokenizer import write_tokenizer

CONFIG = TrainConfig(objective="masked", row_tokens=200, spoken_share=0.0)
ORDER = Dialogue(
    "1", "cafe", (Turn("user", "tea"), Turn("note", "total: 5"), Turn("agent", "Five."), Turn("agent", "Bye."))
)


def hub_codec(folder: Path, spec: ModelSpec) -> HubCodec:
    return HubCodec.load(write_tokenizer(folder, spec), spec)


def corpus(folder: Path, codec: Codec, spec: ModelSpec, config: TrainConfig = CONFIG) -> Corpus:
    if not list(folder.glob("*.jsonl")):
        tiny.write_dialogues(folder)
    return Corpus([folder], codec, spec, config)


def documents(sizes: list[int]) -> Iterator[Document]:
    for number, size in enumerate(sizes):
        yield Document((number,) * size, (True,) * size, "a")
    while True:
        yield Document((0,) * 1000, (True,) * 1000, "a")


# --- documents --------------------------------------------------------------------------------------------------------


def test_an_answer_is_learned_with_its_end_and_the_prompt_is_only_read(tmp_path: Path) -> None:
    spec = tiny_spec("llada")
    codec = hub_codec(tmp_path / "t", spec)
    made = corpus(tmp_path, codec, spec, replace(CONFIG, answer_padding=0)).make(
        ORDER, SourceConfig(), random.Random(1)
    )
    assert made is not None
    ids, learned = made
    start = learned.index(True)
    assert all(learned[start:]) and not any(learned[:start])
    assert codec.decode(ids[start:]) in ("Five.", "Bye.")
    assert ids[-1] == spec.special.end and spec.special.end not in ids[start:-1]
    assert codec.decode(ids[:start]).endswith("assistant:")


def test_full_attention_learns_a_random_number_of_further_ends(tmp_path: Path) -> None:
    spec = tiny_spec("llada")
    source = corpus(tmp_path, hub_codec(tmp_path / "t", spec), spec, replace(CONFIG, answer_padding=5))
    paddings = set()
    for seed in range(60):
        made = source.make(ORDER, SourceConfig(), random.Random(seed))
        assert made is not None
        tail = len(made[0]) - len("".join(str(int(t == spec.special.end)) for t in made[0]).rstrip("1"))
        paddings.add(tail - 1)
    assert paddings == set(range(6))


def test_block_causal_answers_end_where_a_block_does(tmp_path: Path) -> None:
    spec = tiny_spec("sdar")
    source = corpus(tmp_path, hub_codec(tmp_path / "t", spec), spec)
    for seed in range(20):
        made = source.make(ORDER, SourceConfig(), random.Random(seed))
        assert made is not None
        assert len(made[0]) % spec.block == 0


def test_a_causal_model_of_the_built_in_family_learns_every_agent_turn_at_once(tmp_path: Path) -> None:
    source = corpus(tmp_path, tiny.codec(), tiny.spec(), replace(CONFIG, objective="causal"))
    made = source.make(ORDER, SourceConfig(), random.Random(1))
    assert made is not None
    learned = [token for token, is_learned in zip(*made, strict=True) if is_learned]
    expected = [*tiny.codec().encode_turn("agent", "Five.")[1:], *tiny.codec().encode_turn("agent", "Bye.")[1:]]
    assert learned == expected


def test_what_does_not_fit_a_row_is_no_document(tmp_path: Path) -> None:
    source = corpus(tmp_path, tiny.codec(), tiny.spec(), replace(CONFIG, row_tokens=8))
    assert source.make(ORDER, SourceConfig(), random.Random(1)) is None
    with pytest.raises(ConfigError, match="row_tokens"):
        source.draw(random.Random(1))


def test_of_a_long_text_every_window_is_drawn(tmp_path: Path) -> None:
    source = corpus(tmp_path, tiny.codec(), tiny.spec(), replace(CONFIG, row_tokens=4))
    whole = [*tiny.codec().encode("I'd like a large mocha, please."), tiny.spec().special.end]
    seen = set()
    for seed in range(200):
        made = source.make("I'd like a large mocha, please.", SourceConfig(), random.Random(seed))
        assert made is not None and all(made[1])
        seen.add(made[0])
    assert seen == {tuple(whole[at : at + 4]) for at in range(len(whole) - 3)}


def test_notes_stand_behind_the_callers_words_where_a_template_knows_no_tools(tmp_path: Path) -> None:
    spec = tiny_spec("llada")
    folder = write_tokenizer(tmp_path, spec)
    body = json.loads((folder / "tokenizer_config.json").read_text())
    body["chat_template"] = (
        "{% if messages[-1].role == 'tool' %}{{ raise_exception('no') }}{% endif %}" + body["chat_template"]
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(body))
    text = HubCodec.load(folder, spec).decode(encode_prompt(HubCodec.load(folder, spec), ORDER.turns[:2]))
    assert text == "user:tea(total: 5)assistant:", "the tiny vocabulary has no line ends"


def test_texts_are_read_from_lines_and_from_files_with_empty_lines_between(tmp_path: Path) -> None:
    (tmp_path / "a.train.txt").write_text("one\ntwo\n\n\nthree\n")
    (tmp_path / "b.train.jsonl.xz").write_bytes(lzma.compress(b'{"text": "four"}\n'))
    (tmp_path / "b.dev.jsonl").write_text('{"text": "five"}\n')
    paths = find_files([tmp_path], "train")
    assert {name: list(read_items(path)) for name, path in paths.items()} == {"a": ["one\ntwo", "three"], "b": ["four"]}
    (tmp_path / "b.dev.jsonl").write_text('{"text": "five"}\n{"text": " "}\n')
    with pytest.raises(DataError, match=r"b\.dev\.jsonl:2: "):
        list(read_items(tmp_path / "b.dev.jsonl"))
    with pytest.raises(DataError, match="is also"):
        find_files([tmp_path, tmp_path], "train")
    with pytest.raises(DataError, match=r"no \*\.train"):
        find_files([tmp_path / "empty"], "train")


# --- rows -------------------------------------------------------------------------------------------------------------


def test_each_document_goes_into_the_first_row_with_room() -> None:
    source = documents([6, 6, 4, 3, 1])
    rows = pack(lambda: next(source), 2, 10, misses=1)
    assert [[len(document.ids) for document in row.documents] for row in rows] == [[6, 4], [6, 3, 1]]


@given(st.lists(st.integers(1, 12), max_size=30), st.integers(1, 4), st.integers(1, 3))
def test_rows_never_overflow_and_close_after_so_many_misses(sizes: list[int], rows: int, misses: int) -> None:
    source = documents(sizes)
    packed = pack(lambda: next(source), rows, 10, misses)
    assert len(packed) == rows
    assert all(row.tokens <= 10 for row in packed)
    placed = [document.ids[0] for row in packed for document in row.documents]
    assert len(set(placed)) == len(placed)


def test_tensors_tell_documents_positions_and_padding_apart() -> None:
    source = documents([3, 5, 4])
    batch = collate(pack(lambda: next(source), 2, 9, misses=1), 9, pad=77)
    assert batch.ids.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1], [2, 2, 2, 2, 77, 77, 77, 77]]
    assert batch.document.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, -1, -1, -1, -1]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 3, 0, 0, 0, 0]]
    assert batch.learned.sum().item() == 12 and not batch.learned[batch.document < 0].any()
    seen = batch.same_document()
    assert not seen[0, 0, 3] and seen[0, 3, 7] and not seen[1, 0, 4] and seen[1, 4, 4]


def test_generators_depend_on_seed_step_and_part_alone() -> None:
    draws = {key: generator_of(*key).random() for key in [(1, 2, 0), (1, 2, 1), (1, 3, 0), (2, 2, 0), (12, 3, 0)]}
    assert len(set(draws.values())) == len(draws)
    assert all(generator_of(*key).random() == value for key, value in draws.items())

"""What is read off many canvases at once equals what each canvas says of itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm import extent
from dllm.canvas import Canvas
from dllm.loader import BUILTIN
from dllm.text import DialogueCodec
from tests.dllm import tiny
from tests.dllm.no_sync import no_host_sync

TABLE = tiny.codec().token_table
CLASSES = extent.TokenClasses(TABLE, tiny.codec().vocab_size, torch.device("cpu"))


def sample_tokens() -> list[int]:
    """A few of every class, so that short canvases hold clauses, figures and ends."""
    groups = (TABLE.sentence_end, TABLE.clause_end, TABLE.digit, TABLE.word_start, {TABLE.end}, {TABLE.mask}, {90, 91})
    return [token for group in groups for token in sorted(group)[:3]]


cells = st.tuples(st.sampled_from(sample_tokens()), st.booleans())


@settings(max_examples=300)
@given(st.lists(st.lists(cells, min_size=1, max_size=24), min_size=1, max_size=4))
def test_batches_of_canvases_are_read_as_each_alone(rows: list[list[tuple[int, bool]]]) -> None:
    width = max(map(len, rows))
    canvases = []
    for row in rows:
        canvas = Canvas(len(row), TABLE)
        for at, (token, is_decided) in enumerate(row):
            canvas.put(at, token, 1.0, is_decided=is_decided)
        canvases.append(canvas)
    tokens = torch.tensor([[*canvas.tokens, *[TABLE.mask] * (width - canvas.width)] for canvas in canvases])
    decided = torch.tensor(
        [[canvas.is_decided(at) if at < canvas.width else True for at in range(width)] for canvas in canvases]
    )
    widths = torch.tensor([canvas.width for canvas in canvases])
    with no_host_sync():
        classes = CLASSES.of(tokens)
        found = (
            extent.decided_prefix(decided, widths),
            extent.reply_end(classes, widths),
            extent.first_clause_end(classes, widths),
        )
    for index, canvas in enumerate(canvases):
        expected = (canvas.decided_prefix(), canvas.reply_end(), canvas.first_clause_end())
        assert tuple(int(values[index]) for values in found) == expected


def test_every_class_of_the_table_is_kept() -> None:
    tokens = torch.arange(tiny.codec().vocab_size)
    ends = {int(token) for token in tokens[CLASSES.is_end(tokens)]}
    repeated = {int(token) for token in tokens[CLASSES.repeats_badly(tokens)]}
    assert ends == {TABLE.end}
    assert repeated == TABLE.word | TABLE.sentence_end | TABLE.clause_end


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("We have a table for Emanuela Rossi at 7.30, sir.", "Emanuela Rossi 7 30"),
        ("Thanks, Zoë. Your code is B2 and I'm Ada.", "Zoë B2 Ada"),
        ("I think I'll ask. Sorry, we close at nine.", ""),
        ("Maria called.", ""),
    ],
)
def test_facts_are_figures_and_names_inside_sentences(text: str, facts: str) -> None:
    codec = DialogueCodec.load(BUILTIN / "tokenizer.json")
    classes = extent.TokenClasses(codec.token_table, codec.vocab_size, torch.device("cpu"))
    tokens = codec.encode_text(text)
    with no_host_sync():
        found = classes.is_fact(torch.tensor([tokens]))[0]
    said = codec.decode(
        [
            token if is_fact else codec.encode_text("_")[-1]
            for token, is_fact in zip(tokens, found.tolist(), strict=True)
        ]
    )
    assert " ".join(said.replace("_", " ").split()) == facts


def test_all_that_a_tool_is_called_with_is_fact_and_the_end_behind_it_is_not() -> None:
    codec = DialogueCodec.load(BUILTIN / "tokenizer.json")
    classes = extent.TokenClasses(codec.token_table, codec.vocab_size, torch.device("cpu"))
    words = codec.encode_text("one moment")
    call = codec.encode_text("book_table; day: friday; name: rossi")
    tokens = [*words, codec.special.call, *call, codec.special.end, codec.special.end]
    expected = [False] * (len(words) + 1) + [True] * len(call) + [False, False]
    with no_host_sync():
        found = classes.is_fact(torch.tensor([tokens]))[0]
    assert found.tolist() == expected
    canvas = Canvas(len(tokens), codec.token_table)
    for at, token in enumerate(tokens):
        canvas.put(at, token, 1.0, is_decided=True)
    assert [canvas.is_fact(at) for at in range(canvas.width)] == expected


def test_a_name_is_one_whatever_canvas_it_shares_a_forward_with() -> None:
    codec = DialogueCodec.load(BUILTIN / "tokenizer.json")
    classes = extent.TokenClasses(codec.token_table, codec.vocab_size, torch.device("cpu"))
    one, other = (
        codec.encode_text(text)[:6] for text in ("please ask Emanuela Rossi for it", "no names in here at all today")
    )
    alone = [classes.is_fact(torch.tensor([tokens]))[0] for tokens in (one, other)]
    assert torch.equal(classes.is_fact(torch.tensor([one, other])), torch.stack(alone))
    assert alone[0].any() and not alone[1].any()

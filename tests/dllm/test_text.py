"""Text to tokens and back, and spelling as a recogniser does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.codec import Message
from dllm.errors import CheckpointError, ConfigError, SpecialTokenError
from dllm.spec import DialogueTokens
from dllm.spoken import spoken_form
from dllm.text import DialogueCodec, clean
from tests.dllm import tiny


@given(st.text())
def test_any_text_comes_back_with_white_space_joined(text: str) -> None:
    codec = tiny.codec()
    words = clean(text)
    assert codec.decode(codec.encode_text(text)) == (" " + words if words else "")


@pytest.mark.parametrize("before", ["that's ", "", "mocha, ", "x"])
def test_a_price_is_the_same_tokens_wherever_it_stands(before: str) -> None:
    codec = tiny.codec()
    price = [codec.tokenizer.token_to_id(char) for char in "$4.50"]
    assert codec.encode_text(f"{before}$4.50?")[-6:-1] == price


def test_a_cut_at_a_word_boundary_tokenises_to_a_prefix() -> None:
    codec = tiny.codec()
    words = tiny.LINES[1].split()
    whole = codec.encode_text(tiny.LINES[1])
    for cut in range(1, len(words)):
        part = codec.encode_text(" ".join(words[:cut]))
        assert whole[: len(part)] == part


def test_text_that_spells_a_special_token_stays_text() -> None:
    codec = tiny.codec()
    ids = codec.encode_text("<end> <mask> <agent>")
    assert min(ids) >= codec.special.first_text
    assert codec.decode(ids) == " <end> <mask> <agent>"


def test_special_tokens_have_no_text_of_their_own() -> None:
    codec = tiny.codec()
    special = codec.special
    first_text = special.first_text
    assert [codec.token_bytes(token) for token in range(first_text)] == [b""] * first_text
    assert codec.token_bytes(first_text) != b""


def test_a_prompt_ends_where_the_reply_begins() -> None:
    codec = tiny.codec()
    special = codec.special
    ids = codec.encode_prompt([("system", "hi"), ("user", "tea"), ("note", "total: $1")])
    assert [token for token in ids if token <= special.agent] == [
        special.system, special.end, special.user, special.end, special.note, special.end, special.agent,
    ]  # fmt: skip
    assert ids[-1] == special.agent


def test_token_table_knows_boundaries_and_what_a_reply_may_not_say() -> None:
    codec = tiny.codec()
    table = codec.token_table
    assert codec.tokenizer.token_to_id(".") in table.sentence_end
    assert codec.tokenizer.token_to_id(",") in table.clause_end
    assert {codec.tokenizer.token_to_id(digit) for digit in "0123456789"} == table.digit
    assert codec.special.end not in table.forbidden
    assert {codec.special.mask, codec.special.pad, codec.special.user} <= table.forbidden
    assert all(codec.token_bytes(token)[:1].isspace() for token in table.word_start)
    for token, others in table.case_variants.items():
        assert {codec.token_bytes(other).lower() for other in others} == {codec.token_bytes(token).lower()}
        assert token not in others


def test_a_chat_is_the_prompt_of_its_turns() -> None:
    codec = tiny.codec()
    call = {"id": "1", "function": {"name": "price", "arguments": '{"drink": "green tea"}'}}
    chat = [
        Message("system", "hi"),
        Message("user", "tea"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "total: $1", tool_call_id="1"),
    ]
    special = codec.special
    called = [special.agent, special.call, *codec.encode_text("price; drink: green tea"), special.end]
    noted = codec.encode_prompt([("note", "price: total: $1")])

    def expected(system: str) -> list[int]:
        return [*codec.encode_prompt([("system", system), ("user", "tea")])[:-1], *called, *noted]

    assert codec.encode_chat(chat) == expected("hi")
    assert codec.encode_chat([*chat[:-1], Message("tool", '{"total": "$1"}', tool_call_id="1")]) == expected("hi")
    tool = {"name": "price", "description": "tells a price", "parameters": {"properties": {"drink": {}}}}
    assert codec.encode_chat(chat, [tool]) == expected("hi Tools: [price; drink?] tells a price.")
    assert codec.encode_chat(chat[1:2], [tool])[0] == special.system, "tools need a system turn, whoever begins"
    with pytest.raises(ConfigError, match=r"messages\[0\]\.tool_calls\[0\]\.function\.arguments = '\[\]'"):
        codec.encode_chat([Message("assistant", "", tool_calls=({"function": {"name": "price", "arguments": "[]"}},))])
    deep = '{"a":' * 20_000 + "1" + "}" * 20_000
    with pytest.raises(ConfigError, match="a JSON object as a string"):
        codec.encode_chat([Message("assistant", "", tool_calls=({"function": {"name": "price", "arguments": deep}},))])
    with pytest.raises(ConfigError, match="at least one message"):
        codec.encode_chat([])


@given(st.text())
def test_plain_text_comes_back_as_it_stands(text: str) -> None:
    codec = tiny.codec()
    assert codec.decode(codec.encode(text)) == text


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("$30", "thirty dollars"),
        ("7 pm", "seven p m"),
        ("It's $4.50, OK?", "it's four dollars and fifty cents ok"),
        ("At 10:05 AM.", "at ten oh five a m"),
        ("Meet me at 4:30!", "meet me at four thirty"),
        ("the 3rd of May", "the third of may"),
        ("zip 90210", "zip nine zero two one zero"),
        ("1,200 people in 2019", "one thousand two hundred people in twenty nineteen"),
        ("'quoted' isn't", "quoted isn't"),
        ("12.5%", "twelve point five percent"),
        ("...", ""),
    ],
)
def test_figures_are_written_as_a_recogniser_hears_them(written: str, spoken: str) -> None:
    assert spoken_form(written) == spoken


@pytest.mark.parametrize("figures", ["1,", "1.", "1,.,", "$1,", "1:", "'", "12"])
def test_an_endless_run_of_figures_is_read_once_and_not_from_each_of_them(figures: str) -> None:
    spoken_form(figures * 50_000)  # From each of them this took half a minute.


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("1,200.5", "one thousand two hundred point five"),
        ("1.2.3", "one point two three"),
        ("1.5a", "one five a"),
        ("a1,2.5", "a one two point five"),
        ("1,.5", "one point five"),
    ],
)
def test_decimals_are_found_within_runs_of_figures(written: str, spoken: str) -> None:
    assert spoken_form(written) == spoken


@given(st.text())
def test_spoken_form_is_lower_case_words_and_stable(text: str) -> None:
    spoken = spoken_form(text)
    assert set(spoken) <= set("abcdefghijklmnopqrstuvwxyz' ")
    assert spoken_form(spoken) == spoken


def test_loading_checks_the_special_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(CheckpointError, match="no such file"):
        DialogueCodec.load(path)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        DialogueCodec.load(path)
    tiny.codec().tokenizer.save(str(path))
    assert DialogueCodec.load(path).encode_text("tea") == tiny.codec().encode_text("tea")
    with pytest.raises(SpecialTokenError, match="<reserved8>.*no such token"):
        DialogueCodec.load(path, DialogueTokens(reserved=9))


def test_a_system_message_that_is_not_the_first_is_a_note() -> None:
    messages = [Message("system", "Be brief."), Message("user", "a tea"), Message("system", "total: $5.10")]
    expected = tiny.codec().encode_prompt([("system", "Be brief."), ("user", "a tea"), ("note", "total: $5.10")])
    assert tiny.codec().encode_chat(messages) == expected
    messages[2] = Message("tool", "total: $5.10")
    assert tiny.codec().encode_chat(messages) == expected

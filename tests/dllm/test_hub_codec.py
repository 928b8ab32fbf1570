"""Published tokenizers: the same tokens and text as transformers', and text that is never mistaken for a turn."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers import decoders as d
from tokenizers import pre_tokenizers as p
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from dllm.codec import Codec, Message
from dllm.detokenize import IncrementalDecoder
from dllm.errors import ConfigError, SpecialTokenError, TokenizerError
from dllm.hub_codec import HubCodec
from dllm.spec import ModelSpec, SpecialTokens
from tests.dllm import tiny

LINES = (*tiny.LINES, "Ça coûte 5 € 😀 はい。", "def main():\n    return 1\n\n", "Well — yes; no? Yes! (2,50) yes Yes")

CHATML = """{%- if tools %}{{ '<|im_start|>system\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\n' }}{%- endfor %}{{ '<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>' + message.content + '</tool_response><|im_end|>\n' }}
{%- else %}{{ '<|im_start|>' + message.role + '\n' + message.content }}
{%- for call in message.tool_calls or [] %}{{ '<tool_call>' }}{{ call.function.arguments | tojson }}{{ '</tool_call>' }}{%- endfor %}
{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and not enable_thinking %}
{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"""

LLADA = """{{ bos_token }}{% for message in messages %}{% if loop.index0 % 2 and message.role != 'assistant' %}
{{- raise_exception('roles must alternate') }}{% endif %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

QWEN_TOKENS = {
    "<|endoftext|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<tool_call>": False,
    "</tool_call>": False,
    "<tool_response>": False,
    "</tool_response>": False,
    "<|fim_prefix|>": False,
    "<think>": False,
    "</think>": False,
    "<|MASK|>": True,
}
LLADA_TOKENS = dict.fromkeys(
    ("<|startoftext|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|mdm_mask|>"), True
)
PIECE_TOKENS = dict.fromkeys(("<pad>", "<bos>", "<eos>", "<turn|>", "<mask>"), True)


def spec_of(tokenizer: Tokenizer, mask: str, ends: Sequence[str], rows: int) -> ModelSpec:
    def index(text: str) -> int:
        found = tokenizer.token_to_id(text)
        assert found is not None
        return int(found)

    special = SpecialTokens(index(mask), tuple(index(end) for end in ends))
    return ModelSpec(rows, 8, 8, 1, 1, 1, 8, special, family="test")


def add(tokenizer: Tokenizer, tokens: dict[str, bool]) -> None:
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=special) for text, special in tokens.items()])


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    words = p.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), "isolated")
    tokenizer.pre_tokenizer = p.Sequence([words, p.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = d.ByteLevel()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=p.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    """Sentencepiece's way: words begin with a low line, unknown characters are spelled in bytes."""
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = p.Metaspace(prepend_scheme="first")
    tokenizer.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse()])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(vocab_size=420, special_tokens=["<unk>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator(tiny.LINES, trainer)
    body = json.loads(tokenizer.to_str())
    body["added_tokens"] = [token for token in body["added_tokens"] if token["content"] == "<unk>"]
    return Tokenizer.from_str(json.dumps(body))


def write(folder: Path, tokenizer: Tokenizer, template: str | None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    body = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(body))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def qwen(folder: Path, rows: int = 450, **config: Any) -> tuple[Path, ModelSpec]:
    tokenizer = byte_level()
    add(tokenizer, QWEN_TOKENS)
    body = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "mask_token": "<|MASK|>"} | config
    spec = spec_of(tokenizer, "<|MASK|>", ("<|im_end|>", "<|endoftext|>"), rows)
    return write(folder, tokenizer, CHATML, **body), spec


def llada(folder: Path) -> tuple[Path, ModelSpec]:
    tokenizer = byte_level()
    add(tokenizer, LLADA_TOKENS)
    spec = spec_of(tokenizer, "<|mdm_mask|>", ("<|eot_id|>", "<|endoftext|>"), 450)
    return write(folder, tokenizer, None, bos_token="<|startoftext|>", chat_template=LLADA), spec


def pieces(folder: Path) -> tuple[Path, ModelSpec]:
    tokenizer = metaspace()
    add(tokenizer, PIECE_TOKENS)
    spec = spec_of(tokenizer, "<mask>", ("<turn|>", "<eos>"), 450)
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}<turn|>{% endfor %}"
    return write(
        folder, tokenizer, template, bos_token="<bos>", mask_token={"__type": "AddedToken", "content": "<mask>"}
    ), spec


KINDS = {"qwen": qwen, "llada": llada, "pieces": pieces}


@cache
def shared(kind: str, root: Path) -> tuple[Path, HubCodec]:
    folder, spec = KINDS[kind](root / kind)
    return folder, HubCodec.load(folder, spec)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


def theirs(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


CHAT = (
    Message("user", "A large mocha,\nplease: it's $5.10 😀"),
    Message("assistant", "Sure. Anything else?"),
    Message("user", " No, thanks. "),
)
PLAIN = [{"role": message.role, "content": message.text} for message in CHAT]


# --- as transformers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_has_the_tokens_that_transformers_gives_it(kind: str, root: Path) -> None:
    folder, codec = shared(kind, root)
    expected = theirs(folder).apply_chat_template(PLAIN, add_generation_prompt=True, return_dict=False)
    assert codec.encode_chat(CHAT) == list(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_text_is_what_transformers_decodes(kind: str, root: Path) -> None:
    folder, codec = shared(kind, root)
    ids = codec.encode_chat(CHAT) + codec.encode("Ça coûte 5 € 😀 はい。")
    expected = theirs(folder).decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert codec.decode(ids) == expected


def test_tools_and_calls_reach_the_template(root: Path) -> None:
    folder, codec = shared("qwen", root)
    tool = {"type": "function", "function": {"name": "price", "parameters": {"type": "object", "properties": {}}}}
    call = {"id": "1", "type": "function", "function": {"name": "price", "arguments": '{"drink": "tea"}'}}
    chat = [
        Message("user", "How much is tea?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "$3", tool_call_id="1"),
    ]
    parsed = call | {"function": {"name": "price", "arguments": {"drink": "tea"}}}
    same = [
        {"role": "user", "content": "How much is tea?"},
        {"role": "assistant", "content": "", "tool_calls": [parsed]},
        {"role": "tool", "content": "$3", "tool_call_id": "1"},
    ]
    expected = theirs(folder).apply_chat_template(same, tools=[tool], add_generation_prompt=True, return_dict=False)
    ids = codec.encode_chat(chat, [tool])
    assert ids == list(expected)
    marker = codec.tokenizer.token_to_id("<tool_call>")
    assert ids.count(marker) == 1
    assert '{"drink": "tea"}' in codec.decode(ids[ids.index(marker) :])


def test_a_checkpoint_s_template_for_tools_is_taken_when_there_are_tools(tmp_path: Path) -> None:
    folder, spec = qwen(tmp_path)
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    codec = HubCodec.load(folder, spec)
    assert codec.decode(codec.encode_chat(CHAT)) == "plain"
    assert codec.decode(codec.encode_chat(CHAT, [{"type": "function"}])) == "with tools"


def test_template_options_reach_the_template(tmp_path: Path) -> None:
    folder, spec = qwen(tmp_path)
    assert (
        HubCodec.load(folder, spec, {"enable_thinking": False})
        .decode(HubCodec.load(folder, spec, {"enable_thinking": False}).encode_chat(CHAT))
        .endswith("</think>\n\n")
    )
    codec = HubCodec.load(folder, spec)
    assert codec.decode(codec.encode_chat(CHAT)).endswith("assistant\n")


def test_template_s_refusal_is_told_in_its_own_words(root: Path) -> None:
    _, codec = shared("llada", root)
    with pytest.raises(ConfigError, match=r"\['user', 'user'\].*roles must alternate"):
        codec.encode_chat([Message("user", "one"), Message("user", "two")])
    with pytest.raises(ConfigError, match="at least one message"):
        codec.encode_chat([])


def test_without_a_template_only_plain_text_is_encoded(tmp_path: Path) -> None:
    folder, spec = qwen(tmp_path)
    (folder / "chat_template.jinja").unlink()
    codec = HubCodec.load(folder, spec)
    assert codec.decode(codec.encode("tea")) == "tea"
    with pytest.raises(ConfigError, match="chat_template = None"):
        codec.encode_chat(CHAT)


# --- text stays text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_spelled_special_tokens_in_a_message_are_text(kind: str, root: Path) -> None:
    _, codec = shared(kind, root)
    spelled = next(iter(text for text, (_, token) in codec._by_text.items() if token.special))
    harmless, attack = Message("user", "hello there"), Message("user", f"hello {spelled} there {spelled}")
    plain, attacked = codec.encode_chat([harmless]), codec.encode_chat([attack])
    added = set(codec.tokenizer.get_added_tokens_decoder())
    assert [token for token in attacked if token in added] == [token for token in plain if token in added]
    assert codec.decode(codec.encode(spelled)) == spelled
    assert spelled in codec.decode(attacked)


def test_a_marked_chat_has_the_tokens_of_an_unmarked_one_where_nothing_is_spelled(root: Path) -> None:
    for kind in ("qwen", "llada"):
        _, codec = shared(kind, root)
        text = codec._render(PLAIN, [])
        assert codec._encode_marked(text) == codec.encode_chat(CHAT)


def test_the_assistant_s_own_call_markers_keep_their_meaning(root: Path) -> None:
    _, codec = shared("qwen", root)
    call = codec.tokenizer.token_to_id("<tool_call>")
    start = codec.tokenizer.token_to_id("<|im_start|>")
    said = codec.encode_chat([Message("user", "x"), Message("assistant", "<tool_call>{}</tool_call> <|im_start|>")])
    assert call in said and said.count(start) == 3
    assert call not in codec.encode_chat([Message("user", "<tool_call>{}</tool_call>")])


@given(st.text(max_size=40))
def test_plain_text_comes_back_as_it_was(text: str) -> None:
    codec = _codec()
    assert codec.decode(codec.encode(text)) == text


@cache
def _full() -> Tokenizer:
    tokenizer = byte_level()
    add(tokenizer, QWEN_TOKENS)
    return tokenizer


@cache
def _codec() -> HubCodec:
    return HubCodec(_full(), SpecialTokens(0, (1,)), 450)


def test_text_of_a_metaspace_vocabulary_gets_no_space_in_front(root: Path) -> None:
    _, codec = shared("pieces", root)
    for text in ("tea", " tea", "a  b", "はい 😀"):
        assert codec.decode(codec.encode(text)) == text
    assert codec.decode(codec.encode_pin(" $5.10 ")) == " $5.10"
    assert codec.encode_pin("  ") == ()


# --- streaming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_any_split_of_the_tokens_decodes_to_the_whole_text(kind: str, root: Path) -> None:
    _, codec = shared(kind, root)
    ids = codec.encode("5 € 😀")
    whole = codec.decode(ids)
    assert whole == "5 € 😀"
    for count in range(3):
        for cuts in itertools.combinations(range(1, len(ids)), count):
            decoder = IncrementalDecoder(codec)
            parts = [decoder.feed(ids[start:stop]) for start, stop in itertools.pairwise((0, *cuts, len(ids)))]
            assert "".join(parts) == whole
            assert all("\ufffd" not in part for part in parts)


@given(st.lists(st.integers(0, 449), max_size=12), st.integers(0, 12))
def test_a_split_of_any_tokens_decodes_like_the_whole(ids: list[int], cut: int) -> None:
    codec: Codec
    for codec in (_codec(), tiny.codec()):
        decoder = IncrementalDecoder(codec)
        assert decoder.feed(ids[:cut]) + decoder.feed(ids[cut:]) == codec.decode(ids)


def test_half_a_character_waits_for_its_rest(root: Path) -> None:
    _, codec = shared("pieces", root)
    ids = codec.encode("😀")
    assert len(ids) == 4
    decoder = IncrementalDecoder(codec)
    assert [decoder.feed([token]) for token in ids] == ["", "", "", "😀"]


# --- classes of tokens ------------------------------------------------------------------------------------------------


def test_replies_may_hold_ends_and_call_markers_but_no_other_control_tokens(root: Path) -> None:
    _, codec = shared("qwen", root)
    table, index = codec.token_table, codec.tokenizer.token_to_id
    for text in ("<|im_start|>", "<|MASK|>", "<|fim_prefix|>", "<tool_response>", "</tool_response>"):
        assert index(text) in table.forbidden, text
    for text in ("<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>", "<think>"):
        assert index(text) not in table.forbidden, text
    assert (table.end, table.other_ends) == (index("<|im_end|>"), {index("<|endoftext|>")})
    assert table.mask == index("<|MASK|>")


def test_rows_of_the_head_that_no_token_has_are_forbidden(root: Path) -> None:
    _, codec = shared("qwen", root)
    nobody = set(range(codec.vocab_size, 450))
    assert len(nobody) > 10
    assert nobody <= codec.token_table.forbidden
    assert codec.token_bytes(449) == b"" and codec.token_bytes(10_000) == b""


def test_markers_that_a_tokenizer_calls_special_are_visible_and_allowed(tmp_path: Path) -> None:
    tokenizer = byte_level()
    add(tokenizer, {"<mask>": True, "<end>": True, "[TOOL_CALLS]": True, "[INST]": True})
    codec = HubCodec.load(write(tmp_path, tokenizer, None), spec_of(tokenizer, "<mask>", ("<end>",), 450))
    marker, role = tokenizer.token_to_id("[TOOL_CALLS]"), tokenizer.token_to_id("[INST]")
    assert marker not in codec.token_table.forbidden and role in codec.token_table.forbidden
    assert codec.decode([marker, role]) == "[TOOL_CALLS]"


@pytest.mark.parametrize("kind", KINDS)
def test_token_classes_hold_what_their_bytes_say(kind: str, root: Path) -> None:
    _, codec = shared(kind, root)
    table = codec.token_table
    (full_stop,) = codec.encode(".")
    (comma,) = codec.encode(",")
    assert full_stop in table.sentence_end and comma in table.clause_end
    assert {codec.encode(digit)[0] for digit in "0157"} <= table.digit
    assert table.word_start and all(codec.token_bytes(token)[:1].isspace() for token in table.word_start)
    assert table.word and table.word <= table.word_start
    for token, others in table.case_variants.items():
        assert token not in others
        assert {codec.token_bytes(other).lower() for other in others} == {codec.token_bytes(token).lower()}


def test_case_variants_are_found(root: Path) -> None:
    _, codec = shared("qwen", root)
    small, large = codec.encode(" yes"), codec.encode(" Yes")
    assert len(small) == len(large) == 1
    assert codec.token_table.case_variants[small[0]] == (large[0],)


def test_bytes_of_tokens_are_exact(root: Path) -> None:
    for kind in ("qwen", "pieces"):
        _, codec = shared(kind, root)
        single = {codec.token_bytes(token) for token in range(codec.vocab_size)}
        if kind == "qwen":
            assert {bytes((byte,)) for byte in range(256)} <= single
        text = "naïve 😀 はい"
        assert b"".join(codec.token_bytes(token) for token in codec.encode(text)) == text.encode()


# --- files ------------------------------------------------------------------------------------------------------------


def test_mask_token_with_another_id_is_refused(tmp_path: Path) -> None:
    folder, spec = qwen(tmp_path, mask_token="<|im_start|>")
    with pytest.raises(SpecialTokenError, match=r"<\|im_start\|> the id \d+, the tokenizer has id"):
        HubCodec.load(folder, spec)


def test_tokenizer_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_level()
    add(tokenizer, {"<|im_end|>": True, "<|x|>": True})
    folder = write(tmp_path, tokenizer, CHATML)
    spec = spec_of(tokenizer, "<|x|>", ("<|im_end|>",), 450)
    HubCodec.load(folder, spec)
    beyond = ModelSpec(450, 8, 8, 1, 1, 1, 8, SpecialTokens(449, spec.special.ends), family="test")
    with pytest.raises(SpecialTokenError, match="the mask token the id 449, the tokenizer has no such token"):
        HubCodec.load(folder, beyond)
    a_word = ModelSpec(450, 8, 8, 1, 1, 1, 8, SpecialTokens(5, spec.special.ends), family="test")
    with pytest.raises(SpecialTokenError, match="the mask token the id 5"):
        HubCodec.load(folder, a_word)
    no_end = ModelSpec(450, 8, 8, 1, 1, 1, 8, SpecialTokens(spec.special.mask, (440,)), family="test")
    with pytest.raises(SpecialTokenError, match="an end-of-text token the id 440"):
        HubCodec.load(folder, no_end)


def test_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    folder, spec = qwen(tmp_path)
    size = HubCodec.load(folder, spec).vocab_size
    HubCodec.load(folder, ModelSpec(size, 8, 8, 1, 1, 1, 8, spec.special, family="test"))
    small = ModelSpec(size - 1, 8, 8, 1, 1, 1, 8, SpecialTokens(0, (1,)), family="test")
    with pytest.raises(TokenizerError, match=f"the tokenizer has {size} tokens, the model {size - 1}"):
        HubCodec.load(folder, small)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "not a tokenizer"),
        ("tokenizer_config.json", "{", "not JSON"),
        ("tokenizer_config.json", "[]", "expected an object, found list"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder"),
        ("tokenizer_config.json", '{"chat_template": ["x"]}', "chat_template"),
        ("added_tokens.json", '{"<|im_end|>": 7}', r"<\|im_end\|> should have id 7, it has"),
    ],
)
def test_broken_files_are_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    folder, spec = qwen(tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(TokenizerError, match=message):
        HubCodec.load(folder, spec)


def test_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder, spec = qwen(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: no such file"):
        HubCodec.load(folder, spec)


def test_vocabulary_and_merges_of_a_qwen_tokenizer_are_enough(tmp_path: Path) -> None:
    """As Dream is published: no tokenizer.json, added tokens beside it. Transformers' own Qwen tokenizer is the measure."""
    from transformers import Qwen2Tokenizer

    tokenizer = byte_level()
    tokenizer.model.save(str(tmp_path))
    size = tokenizer.get_vocab_size()
    added = {text: size + at for at, text in enumerate(QWEN_TOKENS)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    decoder = {
        str(added[text]): {"content": text, "special": special, "normalized": False}
        for text, special in QWEN_TOKENS.items()
    }
    config = {"tokenizer_class": "DreamTokenizer", "mask_token": "<|MASK|>", "added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    add(tokenizer, QWEN_TOKENS)
    codec = HubCodec.load(tmp_path, spec_of(tokenizer, "<|MASK|>", ("<|im_end|>",), 450))
    assert {text: codec.tokenizer.token_to_id(text) for text in added} == added
    body = json.loads(tokenizer.to_str())["model"]
    reference = Qwen2Tokenizer(vocab=body["vocab"], merges=[tuple(merge) for merge in body["merges"]])
    for text in (*LINES, "e\u0301 I'LL 12345  \n\n  x", "...\n\nYes"):
        assert codec.encode(text) == reference.encode(text, add_special_tokens=False), text


def test_saved_files_are_the_ones_read(tmp_path: Path) -> None:
    folder, spec = qwen(tmp_path / "a")
    (tmp_path / "b").mkdir()
    HubCodec.load(folder, spec).save(tmp_path / "b")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()
    }


def test_codec_made_in_memory_is_saved_too(tmp_path: Path) -> None:
    spec = spec_of(_full(), "<|MASK|>", ("<|im_end|>",), 450)
    codec = HubCodec(_full(), spec.special, 450, templates={"default": CHATML}, names={"mask_token": "<|MASK|>"})
    codec.save(tmp_path)
    again = HubCodec.load(tmp_path, spec)
    assert again.encode_chat(CHAT) == codec.encode_chat(CHAT)
    assert again.token_table == codec.token_table

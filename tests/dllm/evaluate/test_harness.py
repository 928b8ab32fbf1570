"""What lm-evaluation-harness is told: likelihoods, greedy flags and replies; the adapter itself where the package is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from dllm import loader
from dllm.errors import ConfigError
from dllm.evaluate.harness import Examinee, harness_class
from dllm.hub_codec import HubCodec
from dllm.loader import Checkpoint
from dllm.score import score
from tests.dllm.models.tiny_checkpoints import random_network, tiny_spec
from tests.dllm.models.tiny_tokenizer import write_tokenizer

HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None


def write(root: Path, family: str) -> Path:
    folder, spec = root / family, tiny_spec(family)
    write_tokenizer(folder, spec)
    loader.save(folder, spec, random_network(spec).state_dict(), HubCodec.load(folder, spec), dtype=None)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("harness")
    return {family: write(root, family) for family in ("sdar", "nemotron")}


@pytest.fixture
def sdar(folders: dict[str, Path]) -> Checkpoint:
    return loader.load(folders["sdar"])


@pytest.fixture
def nemotron(folders: dict[str, Path]) -> Checkpoint:
    return loader.load(folders["nemotron"])


def test_likelihoods_are_those_of_the_scorer(sdar: Checkpoint, nemotron: Checkpoint) -> None:
    for checkpoint in (sdar, nemotron):
        codec = checkpoint.codec
        found, is_greedy = Examinee(checkpoint).log_likelihood("the sky is", " blue")
        assert found == score(checkpoint.model, codec.encode("the sky is"), codec.encode(" blue")).log_probability
        assert not is_greedy


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(nemotron: Checkpoint) -> None:
    examinee = Examinee(nemotron)
    assert examinee.log_likelihood("the sky is ", "blue") == examinee.log_likelihood("the sky is", " blue")


def test_an_empty_context_is_the_beginning_token(nemotron: Checkpoint) -> None:
    found, _ = Examinee(nemotron).log_likelihood("", "blue")
    assert found == score(nemotron.model, [1], nemotron.codec.encode("blue")).log_probability


def test_long_contexts_lose_their_beginning(nemotron: Checkpoint) -> None:
    examinee = Examinee(nemotron)
    long, short = "a" * 400, "a" * 300
    assert examinee.log_likelihood(long, " b") == examinee.log_likelihood(short, " b")
    assert len(examinee.generate([(long, {"max_gen_toks": 8})])) == 1


def test_a_whole_text_is_the_sum_of_its_pieces(nemotron: Checkpoint) -> None:
    examinee = Examinee(nemotron, max_tokens=8)
    text = "the cat sat on the mat"
    whole = score(nemotron.model, [1], nemotron.codec.encode(text)).log_probability
    # Causal: cutting changes nothing but rounding, a float32 unit of each of 22 logits.
    assert examinee.rolling(text) == pytest.approx(whole, abs=1e-3)
    assert examinee.rolling("") == 0.0


def test_replies_stop_where_a_task_says_and_do_not_depend_on_their_company(sdar: Checkpoint) -> None:
    settings = {"max_gen_toks": 12, "do_sample": False, "temperature": 0.7}
    contexts = ["one two", "three", "four five six", "seven"]
    alone = [Examinee(sdar, batch_size=1).generate([(context, settings)])[0] for context in contexts]
    assert Examinee(sdar, batch_size=3).generate([(context, settings) for context in contexts]) == alone
    assert alone[0]
    middle = alone[0][len(alone[0]) // 2]
    stopped = Examinee(sdar).generate([(contexts[0], settings | {"until": [middle, ""]})])[0]
    assert stopped == alone[0][: alone[0].index(middle)]
    assert stopped == Examinee(sdar).generate([(contexts[0], settings | {"until": middle})])[0]


def test_chats_go_through_the_checkpoint_s_template(sdar: Checkpoint) -> None:
    examinee = Examinee(sdar)
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "say <e2>"}]
    tokens = examinee.prompt(Examinee.chat(messages))
    assert tokens.count(2) == 2  # one end a turn: the one that a user spells is text
    assert sdar.codec.decode(tokens).endswith("assistant:")
    begun = examinee.prompt(Examinee.chat([*messages, {"role": "assistant", "content": "The answer"}]))
    assert begun == [*tokens, *sdar.codec.encode("The answer")]
    assert examinee.prompt(Examinee.chat(messages) + " is") == [*tokens, *sdar.codec.encode(" is")]
    with pytest.raises(ConfigError, match="narrator"):
        examinee.prompt(Examinee.chat([{"role": "narrator", "content": "x"}]))


def test_settings_that_make_no_sense_are_named(sdar: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="speed"):
        Examinee(sdar, options={"speed": 1})
    with pytest.raises(ConfigError, match="steps_per_token"):
        Examinee(sdar, steps_per_token=0)
    with pytest.raises(ConfigError, match="top_p"):
        Examinee(sdar, options={"top_p": 2.0})


@pytest.mark.skipif(HAS_HARNESS, reason="lm_eval is installed")
def test_without_the_harness_the_error_names_the_package() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'voiceagent\[engine,eval\]'"):
        harness_class()


@pytest.mark.skipif(not HAS_HARNESS, reason="lm_eval is not installed (the extra `eval`; it brings forty packages)")
def test_the_harness_finds_the_model_by_its_name_and_asks_it(folders: dict[str, Path]) -> None:
    from lm_eval.api.registry import get_model

    harness_class()
    model = get_model("dllm").create_from_arg_string(
        f"model={folders['nemotron']},steps_per_token=0.5,top_k=3", {"batch_size": 2, "device": "cpu"}
    )
    requests = [SimpleNamespace(args=("the sky is", f" {word}")) for word in ("blue", "red")]
    found = model.loglikelihood(requests)
    assert [type(value) for value, _ in found] == [float, float]
    assert found[0] != found[1]
    assert len(model.loglikelihood_rolling([SimpleNamespace(args=("the sky",))])) == 1
    chat = model.apply_chat_template([{"role": "user", "content": "hi"}])
    replies = model.generate_until([SimpleNamespace(args=(chat, {"until": ["\n"], "max_gen_toks": 8}))] * 3)
    assert len(replies) == 3
    assert all("\n" not in reply for reply in replies)

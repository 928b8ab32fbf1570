"""Likelihoods and bounds against enumeration of every order, with plain forwards over whole texts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dllm.errors import ConfigError, PromptTooLongError
from dllm.score import Question, causal_likelihood, classify, likelihood_bound, probabilities, score
from dllm.spec import ModelSpec
from tests.dllm import tiny
from tests.dllm.decoding import prompt_of
from tests.dllm.models.tiny_checkpoints import random_network, tiny_spec
from tests.dllm.plain_samplers import seen

FAMILIES = ("dllm_llama", "sdar", "fast_dllm", "dream", "nemotron", "llada")
EXACT = 1e-4
"""Nats. float32 forwards of other shapes add in another order; logits of these models reach 10."""


def network(family: str, **changes: object) -> nn.Module:
    return random_network(replace(tiny_spec(family), **changes))  # type: ignore[arg-type]


def plain(model: nn.Module, tokens: Sequence[int], live: int) -> Tensor:
    """[total, V] log-probabilities for the position of each row, the mask token left out."""
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    total = len(tokens)
    mask = seen(spec, total, live).view(1, 1, total, total)
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([list(tokens)]), torch.arange(total).unsqueeze(0), mask)[0]).double()  # type: ignore[operator]
    if spec.logit_shift:
        logits = torch.cat((logits[:1], logits[:-1]))
    logits[:, spec.special.mask] = -torch.inf
    return torch.log_softmax(logits, dim=-1)


def next_token(model: nn.Module, tokens: Sequence[int]) -> Tensor:
    """[V] log-probabilities of the causal pass."""
    total = len(tokens)
    mask = torch.ones(total, total, dtype=torch.bool).tril().view(1, 1, total, total)
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([list(tokens)]), torch.arange(total).unsqueeze(0), mask)[0, -1])  # type: ignore[operator]
    logits[model.spec.special.mask] = -torch.inf  # type: ignore[union-attr]
    return torch.log_softmax(logits.double(), dim=-1)


def mean_over_orders(
    model: nn.Module, text: Sequence[int], hidden: Sequence[int], behind: Sequence[int], live: int
) -> float:
    """Mean over all orders of the sum of log-probabilities of revealing `hidden`, one by one."""
    mask = model.spec.special.mask  # type: ignore[union-attr]
    found = []
    for order in itertools.permutations(hidden):
        tokens = [mask if at in hidden else token for at, token in enumerate(text)] + list(behind)
        total = 0.0
        for at in order:
            total += float(plain(model, tokens, live)[at, text[at]])
            tokens[at] = text[at]
        found.append(total)
    return sum(found) / len(found)


def by_enumeration(model: nn.Module, prompt: Sequence[int], reply: Sequence[int]) -> float:
    """The bound from its definition: blocks left to right, every order inside each."""
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    mask = spec.special.mask
    text, start, end = [*prompt, *reply], len(prompt), len(prompt) + len(reply)
    if spec.mask_kind == "full":
        return mean_over_orders(model, text, range(start, end), (), start)
    total, at = 0.0, start
    while at < end:
        if spec.mask_kind == "block_causal":
            stop = (at // spec.block + 1) * spec.block
        else:
            stop = min(at + spec.block, start + -(-len(reply) // spec.canvas_multiple) * spec.canvas_multiple)
        live, first = at, at
        if spec.seeds_block and spec.mask_kind != "block_causal":
            total += float(next_token(model, text[:at])[text[at]])
            first += 1
        elif spec.seeds_block and at % spec.block == 0:
            total += float(plain(model, [*text[:at], mask], at)[at, text[at]])
            first += 1
        inside = range(first, min(stop, end))
        behind = [mask] * (stop - inside.stop)
        total += mean_over_orders(model, text[: inside.stop], inside, behind, live)
        at = stop
    return total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("length", "tokens"), [(5, 3), (8, 5)])
def test_the_bound_is_the_mean_over_all_orders(family: str, length: int, tokens: int) -> None:
    model = network(family, block=3) if family in ("sdar", "nemotron") else network(family)
    if tokens == 5 and model.spec.mask_kind == "full":  # type: ignore[union-attr]
        tokens = 4  # 120 orders of 5 are too slow to enumerate
    prompt, reply = prompt_of(length), prompt_of(tokens, seed=3)
    if model.spec.mask_kind != "full" and model.spec.block > 3:  # type: ignore[union-attr]
        reply = reply[:4]
    found = likelihood_bound(model, prompt, reply)  # type: ignore[arg-type]
    assert found.log_probability == pytest.approx(by_enumeration(model, prompt, reply), abs=EXACT)
    assert (found.standard_error, found.tokens, found.kind) == (0.0, len(reply), "bound")


@pytest.mark.parametrize("family", ("fast_dllm", "nemotron"))
def test_shifted_models_read_a_block_s_first_token_off_the_row_before_it(family: str) -> None:
    model = network(family, block=3, sub_block=0, logit_shift=1, seeds_block=False)
    for length in (5, 6):
        prompt, reply = prompt_of(length), prompt_of(5, seed=3)
        found = likelihood_bound(model, prompt, reply)  # type: ignore[arg-type]
        assert found.log_probability == pytest.approx(by_enumeration(model, prompt, reply), abs=EXACT)


@pytest.mark.parametrize("family", ("sdar", "fast_dllm"))
def test_blocks_of_one_token_give_the_autoregressive_cross_entropy(family: str) -> None:
    """A masked position that sees what is before it, token by token; shifted models read it off the token before: plain causal."""
    model = network(family, block=1, sub_block=0)
    prompt, reply = prompt_of(6), prompt_of(7, seed=1)
    text, expected = [*prompt], 0.0
    for token in reply:
        mask = model.spec.special.mask  # type: ignore[union-attr]
        expected += float(plain(model, [*text, mask], len(text))[len(text), token])
        text.append(token)
    found = likelihood_bound(model, prompt, reply, draws=4)  # type: ignore[arg-type]
    assert found.log_probability == pytest.approx(expected, abs=EXACT)
    assert found.standard_error == 0.0
    if family == "fast_dllm":
        causal = network("fast_dllm", block=1, sub_block=0, mask_kind="causal")
        next_tokens = causal_likelihood(causal, prompt, reply)  # type: ignore[arg-type]
        assert found.log_probability == pytest.approx(next_tokens.log_probability, abs=EXACT)


@pytest.mark.parametrize("family", ("dream", "sdar", "dllm_llama"))
def test_drawn_patterns_agree_with_all_of_them_within_their_error(family: str) -> None:
    model = network(family, block=8) if family == "sdar" else network(family)
    prompt, reply = prompt_of(8), prompt_of(8, seed=2)
    exact = likelihood_bound(model, prompt, reply, draws=256)  # type: ignore[arg-type]
    drawn = likelihood_bound(model, prompt, reply, draws=200, seed=1)  # type: ignore[arg-type]
    assert exact.standard_error == 0.0
    assert drawn.standard_error > 0.0
    # Four errors: one draw in 15,000 is further off, and the seed is fixed.
    assert abs(drawn.log_probability - exact.log_probability) < 4 * drawn.standard_error
    again = likelihood_bound(model, prompt, reply, draws=200, seed=1)  # type: ignore[arg-type]
    assert drawn == again
    assert drawn != likelihood_bound(model, prompt, reply, draws=200, seed=2)  # type: ignore[arg-type]


def test_stated_errors_are_those_of_repeated_draws() -> None:
    model = network("dream")
    prompt, reply = prompt_of(5), prompt_of(8, seed=2)
    runs = [likelihood_bound(model, prompt, reply, draws=16, seed=seed) for seed in range(40)]  # type: ignore[arg-type]
    spread = float(torch.tensor([run.log_probability for run in runs]).std())
    stated = math.sqrt(sum(run.standard_error**2 for run in runs) / len(runs))
    # 40 runs tell a standard deviation to about 11 %, and eight pairs each error less well.
    assert 0.6 < spread / stated < 1.6


def test_of_one_token_the_bound_is_its_probability() -> None:
    """Of one token there is one order: bound and distribution are the same number."""
    model = network("dream")
    prompt = prompt_of(5)
    bounds = [likelihood_bound(model, prompt, (token,)).log_probability for token in range(90)]  # type: ignore[arg-type]
    canvas = (model.spec.special.mask,)  # type: ignore[union-attr]
    (answer,) = probabilities(model, [Question(prompt, canvas, (0,))])  # type: ignore[arg-type]
    assert torch.tensor(bounds).exp().tolist() == pytest.approx(answer.probabilities[0, :90].tolist(), abs=1e-5)


def test_rows_per_forward_change_nothing_but_rounding() -> None:
    model = network("sdar", block=4)
    prompt, reply = prompt_of(6), prompt_of(9, seed=4)
    one, many = (likelihood_bound(model, prompt, reply, rows=rows) for rows in (1, 64))  # type: ignore[arg-type]
    assert one.log_probability == pytest.approx(many.log_probability, abs=EXACT)
    assert one.forwards == many.forwards == 3 + 15 + 7  # patterns of 2, 4 and 3 tokens on the grid


def test_causal_likelihood_adds_up_next_tokens() -> None:
    model = network("nemotron")
    prompt, reply = prompt_of(7), prompt_of(6, seed=5)
    expected = sum(float(next_token(model, [*prompt, *reply[:at]])[token]) for at, token in enumerate(reply))
    found = score(model, prompt, reply)  # type: ignore[arg-type]
    assert found.kind == "causal"
    assert found.log_probability == pytest.approx(expected, abs=EXACT)
    assert found.per_token == pytest.approx(expected / 6, abs=EXACT)


def test_greedy_is_true_for_what_greedy_decoding_writes_and_for_nothing_else() -> None:
    model = network("nemotron")
    prompt = prompt_of(7)
    text = list(prompt)
    for _ in range(4):
        text.append(int(next_token(model, text).argmax()))
    reply = text[7:]
    assert score(model, prompt, reply).is_greedy  # type: ignore[arg-type]
    other = (reply[-1] + 1) % 90
    assert not score(model, prompt, [*reply[:-1], other]).is_greedy  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_of_different_lengths_are_answered_as_if_alone(family: str) -> None:
    model = network(family)
    mask = model.spec.special.mask  # type: ignore[union-attr]
    questions = [
        Question(prompt_of(length), (mask, 7, mask, mask, mask, mask, mask, mask), (0, 2)) for length in (4, 11, 8)
    ]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = probabilities(model, questions)  # type: ignore[arg-type]
    for question, answer in zip(questions, found, strict=True):
        rows = plain(model, [*question.prompt, *question.canvas], len(question.prompt)).exp()
        wanted = rows[[len(question.prompt), len(question.prompt) + 2]]
        assert torch.allclose(answer.probabilities.double(), wanted, atol=1e-5)
        assert answer.mass.tolist() == [1.0, 1.0]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_labels_share_out_what_mass_they_have() -> None:
    model = network("dream")
    mask = model.spec.special.mask  # type: ignore[union-attr]
    prompt = prompt_of(6)
    everything, labelled = (
        probabilities(model, [Question(prompt, (mask,), (0,), labels)])[0]  # type: ignore[arg-type]
        for labels in ((), (10, 20, 30))
    )
    of_labels = everything.probabilities[0, [10, 20, 30]]
    assert float(labelled.mass[0]) == pytest.approx(float(of_labels.sum()), abs=1e-6)
    assert torch.allclose(labelled.probabilities[0], of_labels / of_labels.sum(), atol=1e-6)


@pytest.mark.parametrize("family", ("dream", "sdar", "dllm_llama"))
def test_classes_add_up_to_one_and_follow_their_likelihoods(family: str) -> None:
    model = network(family)
    prompt = prompt_of(8)
    labels = [(10,), (20, 21), (30,)]
    found = classify(model, prompt, labels)  # type: ignore[arg-type]
    assert sum(found) == pytest.approx(1.0)
    end = model.spec.special.end  # type: ignore[union-attr]
    width = 8 if family == "dllm_llama" else 4 if family == "sdar" else 3
    scores = [score(model, prompt, [*label, end], width=width).log_probability for label in labels]  # type: ignore[arg-type]
    assert math.log(found[0] / found[1]) == pytest.approx(scores[0] - scores[1], abs=1e-3)
    single = classify(model, prompt, [(10,), (20,)], closes=False)  # type: ignore[arg-type]
    assert sum(single) == pytest.approx(1.0)


def test_built_in_family_scores_replies_with_a_canvas_of_its_widths() -> None:
    model = tiny.model()
    codec = tiny.codec()
    prompt = codec.encode_prompt([("user", "a tea please")])
    reply = [*codec.encode_text("A tea, that's $1.00."), model.spec.special.end]
    bound = likelihood_bound(model, prompt, reply, draws=64)
    assert bound.log_probability < 0
    with pytest.raises(ConfigError, match="at most the 64 positions of a canvas"):
        likelihood_bound(model, prompt, reply * 10)


def test_mistakes_name_what_was_expected() -> None:
    model = network("sdar")
    prompt = prompt_of(4)
    mask = model.spec.special.mask  # type: ignore[union-attr]
    uniform = random_network(tiny_spec("dream"))
    uniform.spec = replace(
        tiny_spec("dream"), corruption="uniform", special=replace(tiny_spec("dream").special, mask=None)
    )
    with pytest.raises(ConfigError, match="absorbing: dream has no mask token"):
        likelihood_bound(uniform, prompt, (5,))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="absorbing"):
        probabilities(uniform, [Question(prompt, (5,), (0,))])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="reply"):
        likelihood_bound(model, prompt, ())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no mask token"):
        likelihood_bound(model, prompt, (mask,))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"token ids in \[0, 96\)"):
        likelihood_bound(model, prompt, (96,))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="even number of at least 4"):
        likelihood_bound(model, prompt, (5,), draws=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least the 3 tokens"):
        likelihood_bound(model, prompt, (5, 6, 7), width=2)  # type: ignore[arg-type]
    with pytest.raises(PromptTooLongError):
        likelihood_bound(model, prompt, (5,) * 300)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="causal mode"):
        causal_likelihood(model, prompt, (5,))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="hold the mask token"):
        probabilities(model, [Question(prompt, (5, mask), (0,))])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="labels"):
        probabilities(model, [Question(prompt, (mask,), (0,), (4, 4))])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least two texts"):
        classify(model, prompt, [(5,)])  # type: ignore[arg-type]

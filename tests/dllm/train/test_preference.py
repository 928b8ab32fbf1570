"""Preference optimisation: pairs are read, bounds are bounds, and the loss moves what it should."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import variance

import pytest
import torch

from dllm import loader
from dllm.cli import main
from dllm.errors import ConfigError, DataError
from dllm.loader import Checkpoint
from dllm.models.transformer import Transformer
from dllm.score import likelihood_bound
from dllm.train.canvases import frozen_copy
from dllm.train.data import Turn
from dllm.train.preference import (
    Draw,
    Pair,
    PreferenceConfig,
    PreferenceTuner,
    bounds,
    draw_noise,
    preference_losses,
    prompt_tokens,
    read_pairs,
)
from dllm.train.tuning import Budget, TuneConfig, Tuner
from tests.dllm import tiny

SPEC = tiny.spec()
END, MASK = SPEC.special.end, SPEC.special.mask
LINE = {
    "turns": [{"role": "user", "text": "A large Mocha, please!"}],
    "chosen": "That's $5.10. Anything else?",
    "rejected": "What size would you like?",
}


def lines(tmp_path: Path, *bodies: dict[str, object]) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    return path


def pair() -> Pair:
    codec = tiny.codec()
    prompt = tuple(codec.encode_prompt([("user", "a large mocha please")]))
    texts = (str(LINE["chosen"]), str(LINE["rejected"]))
    chosen, rejected = ((*codec.encode_text(text), END) for text in texts)
    return Pair(prompt, chosen, rejected)


def tuner_of(tmp_path: Path, steps: int = 10, rate: float = 1e-3) -> Tuner:
    checkpoint = Checkpoint(SPEC, tiny.model(scale=4.0), tiny.codec(), Path("tiny"))
    return Tuner(tmp_path, checkpoint, TuneConfig(learning_rate=rate, warmup_steps=1), Budget(steps=steps))


# --- data -------------------------------------------------------------------------------------------------------------


def test_a_pair_is_read_as_the_model_meets_it(tmp_path: Path) -> None:
    assert read_pairs(lines(tmp_path, LINE), tiny.codec(), SPEC) == [pair()]


def test_a_call_may_be_preferred(tmp_path: Path) -> None:
    call = {"name": "order", "arguments": {"drink": "mocha"}}
    (found,) = read_pairs(lines(tmp_path, {**LINE, "chosen": call}), tiny.codec(), SPEC)
    assert found.chosen[0] == SPEC.dialogue.call
    assert tiny.codec().decode(found.chosen) == " order; drink: mocha"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"chosen": None}, 'expected "chosen" to be a text'),
        ({"rejected": "  "}, 'expected "rejected" to be a text'),
        ({"rejected": LINE["chosen"]}, "are the same"),
        ({"turns": "hello"}, 'a list "turns"'),
        ({"turns": [{"role": "caller", "text": "hi"}]}, "role 'caller'"),
        ({"chosen": "tea " * 80}, '"chosen": reply = '),
        ({"chosen": {"name": "order", "arguments": {"drink": "a; b"}}}, "no call"),
    ],
)
def test_a_bad_line_is_told_with_its_number(tmp_path: Path, changes: dict[str, object], problem: str) -> None:
    with pytest.raises(DataError, match=r"pairs.jsonl:2: ") as caught:
        read_pairs(lines(tmp_path, LINE, {**LINE, **changes}), tiny.codec(), SPEC)
    assert problem in str(caught.value)


def test_callers_are_written_as_a_recogniser_hears_them() -> None:
    turns = [Turn("user", "Seven, please!"), Turn("note", "Total: $5.10"), Turn("agent", "OK.")]
    text = tiny.codec().decode(prompt_tokens(tiny.codec(), turns))
    assert text == " seven please Total: $5.10 OK."


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_a_draw_masks_as_many_as_its_time_says_and_nested() -> None:
    (draw,) = draw_noise(1, 12, torch.Generator().manual_seed(0))
    for t in (0.01, 0.3, 1.0):
        for size in (1, 5, 12):
            masked = Draw(t, draw.order).masked(0, size)
            assert len(masked) == max(1, math.ceil(t * size))
            assert set(masked) <= set(Draw(1.0, draw.order).masked(0, size))
    # The longer reply's masks are the shorter one's wherever both have a token and a place among the first.
    assert set(Draw(0.5, draw.order).masked(0, 12)) & set(range(4)) <= set(range(4))


def test_the_mean_over_all_patterns_is_the_exact_bound() -> None:
    network, reply = tiny.model(), (30, 31, 32, END)
    draws = [
        Draw(size / 4, tuple(0.0 if at in chosen else 1.0 for at in range(4)))
        for size in range(1, 5)
        for chosen in combinations(range(4), size)
    ]
    each = torch.cat([bounds(network, [(20, 21)], [reply], [[draw]]) for draw in draws])
    sizes = [len(draw.masked(0, 4)) for draw in draws]
    mean = sum(float(one) / (4 * math.comb(4, size)) for one, size in zip(each, sizes, strict=True))
    exact = likelihood_bound(network, (20, 21), reply, draws=128)
    assert exact.standard_error == 0
    assert mean == pytest.approx(exact.log_probability, rel=1e-4)  # float32 sums in another order


def test_the_bound_of_a_block_causal_model_is_the_sum_of_its_blocks() -> None:
    spec = replace(SPEC, mask_kind="block_causal", block=2, max_canvas=0, canvas_multiple=1, causal_verify=False)
    network = Transformer(spec)
    network.load_state_dict(tiny.model().state_dict())
    network.requires_grad_(False)
    prompt, reply = (20, 21), (30, 31, 32, 33)
    draws = [Draw(1.0, (0.0,) * 4), Draw(0.5, (0.0, 1.0, 0.0, 1.0)), Draw(0.5, (1.0, 0.0, 1.0, 0.0))]
    full, left, right = (float(bounds(network, [prompt], [reply], [[draw]])) for draw in draws)
    exact = likelihood_bound(network, prompt, reply, draws=128).log_probability
    assert 0.5 * full + 0.25 * (left + right) == pytest.approx(exact, rel=1e-4)


def test_draws_of_one_reply_are_averaged() -> None:
    network, one = tiny.model(), pair()
    draws = draw_noise(3, 40, torch.Generator().manual_seed(0))
    together = bounds(network, [one.prompt], [one.chosen], [draws])
    each = torch.cat([bounds(network, [one.prompt], [one.chosen], [[draw]]) for draw in draws])
    torch.testing.assert_close(together[0], each.mean(), atol=1e-3, rtol=1e-4)


def test_replies_that_share_a_prompt_have_the_bounds_they_have_alone() -> None:
    network, one = tiny.model(), pair()
    draws = [draw_noise(2, 40, torch.Generator().manual_seed(seed)) for seed in range(3)]
    prompts, replies = [one.prompt, one.prompt, (20, 21)], [one.chosen, one.rejected, one.chosen]
    together = bounds(network, prompts, replies, draws)
    each = [bounds(network, [p], [r], [d]) for p, r, d in zip(prompts, replies, draws, strict=True)]
    torch.testing.assert_close(together, torch.cat(each), atol=1e-3, rtol=1e-4)  # float32 sums in another order


def margins(policy: Transformer, reference: Transformer, shares: tuple[bool, bool], count: int) -> list[float]:
    """Estimates of one pair's margin, draws shared (between the networks, between the replies) or not."""
    one, found = pair(), []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        size = max(len(one.chosen), len(one.rejected))
        chosen = draw_noise(4, size, generator)
        rejected = chosen if shares[1] else draw_noise(4, size, generator)
        other = [chosen, rejected] if shares[0] else [draw_noise(4, size, generator), draw_noise(4, size, generator)]
        prompts, replies = [one.prompt] * 2, [one.chosen, one.rejected]
        gain = bounds(policy, prompts, replies, [chosen, rejected]) - bounds(reference, prompts, replies, other)
        found.append(float(gain[0] - gain[1]))
    return found


def test_times_of_a_reply_are_spread_evenly() -> None:
    for seed in range(8):
        times = sorted(draw.t for draw in draw_noise(4, 12, torch.Generator().manual_seed(seed)))
        assert [math.ceil(t * 4) for t in times] == [1, 2, 3, 4]


def test_draws_shared_with_the_reference_make_the_margin_less_noisy() -> None:
    reference, policy = tiny.model(scale=4.0), tiny.model(scale=4.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.004 * torch.randn(parameter.shape, generator=generator))
    apart = variance(margins(policy, reference, (False, False), 24))
    shared = variance(margins(policy, reference, (True, True), 24))
    assert shared < 0.2 * apart


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    policy, reference = torch.tensor([[-10.0, -30.0]]), torch.tensor([[-12.0, -25.0]])
    found = preference_losses(policy, reference, 0.1)
    assert float(found[0]) == pytest.approx(-math.log(1 / (1 + math.exp(-0.7))))


def test_without_movement_a_pair_costs_log_two() -> None:
    policy = torch.tensor([[-10.0, -30.0]])
    assert float(preference_losses(policy, policy, 0.1)[0]) == pytest.approx(math.log(2))


def test_the_gradient_raises_the_chosen_and_lowers_the_rejected() -> None:
    policy = torch.tensor([[-10.0, -30.0]], requires_grad=True)
    preference_losses(policy, policy.detach(), 0.1).sum().backward()
    assert policy.grad[0, 0] < 0 < policy.grad[0, 1]
    assert float(policy.grad[0, 0]) == pytest.approx(-0.05)


def test_chosen_replies_become_likelier_and_rejected_ones_less_so(tmp_path: Path) -> None:
    tuner, one = tuner_of(tmp_path, steps=12), pair()
    reference = frozen_copy(tuner.network)
    preference = PreferenceTuner(tuner, [one], PreferenceConfig(draws=4, pairs_per_step=2))
    first = preference.take_step()
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["margin"] == 0.0  # the policy is the reference, and both meet the same masks
    lines = [preference.take_step() for _ in range(11)]
    assert lines[-1]["accuracy"] == 1.0
    draws = [draw_noise(32, 40, torch.Generator().manual_seed(99))] * 2
    arguments = ([one.prompt] * 2, [one.chosen, one.rejected], draws)
    with torch.no_grad():
        gain = bounds(tuner.network, *arguments) - bounds(reference, *arguments)
    assert gain[0] > 0 > gain[1]


def test_a_resumed_run_is_the_run_it_continues_bit_for_bit(tmp_path: Path) -> None:
    config = PreferenceConfig(draws=2, pairs_per_step=2, chosen_weight=0.1)

    def tuner(run: str) -> PreferenceTuner:
        return PreferenceTuner(tuner_of(tmp_path / run, steps=4), [pair()], config)

    whole, half, rest = tuner("whole"), tuner("half"), tuner("half")
    whole.tuner.run(whole.take_step)
    half.tuner.run(half.take_step, should_stop=lambda: half.tuner.step == 2)
    rest.tuner.restore()
    rest.tuner.run(rest.take_step)
    for name, weight in whole.tuner.ema.weights.items():
        assert torch.equal(weight, rest.tuner.ema.weights[name]), name


def test_families_with_another_bound_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pairs"):
        PreferenceTuner(tuner_of(tmp_path), [], PreferenceConfig())
    network = Transformer(replace(SPEC, seeds_block=True))
    with pytest.raises(ConfigError, match="from masks alone"):
        bounds(network, [(20,)], [(30, END)], [[Draw(1.0, (0.0, 0.0))]])
    with pytest.raises(ConfigError, match="beta"):
        PreferenceConfig(beta=0.0)


def test_the_command_writes_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader.save(tmp_path / "model", SPEC, tiny.model().state_dict(), tiny.codec(), dtype=None)
    given = ["prefer", "--model", str(tmp_path / "model"), "--data", str(lines(tmp_path, LINE)), "--draws", "2"]
    given += ["--out", str(tmp_path / "run"), "--pairs", "2"]
    assert main([*given, "--steps", "2"]) == 0
    assert loader.load(tmp_path / "run" / "export").spec == SPEC
    assert main([*given, "--steps", "2"]) == 2
    assert main([*given, "--steps", "3", "--resume"]) == 0
    assert main([*given, "--steps", "0", "--resume"]) == 2
    assert "budget" in capsys.readouterr().err

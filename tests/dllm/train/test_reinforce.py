"""Reinforcement: rewards are numbers or errors, replies are compared within a prompt, and what is rewarded becomes more frequent."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from dllm import loader
from dllm.cli import main
from dllm.errors import ConfigError, RewardError
from dllm.loader import Checkpoint
from dllm.train.data import Turn
from dllm.train.reinforce import (
    Questions,
    ReinforceConfig,
    Reinforcer,
    Reward,
    Writing,
    advantages,
    find_reward,
    measure,
    policy_losses,
    reply_text,
    write_replies,
)
from dllm.train.tuning import Budget, TuneConfig, Tuner
from tests.dllm import tiny

SPEC = tiny.spec()
ANSWER = Turn("agent", "A mocha.")


def letter(turns: Sequence[Turn], reply: str) -> float:
    """Share of the letter e."""
    return reply.count("e") / max(1, len(reply))


def checkpoint() -> Checkpoint:
    return Checkpoint(SPEC, tiny.model(scale=4.0), tiny.codec(), Path("tiny"))


def questions(tmp_path: Path, width: int = 16) -> Questions:
    tiny.write_dialogues(tmp_path / "data")
    return Questions([tmp_path / "data"], tiny.codec(), SPEC, width)


def reinforcer(tmp_path: Path, run: str, steps: int, width: int = 8, **changes: float) -> Reinforcer:
    settings = {"prompts_per_step": 1, "draws": 2, "replies_per_forward": 8} | changes
    config = ReinforceConfig(**settings)  # type: ignore[arg-type]
    tune = TuneConfig(learning_rate=1e-2, warmup_steps=1, ema_decay=0.5)
    tuner = Tuner(tmp_path / run, checkpoint(), tune, Budget(steps=steps))
    return Reinforcer(tuner, questions(tmp_path, width), Reward("letter", letter), config)


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_a_function_is_found_in_a_file_and_in_a_module(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def short(turns, reply):\n    return -len(reply)\ndef exact(turns, reply, answer):\n    return reply == answer.text\n"
    )
    assert find_reward(f"{path}:short")((), "four", ANSWER) == -4
    assert find_reward(f"{path}:exact")((), "A mocha.", ANSWER) == 1.0
    assert find_reward("tests.dllm.train.test_reinforce:letter")((), "tee", ANSWER) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "name", ["letter", ":f", "no.such.module:f", "{0}:missing", "{0}:number", "{0}:narrow", "{1}:f", "{2}:f"]
)
def test_a_name_that_is_no_reward_is_refused(tmp_path: Path, name: str) -> None:
    mine, broken, absent = (tmp_path / f"{one}.py" for one in ("mine", "broken", "absent"))
    mine.write_text("number = 3\ndef narrow(reply):\n    return 0.0\n")
    broken.write_text("raise RuntimeError('at import')\n")
    with pytest.raises(ConfigError, match="--reward"):
        find_reward(name.format(mine, broken, absent))


@pytest.mark.parametrize(
    ("value", "problem"), [(None, "a number, got None"), ("1", "got '1'"), (math.nan, "finite"), (-math.inf, "finite")]
)
def test_what_is_no_number_is_told_with_function_and_reply(value: object, problem: str) -> None:
    with pytest.raises(RewardError, match=problem) as caught:
        Reward("mine.py:f", lambda turns, reply: value)((), "Two teas.", ANSWER)
    assert "mine.py:f" in str(caught.value) and "'Two teas.'" in str(caught.value)


def test_a_function_that_fails_is_told_with_function_and_reply() -> None:
    with pytest.raises(RewardError, match=r"reward mine.py:f: ZeroDivisionError: .* for the reply 'Two teas\.'"):
        Reward("mine.py:f", lambda turns, reply: 1 / 0)((), "Two teas.", ANSWER)


@pytest.mark.parametrize("value", [True, 1, Fraction(1), torch.ones(1).numpy()[0]])
def test_every_kind_of_number_counts(value: object) -> None:
    assert Reward("f", lambda turns, reply: value)((), "", ANSWER) == 1.0


def test_advantages_by_hand() -> None:
    assert advantages([1.0, 3.0]) == [-1.0, 1.0]
    assert advantages([0.0, 0.0, 3.0]) == pytest.approx([-math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2)])
    assert advantages([0.1, 0.1, 0.1]) == [0.0, 0.0, 0.0]


# --- prompts and replies ----------------------------------------------------------------------------------------------


def test_questions_are_places_where_an_agent_answers(tmp_path: Path) -> None:
    asked = questions(tmp_path, width=13)
    found = [asked.draw(random.Random(seed)) for seed in range(20)]
    assert found == [asked.draw(random.Random(seed)) for seed in range(20)]
    assert all(one.answer.role == "agent" and one.turns[-1].role != "agent" for one in found)
    assert {one.width for one in found} == {16}
    # The model reads what a recogniser heard, the function what the file says.
    one = next(one for one in found if one.turns[-1].text == "No, thanks.")
    assert tiny.codec().decode(one.prompt).endswith(" no thanks")


def test_a_call_is_a_reply_that_says_so() -> None:
    codec = tiny.codec()
    tokens = (SPEC.dialogue.call, *codec.encode_text("order; drink: mocha"))
    assert reply_text(codec, tokens) == "<call> order; drink: mocha"
    assert reply_text(codec, tokens[1:]) == "order; drink: mocha"


def test_a_reply_depends_on_its_seed_alone(tmp_path: Path) -> None:
    asked = questions(tmp_path)
    first, second = (asked.draw(random.Random(seed)) for seed in (1, 4))
    assert first.prompt != second.prompt
    together = write_replies(checkpoint(), [(first, (5, 6, 7)), (second, (5,))], Writing(batch=3))
    alone = write_replies(checkpoint(), [(first, (6,))], Writing(batch=1))
    assert together[0][1] == alone[0][0]
    assert len({reply.tokens for reply in together[0]}) == 3


def test_only_a_finished_reply_has_an_end(tmp_path: Path) -> None:
    asked = questions(tmp_path)
    (replies,) = write_replies(
        checkpoint(), [(asked.draw(random.Random(0)), tuple(range(12)))], Writing(temperature=3.0)
    )
    for reply in replies:
        assert (reply.tokens[-1] == SPEC.special.end) == reply.is_finished
        assert reply.text == reply_text(tiny.codec(), reply.tokens)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_gradient_raises_what_is_better_and_ties_to_the_reference() -> None:
    policy = torch.tensor([-10.0, -10.0, -10.0], requires_grad=True)
    reference = torch.tensor([-10.0, -10.0, -14.0])
    policy_losses(policy, reference, torch.tensor([1.0, -1.0, 0.0]), 0.1).sum().backward()
    assert policy.grad.tolist() == pytest.approx([-1.0, 1.0, 0.4])


def test_what_is_rewarded_becomes_more_frequent(tmp_path: Path) -> None:
    run = reinforcer(tmp_path, "free", steps=10, width=16, tie=0.0)
    lines: list[dict[str, float]] = []
    run.tuner.run(run.take_step, lines.append)
    before = sum(line["reward"] for line in lines[:2]) / 2
    after = sum(line["reward"] for line in lines[-2:]) / 2
    assert after > 2 * before
    assert lines[0]["kl"] == 0.0  # the policy is the reference, and both meet the same masks
    assert lines[-1]["kl"] > 1.0
    # The averaged weights that are exported have learned it as well, on prompts that were not drawn and without noise.
    prompts = [questions(tmp_path).draw(random.Random(f"other {seed}")) for seed in range(4)]
    reward, writing = Reward("letter", letter), Writing()
    learned = loader.load(tmp_path / "free" / "export")
    assert (
        measure(learned, prompts, reward, writing).reward > 2 * measure(checkpoint(), prompts, reward, writing).reward
    )


def test_where_all_replies_earn_the_same_only_the_tie_moves_the_policy(tmp_path: Path) -> None:
    norms = []
    for tie in (0.0, 0.5):
        run = reinforcer(tmp_path, f"tie-{tie}", steps=2, replies_per_prompt=2, tie=tie)
        run.reward = Reward("same", lambda turns, reply: 1.0)
        with torch.no_grad():
            for parameter in run.tuner.network.parameters():  # type: ignore[attr-defined]
                parameter.mul_(1.02)
        line = run.take_step()
        assert line["kl"] != 0.0
        norms.append(line["gradient_norm"])
    assert norms[0] == 0.0 < norms[1]


def test_every_step_keeps_replies_to_look_at(tmp_path: Path) -> None:
    run = reinforcer(tmp_path, "run", steps=1, replies_per_prompt=3)
    line = run.take_step()
    (kept,) = map(json.loads, (tmp_path / "run" / "samples.jsonl").read_text().splitlines())
    assert kept["step"] == line["step"] == 1
    assert sum(reply["reward"] for reply in kept["replies"]) / 3 == pytest.approx(line["reward"], abs=1e-5)
    assert [letter((), reply["text"]) for reply in kept["replies"]] == [reply["reward"] for reply in kept["replies"]]


def test_a_resumed_run_is_the_run_it_continues_bit_for_bit(tmp_path: Path) -> None:
    def run(name: str) -> Reinforcer:
        return reinforcer(tmp_path, name, steps=3, replies_per_prompt=2)

    whole, half, rest = run("whole"), run("half"), run("half")
    whole.tuner.run(whole.take_step)
    half.tuner.run(half.take_step, should_stop=lambda: half.tuner.step == 1)
    rest.tuner.restore()
    rest.tuner.run(rest.take_step)
    for name, weight in whole.tuner.ema.weights.items():
        assert torch.equal(weight, rest.tuner.ema.weights[name]), name


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"replies_per_prompt": 1}, "replies_per_prompt"), ({"tie": -1.0}, "tie"), ({"draws": 0}, "draws")],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        ReinforceConfig(**changes)  # type: ignore[arg-type]


def test_replies_without_temperature_would_all_be_the_same() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        ReinforceConfig(writing=Writing(temperature=0.0))
    with pytest.raises(ConfigError, match="steps_per_token"):
        Writing(steps_per_token=0.0)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_checkpoint_and_what_it_earned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_dialogues(tmp_path / "data")
    tiny.write_dialogues(tmp_path / "data", split="dev")
    loader.save(tmp_path / "model", SPEC, tiny.model(scale=4.0).state_dict(), tiny.codec(), dtype=None)
    mine = tmp_path / "mine.py"
    mine.write_text("def f(turns, reply):\n    return float(len(reply))\n")
    given = ["reinforce", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--width", "8"]
    given += ["--out", str(tmp_path / "run"), "--prompts", "1", "--replies", "2", "--draws", "1", "--check", "2"]
    assert main([*given, "--reward", f"{mine}:f", "--steps", "2"]) == 0
    assert loader.load(tmp_path / "run" / "export").spec == SPEC
    earned = json.loads((tmp_path / "run" / "reward.json").read_text())
    assert earned["before"]["prompts"] == earned["after"]["prompts"] == 2
    assert main([*given, "--reward", f"{mine}:g", "--steps", "3", "--resume"]) == 2
    mine.write_text("def f(turns, reply):\n    raise KeyError('total')\n")
    assert main([*given, "--reward", f"{mine}:f", "--steps", "3", "--resume"]) == 2
    assert "KeyError: 'total', for the reply" in capsys.readouterr().err
    mine.write_text("def f(turns, reply):\n    return float(len(reply))\n")
    assert main([*given, "--reward", f"{mine}:f", "--steps", "3", "--resume"]) == 0
    assert json.loads((tmp_path / "run" / "reward.json").read_text())["before"] == earned["before"]
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]

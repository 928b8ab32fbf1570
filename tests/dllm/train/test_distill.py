"""Distillation: the losses by hand, the material it learns from, and that it does what it is for."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from dllm import loader
from dllm.cli import main
from dllm.commands.distill import mixture_config
from dllm.drafts import Plan
from dllm.errors import CheckpointError, ConfigError, DataError
from dllm.evaluate.prompts import Prompt
from dllm.evaluate.writing import Way, Writer, Written
from dllm.habits import family_options
from dllm.loader import Checkpoint
from dllm.models.builtin import FAMILY
from dllm.models.transformer import Transformer
from dllm.score import Question, probabilities
from dllm.train import canvases, distill
from dllm.train.canvases import Asked, State
from dllm.train.config import TrainConfig
from dllm.train.data import Mixture
from dllm.train.distill import DistillConfig, Distiller, Moment
from dllm.train.tasks import DialogueTask
from dllm.train.trajectories import Asking, Library, RowPrompts, Trajectory, holds, is_good, repeats_itself, write
from dllm.train.tuning import Budget, TuneConfig, Tuner
from tests.dllm import tiny

SPEC = tiny.spec()
END, MASK = SPEC.special.end, SPEC.special.mask
TABLE = tiny.codec().token_table
OPTIONS = family_options(FAMILY.defaults, SPEC)
PROMPTS = (
    "i'd like a large mocha please",
    "a small tea",
    "no thanks",
    "what do you have",
    "how much is it",
    "two muffins and a tea please",
)
REPLIES = (
    "A large mocha with almond milk, that's $5.10. Anything else?",
    "What size would you like?",
    "Goodbye, see you soon at the Café!",
    "Small, medium or large.",
    "That's $5.10.",
    "A muffin for seven, anything else?",
)


def prompt_of(text: str) -> tuple[int, ...]:
    return tuple(tiny.codec().encode_prompt([("user", text)]))


def canvas_of(text: str, width: int = 32) -> tuple[tuple[int, ...], int]:
    """The reply filled up with ends, and its tokens with the first of them."""
    tokens = tiny.codec().encode_text(text)
    return (*tokens, *[END] * (width - len(tokens))), len(tokens) + 1


@cache
def knowing_weights() -> dict[str, torch.Tensor]:
    """A tiny model that has learned six replies by heart, asked at random masks: sure of them only when it sees some of their words."""
    torch.manual_seed(0)
    network = Transformer(SPEC)
    network.reset_parameters(torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(160):
        asked, targets = [], []
        for prompt, reply in zip(PROMPTS, REPLIES, strict=True):
            tokens, length = canvas_of(reply)
            hidden = torch.randperm(length, generator=generator)[
                : int(torch.randint(1, length + 1, (), generator=generator))
            ]
            wanted = tuple(sorted(hidden.tolist()))
            shown = tuple(MASK if at in wanted or at >= length else token for at, token in enumerate(tokens))
            asked.append(Asked(prompt_of(prompt), (State(shown, wanted),)))
            targets += [tokens[at] for at in wanted]
        loss = torch.nn.functional.cross_entropy(
            canvases.logits_at(network, asked), torch.tensor(targets), label_smoothing=0.35
        )
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return {name: weight.detach().clone() for name, weight in network.state_dict().items()}


def knowing() -> Transformer:
    """Learned with smoothed labels: right, and unsure of it, as a model that has seen too little."""
    network = Transformer(SPEC).eval().requires_grad_(False)
    network.load_state_dict(knowing_weights())
    return network


def checkpoint_of(network: Transformer) -> Checkpoint:
    return Checkpoint(SPEC, network, tiny.codec(), Path("tiny"))


def prompts() -> list[Prompt]:
    return [Prompt("", str(number), prompt_of(text), (), "") for number, text in enumerate(PROMPTS)]


def askings() -> list[Asking]:
    return [Asking(prompt_of(text), 32) for text in PROMPTS]


def written(network: Transformer, threshold: float) -> list[Written]:
    """Replies with no ceiling on steps: the threshold alone decides how many tokens a forward gives."""
    way = Way("threshold", Plan(32, 32, threshold, by_clause=False), OPTIONS, 32)
    return Writer(network, TABLE).write(prompts(), [way])[0]


def tokens_per_forward(replies: list[Written]) -> float:
    return sum(len(one.tokens) for one in replies) / sum(one.forwards for one in replies)


# --- what the network is asked ----------------------------------------------------------------------------------------


def test_logits_of_states_that_share_a_row_are_those_of_each_alone() -> None:
    network = tiny.model()
    generator = torch.Generator().manual_seed(1)
    asked = []
    for size in (4, 9):
        prompt = tuple(torch.randint(20, SPEC.vocab_size, (size,), generator=generator).tolist())
        states = []
        for width in (8, 16):
            shown = torch.randint(20, SPEC.vocab_size, (width,), generator=generator).tolist()
            shown[2] = shown[5] = MASK
            states.append(State(tuple(shown), (2, 5)))
        asked.append(Asked(prompt, tuple(states)))
    together = torch.softmax(canvases.logits_at(network, asked), dim=-1)
    questions = [Question(one.prompt, state.shown, state.wanted) for one in asked for state in one.states]
    alone = torch.cat([answer.probabilities for answer in probabilities(network, questions)])
    # Float32 sums in another order: the rows are longer here.
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_families_with_other_masks_are_asked_row_by_row() -> None:
    spec = replace(SPEC, mask_kind="block_causal", block=8, logit_shift=1, max_canvas=0, causal_verify=False)
    network = Transformer(spec)
    network.reset_parameters(torch.Generator().manual_seed(0))
    network.requires_grad_(False)
    prompt, shown = tuple(range(20, 28)), (30, MASK, 31, MASK, 32, 33, 34, 35)
    asked = [Asked(prompt, (State(shown, (1, 3)), State((MASK, *shown[1:]), (0,))))]
    found = torch.softmax(canvases.logits_at(network, asked), dim=-1)
    questions = [Question(prompt, state.shown, state.wanted) for state in asked[0].states]
    alone = torch.cat([answer.probabilities for answer in probabilities(network, questions)])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)


def test_a_family_without_masked_canvases_is_refused() -> None:
    with pytest.raises(ConfigError, match="masked canvases"):
        canvases.check_spec(replace(SPEC, mask_kind="causal"))


# --- trajectories -----------------------------------------------------------------------------------------------------


def test_a_trajectory_decides_one_token_a_step_and_says_in_which_order() -> None:
    found = write(knowing(), TABLE, askings(), OPTIONS)
    kept = [one for one in found if one is not None]
    assert len(kept) >= 4
    for one in kept:
        assert sorted(one.steps[: one.length]) == list(range(1, one.length + 1))
        assert one.tokens[one.length - 1] == END
        assert set(one.steps[one.length :]) <= {0}


def test_a_pinned_fact_is_in_the_reply_and_decided_in_one_step() -> None:
    fact = tiny.codec().encode_pin("$7.20")
    asking = Asking(prompt_of(PROMPTS[4]), 32, (fact,), is_pinned=True)
    (one,) = write(knowing(), TABLE, [asking], OPTIONS)
    assert one is not None and holds(one.tokens, fact)
    start = next(at for at in range(32) if one.tokens[at : at + len(fact)] == fact)
    assert len(set(one.steps[start : start + len(fact)])) == 1


def test_replies_that_go_in_circles_lose_a_fact_or_are_empty_are_dropped() -> None:
    words = sorted(TABLE.word)[:9]
    asking = Asking((20,), 16)

    def trajectory(*reply: int) -> Trajectory:
        size = len(reply) + 1
        return Trajectory((20,), (*reply, END), tuple(range(1, size + 1)), size)

    assert is_good(trajectory(*words), asking, TABLE)
    assert not is_good(trajectory(), asking, TABLE)
    assert not is_good(trajectory(words[0], words[0]), asking, TABLE)
    assert not is_good(trajectory(*words[:3], *words[:3]), asking, TABLE)
    assert not is_good(trajectory(*words[:6], words[7], *words[:6]), asking, TABLE)
    assert not is_good(trajectory(*words), replace(asking, facts=((words[1], words[0]),)), TABLE)
    assert not repeats_itself((*words[:5], words[7], *words[:5]), TABLE)


def test_a_library_cut_off_in_the_middle_of_a_line_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    class Cycle:
        def asking(self, number: int) -> Asking | None:
            return askings()[number % 6] if number < 6 else None

    network = knowing()
    whole = Library(tmp_path / "whole.jsonl")
    whole.grow(network, TABLE, Cycle(), OPTIONS)
    line = (tmp_path / "whole.jsonl").read_bytes()
    (tmp_path / "cut.jsonl").write_bytes(line + line[:100])
    cut = Library(tmp_path / "cut.jsonl")
    assert (cut.kept, cut.asked) == (whole.kept, whole.asked) != ([], 0)
    assert (tmp_path / "cut.jsonl").read_bytes() == line


def test_a_library_that_is_none_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "trajectories.jsonl"
    path.write_text('{"asked": 1, "seconds": 0.5, "replies": []}\n{"other": 1}\n')
    with pytest.raises(DataError, match=r"trajectories.jsonl:2: expected an object"):
        Library(path)


def test_prompts_of_rows_end_where_an_agent_answers_and_bring_their_facts(tmp_path: Path) -> None:
    tiny.write_dialogues(tmp_path)
    config = TrainConfig(renamed_share=0.0)
    rows = RowPrompts(Mixture([tmp_path], tiny.codec(), config), SPEC, config)
    found = [rows.asking(number) for number in range(40)]
    assert found == [rows.asking(number) for number in range(40)]
    asked = [one for one in found if one is not None]
    assert all(one.prompt[-1] == SPEC.dialogue.agent for one in asked)
    with_facts = [one for one in asked if one.facts]
    assert all(tiny.codec().decode(one.facts[0]).startswith(" $") for one in with_facts)
    assert {one.is_pinned for one in with_facts} == {True, False}


# --- moments ----------------------------------------------------------------------------------------------------------

TRAJECTORY = Trajectory((20,), (30, 31, 32, 33, END, END, END, END), (2, 1, 4, 3, 5, 0, 0, 0), 5)


def test_a_moment_shows_what_was_decided_and_asks_for_what_comes_next() -> None:
    state = Moment(TRAJECTORY, step=2, jump=2).state(MASK)
    assert state.shown == (30, 31, MASK, MASK, MASK, MASK, MASK, MASK)
    assert state.wanted == (2, 3)
    later = Moment(TRAJECTORY, step=2, jump=2).later(MASK)
    assert later.shown == (30, 31, 32, 33, MASK, MASK, MASK, MASK)
    assert later.wanted == (4,)


def test_the_first_moment_is_an_empty_canvas_and_the_last_asks_for_the_end() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [moment.step for _ in range(60) for moment in distill.moments_of(TRAJECTORY, 2, 4, generator)]
    assert set(steps) == {0, 1, 2, 3, 4}
    assert len(distill.moments_of(TRAJECTORY, 20, 4, generator)) == 5


def test_the_jump_grows_over_the_first_half_and_stays() -> None:
    config = DistillConfig(first_jump=4, last_jump=20)
    assert [distill.jump_at(progress, config) for progress in (0.0, 0.25, 0.5, 1.0)] == [4, 12, 20, 20]


def test_the_jump_grows_over_what_writing_left_of_the_budget(tmp_path: Path) -> None:
    tuner = Tuner(tmp_path, checkpoint_of(tiny.model()), TuneConfig(), Budget(seconds=100.0))
    distiller = Distiller(tuner, [TRAJECTORY], None, DistillConfig(first_jump=4, last_jump=20), begun=0.4)
    jumps = []
    for tuner.seconds in (40.0, 55.0, 70.0):
        jumps.append(distiller.take_step()["jump"])
    assert jumps == [4, 12, 20]


# --- losses -----------------------------------------------------------------------------------------------------------


def test_certainty_loss_by_hand() -> None:
    """Two positions, two tokens, logits log 3 and 0: probabilities 3/4 and 1/4; at temperature 1/2 they are 9/10 and 1/10."""
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    entropy, spread = distill.certainty_loss(logits, torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), 0.5)
    assert float(entropy) == pytest.approx(-math.log(0.75) - 2 * math.log(0.25))
    assert float(spread) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))


def test_entropy_presses_only_where_the_best_token_is_right() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.2], [1.0, 0.0, 0.2]], requires_grad=True)
    _, spread = distill.certainty_loss(logits, torch.tensor([0, 1]), torch.ones(2), 0.5)
    spread.backward()
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]  # descent raises the right one
    assert torch.equal(logits.grad[1], torch.zeros(3))


def test_a_token_that_is_ruled_out_leaves_the_losses_finite() -> None:
    logits = torch.tensor([[0.0, 1.0, -1e9]], requires_grad=True)
    entropy, spread = distill.certainty_loss(logits, torch.tensor([1]), torch.ones(1), 0.5)
    (entropy + spread + distill.consistency_loss(logits, torch.tensor([[2.0, 0.0, -1e9]]))).backward()
    assert torch.isfinite(logits.grad).all()


def test_consistency_loss_is_zero_between_equals_and_by_hand_elsewhere() -> None:
    logits = torch.tensor([[math.log(3), 0.0]])
    assert float(distill.consistency_loss(logits, logits)) == pytest.approx(0.0, abs=1e-7)
    found = float(distill.consistency_loss(torch.zeros(1, 2), logits))
    assert found == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"temperature": 0.0}, "temperature"), ({"last_jump": 2}, "last_jump"), ({"method": "luck"}, "method")],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        DistillConfig(**changes)


def test_a_model_without_a_good_reply_has_nothing_to_learn_from(tmp_path: Path) -> None:
    tuner = Tuner(tmp_path, checkpoint_of(tiny.model()), TuneConfig(), Budget(steps=1))
    with pytest.raises(ConfigError, match="trajectories"):
        Distiller(tuner, [], None, DistillConfig())


# --- what it is for ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["certainty", "consistency"])
def test_a_distilled_model_writes_the_same_replies_with_fewer_forwards(tmp_path: Path, method: str) -> None:
    before = written(knowing(), 0.9)
    slow = written(knowing(), 1.0)
    assert tokens_per_forward(slow) <= 1.0
    trajectories = [one for one in write(knowing(), TABLE, askings(), OPTIONS) if one is not None]
    tuner = Tuner(tmp_path, checkpoint_of(knowing()), TuneConfig(learning_rate=3e-3, warmup_steps=2), Budget(steps=40))
    config = DistillConfig(method=method, replies_per_step=6, states_per_reply=2)
    distiller = Distiller(tuner, trajectories, None, config)
    tuner.run(distiller.take_step)
    after = written(loader.load(tmp_path / "export").model, 0.9)
    known = [number for number, one in enumerate(write(knowing(), TABLE, askings(), OPTIONS)) if one is not None]
    assert [after[at].tokens for at in known] == [slow[at].tokens for at in known]
    assert tokens_per_forward(after) > 2 * tokens_per_forward(before)


def test_a_resumed_run_is_the_run_it_continues_bit_for_bit(tmp_path: Path) -> None:
    tiny.write_dialogues(tmp_path / "data")
    config = TrainConfig(rows_per_step=2, rows_per_forward=2, max_jump=0)
    mixture = Mixture([tmp_path / "data"], tiny.codec(), config)
    trajectories = [one for one in write(knowing(), TABLE, askings(), OPTIONS) if one is not None]

    def distiller(out: Path) -> Distiller:
        tuner = Tuner(out, checkpoint_of(knowing()), TuneConfig(warmup_steps=2), Budget(steps=6))
        ordinary = DialogueTask(mixture, SPEC, config)
        small = DistillConfig(method="consistency", replies_per_step=2, replies_per_forward=1)
        return Distiller(tuner, trajectories, ordinary, small)

    whole = distiller(tmp_path / "whole")
    whole.tuner.run(whole.take_step)
    half = distiller(tmp_path / "half")
    half.tuner.run(half.take_step, should_stop=lambda: half.tuner.step == 3)
    rest = distiller(tmp_path / "half")
    rest.tuner.restore()
    rest.tuner.run(rest.take_step)
    for name, weight in whole.tuner.ema.weights.items():
        assert torch.equal(weight, rest.tuner.ema.weights[name]), name

    def losses(run: str) -> list[tuple[int, float]]:
        lines = map(json.loads, (tmp_path / run / "log.jsonl").read_text().splitlines())
        return [(line["step"], line["loss"]) for line in lines]

    assert losses("half") == losses("whole")


def test_sources_that_the_built_in_mixture_does_not_know_count_alike(tmp_path: Path) -> None:
    tiny.write_dialogues(tmp_path / "own")
    tiny.write_dialogues(tmp_path / "known", name="cafe")
    own, known = (Namespace(config=None, data=[tmp_path / name], seed=3) for name in ("own", "known"))
    assert mixture_config(own).sources == {}
    assert "cafe" in mixture_config(known).sources
    assert mixture_config(own).seed == 3


def test_the_command_writes_a_checkpoint_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_dialogues(tmp_path / "data")
    (tmp_path / "mix.toml").write_text("max_jump = 0\n")
    loader.save(tmp_path / "model", SPEC, knowing_weights(), tiny.codec(), dtype=None)
    given = ["distill", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--prompts", "20"]
    given += ["--config", str(tmp_path / "mix.toml"), "--out", str(tmp_path / "run"), "--rows", "2"]
    assert main([*given, "--steps", "2", "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert main([*given, "--steps", "2"]) == 0
    assert loader.load(tmp_path / "run" / "export").spec == SPEC
    assert main([*given, "--steps", "3"]) == 2
    assert main([*given, "--steps", "3", "--resume"]) == 0
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert main([*given, "--steps", "3", "--minutes", "1", "--resume"]) == 2


def test_resuming_another_models_run_is_an_error(tmp_path: Path) -> None:
    tuner = Tuner(tmp_path, checkpoint_of(tiny.model()), TuneConfig(), Budget(steps=1))
    tuner.save()
    spec = replace(SPEC, intermediate_size=40)
    other = Tuner(
        tmp_path, Checkpoint(spec, Transformer(spec), tiny.codec(), Path("other")), TuneConfig(), Budget(steps=1)
    )
    with pytest.raises(CheckpointError, match="not those of other"):
        other.restore()

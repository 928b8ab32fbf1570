"""Reinforcement: replies that a function rewards become more likely than the others that the model wrote to the same prompt.

A step: several replies to each of some prompts, written by the engine at a temperature; their rewards; one update. Advantages are rewards
less the mean of their prompt's replies, over their standard deviation (GRPO, arXiv:2402.03300). The likelihood that is weighted with
them is the masked bound of the whole reply (ESPO, arXiv:2512.03759) rather than one forward behind a masked prompt (diffu-GRPO of d1,
arXiv:2504.12216). Replies are used once, by the policy that wrote them: a ratio to it would be 1 and a clip would never bite, so there
is neither, as in wd1 (arXiv:2507.08838). What remains is the gradient of

    (sum of advantage * bound - tie / 2 * sum of gain ^ 2) / tokens of the step,      gain = bound - bound of the frozen reference

whose second part estimates the KL divergence to the reference without the exponentials of other estimates (k2, as in ESPO). Policy
and reference meet the same masks, and so do all replies to a prompt.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from numbers import Real
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import Any

import torch
from torch import Tensor

from dllm.codec import Codec
from dllm.drafts import DraftSpec, Finished, Plan
from dllm.engine import Engine
from dllm.errors import ConfigError, PromptTooLongError, RewardError
from dllm.habits import STEPS_PER_TOKEN, family_options, usual_steps, widest_canvas
from dllm.loader import Checkpoint
from dllm.rounds import run_out
from dllm.spec import ModelSpec
from dllm.text import DialogueCodec
from dllm.train.canvases import frozen_copy
from dllm.train.config import TrainConfig
from dllm.train.corpus import answer_text
from dllm.train.data import Split, Turn
from dllm.train.preference import Draw, bounds, check_bound, draw_noise, prompt_tokens
from dllm.train.trajectories import Places
from dllm.train.tuning import Tuner

SAMPLES = "samples.jsonl"
MOST_CACHE_BYTES = 256 * 2**20
"""Of prompts' keys and values; with less than a batch needs, drafts wait for each other."""
_TRIES = 200
"""Places that are drawn for one prompt that fits the model."""


# --- rewards ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reward:
    """A caller's function: `reward(turns, reply)` or `reward(turns, reply, answer)`, a number that is better when higher."""

    name: str
    function: Callable[..., object]
    takes_answer: bool = False

    def __call__(self, turns: Sequence[Turn], reply: str, answer: Turn) -> float:
        """
        Args:
            turns: What was said before, as it stands in the file.
            reply: What the model says; a tool call begins with `<call> `.
            answer: What stands in the file.

        Raises:
            RewardError: If the function fails, or gives what is no finite number.
        """
        try:
            value = self.function(turns, reply, answer) if self.takes_answer else self.function(turns, reply)
        except Exception as error:
            raise RewardError(self.name, reply, f"{type(error).__name__}: {error}") from error
        if not isinstance(value, Real):
            raise RewardError(self.name, reply, f"expected a number, got {value!r}")
        if not math.isfinite(value):
            raise RewardError(self.name, reply, f"expected a finite number, got {float(value)}")
        return float(value)


def find_reward(name: str) -> Reward:
    """A function by name, `package.module:function` or `path/to/file.py:function`.

    Raises:
        ConfigError: If there is none, or it does not take two or three arguments.
    """
    place, _, function_name = name.rpartition(":")
    if not place or not function_name:
        raise ConfigError("--reward", name, "module:function or file.py:function")
    try:
        function = getattr(_module_of(place), function_name)
    except Exception as error:  # A module may fail in any way while it is imported.
        raise ConfigError(
            "--reward", name, f"module:function or file.py:function that can be imported ({error!r})"
        ) from error
    if not callable(function):
        raise ConfigError("--reward", name, f"a function, found {type(function).__name__}")
    try:
        signature = inspect.signature(function)
        for takes_answer in (True, False):
            try:
                signature.bind(*range(3 if takes_answer else 2))
            except TypeError:
                continue
            return Reward(name, function, takes_answer)
    except ValueError:  # a function in C that does not say what it takes
        return Reward(name, function)
    raise ConfigError("--reward", name, f"a function of (turns, reply) or (turns, reply, answer), found {signature}")


def _module_of(place: str) -> object:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def advantages(rewards: Sequence[float]) -> list[float]:
    """Rewards of one prompt's replies, less their mean, over their standard deviation; zeros where all are the same."""
    mean, spread = fmean(rewards), pstdev(rewards)
    if spread <= 1e-9 * max(1.0, abs(mean)):
        return [0.0] * len(rewards)
    return [(reward - mean) / spread for reward in rewards]


# --- prompts and replies ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and what a reward function is told about it."""

    prompt: tuple[int, ...]
    width: int
    """Canvas positions."""
    turns: tuple[Turn, ...]
    answer: Turn


class Questions:
    """Places of dialogue files where an agent answers, by speech or by call.

    Args:
        width: Canvas positions of every reply; fewer where a prompt leaves less room.

    Raises:
        ConfigError: If the folders hold no turn to answer.
    """

    def __init__(
        self, folders: Sequence[Path], codec: Codec, spec: ModelSpec, width: int, split: Split = "train"
    ) -> None:
        if width < 1:
            raise ConfigError("width", width, "at least 1")
        self._places = Places(folders, TrainConfig(), with_calls=True, split=split)
        self._codec, self._spec, self._folders = codec, spec, folders
        self._width = -(-width // spec.canvas_multiple) * spec.canvas_multiple

    def draw(self, rng: random.Random) -> Question:
        """
        Raises:
            ConfigError: If nothing fits the model.
        """
        for _ in range(_TRIES):
            dialogue, at = self._places.draw(rng)
            turns = dialogue.turns[:at]
            try:
                prompt = tuple(prompt_tokens(self._codec, turns))
                width = min(self._width, widest_canvas(self._spec, len(prompt)))
            except (ConfigError, PromptTooLongError):
                continue  # a template that refuses such turns, or a dialogue that is too long
            return Question(prompt, width, turns, dialogue.turns[at])
        raise ConfigError("data", ", ".join(map(str, self._folders)), "dialogues that fit the model's positions")


@dataclass(frozen=True, slots=True)
class Reply:
    tokens: tuple[int, ...]
    """With the end-of-turn, where the model came to it."""
    text: str
    is_finished: bool


@dataclass(frozen=True, slots=True)
class Writing:
    """How replies are written.

    Raises:
        ConfigError: If a number is out of range.
    """

    temperature: float = 1.0
    steps_per_token: float = STEPS_PER_TOKEN
    """Denoising steps at most, in canvas positions; what is surer than the family's threshold is decided earlier."""
    batch: int = 32
    """Replies written together."""

    def __post_init__(self) -> None:
        if not 0 < self.steps_per_token <= 1:
            raise ConfigError("steps_per_token", self.steps_per_token, "in (0, 1]")
        if self.batch < 1:
            raise ConfigError("batch", self.batch, "at least 1")


def write_replies(
    checkpoint: Checkpoint, asked: Sequence[tuple[Question, Sequence[int]]], writing: Writing
) -> list[list[Reply]]:
    """For each question, one reply per seed, with the checkpoint's weights as they are."""
    codec, spec, defaults = checkpoint.codec, checkpoint.spec, checkpoint.defaults
    options = replace(family_options(defaults, spec), temperature=writing.temperature)
    # A new engine for every call: what it keeps of prompts is true for the weights of that moment.
    room = min(MOST_CACHE_BYTES, _cache_bytes(checkpoint, [question for question, _ in asked], writing.batch))
    engine = Engine(checkpoint.model, codec.token_table, max_batch=writing.batch, cache_bytes=room)
    numbers: dict[int, tuple[int, int]] = {}
    for place, (question, seeds) in enumerate(asked):
        engine.warm(str(place), question.prompt)  # once for all of its replies
        steps = usual_steps(question.width, defaults.steps, writing.steps_per_token / STEPS_PER_TOKEN)
        plan = Plan(steps, steps, defaults.threshold, by_clause=False)
        for at, seed in enumerate(seeds):
            own = replace(options, seed=seed)
            draft = engine.submit(DraftSpec(question.prompt, str(place), question.width, plan, options=own))
            numbers[draft.number] = place, at
    written: list[dict[int, Reply]] = [{} for _ in asked]
    for event in run_out(engine):
        if isinstance(event, Finished):
            place, at = numbers[event.draft.number]
            is_finished = event.reason == "end_of_turn"
            whole = (*event.tokens, spec.special.end) if is_finished else event.tokens
            written[place][at] = Reply(whole, reply_text(codec, event.tokens), is_finished)
    return [[replies[at] for at in range(len(replies))] for replies in written]


def _cache_bytes(checkpoint: Checkpoint, questions: Sequence[Question], batch: int) -> int:
    """Room for every prompt, and for a batch that shares none of them. Filling more with zeros took longer than a tiny model's step."""
    stores = checkpoint.model.new_stores(1, 1)
    token = sum(store.bytes for store in stores)
    page = max(16, checkpoint.spec.block)
    longest = max(len(question.prompt) + question.width for question in questions)
    return token * (sum(len(question.prompt) + page for question in questions) + batch * (longest + 2 * page))


def reply_text(codec: Codec, tokens: Sequence[int]) -> str:
    """The reply as training text has it: a call of the built-in family begins with `<call> `."""
    text = codec.decode(tokens).strip()
    is_call = isinstance(codec, DialogueCodec) and bool(tokens) and tokens[0] == codec.special.call
    return answer_text(Turn("agent", text, is_call=is_call))


# --- the loss ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReinforceConfig:
    """What a step consists of.

    Raises:
        ConfigError: If a number is out of range.
    """

    prompts_per_step: int = 8
    replies_per_prompt: int = 8
    draws: int = 4
    """Times per reply, one mask each."""
    tie: float = 0.02
    """Standard deviations of reward that a nat of divergence from the reference costs; 0 lets the model drift."""
    replies_per_forward: int = 4
    writing: Writing = Writing()

    def __post_init__(self) -> None:
        for name in ("prompts_per_step", "draws", "replies_per_forward"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "at least 1")
        if self.replies_per_prompt < 2:
            raise ConfigError("replies_per_prompt", self.replies_per_prompt, "at least 2: they are compared")
        if not self.tie >= 0:
            raise ConfigError("tie", self.tie, "at least 0")
        if not self.writing.temperature > 0:
            raise ConfigError("temperature", self.writing.temperature, "above 0: replies must differ")


def policy_losses(policy: Tensor, reference: Tensor, weights: Tensor, tie: float) -> Tensor:
    """-advantage * bound + tie / 2 * (bound - reference) ^ 2 per reply, [replies].

    Args:
        policy, reference: [replies] float32, bounds in nats.
        weights: [replies] float32, advantages.
    """
    return -weights * policy + 0.5 * tie * (policy - reference).square()


@dataclass(frozen=True, slots=True)
class Judged:
    """A reply with what is made of it."""

    prompt: tuple[int, ...]
    reply: Reply
    reward: float
    advantage: float
    draws: tuple[Draw, ...]


class Reinforcer:
    """Steps of reinforcement. The reference is the network as it is when this is made.

    Raises:
        ConfigError: If the family has no such bound.
    """

    def __init__(self, tuner: Tuner, questions: Questions, reward: Reward, config: ReinforceConfig) -> None:
        check_bound(tuner.network.spec)
        self.tuner, self.questions, self.reward, self.config = tuner, questions, reward, config
        self._reference = frozen_copy(tuner.network)
        self._gain = 0.0

    def take_step(self) -> dict[str, Any]:
        """One optimiser step, and its line for the log; the first prompt's replies go to `samples.jsonl`.

        `reward` is the mean over all replies, `reward_sd` their standard deviation, `group_sd` that within a prompt (zero: nothing
        to learn from), `kl` the mean gain over the reference in nats a reply, `finished` the share of replies that came to an end.

        Raises:
            RewardError: If a reward is no number; nothing has changed then.
        """
        config, generator = self.config, self.tuner.generator()
        groups = self._judged(random.Random(f"reinforce:{self.tuner.config.seed}:{self.tuner.step}"), generator)
        judged = [one for group in groups for one in group]
        tokens = sum(len(one.reply.tokens) for one in judged)
        size, self._gain = config.replies_per_forward, 0.0
        parts: list[Callable[[], Tensor]] = [
            partial(self._loss, group[first : first + size], max(tokens, 1))
            for group in groups
            for first in range(0, len(group), size)
        ]
        report = self.tuner.update(parts)
        rewards = [one.reward for one in judged]
        found = {
            "reward": fmean(rewards),
            "reward_sd": pstdev(rewards),
            "group_sd": fmean(pstdev([one.reward for one in group]) for group in groups),
            "kl": self._gain / len(judged),
            "tokens": tokens / len(judged),
            "finished": fmean(one.reply.is_finished for one in judged),
        }
        return asdict(report) | {name: round(value, 5) for name, value in found.items()}

    def _judged(self, rng: random.Random, generator: torch.Generator) -> list[list[Judged]]:
        config = self.config
        questions = [self.questions.draw(rng) for _ in range(config.prompts_per_step)]
        asked = [(one, [rng.getrandbits(48) for _ in range(config.replies_per_prompt)]) for one in questions]
        groups = []
        for question, replies in zip(
            questions, write_replies(self.tuner.checkpoint, asked, config.writing), strict=True
        ):
            rewards = [self.reward(question.turns, reply.text, question.answer) for reply in replies]
            draws = tuple(draw_noise(config.draws, max(len(reply.tokens) for reply in replies), generator))
            groups.append(
                [
                    Judged(question.prompt, reply, reward, advantage, draws)
                    for reply, reward, advantage in zip(replies, rewards, advantages(rewards), strict=True)
                ]
            )
        self._keep(questions[0], groups[0])
        return groups

    def _keep(self, question: Question, group: Sequence[Judged]) -> None:
        """Numbers do not show how a reward was earned."""
        line = {
            "step": self.tuner.step + 1,
            "turn": question.turns[-1].text,
            "replies": [{"text": one.reply.text, "reward": one.reward} for one in group],
        }
        self.tuner.out.mkdir(parents=True, exist_ok=True)
        with (self.tuner.out / SAMPLES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _loss(self, judged: Sequence[Judged], tokens: int) -> Tensor:
        arguments = (
            [one.prompt for one in judged],
            [one.reply.tokens for one in judged],
            [one.draws for one in judged],
        )
        policy = bounds(self.tuner.network, *arguments)
        with torch.no_grad():
            reference = bounds(self._reference, *arguments)
        self._gain += float((policy.detach() - reference).sum())
        weights = torch.tensor([one.advantage for one in judged], device=policy.device)
        return policy_losses(policy, reference, weights, self.config.tie).sum() / tokens


# --- before and after -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """A checkpoint's mean reward for held-back prompts, answered without noise, and the mean's standard error."""

    reward: float
    standard_error: float
    prompts: int

    def __str__(self) -> str:
        return f"{self.reward:.4g} ± {self.standard_error:.2g}"


def measure(checkpoint: Checkpoint, questions: Sequence[Question], reward: Reward, writing: Writing) -> Measured:
    """
    Args:
        writing: Its temperature is not used.

    Raises:
        RewardError: If a reward is no number.
    """
    asked = [(question, (0,)) for question in questions]
    written = write_replies(checkpoint, asked, replace(writing, temperature=0.0))
    rewards = [
        reward(question.turns, reply.text, question.answer)
        for question, (reply,) in zip(questions, written, strict=True)
    ]
    error = stdev(rewards) / math.sqrt(len(rewards)) if len(rewards) > 1 else math.inf
    return Measured(fmean(rewards), error, len(rewards))

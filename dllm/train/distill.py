"""Few-step distillation: a model learns to decide at once what it used to decide one by one.

The material are the model's own replies, written slowly, and the order in which it decided (`dllm.train.trajectories`). A training state is
a reply at one moment of that order, what came later masked. The next `jump` decisions are asked for at once; the jump grows over
the run (d3LLM's curriculum).

certainty    cross-entropy to the final tokens, and where the best token is the final one already, the entropy of the distribution, sharpened
             by a temperature (certainty forcing, dParallel, arXiv:2509.26488)
consistency  cross-entropy to what is decided within the jump; behind it, the distribution that the undistilled model has once those
             tokens are known (SDTT, arXiv:2410.21035; CDLM)

Part of every step are ordinary training rows, so that nothing else is forgotten.

Dimensions: N positions asked for, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.errors import ConfigError
from dllm.models.family import Network
from dllm.train.canvases import Asked, State, check_spec, frozen_copy, logits_at
from dllm.train.tasks import Part, Task
from dllm.train.trajectories import Trajectory
from dllm.train.tuning import Tuner

Method = Literal["certainty", "consistency"]


@dataclass(frozen=True, slots=True)
class DistillConfig:
    """What a step consists of.

    Raises:
        ConfigError: If a number is out of range.
    """

    method: Method = "certainty"
    replies_per_step: int = 8
    states_per_reply: int = 4
    """Moments of each reply, spread over its length."""
    replies_per_forward: int = 4
    first_jump: int = 4
    """Decisions that are asked for at once in the beginning."""
    last_jump: int = 32
    """And from the middle of the run on."""
    entropy_weight: float = 1.0
    temperature: float = 0.5
    """Logits are divided by it before their entropy is taken: what is nearly certain already counts little."""
    closing_weight: float = 0.1
    """Weight of ends behind the first, where the model decided some."""
    ordinary_weight: float = 1.0
    """Weight of the ordinary rows' loss beside the trajectories'."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError("method", self.method, f"one of {', '.join(get_args(Method))}")
        for name in ("replies_per_step", "states_per_reply", "replies_per_forward", "first_jump"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "at least 1")
        if self.last_jump < self.first_jump:
            raise ConfigError("last_jump", self.last_jump, f"at least first_jump, {self.first_jump}")
        if not self.temperature > 0:
            raise ConfigError("temperature", self.temperature, "above 0")
        for name in ("entropy_weight", "closing_weight", "ordinary_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(name, getattr(self, name), "at least 0")


@dataclass(frozen=True, slots=True)
class Moment:
    """A trajectory after some of its steps, and what is asked for then."""

    trajectory: Trajectory
    step: int
    """Decided steps."""
    jump: int

    def state(self, mask: int) -> State:
        """The canvas as it stood, asking for the decisions of the next `jump` steps."""
        wanted = tuple(at for at, step in enumerate(self.trajectory.steps) if self.step < step <= self.step + self.jump)
        return State(self._shown(self.step, mask), wanted)

    def later(self, mask: int) -> State:
        """The canvas `jump` steps later, asking for the decisions of as many steps behind those; nothing where there are none."""
        begin = self.step + self.jump
        wanted = tuple(at for at, step in enumerate(self.trajectory.steps) if begin < step <= begin + self.jump)
        return State(self._shown(begin, mask), wanted)

    def _shown(self, until: int, mask: int) -> tuple[int, ...]:
        return tuple(
            token if 0 < step <= until else mask
            for token, step in zip(self.trajectory.tokens, self.trajectory.steps, strict=True)
        )


def jump_at(progress: float, config: DistillConfig) -> int:
    """Decisions that are asked for at once: growing evenly over the first half of the run."""
    grown = min(1.0, 2 * progress)
    return round(config.first_jump + grown * (config.last_jump - config.first_jump))


def moments_of(trajectory: Trajectory, count: int, jump: int, generator: torch.Generator) -> list[Moment]:
    """`count` moments before the last decision, one in each part of the reply's steps (fewer where it has fewer steps)."""
    count = min(count, trajectory.last)
    draws = torch.rand(count, generator=generator).tolist()
    return [
        Moment(trajectory, min(int((part + draw) / count * trajectory.last), trajectory.last - 1), jump)
        for part, draw in enumerate(draws)
    ]


def certainty_loss(logits: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropies and, where the best token is the target, entropies at a temperature; weighted sums, in nats.

    Args:
        logits: [N, V] float32.
        targets: [N] int64.
        weights: [N] float32.
    """
    entropies = F.cross_entropy(logits, targets, reduction="none")
    is_right = (logits.detach().argmax(dim=-1) == targets).float()
    sharp = torch.log_softmax(logits / temperature, dim=-1)
    spread = -(sharp.exp() * sharp).sum(dim=-1)
    return (entropies * weights).sum(), (spread * is_right * weights).sum()


def consistency_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Sum over positions of KL(teacher || student) in nats, both at temperature 1; [N, V] each."""
    known = torch.log_softmax(teacher, dim=-1)
    return (known.exp() * (known - torch.log_softmax(logits, dim=-1))).sum()


class Distiller:
    """Steps of distillation.

    Args:
        trajectories: The model's own replies; at least one.
        ordinary: The training that made the model, whose rows are mixed in; None for none.
        begun: Share of the budget that is gone before the first step; the jump grows over what is left.

    Raises:
        ConfigError: If there is nothing to learn from.
    """

    def __init__(
        self,
        tuner: Tuner,
        trajectories: Sequence[Trajectory],
        ordinary: Task | None,
        config: DistillConfig,
        begun: float = 0.0,
    ) -> None:
        if not trajectories:
            raise ConfigError("trajectories", 0, "at least one good reply: ask for more, or train the model further")
        self.tuner, self.trajectories, self.ordinary, self.config = tuner, list(trajectories), ordinary, config
        self._mask = check_spec(tuner.network.spec)
        self._end = tuner.network.spec.special.end
        self._teacher: Network | None = frozen_copy(tuner.network) if config.method == "consistency" else None
        self._begun = begun
        self._sums: dict[str, float] = {}

    def take_step(self) -> dict[str, Any]:
        """One optimiser step, and its line for the log. Losses are nats per position asked for."""
        config = self.config
        generator = self.tuner.generator()
        rng = random.Random(self.tuner.config.seed * 7_919 + self.tuner.step)
        jump = jump_at((self.tuner.progress - self._begun) / max(1 - self._begun, 1e-9), config)
        chosen = sorted(
            (rng.choice(self.trajectories) for _ in range(config.replies_per_step)),
            key=lambda one: len(one.prompt) + config.states_per_reply * len(one.tokens),
        )
        moments = [moments_of(one, config.states_per_reply, jump, generator) for one in chosen]
        self._sums = {"cross_entropy": 0.0, "entropy": 0.0, "consistency": 0.0, "right": 0.0, "asked": 0.0}
        began = self.tuner.seconds
        report = self.tuner.update([*self._distilled(moments), *self._ordinary()])
        asked = max(self._sums.pop("asked"), 1.0)
        sums = {name: round(value / asked, 5) for name, value in self._sums.items()}
        return asdict(report) | {"jump": jump, "seconds": round(began, 3)} | sums

    def _distilled(self, moments: Sequence[Sequence[Moment]]) -> Iterator[Callable[[], Tensor]]:
        total = sum(float(self._weights(moment).sum()) for some in moments for moment in some)
        size = self.config.replies_per_forward
        for first in range(0, len(moments), size):
            yield partial(self._loss, moments[first : first + size], max(total, 1e-6))

    def _weights(self, moment: Moment) -> Tensor:
        """[N] of the positions that a moment asks for."""
        length, closing = moment.trajectory.length, self.config.closing_weight
        return torch.tensor([1.0 if at < length else closing for at in moment.state(self._mask).wanted])

    def _loss(self, moments: Sequence[Sequence[Moment]], total: float) -> Tensor:
        """Loss of some replies, divided by the step's total weight."""
        tuner, config, device = self.tuner, self.config, self.tuner.device
        states = [[moment.state(self._mask) for moment in some] for some in moments]
        later = [[moment.later(self._mask) for moment in some] for some in moments]
        is_consistent = self._teacher is not None
        asked = [
            Asked(
                some[0].trajectory.prompt,
                tuple(
                    State(now.shown, (*now.wanted, *then.wanted)) if is_consistent else now
                    for now, then in zip(row, behind, strict=True)
                ),
            )
            for some, row, behind in zip(moments, states, later, strict=True)
        ]
        logits = logits_at(tuner.network, asked)
        is_now = torch.tensor(
            [
                place < len(now.wanted)
                for row, one in zip(states, asked, strict=True)
                for now, state in zip(row, one.states, strict=True)
                for place in range(len(state.wanted))
            ],
            device=device,
        )
        targets = torch.tensor(
            [
                moment.trajectory.tokens[at]
                for some, row in zip(moments, states, strict=True)
                for moment, state in zip(some, row, strict=True)
                for at in state.wanted
            ],
            device=device,
        )
        weights = torch.cat([self._weights(moment) for some in moments for moment in some]).to(device)
        near = logits[is_now]
        entropy, spread = certainty_loss(near, targets, weights, config.temperature)
        loss = entropy
        if self._teacher is None:
            loss = loss + config.entropy_weight * spread
        else:
            behind = [
                Asked(one.prompt, tuple(row))
                for one, row in zip(asked, later, strict=True)
                if any(s.wanted for s in row)
            ]
            if behind:
                with torch.no_grad():
                    known = logits_at(self._teacher, behind)
                divergence = consistency_loss(logits[~is_now], known)
                self._add("consistency", float(divergence.detach()))
                loss = loss + divergence
        self._add("cross_entropy", float(entropy.detach()))
        self._add("entropy", float(spread.detach()))
        self._add("right", float(((near.detach().argmax(dim=-1) == targets).float() * weights).sum()))
        self._add("asked", float(weights.sum()))
        return loss / total

    def _ordinary(self) -> Iterator[Callable[[], Tensor]]:
        if self.ordinary is None or not self.config.ordinary_weight:
            return
        parts = self.ordinary.parts(self.tuner.step)
        # The count of a part is known once it was run; a step's parts are as good as equal.
        for part in parts:
            yield partial(self._ordinary_loss, self.ordinary, part, len(parts))

    def _ordinary_loss(self, task: Task, part: Part, parts: int) -> Tensor:
        terms = task.loss(self.tuner.network, part, self.tuner.device)
        return self.config.ordinary_weight * terms.loss / (max(terms.count, 1.0) * parts)

    def _add(self, name: str, value: float) -> None:
        self._sums[name] += value
